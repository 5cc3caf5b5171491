"""Small local sets in the schema of every benchmark, with rows that public kits score wrongly, or trip over.

`write_set(name, folder)` writes one and returns the file, which sapo_vl.data.source.open_source opens. The rows are
made up, and so are their ids: the tests name them.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from benchmark_rows import MMMU, MMMU_PRO, OPTIONS
from benchmark_rows_2026 import SETS_2026
from PIL import Image, ImageDraw

from sapo_vl.benchmarks import BENCHMARKS, Row
from sapo_vl.data.images import read_image
from sapo_vl.data.problem_set import row_from_problem
from sapo_vl.types import Problem

Rows = list[dict[str, Any]]
WORDS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30), "black": (0, 0, 0)}


def drawing(colour: str = "black", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A disc on white."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((2, 2, size[0] - 3, size[1] - 3), fill=WORDS[colour])
    return image


def picture(colour: str = "black", size: tuple[int, int] = (24, 16)) -> dict[str, Any]:
    """An image cell as the hub stores it."""
    buffer = io.BytesIO()
    drawing(colour, size).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def with_pictures(rows: Rows) -> Rows:
    """Cells "picture:red" become image cells, also in lists."""

    def cell(value: Any) -> Any:
        if isinstance(value, list):
            return [cell(item) for item in value]
        return picture(value[8:]) if isinstance(value, str) and value.startswith("picture:") else value

    return [{name: cell(value) for name, value in row.items()} for row in rows]


def numbered(rows: list[tuple[Any, ...]], *columns: str, **same: Any) -> Rows:
    return [dict(zip(columns, row, strict=True)) | same for row in rows]


def mathvision() -> Rows:
    five = ["2 cm", "4 cm", "6 cm", "8 cm", "12 cm"]
    rows = [
        ("1", "How many dots are there?\n<image1>", [], "7", 1, "counting"),
        ("2", "<image1> How long is the side?", five, "C", 2, "metric geometry - length"),
        ("3", "Which net folds to the cube? <image1>", list("ABCDE"), "D", 3, "solid geometry"),
        ("4", "What share is grey?", [], "\\frac{3}{4}", 4, "metric geometry - area"),
        ("5", "How long is the diagonal? <image1>", [], "$2\\sqrt{3}$", 5, "metric geometry - length"),
        ("6", "How many are left?\n<image1><image2>", ["1", "10", "100", "1000", "0.5"], "10", 1, "counting"),
        ("7", "How many?", [], "", 1, "counting"),
        ("8", "Which number is next? <image1>", ["3", "4", "3", "5", "6"], "B", 1, "logic"),
    ]
    columns = ("id", "question", "options", "answer", "level", "subject")
    return numbered(rows, *columns, image="images/1.jpg", solution="", decoded_image="picture:red")


def mathvista() -> Rows:
    def row(pid: str, answer: str, kind: str, **cells: Any) -> dict[str, Any]:
        empty = {"choices": None, "unit": None, "precision": None, "question_type": "free_form"}
        about = {
            "category": "general-vqa",
            "task": "figure question answering",
            "context": "plot",
            "grade": "daily life",
        }
        query = f"Hint: Please answer the question.\nQuestion: What is number {pid}?"
        fixed = {"question": "?", "query": query, "decoded_image": "picture:blue", "metadata": about}
        return {"pid": pid, "answer": answer, "answer_type": kind} | empty | fixed | cells

    mc = {"question_type": "multi_choice"}
    return [
        row("1", "B", "text", choices=["C", "B", "A"], **mc),
        row("2", "45 degrees", "text", choices=["30 degrees", "45 degrees", "60 degrees"], **mc),
        row("3", "14", "integer"),
        row("4", "1.2", "float", precision=1.0, unit="cm"),
        row("5", "0.21", "float", precision=2.0),
        row("6", "[0, 2, 0, 1]", "list"),
        row("7", "25", "integer", unit="%"),
        row("8", "", "text"),
        row("9", "18", "text", choices=["9", "12", "18", "18"], **mc),
        row("11", "15", "text", choices=["9", "12", "18", "18"], **mc),
        row("10", "0.5", "float"),
    ]


def mathverse() -> Rows:
    ask = "Please first conduct reasoning, and then answer the question.\nQuestion: "
    angle = "What is angle x?\nChoices:\nA:30°\nB:40°\nC:50°\nD:60°"
    letters = "Which figure is it?\nChoices:\nA:\nB:\nC:\nD:"
    rows = [
        ("1", "Text Dominant", "multi-choice", angle, ask + angle, "B"),
        ("1", "Vision Only", "multi-choice", angle, ask, "B"),
        ("2", "Text Lite", "free-form", "Find the length.", f"{ask}Find the length.", "\\frac{20}{3}"),
        ("3", "Vision Intensive", "free-form", "Find the radius.", f"{ask}Find the radius.", "2.0cm"),
        ("4", "Vision Dominant", "free-form", "Find the line.", f"{ask}Find the line.", "y=2x+1"),
        ("5", "Text Lite", "multi-choice", letters, ask + letters, "D"),
        ("6", "Text Lite", "open", "?", "?", "D"),
        ("7", "Text Lite", "free-form", "?", "?", None),
    ]
    columns = ("problem_index", "problem_version", "question_type", "question_for_eval", "query_cot", "answer")
    return numbered(rows, *columns, image="picture:green", query_wo="?", metadata={"subject": "Plane Geometry"})


def dynamath() -> Rows:
    """Question 7 in ten variants, and three others in one."""
    rows: list[tuple[Any, ...]] = [("7", f"What is half of {n}?", f"{n / 2}", "float") for n in range(10)]
    rows += [
        ("8", "Is it even? Choices: (A) yes (B) no", "B", "multiple choice"),
        ("9", "Odd or even?", "even", "text"),
        ("10", "Which root?", "1.333", "float"),
        ("11", "?", "1", "unknown type"),
        ("12", "Where is the point? Please answer in the form (_, _)", "(5.000, -2.000)", "text"),
        ("13", "Where is the point?", "(-2.777, 1.136)", "text"),
        ("14", "Where is the asymptote?", "x = 0", "text"),
        ("15", "What time is it?", "8:0", "text"),
        ("16", "Which numbers are missing, from left to right?", "69, 51, 59", "text"),
    ]
    return numbered(
        rows, "id", "question", "ground_truth", "answer_type", decoded_image="picture:red", subject="algebra"
    )


def wemath() -> Rows:
    steps: list[tuple[Any, ...]] = []
    for problem, count in (("2steps_1", 2), ("2steps_2", 2), ("3steps_1", 3), ("3steps_2", 3)):
        for step in [*range(1, count + 1), "multi"]:
            option = "A. 4dm²; B. 3:4;C. 16; D. 20; E. No correct answer"
            steps.append((problem, f"{count}steps_{step}", f"Step {step}?", option, "B"))
    steps += [
        ("2steps_3", "2steps_1", "?", "A. 4; C. 5", "A"),
        ("2steps_3", "2steps_2", "?", "A. 4; B. 5", "E"),
        ("2steps_3", "2steps_multi", "?", "A. 4\nB. 4\nC. 5", "C"),
        ("2steps_3", "4steps_1", "?", "A. 4; B. 5", "A"),
        ("2steps_4", "2steps_1", "?", "A. No, it turned by 45° around point ;O.;B. Yes, around point ;P.;C. No", "B"),
        ("2steps_4", "2steps_2", "?", "A. 45° B. 60° ;C. 120°; D. 30°", "C"),
        ("2steps_4", "2steps_multi", "?", "A. 45° B. 60° C. 90°", "A"),
        ("2steps_5", "2steps_1", "?", "A. around ;B. left;B. around C", "A"),
        ("2steps_5", "2steps_2", "?", "A. 4; B. 5; D. 6", "B"),
        ("2steps_5", "2steps_multi", "?", "4 or 5", "A"),
        ("2steps_6", "2steps_1", "?", "A. Yes, around ;P.;B. No;E. No correct answer", "E"),
        ("2steps_6", "2steps_2", "?", "A. Yes, around ;P.;B. No;E. Both;F. No correct answer", "A"),
    ]
    more = {"split": "testmini", "knowledge concept": "Area of Circles", "image_path": "picture:blue"}
    return [row | more for row in numbered(steps, "ID", "key", "question", "option", "answer")]


def geometry3k() -> Rows:
    rows = [
        (["picture:red"], "<image>Find x.", "28.3"),
        (["picture:red"], "<image> Find y.", "2 \\sqrt { 221 }"),
        (["picture:red", "picture:blue"], "In <image> and <image>, find the ratio.", "\\frac { 3 } { 4 }"),
        (["picture:red"], "Find z.", "5"),
        (["picture:red"], "<image>Find w.", ""),
    ]
    return numbered(rows, "images", "problem", "answer")


def zebralogic() -> Rows:
    header = ["House", "Name", "Drink"]
    solved = [["1", "Eric", "Root Beer"], ["2", "Arnold", "tea"]]
    blank = [["___"] * 3, ["___"] * 3]
    rows = [
        ("lgp-2x2-1", "2*2", solved),
        ("lgp-2x2-2", "2*2", blank),
        ("lgp-2x2-3", "2*3", solved),
        ("lgp-2x2-4", "two", solved),
    ]
    return [
        {"id": id, "size": size, "puzzle": "There are 2 houses ...", "solution": {"header": header, "rows": cells}}
        for id, size, cells in rows
    ]


def refcoco() -> Rows:
    rows = [
        ("1", ["the red disc", "left thing"], [100.0, 50.0, 200.0, 100.0]),
        ("2", ["the dot"], [0.0, 0.0, 4.0, 2.0]),
        ("3", ["nothing"], [5.0, 5.0, 0.0, 4.0]),
        ("4", [], [5.0, 5.0, 2.0, 4.0]),
    ]
    image = picture("red", (400, 200))
    return numbered(rows, "question_id", "answer", "bbox", image=image, question="Please provide a description.")


def refcoco_by_picture() -> Rows:
    def region(box: list[float], *said: str) -> dict[str, Any]:
        sentences = [{"raw": text.upper(), "sent": text, "sent_id": n} for n, text in enumerate(said)]
        return {"ann_info": {"bbox": box, "id": 1}, "ref_info": {"ref_id": 1, "split": "val", "sentences": sentences}}

    two = [region([100.0, 50.0, 200.0, 100.0], "the red disc", "left"), region([0.0, 0.0, 4.0, 2.0], "dot")]
    rows = [two, [region([5.0, 5.0, 0.0, 4.0], "nothing")], []]
    image = picture("red", (400, 200))
    return [{"ref_list": regions, "image": image, "image_info": {"id": n}} for n, regions in enumerate(rows)]


def zerobench() -> Rows:
    rows = [
        ("1", "What is the total?", "12.50", ["picture:red"]),
        ("2", "What is the code?", "EV2P7", ["picture:red", "picture:blue"]),
        ("3", "What is the time? Use {} for it.", "10:45", ["picture:red"]),
        ("4", "How many?", "1", ["picture:red"]),
        ("5", "?", "1", []),
    ]
    return numbered(rows, "question_id", "question_text", "question_answer", "question_images_decoded")


def packed(cases: list[dict[str, str]]) -> str:
    """Hidden tests as the hub's files have them: base64 of zlib of a pickle, protocol 4, of JSON; made by hand."""
    text = json.dumps(cases).encode()
    body = b"X" + len(text).to_bytes(4, "little") + text + b"\x94."
    pickled = b"\x80\x04\x95" + len(body).to_bytes(8, "little") + body
    return base64.b64encode(zlib.compress(pickled)).decode()


def livecodebench() -> Rows:
    def case(kind: str, given: str, output: str) -> dict[str, str]:
        return {"input": given, "output": output, "testtype": kind}

    start = "class Solution:\n    def pair(self, nums: List[int], target: int) -> List[int]:\n        "
    rows = [
        (
            "abc1",
            "Print the mean.",
            "",
            [case("stdin", "1 2\n", "1.5\n")],
            packed([case("stdin", "4 4\n", "4.0\n")]),
            {},
        ),
        (
            "3001",
            "Two numbers that add up to the target.",
            start,
            [case("functional", "[1, 2]\n3", "[1, 2]")],
            packed([case("functional", "[4, 0, 5]\n9", "[4, 5]"), case("functional", "[1]\n9", "null")]),
            {"func_name": "pair"},
        ),
        ("abc2", "Nothing to test.", "", [], "", {}),
        ("abc3", "Mixed.", "", [case("stdin", "1", "1")], packed([case("functional", "1", "1")]), {}),
        ("abc4", "A name that is code.", start, [case("functional", "1", "1")], "", {"func_name": "f(); import os #"}),
        ("abc5", "A list in the pickle.", "", [], base64.b64encode(zlib.compress(b"\x80\x04]\x94.")).decode(), {}),
    ]
    return [
        {
            "question_title": id,
            "question_content": content,
            "platform": "leetcode" if starter else "atcoder",
            "question_id": id,
            "contest_date": "2025-02-01T00:00:00",
            "starter_code": starter,
            "difficulty": "easy",
            "public_test_cases": json.dumps(public),
            "private_test_cases": private,
            "metadata": json.dumps(about),
        }
        for id, content, starter, public, private, about in rows
    ]


def visual_puzzles() -> Rows:
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many red discs?"}]}
    same: dict[str, Any] = {"task": "count", "reward": "number"}
    with_image = Problem(
        id="count-0", messages=(turn,), images=(drawing("red"),), answer="1", meta={"level": 2}, **same
    )
    text = Problem(id="count-1", messages=({"role": "user", "content": "3 + 4?"},), answer="7", **same)
    return [row_from_problem(with_image), row_from_problem(text), row_from_problem(text) | {"messages": "[]"}]


SETS: dict[str, Callable[[], Rows]] = {
    "aime25": lambda: numbered([(1, "Find n.", 42), (2, "Find m.", "007")], "problem_idx", "problem", "answer"),
    "beyondaime": lambda: numbered([("Find n.", 12345678901234567890), ("Find m.", "x")], "problem", "answer"),
    "chartqa": lambda: OPTIONS["chartqa"],
    "countbench": lambda: OPTIONS["countbench"],
    "dynamath": dynamath,
    "geometry3k": geometry3k,
    "hmmt25": lambda: OPTIONS["hmmt25"],
    "livecodebench": livecodebench,
    "logicvista": lambda: OPTIONS["logicvista"],
    "mathverse": mathverse,
    "mathvision": mathvision,
    "mathvista": mathvista,
    "mmmu": lambda: MMMU,
    "mmmu_pro_standard": lambda: MMMU_PRO["standard"],
    "mmmu_pro_standard4": lambda: MMMU_PRO["standard4"],
    "mmmu_pro_vision": lambda: MMMU_PRO["vision"],
    "realworldqa": lambda: OPTIONS["realworldqa"],
    "refcoco": refcoco,
    "refcoco_unc_val": refcoco_by_picture,
    "refcocog_umd_val": refcoco_by_picture,
    "visual_puzzles": visual_puzzles,
    "wemath": wemath,
    "zebralogic": zebralogic,
    "zerobench": zerobench,
    **{name: partial(SETS_2026.__getitem__, name) for name in SETS_2026},
}
LINES = ("beyondaime", "livecodebench", "zebralogic")  # written as JSON lines, the others as parquet


def write_set(name: str, folder: Path, *, only_good: bool = False) -> Path:
    """Writes the set of a benchmark into `folder`. Those that share a schema (splits of RefCOCO) share a set.

    only_good: without the rows that are broken or have no gold; a run stops where they are too large a share.
    """
    base = name if name in SETS else next(known for known in SETS if name.startswith(known.partition("_")[0]))
    rows = with_pictures(SETS[base]())
    rows = [row for row in rows if _is_good(name, row)] if only_good else rows
    folder.mkdir(parents=True, exist_ok=True)
    if base in LINES:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    path = folder / f"{name}.parquet"
    datasets.Dataset.from_list(_one_type(rows)).to_parquet(path)
    return path


def _is_good(name: str, cells: dict[str, Any]) -> bool:
    try:
        return bool(list(BENCHMARKS[name].problems(Row(index=0, cells=cells, image=read_image))))
    except ValueError:
        return False


def _one_type(rows: Rows) -> Rows:
    """A column of numbers and texts becomes one of texts, as parquet wants one type."""
    mixed = {name for name in rows[0] if {int, str} <= {type(row[name]) for row in rows}}
    return [{name: str(value) if name in mixed else value for name, value in row.items()} for row in rows]
