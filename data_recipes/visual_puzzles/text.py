"""text_compare and text_arith: two tasks without a picture, to mix text into image training.

text_compare, the larger of two numbers: two digits each, then three, then the largest of three such numbers.
text_arith, a sum or difference: two-digit numbers and results, then three-digit ones, then two operations.
"""

from __future__ import annotations

from random import Random

from data_recipes.visual_puzzles.task import Scene, Task

PLACES = ("first", "second", "third")
RANGES = ((10, 99), (100, 999), (100, 999))  # of every number and result, by level


def _sample_compare(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    numbers = sorted(rng.sample(range(RANGES[level][0], RANGES[level][1] + 1), 3 if level == 2 else 2))
    largest = numbers.pop()
    rng.shuffle(numbers)
    numbers.insert(PLACES.index(label), largest)
    return {"task": "text_compare", "level": level, "numbers": numbers}


def _sample_arith(rng: Random, level: int, label: str, held_out: bool) -> Scene:
    """The first digit of the result is `label`."""
    low, high = RANGES[level]
    while True:
        terms: list[int | str] = [rng.randint(low, high)]
        for _ in range(2 if level == 2 else 1):
            terms += [rng.choice("+-"), rng.randint(low, high)]
        result = _evaluate(terms)
        if low <= result <= high and str(result)[0] == label:
            return {"task": "text_arith", "level": level, "terms": terms}


def _evaluate(terms: list[int | str]) -> int:
    """The value of [number, sign, number, ...]."""
    total = int(terms[0])
    for sign, number in zip(terms[1::2], terms[2::2], strict=True):
        total += int(number) if sign == "+" else -int(number)
    return total


TEXT_COMPARE = Task(
    name="text_compare",
    reward="choice",
    num_levels=3,
    labels=lambda level: list(PLACES[: 3 if level == 2 else 2]),
    sample=_sample_compare,
    question=lambda scene: f"larger of {' and '.join(map(str, scene['numbers']))} ?",
    scratch=lambda scene: " ".join(map(str, scene["numbers"])),
    answer=lambda scene: str(max(scene["numbers"])),
    reward_meta=lambda scene: {"choices": [str(number) for number in scene["numbers"]]},
    draw=None,
)

TEXT_ARITH = Task(
    name="text_arith",
    reward="number",
    num_levels=3,
    labels=lambda level: [str(digit) for digit in range(1, 10)],
    sample=_sample_arith,
    question=lambda scene: f"{' '.join(map(str, scene['terms']))} = ?",
    scratch=lambda scene: " ".join(str(term) for term in scene["terms"] if term not in ("+", "-")),
    answer=lambda scene: str(_evaluate(scene["terms"])),
    reward_meta=lambda scene: {},
    draw=None,
)
