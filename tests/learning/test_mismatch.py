"""Corrections for the gap between trainer and engine: values by hand, against plain Python, and bad input."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from sapo_vl.learning.mismatch import (
    CORRECTIONS,
    Correction,
    MismatchConfig,
    geometric_mask,
    loss_weights,
    off_policy_mask,
    sequence_mask,
    token_mask,
    token_tis,
)
from sapo_vl.losses import LossInput

BAD = (math.nan, math.inf, -math.inf)


def padded(rows: list[list[float]], fill: float = math.nan) -> tuple[Tensor, Tensor]:
    """(values [B, T], mask [B, T]): rows right-padded with something that must not be looked at."""
    longest = max(map(len, rows))
    values = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    mask = torch.arange(longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return values, mask


def log(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    values, mask = padded(rows)
    return values.log(), mask


# One response that the trainer and the engine agree on but for one token, one that is off both ways, one short.
RHO = [[1.0, 0.25, 1.5, 3.0], [6.0, 0.2, 0.4, 1.0], [1.25]]


@pytest.mark.parametrize(
    ("function", "window", "expected"),
    [
        (token_tis, (0.0, 2.0), [[1.0, 0.25, 1.5, 2.0], [2.0, 0.2, 0.4, 1.0], [1.25, 0, 0, 0]]),
        (token_tis, (0.3, 2.0), [[1.0, 0.3, 1.5, 2.0], [2.0, 0.3, 0.4, 1.0], [1.25, 0, 0, 0]]),
        (token_mask, (0.0, 2.0), [[1.0, 0.25, 1.5, 0], [0, 0.2, 0.4, 1.0], [1.25, 0, 0, 0]]),
        # IcePop: below 0.5 is dropped too, 3 stays, 6 does not
        (CORRECTIONS["icepop"], (0.5, 5.0), [[1.0, 0, 1.5, 3.0], [0, 0, 0, 1.0], [1.25, 0, 0, 0]]),
        # products 1.125, 0.48, 1.25
        (sequence_mask, (0.0, 3.0), [[1.125] * 4, [0.48] * 4, [1.25, 0, 0, 0]]),
        (sequence_mask, (0.5, 1.2), [[1.125] * 4, [0] * 4, [0] * 4]),
        # fourth roots 1.03 and 0.83; the token's own rho is what a kept response is weighed with
        (geometric_mask, (0.9, 1.1), [RHO[0], [0] * 4, [0] * 4]),
        (geometric_mask, (0.8, 1.1), [RHO[0], RHO[1], [0] * 4]),
        (geometric_mask, (1.0, 1.3), [RHO[0], [0] * 4, [1.25, 0, 0, 0]]),
    ],
)
def test_weights_by_hand(function, window, expected):
    weights = function(*log(RHO), window)
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-6, atol=0)


rows_of_log_rho = st.lists(
    st.lists(st.floats(-4, 4, width=32) | st.floats(-0.0078125, 0.0078125, width=32), min_size=1, max_size=7),
    min_size=1,
    max_size=5,
)


def plainly(name: str, d: list[float], low: float, high: float) -> list[float]:
    """The weights of one response in plain Python. Away from the edges of the window, where rounding decides."""
    rho = [math.exp(x) for x in d]
    product = math.prod(rho)
    root = product ** (1 / len(d))
    watched = {"sequence_mask": [product], "geometric_mask": [root]}.get(name, rho)
    assume(all(abs(w - edge) > 1e-4 * edge for w in watched for edge in (low, high)))
    if name == "token_tis":
        return [min(max(r, low), high) for r in rho]
    if name in ("token_mask", "icepop"):
        return [r if low <= r <= high else 0.0 for r in rho]
    if name == "sequence_mask":
        return [product if low <= product <= high else 0.0] * len(d)
    return [r if low <= root <= high else 0.0 for r in rho]


@pytest.mark.parametrize("name", CORRECTIONS)
@given(rows=rows_of_log_rho, low=st.floats(0.01, 0.999), high=st.floats(1.001, 20))
def test_weights_equal_plain_python(name: str, rows: list[list[float]], low: float, high: float):
    log_rho, mask = padded(rows)
    weights = CORRECTIONS[name](log_rho, mask, (low, high))
    expected, _ = padded([plainly(name, row, low, high) for row in rows], fill=0.0)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("bad", BAD)
def test_nonsense_from_the_engine_is_dropped_and_does_not_spread(name: str, bad: float):
    """One bad token: itself in a token correction, its response in a sequence correction, and nothing else."""
    config = MismatchConfig.model_validate({"correction": name})
    log_rho, mask = padded([[0.0, 0.001, 0.0], [0.0, 0.0015], [0.0005]])
    good = CORRECTIONS[name](log_rho, mask, getattr(config, name))
    assert (good[mask] > 0).all()
    spoiled = log_rho.clone()
    spoiled[0, 1] = bad
    weights = CORRECTIONS[name](spoiled, mask, getattr(config, name))
    assert torch.isfinite(weights).all() and weights[0, 1] == 0
    assert torch.equal(weights[1:], good[1:])
    if name in ("sequence_mask", "geometric_mask"):
        assert (weights[0] == 0).all()
    else:
        assert torch.equal(weights[0, [0, 2]], good[0, [0, 2]])


@pytest.mark.parametrize("bad", BAD)
def test_an_unknown_factor_makes_the_product_unknown(bad: float):
    """Also where the window is open below, and a mean of -inf (rho = 0) would be inside."""
    log_rho = torch.tensor([[0.0, bad], [0.0, 0.0]])
    for function in (sequence_mask, geometric_mask):
        assert function(log_rho, torch.ones(2, 2).bool(), (0.0, 2.0)).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("name", CORRECTIONS)
def test_weights_carry_no_gradient_and_stay_finite_for_huge_gaps(name: str):
    log_rho = torch.tensor([[100.0, -100.0], [0.0, 0.0], [300.0, 0.0]], requires_grad=True)
    weights = CORRECTIONS[name](log_rho, torch.ones(3, 2).bool(), (0.0, 1e9))
    assert not weights.requires_grad and weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    assert torch.equal(weights[1], torch.ones(2))


def test_a_geometric_mean_hides_a_single_token():
    """What docs/mismatch.md warns of: 999 tokens that agree and one with rho = e^1, inside of the tight window."""
    log_rho = torch.zeros(1, 1000)
    log_rho[0, 7] = 1.0
    weights = geometric_mask(log_rho, torch.ones(1, 1000).bool(), MismatchConfig().geometric_mask)
    assert float(weights[0, 7]) == pytest.approx(math.e)


def test_off_policy_mask_by_hand():
    # mean(log pi_rollout - log pi_theta): 0.6, 0.6, 0.4, -2, 0.6, NaN, NaN
    rollout, mask = padded(
        [[-1.0, -1.0], [-1.0, -1.0], [-1.0], [-3.0, -3.0], [-1.0, -1.0], [math.nan, -1.0], [math.nan]]
    )
    theta, _ = padded([[-2.0, -1.2], [-2.0, -1.2], [-1.4], [-1.0, -1.0], [-2.0, -1.2], [-1.0, -1.0], [-1.0]])
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0, 0.0, -1.0, 1.0])[:, None].expand(7, 2)
    kept = off_policy_mask(theta.requires_grad_(), rollout, advantages, mask, 0.5)
    # Only the first (far, A < 0) and the one that cannot be judged with A < 0 go.
    assert kept.tolist() == [[0, 0], [1, 1], [1, 0], [1, 1], [1, 1], [0, 0], [1, 0]]
    assert not kept.requires_grad
    assert off_policy_mask(theta, rollout, advantages, mask, 0.7)[0].tolist() == [1, 1]
    # Advantages may differ within a response: those tokens stay that are to be reinforced.
    mixed = torch.tensor([[-1.0, 1.0]])
    assert off_policy_mask(theta[:1], rollout[:1], mixed, mask[:1], 0.5).tolist() == [[0, 1]]


def inputs(rho: list[list[float]], r: list[list[float]], advantages: list[float]) -> tuple[LossInput, Tensor]:
    """A LossInput with ratios r = pi_theta / pi_old, and the engine's log-probs with rho = pi_old / pi_rollout."""
    log_rho, mask = log(rho)
    log_r, _ = log(r)
    old = torch.full(mask.shape, -2.0)
    x = LossInput(old + log_r, old, torch.tensor(advantages)[:, None].expand(mask.shape), mask)
    return x, old - log_rho


def test_everything_off_gives_no_weights():
    x, rollout = inputs([[3.0, math.nan]], [[1.0, 1.0]], [1.0])
    assert loss_weights(MismatchConfig(), x, rollout) is None


def test_corrections_look_at_rho_alone():
    """Not at the ratio that the gate sees: the weights are those of rho whatever pi_theta is."""
    config = MismatchConfig(correction="token_tis")
    x, rollout = inputs(RHO, [[9.0, 0.1, 5.0, 1.0], [0.2] * 4, [7.0]], [1.0, -1.0, 1.0])
    weights = loss_weights(config, x, rollout)
    assert weights is not None
    torch.testing.assert_close(weights.values, token_tis(*log(RHO), (0.0, 2.0)), rtol=1e-5, atol=1e-6)
    assert weights.truncated.tolist() == [[False] * 3 + [True], [True] + [False] * 3, [False] * 4]
    assert weights.off_policy.tolist() == [False] * 3


def test_the_off_policy_mask_goes_with_a_correction():
    """Its statistic is -log(r rho) per token: the engine's gap and the updates so far, together."""
    config = MismatchConfig(correction="token_tis", off_policy_delta=0.5)
    rho, r = [[0.4, 0.5], [0.4, 0.5], [4.0, 0.9]], [[1.0, 0.9], [1.0, 0.9], [1.0, 0.2]]
    # means: -log(0.4 * 0.45) / 2 = 0.86; the same; -log(4 * 0.18) / 2 = 0.16. Of r alone: 0.05 and 0.80.
    x, rollout = inputs(rho, r, [-1.0, 1.0, -1.0])
    weights = loss_weights(config, x, rollout)
    assert weights is not None
    torch.testing.assert_close(weights.values, torch.tensor([[0, 0], [0.4, 0.5], [2.0, 0.9]]), rtol=1e-5, atol=1e-6)
    assert weights.off_policy.tolist() == [True, False, False]
    assert weights.truncated.tolist() == [[False, False], [False, False], [True, False]]
    alone = loss_weights(MismatchConfig(off_policy_delta=0.5), x, rollout)
    assert alone is not None and alone.values.tolist() == [[0, 0], [1, 1], [1, 1]]


def test_a_dropped_token_is_counted_once():
    """Truncated by the correction, then dropped by the off-policy mask: dropped."""
    x, rollout = inputs([[4.0, 0.1]], [[0.1, 1.0]], [-1.0])
    weights = loss_weights(MismatchConfig(correction="token_tis", off_policy_delta=0.5), x, rollout)
    assert weights is not None and (weights.values == 0).all() and not weights.truncated.any()


def test_registry_names_and_windows_agree():
    assert set(get_args(Correction)) == {"none", *CORRECTIONS}
    assert set(MismatchConfig.model_fields) == {"correction", "off_policy_delta", *CORRECTIONS}
    assert MismatchConfig().correction == "none" and MismatchConfig().off_policy_delta == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"correction": "icepop", "icepop": [0.5, 0.9]}, "mismatch.icepop=[0.5, 0.9]: a window is [low, high]"),
        ({"correction": "icepop", "icepop": [1.5, 5]}, "mismatch.icepop=[1.5, 5.0]"),
        ({"correction": "token_tis", "token_tis": [-1, 2]}, "mismatch.token_tis=[-1.0, 2.0]"),
        ({"correction": "token_tis", "token_tis": [0, math.inf]}, "mismatch.token_tis=[0.0, inf]"),
        ({"correction": "token_tis", "token_tis": [math.nan, 2]}, "mismatch.token_tis=[nan, 2.0]"),
        ({"icepop": [0.4, 5]}, "mismatch.icepop=[0.4, 5.0] has no effect with mismatch.correction=none"),
        ({"correction": "token_tis", "icepop": [0.4, 5]}, "remove it or set mismatch.correction=icepop"),
        ({"correction": "ice_pop"}, "Input should be 'none', 'token_tis'"),
        ({"correction": "icepop", "icepop": [0.5]}, "icepop.1"),
        ({"off_policy_delta": -0.1}, "greater than or equal to 0"),
        ({"off_policy_delta": math.nan}, "finite number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValidationError, match=re.escape(words)):
        MismatchConfig.model_validate(settings)


def test_the_table_in_the_docs():
    """Every correction with its default window, and a config that is accepted."""
    text = (Path(__file__).parents[2] / "docs" / "mismatch.md").read_text()
    for name in CORRECTIONS:
        low, high = getattr(MismatchConfig(), name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| [{low:g}, {high:g}] |" in row
    [example] = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert MismatchConfig.model_validate(yaml.safe_load(example)["mismatch"]).correction == "icepop"


def test_the_file_can_be_used_alone():
    code = (
        "import sys, sapo_vl.learning.mismatch; "
        "heavy = {'transformers', 'deepspeed', 'datasets', 'PIL', 'sapo_vl.types'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
