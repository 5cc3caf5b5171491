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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sapo_vl.model import attention_dense, attention_flex, attention_merged
from sapo_vl.model.attention_dense import repeat_heads
from sapo_vl.model.segments import Groups, check_groups

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

    @cached_property
    def prompt_index(self) -> Tensor:
        """[n, Pmax] int64 into the row; padding points at token 0."""
        lengths = torch.tensor([p for p, _ in self.groups])[:, None]
        sizes = torch.tensor([p + sum(responses) for p, responses in self.groups])
        place = torch.arange(int(lengths.max()))
        return torch.where(place < lengths, (sizes.cumsum(0) - sizes)[:, None] + place, 0).to(self.device)

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


@dataclass(slots=True)
class KVCache:
    """Keys and values of B responses while they are sampled: the prompt's, then their own.

    Each prompt is run once; its keys and values are spread over the G responses of its group here.
    Buffers are [B, kv heads, Pmax + max_new, head_dim]; responses advance in lockstep, so the own part
    of every response starts at Pmax and `length` counts its tokens.
    """

    layout: PrefixLayout  # of the prompts alone
    prompt_of: Tensor  # [B] int64, which prompt each response continues
    prompt_mask: Tensor  # [n, Pmax] bool, True = a token of the prompt
    max_new: int
    length: int = 0  # own tokens stored by the decoding step under way
    keys: dict[int, Tensor] = field(default_factory=dict)  # by layer
    values: dict[int, Tensor] = field(default_factory=dict)

    def store_prompts(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Takes the flat row's key and value, [1, kv heads, T, head_dim]."""
        for flat, store in ((key, self.keys), (value, self.values)):
            padded = flat[0].transpose(0, 1)[self.layout.prompt_index].transpose(1, 2)  # [n, kv heads, Pmax, d]
            spread = padded[self.prompt_of]
            buffer = spread.new_zeros((*spread.shape[:2], spread.shape[2] + self.max_new, spread.shape[3]))
            buffer[:, :, : spread.shape[2]] = spread
            store[layer] = buffer

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one token of every response ([B, kv heads, 1, d]); returns all keys and values so far."""
        at = self.prompt_mask.shape[1] + self.length - 1
        self.keys[layer][:, :, at : at + 1] = key
        self.values[layer][:, :, at : at + 1] = value
        return self.keys[layer][:, :, : at + 1], self.values[layer][:, :, : at + 1]

    def keep(self, rows: Tensor) -> None:
        """Drops the responses where `rows` ([B] bool) is False."""
        self.prompt_of = self.prompt_of[rows]
        self.keys = {layer: k[rows] for layer, k in self.keys.items()}
        self.values = {layer: v[rows] for layer, v in self.values.items()}

    def decode_mask(self) -> Tensor:
        """[B, 1, 1, Pmax + length] bool: which stored keys a response may attend to."""
        own = self.prompt_mask.new_ones((len(self.prompt_of), self.length))
        return torch.cat([self.prompt_mask[self.prompt_of], own], dim=1)[:, None, None]


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
    groups = query.shape[1] // key.shape[1]
    if kv_cache is not None and prefix_layout is None:
        layer: int = module.layer_idx  # type: ignore[assignment]
        keys, values = kv_cache.append(layer, key, value)
        out = F.scaled_dot_product_attention(
            query,
            repeat_heads(keys, groups),
            repeat_heads(values, groups),
            attn_mask=kv_cache.decode_mask(),
            scale=scaling,
        )
        return out.transpose(1, 2), None
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
