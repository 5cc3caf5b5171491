"""Updates and rollouts on one and two ranks under every ZeRO stage, against one process without DeepSpeed.

One launch a world size runs all checks and writes what it saw to files (distributed_worker.py); the tests here
work out what is right with the padded layout, autograd and torch's own AdamW.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_worker import (
    OPTIM,
    PLAIN,
    ROLLOUT_STAGES,
    SAMPLING,
    SPLITS,
    TEMPERATURE,
    VARIANTS,
    Variant,
    sample_prompts,
)
from helpers_launch import run_ranks
from helpers_models import (
    KINDS,
    TOLERANCE,
    Kind,
    assert_same,
    flat,
    gradients,
    make_case,
    max_difference,
    merged_by_hand,
    naive,
    plain_name,
    processor,
    with_old_logprobs,
    with_random_routes,
)
from safetensors.torch import load_file
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.objectives import global_denominators, policy_objective
from sapo_vl.losses import LossConfig
from sapo_vl.model.chat import Chat
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.loading import load_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.routing import RouteTape, attach_routing
from sapo_vl.rollout import TransformersEngine

pytestmark = pytest.mark.slow
ONE = World(rank=0, size=1, device=torch.device("cpu"))
EOS_IDS = [2, *range(100, 140)]  # many ids end a turn, so that responses differ in length

RANKS = (1, 2)
CASES = [(name, ranks) for ranks in RANKS for name in (VARIANTS if ranks > 1 else PLAIN)]
PLAIN_CASES = [(name, ranks) for ranks in RANKS for name in PLAIN]


@dataclass(frozen=True)
class Expected:
    """One process, padded rows, no DeepSpeed."""

    loss: float
    gradient: dict[str, Tensor]
    start: dict[str, Tensor]
    after: dict[str, Tensor]  # weights after AdamW steps with the lr of the worker's applied updates
    norm: float


@pytest.fixture(scope="module")
def run_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.option.seed)


@pytest.fixture(scope="module")
def folder(run_seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    for kind in KINDS:
        model = make_case(kind, run_seed).policy.hf
        model.generation_config.eos_token_id = EOS_IDS
        save_hf_folder(model, processor(), out / kind)
    return out


@pytest.fixture(scope="module")
def launched(folder: Path, run_seed: int) -> dict[int, Path]:
    """World size -> the folder with its results. A hang on any rank fails at the time limit."""
    out = {}
    for ranks in RANKS:
        out[ranks] = folder / f"{ranks}-ranks"
        out[ranks].mkdir()
        for kind in KINDS:
            (out[ranks] / kind).symlink_to(folder / kind)
        run_ranks(ranks, "distributed_worker.py", out[ranks], str(run_seed), timeout=800)
    return out


def seen(launched: dict[int, Path], name: str, ranks: int) -> list[dict[str, Any]]:
    """What each rank recorded."""
    return [json.loads((launched[ranks] / f"{name}.rank{r}of{ranks}.json").read_text()) for r in range(ranks)]


_expected: dict[tuple[str, int, Path], Expected] = {}


def work_out(name: str, ranks: int, folder: Path, seed: int, start: Path | None) -> Expected:
    variant = VARIANTS[name]
    steps = len(SPLITS[ranks])
    case = make_case(variant.kind, seed)
    groups = with_old_logprobs(case, noise=0.3, temperature=TEMPERATURE)
    settings = variant.config(folder).model_copy(update={"experts_implementation": "eager"})  # takes float64, too
    policy = PolicyModule(load_model(settings), case.chat.banned_ids)
    if start is not None:  # adapters are drawn by the worker
        policy.hf.load_state_dict(load_file(start), strict=False)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    batch = naive(case.chat, groups)
    objective = policy_objective(LossConfig(), global_denominators([batch], ONE), UpdateStats())
    # In float64: of two results in float32 each has errors of its own, which adapters far from 0 enlarge.
    exact = copy.deepcopy(policy).double()
    loss, found = gradients(exact, [batch], lambda mb, lp, e: objective(mb, lp, e).loss, TEMPERATURE)
    gradient = {n: g.float() for n, g in found.items()}

    learning = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=0.0, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=0.0)
    norm = 0.0
    for lr in [0.0] * steps + [OPTIM.lr]:
        for n, p in learning.items():
            p.grad = gradient[n].clone()
        norm = float(torch.nn.utils.clip_grad_norm_(learning.values(), OPTIM.clip))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    after = {n: p.detach().clone() for n, p in policy.named_parameters()}
    return Expected(loss, gradient, before, after, norm)


@pytest.fixture
def expected(request: pytest.FixtureRequest, launched: dict[int, Path], run_seed: int) -> Expected:
    """Of the test's (name, ranks); variants that differ in the ZeRO stage alone share it."""
    name, ranks = request.getfixturevalue("name"), request.getfixturevalue("ranks")
    variant = VARIANTS[name]
    start = launched[ranks] / f"{name}.start.safetensors"
    shared = name if start.exists() else f"{variant.kind} {sorted(variant.model.items())}"
    key = (shared, ranks, launched[ranks])
    if key not in _expected:
        _expected[key] = work_out(name, ranks, launched[ranks], run_seed, start if start.exists() else None)
    return _expected[key]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_gradient_and_loss(name: str, ranks: int, launched: dict[int, Path], expected: Expected) -> None:
    """Accumulated over unequal numbers of micro-batches on the ranks, one idle, one text-only: always the same."""
    for split in SPLITS[ranks]:
        found = load_file(launched[ranks] / f"{name}.{split}.safetensors")
        assert_same(found, expected.gradient)
        for record in seen(launched, name, ranks):
            result = record["splits"][split]
            assert result["loss"] == pytest.approx(expected.loss, rel=TOLERANCE, abs=TOLERANCE)  # signed terms near 1
            assert result["norm"] == pytest.approx(expected.norm, rel=TOLERANCE)
            assert result["applied"] and result["unchanged"] and result["lr"] == 0 and not result["offenders"]


@pytest.mark.parametrize(("name", "ranks"), PLAIN_CASES)
def test_the_objective_meets_a_ranks_own_micro_batches_only(name: str, ranks: int, launched: dict[int, Path]) -> None:
    """Never the filler: its tokens would be in the diagnostics, and could be named as offenders."""
    for split, by_rank in SPLITS[ranks].items():
        for record, parts in zip(seen(launched, name, ranks), by_rank, strict=True):
            assert record["splits"][split]["asked"] == [[f"problem-{i}" for i in part] for part in parts]


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_weights_after_an_update(name: str, ranks: int, launched: dict[int, Path], expected: Expected) -> None:
    """Clipped, through AdamW, moments of earlier updates included, those of dropped ones not."""
    assert expected.norm > OPTIM.clip, "the clip should bite"
    state = load_file(launched[ranks] / f"{name}.after.safetensors")
    found = {f"hf.{n}": t for n, t in state.items()}
    moved = {n: expected.after[n] - expected.start[n] for n in expected.gradient}
    for n, move in moved.items():
        error, after = float((found[n] - expected.after[n]).norm()), expected.after[n]
        rounding = 2**-23 * float(after.norm())  # a weight near 1 is stored to 6e-8, whatever it moved by
        assert error < 2 * TOLERANCE * float(move.norm()) + rounding, n
    frozen = expected.start.keys() - expected.gradient.keys()
    assert all(torch.equal(found[n], expected.start[n]) for n in frozen)
    assert max(float(m.abs().max()) for m in moved.values()) > 1e-3
    records = [r["applied"] for r in seen(launched, name, ranks)]
    assert all(r["applied"] and r["changed"] and r["lr"] == OPTIM.lr and not r["dropped_in_a_row"] for r in records)
    if VARIANTS[name].stage < 3:
        assert len({r["hash"] for r in records}) == 1, "replicas are equal to the byte"


@pytest.mark.parametrize("name", PLAIN)
def test_one_rank_and_two_agree(name: str, launched: dict[int, Path]) -> None:
    """Directly: the number of ranks and the cut into micro-batches change neither loss nor gradient."""
    first = {ranks: next(iter(SPLITS[ranks])) for ranks in RANKS}
    losses = [seen(launched, name, ranks)[0]["splits"][first[ranks]]["loss"] for ranks in RANKS]
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE, abs=TOLERANCE)
    a, b = (load_file(launched[ranks] / f"{name}.{first[ranks]}.safetensors") for ranks in RANKS)
    assert_same(b, a)


@pytest.mark.parametrize(("name", "ranks"), PLAIN_CASES)
@pytest.mark.parametrize(
    ("fault", "offenders"),
    [
        ("nan loss", {1: [[[0, 1]]], 2: [[], [[0, 1]]]}),
        ("infinite loss, finite gradient", {1: [[[0, 1]]], 2: [[], [[0, 1]]]}),
        ("infinite sum of finite losses", {1: [[]], 2: [[], []]}),
        ("nan gradient, first micro-batch", {1: [[[0, 2]]], 2: [[[0, 2]], []]}),
        ("nan gradient, last micro-batch", {1: [[[4, 0]]], 2: [[[2, 0]], []]}),
    ],
)
def test_nonfinite_update_is_dropped(
    fault: str, offenders: dict[int, list[Any]], name: str, ranks: int, launched: dict[int, Path]
) -> None:
    """On all ranks alike, weights untouched to the byte, the offender named where it was (and nowhere else).

    That the next update works, with untouched moments, is test_weights_after_an_update.
    """
    records = [r[fault] for r in seen(launched, name, ranks)]
    assert [r["applied"] for r in records] == [False] * ranks
    assert [r["unchanged"] for r in records] == [True] * ranks
    assert [r["offenders"] for r in records] == offenders[ranks]
    assert [r["lr"] for r in records] == [OPTIM.lr] * ranks
    assert not any(np.isfinite(r["norm"]) for r in records)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "lora" in name])
def test_streamed_weights_have_their_adapters_in_them(name: str, launched: dict[int, Path]) -> None:
    """What a rollout engine is sent after an update: hub names and layout, W + alpha / rank B A by hand."""
    folder, lora = launched[2], VARIANTS[name].model["lora"]
    after = load_file(folder / f"{name}.after.safetensors")
    expected = merged_by_hand(after, lora.rank, lora.alpha)
    hub = {n: t.transpose(1, 2) if ".experts." in n else t for n, t in expected.items()}
    hub.pop("lm_head.weight", None)  # tied
    found = load_file(folder / f"{name}.streamed.safetensors")
    assert max_difference(found, hub) < 1e-6
    weights = {n: t for n, t in after.items() if ".lora_" not in n}
    changed = {n for n, t in weights.items() if not torch.equal(expected[plain_name(n)], t)}
    assert len(changed) == 3 * (6 if "moe" in name else 2), "every adapter of the three layers matters"
    for record in seen(launched, name, 2):
        assert record["manifest"] == {n: list(t.shape) for n, t in found.items()}
        assert record["adapters alone"], "merged by a server, they are not the weights that are streamed"


@pytest.mark.parametrize("name", ["moe-3-lora", "moe-3-lora-more"])
def test_adapted_experts_learn_the_same_sharded_and_whole(name: str, launched: dict[int, Path]) -> None:
    """Two updates on two ranks, weights in pieces (grouped products and recomputed layers too) against replicas."""
    start, whole_start = (load_file(launched[2] / f"{n}.start.safetensors") for n in (name, "moe-0-lora"))
    assert max_difference(start, whole_start) == 0
    found, whole = (load_file(launched[2] / f"{n}.second.safetensors") for n in (name, "moe-0-lora"))
    first = load_file(launched[2] / "moe-0-lora.streamed.safetensors")
    assert max_difference(found, whole) < TOLERANCE * max_difference(whole, first) + 1e-6
    assert max_difference(whole, first) > 1e-2, "the second update hardly moved the weights"
    assert all(r["second"]["applied"] for n in (name, "moe-0-lora") for r in seen(launched, n, 2))


@pytest.mark.parametrize(("name", "ranks"), [case for case in CASES if case[0].startswith("moe")])
def test_replayed_routes(name: str, ranks: int, launched: dict[int, Path], run_seed: int) -> None:
    """Recorded ones change nothing, to the bit; random ones give the gradient of one process that goes their way."""
    for record in (r["replay"] for r in seen(launched, name, ranks)):
        assert record["r2"] == {"same": True, "flip": 0.0, "drift": 0.0}
        assert record["r3"]["flip"] == [0.0] * 3
        assert all(drift > 0.5 for drift in record["r3"]["drift"]), "random experts are not those of the routers"
    found = load_file(launched[ranks] / f"{name}.replay.safetensors")
    if "lora" in name:  # no one process to compare with; the whole weights have the same adapters
        whole = load_file(launched[ranks] / "moe-0-lora.replay.safetensors")
        assert max(float((found[n] - g).norm() / (g.norm() + 1e-12)) for n, g in whole.items()) < 100 * TOLERANCE
        return
    case = make_case("moe", run_seed)
    groups = with_old_logprobs(case, noise=0.3, temperature=TEMPERATURE)
    state = load_file(launched[ranks] / f"{name}.after.safetensors")
    case.policy.hf.load_state_dict(state)
    for n, p in case.policy.named_parameters():
        p.requires_grad_(n in found)
    spec = attach_routing(case.policy.hf)
    assert spec is not None
    case.policy.routes = spec
    batch = naive(case.chat, with_random_routes(np.random.default_rng(run_seed), spec, groups))
    objective = policy_objective(LossConfig(), global_denominators([batch], ONE), UpdateStats())
    logprobs, entropy = case.policy(batch, temperature=TEMPERATURE, tape=RouteTape(spec, batch.old_routes))
    loss = objective(batch, logprobs, entropy).loss
    loss.backward()
    assert_same(found, {n: p.grad for n, p in case.policy.named_parameters() if p.grad is not None})
    for record in seen(launched, name, ranks):
        assert record["replay"]["r3"]["loss"] == pytest.approx(float(loss.detach()), rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(("name", "ranks"), [*PLAIN_CASES, *((name, 2) for name in VARIANTS if "lora" in name)])
def test_logprobs_after_an_update(
    name: str, ranks: int, launched: dict[int, Path], run_seed: int, expected: Expected
) -> None:
    """PolicyEngine.logprobs gathers the moved weights, with unequal numbers of micro-batches on the ranks."""
    variant = VARIANTS[name]
    case = make_case(variant.kind, run_seed)
    state = load_file(launched[ranks] / f"{name}.after.safetensors")
    if lora := variant.model.get("lora"):
        state = merged_by_hand(state, lora.rank, lora.alpha)
    case.policy.hf.load_state_dict(state)
    split = next(iter(SPLITS[ranks].values()))
    for rank, record in enumerate(seen(launched, name, ranks)):
        assert len(record["logprobs after"]) == len(split[rank])
        for part, values in zip(split[rank], record["logprobs after"], strict=True):
            with torch.no_grad():
                right, _ = case.policy(flat(case.chat, [case.groups[i] for i in part]), temperature=TEMPERATURE)
            assert (torch.tensor(values) - right).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_are_the_same_on_any_ranks(kind: Kind, launched: dict[int, Path], run_seed: int) -> None:
    """Same seed, same responses whole or sharded weights, one rank or two, responses of different lengths."""
    case = make_case(kind, run_seed)
    with_old_logprobs(case, noise=0.3, temperature=TEMPERATURE)  # draws from the same generator as the worker
    model = load_model(Variant(kind, 0).config(launched[1]))
    chat = Chat(processor(), model, Variant(kind, 0).config(launched[1]))
    assert chat.eos_ids == tuple(EOS_IDS)
    engine = TransformersEngine(PolicyModule(model, chat.banned_ids), chat)
    groups = engine.generate(sample_prompts(chat, case.rng), SAMPLING)
    assert len({len(r.response_ids) for g in groups for r in g.rollouts}) > 2
    for ranks in RANKS:
        for stage in ROLLOUT_STAGES:
            records = seen(launched, f"{kind}-{stage}", ranks)
            found = {k: v for record in records for k, v in record["rollouts"].items()}
            for group in groups:
                for ours, (ids, logprobs, finish) in zip(group.rollouts, found[group.prompt.problem.id], strict=True):
                    assert ids == ours.response_ids.tolist() and finish == ours.finish
                    np.testing.assert_allclose(logprobs, ours.logprobs, atol=TOLERANCE)
