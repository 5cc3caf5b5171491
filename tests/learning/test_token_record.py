"""Per-token numbers of the saved rollouts: against formulas on made-up log-probs, and as two ranks write them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_mismatch import Sample, make_group, make_samples, micro_batch
from helpers_run import short_run

from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.mismatch import MismatchConfig
from sapo_vl.learning.objectives import Mismatch, UpdateTokens, global_denominators, policy_objective
from sapo_vl.learning.token_record import TokenRecord
from sapo_vl.losses import LossConfig
from sapo_vl.model.batching import MicroBatch, trainable
from sapo_vl.model.logprob import token_logprobs
from sapo_vl.record.rollout_log import read_rollouts
from sapo_vl.record.tokens import BYTES_PER_TOKEN, LEFT_OUT, Tokens, read_tokens

ALONE = World.alone()


def recorded(
    record: TokenRecord,
    mb: MicroBatch,
    logprobs: torch.Tensor,
    *,
    loss: LossConfig | None = None,
    mismatch: Mismatch | None = None,
    entropy: torch.Tensor | None = None,
    update: int = 1,
) -> None:
    """One micro-batch goes through the objective of an update."""
    objective = policy_objective(
        loss or LossConfig(),
        global_denominators([mb], ALONE),
        UpdateStats(),
        None,
        mismatch,
        UpdateTokens(record, update),
    )
    objective(mb, logprobs, torch.zeros_like(logprobs) if entropy is None else entropy)


def advantages_of(samples: list[Sample]) -> np.ndarray:
    """[N]"""
    return np.concatenate([np.full(len(r.response_ids), r.advantage) for s in samples for r in s.group.rollouts])


def clipped(r: np.ndarray, a: np.ndarray) -> np.ndarray:
    """1 where a token may still move the way its advantage asks for."""
    return np.where(a > 0, r <= 1.27, r >= 0.8).astype(float)


def sech2(r: np.ndarray, a: np.ndarray) -> np.ndarray:
    return 1 / np.cosh(np.where(a > 0, 1.0, 1.05) * (r - 1) / 2) ** 2


@pytest.mark.parametrize(("loss", "gate"), [("sapo", sech2), ("grpo", clipped)])
def test_ratio_and_gate_are_those_of_the_formulas(loss: str, gate, seed: int) -> None:
    samples = make_samples(seed, step=0.8, bad=False)
    mb, logprobs = micro_batch(samples)
    record = TokenRecord()
    mismatch = Mismatch(measured="old")
    recorded(record, mb, logprobs, loss=LossConfig(name=loss), mismatch=mismatch, update=3)  # type: ignore[arg-type]
    found = record.tokens([s.group for s in samples], old_is_recorded=False, limit=10**9)

    old = np.concatenate([s.old for s in samples]).astype(np.float64)
    new = np.concatenate([s.new for s in samples]).astype(np.float64)
    engine = np.concatenate([r.logprobs for s in samples for r in s.group.rollouts]).astype(np.float64)
    ratio = np.exp(new - old)
    half = {"rtol": 2**-10, "atol": 1e-7}
    np.testing.assert_allclose(found.ratio, ratio, rtol=1e-5)
    np.testing.assert_allclose(found.gate, gate(ratio, advantages_of(samples)), **half)
    np.testing.assert_allclose(found.logp_old, old, **half)
    np.testing.assert_allclose(found.logp_new, new, **half)
    np.testing.assert_allclose(found.gap, engine - old, rtol=2**-10, atol=1e-6)
    assert found.mask.all() and set(found.update) == {3}
    assert found.token_ids.tolist() == [i for s in samples for r in s.group.rollouts for i in r.response_ids]
    assert found.gate.min() < 0.9 < found.gate.max()


def test_entropy_is_that_of_the_law(seed: int) -> None:
    samples = make_samples(seed, bad=False)
    mb, _ = micro_batch(samples)
    generator = torch.Generator().manual_seed(seed)
    hidden, head = torch.randn(len(mb.targets), 8, generator=generator), torch.randn(50, 8, generator=generator)
    logprobs, entropy = token_logprobs(hidden, head, mb.targets, temperature=0.7)
    record = TokenRecord()
    recorded(record, mb, logprobs, entropy=entropy)
    found = record.tokens([s.group for s in samples], old_is_recorded=False, limit=10**9)
    law = np.exp(hidden.double().numpy() @ head.double().numpy().T / 0.7)
    law /= law.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.entropy, -(law * np.log(law)).sum(axis=1), rtol=2**-9, atol=2**-24)
    picked = law[np.arange(len(law)), mb.targets.numpy()]
    np.testing.assert_allclose(found.logp_new, np.log(picked), rtol=2**-9, atol=1e-4)


def test_order_is_that_of_the_lines_whatever_was_packed(seed: int) -> None:
    """Two updates with a micro-batch each, and responses that none of them took in."""
    rng = np.random.default_rng(seed)
    lengths = [[3, 0, 2], [4, 1, 5], [2, 2, 2], [1, 6, 3]]
    advantages = [[1.0, None, -1.0], [0.5, -0.5, None], [None] * 3, [1.0, -2.0, 1.0]]
    groups = [
        make_group(f"p{i}", False, [-rng.exponential(1, n) for n in ns], a)  # type: ignore[arg-type]
        for i, (ns, a) in enumerate(zip(lengths, advantages, strict=True))
    ]
    record = TokenRecord()
    for update, dealt in enumerate(([groups[3], groups[1]], [groups[2], groups[0]]), start=1):
        kept = [g for g in map(trainable, dealt) if g is not None]
        mb, _ = micro_batch([Sample(g, *[np.concatenate([r.logprobs for r in g.rollouts])] * 2) for g in kept])
        recorded(record, mb, mb.old_logprobs + update, update=update)
    for old_is_recorded in (True, False):
        found = record.tokens(groups, old_is_recorded, 10**9)
        assert np.diff(found.offsets).tolist() == [n for ns in lengths for n in ns]
        assert found.update.tolist() == [2, 0, 2, 1, 1, 0, 0, 0, 0, 1, 1, 1]
        for i, rollout in enumerate(r for g in groups for r in g.rollouts):
            span, update = found.span(i), found.update[i]
            assert found.token_ids[span].tolist() == rollout.response_ids.tolist()
            assert (found.mask[span] == (update > 0)).all()
            known = found.logp_old[span] if update or old_is_recorded else rollout.logprobs
            np.testing.assert_allclose(known, rollout.logprobs, rtol=2**-10)
            if update:
                np.testing.assert_allclose(found.ratio[span], math.exp(update), rtol=1e-5)
            else:
                nothing = (found.ratio, found.gate, found.logp_new, found.entropy, found.gap)
                assert all(np.isnan(array[span]).all() for array in nothing)
                assert old_is_recorded or np.isnan(found.logp_old[span]).all()
        assert np.isnan(found.gap).all(), "nobody measured it"
    assert len(record.tokens([], True, 10**9)) == 0


def test_without_room_for_all_whole_groups_are_left_out(seed: int) -> None:
    """Five groups of two responses with 10 tokens in all; the second and the fourth taught nothing."""
    groups = [make_group(f"p{i}", False, [-np.ones(4), -np.ones(6)], [1.0, -1.0]) for i in range(5)]  # type: ignore[arg-type]
    record = TokenRecord()
    old = [np.concatenate([r.logprobs for r in g.rollouts]) for g in groups]
    mb, _ = micro_batch([Sample(groups[i], old[i], old[i]) for i in (0, 2, 4)])
    recorded(record, mb, mb.old_logprobs + 0.5)
    group = 10 * BYTES_PER_TOKEN
    for limit, first in ((5 * group, 5), (5 * group - 1, 4), (3 * group, 3), (2 * group, 2), (group, 1)):
        found = record.tokens(groups, False, limit)
        kept = [i for i in range(5) if found.update[2 * i] != LEFT_OUT]
        assert kept == sorted([0, 4, 2, 1, 3][:first])  # those that taught come first, the ends before the middle
        lengths = np.diff(found.offsets).reshape(5, 2).tolist()
        assert lengths == [[4, 6] if i in kept else [0, 0] for i in range(5)]
        assert len(found.ratio) == len(found.token_ids) == len(found.gap) == 10 * first
        for i in kept:
            assert (found.update[2 * i : 2 * i + 2] == (1 if i in (0, 2, 4) else 0)).all()
    found = record.tokens(groups, False, group - 1)  # not one whole group
    assert np.diff(found.offsets).tolist() == [4, 0] + [0] * 8 and found.update.tolist() == [1] + [LEFT_OUT] * 9
    np.testing.assert_allclose(found.ratio, math.exp(0.5), rtol=1e-5)


def test_a_token_that_a_correction_drops_is_masked(seed: int) -> None:
    samples = make_samples(seed, gap=1.5)
    mb, logprobs = micro_batch(samples)
    record = TokenRecord()
    mismatch = Mismatch(config=MismatchConfig(correction="token_mask", token_mask=(0.5, 2.0)), measured="old")
    recorded(record, mb, logprobs, mismatch=mismatch)
    found = record.tokens([s.group for s in samples], old_is_recorded=False, limit=10**9)
    with np.errstate(invalid="ignore"):
        rho = np.exp(mb.old_logprobs.double().numpy() - mb.rollout_logprobs.double().numpy())
    assert found.mask.tolist() == ((rho >= 0.5) & (rho <= 2.0)).astype(int).tolist()
    assert 0 < found.mask.mean() < 1
    assert (np.isnan(found.gap) == ~torch.isfinite(mb.rollout_logprobs).numpy()).all() and np.isnan(found.gap).any()
    assert np.isfinite(found.gate).all(), "what the loss made of it is told all the same"


REWARD = """from rewards.base import RewardOutput, Unscorable


def f(x):
    if x.task == "count" and x.answer in "13579":
        return RewardOutput(1.0)  # a dead group
    if sum(x.token_ids) % 5 == 0:
        raise Unscorable("a multiple of 5")
    return RewardOutput(sum(x.token_ids) % 7 / 6)
"""


def tokens_of_update(found: Tokens, update: int) -> np.ndarray:
    """[T] bool"""
    return np.repeat(found.update == update, np.diff(found.offsets))


@pytest.mark.slow
def test_a_run_writes_them_and_stays_the_same(tmp_path: Path, seed: int) -> None:
    """Two ranks, two updates a step: what the second one saw adds up to the metrics of the step."""
    (tmp_path / "reward.py").write_text(REWARD)
    settings = {
        "rewards.path": f"{tmp_path / 'reward.py'}:f",
        "rewards.by_task": '{"*": custom}',
        "rewards.max_failure_share": 1.0,
        "processes": 2,
        "rollout.prompts_per_step": 16,
        "log.save_rollouts_every": 2,
        "optim.lr": 3e-4,
        "loss.params": '{"tau_neg": 3.0}',
    }
    rows = {
        saved: short_run(tmp_path / saved, seed, {**settings, "log.save_tokens": saved}) for saved in ("true", "false")
    }
    timed = ("time", "seconds/", "tokens_per_s/")
    kept = {k: [{n: v for n, v in row.items() if not n.startswith(timed)} for row in r] for k, r in rows.items()}
    assert kept["true"] == kept["false"]
    folders = {saved: tmp_path / saved / "out" / "rollouts" for saved in rows}
    assert not list(folders["false"].glob("*.tokens.*"))
    names = [f"step_000002.rank{rank}" for rank in range(2)]
    assert {p.name for p in folders["true"].glob("step_*")} == {
        n + e for n in names for e in (".jsonl", ".tokens.safetensors")
    }

    row, columns = kept["true"][1], []
    dead = 0
    for name in names:
        path = folders["true"] / f"{name}.jsonl"
        lines = list(read_rollouts(path))
        found = read_tokens(path, [line["response_ids"] for line in lines])
        live = {line["id"] for line in lines if line["advantage"]}
        for i, line in enumerate(lines):
            span, trained = found.span(i), line["advantage"] is not None and line["id"] in live
            assert bool(found.update[i]) == trained and (found.mask[span] == trained).all()
            assert found.logp_old[span].mean(dtype=np.float64) == pytest.approx(line["mean_logprob"], rel=1e-3)
            assert np.isnan(found.ratio[span]).all() if not trained else np.isfinite(found.ratio[span]).all()
            dead += not trained
        places = tokens_of_update(found, 1)
        np.testing.assert_allclose(found.ratio[places], 1, atol=1e-4)  # the weights that they were sampled from
        np.testing.assert_allclose(found.gap[places], 0, atol=1e-4)
        places = tokens_of_update(found, 2)
        assert np.isnan(found.gap[places]).all(), "other weights than those that they were sampled from"
        signs = np.concatenate([np.full(len(r["response_ids"]), np.sign(r["advantage"] or 0)) for r in lines])[places]
        columns.append(np.stack([found.ratio[places], found.gate[places], found.entropy[places], signs]).astype(float))
        tau = np.where(signs > 0, 1.0, 3.0)
        np.testing.assert_allclose(columns[-1][1], 1 / np.cosh(tau * (columns[-1][0] - 1) / 2) ** 2, rtol=1e-3)
    assert dead > 0
    ratio, gate, entropy, sign = np.concatenate(columns, axis=1)
    assert len(ratio) == row["tokens"] and (sign < 0).sum() == row["tokens/neg"] > 0
    assert np.abs(ratio - 1).mean() == pytest.approx(row["ratio/mean_abs_dev"], rel=1e-3)
    assert row["ratio/mean_abs_dev"] > 1e-4
    assert ratio.max() == pytest.approx(row["ratio/max"], rel=1e-5)
    assert gate.mean() == pytest.approx(row["gate/mean"], abs=3e-4)
    assert entropy.mean() == pytest.approx(row["entropy/mean"], rel=1e-3)
