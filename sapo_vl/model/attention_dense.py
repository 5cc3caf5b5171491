"""Flat-row attention as padded rectangles under a mask: the plain way, which the others are compared with.

Prompts and responses are gathered with indices into the row, padded to the longest, attended with public operators, and
scattered back. Its cost grows with responses x (longest prompt + longest response), in time, copies and the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sapo_vl.model.segments import Groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangles:
    """Padded indices into a flat row of T tokens. n groups, B responses in all."""

    prompt_index: Tensor  # [n, Pmax] int64 into the row; padding points at token 0
    response_index: Tensor  # [B, Rmax] int64 into the row; padding points at token 0
    key_index: Tensor  # [B, Pmax + Rmax] int64: the keys of a response, its prompt then itself
    key_mask: Tensor  # [B, 1, Rmax, Pmax + Rmax] bool, True = may attend
    unpad_index: Tensor  # [T] int64 into [prompts padded, responses padded] laid end to end

    def tensors(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)]

    def to(self, device: torch.device) -> Rectangles:
        return Rectangles(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def rectangles(groups: Groups) -> Rectangles:
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
    return Rectangles(
        prompt_index=torch.from_numpy(prompt_index),
        response_index=torch.from_numpy(response_index),
        key_index=torch.from_numpy(key_index),
        key_mask=torch.from_numpy(key_mask)[:, None],
        unpad_index=torch.from_numpy(np.concatenate(unpad)),
    )


def computed_scores(where: Rectangles) -> int:
    """Entries of the rectangles, per head."""
    (n, prompt), (b, _, response, keys) = where.prompt_index.shape, where.key_mask.shape
    return n * prompt * prompt + b * response * keys


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """[b, kv heads, s, d] -> [b, kv heads * times, s, d], each head `times` times in a row."""
    if times == 1:
        return x
    b, h, s, d = x.shape
    return x[:, :, None].expand(b, h, times, s, d).reshape(b, h * times, s, d)


def attend(query: Tensor, key: Tensor, value: Tensor, where: Rectangles, scale: float | None) -> Tensor:
    """query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d]."""
    times = query.shape[1] // key.shape[1]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, d]
    heads, d = q.shape[1:]

    def take(x: Tensor, index: Tensor) -> Tensor:
        return x[index].transpose(1, 2)  # [rows, heads, length, d]

    at = where.prompt_index
    # Prompts are padded on the right, where a causal query never looks: no mask needed.
    prompt_out = F.scaled_dot_product_attention(
        take(q, at), repeat_heads(take(k, at), times), repeat_heads(take(v, at), times), is_causal=True, scale=scale
    )
    parts = [prompt_out.transpose(1, 2).reshape(-1, heads, d)]
    if where.response_index.numel():
        response_out = F.scaled_dot_product_attention(
            take(q, where.response_index),
            repeat_heads(take(k, where.key_index), times),
            repeat_heads(take(v, where.key_index), times),
            attn_mask=where.key_mask,
            scale=scale,
        )
        parts.append(response_out.transpose(1, 2).reshape(-1, heads, d))
    return torch.cat(parts)[where.unpad_index][None]
