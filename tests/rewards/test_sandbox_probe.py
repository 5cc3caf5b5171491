"""When there is no sandbox, or a bad one, it is found before training. The filter of system calls by itself."""

import errno
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scoring_helpers import group

import rewards.sandbox.launch as sandbox
from rewards.sandbox.launch import Limits, SandboxError, run
from rewards.sandbox.probe import probe
from rewards.sandbox.seccomp import machines, seccomp_filter
from rewards.workers.preflight import setting_problem
from sapo_vl.scoring.scorer import Scorer, ScoringConfig, ScoringError
from sapo_vl.types import ScoreStatus

ROOT = Path(__file__).resolve().parents[2]

# A bubblewrap that starts the program with no walls around it, as whoever calls.
NO_WALLS = f"""#!{sys.executable}
import os, sys, tempfile
options, command = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
folder = tempfile.mkdtemp(dir={{folder!r}})
os.chmod(folder, 0o755)
for i, option in enumerate(options):
    if option == "--file":
        with open(folder + options[i + 2], "wb") as file:
            file.write(os.read(int(options[i + 1]), 1 << 20))
command[command.index("/boot.py") + 2] = "-1"  # nor another user
command = [folder + part if part in ("/boot.py", "/main.py") else part for part in command]
os.execv(command[0], command)
"""


@pytest.fixture
def other_bwrap(tmp_path, monkeypatch):
    """Puts another program, or none, in place of bubblewrap."""

    def replace(text: str | None) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        if text is not None:
            (folder / "bwrap").write_text(text)
            (folder / "bwrap").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        sandbox._walls.cache_clear()
        probe.cache_clear()

    tmp_path.chmod(0o755)
    yield replace
    sandbox._walls.cache_clear()
    probe.cache_clear()


def test_the_sandbox_of_this_machine_holds():
    probe()
    assert setting_problem("code", {}, timeout_s=10.0) == ""


CODE = {"by_task": {"sum": "code"}, "combine": {"accuracy": 1.0}}


@pytest.mark.parametrize(
    ("bwrap", "reason"),
    [
        (None, "bubblewrap (the program bwrap) is not installed"),
        (
            "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1",
            "setting up uid map: Permission",
        ),
        ("#!/bin/sh\nexit 0", "the sandbox does not start"),
        (NO_WALLS, "reaches the network, reaches the trainer's process"),
    ],
)
def test_no_sandbox_no_training(bwrap, reason, other_bwrap, tmp_path):
    other_bwrap(bwrap and bwrap.replace("{folder!r}", repr(str(tmp_path))))
    with Scorer(ScoringConfig.model_validate(CODE)) as scorer:
        with pytest.raises(ScoringError) as error:
            scorer.check([("sum", "")], "programs")
        assert reason in str(error.value)
        assert "apt-get install bubblewrap" in str(error.value)
        assert "rewards.params.code.unsafe=true" in str(error.value)


def test_without_the_check_programs_are_not_run_either(other_bwrap):
    other_bwrap(None)
    config = ScoringConfig.model_validate(CODE | {"max_failure_share": 1})
    problem = {"task": "sum", "reward": "code", "meta": {"tests": [{"input": "", "output": "1"}]}}
    with Scorer(config) as scorer:
        [scored] = scorer.score([group(["```python\nprint(1)\n```"], **problem)], max_tokens=99)
    assert scored.rollouts[0].score_status is ScoreStatus.UNSCORABLE
    assert "bubblewrap (the program bwrap) is not installed" in scored.rollouts[0].score_detail


def test_the_user_can_do_without(other_bwrap):
    other_bwrap(None)
    config = ScoringConfig.model_validate(CODE | {"params": {"code": {"unsafe": True}}})
    problem = {"task": "sum", "reward": "code", "meta": {"tests": [{"input": "", "output": "1"}]}}
    with Scorer(config) as scorer:
        scorer.check([("sum", "")], "programs")
        [scored] = scorer.score([group(["```python\nprint(1)\n```"] * 2, **problem)], max_tokens=99)
    assert [r.reward for r in scored.rollouts] == [1.0, 1.0]


def test_a_program_that_never_starts_says_so_within_its_time(other_bwrap, monkeypatch):
    other_bwrap("#!/bin/sh\nexec /bin/sleep 60")
    monkeypatch.setattr(sandbox, "START_S", 0.5)
    with pytest.raises(SandboxError, match=r"does not start: not within 0\.5 s"):
        run(b"", b"", Limits())


NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}


def python_for_everyone() -> str:
    """An interpreter that any user may run; the one of this environment may lie in root's home."""
    tried = [os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"]
    why = []
    for name in tried:
        command = [name, "-I", "-c", "from datetime import UTC"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", **NOBODY)
        except OSError as error:
            why.append(f"{name}: {error}")
            continue
        if done.returncode == 0:
            return name
        why.append(f"{name} ended with {done.returncode}: {done.stderr}")
    raise AssertionError(f"this test as root needs a Python 3.11 that any user may run; {'; '.join(why)}")


AS_USER = """
import json, os
from rewards.sandbox.probe import probe
from rewards.sandbox.launch import Limits, run
probe()
fork = b'''
import os, time
born = 0
try:
    while born < 200:
        if os.fork() == 0:
            time.sleep(30)
        born += 1
except BlockingIOError:
    print(born)
'''
write = b"import os; print([os.access(p, os.W_OK) for p in ('/', '/dev', '/etc', '/usr', '/usr/lib', '/main.py')])"
assert run(write, b"", Limits()).stdout == b"[False, False, False, False, False, False]\\n"
print(os.getuid(), run(b"import os; print(os.getuid())", b"", Limits()).stdout, run(fork, b"", Limits()).stdout)
"""


def test_as_an_unprivileged_user():
    """Root and others get to their sandbox in different ways; the other tests try the one of whoever runs them."""
    root = os.geteuid() == 0
    python, identity = (python_for_everyone(), NOBODY) if root else (sys.executable, {})
    folder = Path("/tmp", f"sapo-vl-{os.getpid()}")
    try:
        shutil.copytree(ROOT / "rewards", folder / "rewards")
        (folder / "rewards" / "__init__.py").write_text("")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        done = subprocess.run(
            [python, "-B", "-c", AS_USER], cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
            check=False, **identity,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    user, inside, born = done.stdout.split()
    assert user == ("65534" if root else str(os.getuid()))
    assert inside == rf"b'{sandbox._UIDS[0]}\n'"
    assert born in (r"b'6\n'", r"b'7\n'")  # of 8: the program is one, and bubblewrap may be one


# --- the filter of system calls

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#                        read, write, execve, openat, fork's clone, prlimit, getrandom
ALLOWED = {"x86_64": (0, 1, 59, 257, 302, 318), "aarch64": (63, 64, 221, 56, 261, 278)}
#                       ptrace, unshare, setns, mount, keyctl, bpf, io_uring_setup, shmget, memfd_create
DENIED = {
    "x86_64": (101, 272, 308, 165, 250, 321, 425, 29, 319),
    "aarch64": (117, 97, 268, 40, 219, 280, 425, 194, 279),
}
CLONE, SOCKET = {"x86_64": 56, "aarch64": 220}, {"x86_64": 41, "aarch64": 198}
NEW_USER, NEW_NET, THREAD = 0x10000000, 0x40000000, 0x003D0F00


def verdict(machine: str, number: int, argument: int = 0, arch: int | None = None) -> int:
    """What the kernel would do: 0 to let the call through, an error number, or -1 to kill. Runs the filter."""
    code = list(struct.iter_unpack("<HBBI", seccomp_filter(machine)))
    data = struct.pack("<IIQQ", number, ARCH[machine] if arch is None else arch, 0, argument)
    value, place = 0, 0
    while True:
        operation, if_true, if_false, k = code[place]
        place += 1
        if operation == 0x06:
            return {0x7FFF0000: 0, 0x80000000: -1}.get(k, k & 0xFFFF)
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        else:
            taken = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[operation]
            place += if_true if taken else if_false


@pytest.mark.parametrize("machine", machines())
def test_filter(machine):
    assert {verdict(machine, n) for n in ALLOWED[machine]} == {0}
    assert {verdict(machine, n) for n in DENIED[machine]} == {errno.EPERM}
    assert verdict(machine, 435) == errno.ENOSYS  # clone3
    assert [verdict(machine, CLONE[machine], flags) for flags in (17, THREAD)] == [0, 0]
    assert [verdict(machine, CLONE[machine], f) for f in (NEW_USER | 17, NEW_NET)] == [errno.EPERM] * 2
    assert [verdict(machine, SOCKET[machine], family) for family in (1, 2, 10)] == [0, 0, 0]
    assert {verdict(machine, SOCKET[machine], family) for family in (0, 3, 16, 17, 38, 40)} == {errno.EAFNOSUPPORT}
    assert verdict(machine, ALLOWED[machine][0], arch=0x40000003) == -1  # a 32-bit call
    assert verdict(machine, 0x40000000 | ALLOWED[machine][0]) == errno.ENOSYS  # an x32 call


def test_the_filter_is_at_work():
    code = b"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
print([libc.unshare(0x10000000), ctypes.get_errno()], [libc.ptrace(0, 0, 0, 0), ctypes.get_errno()])
import threading, subprocess
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
"""
    assert run(code, b"", Limits()).stdout == b"[-1, 1] [-1, 1]\nthread\n"


def test_a_machine_without_a_filter_has_no_sandbox(monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    sandbox._filter.cache_clear()
    try:
        with pytest.raises(SandboxError, match="no filter of system calls for riscv64"):
            run(b"", b"", Limits())
    finally:
        sandbox._filter.cache_clear()
