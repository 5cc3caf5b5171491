"""RMSNorm with a derivative of its own: it keeps its input and one number a row.

Transformers' computes it operator by operator, and autograd keeps what each of them was given: the input in float32 and
the normalised value, three times the bytes in bfloat16, and a backward pass of a dozen operators. The value is the same
to the bit, so that log-probs stay those of other runtimes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _value(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y, and what x was multiplied by [..., 1]."""
    wide = x.float()
    scale = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
    normed = (wide * scale).to(x.dtype)
    return (normed.mul_(weight) if weight.dtype == x.dtype else weight * normed), scale


class _RmsNorm(torch.autograd.Function):
    """y = w * n(x), n(x) = x * (mean(x^2) + eps)^(-1/2) in float32, rounded to the dtype of x before w comes in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        value, scale = _value(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """In float32. With g the gradient of y and s the scale: dw = sum of g * n over rows, and
        dx = s * (g * w - n * mean(g * w * n))."""
        x, weight, scale = ctx.saved_tensors
        grad, wide_weight = grad.float(), weight.float()
        normed = x.float() * scale
        both = grad * normed
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            mean = (both @ wide_weight).unsqueeze(-1) / x.shape[-1]
            of_x = (grad * wide_weight).addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = both.flatten(0, -2).sum(0).to(weight.dtype)
        return of_x, of_weight, None


class RmsNorm(nn.Module):
    """The same parameter as transformers' class, under the same name."""

    weight: Tensor  # [H]
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        if not torch.is_grad_enabled():  # a function of autograd costs as much as a small norm
            if hidden_states.device.type == "cpu" and hidden_states.dtype == self.weight.dtype == torch.float32:
                # There torch's own is made of the same operators, in one call. On a GPU it adds up in another order.
                return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
            return _value(hidden_states, self.weight, self.variance_epsilon)[0]
        return _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[return-value]


def replace_norms(language_model: nn.Module) -> int:
    """Changes the norms of a Qwen3-VL language model in place; returns how many. Those of another class stay."""
    # Here, where a model is there already: a config is read without the code of the models.
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
    from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

    norms = [m for m in language_model.modules() if type(m) in (Qwen3VLTextRMSNorm, Qwen3VLMoeTextRMSNorm)]
    for module in norms:
        module.__class__ = RmsNorm
    return len(norms)
