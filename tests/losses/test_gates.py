"""The family of gates, and the settings of SAPO that go beyond the paper: sides, low, target_gate."""

import math

import numpy as np
import pytest
import torch
from helpers_losses import at_ratio, run
from hypothesis import given
from hypothesis import strategies as st

from sapo_vl.losses.gates import GATES

# What each gate is, written another way than in the code: f' of u = tau (r - 1), and f(1) * tau.
SLOPES = {
    "sigmoid": lambda u: 1 / np.cosh(u / 2) ** 2,
    "erf": lambda u: np.exp(-u * u / 2),
    "arctan": lambda u: 1 / (1 + u * u),
    "softsign": lambda u: (1 + u * u) ** -1.5,
}
AT_ONE = {"sigmoid": 2.0, "erf": math.sqrt(math.pi / 2), "arctan": math.pi / 2, "softsign": 1.0}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)

SHAPES = pytest.mark.parametrize("gate", GATES)


def expected(gate: str, ratio: float, tau: float, positive: bool, sides: str, low: str) -> tuple[float, float]:
    """(f, f') at the ratio in float64: f' from its formula, f as f(1) plus the integral of f' from 1 to r."""

    def slope(r: np.ndarray) -> np.ndarray:
        g = SLOPES[gate](tau * (r - 1))
        if low == "closed":
            floor = SLOPES[gate](-tau)
            g = np.where(r < 1, (g - floor) / (1 - floor), g)
        if sides == "outward":
            g = np.where((r > 1) == positive, g, 1.0)
        return g

    half = (ratio - 1) / 2
    return AT_ONE[gate] / tau + half * float(WEIGHTS @ slope(1 + half * (NODES + 1))), float(slope(np.array(ratio)))


def test_the_gates_by_hand():
    # u = 1, 2, 4 at tau = 2: r = 1.5, 2, 3. sech^2(u/2), e^(-u^2/2), 1/(1+u^2), (1+u^2)^-1.5
    table = {
        "sigmoid": (0.786448, 0.419974, 0.070651),
        "erf": (0.606531, 0.135335, 0.00033546),
        "arctan": (0.5, 0.2, 0.058824),
        "softsign": (0.353553, 0.089443, 0.014267),
    }
    assert set(table) == set(GATES)
    for gate, row in table.items():
        for ratio, slope in zip((1.5, 2.0, 3.0), row, strict=True):
            _, grad, found = at_ratio("sapo", ratio, 3.0, gate=gate, tau_pos=2.0)
            assert (grad, found) == pytest.approx((-3 * slope * ratio, slope), rel=2e-5, abs=1e-6)
    # Values at r = 2, tau = 1: 4 / (1 + 1/e), sqrt(2 pi) Phi(1), pi/2 + pi/4, 1 + 1/sqrt 2
    values = {"sigmoid": 2.924234, "erf": 2.108939, "arctan": 2.356194, "softsign": 1.707107}
    for gate, value in values.items():
        assert at_ratio("sapo", 2.0, 1.0, gate=gate)[0] == pytest.approx(-value, rel=1e-5)


@SHAPES
@given(
    log_ratio=st.floats(-6, 2.5),
    tau=st.floats(0.2, 20),
    advantage=st.sampled_from([-2.0, 0.5]),
    sides=st.sampled_from(["both", "outward"]),
    low=st.sampled_from(["open", "closed"]),
)
def test_value_and_gradient_match_the_formulas_in_float64(gate, log_ratio, tau, advantage, sides, low):
    ratio = math.exp(log_ratio)
    f, slope = expected(gate, ratio, tau, advantage > 0, sides, low)
    value, grad, found = at_ratio("sapo", ratio, advantage, gate=gate, tau_pos=tau, tau_neg=tau, sides=sides, low=low)
    assert value == pytest.approx(-advantage * f, rel=2e-5, abs=2e-5)
    assert found == pytest.approx(slope, rel=2e-4, abs=2e-6)
    assert grad == pytest.approx(-advantage * slope * ratio, rel=2e-4, abs=2e-6)


@SHAPES
@pytest.mark.parametrize("low", ["open", "closed"])
@pytest.mark.parametrize("tau", [1e-3, 0.3, 1.0, 8.8, 100.0])
def test_gates_are_admissible(gate, low, tau):
    """Largest at r = 1 with f' = 1 there, falling on both sides, f'(r) r -> 0; low side as its name says."""
    log_ratio = torch.cat([torch.linspace(-200, 0, 401), torch.linspace(0, 200, 401)])[:, None]
    ones = torch.ones_like(log_ratio)
    output, grad = run("sapo", log_ratio, 0 * ones, ones, gate=gate, low=low, tau_pos=tau)
    slope = output.metrics["gate"][:, 0].double()
    assert slope[400].item() == slope[401].item() == 1.0 == slope.max().item()
    assert (slope[:401].diff() >= -1e-6).all() and (slope[401:].diff() <= 0).all()
    floor = 0.0 if low == "closed" else SLOPES[gate](-tau)
    assert slope[0].item() == pytest.approx(floor, abs=2e-6)
    if tau > 0.1:
        assert 0 <= -grad[-1].item() < 1e-6  # at r = e^20


@SHAPES
@pytest.mark.parametrize("low", ["open", "closed"])
def test_outward_leaves_a_token_on_its_way_back_alone(gate, low):
    settings = {"gate": gate, "sides": "outward", "low": low, "tau_pos": 8.8, "tau_neg": 10.0}
    symmetric = settings | {"sides": "both"}
    for ratio, advantage in [(1.3, -2.0), (9.0, -2.0), (0.7, 2.0), (0.01, 2.0)]:  # it moved the wrong way
        value, grad, slope = at_ratio("sapo", ratio, advantage, **settings)
        assert (grad, slope) == (pytest.approx(-advantage * ratio, rel=1e-5), 1.0)
        tau = 8.8 if advantage > 0 else 10.0
        assert value == pytest.approx(-advantage * (AT_ONE[gate] / tau + ratio - 1), rel=1e-4)
    for ratio, advantage in [(1.3, 2.0), (9.0, 2.0), (0.7, -2.0), (0.01, -2.0), (1.0, 2.0), (1.0, -2.0)]:
        assert at_ratio("sapo", ratio, advantage, **settings) == at_ratio("sapo", ratio, advantage, **symmetric)
    for advantage in (2.0, -2.0):  # continuous at r = 1
        below, at, above = (at_ratio("sapo", r, advantage, **settings)[0] for r in (1 - 1e-5, 1.0, 1 + 1e-5))
        assert below == pytest.approx(at, abs=5e-5) and above == pytest.approx(at, abs=5e-5)
        assert (above - below) * advantage < 0


def test_the_closed_low_side_by_hand():
    # tau 1, r = 1/2: (sech^2(1/4) - sech^2(1/2)) / (1 - sech^2(1/2)) = (.940015 - .786448) / .213552 = .719108
    for advantage in (1.0, -1.0):
        _, grad, slope = at_ratio("sapo", 0.5, advantage, low="closed", tau_neg=1.0)
        assert (grad, slope) == pytest.approx((-advantage * 0.359554, 0.719108), rel=1e-4)
    # The side above 1 is the paper's.
    assert at_ratio("sapo", 1.5, 1.0, low="closed") == at_ratio("sapo", 1.5, 1.0)


# --- target_gate
# ----------------------------------------------------------------------------------------------------


def gates_of(log_ratio: list[list[float]], advantages: list[float], mask=None, **params) -> torch.Tensor:
    rows = torch.tensor(log_ratio)
    a = torch.tensor(advantages)[:, None].expand(rows.shape)
    return run("sapo", rows, torch.zeros_like(rows), a, mask, **params)[0].metrics["gate"]


def test_the_target_is_reached_where_a_response_is_above_it():
    rows = [[0.1, -0.2, 0.05, 0.0], [0.02, 0.01, -0.03, 0.01]]
    assert (gates_of(rows, [1.0, -1.0]).mean(1) > 0.98).all()
    for target in (0.3, 0.7, 0.95):
        found = gates_of(rows, [1.0, -1.0], target_gate=target)
        assert found.mean(1).tolist() == pytest.approx([target] * 2, abs=1e-4)
        assert found[0, 3].item() == 1.0  # a token that has not moved is never damped


def test_the_raised_temperature_by_hand():
    # One token, r = 1.1: sech^2(tau 0.1 / 2) = 1/2 at tau = 17.627472 = 2 arcosh(sqrt 2) / 0.1; so s = that / tau_pos.
    for tau in (1.0, 5.0):
        value, grad, slope = at_ratio("sapo", 1.1, 1.0, tau_pos=tau, target_gate=0.5)
        assert (grad, slope) == pytest.approx((-0.55, 0.5), rel=1e-3)
        assert value == pytest.approx(-4 / 17.627472 * (1 / (1 + math.exp(-1.7627472))), rel=1e-3)


def test_a_temperature_is_never_lowered_and_never_without_end():
    # Already below the target: as if there were none.
    assert gates_of([[1.5, -2.0, 2.0]], [1.0], target_gate=0.9).tolist() == gates_of([[1.5, -2.0, 2.0]], [1.0]).tolist()
    # Hardly moved: 1000 times the temperature, then no more. sech^2(1000 * 1e-4 / 2) = .997504
    assert gates_of([[1e-4, 0.0]], [1.0], target_gate=0.5)[0].tolist() == pytest.approx([0.997504, 1.0], rel=1e-4)
    assert gates_of([[0.0, 0.0]], [-1.0], target_gate=0.5)[0].tolist() == [1.0, 1.0]


def test_the_mean_is_of_tokens_that_the_gate_acts_on():
    rows = [[0.3, -0.4, 0.2, -0.1], [-0.3, -0.4, -0.2, -0.1]]
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    found = gates_of(rows, [1.0, 1.0], mask, sides="outward", target_gate=0.6)
    assert found[0, [0, 2]].mean().item() == pytest.approx(0.6, abs=1e-4)
    assert found[0, 1].item() == 1.0 and found[0, 3].item() == 0.0
    assert found[1].tolist() == [1.0] * 4  # nothing moved outward: nothing to raise for
