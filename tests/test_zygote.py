"""A fork of a process that has the libraries loaded ends, prints and reads as a Python that was started does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_launch import SUPPORT, environment, run_python, run_ranks, start_python
from zygote import ADDRESS, address

pytestmark = pytest.mark.slow

PROGRAM = """
import atexit, multiprocessing, os, signal, sys

def square(x):
    return x * x

if __name__ == "__main__":
    how = sys.argv[1]
    print(how, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ["OMP_NUM_THREADS"], sys.stdin.read())
    print("an error's line", file=sys.stderr)
    atexit.register(print, "at exit")
    if how == "workers":
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            print(pool.map(square, [2, 3]))
    if how == "raises":
        raise ValueError("told")
    if how == "signal":
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)
    if how != "ends":
        sys.exit({"text": "a text", "zero": 0, "three": 3, "workers": None}[how])
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [("ends", 0), ("zero", 0), ("three", 3), ("text", 1), ("raises", 1), ("signal", -signal.SIGTERM), ("workers", 0)],
)
def test_as_one_that_was_started(tmp_path: Path, how: str, status: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = [run_python(tmp_path / "program.py", how, check=False, fresh=fresh) for fresh in (False, True)]
    for one in ended:
        assert one.returncode == status
        assert "an error's line" in one.stdout and (how == "signal") == ("at exit" not in one.stdout)
    # Standard error comes first or last, and a traceback has the lines of what runs a program above it.
    lines = [[line for line in one.stdout.splitlines() if not line.startswith("  ")] for one in ended]
    assert sorted(lines[0]) == sorted(lines[1])


def test_a_script_finds_the_command_as_a_fork(tmp_path: Path) -> None:
    env = environment()
    env |= {"PATH": f"{SUPPORT / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}", ADDRESS: address(env)}
    script = (
        "cat | sapo-vl --help > help; echo $?; sapo-vl nothing 2> errors; echo $?; sapo-vl recipe check . 2>&1; echo $?"
    )
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, input="", capture_output=True, text=True, check=True
    )
    statuses = [line for line in ended.stdout.splitlines() if line.isdigit()]
    assert statuses[:2] == ["0", "2"] and statuses[2] != "0" and ended.stderr == ""
    assert "usage: sapo-vl" in (tmp_path / "help").read_text() and "nothing" in (tmp_path / "errors").read_text()


def test_a_module_under_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are children of their launcher, know each other, and are where it is, wherever the server was started."""
    run_python("-c", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranks.py").write_text(
        "import os, torch\nfrom torch import distributed as d\nd.init_process_group('gloo')\n"
        "t = torch.tensor([d.get_rank() + 1.0])\nd.all_reduce(t)\n"
        "os.write(1, f'sum {t.item()} {os.getppid()} {os.getcwd()}\\n'.encode())\n"  # whole: print may be cut
        "d.destroy_process_group()\n"
    )
    printed = run_ranks(2, str(tmp_path / "ranks.py"))
    said = re.findall(r"sum (\S+) (\d+) (.*)\n", printed)
    assert len(said) == 2 and said[0] == said[1] and said[0][0] == "3.0" and said[0][2] == str(tmp_path)


def test_one_that_waits_is_waited_for_and_killed(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    process = start_python(tmp_path / "waits.py")
    assert process.stdout is not None and process.stdout.readline() == "ready\n" and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert os.getpgid(process.pid) == process.pid
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


def test_a_rank_on_a_cpu_loads_no_compiler() -> None:
    """DeepSpeed's Muon, which it imports in every rank, is not decorated with torch.compile there."""
    run_python(
        "-c",
        "import sys\nfrom sapo_vl.learning.engine import import_muon_as_it_is\nimport_muon_as_it_is()\n"
        "from deepspeed.runtime.zero.muon import original_muon\n"
        "assert type(original_muon.zeropower_via_newtonschulz5).__name__ == 'function'\n"
        "assert not hasattr(original_muon.zeropower_via_newtonschulz5, '_torchdynamo_orig_callable')\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n",
        fresh=True,
    )
