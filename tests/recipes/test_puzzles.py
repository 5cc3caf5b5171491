"""Every puzzle answer, worked out again from the pixels and the question, without the code of the recipe."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest

from data_recipes.visual_puzzles.draw import GLYPHS, RGB
from data_recipes.visual_puzzles.recipe import TASKS, generate
from rewards import REWARDS, RewardInput
from sapo_vl.types import Problem

EVERY_LEVEL = [(name, level) for name, task in TASKS.items() for level in range(task.num_levels)]
PICTURED = [(name, level) for name, level in EVERY_LEVEL if not name.startswith("text_")]
PAIRED = ("count", "compare", "ground", "spatial")
COLOUR_WORDS = ("red", "green", "blue", "yellow", "cyan", "purple")


def sample(name: str, level: int, seed: int, size: int = 40, split: str = "train", side: int = 64) -> list[Problem]:
    return list(generate({name: level}, split, size, seed=seed, image_size=side))


def question(problem: Problem) -> str:
    return problem.messages[-1]["content"][-1]["text"]


def pixels_of(problem: Problem, colour: str) -> np.ndarray:
    """[height, width] bool: where the picture has exactly this colour."""
    return (np.asarray(problem.images[0]) == RGB[colour]).all(axis=-1)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The connected regions of a mask, each as [n, 2] (y, x); corners count as connected."""
    left = {tuple(point) for point in np.argwhere(mask).tolist()}
    regions = []
    while left:
        edge = [left.pop()]
        region = list(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
            region += near
        regions.append(np.array(region))
    return regions


def shape_of(region: np.ndarray) -> str:
    """disc, square or triangle, by how much of its bounding box a region fills, and where."""
    (y1, x1), (y2, x2) = region.min(axis=0), region.max(axis=0)
    box = np.zeros((y2 - y1 + 1, x2 - x1 + 1), dtype=bool)
    box[region[:, 0] - y1, region[:, 1] - x1] = True
    if box.all():
        return "square"
    return "triangle" if box[-1].all() and not box[0, -1] else "disc"


# --- an independent oracle for each task: (answer, scratch) from the pixels and the question
# ------------------------


def see_count(problem: Problem) -> tuple[str, str]:
    _, _, colour, *shape, _ = question(problem).split()
    regions = [r for r in components(pixels_of(problem, colour)) if shape in ([], [shape_of(r)])]
    rows = Counter(int(region[:, 0].mean()) // 16 for region in regions)
    return str(len(regions)), " ".join(str(rows[row]) for row in range(4))


def see_compare(problem: Problem) -> tuple[str, str]:
    _, first, _, second, _ = question(problem).split()
    a, b = (len(components(pixels_of(problem, colour))) for colour in (first, second))
    return "same" if a == b else max((a, first), (b, second))[1], f"{first} {a} {second} {b}"


def see_ground(problem: Problem) -> tuple[str, str]:
    _, _, colour, *shape, _ = question(problem).split()
    whole = components(pixels_of(problem, colour))
    (region,) = [r for r in whole if shape in ([], [shape_of(r)])]
    (y1, x1), (y2, x2) = region.min(axis=0), region.max(axis=0) + 1
    lattice = np.array([x1, y1, x2, y2]) * 16 / problem.images[0].size[0]
    target = question(problem).removeprefix("box of ").removesuffix(" ?")
    return " ".join(f"{value:g}" for value in lattice), target


def see_spatial(problem: Problem) -> tuple[str, str]:
    text = question(problem)
    axis = 1 if " left of " in text else 0  # of (y, x)
    centres = {c: pixels for c in COLOUR_WORDS if len(pixels := np.argwhere(pixels_of(problem, c)))}
    cells = {c: tuple(int(v) // 16 for v in pixels.mean(axis=0)) for c, pixels in centres.items()}
    named = [word for word in text.split() if word in COLOUR_WORDS]
    if text.startswith("shape"):
        (found,) = [c for c in cells if cells[c][axis] < cells[named[0]][axis]]
        answer, named = shape_of(centres[found]), [*named, found]
    else:
        assert cells[named[0]][axis] != cells[named[1]][axis]
        answer = "yes" if cells[named[0]][axis] < cells[named[1]][axis] else "no"
    return answer, " ".join(f"{cells[c][1]} {cells[c][0]}" for c in named)


def see_chart(problem: Problem) -> tuple[str, str]:
    named = [word for word in question(problem).split() if word in COLOUR_WORDS]
    heights = [int(pixels_of(problem, c).any(axis=1).sum()) // 6 for c in named]
    lefts = {c: int(np.argwhere(m)[:, 1].min()) for c in COLOUR_WORDS if (m := pixels_of(problem, c)).any()}
    columns = [sorted(lefts, key=lefts.__getitem__).index(c) + 1 for c in named]
    if len(named) == 1:
        return str(heights[0]), str(columns[0])
    return str(heights[0] - heights[1]), " ".join(f"{c} {h}" for c, h in zip(columns, heights, strict=True))


def see_grid(problem: Problem) -> tuple[str, str]:
    row, column = (int(word) for word in question(problem).split() if word.isdigit())
    side = 3 + problem.meta["scene"]["level"]
    y, x = (int((index - 0.5) * 64 / side) for index in (row, column))
    (colour,) = [c for c in COLOUR_WORDS if pixels_of(problem, c)[y, x]]
    return colour, " ".join(re.findall(r"\d+", question(problem)))


def see_arith(problem: Problem) -> tuple[str, str]:
    white = pixels_of(problem, "white")
    left, top = problem.meta["scene"]["at"]
    signs = []
    for index in range(3):
        dots = white[top + 1 : top + 21 : 3, left + 18 * index + 1 : left + 18 * index + 15 : 3]
        bits = " ".join("".join("1" if dot else "0" for dot in row) for row in dots)
        signs += [sign for sign, glyph in GLYPHS.items() if glyph == bits]
    a, sign, b = signs
    value = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign]
    return str(value), f"{a} {b}"


def see_text_compare(problem: Problem) -> tuple[str, str]:
    numbers = re.findall(r"\d+", question(problem))
    return max(numbers), " ".join(numbers)  # all have the same number of digits


def see_text_arith(problem: Problem) -> tuple[str, str]:
    text = question(problem).removesuffix(" = ?").replace("- ", "-").replace("+ ", "+")
    return str(sum(int(term) for term in text.split())), " ".join(re.findall(r"\d+", text))


ORACLES = {name.removeprefix("see_"): function for name, function in globals().items() if name.startswith("see_")}


@pytest.mark.parametrize(("name", "level"), EVERY_LEVEL)
def test_answer_and_scratch_are_what_the_picture_shows(name, level, seed):
    for split in ("train", "test_composition") if name in PAIRED else ("train",):
        for problem in sample(name, level, seed, split=split):
            answer, scratch = ORACLES[name](problem)
            assert problem.answer == answer, problem
            think = f"<think> {scratch} </think>"
            assert problem.solution == f"{think} <answer> {answer} </answer>", problem


def test_the_picture_is_blank_without_the_drawing(seed):
    # The oracles above look for exact colours; this makes sure that they would notice a picture without
    # objects.
    for name in ("compare", "chart", "grid"):
        pictures = [np.asarray(problem.images[0]) for problem in sample(name, 0, seed, size=30)]
        assert {picture.shape for picture in pictures} == {(64, 64, 3)}
        colours = [len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in pictures]
        assert max(colours) >= 3
        assert min(colours) >= (1 if name == "compare" else 3), "without objects there is one answer, to compare"
    assert len(set(RGB.values())) == len(RGB) and len(set(GLYPHS.values())) == len(GLYPHS)


@pytest.mark.parametrize("side", [32, 128, 160])
def test_larger_and_smaller_pictures_show_the_same_boxes(side, seed):
    for problem in sample("ground", 1, seed, size=20, side=side):
        assert problem.images[0].size == (side, side)
        assert see_ground(problem)[0] == problem.answer


# --- what a task promises
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "level"), EVERY_LEVEL)
def test_the_real_rewards_accept_the_solution_and_nothing_else(name, level, seed):
    problems = sample(name, level, seed, size=40)

    def score(problem: Problem, text: str, reward: str = "") -> float:
        x = RewardInput(text=text, num_tokens=9, max_tokens=99, finish="stop", answer=problem.answer, meta=problem.meta)
        return REWARDS[reward or problem.reward](x).score

    for problem, other in itertools.pairwise(problems):
        assert score(problem, problem.solution) == 1.0
        assert score(problem, problem.solution, "format") == 1.0
        assert score(problem, "<think> </think> <answer> </answer>") == 0.0
        if name != "ground" and other.answer != problem.answer:
            assert score(problem, other.solution) == 0.0


@pytest.mark.parametrize(("name", "level"), EVERY_LEVEL)
def test_prompts_and_responses_are_short(name, level, seed):
    for problem in sample(name, level, seed):
        assert len(question(problem).split()) <= 8
        assert len(problem.solution.split()) <= 12
        json.dumps(problem.meta)


@pytest.mark.parametrize(("name", "level"), EVERY_LEVEL)
def test_no_constant_answer_does_well(name, level, seed):
    problems = sample(name, level, seed, size=360)
    answers = Counter(problem.answer for problem in problems)
    most_common = max(answers.values()) / len(problems)
    if name in ("count", "chart", "arith") or (name == "spatial"):
        # Balanced over the answers: no answer more than one row ahead of another.
        assert max(answers.values()) - min(answers.values()) <= 1
        assert len(answers) == len(TASKS[name].labels(level))
    elif name == "compare":
        first, second = (sum(p.answer == question(p).split()[place] for p in problems) for place in (1, 3))
        assert (first, second, answers["same"]) == (120, 120, 120)
    elif name == "grid":
        assert set(answers.values()) == {60}
    elif name == "ground":
        boxes = np.array([[int(v) for v in p.answer.split()] for p in problems])
        centre = np.median(boxes, axis=0)
        assert iou_hits(centre, boxes) < 0.2 and most_common < 0.05
    elif name == "text_compare":
        places = Counter(re.findall(r"\d+", question(p)).index(p.answer) for p in problems)
        assert max(places.values()) == min(places.values())
    else:
        assert most_common < 0.1 and Counter(p.answer[0] for p in problems) == dict.fromkeys("123456789", 40)


def iou_hits(box: np.ndarray, boxes: np.ndarray) -> float:
    """Share of `boxes` [n, 4] that `box` hits with IoU >= 0.5."""
    overlap = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    both = overlap.clip(min=0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return float((both / (areas - both) >= 0.5).mean())


def test_level_0_is_the_level_that_was_measured(seed):
    for problem in sample("count", 0, seed, size=200):
        objects = problem.meta["scene"]["objects"]
        assert 1 <= len(objects) - int(problem.answer) <= 2 and 0 <= int(problem.answer) <= 4
    compared = set()
    for problem in sample("compare", 0, seed, size=2000):
        first, second = (int(word) for word in problem.solution.split() if word.isdigit())
        compared.add((first, second))
    assert compared == {(a, b) for a in range(6) for b in range(6) if abs(a - b) <= 3} - {(5, 5)}
    assert all(p.meta["scene"]["objects"] for p in sample("compare", 0, seed, size=200, split="test_composition"))
    for problem in sample("ground", 0, seed, size=50):
        assert [item["shape"] for item in problem.meta["scene"]["objects"]] == ["rectangle"] * 2
    assert {len(p.meta["scene"]["bars"]) for p in sample("chart", 0, seed, size=50)} == {3}
