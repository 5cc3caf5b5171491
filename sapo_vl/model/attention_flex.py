"""Flat-row attention on a GPU: torch's FlexAttention under a block mask. Not yet run on a GPU.

The kernel visits only the blocks of 128 x 128 scores that the mask names, reads the keys where they lie in the row, and
knows grouped heads, so nothing is padded, copied or spread. The mask is made on the device from the lengths: two
numbers a token, and four a pair of blocks. FlexAttention has no backward on a CPU: its gradient is checked by
`bench/gpu.sh`.

torch's module is imported where it is used: it loads the compiler, 5 CPU seconds that no other way needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sapo_vl.model.segments import Groups, segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions

BLOCK = 128


def block_mask(groups: Groups, device: torch.device) -> BlockMask:
    """The rule of `sapo_vl.model.segments`, by blocks. Made of [T] and [T / 128, T / 128] tensors on `device`."""
    from torch.nn.attention.flex_attention import BlockMask

    found = segments(groups)
    tokens = found[-1].stop
    numbers = torch.tensor([[s.length, s.prompt] for s in found], dtype=torch.int32).to(device)
    lengths, prompts = numbers[:, 0], numbers[:, 1]
    names = torch.arange(len(found), dtype=torch.int32, device=device)
    segment = names.repeat_interleave(lengths, output_size=tokens)
    prompt = prompts.repeat_interleave(lengths, output_size=tokens)

    def allowed(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & ((segment[k] == segment[q]) | (segment[k] == prompt[q]))

    # Of every block: its first and last segment, and the prompts of these.
    starts = torch.arange(0, tokens, BLOCK, device=device)
    ends = (starts + BLOCK - 1).clamp(max=tokens - 1)
    first, last, group, last_group = segment[starts], segment[ends], prompt[starts], prompt[ends]
    q_first, q_last, q_group = first[:, None], last[:, None], group[:, None]
    one_segment, one_group = q_first == q_last, q_group == last_group[:, None]
    before = starts[None] < starts[:, None]
    # A block of keys before that of the queries can share one segment with it, and hold the prompt of one group of it:
    # the first of the queries' block, in both cases.
    is_needed = before & ((last == q_first) | ((first <= q_group) & (q_group <= last)))
    is_of_prompt = (first == q_group) & (last == q_group)
    is_of_both = ((first == q_group) | (first == q_first)) & ((last == q_group) | (last == q_first))
    is_full = is_needed & ((one_group & is_of_prompt) | (one_segment & is_of_both & (last - first <= 1)))
    is_full &= (starts + BLOCK <= tokens)[:, None]  # torch's own masks hold no full block that juts out
    is_part = (is_needed & ~is_full) | (starts[None] == starts[:, None])
    return BlockMask.from_kv_blocks(
        *_listed(is_part), *_listed(is_full), BLOCK_SIZE=BLOCK, mask_mod=allowed, seq_lengths=(tokens, tokens)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[n, n] bool -> how many are True in each row [1, 1, n], and which, those first [1, 1, n, n], both int32."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def computed_scores(mask: BlockMask) -> int:
    """Entries of the blocks that are visited, per head."""
    full = 0 if mask.full_kv_num_blocks is None else int(mask.full_kv_num_blocks.sum())
    return (int(mask.kv_num_blocks.sum()) + full) * BLOCK * BLOCK


def mask_tensors(mask: BlockMask) -> list[Tensor]:
    """All that the mask holds on the device."""
    inside = [cell.cell_contents for cell in mask.mask_mod.__closure__ or ()]
    return [x for x in (*mask.as_tuple(), *inside) if isinstance(x, Tensor)]


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)  # a second length makes it compile for all of them


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d]. Compiled on a GPU, once."""
    from torch.nn.attention.flex_attention import flex_attention

    run = _compiled() if query.device.type == "cuda" else flex_attention
    # For fewer than 128 queries torch would take its kernel for decoding, which refuses blocks of 128.
    options: FlexKernelOptions = {"FORCE_USE_FLEX_ATTENTION": True}
    out = run(query, key, value, block_mask=mask, scale=scale, enable_gqa=True, kernel_options=options)
    return out.transpose(1, 2)
