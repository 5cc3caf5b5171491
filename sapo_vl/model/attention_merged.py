"""Flat-row attention on a CPU: every segment on itself, the responses of a group on its prompt, merged.

For a response token with scores s over its own response (causal) and t over its prompt,

    l_own = log sum exp s      l_prompt = log sum exp t      w = sigmoid(l_prompt - l_own)
    out = (1 - w) out_own + w out_prompt                     lse = log(exp l_own + exp l_prompt)

Both parts are torch's own flash attention. Its backward rebuilds the probabilities as exp(score - lse), so each part
given the merged `out` and `lse` yields its share of the gradients (the rule of FlashAttention, arXiv 2205.14135,
Appendix B.4). The responses of a group lie side by side in the row, so all of them attend to their prompt as one
unmasked product on slices: nothing is padded, copied or masked. The own part runs segment by segment; those short
enough that the call itself would cost more than the work run together, with those of like length. Every token is in
one place only, so no gradient is added up over an index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sapo_vl.model.segments import Groups, Segment, segments

STEP = 16  # short segments run together with those of the same length, rounded up to this
ALONE = 256  # a longer one runs alone
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of causal attention: a segment alone, or `rows` short ones that are padded to `length`."""

    rows: int
    length: int
    start: int = 0  # of a segment alone
    index: Tensor | None = None  # [rows * length] int64 into the row; padding repeats its segment's last token
    real: Tensor | None = None  # [tokens] int64, which of these slots are no padding; None = all of them
    padding: Tensor | None = None  # the others

    def take(self, x: Tensor) -> Tensor:
        """[T, heads, ...] -> [rows, heads, length, ...]"""
        if self.index is None:
            return x[self.start : self.start + self.length].transpose(0, 1)[None]
        return x.index_select(0, self.index).unflatten(0, (self.rows, self.length)).transpose(1, 2)

    def put(self, x: Tensor, row: Tensor) -> None:
        """[rows, heads, length, ...] into their places in [T, heads, ...]"""
        if self.index is None:
            row[self.start : self.start + self.length] = x[0].transpose(0, 1)
            return
        flat, index = x.transpose(1, 2).flatten(0, 1), self.index
        if self.real is not None:
            flat, index = flat.index_select(0, self.real), index.index_select(0, self.real)
        row.index_copy_(0, index, flat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Across:
    """One call of unmasked attention: the responses of groups that lie side by side and have the same shape."""

    start: int  # of the first group
    groups: int
    prompt: int  # tokens
    responses: int  # tokens of all responses of a group

    def _groups(self, row: Tensor) -> Tensor:
        size = self.prompt + self.responses
        return row[self.start : self.start + self.groups * size].unflatten(0, (self.groups, size))

    def of_prompts(self, row: Tensor) -> Tensor:
        """[T, heads, ...] -> [groups, prompt, heads, ...], a view."""
        return self._groups(row)[:, : self.prompt]

    def of_responses(self, row: Tensor) -> Tensor:
        """[T, heads, ...] -> [groups, responses, heads, ...], a view."""
        return self._groups(row)[:, self.prompt :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the tokens of a row attend."""

    own: tuple[Run, ...]
    across: tuple[Across, ...]

    def tensors(self) -> Iterator[Tensor]:
        for run in self.own:
            yield from (t for t in (run.index, run.real, run.padding) if t is not None)


def make_plan(groups: Groups) -> Plan:
    found = segments(groups)
    short: dict[int, list[Segment]] = {}
    own: list[Run] = []
    for s in found:
        if s.length > ALONE:
            own.append(Run(rows=1, length=s.length, start=s.start))
        else:
            short.setdefault(-(-s.length // STEP), []).append(s)
    own += [_together(run) for run in short.values()]
    across = []
    start = 0
    for (prompt, responses), alike in itertools.groupby((p, sum(rs)) for p, rs in groups):
        count = len(list(alike))
        if responses:
            across.append(Across(start=start, groups=count, prompt=prompt, responses=responses))
        start += count * (prompt + responses)
    return Plan(own=tuple(own), across=tuple(across))


def _together(found: Sequence[Segment]) -> Run:
    if len(found) == 1:
        return Run(rows=1, length=found[0].length, start=found[0].start)
    longest = max(s.length for s in found)
    starts, lengths = (torch.tensor([getattr(s, name) for s in found])[:, None] for name in ("start", "length"))
    place = torch.arange(longest)[None]
    index = (starts + place.minimum(lengths - 1)).flatten()
    if all(s.length == longest for s in found):
        return Run(rows=len(found), length=longest, index=index)
    is_real = (place < lengths).flatten()
    return Run(
        rows=len(found), length=longest, index=index, real=is_real.nonzero()[:, 0], padding=(~is_real).nonzero()[:, 0]
    )


def computed_scores(plan: Plan) -> int:
    """Entries that the kernels compute, per head: a causal call goes by blocks of queries, and leaves out the keys
    after each block."""
    total = sum(a.groups * a.prompt * a.responses for a in plan.across)
    for run in plan.own:
        block = 256 if run.length >= 768 else 64 if run.length >= 192 else 32
        starts = range(0, run.length, block)
        total += run.rows * sum(min(block, run.length - i) * min(run.length, i + block) for i in starts)
    return total


def _rows(x: Tensor) -> Tensor:
    """[1, heads, T, d] -> [T, heads, d]; the kernels want the values of a head side by side."""
    return (x if x.stride(-1) == 1 else x.contiguous())[0].transpose(0, 1)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None) -> Tensor:
        q, k, v = _rows(query), _rows(key), _rows(value)
        out = q.new_empty(q.shape)
        lse = torch.empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        for run in plan.own:
            o, sums = _forward(run.take(q), run.take(k), run.take(v), 0.0, True, scale=scale)
            run.put(o, out)
            run.put(sums, lse)
        for part in plan.across:
            keys, values = (part.of_prompts(x).transpose(1, 2) for x in (k, v))
            o, sums = _forward(part.of_responses(q).transpose(1, 2), keys, values, 0.0, False, scale=scale)
            o, sums = o.transpose(1, 2).to(lse.dtype), sums.transpose(1, 2)
            own, own_lse = part.of_responses(out), part.of_responses(lse)
            own.copy_(torch.lerp(own.to(lse.dtype), o, torch.sigmoid(sums - own_lse)[..., None]))
            own_lse.copy_(torch.logaddexp(own_lse, sums))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out[None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        q, k, v = _rows(query), _rows(key), _rows(value)
        g = grads[0][0].contiguous()
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        for run in plan.own:
            slope = run.take(g)
            if run.padding is not None:  # what comes after a segment has no gradient
                slope = slope.transpose(1, 2).flatten(0, 1).index_fill_(0, run.padding, 0.0)
                slope = slope.unflatten(0, (run.rows, run.length)).transpose(1, 2)
            parts = _backward(
                slope, run.take(q), run.take(k), run.take(v), run.take(out), run.take(lse), 0.0, True, scale=scale
            )
            for part, row in zip(parts, (dq, dk, dv), strict=True):
                run.put(part, row)
        for part in plan.across:
            slope, o, sums, asked = (part.of_responses(x).transpose(1, 2) for x in (g, out, lse, q))
            keys, values = (part.of_prompts(x).transpose(1, 2) for x in (k, v))
            gq, gk, gv = _backward(slope, asked, keys, values, o, sums, 0.0, False, scale=scale)
            part.of_responses(dq).add_(gq.transpose(1, 2))
            part.of_prompts(dk).add_(gk.transpose(1, 2))
            part.of_prompts(dv).add_(gv.transpose(1, 2))
        return *(x.transpose(0, 1)[None] for x in (dq, dk, dv)), None, None


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float | None) -> Tensor:
    """query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d]."""
    return _Merged.apply(query, key, value, plan, scale)  # type: ignore[no-any-return]
