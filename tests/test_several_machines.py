"""A run on two machines and a rollout server on a third does what it does on one; one that loses a machine ends soon,
launchers included, and goes on.

The server is a stand-in, whose answers depend on the question alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_vllm_server import FakeServer
from helpers_launch import SUPPORT, run_python
from helpers_runs import digests, rows, write_config, write_inputs
from hosts import Network, network
from zygote import Forked

from sapo_vl.model.chat import load_processor

pytestmark = pytest.mark.slow

LIMIT_S = 600  # far more than anything waited for here takes
SERVER, PORT = 2, 8000


@pytest.fixture(scope="module")
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared folder with data, model, config.yaml, and `one`: the run as two ranks of one machine do it."""
    folder = tmp_path_factory.mktemp("shared")
    settings = write_inputs(folder, int(request.config.option.seed), n_train=40) | {
        "steps": 6,
        "processes": 2,
        "rollout.engine": "vllm_server",
        "rollout.server.urls": f"[http://10.77.0.{SERVER + 1}:{PORT}]",
        "rollout.server.allow_remote": True,
        "rollout.server.timeout_s": 5,
        "rollout.server.retries": 9,
        "rollout.parity.limit": 1000,  # the server has no model
        "rollout.prompts_per_step": 4,
        "rollout.group_size": 2,
        "rollout.max_new_tokens": 6,
        "batch.mini_batches": 1,
        "optim.lr": 0.003,
        "eval.before": False,
        "eval.max_per_task": 1,
        "eval.modes": "[greedy]",
        "checkpoint.every": 2,
        "log.trackers": "[]",
    }
    write_config(settings, folder / "config.yaml")
    image_token, vocabulary = words_of(folder)
    server = FakeServer(image_token, 0)
    server.settings["vocab_size"] = vocabulary
    try:
        run_python(
            "-m", "sapo_vl", *train(folder, folder / "one", f"rollout.server.urls=[{server.url}]"), timeout=LIMIT_S
        )
    finally:
        server.close()
    return folder


def words_of(setup: Path) -> tuple[int, int]:
    """(token of an image, size of the vocabulary)."""
    tokenizer = load_processor(str(setup / "model")).tokenizer
    return int(tokenizer.convert_tokens_to_ids("<|image_pad|>")), len(tokenizer)


def train(setup: Path, out: Path, *more: str) -> tuple[str, ...]:
    return ("train", "--config", str(setup / "config.yaml"), "--out", str(out), *more)


class Run:
    """A process on a host, and what it has printed so far."""

    def __init__(self, process: Forked) -> None:
        self.process, self.lines = process, list[str]()
        self._reading = threading.Thread(target=lambda: self.lines.extend(process.stdout), daemon=True)
        self._reading.start()

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def end(self) -> int:
        """Its status, once it has ended and all is read."""
        status = self.process.wait(LIMIT_S)
        self._reading.join(LIMIT_S)
        return status


@contextmanager
def server(net: Network, setup: Path) -> Iterator[None]:
    """A rollout server on the third host."""
    script = SUPPORT / "fake_server_worker.py"
    process = net.start(SERVER, script, net.address(SERVER), str(PORT), *map(str, words_of(setup)))
    try:
        assert process.stdout.readline() == "listens\n"
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def started(net: Network, setup: Path, out: Path, *more: str) -> Iterator[list[Run]]:
    """The same command on the first two hosts; whatever is left of it at the end is killed."""
    runs: list[Run] = []
    try:
        for host in range(2):
            runs.append(Run(net.torchrun(host, 2, "-m", "sapo_vl", *train(setup, out, *more))))
        yield runs
    finally:
        kill([run.process for run in runs])
        for run in runs:
            run.end()


def wait_for(condition: Callable[[], bool], runs: list[Run]) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert all(run.process.poll() is None for run in runs), [run.printed for run in runs]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def kill(processes: list[Forked]) -> None:
    for process in processes:
        if process.poll() is None:
            me = psutil.Process(process.pid)
            for left in [*me.children(recursive=True), me]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()


def left_of(process: Forked) -> list[psutil.Process]:
    """It and its ranks."""
    me = psutil.Process(process.pid)
    return [me, *me.children(recursive=True)]


def learned(out: Path, phase: str = "train") -> list[dict[str, Any]]:
    """Rows without what an engine is asked when it is new, which is no part of training."""
    return [{k: v for k, v in row.items() if not k.startswith("parity")} for row in rows(out, phase)]


def is_as(out: Path, one: Path) -> None:
    """To the bit: a sum over two ranks has one order."""
    assert learned(out) == learned(one) and len(learned(out)) == 6
    assert learned(out, "eval") == learned(one, "eval")
    assert digests(out / "final") == digests(one / "final")
    assert digests(out / "rollouts") == digests(one / "rollouts")


def test_a_machine_that_is_cut_off_ends_on_both_sides_and_the_run_goes_on(
    setup: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "run"
    with network(3, seed) as net, server(net, setup):
        with started(net, setup, out, "checkpoint.silent_s=8") as runs:
            wait_for(lambda: len(learned(out)) > 2, runs)
            family = [process for run in runs for process in left_of(run.process)]
            assert len(family) >= 4, "two launchers, a rank each"
            net.cut = {1}
            assert all(run.end() != 0 for run in runs)
            assert not psutil.wait_procs(family, timeout=LIMIT_S)[1]
        for host, run in enumerate(runs):
            other = 1 - host
            told = f"machine {net.names[other]} ({net.address(other)}, rank {other} and those beside it) could not be"
            assert f"{told} reached for 8 s (checkpoint.silent_s; " in run.printed, run.printed
        assert net.lost > 0 and not (out / "final").exists()

        net.cut = set()
        with started(net, setup, out, "checkpoint.silent_s=8") as runs:
            assert [run.end() for run in runs] == [0, 0], [run.printed for run in runs]
        assert "resuming from" in runs[0].printed
    is_as(out, setup / "one")


def test_a_network_that_is_slow_and_loses_packets_and_then_the_server_changes_nothing(
    setup: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "run"
    with network(3, seed) as net, server(net, setup):
        net.delay_s, net.loss = 0.02, 0.1
        with started(net, setup, out) as runs:
            wait_for(lambda: len(learned(out)) > 2, runs)
            net.cut = {SERVER}
            lost = ("is out of use", "did not take the weights")  # found by a prompt, or by a sync
            wait_for(lambda: any(text in run.printed for run in runs for text in lost), runs)
            net.cut = set()
            assert [run.end() for run in runs] == [0, 0], [run.printed for run in runs]
        assert net.lost > 0.05 * net.passed > 0
    is_as(out, setup / "one")
