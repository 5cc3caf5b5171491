"""RMSNorm with a derivative of its own, against transformers' and against the formula in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm

from sapo_vl.model.norms import RmsNorm, replace_norms

KINDS = (Qwen3VLTextRMSNorm, Qwen3VLMoeTextRMSNorm)


def pair(kind: Any, width: int, dtype: torch.dtype, seed: int) -> tuple[Any, Any, torch.Generator]:
    """A norm of transformers with random weights, ours with the same, and a generator."""
    rng = torch.Generator().manual_seed(seed)
    before = kind(width, eps=1e-5)
    with torch.no_grad():
        before.weight.copy_(torch.randn(width, generator=rng))
    before = before.to(dtype)
    now = nn.Sequential(copy.deepcopy(before))
    assert replace_norms(now) == 1
    return before, now[0], rng


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 17, 24), (2, 5, 3, 24), (1, 24)])
def test_values_are_the_same_to_the_bit(kind: Any, dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> None:
    before, now, rng = pair(kind, shape[-1], dtype, seed)
    x = (torch.randn(shape, generator=rng) * 3).to(dtype)
    given = x.clone().requires_grad_()
    assert torch.equal(now(given), before(x)) and torch.equal(given, x)
    with torch.no_grad():
        assert torch.equal(now(x), before(x))
    assert now.state_dict().keys() == before.state_dict().keys()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_gradients_are_those_of_the_formula(dtype: torch.dtype, bound: float, seed: int) -> None:
    """In float64 by autograd, from the same rounded numbers; bfloat16's bound is its own rounding of the results."""
    _, now, rng = pair(KINDS[0], 24, dtype, seed)
    x = (torch.randn(2, 9, 3, 24, generator=rng) * 3).to(dtype).requires_grad_()
    slope = torch.randn(x.shape, generator=rng).to(dtype)
    now(x).backward(slope)
    wide, weight = x.detach().double().requires_grad_(), now.weight.detach().double().requires_grad_()
    (weight * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * slope.double()).sum().backward()
    for found, expected in ((x.grad, wide.grad), (now.weight.grad, weight.grad)):
        assert found is not None and expected is not None and found.dtype == dtype
        assert float((found.double() - expected).norm() / expected.norm()) < bound


def test_what_needs_no_gradient_gets_none(seed: int) -> None:
    """Frozen weights under adapters, and a first norm whose input is data."""
    _, now, rng = pair(KINDS[0], 24, torch.float32, seed)
    x = torch.randn(4, 24, generator=rng)
    now(x).sum().backward()
    assert x.grad is None and now.weight.grad is not None
    now.weight.requires_grad_(False).grad = None
    now(x.requires_grad_()).sum().backward()
    assert x.grad is not None and now.weight.grad is None


def test_it_keeps_its_input_and_a_number_a_row(seed: int) -> None:
    _, now, rng = pair(KINDS[0], 24, torch.bfloat16, seed)
    x = torch.randn(10, 24, generator=rng).to(torch.bfloat16).requires_grad_()
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        now(x)
    assert sorted(kept) == [(10, 1), (10, 24), (24,)]


def test_other_norms_stay() -> None:
    other = nn.Sequential(nn.LayerNorm(8), KINDS[0](8))
    assert replace_norms(other) == 1 and type(other[0]) is nn.LayerNorm and type(other[1]) is RmsNorm
    assert replace_norms(other) == 0
