"""Groups go to the ranks that train them, and what the updates saw of their tokens goes back.

A group travels as ids, positions, numbers and routes with its resized pictures; the rank that gets it cuts them into
patches itself, which are eight times as many bytes. What is logged of a step stays with the rank that sampled it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from sapo_vl.distributed import World
from sapo_vl.learning.dealing import Deal, Piece, Sized, deal
from sapo_vl.learning.token_record import TokenRecord
from sapo_vl.losses import Denominators
from sapo_vl.model.batching import is_still, num_patches, split_mini_batches, trainable
from sapo_vl.model.chat import Chat
from sapo_vl.model.work import Work
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup, ScoreStatus

ABOUT = "about"
# Of a problem, what logs name it by. Its pictures are those of the prompt, as they were resized.
PROBLEM = ("id", "task", "messages", "answer", "reward")
PROMPT_ARRAYS = ("ids", "compact_ids", "positions")
ROLLOUT_ARRAYS = ("response_ids", "logprobs", "routes")
ROLLOUT_VALUES = tuple(f.name for f in dataclasses.fields(Rollout) if f.name not in ROLLOUT_ARRAYS)


@dataclass(frozen=True, slots=True)
class Visitor:
    """A response that another rank sampled."""

    home: int
    index: int  # its group's place among those of that rank
    response: int  # its place in the group
    rollout: Rollout  # the copy here


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """The groups of a step as this rank trains them."""

    updates: tuple[tuple[tuple[RolloutGroup, ...], ...], ...]  # of each update, the groups of each micro-batch
    still: tuple[Denominators, ...]  # of each update, what all ranks have that counts but is not trained: no gradient
    visitors: tuple[Visitor, ...]
    values: dict[str, float]  # to log, the same on all ranks


def deal_out(
    groups: Sequence[RolloutGroup],
    updates: int,
    budget: int,
    work: Work,
    chat: Chat,
    world: World,
    *,
    penalised: bool = False,
) -> Dealt:
    """Deals what the groups of all ranks have to learn from; all ranks call it together, each with its own.

    An update has the groups that `split_mini_batches` gives it on each rank, whoever trains them.
    penalised: a response has a gradient without an advantage, too (loss.kl_coef), so that a group of zeros is trained.

    Values: deal/efficiency, the share of the time of the updates in which a rank works, by the work of the groups
    and without what else a rank does; deal/moved, groups that another rank trains, in whole or in part; deal/split,
    groups in parts; deal/rounds, micro-batches of a rank in all updates; deal/over_budget, those that are larger
    than the budget, which only a single response can be.
    """
    parts = split_mini_batches(list(enumerate(groups)), updates)
    everyone = world.gather([(_sized(part, world.rank, penalised), _still(part, penalised)) for part in parts])
    deals = [deal([s for rank in everyone for s in rank[u][0]], world.size, budget, work) for u in range(updates)]
    still = tuple(sum((rank[u][1] for rank in everyone), Denominators(0, 0)) for u in range(updates))
    held = {(world.rank, i): dict(enumerate(group.rollouts)) for i, group in enumerate(groups)}
    whole = {(world.rank, i): group for i, group in enumerate(groups)}
    visitors = []
    for home, parcel in enumerate(world.exchange(_parcels(groups, deals, world))):
        for index, responses, group in _unpacked(parcel, chat):
            whole[home, index] = group
            held[home, index] = dict(zip(responses, group.rollouts, strict=True))
            visitors += [Visitor(home, index, j, r) for j, r in held[home, index].items()]

    def group_of(piece: Piece) -> RolloutGroup:
        at = piece.home, piece.index
        return dataclasses.replace(whole[at], rollouts=tuple(held[at][j] for j in piece.responses))

    rows = [[tuple(map(group_of, row)) for row in d.rows[world.rank]] for d in deals]
    return Dealt(updates=tuple(map(tuple, rows)), still=still, visitors=tuple(visitors), values=_values(deals, budget))


def bring_home(record: TokenRecord, dealt: Dealt, groups: Sequence[RolloutGroup], world: World) -> None:
    """What the updates saw of visiting responses goes into the record of the rank that sampled them.

    `groups`: those that `deal_out` was given. All ranks call it together.
    """
    parcels = []
    for rank in range(world.size):
        away = [v for v in dealt.visitors if v.home == rank]
        parcels.append(record.packed([(v.index, v.response, v.rollout) for v in away]) if away else b"")
    for parcel in world.exchange(parcels):
        if parcel:
            record.unpack(parcel, groups)


def _still(part: Sequence[tuple[int, RolloutGroup]], penalised: bool) -> Denominators:
    """Counts of what takes part in an update by its number alone."""
    kept = [k for _, group in part if (k := trainable(group)) is not None and is_still(k) and not penalised]
    lengths = [len(r.response_ids) for group in kept for r in group.rollouts]
    return Denominators(num_sequences=len(lengths), num_tokens=sum(lengths))


def _sized(part: Sequence[tuple[int, RolloutGroup]], rank: int, penalised: bool) -> list[Sized]:
    found = []
    for index, group in part:
        kept = trainable(group)
        if kept is None or (is_still(kept) and not penalised):
            continue
        places = {id(r): j for j, r in enumerate(group.rollouts)}
        grid = group.prompt.image_grid_thw
        patches = () if grid is None or num_patches(group.prompt) == 0 else tuple(grid.prod(dim=1).tolist())
        found.append(
            Sized(
                home=rank,
                index=index,
                prompt=len(group.prompt.ids),
                patches=patches,
                responses=tuple(places[id(r)] for r in kept.rollouts),
                lengths=tuple(len(r.response_ids) for r in kept.rollouts),
            )
        )
    return found


def _values(deals: Sequence[Deal], budget: int) -> dict[str, float]:
    pieces = [(rank, piece) for d in deals for rank, rows in enumerate(d.rows) for row in rows for piece in row]
    parts = Counter((piece.home, piece.index) for _, piece in pieces)
    taken = sum(d.taken for d in deals)
    values: dict[str, float] = {
        "moved": len({(p.home, p.index) for rank, p in pieces if rank != p.home}),
        "split": sum(n > 1 for n in parts.values()),
        "rounds": sum(d.rounds for d in deals),
        "over_budget": sum(p.size > budget for _, p in pieces),
    }
    if taken:
        values["efficiency"] = sum(d.needed for d in deals) / taken
    return {f"deal/{name}": float(value) for name, value in values.items()}


def _parcels(groups: Sequence[RolloutGroup], deals: Sequence[Deal], world: World) -> list[bytes]:
    """For each rank what it trains of this rank's groups; nothing for this one."""
    wanted: list[dict[int, set[int]]] = [{} for _ in range(world.size)]
    for d in deals:
        for rank, rows in enumerate(d.rows):
            for piece in (piece for row in rows for piece in row):
                if piece.home == world.rank and rank != world.rank:
                    wanted[rank].setdefault(piece.index, set()).update(piece.responses)
    return [_packed(groups, {i: sorted(w) for i, w in sorted(of.items())}) if of else b"" for of in wanted]


def _packed(groups: Sequence[RolloutGroup], wanted: Mapping[int, Sequence[int]]) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    about = []
    for index, responses in wanted.items():
        group, prompt = groups[index], groups[index].prompt
        if prompt.pixel_values is not None and not prompt.images:
            raise ValueError(f"problem {prompt.problem.id!r}: its prompt has patches without the pictures they are of")
        arrays |= {f"{index}.{name}": getattr(prompt, name) for name in PROMPT_ARRAYS}
        arrays |= {f"{index}.image.{i}": np.asarray(image.convert("RGB")) for i, image in enumerate(prompt.images)}
        if group.prompt_routes is not None:
            arrays[f"{index}.prompt_routes"] = group.prompt_routes
        for j in responses:
            for name in ROLLOUT_ARRAYS:
                if (value := getattr(group.rollouts[j], name)) is not None:
                    arrays[f"{index}.{j}.{name}"] = value
        about.append(
            {
                "index": index,
                "responses": list(responses),
                "images": len(prompt.images),
                "problem": {name: getattr(prompt.problem, name) for name in PROBLEM},
                "rollouts": [{name: getattr(group.rollouts[j], name) for name in ROLLOUT_VALUES} for j in responses],
            }
        )
    solid = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    return save(solid, {ABOUT: json.dumps(about, default=_plain)})


def _plain(value: Any) -> Any:
    """For JSON: a mapping of any kind, or a number of numpy's."""
    return dict(value) if isinstance(value, Mapping) else value.item()


def _unpacked(parcel: bytes, chat: Chat) -> list[tuple[int, list[int], RolloutGroup]]:
    """(index, places of the responses, the group with those) of each."""
    if not parcel:
        return []
    length = int.from_bytes(parcel[:8], "little")
    about = json.loads(json.loads(parcel[8 : 8 + length])["__metadata__"][ABOUT])
    arrays = load(parcel)
    return [(a["index"], a["responses"], _group(a, arrays, chat)) for a in about]


def _group(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], chat: Chat) -> RolloutGroup:
    index = about["index"]
    images = tuple(Image.fromarray(arrays[f"{index}.image.{i}"]) for i in range(about["images"]))
    pixel_values, grid = chat.pixels(images) if images else (None, None)
    problem = Problem(**about["problem"] | {"messages": tuple(about["problem"]["messages"]), "images": images})
    prompt = Prompt(
        problem=problem,
        pixel_values=pixel_values,
        image_grid_thw=grid,
        images=images,
        **{name: arrays[f"{index}.{name}"] for name in PROMPT_ARRAYS},
    )
    rollouts = []
    for j, values in zip(about["responses"], about["rollouts"], strict=True):
        status = values["score_status"]
        values |= {
            "finish": Finish(values["finish"]),
            "score_status": None if status is None else ScoreStatus(status),
            **{name: arrays.get(f"{index}.{j}.{name}") for name in ROLLOUT_ARRAYS},
        }
        rollouts.append(Rollout(**values))
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts), prompt_routes=arrays.get(f"{index}.prompt_routes"))
