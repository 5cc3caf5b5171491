"""Parts of the reward that are the same for every response: they teach nothing, and often something is set up wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sapo_vl.distributed import World
from sapo_vl.scoring.trial import PENALTIES
from sapo_vl.types import RolloutGroup

STEPS = 20  # in a row with one value, over all ranks, until a part is told
REWARD = "reward"  # the weighted sum, among the names of its terms

# What to look at: by part and value, else by part.
_HINTS: dict[tuple[str, float | None], str] = {
    ("format", 0.0): (
        "no response reads <think>...</think> <answer>...</answer>: does the question ask for these tags, or does the "
        "chat template open <think> (the start of the run says so)?"
    ),
    ("accuracy", 0.0): (
        "no answer is right: look at a few in rollouts/ (score_detail says why), at how many are cut off "
        "(length/truncated_share), at the form in which the question asks for the answer, and at the golds"
    ),
    ("accuracy", 1.0): "every answer is right: there is nothing left to learn from these problems",
    (REWARD, None): "no group has an advantage, so nothing is learned",
}
_ANY = "it moves no advantage: correct it, or take it out of rewards.combine"

Extremes = Mapping[str, tuple[float, float]]  # "reward" or a term -> its smallest and largest value


@dataclass(frozen=True, slots=True)
class Constant:
    """A part that had one value for all scored responses of so many steps."""

    part: str
    value: float
    steps: int

    def __str__(self) -> str:
        hint = _HINTS.get((self.part, self.value)) or _HINTS.get((self.part, None)) or _ANY
        name = "the reward" if self.part == REWARD else f"the reward's part {self.part!r}"
        return f"{name} was {self.value:g} for every scored response of the last {self.steps} steps: {hint}"


class ConstantWatch:
    """Tells a part once it has been constant for STEPS steps, and again only after it has changed.

    A step in which a part was not scored counts neither for nor against it. Penalties at 0 are as they should be.
    """

    def __init__(self, steps: int = STEPS) -> None:
        self._steps = steps
        self._runs: dict[str, tuple[float, int]] = {}  # part -> its value, steps in a row with it

    def add(self, extremes: Extremes) -> list[Constant]:
        """Takes in a step, those of all ranks; the parts to tell now, by name."""
        found = []
        for part, (low, high) in sorted(extremes.items()):
            value, count = self._runs.get(part, (low, 0))
            count = 0 if low != high else count + 1 if value == low else 1
            self._runs[part] = low, count
            if count == self._steps and not (part in PENALTIES and low == 0):
                found.append(Constant(part, low, count))
        return found


def extremes(groups: Sequence[RolloutGroup], world: World) -> Extremes:
    """Of the reward and its terms over the scored responses of all ranks. All ranks call it together.

    What a term is made of ("accuracy/legal") is left out.
    """
    mine: dict[str, tuple[float, float]] = {}
    for rollout in (r for group in groups for r in group.rollouts):
        if rollout.reward is None:
            continue
        terms = {name: value for name, value in rollout.parts.items() if "/" not in name}
        for name, value in {**terms, REWARD: rollout.reward}.items():
            low, high = mine.get(name, (value, value))
            mine[name] = min(low, value), max(high, value)
    out: dict[str, tuple[float, float]] = {}
    for part in world.gather(mine):
        for name, (least, most) in part.items():
            low, high = out.get(name, (least, most))
            out[name] = min(low, least), max(high, most)
    return out
