"""Parts of the reward that do not vary are told once, within 20 steps, on made-up series."""

import dataclasses

import pytest
from scoring_helpers import group

from sapo_vl.distributed import World
from sapo_vl.scoring.constant_watch import STEPS, ConstantWatch, extremes
from sapo_vl.types import RolloutGroup


def told(series: list[dict[str, tuple[float, float]]], steps: int = STEPS) -> list[tuple[int, str, float]]:
    """(step from 1, part, value) of everything that is told."""
    watch = ConstantWatch(steps)
    return [(step, c.part, c.value) for step, each in enumerate(series, start=1) for c in watch.add(each)]


def test_a_constant_part_is_told_at_the_twentieth_step_and_once() -> None:
    varying = {"accuracy": (0.0, 1.0), "reward": (0.0, 0.9)}
    assert STEPS == 20
    assert told([varying | {"format": (0.0, 0.0)}] * 19) == []
    assert told([varying | {"format": (0.0, 0.0)}] * 60) == [(20, "format", 0.0)]
    assert told([varying] * 60) == []


def test_it_begins_anew_once_it_has_changed() -> None:
    zero, one, both = {"format": (0.0, 0.0)}, {"format": (1.0, 1.0)}, {"format": (0.0, 1.0)}
    assert told([zero] * 2 + [both] + [zero] * 2, steps=3) == []
    assert told([both] + [zero] * 3, steps=3) == [(4, "format", 0.0)]
    assert told([zero] * 4 + [both] + [zero] * 3, steps=3) == [(3, "format", 0.0), (8, "format", 0.0)]
    assert told([zero] * 4 + [one] * 4, steps=3) == [(3, "format", 0.0), (7, "format", 1.0)]  # constant in turn
    assert told([zero, one] * 6, steps=3) == []


def test_steps_without_a_scored_response_count_for_nothing() -> None:
    zero = {"format": (0.0, 0.0)}
    assert told([zero, {}, zero, {}, {}, zero], steps=3) == [(6, "format", 0.0)]
    assert told([{}] * 50) == []


def test_a_penalty_that_nobody_incurs_is_as_it_should_be() -> None:
    assert told([{"overlong": (0.0, 0.0), "repetition": (-1.0, -1.0)}] * 30) == [(20, "repetition", -1.0)]


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("format", 0.0, ["part 'format' was 0", "last 2 steps", "the chat template open <think>"]),
        ("accuracy", 0.0, ["part 'accuracy' was 0", "the form in which the question asks"]),
        ("accuracy", 1.0, ["was 1", "nothing left to learn"]),
        ("reward", 0.3, ["the reward was 0.3", "nothing is learned"]),
        ("mine", 0.5, ["part 'mine' was 0.5", "rewards.combine"]),
    ],
)
def test_what_is_told_names_the_part_its_value_and_what_to_look_at(part: str, value: float, words: list[str]) -> None:
    watch = ConstantWatch(2)
    assert watch.add({part: (value, value)}) == []
    (constant,) = watch.add({part: (value, value)})
    assert all(word in str(constant) for word in words), str(constant)


def scored(rewards: list[float | None], **parts: list[float]) -> RolloutGroup:
    base = group(["x"] * len(rewards))
    rollouts = tuple(
        dataclasses.replace(r, reward=reward, parts={name: values[i] for name, values in parts.items()})
        for i, (r, reward) in enumerate(zip(base.rollouts, rewards, strict=True))
    )
    return dataclasses.replace(base, rollouts=rollouts)


def test_extremes_are_those_of_the_scored_responses_and_of_the_terms() -> None:
    unscored = scored([0.9, None, 0.5], accuracy=[1.0, 7.0, 0.5], format=[0.0, 7.0, 0.0])
    nested = dataclasses.replace(
        unscored.rollouts[0], parts={"accuracy": 0.25, "accuracy/legal": 5.0, "format": 0.0}, reward=0.1
    )
    groups = [unscored, dataclasses.replace(unscored, rollouts=(nested,))]
    assert extremes(groups, World.alone()) == {"reward": (0.1, 0.9), "accuracy": (0.25, 1.0), "format": (0.0, 0.0)}
    assert extremes([], World.alone()) == {}


def test_all_ranks_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one rank holds constant another may not; a part may be on one rank only."""
    other = {"reward": (0.5, 0.5), "format": (1.0, 1.0), "judge": (0.0, 0.0)}
    monkeypatch.setattr(World, "gather", lambda _, mine: [mine, other])
    assert extremes([scored([0.5], format=[0.0])], World.alone()) == {
        "reward": (0.5, 0.5),
        "format": (0.0, 1.0),
        "judge": (0.0, 0.0),
    }
