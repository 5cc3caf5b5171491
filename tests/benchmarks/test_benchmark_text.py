"""Benchmarks without pictures, and our own puzzles: rows as problems, and responses with scores worked out by hand."""

import json
from pathlib import Path

from benchmark_helpers import box, check, opened, said, scored

from rewards import REWARDS, RewardInput
from sapo_vl.benchmarks import BENCHMARKS, ItemScores


def test_aime25(tmp_path: Path) -> None:
    cases = [
        ("aime25-1", box("42"), 1, "the gold"),
        ("aime25-1", box("042"), 1, "as AIME writes it"),
        ("aime25-1", box("42.0"), 1, "the same number"),
        ("aime25-1", box("42^\\circ"), 1, "an angle"),
        ("aime25-1", box("42\u00b0"), 1, "with the sign"),
        ("aime25-1", box("42 degrees"), 1, "in words"),
        ("aime25-1", box("42 cm"), 0, "no other unit"),
        ("aime25-1", box("42\\%"), 0, "no other unit"),
        ("aime25-1", box("43^\\circ"), 0, "another angle"),
        ("aime25-1", box("142"), 0, "has the gold in it"),
        ("aime25-1", box("40+2"), 0, "not worked out"),
        ("aime25-1", "The answer is 42.", 0, "no final answer"),
        ("aime25-1", "\\boxed{42} or \\boxed{43}", 0, "the last box"),
        ("aime25-1", "<think>\\boxed{42}", 0, "cut off while thinking"),
        ("aime25-2", box("7"), 1, "the gold is 007"),
        ("aime25-2", box("007"), 1, "as the gold"),
        ("aime25-2", box("seven"), 0, "digits were asked for"),
    ]
    check("aime25", tmp_path, cases)


def test_hmmt25(tmp_path: Path) -> None:
    cases = [
        ("hmmt25-1", box("\\frac{1}{576}"), 1, "the gold"),
        ("hmmt25-1", box("1/576"), 1, "plain"),
        ("hmmt25-1", box("\\dfrac{2}{1152}"), 1, "not in lowest terms"),
        ("hmmt25-1", box("0.001736"), 0, "an approximation"),
        ("hmmt25-2", box("\\frac{-1-\\sqrt{17}}{2}, \\frac{-1+\\sqrt{17}}{2}"), 1, "any order"),
        ("hmmt25-2", box("\\frac{\\sqrt{17}-1}{2}, -\\frac{1+\\sqrt{17}}{2}"), 1, "written in another way"),
        ("hmmt25-2", box("\\frac{-1+\\sqrt{17}}{2}"), 0, "one of two"),
        ("hmmt25-2", "\\boxed{\\frac{-1+\\sqrt{17}}{2}}, \\boxed{\\frac{-1-\\sqrt{17}}{2}}", 0, "two boxes"),
        ("hmmt25-3", box("26! \\cdot 2^{25}"), 1, "order"),
        ("hmmt25-3", box("2^{26} \\cdot 13 \\cdot 25!"), 1, "26! = 2 * 13 * 25!"),
        ("hmmt25-3", box("2^{25} \\cdot 25!"), 0, "another factorial"),
        ("hmmt25-3", "\\boxed{2^{25} \\cdot 26!", 0, "cut off"),
    ]
    assert check("hmmt25", tmp_path, cases).left_out == ["no gold"]


def test_beyondaime(tmp_path: Path) -> None:
    id = "beyondaime-0"
    cases = [
        (id, box("12345678901234567890"), 1, "exact, beyond what a float holds"),
        (id, box("12345678901234567891"), 0, "the same as a float"),
        (id, box("12{,}345{,}678{,}901{,}234{,}567{,}890"), 1, "separators"),
        (id, box("12,345,678,901,234,567,890"), 1, "separators"),
        (id, box("1.2345678901234567890 \\times 10^{19}"), 1, "all digits"),
        (id, box("1.2345 \\times 10^{19}"), 0, "not all digits"),
        (id, box("-12345678901234567890"), 0, "sign"),
        (id, box("12345678901234567890 + 0"), 0, "an expression"),
        (id, box("12345678901234567890^\\circ"), 1, "an angle"),
        (id, box("12345678901234567890 m"), 0, "no other unit"),
        (id, "Answer: 12345678901234567890", 1, "another form that is read"),
        (id, "12345678901234567890", 0, "no final answer"),
    ]
    assert check("beyondaime", tmp_path, cases).bad == ["answer is 'x', not an integer of at most 60 digits"]


def grid(**houses: dict[str, str]) -> dict[str, dict[str, str]]:
    return {name.replace("_", " "): cells for name, cells in houses.items()}


RIGHT = grid(House_1={"Name": "Eric", "Drink": "root beer"}, House_2={"Name": "Arnold", "Drink": "tea"})
SWAPPED = grid(House_1={"Name": "Eric", "Drink": "tea"}, House_2={"Name": "Arnold", "Drink": "root beer"})
HALF = grid(House_1={"Name": "Eric", "Drink": "root beer"})


def test_zebralogic(tmp_path: Path) -> None:
    id = "zebralogic-lgp-2x2-1"
    whole = json.dumps({"reasoning": "so", "solution": RIGHT})
    cases = [
        (id, whole, 1, "as asked for"),
        (id, f"Thus:\n```json\n{whole}\n```", 1, "in a fence"),
        (id, json.dumps(RIGHT), 1, "the grid alone"),
        (id, json.dumps(SWAPPED) + "\nNo:\n" + whole, 1, "the last object"),
        (id, whole + "\nOr rather " + json.dumps(SWAPPED), 0, "the last object"),
        (id, json.dumps({"solution": SWAPPED}), 0, "half of the cells"),
        (id, json.dumps({"solution": HALF}), 0, "a house is missing"),
        (id, whole.replace("Eric", " ERIC "), 1, "case and blanks"),
        (id, whole.replace('"Eric"', '["Eric", "Arnold"]'), 0, "candidates"),
        (id, whole.replace('"Eric"', '["Eric"]'), 1, "a list of one"),
        (id, whole[:-4], 0, "cut off"),
        (id, "House 1: Eric, root beer; House 2: Arnold, tea", 0, "no JSON"),
        (id, "", 0, "nothing"),
    ]
    found = check("zebralogic", tmp_path, cases)
    assert found.left_out == ["no gold"], "solutions that are blanked"
    problem = found.problems[id]
    assert problem.meta["groups"] == {"size": "2*2", "group": "small"}
    assert "Root Beer" not in said(problem) and '"House 2": {"Name": "___", "Drink": "___"}' in said(problem)

    def parts(response: str) -> dict[str, float]:
        x = RewardInput(text=response, num_tokens=1, max_tokens=9, finish="stop", answer=problem.answer)
        return dict(REWARDS["json_grid"](x).parts)

    metrics = BENCHMARKS["zebralogic"].metrics
    assert metrics is not None
    halves = ItemScores(id="a", meta={}, scores=[1.0, 0.0], parts=[parts(whole), parts(json.dumps(SWAPPED))])
    prefixed = ItemScores(id="b", meta={}, scores=[0.0, None], parts=[{"accuracy/cells": 0.0}, {}])
    # 1, 1/2 and 0 of the cells; the response without parts could not be scored
    assert metrics([halves, prefixed]) == {"cell_accuracy": 0.5} and metrics([]) == {}


def test_the_groups_of_zebralogic(tmp_path: Path) -> None:
    from sapo_vl.benchmarks.zebralogic import _group

    # (houses!)^attributes: 24^2 = 576, 6^4 = 1296, 720^2 = 518400, 120^3 = 1728000, 24^6 = 1.9e8, 120^5 = 2.5e10
    sizes = {(4, 2): "small", (3, 4): "medium", (6, 2): "medium", (5, 3): "large", (4, 6): "large", (5, 5): "x-large"}
    assert {size: _group(*size) for size in sizes} == sizes


def test_visual_puzzles(tmp_path: Path) -> None:
    found = opened("visual_puzzles", tmp_path)
    assert found.bad == ["messages is not a non-empty JSON list of chat turns"]
    first, second = found.problems["count-0"], found.problems["count-1"]
    assert first.meta == {"level": 2, "groups": {"task": "count", "level": "2"}}
    assert second.meta == {"groups": {"task": "count"}}
    answers = [
        ("<answer>1</answer>", 1), ("<answer>7</answer>", 0), ("1", 0), ("<answer>1", 0), ("", 0),
        ("<answer>1.0</answer>", 1), ("<answer>1 or 2</answer>", 0), ("<answer>2</answer> <answer>1</answer>", 1),
        ("<answer></answer>", 0), ("<think><answer>1</answer></think>", 0), ("so \\boxed{1}", 1),
    ]  # fmt: skip
    assert [scored(first, text) for text, _ in answers] == [score for _, score in answers]
    assert scored(second, "<think>3 and 4</think> <answer>7</answer>") == 1
