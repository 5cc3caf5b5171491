"""visual_puzzles: the splits.

cold_start and train share no scene with test (the scene's hash decides), test_blank is test with blank
images, and test_composition asks about colour-shape pairs that no other split shows. All rows carry a full
response to imitate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from data_recipes.visual_puzzles import arith, chart, compare, count, grid, ground, spatial, text
from data_recipes.visual_puzzles.draw import Canvas
from data_recipes.visual_puzzles.scene import is_test_scene, scene_key
from data_recipes.visual_puzzles.task import Scene, Task
from sapo_vl.data.problem_set import blank_twin
from sapo_vl.data.writer import Card, write_splits
from sapo_vl.types import Problem

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        count.TASK,
        compare.TASK,
        ground.TASK,
        spatial.TASK,
        chart.TASK,
        grid.TASK,
        arith.TASK,
        text.TEXT_COMPARE,
        text.TEXT_ARITH,
    )
}
CARD = Card(
    name="Visual puzzles",
    source="drawn by the recipe visual_puzzles of sapo_vl",
    licence="Apache-2.0",
    notes="Made on this machine; the same version and seed make the same puzzles.",
)
MAX_TRIES = 10_000  # for one scene; a test scene takes 10 on average


def build(
    out: Path,
    *,
    seed: int = 0,
    tasks: str = "count,compare,ground",
    level: int = 0,
    n_cold_start: int = 3000,
    n_train: int = 18000,
    n_test: int = 600,
    image_size: int = 64,
) -> dict[str, Any]:
    """Writes the data set folder `out` and returns its manifest.

    tasks: names out of TASKS, separated by commas; "name:2" sets the level of that task alone. level:
    difficulty of the tasks without one of their own, from 0. n_cold_start, n_train, n_test: rows of a split,
    shared equally by its tasks (the first get what is left over).
        test_composition has as many rows per task as test.
    image_size: side of the pictures in pixels, a multiple of 16 from 32 on.

    Raises ValueError for an unknown task or level, a number out of range, or more test rows than there are
    test scenes.
    """
    levels = parse_tasks(tasks, level)
    if image_size < 32 or image_size % 16:
        raise ValueError(f"image_size is {image_size}; it must be a multiple of 16 and at least 32")
    sizes = {"cold_start": n_cold_start, "train": n_train, "test": n_test}
    for split, size in sizes.items():
        if size < len(levels):
            raise ValueError(f"n_{split} is {size}; every one of the {len(levels)} tasks needs a row at least")

    def rows(split: str, size: int) -> Iterator[Problem]:
        return generate(levels, split, size, seed=seed, image_size=image_size)

    splits = {split: rows(split, size) for split, size in sizes.items()}
    pictured = {name: task for name, task in TASKS.items() if name in levels and task.draw}
    if pictured:
        splits["test_blank"] = (blank_twin(p) for p in rows("test", n_test) if p.images)
    paired = {name: levels[name] for name in levels if levels[name] in TASKS[name].paired_levels}
    if paired:
        size = len(paired) * (n_test // len(levels))
        splits["test_composition"] = generate(paired, "test_composition", size, seed=seed, image_size=image_size)
    arguments = {"seed": seed, "tasks": tasks, "level": level, **{f"n_{s}": n for s, n in sizes.items()}}
    return write_splits(
        splits, Path(out), recipe="visual_puzzles", arguments={**arguments, "image_size": image_size}, card=CARD
    )


def parse_tasks(tasks: str, level: int) -> dict[str, int]:
    """The level of every task named in `tasks` ("count,ground:1"). Raises ValueError for an unknown one."""
    levels: dict[str, int] = {}
    for entry in tasks.split(","):
        name, _, own = entry.strip().partition(":")
        if name not in TASKS:
            raise ValueError(f"tasks={tasks!r} names {name!r}; the tasks are {', '.join(TASKS)}")
        if name in levels:
            raise ValueError(f"tasks={tasks!r} names {name!r} twice")
        if own and not own.isdecimal():
            raise ValueError(f"tasks={tasks!r}: the level of {name!r} is {own!r}, not a number")
        levels[name] = int(own) if own else level
        if not 0 <= levels[name] < TASKS[name].num_levels:
            last = TASKS[name].num_levels - 1
            raise ValueError(f"{name!r} has no level {levels[name]}; its levels are 0 to {last}")
    return levels


def generate(levels: Mapping[str, int], split: str, size: int, *, seed: int, image_size: int) -> Iterator[Problem]:
    """`size` problems of a split, the tasks in turn. The same arguments give the same problems."""
    share, left_over = divmod(size, len(levels))
    streams = []
    for index, (name, level) in enumerate(levels.items()):
        wanted = share + (index < left_over)
        streams.append(_scenes(TASKS[name], level, split, wanted, seed))
    for number in range(share + (left_over > 0)):
        for (name, level), stream in zip(levels.items(), streams, strict=True):
            scene = next(stream, None)
            if scene is not None:
                yield problem_from_scene(scene, f"{name}-{level}-{split}-{number}", image_size)


def _scenes(task: Task, level: int, split: str, size: int, seed: int) -> Iterator[Scene]:
    """`size` scenes, labels balanced to within one row, in random order; no test scene twice."""
    rng = Random(f"{seed}/{task.name}/{level}/{split}")
    held_out = split == "test_composition"
    labels = list(task.labels(level))
    rng.shuffle(labels)  # the rows that do not fill a round go to random labels
    order = [labels[i % len(labels)] for i in range(size)]
    rng.shuffle(order)
    taken: set[str] = set()
    for label in order:
        for _ in range(MAX_TRIES):
            scene = task.sample(rng, level, label, held_out)
            key = scene_key(scene)
            if split in ("cold_start", "train"):
                if not is_test_scene(key):
                    break
            elif key not in taken and (held_out or is_test_scene(key)):
                taken.add(key)
                break
        else:
            raise ValueError(
                f"{task.name} level {level} has too few scenes for {size} different ones in {split!r} "
                f"(no further one with label {label!r} in {MAX_TRIES} tries); "
                "ask for fewer rows or a higher level"
            )
        yield scene


def problem_from_scene(scene: Scene, id: str, image_size: int) -> Problem:
    """The problem that `scene` describes, with picture, question, answer and a full response."""
    task = TASKS[scene["task"]]
    content: list[dict[str, str]] = [{"type": "text", "text": task.question(scene)}]
    images = ()
    if task.draw is not None:
        canvas = Canvas(image_size)
        task.draw(scene, canvas)
        images = (canvas.image,)
        content.insert(0, {"type": "image"})
    answer, scratch = task.answer(scene), task.scratch(scene)
    think = f"<think> {scratch} </think>"
    return Problem(
        id=id,
        task=task.name,
        messages=({"role": "user", "content": content},),
        images=images,
        answer=answer,
        solution=f"{think} <answer> {answer} </answer>",
        reward=task.reward,
        meta={**task.reward_meta(scene), "scene": scene},
    )
