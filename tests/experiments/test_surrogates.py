"""Figure 1's curves against the formulas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapo_vl.experiments.surrogates import RATIOS, LossCurve, facts, loss_curves
from sapo_vl.losses import LOSSES, LossInput


@pytest.fixture(scope="module")
def curves() -> dict[tuple[str, int], LossCurve]:
    return {(c.loss, c.sign): c for c in loss_curves()[0]}


def test_weights_are_the_papers(curves):
    """SAPO: sech^2(tau (r - 1) / 2), arXiv 2511.20347 Eq. 8; a clip: 1 inside, 0 outside, Eq. 24."""
    for sign, tau in ((1, 1.0), (-1, 1.05)):
        wanted = 1 / np.cosh(tau * (RATIOS - 1) / 2) ** 2
        assert np.abs(curves["sapo", sign].weight - wanted).max() < 1e-5
    away = np.abs(RATIOS - 1.27) > 2e-3
    assert np.allclose(curves["grpo", 1].weight[away], (RATIOS <= 1.27)[away])
    away = np.abs(RATIOS - 0.8) > 2e-3
    assert np.allclose(curves["grpo", -1].weight[away], (RATIOS >= 0.8)[away])
    assert curves["gspo", 1].weight[[990, 1010]] == pytest.approx([1, 0]), "closed at 1.0004"


def test_surrogates_are_what_the_losses_give(curves):
    """Those that have a value of their own: minus the loss per A, up to an offset."""
    old = torch.full((len(RATIOS), 1), -1.6)
    for name in ("sapo", "grpo", "gspo"):
        function, config = LOSSES[name]
        for sign in (1, -1):
            x = LossInput(
                logprobs=old + torch.from_numpy(np.log(RATIOS)).float()[:, None],
                old_logprobs=old,
                advantages=torch.full_like(old, float(sign)),
                mask=torch.ones_like(old, dtype=torch.bool),
            )
            value = -sign * function(x, config()).per_token.double().numpy()[:, 0]
            assert np.abs(curves[name, sign].surrogate - (value - value[1000])).max() < 2e-3


def test_losses_of_more_than_the_ratio_are_left_out(curves):
    """DPPO masks by how much probability has moved, DRPO weighs by it."""
    left_out = loss_curves()[1]
    assert set(left_out) == {"dppo", "drpo"}
    assert {name for name, _ in curves} == LOSSES.keys() - set(left_out)


def test_the_facts(curves):
    numbers = facts(list(curves.values()))
    assert numbers["sapo, A < 0"]["weight at r=0"] == pytest.approx(1 / np.cosh(0.525) ** 2, abs=1e-5)
    assert numbers["grpo, A > 0"]["largest jump"] == pytest.approx(1)
    assert numbers["sapo, A > 0"]["largest jump"] < 1e-3
