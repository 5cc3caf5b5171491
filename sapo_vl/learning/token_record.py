"""What the updates of a step saw of every token, kept for the responses that are written to rollouts/.

All of it comes from the passes that the updates make anyway. A response takes part in one update of a step, so its
numbers are those of that update: pi_theta is the policy right before it, which has seen the updates before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from sapo_vl.losses.base import bounded_ratio
from sapo_vl.model.batching import MicroBatch
from sapo_vl.record.tokens import DTYPES, HALF_MAX, LEFT_OUT, Tokens, choose
from sapo_vl.types import Rollout, RolloutGroup

_HALVES = tuple(name for name, dtype in DTYPES.items() if dtype == "float16")


@dataclass(frozen=True, slots=True)
class _Seen:
    """One response. It holds the rollout, so that no other object gets its id."""

    rollout: Rollout | None
    update: int
    ratio: np.ndarray  # [R] float32
    halves: np.ndarray  # [len(_HALVES), R] float16
    mask: np.ndarray  # [R] uint8


_LEFT_OUT = _Seen(
    None, LEFT_OUT, np.empty(0, np.float32), np.empty((len(_HALVES), 0), np.float16), np.empty(0, np.uint8)
)


class TokenRecord:
    """Of ONE step on one rank. The updates add their micro-batches; `tokens` puts them into the order of the lines."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}  # by id of the rollout, which goes through packing as the same object

    def add(
        self,
        mb: MicroBatch,
        *,
        update: int,
        logprobs: Tensor,
        gate: Tensor,
        entropy: Tensor,
        trainer: Tensor | None,
        counts: Tensor,
    ) -> None:
        """One micro-batch of update number `update`, from 1; all [N], response after response.

        logprobs: log pi_theta; gate: f'(r) of the loss; trainer: log-probs under the weights before the first update
        (None = not known, the engine's gap neither); counts: bool, False for a token that a correction has dropped.
        """
        old = mb.old(logprobs)
        gap = torch.full_like(logprobs, torch.nan) if trainer is None else mb.rollout_logprobs - trainer
        gap = torch.where(torch.isfinite(gap), gap, torch.nan)
        columns = {"gate": gate, "logp_old": old, "logp_new": logprobs, "entropy": entropy, "gap": gap}
        stacked = torch.stack([columns[name].detach().float() for name in _HALVES])
        halves = stacked.clamp(-HALF_MAX, HALF_MAX).half().cpu().numpy()
        ratio = bounded_ratio(logprobs.float() - old.float()).cpu().numpy()
        mask = counts.cpu().numpy().astype(np.uint8)
        ends = np.cumsum(mb.lengths.cpu().numpy())
        for rollout, end in zip((r for g in mb.groups for r in g.rollouts), ends, strict=True):
            part = slice(end - len(rollout.response_ids), end)
            self._seen[id(rollout)] = _Seen(rollout, update, ratio[part], halves[:, part], mask[part])

    def packed(self, responses: Sequence[tuple[int, int, Rollout]]) -> bytes:
        """What was seen of rollouts that are (group, response) of another rank, for `unpack` there."""
        seen = [(group, place, self._seen[id(r)]) for group, place, r in responses if id(r) in self._seen]
        if not seen:
            return b""
        columns = {
            "at": np.array([(g, place, s.update, len(s.ratio)) for g, place, s in seen], np.int64),
            "ratio": np.concatenate([s.ratio for _, _, s in seen]),
            "halves": np.concatenate([s.halves for _, _, s in seen], axis=1),
            "mask": np.concatenate([s.mask for _, _, s in seen]),
        }
        return save(columns)

    def unpack(self, parcel: bytes, groups: Sequence[RolloutGroup]) -> None:
        """Takes up what another rank saw of responses of `groups`."""
        columns, end = load(parcel), 0
        for group, place, update, length in columns["at"].tolist():
            part = slice(end, end + length)
            end += length
            rollout = groups[group].rollouts[place]
            seen = (columns["ratio"][part], columns["halves"][:, part], columns["mask"][part])
            self._seen[id(rollout)] = _Seen(rollout, update, *seen)

    def tokens(self, groups: Sequence[RolloutGroup], old_is_recorded: bool, limit: int) -> Tokens:
        """The responses of `groups` in order, with the tokens of those that `choose` finds room for in `limit` bytes.

        Of one that no update took in (no advantage, or no gradient), all is NaN and masked; with `old_is_recorded`,
        where pi_old is the law that the engine recorded, its logp_old is known all the same.
        """
        rollouts = [r for g in groups for r in g.rollouts]
        taught = [any(id(r) in self._seen for r in g.rollouts) for g in groups]
        kept = choose([[len(r.response_ids) for r in g.rollouts] for g in groups], taught, limit)
        seen = [
            (self._seen.get(id(r)) or _unseen(r, old_is_recorded)) if has_room else _LEFT_OUT
            for r, has_room in zip(rollouts, (k for of_group in kept for k in of_group), strict=True)
        ]
        ids = [r.response_ids[: len(s.mask)] for r, s in zip(rollouts, seen, strict=True)]
        halves = np.concatenate([np.empty((len(_HALVES), 0), np.float16), *(s.halves for s in seen)], axis=1)
        return Tokens(
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int32),
            update=np.array([s.update for s in seen], np.int32),
            token_ids=np.concatenate([np.empty(0, np.int32), *ids]).astype(np.int32),
            ratio=np.concatenate([np.empty(0, np.float32), *(s.ratio for s in seen)]),
            mask=np.concatenate([np.empty(0, np.uint8), *(s.mask for s in seen)]),
            **dict(zip(_HALVES, halves, strict=True)),
        )


def _unseen(rollout: Rollout, old_is_recorded: bool) -> _Seen:
    size = len(rollout.response_ids)
    halves = np.full((len(_HALVES), size), np.nan, np.float16)
    if old_is_recorded:
        halves[_HALVES.index("logp_old")] = np.clip(rollout.logprobs, -HALF_MAX, HALF_MAX)
    return _Seen(rollout, 0, np.full(size, np.nan, np.float32), halves, np.zeros(size, np.uint8))
