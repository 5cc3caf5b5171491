"""Groups become micro-batches. A group is split only where its row is over the budget: then the prompt comes again.

Two layouts of the same data: the shared-prefix one (a flat row, prompt and image once per group) is what
trains; the padded one (every response with its own copy of the prompt) is the plain reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sapo_vl.model.chat import Chat
from sapo_vl.model.prefix_attention import PrefixLayout, build_layout
from sapo_vl.strict import Strict
from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup

T = TypeVar("T")


class BatchConfig(Strict):
    """How a rollout batch becomes updates."""

    mini_batches: int = Field(default=2, ge=1)  # updates per rollout batch; old log-probs are from before the first
    # Budget of flat tokens and vision patches, per rank. A group that is larger is split; only a single response with
    # its prompt may be over it.
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    shared_prefix: bool = True  # False: the padded reference layout


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes. B responses with N tokens in all; [N] runs response after response."""

    ids: Tensor  # [1, T] int64 flat, or [B, L] padded
    positions: Tensor  # [3, 1, T] or [3, B, L] int64
    layout: PrefixLayout | None  # of the flat row; None for the padded layout
    attention_mask: Tensor | None  # [B, L] bool for the padded layout; None for the flat row
    pixel_values: Tensor  # [K, patch_dim]; a blank image where has_images is False
    image_grid_thw: Tensor  # [I, 3] int64
    has_images: bool
    predictor_index: Tensor  # [N] int64 into ids flattened: the token whose hidden state predicts the target
    targets: Tensor  # [N] int64 response tokens
    lengths: Tensor  # [B] int64 tokens of each response; they sum to N
    rollout_logprobs: Tensor  # [N] float32, as the engine recorded them: log pi_rollout, the law that was sampled from
    # [N] float32, log pi_old of the loss: the recorded ones, or the trainer's own. None = those of the update's own
    # forward pass, since no weight has changed.
    old_logprobs: Tensor | None
    advantages: Tensor  # [B] float32
    groups: tuple[RolloutGroup, ...]  # what was packed, for naming offenders and for diagnostics
    # [T, L, k] flat, or [B * row length, L, k] padded: the experts that the old policy went through, by the engine's
    # record or by the trainer's own old log-prob pass. None = not known.
    old_routes: Tensor | None = None
    replay: bool = False  # whether forward passes must go through old_routes (R2, R3)
    reference_logprobs: Tensor | None = None  # [N] float32 of the frozen reference, where there is a KL penalty

    def to(self, device: torch.device | str) -> MicroBatch:
        moved = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor | PrefixLayout):
                moved[f.name] = value.to(device)
        return dataclasses.replace(self, **moved)

    def old(self, logprobs: Tensor) -> Tensor:
        """[N] log pi_old, without gradient; `logprobs` [N] is what the update's forward pass gave."""
        return logprobs.detach() if self.old_logprobs is None else self.old_logprobs

    def padded(self, flat: Tensor, fill: float = 0.0) -> Tensor:
        """[N] -> [B, Rmax], response by response."""
        out = flat.new_full((len(self.lengths), int(self.lengths.max())), fill)
        return out.masked_scatter(self.mask(), flat)

    def mask(self) -> Tensor:
        """[B, Rmax] bool, True = a token of the response."""
        span = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        return span[None] < self.lengths[:, None]

    def with_image(self) -> Tensor:
        """[B] bool, True = a response to a prompt with an image."""
        return torch.tensor([g.prompt.pixel_values is not None for g in self.groups for _ in g.rollouts])


def trainable(group: RolloutGroup) -> RolloutGroup | None:
    """The group without the responses that take no part in the update; None if none is left."""
    kept = tuple(r for r in group.rollouts if r.advantage is not None and len(r.response_ids) > 0)
    return dataclasses.replace(group, rollouts=kept) if kept else None


def is_still(group: RolloutGroup) -> bool:
    """Whether no response of it has an advantage other than 0, so that a policy loss has no gradient there."""
    return not any(r.advantage for r in group.rollouts)


def filler(prompt: Prompt, end_id: int) -> RolloutGroup:
    """The prompt and a response that ends at once: something to run while another rank has more to do."""
    nothing = Rollout(
        response_ids=np.array([end_id]), logprobs=np.zeros(1, np.float32), finish=Finish.STOP, weight_version=0
    )
    return RolloutGroup(prompt=prompt, rollouts=(nothing,))


def num_patches(prompt: Prompt) -> int:
    """Vision patches of its images."""
    return 0 if prompt.pixel_values is None else prompt.pixel_values.shape[0]


def group_cost(group: RolloutGroup) -> int:
    """Size of a group against the budget: its flat tokens plus the vision patches of its images."""
    return group.num_tokens + num_patches(group.prompt)


def split_lengths(lengths: Sequence[int], room: int, least: int = 1) -> list[list[int]]:
    """Responses of these lengths in few parts, but at least `least`, of at most `room` tokens each; by place.

    A response that is longer than `room` is a part of its own. The parts are filled evenly, longest responses first.
    """
    fitting = [length for length in lengths if length <= room]
    count = len(lengths) - len(fitting) + -(-sum(fitting) // max(1, room))
    count = min(len(lengths), max(least, count))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal ones in their order
    while True:
        parts: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in order:
            part = filled.index(min(filled))
            parts[part].append(i)
            filled[part] += lengths[i]
        if count == len(lengths) or all(f <= room or len(p) == 1 for f, p in zip(filled, parts, strict=True)):
            return sorted(sorted(part) for part in parts)
        count += 1


def split_group(group: RolloutGroup, budget: int) -> list[RolloutGroup]:
    """The group in few parts that are within the budget, each with the prompt and some of the responses.

    What an update computes is the same, since losses are sums over responses with denominators of the whole batch.
    """
    if group_cost(group) <= budget:
        return [group]
    room = budget - len(group.prompt.ids) - num_patches(group.prompt)
    parts = split_lengths([len(r.response_ids) for r in group.rollouts], room)
    return [dataclasses.replace(group, rollouts=tuple(group.rollouts[i] for i in part)) for part in parts]


def split_by_budget(groups: Sequence[RolloutGroup], budget: int) -> list[list[RolloutGroup]]:
    """Packs groups in order into micro-batches of at most `budget` tokens, larger ones in parts.

    A single response that is over the budget with its prompt goes alone.
    """
    batches: list[list[RolloutGroup]] = []
    room = 0
    for part in (part for group in groups for part in split_group(group, budget)):
        cost = group_cost(part)
        if not batches or cost > room:
            batches.append([])
            room = budget
        batches[-1].append(part)
        room -= cost
    return batches


def split_mini_batches(groups: Sequence[T], count: int) -> list[list[T]]:
    """Deals groups round-robin into `count` mini-batches, so that each holds its share of every task.

    That share is the sampler's doing, which lays a batch out for this dealing (QuotaSampler's `parts`). Lists may
    differ in size by one.
    """
    return [list(groups[i::count]) for i in range(count)]


def _images(prompts: Sequence[Prompt], blank: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, bool]:
    pixels = [p.pixel_values for p in prompts if p.pixel_values is not None]
    grids = [p.image_grid_thw for p in prompts if p.image_grid_thw is not None]
    if not pixels:
        return *blank, False
    return torch.cat(pixels), torch.cat(grids), True


def _common(rollouts: Sequence[Rollout], groups: Sequence[RolloutGroup]) -> dict:
    recorded = torch.from_numpy(np.concatenate([r.logprobs for r in rollouts]).astype(np.float32))
    return {
        "targets": torch.from_numpy(np.concatenate([r.response_ids for r in rollouts])),
        "lengths": torch.tensor([len(r.response_ids) for r in rollouts]),
        "rollout_logprobs": recorded,
        "old_logprobs": recorded,  # until the trainer takes its own, with rollout.old_logprobs=trainer
        "advantages": torch.tensor([r.advantage or 0.0 for r in rollouts], dtype=torch.float32),
        "groups": tuple(groups),
    }


def _row_routes(group: RolloutGroup, rollout: Rollout) -> np.ndarray | None:
    """[R, L, k] of a response. Its last token is never fed while sampling and has no route: it predicts nothing and no
    other token attends to it, so the row before it stands in without touching a log-prob."""
    if group.prompt_routes is None or rollout.routes is None:
        return None
    before = rollout.routes if len(rollout.routes) else group.prompt_routes
    return np.concatenate([rollout.routes, before[-1:]])


def _flat_routes(groups: Sequence[RolloutGroup]) -> Tensor | None:
    """[T, L, k] of the flat row; None unless every prompt and response has its routes."""
    pieces: list[np.ndarray | None] = []
    for group in groups:
        pieces += [group.prompt_routes, *(_row_routes(group, r) for r in group.rollouts)]
    known = [piece for piece in pieces if piece is not None]
    return torch.from_numpy(np.concatenate(known)) if len(known) == len(pieces) else None


def _padded_routes(groups: Sequence[RolloutGroup], longest: int) -> Tensor | None:
    """[B * longest, L, k]: the prompt's routes for each response. Padding, which nothing reads, goes where the first
    token goes."""
    rows: list[np.ndarray] = []
    for group in groups:
        for rollout in group.rollouts:
            own = _row_routes(group, rollout)
            if own is None or group.prompt_routes is None:
                return None
            row = np.concatenate([group.prompt_routes, own])
            rows += [row, np.repeat(row[:1], longest - len(row), axis=0)]
    return torch.from_numpy(np.concatenate(rows))


def pack(groups: Sequence[RolloutGroup], blank: tuple[Tensor, Tensor]) -> MicroBatch:
    """The flat row: per group its prompt, then its responses; images once per group.

    A response continues at 1 + the largest position of its prompt on all three axes, every response anew.
    The last prompt token predicts the first token of all G responses. `blank` stands in where there is no image.
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictors: list[np.ndarray] = []
    start = 0
    for group in groups:
        prompt = group.prompt
        lengths = np.array([len(r.response_ids) for r in group.rollouts])
        firsts = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum())  # in the group's responses, one behind the other
        ids += [prompt.ids, *(r.response_ids for r in group.rollouts)]
        within = places - np.repeat(firsts, lengths)
        positions += [prompt.positions, np.broadcast_to(prompt.next_position + within, (3, len(within)))]
        last = start + len(prompt.ids) - 1
        predicted_by = last + places
        predicted_by[firsts] = last
        predictors.append(predicted_by)
        start = last + 1 + len(places)
    pixel_values, grid, has_images = _images([g.prompt for g in groups], blank)
    return MicroBatch(
        ids=torch.from_numpy(np.concatenate(ids))[None],
        positions=torch.from_numpy(np.concatenate(positions, axis=1))[:, None],
        layout=build_layout([(len(g.prompt.ids), [len(r.response_ids) for r in g.rollouts]) for g in groups]),
        attention_mask=None,
        pixel_values=pixel_values,
        image_grid_thw=grid,
        has_images=has_images,
        predictor_index=torch.from_numpy(np.concatenate(predictors)),
        old_routes=_flat_routes(groups),
        **_common([r for g in groups for r in g.rollouts], groups),
    )


def pad(groups: Sequence[RolloutGroup], blank: tuple[Tensor, Tensor], pad_id: int) -> MicroBatch:
    """The reference layout: one right-padded row per response, prompt and images repeated for each."""
    rows = [(g.prompt, r) for g in groups for r in g.rollouts]
    longest = max(len(p.ids) + len(r.response_ids) for p, r in rows)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    positions = np.zeros((3, len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), bool)
    predictors = []
    for i, (prompt, r) in enumerate(rows):
        p, n = len(prompt.ids), len(r.response_ids)
        ids[i, : p + n] = np.concatenate([prompt.ids, r.response_ids])
        positions[:, i, :p] = prompt.positions
        positions[:, i, p : p + n] = prompt.next_position + np.arange(n)
        mask[i, : p + n] = True
        predictors.append(i * longest + p - 1 + np.arange(n))
    pixel_values, grid, has_images = _images([p for p, _ in rows], blank)
    return MicroBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        layout=None,
        attention_mask=torch.from_numpy(mask),
        pixel_values=pixel_values,
        image_grid_thw=grid,
        has_images=has_images,
        predictor_index=torch.from_numpy(np.concatenate(predictors)),
        old_routes=_padded_routes(groups, longest),
        **_common([r for _, r in rows], groups),
    )


@dataclass(frozen=True, slots=True)
class MicroBatches(Sequence[MicroBatch]):
    """Micro-batches that are packed whenever one is asked for: the host holds ids, masks and patches of one at a time,
    not those of a step."""

    rows: tuple[tuple[RolloutGroup, ...], ...]  # the groups of each
    pack: Callable[[Sequence[RolloutGroup]], MicroBatch]
    changes: tuple[Mapping[str, Any], ...]  # fields of each that are not what packing gives

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | list[MicroBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return dataclasses.replace(self.pack(self.rows[index]), **self.changes[index])

    def changed(self, changes: Sequence[Mapping[str, Any]]) -> MicroBatches:
        """With further fields of each micro-batch set."""
        both = zip(self.changes, changes, strict=True)
        return dataclasses.replace(self, changes=tuple({**old, **new} for old, new in both))


def groups_in(micro_batches: Sequence[MicroBatch]) -> Iterator[RolloutGroup]:
    """The groups, or parts of groups, in the order of their responses; nothing is packed for it."""
    if isinstance(micro_batches, MicroBatches):
        yield from (group for row in micro_batches.rows for group in row)
    else:
        yield from (group for mb in micro_batches for group in mb.groups)


def make_micro_batches(rows: Sequence[Sequence[RolloutGroup]], chat: Chat, shared_prefix: bool = True) -> MicroBatches:
    """One of each row of groups."""
    blank = chat.blank_pixels()

    def packed(groups: Sequence[RolloutGroup]) -> MicroBatch:
        return pack(groups, blank) if shared_prefix else pad(groups, blank, chat.pad_id)

    return MicroBatches(tuple(map(tuple, rows)), packed, ({},) * len(rows))
