"""compare: of which of two colours there are more objects, or whether there are as many of both ("same").

Level 0: they differ by 1-3. Level 1: by 1-2, with 1-2 objects of other colours. Level 2: by 1, with 2-3 of
these. The scratch is each colour with its count, in the order of the question.

A colour may be absent, both may ("same"), and at level 0 the picture is then empty. So a blank picture is one that the
task has an answer to, and the control with blank pictures measures guessing, not what a model does with pictures of a
kind that it was never shown.
"""

from __future__ import annotations

from random import Random

from data_recipes.visual_puzzles.draw import draw_objects
from data_recipes.visual_puzzles.scene import COLOURS, place, with_shapes
from data_recipes.visual_puzzles.task import Scene, Task

LARGEST_DIFFERENCE = (3, 2, 1)  # by level
MOST = (5, 5, 6)  # objects of the more frequent colour, by level
DISTRACTORS = ((0, 0), (1, 2), (2, 3))  # least and most, by level


def _sample(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    first, second, *others = rng.sample(COLOURS, len(COLOURS))
    difference = 0 if label == "same" else rng.randint(1, LARGEST_DIFFERENCE[level])
    # Held-out pairs must be there to be seen.
    fewer = rng.randint(1 if held_out and not difference else 0, MOST[level] - max(difference, 1))
    counts = (fewer + difference, fewer) if label == "first" else (fewer, fewer + difference)
    rest = [rng.choice(others) for _ in range(rng.randint(*DISTRACTORS[level]))]
    colours = [first] * counts[0] + [second] * counts[1] + rest
    objects = place(rng, with_shapes(rng, colours, held_out))
    return {"task": "compare", "level": level, "target": [first, second], "objects": objects}


def _counts(scene: Scene) -> list[int]:
    colours = [item["colour"] for item in scene["objects"]]
    return [colours.count(colour) for colour in scene["target"]]


def _answer(scene: Scene) -> str:
    first, second = _counts(scene)
    if first == second:
        return "same"
    return scene["target"][0] if first > second else scene["target"][1]


def _scratch(scene: Scene) -> str:
    return " ".join(f"{c} {n}" for c, n in zip(scene["target"], _counts(scene), strict=True))


TASK = Task(
    name="compare",
    reward="choice",
    num_levels=3,
    labels=lambda level: ["first", "second", "same"],
    sample=_sample,
    question=lambda scene: f"more {scene['target'][0]} or {scene['target'][1]} ?",
    scratch=_scratch,
    answer=_answer,
    reward_meta=lambda scene: {"choices": [*scene["target"], "same"]},
    draw=draw_objects,
    paired_levels=(0, 1, 2),
)
