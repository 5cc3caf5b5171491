"""The patch embedding as a product: values and gradients of the convolution it stands for."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sapo_vl.model.patches import PatchProduct, embed_patches_by_product


def tower(**changes: Any) -> SimpleNamespace:
    settings: dict[str, Any] = {"kernel_size": [2, 4, 4], "stride": [2, 4, 4]} | changes
    return SimpleNamespace(patch_embed=SimpleNamespace(proj=nn.Conv3d(3, 7, **settings).double()))


def test_it_is_the_convolution() -> None:
    """Forward, gradients of weight, bias and patches, in float64; the state dict has the same names and shapes."""
    visual = tower()
    before = copy.deepcopy(visual.patch_embed.proj)
    embed_patches_by_product(visual)
    now = visual.patch_embed.proj
    assert isinstance(now, PatchProduct) and now.state_dict().keys() == before.state_dict().keys()
    patches = torch.randn(11, 3, 2, 4, 4, dtype=torch.float64)
    weights = torch.randn(11, 7, 1, 1, 1, dtype=torch.float64)
    found = []
    for conv in (before, now):
        x = patches.clone().requires_grad_()
        out = conv(x)
        (out * weights).sum().backward()
        assert conv.weight.grad is not None and conv.bias is not None and conv.bias.grad is not None
        found.append((out.detach(), x.grad, conv.weight.grad, conv.bias.grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    embed_patches_by_product(visual)  # a second time changes nothing
    assert visual.patch_embed.proj is now


def test_patches_of_another_size_are_refused() -> None:
    visual = tower()
    embed_patches_by_product(visual)
    with pytest.raises(ValueError, match=r"a patch has the shape \(3, 2, 4, 8\), not \(3, 2, 4, 4\)"):
        visual.patch_embed.proj(torch.zeros(1, 3, 2, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize("change", [{"stride": [1, 4, 4]}, {"padding": 1}, {"dilation": 2}])
def test_another_convolution_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a convolution of one patch at a time"):
        embed_patches_by_product(tower(**change))
