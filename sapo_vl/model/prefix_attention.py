"""Attention for shared-prefix training and for sampling, as one transformers attention function.

A micro-batch of groups lies in one flat row of T tokens: prompt 1, its responses, prompt 2, its
responses, ... The layers that work token by token see the row as it is, so the prompt and its images
cost once per group instead of G times and nothing is padded. Only attention needs the structure:

    prompt tokens     attend causally to their own prompt
    response tokens   attend to the whole prompt of their group and causally to their own response

Both are batched over all groups and responses with indices into the row (gather, one masked SDPA each,
scatter back): public operators only, so gradient checkpointing and every ZeRO stage work as usual.
Only the attention is padded, to the longest prompt and response of the micro-batch.

The structure travels as a keyword argument of the forward pass. A module-level "current batch" would
be gone when a checkpointed layer is recomputed in the backward pass, with wrong gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_PREFIX_ATTENTION = "sapo_shared_prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixLayout:
    """Where the prompts and responses lie in a flat row of T tokens. n groups, B responses in all."""

    prompt_index: Tensor  # [n, Pmax] int64 into the row; padding points at token 0
    response_index: Tensor  # [B, Rmax] int64 into the row; padding points at token 0
    key_index: Tensor  # [B, Pmax + Rmax] int64: the keys of a response, its prompt then itself
    key_mask: Tensor  # [B, 1, Rmax, Pmax + Rmax] bool, True = may attend
    unpad_index: Tensor  # [T] int64 into [prompts padded, responses padded] laid end to end

    def to(self, device: torch.device | str) -> PrefixLayout:
        return PrefixLayout(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def build_layout(groups: Sequence[tuple[int, Sequence[int]]]) -> PrefixLayout:
    """The layout of groups given as (prompt length, response lengths), in row order. Empty responses are an error."""
    if not groups or any(p < 1 for p, _ in groups) or any(r < 1 for _, rs in groups for r in rs):
        raise ValueError(f"a layout needs groups of non-empty prompts and responses, got {list(groups)}")
    p_max = max(p for p, _ in groups)
    r_all = [r for _, rs in groups for r in rs]
    r_max = max(r_all, default=0)
    n, b = len(groups), len(r_all)
    prompt_index = np.zeros((n, p_max), np.int64)
    response_index = np.zeros((b, r_max), np.int64)
    key_index = np.zeros((b, p_max + r_max), np.int64)
    key_mask = np.zeros((b, r_max, p_max + r_max), bool)
    unpad: list[np.ndarray] = []
    causal = np.tril(np.ones((r_max, r_max), bool))
    start, j = 0, 0
    for i, (p, rs) in enumerate(groups):
        prompt = np.arange(start, start + p)
        prompt_index[i, :p] = prompt
        unpad.append(i * p_max + np.arange(p))
        start += p
        for r in rs:
            response = np.arange(start, start + r)
            response_index[j, :r] = response
            key_index[j, :p] = prompt
            key_index[j, p_max : p_max + r] = response
            key_mask[j, :, :p] = True  # padded queries too: a row without any key would give NaN
            key_mask[j, :, p_max : p_max + r] = causal[:, :r]
            unpad.append(n * p_max + j * r_max + np.arange(r))
            start, j = start + r, j + 1
    return PrefixLayout(
        prompt_index=torch.from_numpy(prompt_index),
        response_index=torch.from_numpy(response_index),
        key_index=torch.from_numpy(key_index),
        key_mask=torch.from_numpy(key_mask)[:, None],
        unpad_index=torch.from_numpy(np.concatenate(unpad)),
    )


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


def _repeat_heads(x: Tensor, times: int) -> Tensor:
    """[b, kv heads, s, d] -> [b, kv heads * times, s, d], each head `times` times in a row."""
    if times == 1:
        return x
    b, h, s, d = x.shape
    return x[:, :, None].expand(b, h, times, s, d).reshape(b, h * times, s, d)


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
            _repeat_heads(keys, groups),
            _repeat_heads(values, groups),
            attn_mask=kv_cache.decode_mask(),
            scale=scaling,
        )
        return out.transpose(1, 2), None
    if prefix_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if kv_cache is not None:
        kv_cache.store_prompts(module.layer_idx, key, value)  # type: ignore[arg-type]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    heads, d = q.shape[1:]

    def take(x: Tensor, index: Tensor) -> Tensor:
        return x[index].transpose(1, 2)  # [rows, heads, length, d]

    at = prefix_layout.prompt_index
    # Prompts are padded on the right, where a causal query never looks: no mask needed.
    prompt_out = F.scaled_dot_product_attention(
        take(q, at),
        _repeat_heads(take(k, at), groups),
        _repeat_heads(take(v, at), groups),
        is_causal=True,
        dropout_p=dropout,
        scale=scaling,
    )
    parts = [prompt_out.transpose(1, 2).reshape(-1, heads, d)]
    if prefix_layout.response_index.numel():
        response_out = F.scaled_dot_product_attention(
            take(q, prefix_layout.response_index),
            _repeat_heads(take(k, prefix_layout.key_index), groups),
            _repeat_heads(take(v, prefix_layout.key_index), groups),
            attn_mask=prefix_layout.key_mask,
            dropout_p=dropout,
            scale=scaling,
        )
        parts.append(response_out.transpose(1, 2).reshape(-1, heads, d))
    return torch.cat(parts)[prefix_layout.unpad_index][None], None


def register_attention() -> None:
    """Makes the function known to transformers, with SDPA's mask: without one, padded calls would ignore padding."""
    AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)
    AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, sdpa_mask)
