"""The real training loop where rollouts are not simply drawn, sampled and trained on: one step stale, the trainer's own
model sampling in turn; and with dynamic sampling, on one rank and on two. Both also after a crash."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import digests, prepare, rows, run_all, steps

from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.model.batching import split_mini_batches
from sapo_vl.record.rollout_log import read_rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, ROUNDS, PROMPTS, TASKS = 4, 2, 8, ("count", "text_compare")

# Whether a group is dead is decided by the problem's name: for three in five. Else its responses score apart.
OFTEN_DEAD = """
import zlib
from rewards.base import RewardOutput

def by_tokens(x):
    dead = zlib.crc32(x.id.encode()) % 5 < 3
    return RewardOutput(0.5 if dead else zlib.crc32(repr(x.token_ids).encode()) / 2**32)
"""


def dead(name: str) -> bool:
    return zlib.crc32(name.encode()) % 5 < 3


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: `stale` and `resampled`; `stale_cut` and `resampled_cut`, the same cut off after step 2 and resumed;
    `resampled_late`, the same that gave up step 4, with its rollouts in hand, and went on; `stale_told`, the same that
    found behind the evaluation after step 2 that it was to stop, and went on;
    `stale_trainer`; `plain`, neither; `one` and `two` ranks, which learn so little that they keep the same weights."""
    folder = tmp_path_factory.mktemp("training")
    settings = prepare(folder, int(request.config.option.seed)) | {
        "steps": STEPS,
        "rollout.prompts_per_step": PROMPTS,
        "checkpoint.every": 2,
        "eval.every": 2,
    }
    stale = settings | {"rollout.staleness": 1, "batch.mini_batches": 1}
    (folder / "often_dead.py").write_text(OFTEN_DEAD)
    plain = settings | {"rewards.path": f"{folder / 'often_dead.py'}:by_tokens"}
    resampled = plain | {"rollout.resample": ROUNDS}
    still = resampled | {"optim.lr": 1e-12, "checkpoint.every": 0}
    runs = {
        "stale": stale,
        "stale_cut": stale,
        "stale_told": stale | {"checkpoint.every": 4},
        "stale_trainer": stale | {"steps": 2, "rollout.old_logprobs": "trainer"},
        "resampled": resampled,
        "resampled_cut": resampled,
        "resampled_late": resampled,
        "plain": plain | {"steps": 1},
        "one": still,
    }
    # Before each step, and again behind an evaluation: the fourth time is before the third step.
    told = {"resampled_late": ("too_late", STEPS), "stale_told": ("agreed", 4)}
    cut = {"stale_cut": "stale", "resampled_cut": "resampled"}
    printed = run_all(folder, runs, cut=cut, told=told)
    assert printed.count("resuming from") == 4 and "sampled ahead" not in printed
    for name, step in (("resampled_late", STEPS - 1), ("stale_told", 2)):
        assert f"resuming from {folder / name}/checkpoints/step_{step:08d}" in printed
    run_all(folder, {"two": still}, cut={}, ranks=2)
    return folder


@pytest.mark.parametrize(
    ("name", "resumed"),
    [("stale", "stale_cut"), ("stale", "stale_told"), ("resampled", "resampled_cut"), ("resampled", "resampled_late")],
)
def test_resumed_run_is_the_same_run(folder: Path, name: str, resumed: str) -> None:
    whole, cut = folder / name, folder / resumed
    assert rows(cut) == rows(whole)
    assert [row["step"] for row in rows(cut, "eval")] == [2, STEPS]
    for part in ("final", "rollouts"):
        assert digests(cut / part) == digests(whole / part)
    weights = "model.safetensors"
    assert digests(cut / "final")[weights] != digests(folder / "model")[weights]
    state = f"checkpoints/step_{STEPS:08d}/rank_0.json"
    assert json.loads((cut / state).read_text()) == json.loads((whole / state).read_text())


# --- one step stale


def test_rollouts_are_of_the_weights_before_and_so_is_pi_old(folder: Path) -> None:
    lines = list(read_rollouts(folder / "stale" / "rollouts"))
    versions = {n: {line["weight_version"] for line in lines if line["step"] == n} for n in range(1, STEPS + 1)}
    assert versions == {1: {0}, 2: {0}, 3: {1}, 4: {2}}
    # One update a step: the recorded law differs from the trained one by the update before, but for the first step.
    first, *later = (row["ratio/mean_abs_dev"] for row in steps(folder / "stale"))
    assert first < 1e-5 and all(moved > 1e-4 for moved in later)


def test_pi_old_of_the_trainer_is_the_current_policy(folder: Path) -> None:
    """The step that the rollouts are late by is then outside of the gate, and measured as a gap."""
    one, two = steps(folder / "stale_trainer")
    assert one["ratio/mean_abs_dev"] < 1e-5 and two["ratio/mean_abs_dev"] < 1e-5
    assert one["mismatch/k3"] < 1e-6 < 1e-5 < two["mismatch/k3"]
    assert two["reward/mean"] == steps(folder / "stale")[1]["reward/mean"], "the second batch is of the first weights"


# --- dynamic sampling


def trained(out: Path) -> list[Counter[tuple[str, str]]]:
    """For each step: (id, task) of the groups that were trained on, and how many responses of each."""
    lines = list(read_rollouts(out / "rollouts"))
    return [Counter((li["id"], li["task"]) for li in lines if li["step"] == n) for n in range(1, STEPS + 1)]


def walk(problems: ProblemSet, task: str, seed: int) -> Iterator[str]:
    """The names of a task's problems in the order in which they are drawn, for ever."""
    quotas = {name: float(name == task) for name in TASKS}
    for (row,) in QuotaSampler(problems.tasks, quotas, 1, seed):
        yield problems.get(row).id


@pytest.mark.parametrize(("name", "ranks"), [("resampled", 1), ("two", 2)])
def test_every_update_has_its_share_of_every_task(folder: Path, name: str, ranks: int) -> None:
    """Two updates a step, to which a rank deals its groups in their order, in which they are written."""
    for step in range(1, STEPS + 1):
        updates: list[Counter[str]] = [Counter(), Counter()]
        for rank in range(ranks):
            lines = read_rollouts(folder / name / "rollouts" / f"step_{step:06d}.rank{rank}.jsonl")
            tasks = list({line["id"]: line["task"] for line in lines}.values())
            assert len(tasks) == PROMPTS // ranks
            for i, part in enumerate(split_mini_batches(tasks, 2)):
                updates[i].update(part)
        assert updates == [dict.fromkeys(TASKS, PROMPTS // 4)] * 2


def test_the_prompts_are_the_next_ones_of_each_task_and_quotas_hold(folder: Path, request: Any) -> None:
    """Worked out from each task's own walk: four a step, then one for each dead one, twice."""
    problems = ProblemSet(folder / "data", "train")
    walks = {task: walk(problems, task, int(request.config.option.seed) % 10_000) for task in TASKS}
    found = trained(folder / "resampled")
    metrics = steps(folder / "resampled")
    for groups, row in zip(found, metrics, strict=True):
        assert Counter(task for _, task in groups) == dict.fromkeys(TASKS, PROMPTS // 2), "quotas, and no row twice"
        assert set(groups.values()) == {3}
        expected: list[str] = []
        drawn, first, rounds = 0, 0, 0
        for walked in walks.values():
            batch = [next(walked) for _ in range(PROMPTS // 2)]
            first += sum(map(dead, batch))
            for turn in range(1, ROUNDS + 1):
                places = [i for i, name in enumerate(batch) if dead(name)]
                drawn, rounds = drawn + len(places), max(rounds, turn * bool(places))
                further = [next(walked) for _ in places]
                for place, name in zip(places, further, strict=True):
                    batch[place] = batch[place] if dead(name) else name
            expected += batch
        # Which of two dead ones is replaced by the one that is live, their places decide.
        assert {name for name, _ in groups if not dead(name)} == {name for name in expected if not dead(name)}
        assert row["groups/dead_share"] == row["resample/dead_share/before"] == first / PROMPTS
        assert row["resample/dead_share/after"] == sum(map(dead, expected)) / PROMPTS
        assert (row["resample/prompts"], row["resample/rounds"]) == (drawn, rounds)
        assert row["rollouts"] == PROMPTS * 3 and row["failed/custom/n"] == (PROMPTS + drawn) * 3
    before, after = (sum(row[f"resample/dead_share/{when}"] for row in metrics) for when in ("before", "after"))
    assert after < before


def test_rewards_are_told_of_the_batch_as_it_was_drawn(folder: Path) -> None:
    """Those of chosen groups would not compare with a run without; the update is of the chosen ones."""
    plain, whole = steps(folder / "plain")[0], steps(folder / "resampled")[0]
    told = [k for k in plain if k.split("/")[0] in ("reward", "accuracy", "length", "groups", "score", "finish")]
    assert len(told) > 15 and all(plain[k] == whole[k] for k in told)
    assert "resample/rounds" not in plain
    drawn, chosen = ({g for g in trained(folder / name)[0] if not dead(g[0])} for name in ("plain", "resampled"))
    gained = whole["resample/dead_share/before"] - whole["resample/dead_share/after"]
    assert drawn <= chosen and len(chosen) - len(drawn) == gained * PROMPTS


def test_two_ranks_train_on_what_one_trains_on(folder: Path) -> None:
    def texts(name: str) -> list[tuple[Any, ...]]:
        kept = ("step", "id", "response_ids", "reward")
        return sorted(tuple(map(str, (line[k] for k in kept))) for line in read_rollouts(folder / name / "rollouts"))

    assert texts("one") == texts("two") and len(texts("one")) == STEPS * PROMPTS * 3
    for a, b in zip(steps(folder / "one"), steps(folder / "two"), strict=True):
        assert {k: v for k, v in a.items() if "resample" in k} == {k: v for k, v in b.items() if "resample" in k}
        assert a["resample/rounds"] > 0
