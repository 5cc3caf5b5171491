"""What holds for every loss: each row of LOSSES with its defaults, and the settings that change a loss's shape."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from helpers_losses import random_batch, random_gap, run

from sapo_vl.losses import LOSSES, LossInput, LossOutput
from sapo_vl.losses.reduce import count, reduce

VARIANTS: list[tuple[str, dict]] = [
    ("sapo", {"gate": "erf"}),
    ("sapo", {"gate": "arctan"}),
    ("sapo", {"gate": "softsign", "sides": "outward"}),
    ("sapo", {"tau_pos": 8.8, "tau_neg": 10.0, "sides": "outward"}),
    ("sapo", {"low": "closed"}),
    ("sapo", {"low": "closed", "gate": "arctan", "sides": "outward"}),
    ("sapo", {"target_gate": 0.9}),
    ("sapo", {"target_gate": 0.7, "low": "closed", "sides": "outward", "gate": "erf"}),
    ("cispo", {"eps_low": 0.9}),
    ("dppo", {"divergence": "kl"}),
    ("drpo", {"eps": 0.2}),
    ("vespo", {"c1_pos": 0.5, "c2_neg": 4.0}),
]
CASES = [(name, {}) for name in LOSSES] + VARIANTS
every_loss = pytest.mark.parametrize(("name", "params"), CASES, ids=lambda v: v if isinstance(v, str) else str(v))


@every_loss
def test_on_policy_every_loss_is_the_plain_policy_gradient(name, params):
    logprobs, _, advantages, mask = random_batch(3, 0.0)
    logprobs.requires_grad_()
    function, config_class = LOSSES[name]
    # old is cut off the graph
    output = function(LossInput(logprobs, logprobs, advantages, mask), config_class(**params))
    reduce(output.per_token, mask, "sequence_mean", count(mask)).backward()
    expected = torch.where(mask, -advantages / mask.sum(1, keepdim=True) / 5, 0.0)  # REINFORCE, 1/G 1/|y_i|
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@every_loss
def test_finite_value_and_gradient_for_any_log_ratio(name, params, dtype):
    log_ratio = torch.linspace(-200, 200, 81, dtype=dtype)[:, None]  # [81, 1]: one token a row, so GSPO sees it too
    zeros = torch.zeros_like(log_ratio)
    for advantage in (-1.5, 0.0, 1.5):
        # The engine agrees with pi_old, is far off, or recorded log-probs as low as they get.
        for old, rollout in ((zeros, None), (zeros, log_ratio.flip(0)), (-log_ratio, -log_ratio - 200)):
            output, grad = run(
                name, zeros + log_ratio, old, torch.full_like(log_ratio, advantage), rollout=rollout, **params
            )
            assert output.per_token.dtype == torch.float32 and grad.dtype == dtype
            assert output.per_token.isfinite().all() and grad.isfinite().all()
            assert all(metric.isfinite().all() for metric in output.metrics.values())
            if advantage == 0:
                assert (grad == 0).all() and (output.per_token == 0).all()
            if rollout is None and "eps_low" not in params:
                assert grad[0].item() == pytest.approx(0.0, abs=1e-30)  # r = 0 leaves nothing to push


@every_loss
def test_the_gate_metric_is_what_the_gradient_has(name, params):
    """d loss / d log pi_theta = -A * gate * ratio, so the mean gate means one thing whatever the loss."""
    log_ratio = torch.linspace(-12, 12, 97)[:, None]  # one token a row
    old = torch.full_like(log_ratio, -13.0)
    for advantage, rollout in itertools.product((-1.5, 1.5), (None, random_gap(2, old))):
        output, grad = run(name, old + log_ratio, old, torch.full_like(old, advantage), rollout=rollout, **params)
        expected = -advantage * output.metrics["gate"].double() * output.metrics["ratio"].double()
        torch.testing.assert_close(grad.double(), expected, rtol=2e-5, atol=1e-20)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@every_loss
def test_masked_positions_change_nothing_whatever_they_hold(name, params, poison):
    logprobs, old, advantages, mask = random_batch(11, 0.2)
    rollout = random_gap(12, old)
    clean, clean_grad = run(name, logprobs, old, advantages, mask, rollout, **params)
    for which in range(4):
        data = [logprobs.clone(), old.clone(), advantages.clone(), rollout.clone()]
        data[which][~mask] = poison
        output, grad = run(name, *data[:3], mask, data[3], **params)
        assert torch.equal(output.per_token, clean.per_token) and torch.equal(grad, clean_grad)
        assert (output.per_token[~mask] == 0).all() and (grad[~mask] == 0).all()
        assert all((metric[~mask] == 0).all() for metric in output.metrics.values())
    assert torch.equal(clean_grad != 0, mask & (clean.metrics["gate"] != 0))


@every_loss
def test_each_response_is_taken_by_itself(name, params):
    """Neither the responses beside it nor the padding change a response: so no split of a batch matters."""
    logprobs, old, advantages, mask = random_batch(19, 0.4)
    rollout = random_gap(20, old)
    whole, whole_grad = run(name, logprobs, old, advantages, mask, rollout, **params)
    for i, length in enumerate(mask.sum(1).tolist()):
        row = (slice(i, i + 1), slice(0, length))
        alone, grad = run(name, logprobs[row], old[row], advantages[row], mask[row], rollout[row], **params)
        torch.testing.assert_close(alone.per_token, whole.per_token[row], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(grad, whole_grad[row], rtol=1e-5, atol=1e-7)
        for key, metric in alone.metrics.items():
            torch.testing.assert_close(metric, whole.metrics[key][row], rtol=1e-5, atol=1e-7)


@every_loss
def test_half_precision_input_is_computed_in_float32(name, params):
    logprobs, old, advantages, mask = random_batch(5, 0.3)
    half = [t.bfloat16() for t in (logprobs, old, advantages)]
    gap = random_gap(6, old).bfloat16()
    output, _ = run(name, *half, mask, gap, **params)
    exact, _ = run(name, *(t.float() for t in half), mask, gap.float(), **params)
    assert torch.equal(output.per_token, exact.per_token)
    torch.set_default_dtype(torch.bfloat16)  # as model loaders do
    try:
        output, _ = run(name, *(t.float() for t in half), mask, gap.float(), **params)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(output.per_token, exact.per_token)


@every_loss
def test_loss_is_linear_in_the_size_of_the_advantage(name, params):
    logprobs, old, advantages, mask = random_batch(7, 0.1)
    once, grad_once = run(name, logprobs, old, advantages, mask, **params)
    thrice, grad_thrice = run(name, logprobs, old, 3 * advantages, mask, **params)
    torch.testing.assert_close(thrice.per_token, 3 * once.per_token)
    torch.testing.assert_close(grad_thrice, 3 * grad_once)


@every_loss
def test_a_log_prob_of_the_trainer_that_is_no_number_is_seen(name, params):
    """It must reach the loss, so that the update is dropped and its response named; and no other response's."""
    logprobs, old, advantages, mask = random_batch(13, 0.2)
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = logprobs.clone()
        spoiled[2, 0] = bad
        output, _ = run(name, spoiled, old, advantages, mask, **params)
        assert output.per_token.isfinite().all(dim=1).tolist() == [True, True, False, True, True]
        # Nor is it hidden where the engine's is none either.
        gap = random_gap(14, old)
        gap[2, 0] = math.nan
        output, _ = run(name, spoiled, old, advantages, mask, gap, **params)
        assert output.per_token.isfinite().all(dim=1).tolist() == [True, True, False, True, True]
        # pi_old is the trainer's too where the engine's law is given besides.
        spoiled = old.clone()
        spoiled[2, 0] = bad
        output, _ = run(name, logprobs, spoiled, advantages, mask, random_gap(14, old), **params)
        unused = name in ("dppo", "drpo", "vespo")  # no pi_old in them
        assert output.per_token.isfinite().all(dim=1).tolist() == [True, True, unused, True, True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_loss
def test_nonsense_from_the_engine_costs_what_it_is_about_and_nothing_else(name, params, bad):
    """Only losses that say so read the engine's log-probs; in them a token of unknown weight counts as 0."""
    logprobs, old, advantages, mask = random_batch(17, 0.2)
    gap = random_gap(18, old)
    good, good_grad = run(name, logprobs, old, advantages, mask, gap, **params)
    recorded = gap.clone()
    recorded[1, 0] = bad
    output, grad = run(name, logprobs, old, advantages, mask, recorded, **params)
    without, _ = run(name, logprobs, old, advantages, mask, **params)
    lost = torch.zeros_like(mask)
    if LOSSES[name][1].weighs_by_rollout:
        assert not torch.equal(good.per_token, without.per_token)
        lost[1, 0] = True
        lost[1] |= name == "vespo"  # a product with an unknown factor is unknown
        assert name == "vespo" or output.metrics["ratio"][1, 0] == 1.0
    else:
        assert torch.equal(good.per_token, without.per_token)
    assert mask[1, 0] and (output.per_token[lost] == 0).all() and (grad[lost] == 0).all()
    assert (output.metrics["gate"][lost] == 0).all()
    assert torch.equal(output.per_token[~lost], good.per_token[~lost]) and torch.equal(grad[~lost], good_grad[~lost])


def test_loss_input_names_what_is_wrong():
    t, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"advantages has shape \(2,\)"):
        LossInput(t, t, torch.zeros(2), mask)
    with pytest.raises(ValueError, match=r"logprobs must be \[B, T\]"):
        LossInput(t[0], t[0], t[0], mask[0])
    with pytest.raises(TypeError, match="mask must be bool"):
        LossInput(t, t, t, torch.ones(2, 3))
    with pytest.raises(TypeError, match="advantages must be floating"):
        LossInput(t, t, torch.zeros(2, 3, dtype=torch.int64), mask)
    with pytest.raises(ValueError, match=r"metrics lack \['gate'\]"):
        LossOutput(t, {"ratio": t})


def test_losses_import_without_the_rest_of_the_package():
    code = (
        "import sys, sapo_vl.losses.reduce; "
        "heavy = {'transformers', 'deepspeed', 'datasets', 'PIL', 'sapo_vl.types'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
