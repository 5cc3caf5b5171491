"""The corrections in an update: which loss they weigh, which they do not, and what a run without one is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers_mismatch import make_samples, micro_batch
from helpers_run import short_run
from torch import Tensor

from sapo_vl.config import load_config
from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.engine import Objective
from sapo_vl.learning.mismatch import CORRECTIONS, MismatchConfig, loss_weights
from sapo_vl.learning.mismatch_stats import MismatchStats
from sapo_vl.learning.objectives import Mismatch, global_denominators, policy_objective
from sapo_vl.losses import LOSSES, LossConfig, LossInput, kl_k3
from sapo_vl.losses.reduce import reduce
from sapo_vl.model.batching import MicroBatch
from sapo_vl.updates import mismatch_of

ONE = World(rank=0, size=1, device=torch.device("cpu"))
REDUCTIONS = ("sequence_mean", "token_mean", "token_sum")


def loss_config(name: str = "sapo", reduction: str = "sequence_mean", kl_coef: float = 0.0) -> LossConfig:
    constant = 50.0 if reduction == "token_sum" else None
    return LossConfig(name=name, reduction=reduction, token_sum_constant=constant, kl_coef=kl_coef)  # type: ignore[arg-type]


def run(
    mb: MicroBatch,
    logprobs: Tensor,
    config: LossConfig,
    mismatch: Mismatch | None = None,
    reference: Tensor | None = None,
) -> tuple[Objective, Tensor]:
    """(what the objective returns, d loss / d logprobs [N])."""
    denominators = global_denominators([mb], ONE, config.token_sum_constant)
    ref = None if reference is None else lambda _: reference
    objective = policy_objective(config, denominators, UpdateStats(), ref, mismatch)
    x = logprobs.clone().requires_grad_()
    out = objective(mb, x, torch.zeros_like(x))
    out.loss.backward()
    assert x.grad is not None
    return out, x.grad


def weights_of(mb: MicroBatch, logprobs: Tensor, config: MismatchConfig) -> Tensor:
    """[N]"""
    mask = mb.mask()
    advantages = mb.advantages[:, None].expand(mask.shape)
    x = LossInput(mb.padded(logprobs), mb.padded(mb.old_logprobs), advantages, mask)
    weights = loss_weights(config, x, mb.padded(mb.rollout_logprobs))
    assert weights is not None
    return weights.values[mask]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_without_a_correction_nothing_changes_by_a_bit(name: str, kl_coef: float, seed: int) -> None:
    """Loss and gradient are those of the loss function, reduced, whatever the engine recorded; also while measuring."""
    mb, logprobs = micro_batch(make_samples(seed))
    config = loss_config(name, kl_coef=kl_coef)
    reference = logprobs + 0.2
    x = logprobs.clone().requires_grad_()
    mask = mb.mask()
    advantages = mb.advantages[:, None].expand(mask.shape)
    rollout = mb.padded(mb.rollout_logprobs)
    padded = LossInput(mb.padded(x), mb.padded(mb.old_logprobs), advantages, mask, rollout)
    per_token = config.loss_function()(padded, config.loss_params()).per_token
    if kl_coef:
        per_token = per_token + kl_coef * kl_k3(padded.logprobs, mb.padded(reference), mask)
    expected = reduce(per_token, mask, config.reduction, global_denominators([mb], ONE))
    expected.backward()
    assert x.grad is not None
    for mismatch in (None, Mismatch(), Mismatch(measured="old"), Mismatch(measured="current")):
        out, slope = run(mb, logprobs, config, mismatch, reference if kl_coef else None)
        assert torch.equal(out.loss, expected) and torch.equal(slope, x.grad) and out.finite.all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", ["sapo", "grpo"])
@pytest.mark.parametrize("correction", [*CORRECTIONS, "none"])
def test_the_gradient_is_the_weight_times_the_gradient(correction: str, loss: str, reduction: str, seed: int) -> None:
    """Token by token, with the denominators of the whole batch: so the weights are outside of the gate, carry no
    gradient, and leave the tokens that are not theirs alone."""
    mb, logprobs = micro_batch(make_samples(seed, count=20))
    window = {"geometric_mask": [0.9, 1.1]} if correction == "geometric_mask" else {}
    config = MismatchConfig.model_validate({"correction": correction, "off_policy_delta": 0.05, **window})
    weights = weights_of(mb, logprobs, config)
    assert (weights == 0).any() and (weights > 0).any()
    assert correction == "none" or ((weights > 0) & (weights != 1)).any()
    out, found = run(mb, logprobs, loss_config(loss, reduction), Mismatch(config=config))
    _, plain = run(mb, logprobs, loss_config(loss, reduction))
    torch.testing.assert_close(found, weights * plain, rtol=1e-5, atol=1e-9)
    assert torch.isfinite(out.loss) and out.finite.all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dropping_a_token_does_not_change_the_others_by_a_bit(reduction: str, seed: int) -> None:
    """The denominators are those before dropping: tokens of the same response and of others keep their weight."""
    mb, logprobs = micro_batch(make_samples(seed, gap=0.0, bad=False))
    far = mb.rollout_logprobs.clone()
    start = int(mb.lengths[:2].sum())
    own = slice(start, start + int(mb.lengths[2]))
    far[own] -= 3.0  # rho = e^3 in the third response: all of it is dropped
    far[0] += 9.0  # rho = e^-9 for the first token of the first one
    off = dataclasses.replace(mb, rollout_logprobs=far)
    icepop = Mismatch(config=MismatchConfig(correction="icepop"))
    _, all_kept = run(mb, logprobs, loss_config(reduction=reduction), icepop)
    _, some_dropped = run(off, logprobs, loss_config(reduction=reduction), icepop)
    dropped = torch.zeros(len(far), dtype=torch.bool)
    dropped[own], dropped[0] = True, True
    assert (some_dropped[dropped] == 0).all() and (all_kept[dropped] != 0).all()
    assert torch.equal(some_dropped[~dropped], all_kept[~dropped])


def test_the_kl_penalty_is_not_weighed(seed: int) -> None:
    mb, logprobs = micro_batch(make_samples(seed))
    config = MismatchConfig(correction="icepop")
    reference = logprobs + 0.3
    with_kl, slope_with = run(mb, logprobs, loss_config(kl_coef=0.5), Mismatch(config=config), reference)
    without, slope_without = run(mb, logprobs, loss_config(), Mismatch(config=config))
    alone, slope_alone = run(
        dataclasses.replace(mb, advantages=mb.advantages * 0), logprobs, loss_config(kl_coef=0.5), None, reference
    )
    assert float((with_kl.loss - without.loss).detach()) == pytest.approx(float(alone.loss.detach()), rel=1e-4)
    torch.testing.assert_close(slope_with - slope_without, slope_alone, rtol=1e-4, atol=1e-7)
    dropped = weights_of(mb, logprobs, config) == 0
    assert dropped.any() and (slope_with[dropped] != 0).all(), "a dropped token still pays the penalty"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_nonsense_from_the_engine_is_masked_and_counted(correction: str, bad: float, seed: int) -> None:
    mb, logprobs = micro_batch(make_samples(seed, gap=1e-4, bad=False))
    config = MismatchConfig.model_validate({"correction": correction})
    _, good = run(mb, logprobs, loss_config(), Mismatch(config=config))
    recorded = mb.rollout_logprobs.clone()
    recorded[1] = bad
    stats = MismatchStats()
    mismatch = Mismatch(config=config, stats=stats, measured="old")
    out, found = run(dataclasses.replace(mb, rollout_logprobs=recorded), logprobs, loss_config(), mismatch)
    values = stats.reduce(ONE)
    sequence = correction in ("sequence_mask", "geometric_mask")
    owner = torch.repeat_interleave(torch.arange(len(mb.lengths)), mb.lengths)
    lost = owner == owner[1] if sequence else torch.arange(len(found)) == 1
    assert out.finite.all() and torch.isfinite(out.loss)
    assert (found[lost] == 0).all() and torch.equal(found[~lost], good[~lost])
    assert values["mismatch/nonfinite"] == 1
    assert values["mismatch/dropped_tokens"] == pytest.approx(int(lost.sum()) / len(found))


def test_nonsense_from_the_trainer_is_not_hidden_by_a_weight_of_zero(seed: int) -> None:
    """Its own NaN is a fault to be named, as it is without a correction: the update is dropped, not the token."""
    mb, logprobs = micro_batch(make_samples(seed, bad=False))
    recorded = mb.rollout_logprobs.clone()
    recorded[0] = float("nan")
    for config in (MismatchConfig(correction="icepop"), MismatchConfig(off_policy_delta=0.1)):
        spoiled = logprobs.clone()
        spoiled[0] = float("nan")
        out, _ = run(
            dataclasses.replace(mb, rollout_logprobs=recorded), spoiled, loss_config(), Mismatch(config=config)
        )
        assert out.finite.tolist() == [False] + [True] * (len(mb.lengths) - 1)


def test_what_the_gap_is_measured_with(seed: int) -> None:
    mb, logprobs = micro_batch(make_samples(seed, bad=False))
    before = {"old": mb.old_logprobs, "current": logprobs}
    for measured, trainer in before.items():
        stats = MismatchStats()
        run(mb, logprobs, loss_config(), Mismatch(stats=stats, measured=measured))  # type: ignore[arg-type]
        gap = float((trainer - mb.rollout_logprobs).abs().double().mean())
        assert stats.reduce(ONE)["mismatch/gap_mean"] == pytest.approx(gap, rel=1e-6)
    stats = MismatchStats()
    run(mb, logprobs, loss_config(), Mismatch(stats=stats))
    assert stats.reduce(ONE) == {}


def test_a_step_measures_with_log_probs_of_before_its_first_update():
    stats = MismatchStats()
    trainer = load_config(None, ["rollout.old_logprobs=trainer", "mismatch.correction=icepop"])
    found = [mismatch_of(trainer, stats, update) for update in range(3)]
    assert [m.measured for m in found] == ["old", "old", "old"]
    assert all(m.config is trainer.mismatch and m.stats is stats for m in found)
    # Without the trainer's own pi_old there is only the forward pass of the first update.
    assert [mismatch_of(load_config(None), stats, i).measured for i in range(3)] == ["current", None, None]


@pytest.mark.slow
def test_a_run_with_a_gap_whose_size_is_known(tmp_path: Path, seed: int) -> None:
    """Top-p sampling records the law cut to a mass of 0.8 to 1 and rho is that mass: a gap made to measure."""
    reward = "from rewards.base import RewardOutput\n\n\ndef f(x):\n    return RewardOutput(sum(x.token_ids) % 7 / 6)\n"
    (tmp_path / "reward.py").write_text(reward)
    settings = {
        "rewards.path": f"{tmp_path / 'reward.py'}:f",
        "rewards.by_task": '{"*": custom}',
        "rollout.top_p": 0.8,
        "rollout.old_logprobs": "trainer",
        "mismatch.correction": "icepop",
        "mismatch.off_policy_delta": 0.1,
    }
    steps = short_run(tmp_path, seed, settings)
    assert len(steps) == 2
    for row in steps:
        assert row["mismatch/nonfinite"] == 0
        assert row["mismatch/tokens"] > row["tokens"], "of both updates, not of the last one"
        assert row["mismatch/text/tokens"] + row["mismatch/image/tokens"] == row["mismatch/tokens"]
        # rho is between 0.8 and 1: every d is negative, so |d| and -d have one mean, and k3 = mean rho - 1 + k1
        assert 0.01 < row["mismatch/gap_mean"] == pytest.approx(row["mismatch/k1"], rel=1e-3)
        assert row["mismatch/gap_max"] < -math.log(0.8) + 1e-3
        assert 0.8 - 1e-3 < 1 + row["mismatch/k3"] - row["mismatch/k1"] < 1
        assert row["mismatch/chi2"] < 0 and 0.95 < row["mismatch/ess"] <= 1
        # IcePop keeps them all; the off-policy mask drops what has A < 0, as the mean gap is above its delta.
        gone = row["mismatch/dropped_sequences"]
        assert 0.1 < gone == row["mismatch/off_policy_sequences"] < 0.9
        kept = 1 - row["mismatch/dropped_tokens"]
        assert 0.1 < kept < 0.9 and 0.8 * kept - 1e-3 < row["mismatch/weight_mean"] < kept
        assert row["mismatch/truncated_tokens"] == 0
        assert row["updates/dropped"] == 0 and row["grad_norm"] > 0
