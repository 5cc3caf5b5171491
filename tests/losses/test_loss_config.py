"""Settings of the loss, and the penalty to the reference model."""

import math

import pytest
import torch
from pydantic import ValidationError

from sapo_vl.losses import LOSSES, LossConfig, kl_k3

PAPER = {"tau_pos": 1.0, "tau_neg": 1.05, "gate": "sigmoid", "sides": "both", "low": "open", "target_gate": None}


def test_loss_config_gives_typed_params_with_the_published_defaults():
    assert LossConfig().loss_params().model_dump() == PAPER
    assert LossConfig(name="grpo").loss_params().model_dump() == {"eps_low": 0.2, "eps_high": 0.27}
    assert LossConfig(name="gspo").loss_params().model_dump() == {"eps_low": 3e-4, "eps_high": 4e-4}
    config = LossConfig(name="sapo", params={"tau_neg": 2})
    assert config.loss_params().model_dump() == PAPER | {"tau_neg": 2.0}
    assert config.loss_function() is LOSSES["sapo"][0]
    assert (LossConfig().reduction, LossConfig().kl_coef) == ("sequence_mean", 0.0)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"name": "sap"}, r"unknown loss 'sap'; did you mean 'sapo'\?"),
        ({"params": {"tau_posi": 1}}, r"no setting 'tau_posi'; did you mean 'tau_pos'\?"),
        ({"params": {"tau_pos": 0}}, r"tau_pos = 0: .*greater than 0"),
        ({"params": {"tau_pos": math.inf}}, "finite"),
        ({"params": {"gate": "tanh"}}, r"gate = 'tanh': .*'sigmoid', 'erf', 'arctan' or 'softsign'"),
        ({"params": {"sides": "inward"}}, "sides = 'inward': .*'both' or 'outward'"),
        ({"params": {"target_gate": 1.0}}, "target_gate = 1.0: .*less than 1"),
        ({"name": "grpo", "params": {"tau_pos": 1.0}}, "no setting 'tau_pos'"),
        ({"reduction": "token_sum"}, "needs token_sum_constant"),
        ({"reduction": "token_mean", "token_sum_constant": 10.0}, "has no effect"),
        ({"reduction": "mean"}, "sequence_mean"),
        ({"name": "dr_grpo"}, "'dr_grpo' .*needs token_sum_constant, .*max_new_tokens"),
        ({"name": "dapo", "token_sum_constant": 3.0}, "no effect with .*token_mean"),
        ({"name": "dppo", "params": {"d_kl": 0.1}}, "d_kl=0.1 has no effect with divergence=tv"),
        ({"name": "dppo", "params": {"divergence": "kl", "d_tv": 0.1}}, "d_tv=0.1 has no effect with divergence=kl"),
        ({"name": "minirl", "params": {"truncation": 0.5}, "reduction": "token_mean"}, "truncation = 0.5"),
        ({"name": 3}, "valid string"),
        ({"kl_coef": -0.1}, "greater than or equal to 0"),
        ({"clip": 0.2}, "clip"),
    ],
)
def test_loss_config_refuses(settings_, message):
    with pytest.raises(ValidationError, match=message):
        LossConfig(**settings_)


def test_kl_k3_by_hand_and_safe():
    ln2 = math.log(2.0)
    logprobs = torch.tensor([[-1.0, -1.0, -1.0, -200.0, 0.0, math.nan]], requires_grad=True)
    ref = torch.tensor([[-1.0 + ln2, -1.0 - ln2, -1.0, 0.0, -200.0, math.inf]], requires_grad=True)
    mask = torch.tensor([[True, True, True, True, True, False]])
    kl = kl_k3(logprobs, ref, mask)
    kl.sum().backward()
    # 2 - ln 2 - 1, 1/2 + ln 2 - 1, 0, held at e^20 - 20 - 1, e^-200 + 200 - 1, masked
    assert kl[0].tolist() == pytest.approx([0.306853, 0.193147, 0.0, 485165174.4, 199.0, 0.0], rel=1e-5)
    assert logprobs.grad is not None and ref.grad is None
    assert logprobs.grad[0].tolist() == pytest.approx([-1.0, 0.5, 0.0, -485165194.4, 1.0, 0.0], rel=1e-5)


def test_kl_k3_averages_to_the_kl_and_is_never_negative():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    mask = torch.ones(1, 3, dtype=torch.bool)
    mean = (p * kl_k3(p.log()[None], q.log()[None], mask)[0]).sum()
    exact = 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3)
    assert mean.item() == pytest.approx(exact, rel=1e-5)
    tiny = torch.linspace(-1e-3, 1e-3, 2001)[None]
    assert (kl_k3(tiny, torch.zeros_like(tiny), torch.ones_like(tiny, dtype=torch.bool)) >= 0).all()
    with pytest.raises(ValueError, match="one shape"):
        kl_k3(tiny, tiny[:, :5], torch.ones_like(tiny, dtype=torch.bool))
