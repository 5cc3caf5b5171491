"""Does the sandbox hold on this machine? Asked before training, not after the first program has got out."""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import tempfile
from pathlib import Path

from rewards.sandbox.launch import Limits, SandboxError, adopt_orphans, run
from rewards.sandbox.packages import ALWAYS, package_files

REMEDY = (
    "It needs Linux on x86_64 or aarch64 and bubblewrap 0.6 or newer (apt-get install bubblewrap, dnf install "
    "bubblewrap). Where namespaces are refused: in a container, docker run --cap-add SYS_ADMIN --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined; as an ordinary user on Ubuntu 24.04, sysctl -w "
    "kernel.apparmor_restrict_unprivileged_userns=0"
)
_FILES_LOOKED_AT = 20  # of the home folder
_PROGRAM = b"""
import json, os, socket, sys
given = json.loads(sys.stdin.read())
found = [f"reads {path}" for path in given["files"] if os.path.exists(path)]
found += [f"has the variable {name}" for name in os.environ if name not in given["variables"]]
found += [f"runs as {what} 0" for what, number in (("user", os.getuid()), ("group", os.getgid())) if number == 0]
found += [f"sees process {given['process']}"] * os.path.exists(f"/proc/{given['process']}")
try:
    socket.create_connection(("127.0.0.1", given["port"]), 1)
    found.append("reaches the network")
except OSError:
    pass
try:
    os.kill(given["process"], 0)
    found.append("reaches the trainer's process")
except OSError:
    pass
print(json.dumps(found))
"""


@functools.cache
def probe() -> None:
    """Run a small program in the sandbox that looks for what it must not find. Takes about 50 ms, once.

    Raises:
        SandboxError: the sandbox does not start or has a hole; the message says which, and what to do.
    """
    adopted = adopt_orphans(True)
    try:
        with tempfile.NamedTemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as server:
            question = {
                "files": [*_home_files(), file.name, os.path.abspath(__file__), "/etc/passwd"],
                "variables": ["PWD", "LC_CTYPE", "PYTHONHASHSEED"],
                "process": os.getpid(),
                "port": server.getsockname()[1],
            }
            ended = run(_PROGRAM, json.dumps(question).encode(), Limits(wall_s=20.0))
    except SandboxError as error:
        raise SandboxError(f"{error}. {REMEDY}") from error
    finally:
        adopt_orphans(adopted)
    if ended.how != "exit" or ended.status != 0:
        raise SandboxError(
            f"a harmless program failed in the sandbox ({ended.how}, {ended.status}): {ended.errors}. {REMEDY}"
        )
    found = json.loads(ended.stdout)
    if found:
        raise SandboxError(f"the sandbox has a hole: a program in it {', '.join(found)}. {REMEDY}")


@functools.cache
def probe_packages(memory_mb: int) -> None:
    """Import numpy in the sandbox, once in a process for each limit.

    Raises:
        SandboxError: it cannot be imported there; the message says what to do.
    """
    if ALWAYS not in package_files():
        raise SandboxError(f"{ALWAYS} is not installed as a package of files; install it, or set packages=false")
    adopted = adopt_orphans(True)
    try:
        limits = Limits(wall_s=30.0, cpu_s=20, memory_mb=memory_mb)
        ended = run(f"import {ALWAYS}".encode(), b"", limits, packages=True)
    finally:
        adopt_orphans(adopted)
    if (ended.how, ended.status) != ("exit", 0):
        raise SandboxError(
            f"{ALWAYS} cannot be imported in the sandbox ({ended.how}, {ended.status}): {ended.errors}. It needs "
            f"memory_mb of 256 or more, and files in {package_files()[ALWAYS]} that everyone may read"
        )


def _home_files() -> list[str]:
    home = Path.home()
    if not os.access(home, os.R_OK | os.X_OK):  # some accounts have none
        return []
    return sorted(str(path) for path in home.iterdir() if path.is_file())[:_FILES_LOOKED_AT]


if __name__ == "__main__":
    try:
        probe()
    except SandboxError as error:
        sys.exit(str(error))
    print("the sandbox holds")
