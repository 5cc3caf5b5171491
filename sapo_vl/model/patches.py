"""The patch embedding of the vision tower as the product it is.

Its convolution has a stride as wide as its kernel and takes one patch at a time, so that each output is a product of
all of the patch with all of the kernel. Libraries run it as a convolution all the same, whose gradient costs several
times as much on a CPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class PatchProduct(nn.Conv3d):
    """The same parameters as the convolution's, under the same names."""

    def forward(self, patches: Tensor) -> Tensor:
        """[N, C, T, H, W], each as large as the kernel -> [N, E, 1, 1, 1]."""
        if patches.shape[1:] != self.weight.shape[1:]:
            raise ValueError(f"a patch has the shape {tuple(patches.shape[1:])}, not {tuple(self.weight.shape[1:])}")
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def embed_patches_by_product(visual: Any) -> None:
    """Changes the patch embedding of a Qwen3-VL vision tower in place.

    Raises ValueError if it is another convolution.
    """
    proj = visual.patch_embed.proj
    if type(proj) is PatchProduct:
        return
    plain = type(proj) is nn.Conv3d and proj.groups == 1 and tuple(proj.stride) == tuple(proj.kernel_size)
    if not plain or any(p != 0 for p in proj.padding) or any(d != 1 for d in proj.dilation):
        raise ValueError(f"the patch embedding is {proj}, not a convolution of one patch at a time")
    proj.__class__ = PatchProduct
