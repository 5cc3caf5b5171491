"""Scoring with a reward that misbehaves: each response gets its own reward or its own reason."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from reward_helpers import worker_processes
from scoring_helpers import config, group

from sapo_vl.scoring.scorer import Scorer
from sapo_vl.types import ScoreStatus

MOODS = '''
import os, re, signal, sys, time
import numpy as np
from rewards import RewardInput, RewardOutput, Unscorable

class Bad(BaseException):
    """Not an Exception, as the time-out of math_verify is not."""

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no message either")

def moody(x: RewardInput, exponent: int = 1) -> RewardOutput:
    word = x.text
    if word == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if word == "hang in C":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if word == "sleep":
        time.sleep(1000)
    if word == "slow":
        time.sleep(0.15)
        return RewardOutput(1.0)
    if word == "exit":
        os._exit(3)
    if word == "quiet exit":
        os._exit(0)
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "sys.exit":
        sys.exit(1)
    if word == "raise":
        raise KeyError("missing\\nkey")
    if word == "raise base":
        raise Bad("bad base")
    if word == "raise mute":
        raise Mute
    if word == "unscorable":
        raise Unscorable("gold is odd")
    if word == "nan":
        return RewardOutput(float("nan"))
    if word == "nan part":
        return RewardOutput(1.0, {"iou": float("inf")})
    if word == "float":
        return 1.0
    if word == "text":
        return RewardOutput("1")
    if word == "none":
        return None
    if word == "numpy":
        return RewardOutput(np.float32(0.5), {"iou": np.float64(0.25)})
    return RewardOutput(float(word) ** exponent, {"images": float(len(x.images))})

def no_arguments():
    return RewardOutput(0.0)

def sees(x):
    return RewardOutput(float(x.images[0].getpixel((0, 0))[0]))

sees.needs_images = True
'''


@pytest.fixture(scope="module")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "moods.py"
    path.write_text(MOODS)
    return path


@pytest.fixture(scope="module")
def scorer(moods: Path) -> Iterator[Scorer]:
    with Scorer(config(moods, max_failure_share=1.0)) as scorer:
        yield scorer


def wait_for_workers(count: int) -> None:
    deadline = time.monotonic() + 60
    while len(worker_processes()) != count:
        assert time.monotonic() < deadline, f"{len(worker_processes())} workers after a minute, expected {count}"
        time.sleep(0.05)


MISHAPS = {
    "hang": (ScoreStatus.TIMEOUT, "no score within 5 s"),
    "hang in C": (ScoreStatus.TIMEOUT, "no score within 5 s"),
    "sleep": (ScoreStatus.TIMEOUT, "no score within 5 s"),
    "exit": (ScoreStatus.CRASH, "exit code 3"),
    "kill": (ScoreStatus.CRASH, "SIGKILL"),
    "sys.exit": (ScoreStatus.ERROR, "SystemExit: 1 (moods.py:"),
    "raise": (ScoreStatus.ERROR, "KeyError: 'missing\\nkey' (moods.py:"),
    "raise base": (ScoreStatus.ERROR, "Bad: bad base"),
    "raise mute": (ScoreStatus.ERROR, "Mute: (its message cannot be printed)"),
    "unscorable": (ScoreStatus.UNSCORABLE, "gold is odd"),
    "nan": (ScoreStatus.ERROR, "the score of reward 'custom' must be finite, got nan"),
    "nan part": (ScoreStatus.ERROR, "part 'iou' of reward 'custom' must be finite, got inf"),
    "float": (ScoreStatus.ERROR, "must return a RewardOutput, got float"),
    "text": (ScoreStatus.ERROR, "must be a number, got str"),
    "none": (ScoreStatus.ERROR, "must return a RewardOutput, got NoneType"),
    "not a number": (ScoreStatus.ERROR, "ValueError: could not convert string to float"),
}


def check_mishaps(scorer: Scorer, words: list[str]) -> None:
    """Score `words` among good responses; only they may be left without the right score."""
    words = [w for word in words for w in ("1.5", word, "2.5")]
    scored = scorer.score([group(words[:4]), group(words[4:])], max_tokens=30)
    assert [len(g.rollouts) for g in scored] == [len(words[:4]), len(words[4:])]
    for word, r in zip(words, [r for g in scored for r in g.rollouts], strict=True):
        assert r.text == word
        if word in MISHAPS:
            status, reason = MISHAPS[word]
            assert (r.reward, r.score_status, dict(r.parts)) == (None, status, {}), word
            assert reason in r.score_detail and "\n" not in r.score_detail
        else:
            assert (r.reward, r.score_status, r.score_detail) == (float(word), ScoreStatus.SCORED, "")
            assert r.parts == {"accuracy": float(word), "accuracy/images": 0.0}


SLOW = [pytest.mark.slow]  # a worker that ignores SIGTERM gets 3 s before it is killed, twice


@pytest.mark.parametrize("word", [pytest.param(word, marks=SLOW if word == "hang" else []) for word in sorted(MISHAPS)])
def test_a_mishap_costs_its_response_only(scorer: Scorer, word: str):
    check_mishaps(scorer, [word])
    wait_for_workers(2)


@pytest.mark.slow
def test_all_mishaps_in_one_batch_and_two_hanging_at_once(scorer: Scorer):
    check_mishaps(scorer, ["hang", "hang", *sorted(MISHAPS), "exit", "exit"])
    wait_for_workers(2)


@pytest.mark.slow
def test_no_batch_is_lost_to_a_flood_of_rewards_that_hang(moods: Path):
    """Two steps in a row in which 30% of the responses hang, every tenth one by sleeping."""
    words = ["hang in C", "1.5", "2.5", "1.5", "hang in C", "2.5", "1.5", "sleep", "2.5", "1.5"] * 2
    others = len(worker_processes())
    with Scorer(config(moods, timeout_s=1)) as scorer:
        for step in (1, 2):
            [scored] = scorer.score([group(words)], max_tokens=30)
            expected = [float(word) if word in ("1.5", "2.5") else None for word in words]
            assert [r.reward for r in scored.rollouts] == expected
            assert scorer.counts[ScoreStatus.TIMEOUT] == 6 * step
            assert scorer.failure_shares["failed/custom/timeout"] == 0.3
    wait_for_workers(others)


def test_slow_responses_have_a_time_limit_each_not_one_together(moods: Path):
    # 80 x 0.15 s on 2 workers is three times the limit of 2 s.
    with Scorer(config(moods, timeout_s=2)) as scorer:
        [scored] = scorer.score([group(["slow"] * 80)], max_tokens=30)
    assert [r.reward for r in scored.rollouts] == [1.0] * 80


def test_a_worker_that_leaves_without_a_word_costs_its_response_only(scorer: Scorer):
    [scored] = scorer.score([group(["1", "quiet exit", "2"])], max_tokens=30)
    assert [r.reward for r in scored.rollouts] == [1, None, 2]
    assert scored.rollouts[1].score_status in (ScoreStatus.CRASH, ScoreStatus.TIMEOUT)


def test_an_idle_worker_killed_by_the_system_costs_nothing(scorer: Scorer):
    check_mishaps(scorer, [])
    scorer.score([group(["1"])], max_tokens=30)
    wait_for_workers(2)
    worker_processes()[0].kill()
    time.sleep(0.3)  # long enough for pebble to notice between two calls
    [scored] = scorer.score([group(["1", "2"] * 40)], max_tokens=30)
    assert [r.reward for r in scored.rollouts] == [1, 2] * 40
    wait_for_workers(2)


def test_numpy_numbers_become_floats(scorer: Scorer):
    [scored] = scorer.score([group(["numpy"])], max_tokens=30)
    assert type(scored.rollouts[0].reward) is float and scored.rollouts[0].reward == 0.5
    assert scored.rollouts[0].parts["accuracy/iou"] == 0.25


def test_many_responses_keep_their_order_and_params_reach_the_reward(moods: Path):
    with Scorer(config(moods, params={"custom": {"exponent": 2}})) as scorer:
        texts = [str(i % 17) for i in range(150)]
        scored = scorer.score([group(texts[i : i + 10]) for i in range(0, 150, 10)], max_tokens=30)
        assert [r.reward for g in scored for r in g.rollouts] == [float(t) ** 2 for t in texts]
        assert scorer.counts == {s: 150 * (s is ScoreStatus.SCORED) for s in ScoreStatus}
        wait_for_workers(4)  # two of them belong to the fixture
    wait_for_workers(2)


def test_images_travel_only_to_a_reward_that_asks(moods: Path):
    picture = Image.new("RGB", (2, 2), (7, 0, 0))
    with Scorer(config(moods, "sees")) as scorer:
        [scored] = scorer.score([group(["x"], images=(picture,))], max_tokens=30)
        assert scored.rollouts[0].reward == 7
    with Scorer(config(moods)) as scorer:
        [scored] = scorer.score([group(["3"], images=(picture,))], max_tokens=30)
        assert scored.rollouts[0].parts["accuracy/images"] == 0


def test_close_ends_busy_workers_too(moods: Path):
    before = len(worker_processes())
    scorer = Scorer(config(moods, timeout_s=100))
    scorer.check([("moods", "custom")], "d")
    assert len(worker_processes()) == before
    scorer.score([group(["1"])], max_tokens=30)
    assert len(worker_processes()) == before + 2
    scorer.close()
    wait_for_workers(before)
    scorer.close()


TRAINER = """
import os
import sys
from rewards import RewardInput
from rewards.workers.custom import read_custom
from rewards.workers.pool import RewardPool
from rewards.workers.worker import Job, Plan

if __name__ == "__main__":
    # The bound on an orphan's CPU time grows with the cores it may use; workers inherit the one.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    plan = Plan({"accuracy": 1.0}, {}, 3.0, read_custom(sys.argv[1] + ":moody", "custom"))
    pool = RewardPool(plan, workers=1)
    for text in ("1", "hang"):
        pool.run([Job("custom", RewardInput(text=text, num_tokens=1, max_tokens=1, finish="stop"))])
        print("ready", flush=True)
"""


@pytest.mark.slow
def test_a_looping_worker_does_not_outlive_a_killed_trainer(moods: Path, tmp_path: Path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, str(script), str(moods)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None and trainer.stdout.readline() == "ready\n"
    time.sleep(0.5)
    family = psutil.Process(trainer.pid).children(recursive=True)
    trainer.kill()
    trainer.communicate()
    assert any(process.is_running() for process in family)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive
