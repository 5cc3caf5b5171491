"""DAPO's dynamic sampling (arXiv 2503.14476, Sec. 3.2): groups that teach nothing give way to further ones.

A group whose rewards are all equal has advantage 0, so a batch with many of them is a small batch. Here such a group's
place is taken by a group of another prompt of the same task, for so many rounds; a batch keeps its size and its quotas,
and what could not be replaced stays. Where the reward is the answer's alone, a group is kept as in Eq. 11 of the paper,
which asks for a right and a wrong answer; a penalty that differs within a group gives it a gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.types import Prompt, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """What became of a batch."""

    groups: list[RolloutGroup]  # the batch in its order, dead groups replaced where a live one was found
    further: list[RolloutGroup]  # all groups of this rank that were sampled and scored for it, live or not
    values: dict[str, float]  # to log, the same on all ranks


def resample(
    groups: Sequence[RolloutGroup],
    rounds: int,
    config: AdvantageConfig,
    world: World,
    *,
    draw: Callable[[Sequence[str]], list[Prompt]],
    sample: Callable[[Sequence[Prompt], int], list[RolloutGroup]],
    score: Callable[[Sequence[RolloutGroup]], list[RolloutGroup]],
) -> Resampled:
    """Replaces the dead ones of scored groups, in at most `rounds` rounds; with 0 nothing is asked and nothing changes.

    All ranks call it together, and do the same rounds. A rank whose batch has fewer dead groups than that of another
    samples a prompt it has already, as often as is missing, and throws that away. So which prompts are drawn, and what
    is sampled for them, does not depend on the number of ranks.

    Args:
        config: decides what is dead, as for the update: equal rewards, or fewer than 2 scored responses.
        draw: tasks -> this rank's next prompts of them, in order; all ranks together.
        sample: (prompts, round from 1) -> their groups. Another round's responses to a prompt are other ones.
        score: the groups with their rewards; all ranks together.
    """
    batch, further, done = list(groups), list[RolloutGroup](), 0
    if not rounds:
        return Resampled(groups=batch, further=further, values={})
    places = before = [i for i, group in enumerate(batch) if is_dead(group, config)]
    while done < rounds and (most := int(world.max(len(places)))):
        done += 1
        prompts = draw([batch[i].prompt.problem.task for i in places])
        spare = [batch[0].prompt] * (most - len(places))
        found = score(sample([*prompts, *spare], done)[: len(places)])
        further += found
        for i, group in zip(places, found, strict=True):
            if not is_dead(group, config):
                batch[i] = group
        places = [i for i in places if is_dead(batch[i], config)]
    sampled, kept = _tokens([*groups, *further]), _tokens(batch)
    counts = [len(batch), len(before), len(places), len(further), sampled, kept]
    total, dead, left, drawn, sampled, kept = world.sum(counts)
    values = {"rounds": done, "prompts": drawn, "dead_share/before": dead / total, "dead_share/after": left / total}
    values["thrown_away_share"] = 1 - kept / sampled if sampled else 0.0
    return Resampled(groups=batch, further=further, values={f"resample/{name}": float(v) for name, v in values.items()})


def _tokens(groups: Sequence[RolloutGroup]) -> int:
    return sum(len(r.response_ids) for group in groups for r in group.rollouts)


def is_dead(group: RolloutGroup, config: AdvantageConfig) -> bool:
    """Whether the group gives no gradient."""
    return assign_advantages([group], config)[1].num_dead > 0
