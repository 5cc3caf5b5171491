"""Bad rows and failed scorings stop a run at the same batch, with the same words, on one rank and on two."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scoring_helpers import group
from test_bad_input import ALONE, MODEL_SETTINGS, rows_of, save

from data_recipes import RECIPES
from sapo_vl.config import load_config
from sapo_vl.data.feed import ProblemFeed
from sapo_vl.data.problem_set import ProblemSet, TooManyBadRows
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.distributed import World
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import load_model
from sapo_vl.pipeline import build_tiny_model
from sapo_vl.scoring.failure_watch import ScoringStopped
from sapo_vl.scoring.scorer import Scorer, ScoringConfig
from sapo_vl.types import RolloutGroup

pytestmark = pytest.mark.slow
LATE = 2  # batches before the one whose rows are all bad
BATCHES = 12  # half of them walk through the 24 rows twice
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)
FAILURE_SHARES = (0.1, 0.3, 0.5, 0.7)


def sampler(tasks: Sequence[str]) -> QuotaSampler:
    return QuotaSampler(tasks, {}, 6, seed=1)


def feed_cases(folder: Path, chat: Chat, world: World) -> Iterator[dict[str, Any]]:
    """For each data set and limit: ids of this rank by batch, how it ended, and the counts."""
    for name in ("few", "some", "late", "task"):
        problems = ProblemSet(folder / name, "train")
        for share in SHARES:
            feed = ProblemFeed(problems, sampler(problems.tasks), chat, share, world)
            ids: list[list[str]] = []
            stopped = ""
            try:
                for _ in range(BATCHES):
                    ids.append([prompt.problem.id for prompt in feed.next()])
            except TooManyBadRows as error:
                stopped = str(error)
            yield {"name": name, "ids": ids, "stopped": stopped, "counts": feed.state_dict()["bad_rows"]}


def response_groups(seed: int) -> list[list[RolloutGroup]]:
    """Batches of four groups of 6 responses; a reference answer that is no number cannot be scored."""
    rng = np.random.default_rng(seed)
    wrong = rng.random((40, 4)) < np.linspace(0, 1, 40)[:, None]  # failures grow more frequent
    answers = [[f"x{b}.{i}" if bad else "3" for i, bad in enumerate(row)] for b, row in enumerate(wrong)]
    return [[group(["<answer>3</answer>"] * 6, reward="number", answer=a) for a in batch] for batch in answers]


def scorer_cases(seed: int, world: World) -> Iterator[dict[str, Any]]:
    """For each limit: after how many batches the run was stopped, and the words."""
    share = 4 // world.size
    for limit in FAILURE_SHARES:
        done, stopped = 0, ""
        with Scorer(ScoringConfig(max_failure_share=limit), world) as scorer:
            try:
                for batch in response_groups(seed):
                    scorer.score(batch[world.rank * share : (world.rank + 1) * share], max_tokens=30)
                    done += 1
            except ScoringStopped as error:
                stopped = str(error)
        yield {"limit": limit, "done": done, "stopped": stopped}


def record(folder: Path, seed: int, world: World) -> dict[str, Any]:
    settings = load_config(None, [f"model.path={folder / 'model'}", *MODEL_SETTINGS]).model
    chat = Chat.load(load_model(settings), settings)
    return {"feed": list(feed_cases(folder, chat, world)), "scorer": list(scorer_cases(seed, world))}


def run_rank(rank: int, folder: str, seed: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = record(Path(folder), seed, World(rank=rank, size=2, device=torch.device("cpu")))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one rank met alone, and each of two."""
    seed = int(request.config.option.seed)
    folder = tmp_path_factory.mktemp("counts")
    RECIPES["visual_puzzles"](folder / "data", seed=3, n_cold_start=6, n_train=24, n_test=6, image_size=32)
    build_tiny_model("dense", folder / "data", folder / "model", 0)
    good = rows_of(folder / "data")
    tasks = np.array([row["task"] for row in good])
    rng = np.random.default_rng(seed)
    bad = {
        "few": rng.choice(24, 2, replace=False),
        "some": np.concatenate([rng.choice(np.flatnonzero(tasks == t), 2, replace=False) for t in sorted(set(tasks))]),
        "late": list(itertools.islice(sampler(tasks), LATE + 1))[-1],
        "task": np.flatnonzero(tasks == "count"),
    }
    for name, indices in bad.items():
        rows = [row | {"images": [{"bytes": b"no picture", "path": None}]} if i in indices else row
                for i, row in enumerate(good)]  # fmt: skip
        save(folder / name, train=rows)
    torch.multiprocessing.spawn(run_rank, args=(str(folder), seed), nprocs=2)
    return [record(folder, seed, ALONE), *(json.loads((folder / f"{r}.json").read_text()) for r in range(2))]


def test_bad_rows_are_counted_over_all_ranks(seen: list[dict[str, Any]]) -> None:
    stops = set()
    for alone, first, second in zip(*(record["feed"] for record in seen), strict=True):
        assert [a + b for a, b in zip(first["ids"], second["ids"], strict=True)] == alone["ids"]
        assert first["stopped"] == second["stopped"] and first["counts"] == second["counts"]
        if alone["name"] != "task":  # there a rank gives the last batch up, and two ranks have read more of it
            assert first["stopped"] == alone["stopped"] and first["counts"] == alone["counts"]
        assert bool(alone["stopped"]) == bool(first["stopped"])
        stops.add(len(alone["ids"]))
    assert stops >= {0, LATE, BATCHES}, "the cases should end at different batches"


def test_data_without_a_readable_row_of_a_task_is_not_read_to_its_end(seen: list[dict[str, Any]]) -> None:
    for record in seen:
        for case in record["feed"]:
            if case["name"] == "task" and case["counts"]["bad"]:
                assert case["stopped"] and case["ids"] == []
                assert f"{case['counts']['bad']} of {case['counts']['seen']} rows are bad" in case["stopped"]


def test_failed_scorings_are_counted_over_all_ranks(seen: list[dict[str, Any]]) -> None:
    alone, first, second = (record["scorer"] for record in seen)
    assert alone == first == second
    assert len({case["done"] for case in alone}) == len(FAILURE_SHARES) and all(case["stopped"] for case in alone)
    reasons = [line for line in alone[-1]["stopped"].splitlines() if " x the reference answer 'x" in line]
    assert len(reasons) == 5, "the commonest reasons, whichever rank had them"
