"""Starting worker processes from tests, with a hard time limit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zygote import RANKS_AHEAD, Forked, start

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> int:
    """A port to start a server on a while later: none that the kernel gives to connections and listeners of others."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise OSError("100 ports of 20000..31999 are taken")


def environment() -> dict[str, str]:
    """This process's, without what a launcher sets, with both source folders on the path and one thread."""
    env = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SUPPORT)])
    return env | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


Started = Forked | subprocess.Popen[str]


def start_python(
    *arguments: str | Path, fresh: bool = False, forked_ranks: int = RANKS_AHEAD, vllm: bool = False
) -> Started:
    """This Python in a session of its own, with its errors in its output: a fork of one that has the libraries loaded,
    that of vLLM too if asked for, as so many of its ranks are (see zygote.py), or `fresh`."""
    if not fresh:
        return start(list(map(str, arguments)), environment(), forked_ranks, vllm=vllm)
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def run_python(
    *arguments: str | Path, timeout: float = 300, check: bool = True, fresh: bool = False, vllm: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs this Python; kills the whole process group at the limit. Fails with the output if it exits non-zero."""
    process = start_python(*arguments, fresh=fresh, vllm=vllm)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{arguments} did not end within {timeout} s; a rank hangs?\n{output[-4000:]}") from None
    if check:
        assert process.returncode == 0, f"{arguments} ended with {process.returncode}\n{output[-6000:]}"
    return subprocess.CompletedProcess(list(map(str, arguments)), process.returncode or 0, output)


def run_ranks(ranks: int, script: str, *arguments: str | Path, timeout: float = 300, vllm: bool = False) -> str:
    """Runs tests/support/`script` on so many ranks: under torchrun, or bare for one. Returns what they printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    return run_python(*launcher, SUPPORT / script, *arguments, timeout=timeout, vllm=vllm).stdout


def ask_ranks(ranks: int, script: str, *arguments: str | Path, timeout: float, vllm: bool = False) -> Any:
    """What tests/support/`script` wrote as JSON to the path in its first argument. Lines of several processes on one
    pipe may run into each other, so nothing is read from what they print."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        printed = run_ranks(ranks, script, out, *arguments, timeout=timeout, vllm=vllm)
        assert out.exists(), printed[-6000:]
        return json.loads(out.read_text())
