"""Rows of the sets that were added in 2026, in their columns; "picture:red" stands for an image cell."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def _rows(columns: str, *rows: tuple[Any, ...], **same: Any) -> Rows:
    return [dict(zip(columns.split(), row, strict=True)) | same for row in rows]


def _emma(pid: str, question: str, options: list[str], answer: str, kind: str, *colours: str, context: str = "none"):
    pictures = [f"picture:{colour}" for colour in colours] + [None] * (5 - len(colours))
    row: dict[str, Any] = {"pid": pid, "question": question, "options": options, "answer": answer, "type": kind}
    row |= {"context": context, "subject": "Math", "category": "2D"}
    return row | {f"image_{number}": cell for number, cell in enumerate(pictures, start=1)}


def _hallusion(category: str, figure: str, question: str, visual: str, answer: str, picture: str | None):
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": visual,
        "set_id": "0",
        "figure_id": figure,
        "question_id": question,
        "question": "Is the left bar longer?",
        "gt_answer": answer,
        "gt_answer_details": "The left bar is longer.",
        "image": picture,
    }


def _baby(id: int, kind: str, options: list[str], choice: int | None, blank: str | None) -> dict[str, Any]:
    row = {"taskId": id, "type": "Visual Tracking", "subtype": "Maze", "ansType": kind, "options": options}
    return row | {"choiceAns": choice, "blankAns": blank, "question": f"Task {id}?", "image": "picture:red"}


SETS_2026: dict[str, Rows] = {
    "aime26": _rows("problem_idx problem answer", (1, "Find n.", 42), (2, "Find m.", 7), (3, "Find k.", 1000)),
    "hmmt26": _rows("problem_idx problem answer", (1, "Compute.", "\\frac{1}{2}"), (2, "Solve.", "3, -3")),
    "mmstar": _rows(
        "index question answer category l2_category",
        (0, "Which is it?\nOptions: A: a dog, B: a cat, black, C: a hen, D: none", "B", "math", "geometry"),
        (1, "Hint: ...\nQuestion: How many?\nChoices:\n(A) 1\n(B) 2\n(C) 3\n(D) 4", "C", "math", "numeric"),
        (2, "Which letter is drawn?", "D", "coarse perception", "image emotion"),
        (3, "Which?\nOptions: A: 1, C: 2", "AB", "math", "geometry"),
        image="picture:red",
    ),
    "charxiv": _rows(
        "reasoning_q reasoning_a reasoning_q_source",
        ("Which curve is highest?", "ACC+", 1),
        ("Which two cross?", "Model B, Model A", 1),
        ("Which subplot?", "(b)", 1),
        ("How does it run?", "increases", 2),
        ("Which tick is nearest?", "0.01", 3),
        ("What is the difference?", "12.50", 4),
        ("How many bars?", "7", 4),
        ("?", "7", 5),
        image="picture:red",
        figure_path="images/1.jpg",
    ),
    "visulogic": _rows(
        "id question label tag",
        ("00000", "Choose from A, B, C, D the figure that follows.", "B", "Quantity"),
        ("00001", "Choose the odd one.", "a", "Style"),
        ("00002", "Choose.", "E", "Style"),
        image="picture:red",
    ),
    "neulab_visualpuzzles": _rows(
        "id question options answer category",
        (1, "Which follows?", ["3", "5", "8", "13"], "C", "inductive"),
        (2, "Which figure?", None, "D", "spatial"),
        (3, "Which?", ["1", "2"], "C", "spatial"),
        image="picture:green",
    ),
    "emma": [
        _emma(
            "math_1", "Turn <image_2>. What comes?", ["<image_1>", "<image_3>"], "B", "Multiple Choice", "red", "blue"
        )
        | {"image_3": "picture:green"},
        _emma("math_2", "How many dots has <image_1>?", [], "12", "Open-ended", "red", context="Think of a die."),
        _emma("math_3", "How long is it? <image_1>", [], "\\sqrt{2}", "Open-ended", "red"),
        _emma("math_4", "Which? <image_1>", ["one", "two"], "C", "Multiple Choice", "red"),
        _emma("math_5", "Which? <image_1>", [], "C", "Essay", "red"),
    ],
    "hallusionbench": [
        _hallusion("VD", "1", "0", "1", "1", "picture:red"),
        _hallusion("VD", "1", "1", "1", "0", "picture:red"),
        _hallusion("VD", "2", "0", "2", "0", "picture:blue"),
        _hallusion("VS", "0", "0", "0", "1", None),
        _hallusion("VS", "1", "0", "1", "2", "picture:red"),
        _hallusion("VS", "2", "0", "1", "1", None),
    ],
    "erqa": _rows(
        "question_id question images answer question_type",
        (
            "ERQA_1",
            "Where does it move? Choices: A. Up. B. Down. C. Left. D. Right.\n"
            "Please answer directly with only the letter of the correct option and nothing else.",
            ["picture:red"],
            "D",
            "Trajectory Reasoning",
        ),
        ("ERQA_2", "Which is nearer? Choices: A. 1. B. 2.", ["picture:red", "picture:blue"], "A", "Multi-view"),
        ("ERQA_3", "Which? Choices: A. 1. B. 2.", [], "A", "Multi-view"),
        ("ERQA_4", "Which of the marks?", ["picture:red"], "A", "Multi-view"),
        visual_indices=[0],
    ),
    "babyvision": [
        _baby(1, "choice", ["left", "right", "neither"], 2, None),
        _baby(2, "choice", [], 1, None),
        _baby(3, "blank", [], None, "(4,7)"),
        _baby(4, "blank", [], None, "5"),
        _baby(5, "blank", [], None, "red"),
        _baby(6, "choice", ["a", "b"], 2, None),
        _baby(7, "draw", [], None, "x"),
    ],
}
