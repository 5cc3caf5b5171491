"""The processes of a run end together; a run that is told to stop saves, and goes on as if nothing had been."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from helpers_launch import Started, environment, run_python, start_python
from helpers_runs import digests, rows, steps, write_config, write_inputs

from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.lifeline import CUT_OFF, STOPPED

pytestmark = pytest.mark.slow

LIMIT_S = 240  # far more than anything waited for here takes


@pytest.fixture(scope="module")
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, model and config.yaml: two ranks, a worker each."""
    folder = tmp_path_factory.mktemp("life")
    settings = write_inputs(folder, int(request.config.option.seed), n_cold_start=24) | {
        "steps": 8,
        "processes": 2,
        "rollout.prompts_per_step": 4,
        "rollout.group_size": 2,
        "rollout.max_new_tokens": 6,
        "batch.mini_batches": 1,
        "optim.lr": 0.003,
        "cold_start.steps": 8,
        "cold_start.batch_size": 4,
        "cold_start.optim.lr": 0.001,
        "eval.before": False,
        "eval.max_per_task": 1,
        "eval.modes": "[greedy]",
        "checkpoint.every": 3,
        "log.trackers": "[]",
    }
    write_config(settings, folder / "config.yaml")
    return folder


# Without restarts, so that what a kill leaves behind can be seen.
FOR_EVER = ("steps=100000", "checkpoint.every=0", "checkpoint.restarts=0")


def command(setup: Path, stage: str, out: Path, *overrides: str) -> tuple[str, ...]:
    return ("-m", "sapo_vl", stage, "--config", str(setup / "config.yaml"), "--out", str(out), *overrides)


@contextmanager
def started(*words: str, starts: int = 1) -> Iterator[Started]:
    """A run in a session of its own, whose two ranks are started so often; what is left of it at the end is killed."""
    # As many forks as there will be ranks: one that waits to be a rank would be taken for a process of the run.
    process = start_python(*words, fresh=words[0] == "-c", forked_ranks=2 * starts)
    try:
        yield process
    finally:
        if process.poll() is None:
            for left in family_of(process):
                left.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], process: Started) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {process.stdout and process.stdout.read()}"
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def family_of(process: Started) -> list[psutil.Process]:
    me = psutil.Process(process.pid)
    return [me, *me.children(recursive=True)]


def ranks_of(process: Started) -> dict[str, psutil.Process]:
    """RANK -> process."""
    children = psutil.Process(process.pid).children()
    return {p.environ()["RANK"]: p for p in children if "RANK" in p.environ() and "sapo_vl" in p.cmdline()}


@pytest.mark.parametrize("killed", ["launcher", "0", "1"])
def test_whoever_is_killed_nobody_is_left(setup: Path, tmp_path: Path, killed: str) -> None:
    out = tmp_path / "run"
    with started(*command(setup, "train", out, *FOR_EVER)) as process:
        wait_for(lambda: len(steps(out)) > 1, process)
        family = family_of(process)
        ranks = ranks_of(process)
        assert ranks.keys() == {"0", "1"} and len(family) >= 5, "a launcher, two ranks, a worker of rewards for each"
        if killed == "launcher":
            again = run_python(*command(setup, "train", out), check=False)
            assert again.returncode == 2
            assert f"stage train, process {process.pid} on " in again.stdout and "stop it first" in again.stdout
        victim = psutil.Process(process.pid) if killed == "launcher" else ranks[killed]
        victim.kill()
        assert not psutil.wait_procs(family, timeout=LIMIT_S)[1]
        if killed != "launcher":
            printed = process.stdout.read() if process.stdout else ""
            assert process.wait(LIMIT_S) == 2
            assert f"stage train: rank {killed} ended with status -9" in printed


def test_a_worker_that_is_killed_is_replaced(setup: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(*command(setup, "train", out)) as process:
        wait_for(lambda: len(steps(out)) > 0, process)
        rank = ranks_of(process)["1"]
        workers = [p for p in rank.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        assert workers
        for worker in workers:
            worker.kill()
        printed, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, printed
    assert [row["step"] for row in steps(out)] == list(range(1, 9))


@pytest.mark.parametrize(
    ("stage", "number", "to", "model"),
    [("train", signal.SIGTERM, "launcher", "final"), ("sft", signal.SIGUSR1, "1", "cold_start")],
)
def test_a_run_that_is_told_to_stop_goes_on_where_it_was(
    setup: Path, tmp_path: Path, stage: str, number: signal.Signals, to: str, model: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_python(*command(setup, stage, whole))
    with started(*command(setup, stage, cut)) as process:
        wait_for(lambda: len(rows(cut, stage)) > 0, process)
        os.kill(process.pid if to == "launcher" else ranks_of(process)[to].pid, number)
        printed, _ = process.communicate(timeout=LIMIT_S)
    done = len(rows(cut, stage))
    assert process.returncode == STOPPED, printed
    assert done < 8 and f"stopped by {number.name} after step {done} of" in printed and "goes on from there" in printed
    assert not (cut / model).exists()

    run_python(*command(setup, stage, cut))
    assert rows(cut, stage) == rows(whole, stage) and len(rows(cut, stage)) == 8
    assert digests(cut / model) == digests(whole / model)
    if stage == "sft":
        assert not (cut / "cold_start_checkpoints").exists()


HELD_UP = """
import time
from pathlib import Path
from rewards.base import RewardOutput

def by_tokens(x):
    while x.id in {ids} and Path({hold!r}).exists():
        Path({held!r}).touch()
        time.sleep(0.05)
    return RewardOutput(sum(x.token_ids) % 7 / 6)
"""


@pytest.mark.parametrize(("length", "step"), [(("steps=8", "eval.every=3"), 3), (("steps=2",), 2)])
def test_a_long_evaluation_loses_nothing_when_the_time_is_up(
    setup: Path, tmp_path: Path, length: tuple[str, ...], step: int
) -> None:
    """One behind a checkpoint, and the last one: the score of a held-out response never comes."""
    whole, cut, hold, held = (tmp_path / name for name in ("whole", "cut", "hold", "held"))
    held_out = ProblemSet(setup / "data", "test")
    ids = {held_out.get(i).id for i in range(len(held_out))}
    train = ProblemSet(setup / "data", "train")
    assert ids.isdisjoint(train.get(i).id for i in range(len(train)))
    (tmp_path / "reward.py").write_text(HELD_UP.format(ids=ids, hold=str(hold), held=str(held)))
    words = (*length, f"rewards.path={tmp_path / 'reward.py'}:by_tokens", "rewards.timeout_s=100000")
    run_python(*command(setup, "train", whole, *words))
    said = (
        f"stopped by SIGTERM after step {step} of {length[0].removeprefix('steps=')}, which is saved; the same command"
    )
    for expected in (STOPPED, CUT_OFF):  # the second run begins with it: begun again, it would come no further
        hold.touch()
        with started(*command(setup, "train", cut, *words, "checkpoint.grace_s=0.5")) as process:
            wait_for(held.exists, process)
            process.send_signal(signal.SIGTERM)
            status = process.wait(LIMIT_S)
            hold.unlink()  # what scores holds on to the output
            printed, _ = process.communicate(timeout=LIMIT_S)
        held.unlink()
        assert status == expected, printed
        assert (said in printed) == (expected == STOPPED)
        assert len(steps(cut)) == step and saved(cut)[-1:] == [f"step_{step:08d}"]
        if expected == STOPPED:
            assert json.loads((cut / ".stopped.json").read_text())["status"] == STOPPED

    run_python(*command(setup, "train", cut, *words))
    assert rows(cut) == rows(whole) and digests(cut / "final") == digests(whole / "final")


# SIGINT is as it is at a terminal, or ignored: what a shell starts in the background has it so, these tests too.
BUSY = """
import signal, sys, time
from sapo_vl.lifeline import StopRequest
signal.signal(signal.SIGINT, signal.SIG_IGN if "ignored" in sys.argv else signal.default_int_handler)
with StopRequest(float(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_second_signal_or_a_step_that_takes_too_long_ends_it_at_once() -> None:
    """The main thread is busy in one long call all the while."""
    for grace, signals in ((600.0, 2), (0.5, 1)):
        with started("-c", BUSY, str(grace)) as process:
            told = process.stdout
            assert told is not None and told.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            for _ in range(LIMIT_S if signals == 2 else 0):
                time.sleep(1.2)  # closer together they are one: those of a terminal come to every process of a group
                process.send_signal(signal.SIGTERM)
                if process.poll() is not None:
                    break
            assert process.wait(LIMIT_S) == CUT_OFF
            assert "SIGINT: this run stops after this step" in told.read()


BETWEEN = """
import signal, sys, time
from pathlib import Path
from sapo_vl.lifeline import StopRequest, stopped
grace_s, saved, tells, out = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
def tell(said):
    if tells == "no room":
        raise OSError(28, "No space left on device")
    out.write_text(f"{said.status} {said}")
with StopRequest(grace_s, tell) as stop:
    with stop.between_steps(lambda told: stopped(told, 7, "of 9", saved, out)):
        if tells != "outside":
            print("ready", flush=True)
            time.sleep(600)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("grace_s", "signals", "saved", "tells", "status"),
    [
        (0.5, 1, 7, "told", STOPPED),
        (600.0, 2, 7, "told", STOPPED),
        (0.5, 1, 7, "no room", STOPPED),
        (0.5, 1, 6, "told", CUT_OFF),
        (0.5, 1, 7, "outside", CUT_OFF),
    ],
)
def test_a_rank_that_must_end_says_whether_that_loses_anything(
    grace_s: float, signals: int, saved: int, tells: str, status: int, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    with started("-c", BETWEEN, str(grace_s), str(saved), tells, str(said)) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        for _ in range(LIMIT_S if signals == 2 else 0):
            time.sleep(1.2)  # closer together they are one
            process.send_signal(signal.SIGTERM)
            if process.poll() is not None:
                break
        assert process.wait(LIMIT_S) == status
    text = (
        f"{STOPPED} stopped by SIGUSR1 after step 7 of 9, which is saved; the same command goes on from there: {said}"
    )
    assert (said.read_text() if said.exists() else "") == (text if status == STOPPED and tells == "told" else "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    with started("-c", BUSY, "0.5", "ignored") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == CUT_OFF
        printed = process.stdout.read()
    assert "SIGTERM: this run stops after this step" in printed and "SIGINT" not in printed


LATE = """
import os, signal
from sapo_vl.distributed import World
from sapo_vl.lifeline import StopRequest
world = World.alone()
with StopRequest(600) as stop:
    print([stop.too_late(world, rest_s) for rest_s in (0, 1e9)], flush=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    while not stop.agreed(world):
        pass
    print([stop.too_late(world, rest_s) for rest_s in (0, 400, 481)], flush=True)
"""


def test_a_step_is_given_up_only_if_its_rest_does_not_fit_into_the_grace() -> None:
    """With a margin of a quarter: 500 s of the 600 s fit, 601.25 s do not."""
    printed = run_python("-c", LATE, fresh=True).stdout
    assert "['', '']" in printed and "['', '', 'SIGUSR1']" in printed
    assert printed.count("this step is given up: its updates and a save take about 481 s") == 1


TELLS = """
import sys
from pathlib import Path
from sapo_vl.lifeline import StopRequest
with StopRequest(600) as stop:
    while not stop._name:
        print("ready", flush=True)  # the terminal goes in the middle of one
    print("there is no terminal for this", flush=True)
    print("nor for this", file=sys.stderr, flush=True)
Path(sys.argv[1]).write_text(stop._name)
"""


def test_a_run_whose_terminal_is_gone_stops_as_one_that_was_told_to(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup

    said = tmp_path / "said"
    process = subprocess.Popen(
        [sys.executable, "-c", TELLS, str(said)], env=environment(), stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    assert process.wait(LIMIT_S) == 0
    assert said.read_text() == "SIGHUP"


LONGER = ("steps=16", "resume=no")  # so that a kill after the first checkpoint is one before the end


@pytest.fixture(scope="module")
def undisturbed(setup: Path) -> Path:
    run_python(*command(setup, "train", setup / "undisturbed", *LONGER))
    return setup / "undisturbed"


def saved(out: Path) -> list[str]:
    return [p.name for p in (out / "checkpoints").glob("step_*")]


def is_as(out: Path, whole: Path) -> None:
    """Nothing was lost, and nothing is left that should not be there."""
    assert steps(out) == steps(whole) and len(steps(out)) == 16
    assert rows(out, "eval") == rows(whole, "eval")
    assert digests(out / "final") == digests(whole / "final")
    assert digests(out / "rollouts") == digests(whole / "rollouts")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, whole)]
    for key in ("accuracy", "bad_rows", "scoring"):
        assert summaries[0][key] == summaries[1][key]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert saved(out) == saved(whole)


def test_a_run_starts_itself_again_when_a_rank_dies(setup: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Although it was told to begin anew: that was the first start."""
    out = tmp_path / "run"
    with started(*command(setup, "train", out, *LONGER), starts=2) as process:
        wait_for(lambda: bool(saved(out)), process)
        ranks_of(process)["0"].kill()
        printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, printed
    told = r"stage train: rank 0 ended with status -9 \(SIGKILL\); it starts again from the checkpoint of step \d+ "
    assert len(re.findall(told + r"\(restart 1 of 3\)", printed)) == 1 and "restart 2" not in printed
    assert "resume=no becomes auto" in printed
    is_as(out, undisturbed)


def test_a_stopped_rank_is_named_and_torchrun_starts_the_run_again(
    setup: Path, tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1")
    words = (*launcher, *command(setup, "train", out, *LONGER, "checkpoint.stopped_s=2"))
    with started(*words, starts=2) as process:
        wait_for(lambda: bool(saved(out)), process)
        ranks = ranks_of(process)
        ranks["1"].suspend()
        printed, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, printed
    assert f"rank 1 (process {ranks['1'].pid}) has been stopped (SIGSTOP) for 2 s" in printed
    assert "resume=no becomes auto" in printed
    is_as(out, undisturbed)


def test_all_end_when_a_rank_is_stopped(setup: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(*command(setup, "train", out, *FOR_EVER, "checkpoint.stopped_s=2")) as process:
        wait_for(lambda: len(steps(out)) > 1, process)
        family, rank = family_of(process), ranks_of(process)["0"]
        rank.suspend()
        printed, _ = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 2, printed
        assert f"rank 0 (process {rank.pid}) has been stopped (SIGSTOP) for 2 s (checkpoint.stopped_s)" in printed
        assert "StageFailed: stage train: rank 0 ended with status -9 (SIGKILL)" in printed
        assert not psutil.wait_procs(family, timeout=LIMIT_S)[1]


def test_a_run_that_dies_twice_at_the_same_place_is_left_alone(setup: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import os, signal\n\ndef by_tokens(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n"
    )
    path = f"rewards.path={tmp_path / 'reward.py'}:by_tokens"
    ended = run_python(*command(setup, "train", tmp_path / "run", path, "processes=1"), check=False)
    assert ended.returncode == 2
    assert ended.stdout.count("it starts again from the beginning (restart 1 of 3)") == 1
    assert "as it did before from the same checkpoint; it is not started again" in ended.stdout
    assert "restart 2" not in ended.stdout
