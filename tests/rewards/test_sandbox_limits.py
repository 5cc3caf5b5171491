"""Programs in the sandbox that use up the machine, or never end. How programs end, and what they leave."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_helpers import heard, result, running

from rewards.sandbox.launch import Limits, run

ROOT = Path(__file__).resolve().parents[2]


def test_fork_bomb():
    count = """
import json, os, time
born = 0
try:
    while born < 200:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        born += 1
except BlockingIOError:
    pass
print(born)
"""
    born = result(count, processes=6)
    assert isinstance(born, int) and 3 <= born <= 5  # besides the program, and for a user bubblewrap itself
    with running("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n", Limits()) as (child, pipe):
        time.sleep(0.5)
        child.end()
        assert heard(pipe, 0) == b""


def test_memory_bomb():
    take = "import sys; x = bytearray({} << 20); print(len(x) >> 20)"
    ended = run(take.format(200).encode(), b"", Limits(memory_mb=128))
    assert ended.how == "exit" and ended.status == 1 and "MemoryError" in ended.errors
    assert run(take.format(200).encode(), b"", Limits(memory_mb=512)).stdout == b"200\n"


def test_memory_that_no_limit_counts_cannot_be_had():
    fill = """
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
taken = 0
try:
    with open("/tmp/full", "wb") as file:
        while taken < 100:
            file.write(bytes(1 << 20))
            taken += 1
except OSError:
    pass
print(json.dumps([taken, libc.shmget(0, 1 << 20, 0o1600), libc.memfd_create(b"x", 0), ctypes.get_errno()]))
"""
    taken, segment, file, number = result(fill, files_mb=8)  # type: ignore[misc]
    assert taken <= 8 and segment == file == -1 and number == errno.EPERM


def test_many_small_files_fill_no_more_than_large_ones():
    fill = """
import errno
try:
    for i in range(100):
        open(f"/tmp/{i}", "wb").write(bytes(1 << 20))
except OSError as error:
    print(i if error.errno == errno.ENOSPC else -1)
"""
    assert result(fill, files_mb=8) in range(5, 9)


def test_output_flood():
    flood = b"import sys\nwhile True: sys.stdout.write('x' * 1000)\n"
    started = time.monotonic()
    ended = run(flood, b"", Limits(output_bytes=5000, wall_s=60.0))
    assert (ended.how, len(ended.stdout)) == ("flood", 5001)
    assert time.monotonic() - started < 20
    exact = run(b"print('x' * 4999)", b"", Limits(output_bytes=5000))
    assert (exact.how, len(exact.stdout)) == ("exit", 5000)


def test_a_flood_of_error_messages_is_cut_off():
    ended = run(b"import os\nwhile True: os.write(2, b'x' * 65536)\n", b"", Limits(files_mb=4, wall_s=60.0))
    assert ended.how == "exit" and ended.status != 0
    assert len(ended.errors) <= 300 and "x" in ended.errors


@pytest.mark.parametrize(
    ("program", "limits"),
    [
        ("while True: pass", Limits(cpu_s=1, wall_s=60.0)),
        ("import time; time.sleep(60)", Limits(wall_s=0.5)),
        ("input(); import os, time; os.close(1); time.sleep(60)", Limits(wall_s=0.5)),
        ("import os, signal\nfor n in range(1, 31):\n    n not in (9, 19) and signal.signal(n, 1)\nwhile True: pass",
         Limits(cpu_s=30, wall_s=0.5)),
    ],
)  # fmt: skip
def test_time(program, limits):
    started = time.monotonic()
    assert run(program.encode(), b"\n", limits).how == "timeout"
    assert time.monotonic() - started < 20


def test_how_programs_end():
    def ended(program: str) -> tuple[str, int]:
        run_ = run(program.encode(), b"", Limits())
        return run_.how, run_.status

    assert ended("") == ("exit", 0)
    assert ended("import sys; sys.exit(3)") == ("exit", 3)
    assert ended("1/0") == ("exit", 1)
    assert ended("syntax error") == ("exit", 1)
    assert ended("import os; os.kill(os.getpid(), 11)") == ("exit", 128 + 11)
    echo = run(b"import sys; sys.stdout.write(sys.stdin.read())", b"x" * 500_000, Limits())
    assert echo.stdout == b"x" * 500_000  # far more than a pipe holds


def test_programs_are_repeatable():
    order = b"print(set('abcdefghij'), __name__, [k for k in dir() if k == '__file__'])"
    assert len({run(order, b"", Limits()).stdout for _ in range(3)}) == 1
    assert b"__main__ ['__file__']" in run(order, b"", Limits()).stdout


def test_nothing_is_left_behind(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from rewards.sandbox.launch import Limits, run
run(b"", b"", Limits())
before = os.listdir("/proc/self/fd")
for unsafe in (False, True):
    for program in (b"", b"1/0", b"import os; os.fork(); os.fork()", b"while True: print(1)"):
        run(program, b"", Limits(wall_s=0.3), unsafe)
        assert os.listdir("/proc/self/fd") == before
        assert os.listdir(os.environ["TMPDIR"]) == []
    try:
        unsafe or os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child, dead or alive")
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "no child, dead or alive\n"
