"""Values and gradients of SAPO, GRPO and GSPO against hand-worked numbers and formulas written another way."""

import math

import numpy as np
import pytest
import torch
from helpers_losses import at_ratio, random_batch, run
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.losses import LOSSES, LossInput
from sapo_vl.losses.reduce import count, reduce

WIDE = {"eps_low": 0.9, "eps_high": 9.0}  # a clip that stays open


# --- SAPO
# -----------------------------------------------------------------------------------------------------------

# sech^2(tau (r - 1) / 2) with a pocket calculator: r -> (w at tau 1, w at tau 1.05, w r at tau 1.05).
GATE_TABLE = {
    0.1: (0.822, 0.806, 0.081),
    0.5: (0.940, 0.934, 0.467),
    0.8: (0.990, 0.989, 0.791),
    1.2: (0.990, 0.989, 1.187),
    1.27: (0.982, 0.980, 1.245),
    1.5: (0.940, 0.934, 1.401),
    2.0: (0.786, 0.768, 1.536),
    3.0: (0.420, 0.389, 1.166),
    5.0: (0.071, 0.058, 0.291),
    10.0: (0.0005, 0.0003, 0.003),
}


@pytest.mark.parametrize(("ratio", "row"), GATE_TABLE.items())
def test_sapo_gate_and_gradient_match_the_table(ratio, row):
    gate_pos, gate_neg, slope_neg = row
    _, grad, gate = at_ratio("sapo", ratio, +2.0)
    assert gate == pytest.approx(gate_pos, abs=6e-4)
    assert grad == pytest.approx(-2.0 * gate_pos * ratio, abs=2 * ratio * 6e-4)
    _, grad, gate = at_ratio("sapo", ratio, -2.0)
    assert gate == pytest.approx(gate_neg, abs=6e-4)
    assert grad == pytest.approx(+2.0 * slope_neg, abs=2e-3)


def test_sapo_takes_the_temperature_of_the_sign_of_the_advantage():
    params = {"tau_pos": 1.0, "tau_neg": 3.0}
    # r = 2: 4 sigmoid(1) = 2.924234 and 4/3 sigmoid(3) = 1.270099; sech^2(1/2) = .786448, sech^2(3/2) =
    # .180707
    assert at_ratio("sapo", 2.0, +1.0, **params) == pytest.approx((-2.924234, -2 * 0.786448, 0.786448), rel=1e-5)
    assert at_ratio("sapo", 2.0, -1.0, **params) == pytest.approx((+1.270099, +2 * 0.180707, 0.180707), rel=1e-5)
    assert at_ratio("sapo", 2.0, 0.0, **params) == pytest.approx((0.0, 0.0, 0.180707), rel=1e-5)


@given(tau=st.floats(0.05, 50), advantage=st.floats(-5, 5))
def test_sapo_at_ratio_one_has_gradient_minus_a_for_every_temperature(tau, advantage):
    value, grad, gate = at_ratio("sapo", 1.0, advantage, tau_pos=tau, tau_neg=tau)
    assert value == pytest.approx(-2 * advantage / tau, rel=1e-5, abs=1e-6)
    assert grad == pytest.approx(-advantage, rel=1e-5, abs=1e-6)
    assert gate == pytest.approx(1.0, rel=1e-5)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.01, 0.3, 1.0]),
    tau_pos=st.floats(0.2, 5),
    tau_neg=st.floats(0.2, 5),
)
def test_sapo_matches_eq_5_in_float64_with_complex_step_gradient(seed, spread, tau_pos, tau_neg):
    logprobs, old, advantages, mask = random_batch(seed, spread)

    def objective(z: np.ndarray) -> np.ndarray:
        """Minus Eq. 5 with 4/tau sigmoid(u) written as 2/tau (1 + tanh(u/2)); z may be complex."""
        a, m = advantages.double().numpy(), mask.numpy()
        tau = np.where(a > 0, tau_pos, tau_neg)
        surrogate = 2 / tau * (1 + np.tanh(tau * (np.exp(z - old.double().numpy()) - 1) / 2)) * a
        return -np.mean(np.where(m, surrogate, 0).sum(1) / m.sum(1))

    z = logprobs.double().numpy()
    step = 1e-30
    expected_grad = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        bumped = z.astype(complex)
        bumped[index] += 1j * step
        expected_grad[index] = objective(bumped).imag / step

    logprobs.requires_grad_()
    function, config_class = LOSSES["sapo"]
    output = function(LossInput(logprobs, old, advantages, mask), config_class(tau_pos=tau_pos, tau_neg=tau_neg))
    loss = reduce(output.per_token, mask, "sequence_mean", count(mask))
    (grad,) = torch.autograd.grad(loss, logprobs)
    assert loss.item() == pytest.approx(float(objective(z)), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grad.numpy(), expected_grad, rtol=2e-4, atol=1e-6)


def test_sapo_gradient_survives_where_a_float32_sigmoid_has_saturated():
    # log r = 3, tau 1.05: 4 exp(3 - 1.05 (e^3 - 1)) = 1.591e-7, although sigmoid(20.04) rounds to 1.
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        _, grad = run("sapo", torch.tensor([[0.0]], dtype=dtype), torch.tensor([[-3.0]], dtype=dtype), [[-1.0]])
        assert grad.item() == pytest.approx(1.591e-7, rel=1e-2)


def test_sapo_limits_of_the_temperature():
    for ratio in (0.3, 1.0, 4.0):  # no gate at all as tau -> 0
        assert at_ratio("sapo", ratio, 1.5, tau_pos=1e-4)[1] == pytest.approx(-1.5 * ratio, rel=1e-3)
    # Only r = 1 as tau -> inf.
    assert at_ratio("sapo", 1.0, 1.5, tau_pos=1e4)[1] == pytest.approx(-1.5, rel=1e-5)
    assert at_ratio("sapo", 1.01, 1.5, tau_pos=1e4)[1] == pytest.approx(0.0, abs=1e-6)


# --- GRPO, GSPO
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "grad", "gate"),
    [
        (1.2, +2.0, -2.4, -2.4, 1),
        (1.5, +2.0, -2.54, 0.0, 0),  # went too far up: held at 1.27
        (0.5, +2.0, -1.0, -1.0, 1),  # wrong way: never clipped
        (0.9, -2.0, +1.8, +1.8, 1),
        (0.5, -2.0, +1.6, 0.0, 0),  # went too far down: held at 0.8
        (1.5, -2.0, +3.0, +3.0, 1),  # wrong way
        (0.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_grpo_clips_one_side_only(ratio, advantage, value, grad, gate):
    assert at_ratio("grpo", ratio, advantage) == pytest.approx((value, grad, gate), rel=1e-5, abs=1e-7)


# Log-ratios: row 0 has 3 tokens of mean 0.2 (the 4th is masked), row 1 has 2 of mean -0.5.
GSPO_LOG_RATIO = [[0.7, -0.2, 0.1, 9.0], [-0.4, -0.6, -9.0, 9.0]]
GSPO_MASK = [[True, True, True, False], [True, True, False, False]]


def gspo_loss(name: str, advantages: list[list[float]], **params) -> tuple[float, list[list[float]]]:
    """(sequence_mean loss, its gradient) on the rows above."""
    logprobs = torch.tensor(GSPO_LOG_RATIO, requires_grad=True)
    mask = torch.tensor(GSPO_MASK)
    function, config_class = LOSSES[name]
    output = function(LossInput(logprobs, torch.zeros(2, 4), torch.tensor(advantages), mask), config_class(**params))
    loss = reduce(output.per_token, mask, "sequence_mean", count(mask))
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.tolist()


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_gspo_by_hand(name):
    advantages = [[2.0] * 4, [-1.0] * 4]
    # Open: s = e^0.2 = 1.221403 and e^-0.5 = 0.606531; loss = (-2 s_0 + s_1) / 2.
    loss, grad = gspo_loss(name, advantages, **WIDE)
    assert loss == pytest.approx((-2 * 1.221403 + 0.606531) / 2, rel=1e-5)
    up, down = -2 * 1.221403 / 3 / 2, 0.606531 / 2 / 2  # s_i A_i / |y_i| / G
    assert grad[0] == pytest.approx([up, up, up, 0.0], rel=1e-5)
    assert grad[1] == pytest.approx([down, down, 0.0, 0.0], rel=1e-5)
    # Default clip: both went too far, held at 1.0004 and 0.9997.
    loss, grad = gspo_loss(name, advantages)
    assert loss == pytest.approx((-2 * 1.0004 + 0.9997) / 2, rel=1e-6)
    assert grad == [[0.0] * 4, [0.0] * 4]
    # Advantages turned round: both move the wrong way, so the clip never closes.
    loss, grad = gspo_loss(name, [[-2.0] * 4, [1.0] * 4])
    assert loss == pytest.approx((2 * 1.221403 - 0.606531) / 2, rel=1e-5)
    assert grad[0] == pytest.approx([-up, -up, -up, 0.0], rel=1e-5)


def test_gspo_token_lets_each_token_answer_for_its_own_advantage():
    advantages = [[3.0, -1.0, 0.0, 5.0], [1.0, 1.0, 1.0, 1.0]]
    _, grad = gspo_loss("gspo_token", advantages, **WIDE)
    s = 1.221403 / 3 / 2
    assert grad[0] == pytest.approx([-3 * s, s, 0.0, 0.0], rel=1e-5)
    _, grad = gspo_loss("gspo", advantages, **WIDE)  # shared: the mean advantage (3 - 1 + 0) / 3
    assert grad[0] == pytest.approx([-2 / 3 * s] * 3 + [0.0], rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(["grpo", "gspo"]))
def test_clipped_losses_match_finite_differences(seed, name):
    logprobs, old, advantages, mask = random_batch(seed, 0.5)
    z, old_, a, m = logprobs.double().numpy(), old.double().numpy(), advantages.double().numpy(), mask.numpy()

    def objective(z: np.ndarray) -> float:
        log_ratio = np.where(m, z - old_, 0)
        if name == "gspo":
            log_ratio = (log_ratio.sum(1) / m.sum(1))[:, None] + 0 * log_ratio
        r = np.exp(log_ratio)
        return -float(np.where(m, np.minimum(r * a, np.clip(r, 0.8, 1.3) * a), 0).sum())

    output, grad = run(name, logprobs, old, advantages, mask, eps_low=0.2, eps_high=0.3)
    assert output.per_token.sum().item() == pytest.approx(objective(z), rel=1e-4, abs=1e-5)
    ratio = output.metrics["ratio"]
    near_kink = ((ratio - 0.8).abs() < 1e-4) | ((ratio - 1.3).abs() < 1e-4)
    for index in np.ndindex(*z.shape):
        bump = np.zeros_like(z)
        bump[index] = 1e-6
        slope = (objective(z + bump) - objective(z - bump)) / 2e-6
        if not near_kink[index]:
            assert grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-4), (seed, index)


@pytest.mark.parametrize("name", ["sapo", "grpo", "gspo", "gspo_token"])
def test_a_runaway_token(name):
    """Far too high already: nothing pushes it further up, and a clip still pulls it down where A < 0."""
    assert at_ratio(name, math.exp(80.0), +1.5)[1] == 0.0
    pull = at_ratio(name, math.exp(80.0), -1.5)[1]
    assert pull == 0.0 if name == "sapo" else pull == pytest.approx(1.5 * math.exp(20.0), rel=1e-5)
