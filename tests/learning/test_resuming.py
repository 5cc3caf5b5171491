"""A checkpoint is taken up on another number of ranks and under another ZeRO stage, and the run is the same run."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_launch import run_ranks
from helpers_models import make_case, processor
from helpers_runs import digests, prepare, run_all, steps
from safetensors.torch import load_file
from torch import Tensor

from sapo_vl.learning.shards import Stored
from sapo_vl.model.export import save_hf_folder
from sapo_vl.record.rollout_log import read_rollouts

# What two ranks saved, as variants of tests/support/resuming_worker.py.
SAVED = {
    **{f"two-{stage}": f"dense-{stage}" for stage in (0, 2, 3)},
    "two-lora": "dense-1-lora",
    "two-frozen": "dense-2-frozen",
    **{f"two-{stage}-bf16": f"dense-{stage}-bf16" for stage in (0, 3)},
}
# (what saved, ranks, variant) that goes on from it.
TAKEN_UP = [
    ("two-0", 1, "dense-0"),
    ("two-0", 2, "dense-2"),
    ("two-0-bf16", 2, "dense-1-bf16"),
    ("two-2", 1, "dense-2"),
    ("two-2", 2, "dense-3"),
    ("two-2", 4, "dense-3"),
    ("two-3", 1, "dense-1"),
    ("two-3", 4, "dense-3"),
    ("two-3-bf16", 2, "dense-0-bf16"),
    ("two-lora", 1, "dense-3-lora"),
    ("two-frozen", 4, "dense-3-frozen"),
]
# Settings that may change on a resume.
OTHER = {"betas": (0.5, 0.75), "weight_decay": 0.125, "clip": 0.25}


def name_of(saved: str, ranks: int, variant: str) -> str:
    return f"{saved} on {ranks} as {variant}"


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ranks of three numbers saved and took up."""
    seed = int(request.config.option.seed)
    out = tmp_path_factory.mktemp("resuming")
    save_hf_folder(make_case("dense", seed).policy.hf, processor(), out / "dense")

    def launch(ranks: int, jobs: Sequence[Mapping[str, Any]]) -> None:
        (out / "jobs.json").write_text(json.dumps(jobs))
        run_ranks(ranks, "resuming_worker.py", out, str(seed), "jobs.json", timeout=600)

    def taking(ranks: int) -> list[dict[str, str]]:
        return [{"name": name_of(*t), "variant": t[2], "from": t[0]} for t in TAKEN_UP if t[1] == ranks]

    saving = [{"name": name, "variant": variant} for name, variant in SAVED.items()]
    other = [{"name": "other", "variant": "dense-2", "from": "two-2", "optim": OTHER}]
    launch(2, [*saving, *taking(2), *other])
    hostile = [
        {"name": f"hostile {kind}", "variant": "dense-3", "from": "two-2", "plant": kind} for kind in ("model", "optim")
    ]
    launch(1, taking(1) + hostile)
    launch(4, taking(4))
    return out


def tensors(folder: Path, name: str, when: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.{when}.safetensors")


def seen(folder: Path, name: str, ranks: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.rank{r}of{ranks}.json").read_text()) for r in range(ranks)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", TAKEN_UP, ids=lambda how: name_of(*how))
def test_what_was_saved_is_there_to_the_bit(how: tuple[str, int, str], folder: Path) -> None:
    """Weights in both precisions, moments, counts; read by DeepSpeed itself where it was saved and where it was not."""
    saved, here = tensors(folder, how[0], "now"), tensors(folder, name_of(*how), "now")
    # DeepSpeed's wrapper of stage 0 makes an update of zeros when it starts.
    assert saved.keys() == here.keys() and float(saved["step"]) == (3 if how[0] == "two-0-bf16" else 2)
    assert [key for key in saved if not torch.equal(saved[key], here[key])] == []
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        of_kind = [v for key, v in saved.items() if key.startswith(f"{kind} ")]
        assert len(of_kind) > 5 and sum(bool(v.any()) for v in of_kind) > 0.7 * len(of_kind), "a test of zeros"


@pytest.mark.slow
@pytest.mark.parametrize("how", [how for how in TAKEN_UP if "bf16" not in how[0]], ids=lambda how: name_of(*how))
def test_it_goes_on_the_same(how: tuple[str, int, str], folder: Path) -> None:
    saved, here = tensors(folder, how[0], "after"), tensors(folder, name_of(*how), "after")
    before = tensors(folder, how[0], "now")
    moved = [key for key in saved if not torch.equal(saved[key], before[key])]
    assert len(moved) > 10 and float(here["step"]) == 3
    for key in saved:
        torch.testing.assert_close(here[key], saved[key], rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("how", TAKEN_UP, ids=lambda how: name_of(*how))
def test_the_state_of_ranks(how: tuple[str, int, str], folder: Path) -> None:
    name, ranks, _ = how
    were = 2
    dice = [record["dice"] for record in seen(folder, name, were)]
    for rank, record in enumerate(seen(folder, name_of(*how), ranks)):
        assert (record["updates"], record["dropped"]) == (17, 1)
        mine = {"rank": rank} if were == ranks else {"of": [{"rank": r} for r in range(were)]}
        assert record["state"] == {"a": "b", "step": 2, "per_rank": mine}
        assert record["dice"] == (dice[rank] if rank < were else "as before")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "optim"])
def test_hostile_files_run_no_code(kind: str, folder: Path) -> None:
    (record,) = seen(folder, f"hostile {kind}", 1)
    assert f"_{kind}_states.pt cannot be read" in record["refused"] and record["refused"].endswith("UnpicklingError")
    assert not list(folder.rglob("executed"))


@pytest.mark.slow
def test_settings_are_those_of_the_run_that_goes_on(folder: Path) -> None:
    """Also where DeepSpeed reads its own files, which hold those of the run that saved."""
    saved, here = tensors(folder, "two-2", "now"), tensors(folder, "other", "now")
    assert all(torch.equal(saved[key], here[key]) for key in saved)
    for record in seen(folder, "other", 2):
        assert record["settings"] == [[0.5, 0.75], 0.125, 0.25]


# --- a part of a weight that lies in pieces


def test_parts_of_pieces(seed: int) -> None:
    """In every cut, with padding behind, and pieces of nothing."""
    dice = torch.Generator().manual_seed(seed)

    def roll(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=dice))

    for _ in range(200):
        shape = (roll(1, 4), roll(1, 5))
        numel = math.prod(shape)
        values = torch.rand(numel, generator=dice)
        cuts = [0, *sorted(roll(0, numel) for _ in range(roll(0, 4))), numel]
        pieces = [values[a:b] for a, b in itertools.pairwise(cuts)]
        stored = Stored(shape, (*pieces, torch.full((roll(0, 3),), float("nan"))))
        start = roll(0, numel - 1)
        size = roll(1, numel - start)
        assert stored.part(start, size).tolist() == values[start : start + size].tolist()
        assert torch.equal(stored.whole(torch.float32), values.view(shape))


# --- the training loop


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, the later ones one step stale. `two`: on two ranks under stage 2; `alone` and `four` take its second
    step up, on one rank and on four, these under stage 3; `one` from the start on one rank, `again` takes that up on
    two under stage 0."""
    folder = tmp_path_factory.mktemp("ranks")
    settings = prepare(folder, int(request.config.option.seed)) | {
        "steps": 4,
        "rollout.prompts_per_step": 8,
        "rollout.staleness": 1,
        "checkpoint.every": 2,
        "zero.stage": 2,
        "optim.schedule": "linear",
        "optim.eps": 0.01,  # with next to none a weight without a gradient moves by the sign of its rounding error
        "optim.lr": 0.01,
        "batch.mini_batches": 2,
    }
    run_all(folder, {"two": settings}, cut={}, ranks=2)
    told = run_all(folder, {"alone": settings, "one": settings | {"zero.stage": 3}}, cut={"alone": "two"})
    assert "2 ranks and zero.stage=2; this run has 1 and zero.stage=2" in told and "sampled ahead" not in told
    told = run_all(folder, {"four": settings | {"zero.stage": 3}}, cut={"four": "two"}, ranks=4)
    assert told.count("2 ranks and zero.stage=2; this run has 4 and zero.stage=3") == 1 and "sampled ahead" not in told
    told = run_all(folder, {"again": settings | {"zero.stage": 0}}, cut={"again": "one"}, ranks=2)
    assert "1 ranks and zero.stage=3; this run has 2 and zero.stage=0" in told and "sampled ahead" not in told
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["alone", "four", "one", "again"])
def test_the_run_is_the_same_on_other_ranks(name: str, runs: Path) -> None:
    whole, other = steps(runs / "two"), steps(runs / name)
    assert [row["step"] for row in other] == [1, 2, 3, 4]
    assert all(row["grad_norm"] > 0 and row["updates/dropped"] == 0 for row in whole)
    assert whole[3]["lr"] < whole[0]["lr"], "the schedule goes on"
    for row, like in zip(other, whole, strict=True):
        assert row.keys() == like.keys()
        for key, value in like.items():
            if key.endswith("/hist"):  # a value may be at the border of two bins
                continue
            if key.startswith("deal/"):  # about ranks
                continue
            if isinstance(value, str):
                assert row[key] == value
                continue
            assert row[key] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), f"step {like['step']}: {key}"

    lines = [sorted(read_rollouts(runs / n / "rollouts"), key=lambda li: (li["step"], li["id"])) for n in ("two", name)]
    for key in ("step", "id", "response_ids", "reward", "weight_version"):
        assert [line[key] for line in lines[1]] == [line[key] for line in lines[0]], key

    weights = "model.safetensors"
    there, here, start = (load_file(runs / n / weights) for n in ("two/final", f"{name}/final", "model"))
    for key, value in there.items():
        torch.testing.assert_close(here[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    assert sum(not torch.equal(there[key], start[key]) for key in there) > 0.9 * len(there)
    assert digests(runs / "two" / "final")[weights] != digests(runs / "model")[weights]


@pytest.mark.slow
def test_what_ranks_that_are_gone_wrote_is_not_mixed_in(runs: Path) -> None:
    """The run that was cut had written rollouts of steps 3 and 4 on both of its ranks."""
    names = {n: sorted(p.name for p in (runs / n / "rollouts").glob("*.jsonl")) for n in ("two", "alone")}
    assert len(names["two"]) == 8
    assert names["alone"] == [
        *(f"step_{step:06d}.rank{rank}.jsonl" for step in (1, 2) for rank in (0, 1)),
        "step_000003.rank0.jsonl",
        "step_000004.rank0.jsonl",
    ]
