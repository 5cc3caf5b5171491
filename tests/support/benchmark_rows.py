"""Rows of the sets whose cells are plain values; "picture:red" stands for an image cell (benchmark_sets)."""

from typing import Any

TEN = [f"{n} cm" for n in range(1, 11)]


def _rows(columns: str, *rows: tuple[Any, ...], **same: Any) -> list[dict[str, Any]]:
    return [dict(zip(columns.split(), row, strict=True)) | same for row in rows]


def _pictured(row: dict[str, Any], *colours: str) -> dict[str, Any]:
    pictures = [f"picture:{colour}" for colour in colours] + [None] * (7 - len(colours))
    return row | {f"image_{number}": cell for number, cell in enumerate(pictures, start=1)}


def _mmmu(number: int, question: str, options: str, answer: str, kind: str, *colours: str) -> dict[str, Any]:
    row = {"id": f"validation_Basic_Medical_Science_{number}", "question": question, "options": options}
    return _pictured(row | {"answer": answer, "question_type": kind, "explanation": ""}, *colours)


MMMU = [
    _mmmu(1, "What does <image 1> show?", "['a cell', 'a nerve', 'a bone', 'a vein']", "B", "multiple-choice", "red"),
    _mmmu(
        2,
        "Compare <image 2> with <image 1>. Is <image 2> older?",
        "['Yes', 'No']",
        "A",
        "multiple-choice",
        "red",
        "blue",
    ),
    _mmmu(
        3,
        "Which follows? <image 1>",
        "['<image 3>', '<image 2>', 'none of them']",
        "A",
        "multiple-choice",
        *("red", "blue", "green"),
    ),
    _mmmu(4, "What is the cost, in dollars?", "[]", "['63,020', '$63.02 thousand']", "open", "red"),
    _mmmu(5, "What is the ratio? <image 1>", "[]", "0.33", "open", "red"),
    _mmmu(6, "Name the shape. <image 1>", "[]", "even circle", "open", "red"),
    _mmmu(7, "See <image 2>.", "['1', '2']", "A", "multiple-choice", "red"),
    _mmmu(8, "See <image 1>.", "['1', '2']", "?", "multiple-choice", "red"),
    _mmmu(9, "See <image 1>.", "__import__('os').getcwd()", "A", "multiple-choice", "red"),
    _mmmu(10, "See <image 1>.", "['it\\'s, 5', '5 or \"6\"', '5', '$\\\\frac{1}{2}$']", "D", "multiple-choice", "red"),
    _mmmu(11, "Which? <image 1>", "['3', '3', '4']", "B", "multiple-choice", "red"),
    _mmmu(13, "How large? <image 1>", "[]", "0.004", "open", "red"),
    _mmmu(14, "How small? <image 1>", "[]", "6.02e-23", "open", "red"),
    _mmmu(15, "What is in <image 2>?", "['1', '2']", "A", "multiple-choice", "red", "blue"),
    _mmmu(12, "Which? <image 1>", "['3', '4']", "E", "multiple-choice", "red"),
]

_STANDARD = [
    _pictured({"id": "test_Art_1", "question": "How long is <image 1>?", "options": str(TEN), "answer": "J"}, "red"),
    _pictured(
        {"id": "test_Art_2", "question": "Which?", "options": str(["I", "J", "K"]), "answer": "A"}, "red", "blue"
    ),
]
MMMU_PRO: dict[str, list[dict[str, Any]]] = {
    "standard": [row | {"subject": "Art"} for row in _STANDARD],
    "standard4": [
        _pictured({"id": "test_Art_1", "question": "Which?", "options": str(TEN[:4]), "answer": "D"}, "red")
        | {"subject": "Art"},
        _pictured(
            {"id": "test_Art_2", "question": "Who?", "options": "[['A', 'B', 'Nobody can tell']]", "answer": "C"}, "red"
        )
        | {"subject": "Art"},
    ],
    "vision": _rows(
        "id options answer",
        ("test_Art_1", str(TEN), "J"),
        ("test_Art_2", str(TEN), "K"),
        image="picture:red",
        subject="Art",
    ),
}

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "hmmt25": _rows(
        "problem_idx problem answer",
        (1, "Compute the sum.", "\\frac{1}{576}"),
        (2, "Find all values.", "\\frac{-1+\\sqrt{17}}{2}, \\frac{-1-\\sqrt{17}}{2}"),
        (3, "Compute.", "2^{25} \\cdot 26!"),
        (4, "Compute.", ""),
    ),
    "logicvista": _rows(
        "question answer skill",
        ("Which figure follows? Choose from A, B, C, D.", "B", ["inductive"]),
        ("Which two are the same? Choose from A, B, C, D.", "A, C", ["spatial", "mechanical"]),
        ("Which is it?", "", ["numerical"]),
        ("Which is it?", "3 and 4", ["numerical"]),
        ("Which fit?\nA. red\nB. blue\nC. green", "A, C", ["spatial"]),
        ("Which fits? A. red B. blue C. green", "b", ["spatial"]),
        image="picture:green",
    ),
    "chartqa": _rows(
        "type question answer",
        ("human_test", "What is the value?", "100"),
        ("augmented_test", "What is the lowest?", "0"),
        ("human_test", "What share?", "5%"),
        ("augmented_test", "Which country?", "Brazil"),
        ("human_test", "How many?", "1,250"),
        ("human_test", "?", ""),
        image="picture:blue",
    ),
    "realworldqa": _rows(
        "question answer",
        (
            "Which is bigger?\nA. The car\nB. The van\nC. A tie\n"
            "Please answer directly with only the letter of the correct option and nothing else.",
            "B",
        ),
        ("Is the light red? Please answer directly with a single word or number.", "Yes"),
        ("How many cars are there? Please answer directly with a single word or number.", "3"),
        ("Which lane? Please answer directly with only the letter.", "C"),
        ("Please answer directly what the sign says. Is it red?", "no"),
        ("What is it?", None),
        image="picture:green",
    ),
    "countbench": _rows(
        "question number",
        ("How many discs are there in the image?", 1),
        ("How many eggs are there in the image?", 10),
        ("How many?", None),
        image="picture:red",
        text="a picture",
    ),
}
