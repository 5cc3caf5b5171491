"""Attention for shared-prefix training and for sampling, as one transformers attention function.

A micro-batch of groups lies in one flat row of T tokens: prompt 1, its responses, prompt 2, its
responses, ... The layers that work token by token see the row as it is, so the prompt and its images
cost once per group instead of G times and nothing is padded. Only attention needs the structure:

    prompt tokens     attend causally to their own prompt
    response tokens   attend to the whole prompt of their group and causally to their own response

There are three ways to the same result: `merged` on a CPU, `flex` on a GPU (FlexAttention, not yet run on one),
and `dense` (padded rectangles under a mask), the reference and the way of any other device.

The structure travels as a keyword argument of the forward pass. A module-level "current batch" would
be gone when a checkpointed layer is recomputed in the backward pass, with wrong gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sapo_vl.model import attention_dense, attention_flex, attention_merged
from sapo_vl.model.kv_cache import KVCache
from sapo_vl.model.segments import Groups, check_groups

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SHARED_PREFIX_ATTENTION = "sapo_shared_prefix"
CPU = torch.device("cpu")
Way = Literal["merged", "flex", "dense"]
WAYS: dict[str, Way] = {"cpu": "merged", "cuda": "flex"}  # by type of device


@dataclass(frozen=True, kw_only=True)
class PrefixLayout:
    """Where the prompts and responses lie in a flat row: lengths alone.

    What a way of attending needs beyond them is made at its first use, on the device, and kept for the other layers.
    """

    groups: Groups
    device: torch.device = CPU
    asked: Way | None = None  # None = the way of the device

    def to(self, device: torch.device | str) -> PrefixLayout:
        device = torch.device(device)
        return self if device == self.device else dataclasses.replace(self, device=device)

    @property
    def way(self) -> Way:
        return self.asked or WAYS.get(self.device.type, "dense")

    @cached_property
    def plan(self) -> attention_merged.Plan:
        return attention_merged.make_plan(self.groups)

    @cached_property
    def blocks(self) -> BlockMask:
        return attention_flex.block_mask(self.groups, self.device)

    @cached_property
    def rectangles(self) -> attention_dense.Rectangles:
        return attention_dense.rectangles(self.groups).to(self.device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d]."""
        if self.way == "merged":
            return attention_merged.attend(query, key, value, self.plan, scale)
        if self.way == "flex":
            return attention_flex.attend(query, key, value, self.blocks, scale)
        return attention_dense.attend(query, key, value, self.rectangles, scale)


def build_layout(groups: Sequence[tuple[int, Sequence[int]]], way: Way | None = None) -> PrefixLayout:
    """The layout of groups given as (prompt length, response lengths), in row order. Empty responses are an error."""
    return PrefixLayout(groups=check_groups(groups), asked=way)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,  # [b, heads, s, d]; b = 1 and s = T for a flat row
    key: Tensor,  # [b, kv heads, s, d]
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix_layout: PrefixLayout | None = None,
    kv_cache: KVCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """A transformers attention function. Without `prefix_layout` and `kv_cache` it is plain SDPA.

    Returns ([b, s, heads, d], None).
    """
    if kv_cache is not None and prefix_layout is None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        return kv_cache.attend(layer, query, key, value, scaling), None
    if prefix_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if dropout:
        raise ValueError(f"attention_dropout is {dropout}; a flat row is attended to without dropout, so it must be 0")
    if kv_cache is not None:
        kv_cache.store_prompts(module.layer_idx, key, value)  # type: ignore[arg-type]
    return prefix_layout.attend(query, key, value, scaling), None


def register_attention() -> None:
    """Makes the function known to transformers, with SDPA's mask: without one, padded calls would ignore padding."""
    AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, sdpa_mask)
