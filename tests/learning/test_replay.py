"""Flip rates by hand, and whole runs with routing replay: what the metrics of a step then say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import MODEL, Case, Spec, flat, make_case, make_model, make_policy, processor
from helpers_run import short_run

from sapo_vl.config import ConfigError, load_config
from sapo_vl.distributed import World
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.learning.replay import FlipStats
from sapo_vl.model.errors import ModelError
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.routing import RouteSpec, RouteTape
from sapo_vl.rollout import RolloutConfig
from sapo_vl.rollout.vllm.contract import RoutesMissing
from sapo_vl.session import open_session
from sapo_vl.stages import preflight

ONE = World(rank=0, size=1, device=torch.device("cpu"))
SPEC = RouteSpec(layers=(0, 1), experts=8, top_k=2)


def tape_of(native: torch.Tensor, replay: torch.Tensor | None = None) -> RouteTape:
    tape = RouteTape(SPEC, replay)
    for at in range(len(SPEC.layers)):
        tape.route(at, native[:, at].long())
    tape.close()
    return tape


@pytest.fixture
def case(seed: int) -> Case:
    """Two groups, an image and a text one, of one response each: 2 and 3 tokens."""
    return make_case("dense", seed, [Spec(((32, 32),), (2,)), Spec((), (3,))])


def micro_batch(case: Case) -> Any:
    """Advantages 1 and -1; every token under the old policy at experts 0 and 1, in both layers."""
    batch = flat(case.chat, case.groups)
    old = torch.tensor([0, 1], dtype=torch.uint8).expand(batch.ids.shape[1], 2, 2).clone()
    return dataclasses.replace(batch, old_routes=old, advantages=torch.tensor([1.0, -1.0]))


def test_flips_by_hand(case: Case) -> None:
    batch = micro_batch(case)
    native = batch.old_routes.flip(-1).clone()  # the same sets in another order: no flip
    image, text = batch.predictor_index[:2], batch.predictor_index[2:]
    native[image[0], 1] = torch.tensor([0, 2], dtype=torch.uint8)  # layer 1 of one of two image tokens
    native[text[:2]] = torch.tensor([4, 5], dtype=torch.uint8)  # both layers of two of three text tokens
    stats = FlipStats(SPEC)
    stats.add(batch, tape_of(native))
    found = stats.reduce(ONE)
    expected = {
        "routing/flip": 5 / 10, "routing/flip/pos": 1 / 4, "routing/flip/image": 1 / 4, "routing/flip/neg": 4 / 6,
        "routing/flip/text": 4 / 6, "routing/flip/layers": [2 / 5, 3 / 5],
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
        assert found[name.replace("flip", "drift")] == pytest.approx(value), name
    assert len(found) == 2 * len(expected)


def test_with_replay_only_the_drift_is_left(case: Case) -> None:
    batch = micro_batch(case)
    stats = FlipStats(SPEC)
    for _ in range(2):  # two micro-batches of an update
        stats.add(batch, tape_of((batch.old_routes + 2) % 8, replay=batch.old_routes))
    found = stats.reduce(ONE)
    assert found["routing/flip"] == 0
    assert found["routing/flip/layers"] == [0, 0]
    assert found["routing/drift"] == 1


def test_prompt_tokens_and_last_tokens_do_not_count(case: Case) -> None:
    batch = micro_batch(case)
    native = (batch.old_routes + 2) % 8
    native[batch.predictor_index] = batch.old_routes[batch.predictor_index]
    stats = FlipStats(SPEC)
    stats.add(batch, tape_of(native))
    assert stats.reduce(ONE)["routing/flip"] == 0


def test_nothing_to_count_is_nothing() -> None:
    assert FlipStats(SPEC).reduce(ONE) == {}
    assert FlipStats(None).reduce(ONE) == {}


def test_what_cannot_be_replayed_is_refused_before_a_cold_start(tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    (tmp_path / "data").mkdir()
    config = load_config(
        None, [f"model.path={tmp_path / 'm'}", "cold_start={}", "model.max_prompt_tokens=100", "replay=r2"]
    )
    with pytest.raises(ModelError, match=r"replay=r2: .* dense model"):
        preflight(config, "sft")
    with pytest.raises(ConfigError, match=r"replay=r3 with model\.tiny=dense"):
        load_config(None, ["model.tiny=dense", "replay=r3"])


@pytest.mark.parametrize("replay", ["r2", "r3"])
def test_a_dense_model_has_nothing_to_replay(replay: Any, tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    with pytest.raises(ModelError, match=f"replay={replay}: .* dense model, it has no experts; use replay=none"):
        open_with(tmp_path, replay)


def test_an_engine_that_returns_no_routes_is_refused_before_the_model_is_read(tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("moe", seed), processor(), tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()  # reading on would fail
    with pytest.raises(RoutesMissing, match=r"replay=r3 with rollout\.engine=vllm"):
        open_with(tmp_path, "r3", engine="vllm")


def open_with(folder: Path, replay: Any, **rollout: Any) -> None:
    model = MODEL.model_copy(update={"path": str(folder / "m")})
    config = RolloutConfig(**rollout)
    open_session(model, OptimConfig(), ZeroConfig(stage=0), config, ONE, total_updates=1, seed=0, replay=replay)


def test_the_tiny_moe_has_three_layers_that_route(seed: int) -> None:
    """What the runs below count on."""
    assert make_policy("moe", seed)[0].hf.config.get_text_config().num_hidden_layers == 3


RUN = {"model_kind": "moe", "batch.mini_batches": 2, "optim.lr": 3e-3, "rollout.old_logprobs": "trainer"}


def run(folder: Path, seed: int, settings: dict[str, Any], before: str = "") -> list[dict[str, Any]]:
    """Rewards that tell the responses of every group apart, whatever a model says that knows nothing."""
    folder.mkdir(exist_ok=True)
    reward = "from rewards.base import RewardOutput\n\n\ndef f(x):\n    return RewardOutput(sum(x.token_ids) % 7 / 6)\n"
    (folder / "reward.py").write_text(reward)
    given = {"rewards.path": f"{folder / 'reward.py'}:f", "rewards.by_task": '{"*": custom}'}
    return short_run(folder, seed, {**RUN, **given, **settings}, before)


@pytest.mark.slow
def test_runs_with_and_without_replay(tmp_path: Path, seed: int) -> None:
    """A rate of learning at which routers move: free routing flips, replay does not, though routers drift as much."""
    runs = {replay: run(tmp_path / replay, seed, {"replay": replay}) for replay in ("none", "r2", "r3")}
    for replay, steps in runs.items():
        for step in steps:
            flips, drift = step["routing/flip/layers"], step["routing/drift"]
            assert len(flips) == 3
            assert drift > 0
            assert (max(flips) == 0) == (replay != "none")
    assert runs["r2"][0]["loss"] != runs["none"][0]["loss"]


@pytest.mark.slow
def test_r2_is_no_replay_where_there_is_one_update(tmp_path: Path, seed: int) -> None:
    """In the first mini-batch nothing has moved: every metric of every step is the same, to the bit."""
    none, r2 = (run(tmp_path / how, seed, {"batch.mini_batches": 1, "replay": how}) for how in ("none", "r2"))
    for a, b in zip(none, r2, strict=True):
        names = {name for name in a if not name.startswith(("seconds", "tokens_per_s", "time"))}
        assert len(names) > 50
        assert {name: a[name] for name in names} == {name: b[name] for name in names}
        assert starts_at_one(b)
        assert b["routing/drift"] == 0.0
    assert none[1]["grad_norm"] > 0


@pytest.mark.slow
def test_ratios_start_at_exactly_one_with_r3(tmp_path: Path, seed: int) -> None:
    """One update a batch: pass of the old policy and update go through the engine's experts, to the bit."""
    for step in run(tmp_path, seed, {"batch.mini_batches": 1, "replay": "r3"}):
        assert starts_at_one(step)
        # The engine's own: they differ from the trainer's by near-ties alone.
        assert step["routing/drift"] < 0.02
        assert np.isfinite(step["loss"])


def starts_at_one(step: dict[str, Any]) -> bool:
    names = ("routing/flip", "log_ratio/pos/max_abs", "log_ratio/neg/max_abs", "ratio/mean_abs_dev")
    return [step[name] for name in names] == [0.0] * 4


COUNTS_PASSES = """
import os
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")  # the rank itself
from sapo_vl.learning.engine import PolicyEngine
logprobs = PolicyEngine.logprobs
def counted(*given, **more):
    print("A PASS")
    return logprobs(*given, **more)
PolicyEngine.logprobs = counted
"""
PASSES_FOR_ALL = (
    "from sapo_vl.config import RunConfig\nRunConfig.old_passes = property(lambda c: c.batch.mini_batches)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_the_first_mini_batch_needs_no_pass_of_its_own(kind: str, tmp_path: Path, seed: int) -> None:
    """Two updates a step, with that pass and without it: they learn the same and are measured alike, to the bit."""
    settings = {"model_kind": kind, "mismatch.correction": "icepop"}
    ways = {"without": COUNTS_PASSES, "with": COUNTS_PASSES + PASSES_FOR_ALL}
    without, other = (run(tmp_path / name, seed, settings, before) for name, before in ways.items())
    for a, b in zip(without, other, strict=True):
        names = {name for name in a if not name.startswith(("seconds", "tokens_per_s", "time"))}
        assert len(names) > 50 and {name: a[name] for name in names} == {name: b[name] for name in names}
    one, two = ((tmp_path / name / "out/final/model.safetensors").read_bytes() for name in ways)
    assert one == two
    assert without[-1]["grad_norm"] > 0 and without[-1]["ratio/mean_abs_dev"] > 0
    passes = [(tmp_path / name / "printed").read_text().count("A PASS") for name in ways]
    # Beside them the probe of final/, at the start, where it is tried, and at the end.
    assert passes == [len(without) + 2, 2 * len(without) + 2]
