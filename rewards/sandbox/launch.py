"""Run Python programs that nobody has read: no network, no files of ours, bounded in everything, dead at the end.

bubblewrap gives the program namespaces of its own (mounts, processes, network, and users, or, for a trainer that
runs as root, an unprivileged user): it sees the interpreter, its libraries and an empty /tmp, and no other
process. rewards/sandbox/inside/boot.py sets limits of the kernel from inside, rewards/sandbox/seccomp.py takes system
calls away.
Files go in through anonymous memory and results come out through pipes: no folder is shared.

What it does not do: it shares the kernel with the trainer. A hole in the kernel is a hole in the sandbox.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rewards.sandbox.packages import FOLDER, package_files
from rewards.sandbox.seccomp import machines, seccomp_filter

START_S = 15.0  # for a sandbox to be set up, before the clock of the program starts
_UIDS = (61184, 65519)  # users without account or files: the range of systemd's dynamic users
_ERROR_BYTES = 300
_SET_CHILD_SUBREAPER, _GET_CHILD_SUBREAPER = 36, 37  # from linux/prctl.h
_BOOT = resources.files("rewards.sandbox.inside").joinpath("boot.py").read_bytes()
# -s -P -S: no user's packages, no folder of the script, no site-packages: the standard library, and `packages`.
_PYTHON_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the order of a set should not decide about a reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. Memory and CPU time are those of one process; `processes` says how many there can be."""

    wall_s: float = 4.0  # seconds from the moment the program starts
    cpu_s: int = 2  # seconds of CPU time
    memory_mb: int = 512  # MiB of address space
    processes: int = 8  # processes and threads at a time, the first one included
    files_mb: int = 16  # MiB of the files in /tmp, in all
    open_files: int = 64
    output_bytes: int = 1 << 20  # on the standard output


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    how: str  # "exit", "timeout" (of the wall clock or of CPU time) or "flood" (too much output)
    status: int  # exit status, 128 + n after signal n
    stdout: bytes  # what it wrote until then
    errors: str = ""  # the last words on the standard error, on one line


class SandboxError(RuntimeError):
    """The sandbox could not be set up. Nothing of the program has run, so this says nothing about it."""


class Child:
    """A program in a sandbox. When the `with` block is left it is dead, and so is everything that it started.

    It also dies with the thread that started it, whatever that thread dies of.
    """

    def __init__(self, popen: subprocess.Popen[bytes], ready: int, info: int, errors: int, resources: ExitStack):
        self._popen = popen
        self._ready = ready  # pipe: one byte when the program is about to start
        self._info, self._errors = info, errors  # anonymous files: what bubblewrap tells, the standard error
        self._resources = resources  # closes these and removes the files
        self._status: int | None = None  # known when the program was ended

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        with self._resources:
            self.end()

    def wait_ready(self) -> None:
        """Return when the program is about to start.

        Raises:
            SandboxError: it will not start, or not within 15 seconds.
        """
        readable, _, _ = select.select([self._ready], [], [], START_S)
        if not readable or os.read(self._ready, 1) != b"1":
            self.end()
            raise SandboxError(f"the sandbox does not start: {self.errors() or f'not within {START_S:g} s'}")

    def wait(self, stdout: int, limits: Limits) -> Ended:
        """Read what the program writes to the pipe `stdout` until it ends; at a limit, end it.

        Raises:
            SandboxError: it did not start.
        """
        self.wait_ready()
        written = bytearray()
        how = self._read(stdout, written, time.monotonic() + limits.wall_s, limits.output_bytes)
        status = self.end()
        return Ended("timeout" if status == 128 + signal.SIGXCPU else how, status, bytes(written), self.errors())

    def end(self) -> int:
        """Kill what is left, wait until it is gone; the exit status of the program."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
            code = self._popen.wait()
            self._status = 128 - code if code < 0 else code
            # bubblewrap leaves process 1 of the sandbox behind, dead or alive. The kernel hands it to us
            # (adopt_orphans), and it is gone only after everything in the sandbox is.
            first = re.search(rb'"child-pid": ([0-9]+)', os.pread(self._info, 4096, 0))
            if first is not None:
                _end_orphan(int(first[1]))
        return self._status

    def errors(self) -> str:
        """The end of what the program, or bubblewrap, wrote to the standard error."""
        size = os.fstat(self._errors).st_size
        text = os.pread(self._errors, _ERROR_BYTES, max(0, size - _ERROR_BYTES))
        return " ".join(text.decode(errors="replace").split())

    def _read(self, stdout: int, written: bytearray, deadline: float, most: int) -> str:
        ended = os.pidfd_open(self._popen.pid)
        try:
            poll = select.poll()
            poll.register(stdout, select.POLLIN)
            poll.register(ended, select.POLLIN)
            while (left := deadline - time.monotonic()) > 0:
                ready = {fd for fd, _ in poll.poll(left * 1000)}
                if stdout in ready:  # looked at before the end, so that nothing stays in the pipe
                    chunk = os.read(stdout, 65536)
                    written += chunk[: most + 1 - len(written)]
                    if len(written) > most:
                        return "flood"
                    if not chunk:
                        poll.unregister(stdout)
                elif ready:
                    return "exit"
            return "timeout"
        finally:
            os.close(ended)


def start(
    files: Mapping[str, bytes],
    main: str,
    limits: Limits,
    *,
    stdin: int,
    stdout: int,
    arguments: Sequence[str] = (),
    keep: Sequence[int] = (),
    packages: bool = False,
    unsafe: bool = False,
) -> Child:
    """Start the Python program `main`, one of `files`; it may still fail to start (Child.wait_ready).

    Args:
        files: name -> content; read-only for the program, in the folder of `main`.
        stdin, stdout: descriptors; the caller closes them. The standard error goes to Child.errors.
        arguments: of the program.
        keep: more descriptors that the program gets, under their numbers.
        packages: it may import those of rewards.sandbox.packages.
        unsafe: no sandbox: the limits hold, but the program can read and write what the trainer can.

    Raises:
        SandboxError: there is no bubblewrap, or no filter for this kind of machine.
    """
    files = {**files, "boot.py": _BOOT}
    with ExitStack() as ours, ExitStack() as childs:  # what is closed when the child ends, and what right now
        ready, ready_write = os.pipe()
        ours.callback(os.close, ready)
        childs.callback(os.close, ready_write)
        info, errors = ours.enter_context(memory_file()), ours.enter_context(memory_file())
        command: list[str] = []
        passed, folder, uid = [*keep, ready_write], "", -1
        if unsafe:
            folder = tempfile.mkdtemp(prefix="unsafe-program-")
            ours.callback(shutil.rmtree, folder)
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            if packages:
                Path(folder, FOLDER).mkdir()
                for name, place in package_files().items():
                    Path(folder, FOLDER, name).symlink_to(place)
        else:
            adopt_orphans(True)
            uid = random.SystemRandom().randint(*_UIDS) if os.geteuid() == 0 else -1
            data = {name: childs.enter_context(memory_file(content)) for name, content in files.items()}
            rules = childs.enter_context(memory_file(_filter()))
            command = [*_walls(uid >= 0), "--perms", "1777", "--size", str(limits.files_mb << 20), "--tmpfs", "/tmp"]
            if packages:
                command += ["--perms", "0755", "--dir", f"/{FOLDER}"]
                for name, place in package_files().items():
                    command += ["--ro-bind", place, f"/{FOLDER}/{name}"]
            for name, fd in data.items():
                command += ["--perms", "0444", "--file", str(fd), f"/{name}"]
            command += ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(rules), "--info-fd", str(info), "--"]
            passed += [*data.values(), rules, info]
        command += [
            _python(),
            *_PYTHON_FLAGS,
            f"{folder}/boot.py",
            str(ready_write),
            str(uid),
            ",".join(map(str, keep)),
        ]
        command += [_kernel_limits(limits, unsafe), f"{folder}/{main}", *arguments]
        popen = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=errors,
            pass_fds=passed,
            cwd=folder or "/",
            env=_ENVIRONMENT,
            start_new_session=True,  # a process group of its own, to be killed as one
        )
        return Child(popen, ready, info, errors, ours.pop_all())


def run(program: bytes, stdin: bytes, limits: Limits, unsafe: bool = False, packages: bool = False) -> Ended:
    """Run a Python program to its end, with `stdin` as its input; `packages` as for `start`.

    Raises:
        SandboxError: it could not be started; none of it has run.
    """
    with (
        memory_file(stdin) as given,
        pipe() as (read, write),
        start(
            {"main.py": program}, "main.py", limits, stdin=given, stdout=write, packages=packages, unsafe=unsafe
        ) as child,
    ):
        return child.wait(read, limits)


@contextmanager
def memory_file(content: bytes = b"") -> Iterator[int]:
    """Descriptor of an anonymous file, at its beginning."""
    fd = os.memfd_create("sandbox")
    with closing_fds(fd):
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """(end to read from, end to write to) of a pipe."""
    read, write = os.pipe()
    with closing_fds(read, write):
        yield read, write


@contextmanager
def closing_fds(*fds: int) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def adopt_orphans(adopt: bool) -> bool:
    """Whether processes that a child of this process leaves behind become its own children; what held before.

    Without it they go to process 1 of the machine or container, and where that does not wait for them, as in many
    containers, each run would leave a dead process behind for good.
    """
    before = ctypes.c_int()
    _prctl(_GET_CHILD_SUBREAPER, ctypes.byref(before))
    _prctl(_SET_CHILD_SUBREAPER, int(adopt))
    return bool(before.value)


def _prctl(option: int, value: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise SandboxError(f"prctl({option}) failed: {os.strerror(ctypes.get_errno())}")


def _end_orphan(pid: int) -> None:
    try:
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # bubblewrap has waited for it itself


def _kernel_limits(limits: Limits, unsafe: bool) -> str:
    """The limits for boot.py, by the names of setrlimit."""
    values = {
        "AS": limits.memory_mb << 20,
        "CORE": 0,
        "CPU": limits.cpu_s,
        "FSIZE": limits.files_mb << 20,
        "MEMLOCK": 0,
        "NOFILE": limits.open_files,
        "NPROC": limits.processes,
    }
    if unsafe:
        del values["NPROC"]  # it would count everything that the user runs
    return ",".join(f"{name}={value}" for name, value in values.items())


@functools.cache
def _python() -> str:
    """The interpreter itself, not the link to it in a virtual environment, whose folder is not visible inside."""
    python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return os.path.realpath(python if os.path.exists(python) else sys.executable)


@functools.cache
def _filter() -> bytes:
    machine = platform.machine()
    if machine not in machines():
        raise SandboxError(f"there is no filter of system calls for {machine}, only for {', '.join(machines())}")
    return seccomp_filter(machine)


@functools.cache
def _walls(as_root: bool) -> tuple[str, ...]:
    """The part of the command that is the same for every program: namespaces, rights and what can be seen.

    Root needs no user namespace, and has to do without: in one, it would be root still to the limit of the number of
    processes, which does not hold for root. boot.py becomes an unprivileged user instead.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError("bubblewrap (the program bwrap) is not installed")
    if as_root:
        command = [bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command = [bwrap, "--unshare-all", "--uid", str(_UIDS[0]), "--gid", str(_UIDS[0])]
    command += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        command += ["--setenv", name, value]
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
    # A prefix in a home folder (pyenv, conda, uv) comes without the rest of that folder.
    library, python = f"{sys.base_prefix}/lib", _python()
    parents = {parent for path in (*system, library, python) for parent in Path(path).parents} - {Path("/")}
    for folder in sorted(
        {Path("/dev"), Path("/etc"), *parents}
    ):  # left to itself, bubblewrap makes them for their owner alone
        command += ["--perms", "0755", "--dir", str(folder)]
    for folder in system:
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    if library not in system:
        command += ["--ro-bind", library, library]
    command += ["--ro-bind", python, python, "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return (*command, "--dev-bind", "/dev/null", "/dev/null")
