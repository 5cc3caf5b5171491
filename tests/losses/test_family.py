"""The losses beside SAPO, GRPO and GSPO: numbers worked out by hand, and the papers' formulas in float64."""

import math

import pytest
import torch
from helpers_losses import random_batch, random_gap, run
from torch import Tensor

from sapo_vl.losses import LOSSES, LossConfig


def token(name: str, logprob: float, old: float, mu: float, advantage: float, **params) -> tuple[float, ...]:
    """(value, gradient, ratio, gate) of one token."""
    output, grad = run(name, [[logprob]], [[old]], [[advantage]], rollout=[[mu]], **params)
    return output.per_token.item(), grad.item(), output.metrics["ratio"].item(), output.metrics["gate"].item()


def at_probability(name: str, pi: float, mu: float, advantage: float, **params) -> tuple[float, ...]:
    """(value, gradient, ratio, gate) of one token with these probabilities; pi_old is somewhere else."""
    return token(name, math.log(pi), math.log(0.11), math.log(mu), advantage, **params)


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "value", "gradient"),
    [
        ("dapo", 1.275, 2.0, -2.55, -2.55),  # GRPO has stopped here, at 1.27
        ("dapo", 1.3, 2.0, -2.56, 0.0),
        ("dapo", 0.7, -2.0, 1.6, 0.0),
        ("dr_grpo", 1.19, 2.0, -2.38, -2.38),
        ("dr_grpo", 1.25, 2.0, -2.4, 0.0),
        ("dr_grpo", 0.7, -2.0, 1.6, 0.0),
        ("dr_grpo", 1.25, -2.0, 2.5, 2.5),
    ],
)
def test_dapo_and_dr_grpo_by_hand(name, ratio, advantage, value, gradient):
    found = token(name, -1.0, -1.0 - math.log(ratio), -9.0, advantage)
    assert found[:2] == pytest.approx((value, gradient), rel=1e-5, abs=1e-6)
    assert found[3] == float(gradient != 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient", "gate"),
    [
        (2.0, 2.0, -5.848469, -3.145791, 0.786448),  # tau 1, u = 1: 4 sigmoid(u), sech^2(u/2)
        (0.5, 2.0, -3.0, -1.0, 1.0),  # on its way back: f = 2 - 1/2
        # tau 1.05, u = -0.525: g = 0.934140, g(tau) = 0.768110; f = 1.904762 + (-0.488822 + 0.384055) / 0.231890
        (0.5, -2.0, 2.905918, 0.7159856, 0.7159856),
        (1.5, -2.0, 4.809524, 3.0, 1.0),
    ],
)
def test_sapo_auto_by_hand(ratio, advantage, value, gradient, gate):
    found = token("sapo_auto", -1.0, -1.0 - math.log(ratio), -9.0, advantage)
    assert found == pytest.approx((value, gradient, ratio, gate), rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "params", "value", "gradient", "gate"),
    [
        # -w A log pi with log pi = -1/2
        (0.5, 2.0, {}, 0.5, -1.0, 1.0),
        (8.0, 2.0, {}, 5.0, -10.0, 0.625),  # w = 5
        (8.0, -2.0, {}, -5.0, 10.0, 0.625),  # either sign
        (8.0, 2.0, {"eps_high": 0.2}, 1.2, -2.4, 0.15),
        (0.5, 2.0, {"eps_low": 0.2}, 0.8, -1.6, 1.6),
        (0.9, 2.0, {"eps_low": 0.2}, 0.9, -1.8, 1.0),
    ],
)
def test_cispo_by_hand(ratio, advantage, params, value, gradient, gate):
    found = token("cispo", -0.5, -0.5 - math.log(ratio), -9.0, advantage, **params)
    assert found == pytest.approx((value, gradient, ratio, gate), rel=1e-5)


@pytest.mark.parametrize(
    ("r", "w", "advantage", "value", "gradient", "gate"),
    [
        # r = pi / pi_old is for the mask, w = pi / mu the weight; -M min(w, 5) A log pi with log pi = -1
        (1.2, 2.0, 2.0, 4.0, -4.0, 1.0),
        (1.3, 2.0, 2.0, 0.0, 0.0, 0.0),  # too far up
        (1.3, 2.0, -2.0, -4.0, 4.0, 1.0),  # on its way back
        (0.7, 2.0, -2.0, 0.0, 0.0, 0.0),  # too far down
        (0.7, 0.1, 2.0, 0.2, -0.2, 1.0),
        (1.0, 8.0, 2.0, 10.0, -10.0, 0.625),  # w = 5
    ],
)
def test_minirl_by_hand(r, w, advantage, value, gradient, gate):
    found = token("minirl", -1.0, -1.0 - math.log(r), -1.0 - math.log(w), advantage)
    assert found == pytest.approx((value, gradient, w, gate), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("pi", "mu", "advantage", "params", "weight"),
    [
        (0.45, 0.3, 1.0, {}, 1.5),
        (0.6, 0.3, 1.0, {}, 0.0),  # + 0.3
        (0.6, 0.3, -1.0, {}, 2.0),  # on its way back
        (0.05, 0.3, -1.0, {}, 0.0),  # - 0.25
        (0.05, 0.3, 1.0, {}, 1 / 6),
        (0.15, 0.3, -1.0, {}, 0.5),  # a ratio of 1/2 is far for a clip
        (0.01, 0.001, 1.0, {}, 10.0),  # so is 10
        (0.03, 0.001, 1.0, {}, 20.0),  # 30, truncated
        (0.6, 0.3, 1.0, {"d_tv": 0.31}, 2.0),
        # mu log(mu/pi) + (1 - mu) log((1-mu)/(1-pi)): .04717, .05343; and back; .00949; from 1/2 to certainty
        (0.45, 0.3, 1.0, {"divergence": "kl"}, 1.5),
        (0.46, 0.3, 1.0, {"divergence": "kl"}, 0.0),
        (0.46, 0.3, -1.0, {"divergence": "kl"}, 0.46 / 0.3),
        (0.99, 0.9999, -1.0, {"divergence": "kl"}, 0.99 / 0.9999),
        (0.99, 0.9999, -1.0, {"divergence": "kl", "d_kl": 0.009}, 0.0),
        (1.0, 0.5, 1.0, {"divergence": "kl"}, 0.0),
        (1.0, 1.0, 1.0, {"divergence": "kl"}, 1.0),
    ],
)
def test_dppo_by_hand(pi, mu, advantage, params, weight):
    found = at_probability("dppo", pi, mu, advantage, **params)
    expected = (-weight * advantage, -weight * advantage, pi / mu, weight * mu / pi)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("pi", "mu", "advantage", "eps", "value", "gradient", "gate"),
    [
        # shift 0.15: w = 1 -+ 0.75; r A = 3, |A| mu (r-1)^2 / (2 eps) = 2 x 0.3 x 0.25 / 0.4 = 0.375
        (0.45, 0.3, 2.0, 0.2, -2.625, -0.75, 0.25),
        (0.45, 0.3, -2.0, 0.2, 3.375, 5.25, 1.75),
        # shift 0.3 is beyond eps: pulled back. r = 2: 4 - 2 x 0.3 x 1 / 0.4 = 2.5
        (0.6, 0.3, 2.0, 0.2, -2.5, 2.0, -0.5),
        # shift -0.15: r = 1/2: 1 - 2 x 0.3 x 0.25 / 0.4 = 0.625
        (0.15, 0.3, 2.0, 0.2, -0.625, -1.75, 1.75),
        (0.15, 0.3, -2.0, 0.2, 1.375, 0.25, 0.25),
        # the paper's 12.5: 1 - 0.15 / 12.5 = 0.988; 2 x 0.3 x 0.25 / 25 = 0.006
        (0.45, 0.3, 2.0, 12.5, -2.994, -2.964, 0.988),
    ],
)
def test_drpo_by_hand(pi, mu, advantage, eps, value, gradient, gate):
    found = at_probability("drpo", pi, mu, advantage, eps=eps)
    assert found == pytest.approx((value, gradient, pi / mu, gate), rel=1e-5)


@pytest.mark.parametrize(
    ("log_ratios", "advantage", "phi"),
    [
        # W^2 e^(3 (1 - W)) for A > 0, W^3 e^(2 (1 - W)) for A < 0
        ([math.log(2), math.log(0.25)], 1.0, 0.25 * math.exp(1.5)),
        ([math.log(2), math.log(0.25)], -1.0, 0.125 * math.exp(1.0)),
        ([math.log(2), 0.0], 1.0, 4 * math.exp(-3.0)),
        ([math.log(2), 0.0], -1.0, 8 * math.exp(-2.0)),
        ([math.log(2), -math.log(2)], 1.0, 1.0),
        ([-60.0, -60.0], 1.0, 0.0),
        ([60.0, 60.0], -1.0, 0.0),
    ],
)
def test_vespo_by_hand(log_ratios, advantage, phi):
    logprobs = torch.tensor([[-1.0, -2.0, 5.0]])
    rollout = logprobs - torch.tensor([[*log_ratios, 7.0]])
    mask = torch.tensor([[True, True, False]])
    output, grad = run("vespo", logprobs, logprobs - 0.3, torch.full((1, 3), advantage), mask, rollout)
    assert grad[0].tolist() == pytest.approx([-advantage * phi, -advantage * phi, 0.0], rel=1e-5)
    assert output.per_token[0].tolist() == pytest.approx([advantage * phi, 2 * advantage * phi, 0.0], rel=1e-5)
    w = math.exp(min(20.0, sum(log_ratios)))
    assert output.metrics["ratio"][0].tolist() == pytest.approx([w, w, 0.0], rel=1e-5)
    assert output.metrics["gate"][0].tolist() == pytest.approx([phi / w, phi / w, 0.0], rel=1e-5)


# --- against the papers' formulas, in float64, differentiated by torch
# ---------------------------------------------------------------------


def clipped(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor, low: float, high: float) -> Tensor:
    r = (lp - old).exp()
    return -torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)


def paper_cispo(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    return -(lp - old).exp().clamp(max=5).detach() * a * lp


def paper_minirl(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    r, w = (lp - old).exp().detach(), (lp - mu).exp().detach()
    kept = ~(((a > 0) & (r > 1.27)) | ((a < 0) & (r < 0.8)))
    return -kept.double() * w.clamp(max=5) * a * lp


def paper_dppo(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    shift = (lp.exp() - mu.exp()).detach()
    kept = ~(((a > 0) & (shift > 0.2)) | ((a < 0) & (shift < -0.2)))
    return -kept.double() * (lp - mu).exp() * a


def paper_dppo_kl(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    p, q = mu.exp(), lp.exp().detach()
    far = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log() > 0.05
    return -(~(far & (a * (q - p) > 0))).double() * (lp - mu).exp() * a


def paper_drpo(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    r = (lp - mu).exp()
    return -(r * a - a.abs() * mu.exp() * (r - 1) ** 2 / (2 * 0.3))


def paper_vespo(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    w = torch.where(m, lp - mu, 0).exp().prod(1, keepdim=True).detach()
    phi = torch.where(a > 0, w**2 * (3 - 3 * w).exp(), w**3 * (2 - 2 * w).exp())
    return -phi * a * lp


def one_sided(lp: Tensor, old: Tensor, mu: Tensor, a: Tensor, m: Tensor) -> Tensor:
    """The ratio itself, but for a token that has gone the way of its advantage: up under SAPO's gate; down under that
    gate less its height at r = 0, stretched to begin at 1."""
    r = (lp - old).exp()
    up = 4 * torch.sigmoid(r - 1)
    floor = 1 / math.cosh(1.05 / 2) ** 2
    down = 2 / 1.05 + (4 / 1.05 * (torch.sigmoid(1.05 * (r - 1)) - 0.5) - floor * (r - 1)) / (1 - floor)
    free = torch.where(a > 0, 2.0, 2 / 1.05) + r - 1
    return -a * torch.where((a > 0) & (r > 1), up, torch.where((a <= 0) & (r < 1), down, free))


PAPERS = {
    "sapo_auto": (one_sided, {}),
    "dapo": (lambda *x: clipped(*x, 0.2, 0.28), {}),
    "dr_grpo": (lambda *x: clipped(*x, 0.2, 0.2), {}),
    "cispo": (paper_cispo, {}),
    "minirl": (paper_minirl, {}),
    "dppo": (paper_dppo, {}),
    "dppo, kl": (paper_dppo_kl, {"divergence": "kl"}),
    "drpo": (paper_drpo, {"eps": 0.3}),
    "vespo": (paper_vespo, {}),
}


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("spread", [0.02, 0.3, 0.8])
def test_values_and_gradients_are_the_papers(paper, spread, seed):
    formula, params = PAPERS[paper]
    for i in range(10):
        logprobs, old, advantages, mask = random_batch(seed + i, spread)
        logprobs, old = logprobs - 2.5, old - 2.5  # probabilities below 1
        rollout = random_gap(seed + i, old, 0.2)
        output, grad = run(paper.split(",")[0], logprobs, old, advantages, mask, rollout, **params)
        x = logprobs.double().requires_grad_()
        exact = torch.where(mask, formula(x, old.double(), rollout.double(), advantages.double(), mask), 0.0)
        (slope,) = torch.autograd.grad(exact.sum(), x)
        # A token on the very edge of a mask may fall on either side in float32.
        differs = ~torch.isclose(grad.double(), slope, rtol=1e-4, atol=1e-6)
        differs |= ~torch.isclose(output.per_token.double(), exact.detach(), rtol=1e-4, atol=1e-6)
        edge = (output.metrics["gate"] == 0) != (slope == 0)
        assert not (differs & ~edge).any() and (differs & edge).sum() <= 1


# --- as settings of a run
# ------------------------


def test_each_loss_is_reduced_as_its_paper_does_unless_told_otherwise():
    reductions = {name: row[1].own_reduction for name, row in LOSSES.items()}
    assert reductions == {
        "sapo": "sequence_mean",
        "sapo_auto": "sequence_mean",
        "grpo": "sequence_mean",
        "gspo": "sequence_mean",
        "gspo_token": "sequence_mean",
        "dapo": "token_mean",
        "dr_grpo": "token_sum",
        "cispo": "token_mean",
        "minirl": "token_sum",
        "dppo": "token_mean",
        "drpo": "token_mean",
        "vespo": "token_mean",
    }
    for name, reduction in reductions.items():
        constant = 100.0 if reduction == "token_sum" else None
        config = LossConfig(name=name, token_sum_constant=constant)
        assert config.reduction == config.model_dump()["reduction"] == reduction
        assert LossConfig(name=name, reduction="sequence_mean").reduction == "sequence_mean"
        assert LossConfig.model_validate(config.model_dump()) == config


def test_which_losses_weigh_by_the_sampling_law():
    assert {name for name, row in LOSSES.items() if row[1].weighs_by_rollout} == {"minirl", "dppo", "drpo", "vespo"}
