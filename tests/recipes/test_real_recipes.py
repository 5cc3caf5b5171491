"""Recipes of other people's sets, each on rows with the columns of the real one; expectations are worked by hand."""

import importlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import yaml
from recipe_helpers import IMAGE, cell, drawing, encoded, lines, parquet, picture, read, shown

from data_recipes import RECIPES, reading
from data_recipes.code_problems import cases
from data_recipes.dapo_math import without_instruction
from data_recipes.reading import LeftOut, Row, pick_reward, unwrap
from data_recipes.refcoco import thousandths
from rewards import REWARDS, RewardInput
from sapo_vl.data.problem_set import DataError, ProblemSet
from sapo_vl.types import Problem

TEXT = pa.string()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build(tmp_path: Path, name: str, **arguments: Any) -> tuple[list[Problem], dict[str, Any]]:
    """The problems of train and test in the order of the source, and the manifest."""
    manifest = RECIPES[name](tmp_path / "out", **arguments)
    return read(tmp_path / "out"), manifest


def facts(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(p.answer, p.reward) for p in problems]


# --- pictures


def test_clevr_in_easyr1s_form(tmp_path: Path) -> None:
    schema = {"images": pa.list_(IMAGE), "problem": TEXT, "answer": TEXT}
    question = "<image>How many different items are there in the image?"
    rows = [{"images": [cell(i)], "problem": question, "answer": str(i)} for i in range(3)]
    source = parquet(tmp_path / "src", schema, train=rows[:2], test=rows[2:])
    RECIPES["clevr_count"](tmp_path / "out", source=source)
    (first, second), (third,) = read(tmp_path / "out", "train"), read(tmp_path / "out", "test")
    assert facts([first, second, third]) == [("0", "count"), ("1", "count"), ("2", "count")]
    assert shown(first) == ["IMAGE", "How many items are there in the image?"]
    assert np.array_equal(np.asarray(second.images[0]), np.asarray(picture(1)))
    readme = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(readme.split("---\n", 2)[1])
    assert front["license"] == "cc-by-4.0" and front["task_categories"] == ["visual-question-answering"]
    assert "CC BY 4.0" in readme and "| train | clevr_count | 2 |" in readme


def test_clevr_in_r1vs_form(tmp_path: Path) -> None:
    schema = {"image": IMAGE, "problem": TEXT, "solution": TEXT}
    rows = [{"image": cell(i), "problem": "How many items?", "solution": f"<answer> {i} </answer>"} for i in range(4)]
    source = parquet(tmp_path / "src", schema, train=rows)
    problems, manifest = build(tmp_path, "clevr_count", source=source, test_from="", test_rows=1)
    assert facts(problems) == [(str(i), "count") for i in range(4)]
    assert all(shown(p) == ["IMAGE", "How many items?"] for p in problems)
    assert {split: sum(n.values()) for split, n in manifest["rows"].items()} == {"test": 1, "train": 3}


def test_geoqa_golds_are_numbers_latex_and_letters(tmp_path: Path) -> None:
    schema = {"image": IMAGE, "problem": TEXT, "solution": TEXT}
    golds = ["<answer> 145° </answer>", "<answer>B</answer>", r"<answer>4\sqrt{3}</answer>", "<answer>12</answer>"]
    rows = [{"image": cell(i), "problem": f"Angle {i}?", "solution": gold} for i, gold in enumerate(golds)]
    problems, manifest = build(tmp_path, "geoqa", source=parquet(tmp_path / "s", schema, train=rows), test_rows=1,
                               check_golds=False)  # fmt: skip
    assert facts(problems) == [("145°", "math"), ("B", "choice"), (r"4\sqrt{3}", "math"), ("12", "math")]
    assert "letter of the option" in problems[1].messages[0]["content"][-1]["text"]
    assert manifest["card"]["licence"] == "unknown"
    assert "licence unknown" in (tmp_path / "out/README.md").read_text()


def test_virl39k_paths_boxes_and_missing_markers(tmp_path: Path) -> None:
    folder = tmp_path / "ViRL39K"
    (folder / "images").mkdir(parents=True)
    for i in range(3):
        (folder / f"images/p{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))
    rows = [
        {"question": "What is x?", "answer": r"\boxed{\frac{1}{2}}", "image": ["images/p0.jpg"], "category": "Math"},
        {"question": "<image>Pick. A. 1 B. 2", "answer": r"\boxed{B}", "image": ["images/p1.jpg"], "category": "Chart"},
        {"question": "Sum?", "answer": r"\boxed{7}", "image": ["images/p1.jpg", "images/p2.jpg"], "category": "Math"},
        {"question": "Gone?", "answer": r"\boxed{7}", "image": ["images/p9.jpg"], "category": "Math"},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "39Krelease.parquet"))
    problems, manifest = build(
        tmp_path,
        "virl39k",
        source=str(folder / "39Krelease.parquet"),
        test_rows=1,
        max_bad_share=0.5,
        seed=drawing(0, 4),
    )
    assert {p.answer: (p.reward, shown(p), p.meta["category"]) for p in problems} == {
        r"\frac{1}{2}": ("math", ["IMAGE", "What is x?"], "Math"),
        "B": ("choice", ["IMAGE", "Pick. A. 1 B. 2"], "Chart"),
        "7": ("math", ["IMAGE", "IMAGE", "Sum?"], "Math"),
    }
    assert [p.meta.get("options") for p in problems if p.answer == "B"] == [{"A": "1", "B": "2"}]
    assert sum(manifest["notes"][s]["left_out"].get("image missing", 0) for s in ("train", "test")) == 1


def test_mmk12_and_mm_eureka(tmp_path: Path) -> None:
    schema = {"id": TEXT, "question": TEXT, "image": IMAGE, "answer": TEXT, "subject": TEXT}
    rows = [
        {"id": str(i), "question": f"<image>Side {i}?", "image": cell(i), "answer": a, "subject": "math"}
        for i, a in enumerate(["12", "C"])
    ]
    source = parquet(tmp_path / "src", schema, train=rows[:1], test=rows[1:])
    RECIPES["mmk12"](tmp_path / "k12", source=source)
    assert facts(read(tmp_path / "k12", "train")) == [("12", "math")]
    assert facts(read(tmp_path / "k12", "test")) == [("C", "choice")]

    folder = tmp_path / "eureka"
    (folder / "images").mkdir(parents=True)
    messages = []
    for i in range(2):
        (folder / f"images/{i}.png").write_bytes(encoded(picture(i)))
        parts = [{"type": "image", "image": f"file://{folder}/images/{i}.png"}, {"type": "text", "text": f"Area {i}?"}]
        messages.append(json.dumps([{"role": "system", "content": "Be good."}, {"role": "user", "content": parts}]))
    outside = json.dumps([{"role": "user", "content": [{"type": "image", "image": "file:///etc/hostname"}]}])
    rows = [{"id": str(i), "message": m, "answer": "$5$"} for i, m in enumerate([*messages, outside])]
    problems, manifest = build(
        tmp_path, "mmk12", source=lines(folder / "data.jsonl", rows), test_rows=1, max_bad_share=0.5, seed=drawing(0, 3)
    )
    assert [shown(p) for p in problems] == [["IMAGE", "Area 0?"], ["IMAGE", "Area 1?"]]
    left_out = [manifest["notes"][split]["left_out"] for split in ("train", "test")]
    assert {reason for counts in left_out for reason in counts} == {"image outside"}


def test_open_r1_multimodal_takes_the_answer_out_of_the_solution(tmp_path: Path) -> None:
    schema = {"image": IMAGE, "problem": TEXT, "solution": TEXT, "original_question": TEXT, "original_answer": TEXT}
    solutions = ["<think>a</think>\n\n<answer> 30 </answer>", "<think>b</think><answer>A</answer>", "<think>cut"]
    rows = [{"image": cell(i), "problem": f"Find {i}.", "solution": s} for i, s in enumerate(solutions)]
    source = parquet(
        tmp_path / "src", schema, train=[{"original_question": "", "original_answer": "", **r} for r in rows]
    )
    problems, manifest = build(tmp_path, "open_r1_multimodal", source=source, test_rows=1, seed=drawing(0, 3))
    assert facts(problems) == [("30", "math"), ("A", "choice")]
    assert problems[0].solution == solutions[0]
    assert sum(manifest["notes"][s]["left_out"].get("no answer in the solution", 0) for s in ("train", "test")) == 1


def test_refcoco_boxes_become_thousandths(tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    (folder / "train2014").mkdir(parents=True)
    rows = []
    for i, box in enumerate(["[10, 15, 30, 45]", "[0, 0, 40, 30]", "[30, 10, 10, 20]"]):
        (folder / f"train2014/{i}.png").write_bytes(encoded(picture(i, (40, 60))))
        rows.append(
            {
                "id": i,
                "image": f"train2014/{i}.png",
                "conversations": [
                    {"from": "human", "value": f"<image>Please provide the bounding box of the region this sentence"
                     f" describes: the red one {i}."},
                    {"from": "gpt", "value": box},
                ],
            }
        )  # fmt: skip
    problems, manifest = build(
        tmp_path,
        "refcoco",
        source=lines(folder / "train.jsonl", rows),
        test_rows=1,
        max_bad_share=0.9,
        seed=drawing(0, 3),
    )
    # 10/40, 15/60, 30/40, 45/60 and 0, 0, 40/40, 30/60
    assert [p.answer for p in problems] == ["250.0, 250.0, 750.0, 750.0", "0.0, 0.0, 1000.0, 500.0"]
    assert all(p.reward == "box" and p.meta == {"coords": "0-1000"} for p in problems)
    assert shown(problems[0]) == ["IMAGE", "Find the region that this phrase describes: the red one 0"]
    assert sum(manifest["notes"][s]["left_out"].get("malformed row", 0) for s in ("train", "test")) == 1


def test_refcoco_evaluation_rows(tmp_path: Path) -> None:
    schema = {
        "question_id": TEXT, "image": IMAGE, "question": TEXT, "answer": pa.list_(TEXT), "bbox": pa.list_(pa.float32()),
        "file_name": TEXT,
    }  # fmt: skip
    rows = [
        {"question_id": str(i), "image": cell(i), "question": "?", "answer": ["left cup", "the cup"],
         "bbox": [10.0, 6.0, 20.0, 15.0], "file_name": "f"} for i in range(2)
    ]  # fmt: skip
    source = parquet(tmp_path / "src", schema, val=rows[:1], testA=rows[1:])
    problems, _ = build(tmp_path, "refcoco", source=source, train_from="val", test_from="testA")
    # x, y, width, height of an image of 40 x 30: 10/40, 6/30, 30/40, 21/30
    assert {p.answer for p in problems} == {"250.0, 200.0, 750.0, 700.0"}
    assert shown(problems[0])[1].endswith("left cup")


def test_refcoco_rows_of_whole_pictures(tmp_path: Path) -> None:
    """The set that is opened without a source: its splits are the defaults, the first region of a picture is asked."""
    sentence = pa.struct([("raw", TEXT), ("sent", TEXT), ("sent_id", pa.int64())])
    region = pa.struct(
        [
            ("ann_info", pa.struct([("bbox", pa.list_(pa.float64())), ("id", pa.int64())])),
            ("ref_info", pa.struct([("ref_id", pa.int64()), ("sentences", pa.list_(sentence))])),
        ]
    )

    def regions(*boxes: list[float]) -> list[dict[str, object]]:
        said = [{"raw": "The cup!", "sent": "the cup", "sent_id": 1}, {"raw": "it", "sent": "it", "sent_id": 2}]
        return [{"ann_info": {"bbox": box, "id": 1}, "ref_info": {"ref_id": 1, "sentences": said}} for box in boxes]

    schema = {"ref_list": pa.list_(region), "image": IMAGE}
    rows = [
        {"ref_list": regions([10.0, 6.0, 20.0, 15.0], [0.0, 0.0, 1.0, 1.0]), "image": cell(0)},
        {"ref_list": regions([0.0, 0.0, 40.0, 30.0]), "image": cell(1)},
        {"ref_list": [], "image": cell(2)},
    ]
    source = parquet(tmp_path / "src", schema, refcoco_unc_val=rows[:1], refcoco_unc_testA=rows[1:])
    problems, manifest = build(tmp_path, "refcoco", source=source, max_bad_share=0.9)
    # x, y, width, height of images of 40 x 30: 10/40, 6/30, 30/40, 21/30; the whole picture
    assert {p.answer for p in problems} == {"250.0, 200.0, 750.0, 700.0", "0.0, 0.0, 1000.0, 1000.0"}
    assert all(shown(p)[1].endswith("describes: the cup") for p in problems)
    assert manifest["notes"]["test"]["left_out"] == {"malformed row": 1}


def test_a_box_outside_of_its_image_is_no_gold() -> None:
    assert thousandths([0.0, 0.0, 100.3, 50.0], (100, 50)) == "0.0, 0.0, 1000.0, 1000.0"
    for corners in ([0, 0, 102, 50], [-3, 0, 10, 10], [5, 5, 5, 9]):
        with pytest.raises(ValueError, match="no box of an image of 100x50"):
            thousandths(corners, (100, 50))


# --- text


def test_dapo_is_de_duplicated_also_across_the_splits(tmp_path: Path) -> None:
    asked = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )
    schema = {
        "data_source": TEXT,
        "prompt": pa.list_(pa.struct([("content", TEXT), ("role", TEXT)])),
        "ability": TEXT,
        "reward_model": pa.struct([("ground_truth", TEXT), ("style", TEXT)]),
        "extra_info": pa.struct([("index", TEXT)]),
    }

    def row(number: int) -> dict[str, Any]:
        return {
            "data_source": "math_dapo",
            "prompt": [{"content": asked.format(f"What is {number} squared?"), "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(number**2), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": str(number)},
        }

    rows = [row(number) for _ in range(20) for number in range(2, 7)]
    problems, manifest = build(tmp_path, "dapo_math", source=parquet(tmp_path / "s", schema, train=rows), test_rows=2)
    assert sorted(shown(p)[0] for p in problems) == [f"What is {number} squared?" for number in range(2, 7)]
    assert sum(manifest["notes"][s]["left_out"]["duplicate"] for s in ("train",)) + len(problems) >= 98
    notes = manifest["notes"]
    assert notes["train"]["rows"] == 98 and notes["test"]["rows"] == 2
    assert notes["train"]["kept"] + notes["test"]["kept"] == 5
    assert {p.reward for p in problems} == {"math"}


def test_dapos_own_words_go_and_nothing_else() -> None:
    assert without_instruction("What is 2+2?") == "What is 2+2?"
    assert without_instruction("Solve it.\n\nNow.") == "Solve it.\n\nNow."


@pytest.mark.slow
def test_deepmath_leaves_out_rows_that_give_their_answer_away(tmp_path: Path) -> None:
    schema = {"question": TEXT, "final_answer": TEXT, "difficulty": pa.float64(), "topic": TEXT}
    rows = [
        ("Evaluate the limit of x.", "\\frac{\\pi^2}{6}"),
        ("Show it. The answer is $\\frac{1}{e}$.", "\\frac{1}{e}"),
        ("Prove that the sum is \\dfrac{22\\pi}{7+e} or not.", "\\dfrac{22\\pi}{7+e}"),
        ("Is 4 even?", "\\text{Yes}"),
        ("Which of 4 and 9 is larger?", "9"),
        ("Find f.", "\\int \\sqrt{"),
    ]
    rows = [{"question": q, "final_answer": a, "difficulty": 5.0, "topic": "Algebra"} for q, a in rows]
    source = parquet(tmp_path / "s", schema, train=rows)
    problems, manifest = build(tmp_path, "deepmath", source=source, test_rows=1, seed=drawing(3, 6))
    assert sorted(facts(problems)) == sorted([("\\frac{\\pi^2}{6}", "math"), ("\\text{Yes}", "math"), ("9", "math")])
    left_out: dict[str, int] = {}
    for split in ("train", "test"):
        for reason, count in manifest["notes"][split]["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + count
    assert left_out == {"answer in the question": 2, "gold unparsable": 1}


# --- programs


@pytest.mark.parametrize(
    ("given", "meta"),
    [
        ({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]},
         {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "3 4\n", "output": "7\n"}]}),
        ({"inputs": [["1", "2"]], "outputs": [["3"]]}, {"tests": [{"input": "1\n2\n", "output": "3\n"}]}),
        ({"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]},
         {"asserts": ["assert add(1, 2) in ([3], 3)"], "entry_point": "add"}),
        ({"fn_name": "add", "inputs": ["1\n\"b\""], "outputs": ["\"1b\""]},
         {"asserts": ["assert add(1, 'b') == '1b'"], "entry_point": "add"}),
        ({"language": "python", "test_cases": [{"fn_name": None, "input": "1\n", "output": "2\n", "type": "stdin"}]},
         {"tests": [{"input": "1\n", "output": "2\n"}]}),
        ({"assert_case": ["assert f(1) == 2"]}, {"asserts": ["assert f(1) == 2"]}),
        (["assert f(1) == 2", "assert f(2) == 3"], {"asserts": ["assert f(1) == 2", "assert f(2) == 3"]}),
        ({"style": "rule", "ground_truth": json.dumps({"inputs": ["1"], "outputs": ["2"]})},
         {"tests": [{"input": "1", "output": "2"}]}),
    ],
)  # fmt: skip
def test_shapes_of_test_cases(given: Any, meta: dict[str, Any]) -> None:
    assert cases(given) == meta
    assert cases(json.dumps(given)) == meta


def test_test_cases_that_are_none() -> None:
    for wrong in (
        "{",
        "[]",
        {"inputs": ["1"], "outputs": []},
        {"fn_name": "a b", "inputs": ["1"], "outputs": ["2"]},
        7,
    ):
        with pytest.raises(ValueError, match=r"JSON|shape|length|name of a function"):
            cases(wrong)
    with pytest.raises(LeftOut, match=r"program in c\+\+"):
        cases({"language": "C++", "test_cases": []})


def test_reference_programs_must_pass_their_tests(tmp_path: Path) -> None:
    sums = {"test_cases": [{"type": "stdin_stdout", "fn_name": "", "input": "1 2", "output": "3"}]}
    double = {"test_cases": [{"type": "function_call", "fn_name": "double", "input": [4], "output": [8]}]}
    rows = [
        {"problem": "Add two numbers.", "gold_standard_solution": "print(sum(map(int, input().split())))",
         "verification_info": json.dumps(sums)},
        {"problem": "Double a number.", "gold_standard_solution": "```python\ndef double(n):\n    return 2 * n\n```",
         "verification_info": json.dumps(double)},
        {"problem": "Add wrongly.", "gold_standard_solution": "print(4)", "verification_info": json.dumps(sums)},
        {"problem": "No program.", "gold_standard_solution": None, "verification_info": json.dumps(sums)},
        {"problem": "No tests.", "gold_standard_solution": "pass", "verification_info": None},
    ]  # fmt: skip
    problems, manifest = build(
        tmp_path,
        "code_problems",
        source=lines(tmp_path / "c.jsonl", rows),
        test_rows=1,
        max_bad_share=0.5,
        seed=drawing(0, 5),
    )
    assert [shown(p) for p in problems] == [["Add two numbers."], ["Double a number."], ["No program."]]
    notes = manifest["notes"].values()
    assert sum(n["golds_unchecked"] for n in notes) == 1
    assert {r for n in notes for r in n["left_out"]} == {"gold rejected", "malformed row"}


# --- logic


@pytest.mark.slow
def test_reasoning_gym_puzzles_have_golds_of_our_rewards(tmp_path: Path) -> None:
    problems, manifest = build(tmp_path, "reasoning_gym", seed=3, n_train=12, n_test=6)
    assert set(manifest["rows"]["train"]) == {
        "aiw", "circuit_logic", "knights_knaves", "self_reference", "syllogism", "zebra_puzzles",
    }  # fmt: skip
    assert {p.task: p.reward for p in problems} == {
        "aiw": "number", "circuit_logic": "number", "knights_knaves": "json_grid", "self_reference": "number",
        "syllogism": "word", "zebra_puzzles": "word",
    }  # fmt: skip
    questions = [json.dumps(p.messages) for p in problems]
    assert len(set(questions)) == 18
    for problem in problems:
        if problem.task == "knights_knaves":
            gold = json.loads(problem.answer)
            assert all(name in shown(problem)[0] and role["is"] in shown(problem)[0] for name, role in gold.items())
            assert "Format your answer" not in shown(problem)[0]
    RECIPES["reasoning_gym"](tmp_path / "again", seed=3, n_train=12, n_test=6)
    assert [p.messages for p in read(tmp_path / "again")] == [p.messages for p in problems]
    with pytest.raises(DataError, match="task 'chess'; there are aiw"):
        RECIPES["reasoning_gym"](tmp_path / "no", tasks="chess")


def test_a_knights_puzzle_is_solved_by_its_gold(tmp_path: Path) -> None:
    """By hand: the statements as trees, evaluated under the gold, must be true exactly for the truthful."""
    import reasoning_gym

    from data_recipes.reasoning_gym import knights

    def holds(tree: tuple, truthful: tuple[bool, ...]) -> bool:
        kind, *rest = tree
        if kind == "telling-truth":
            return truthful[rest[0]]
        if kind == "lying":
            return not truthful[rest[0]]
        parts = [holds(part, truthful) for part in rest]
        return {
            "not": lambda: not parts[0], "and": lambda: all(parts), "or": lambda: any(parts),
            "->": lambda: not parts[0] or parts[1], "<=>": lambda: parts[0] == parts[1],
        }[kind]()  # fmt: skip

    for entry in reasoning_gym.create_dataset("knights_knaves", size=20, seed=1):
        meta = entry["metadata"]
        gold = json.loads(knights(entry)[2])
        knight = meta["knight_knave_terms"]["knight"]
        truthful = tuple(gold[str(name)]["is"] == knight for name in meta["names"])
        assert all(holds(tree, truthful) == truthful[i] for i, tree in enumerate(meta["statements"]))


# --- any file


def rows_of(form: str, folder: Path) -> list[dict[str, Any]]:
    """Two rows of a form, whose questions are "Side 0?" and "Side 1?" and whose answers 4 and \\sqrt{3}."""
    found = []
    for i, gold in enumerate(["4", r"\sqrt{3}"]):
        (folder / f"{i}.png").write_bytes(encoded(picture(i)))
        path, ask = f"{i}.png", f"Side {i}?"
        found.append(
            {
                "columns": {"photo": path, "ask": ask, "total": gold},
                "easyr1": {"images": [path], "problem": f"<image>{ask}", "answer": gold},
                "r1v": {"image": path, "problem": ask, "solution": f"<answer> {gold} </answer>"},
                "llava": {"image": path, "conversations": [{"from": "human", "value": f"<image>\n{ask}"},
                                                           {"from": "gpt", "value": f"So. The answer is {gold}"}]},
                "sharegpt": {"images": [path], "messages": [{"role": "user", "content": f"<image>{ask}"},
                                                            {"role": "assistant", "content": rf"\boxed{{{gold}}}"}]},
                "verl": {"images": [{"path": path}], "prompt": [{"role": "user", "content": f"<image>{ask}"}],
                         "reward_model": {"style": "rule", "ground_truth": gold}},
            }[form]
        )  # fmt: skip
    return found


@pytest.mark.parametrize("form", ["columns", "easyr1", "r1v", "llava", "sharegpt", "verl"])
def test_any_file_in_a_usual_shape(form: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    source = lines(tmp_path / "src/rows.jsonl", rows_of(form, tmp_path / "src"))
    named = {"image": "photo", "question": "ask", "answer": "total"} if form == "columns" else {}
    problems, manifest = build(
        tmp_path,
        "columns",
        source=source,
        form=form,
        test_rows=1,
        task="sides",
        licence="CC0",
        check_golds=False,
        **named,
    )
    assert facts(problems) == [("4", "math"), (r"\sqrt{3}", "math")]
    assert [shown(p) for p in problems] == [["IMAGE", "Side 0?"], ["IMAGE", "Side 1?"]]
    assert np.array_equal(np.asarray(problems[1].images[0]), np.asarray(picture(1)))
    assert {p.task for p in problems} == {"sides"} and manifest["card"]["licence"] == "CC0"


@pytest.mark.parametrize(
    ("instruction", "behind"),
    [("Say it.", ["\nSay it."]), ("none", []), ("", ["\nThink step by step between <think> and </think>, then give "
                                                   "only the final answer between <answer> and </answer>."])],
)  # fmt: skip
def test_what_is_said_behind_a_question(instruction: str, behind: list[str], tmp_path: Path) -> None:
    source = lines(tmp_path / "rows.jsonl", rows_of("easyr1", tmp_path))
    problems, _ = build(
        tmp_path, "columns", source=source, form="easyr1", test_rows=1, check_golds=False, instruction=instruction
    )
    for i, problem in enumerate(problems):
        [turn] = problem.messages
        assert [part.get("text") for part in turn["content"]] == [None, f"Side {i}?", *behind]


def test_long_talks_have_no_single_gold(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "1"}] * 2
    rows = [{"conversations": talk}] + [
        {"conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": str(i)}]} for i in (1, 2)
    ]
    problems, manifest = build(
        tmp_path, "columns", source=lines(tmp_path / "r.jsonl", rows), form="llava", test_rows=1, seed=drawing(1, 3)
    )
    assert len(problems) == 2
    assert {r for n in manifest["notes"].values() for r in n["left_out"]} == {"more than one exchange"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "source is missing"),
        ({"source": "r.jsonl", "form": "alpaca"}, "form='alpaca'; there are columns"),
        ({"source": "r.jsonl", "reward": "bleu"}, "reward='bleu'; there are box"),
        ({"source": "r.jsonl", "question": "ask"}, r"lacks the columns \['ask'\]"),
        ({"source": "r.jsonl", "test_rows": 9}, "test_rows=9: .* has 2 rows"),
    ],
)
def test_a_column_map_that_does_not_fit(arguments: dict, words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "r.jsonl", [{"question": f"{i}?", "answer": "1"} for i in range(2)])
    with pytest.raises(DataError, match=words):
        RECIPES["columns"](tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "gold", "reward"),
    [
        ("<answer> 3 </answer>", "3", "math"), (r"so \boxed{\frac{2}{3}}", r"\frac{2}{3}", "math"),
        ("The answer is (B).", "(B)", "choice"), ("One more.\nThe final answer is: 12 cm.", "12 cm", "math"),
        ("1/2", "1/2", "math"), ("dark green", "dark green", "word"), ("Yes", "Yes", "word"), ("x", "x", "math"),
        ("The answer isolates y", "The answer isolates y", "word"), ("9" * 30, "9" * 30, "math"),
        ("9" * 31, "9" * 31, "number"), ("0." + "3" * 30, "0." + "3" * 30, "number"),
    ],
)  # fmt: skip
def test_what_an_answer_column_holds(column: str, gold: str, reward: str) -> None:
    assert unwrap(column) == gold
    assert pick_reward(gold) == reward


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (
            "45",
            ["45", r"45^\circ", "45 cm", "x = 45", r"\$45", "45.0", r"\dfrac{90}{2}"],
            ["54", "45 or 54", "x + 1 = 45"],
        ),
        ("1/2", [r"\dfrac12", "0.5", r"\frac{2}{4}"], ["2", "0.51", "1/2, 3"]),
        ("9" * 31, ["9" * 31], ["9" * 30 + "8"]),
    ],
)
def test_a_number_may_be_written_as_where_it_is_measured(gold: str, right: list[str], wrong: list[str]) -> None:
    def score(answer: str) -> float:
        text, reward = f"<answer>{answer}</answer>", REWARDS[pick_reward(gold)]
        return reward(RewardInput(text=text, num_tokens=9, max_tokens=99, finish="stop", answer=gold)).score

    assert {answer: score(answer) for answer in right + wrong} == {a: float(a in right) for a in right + wrong}


@pytest.mark.parametrize(
    ("text", "answer", "meta", "options"),
    [
        ("Even? (A) yes (B) no", "B", {}, {"A": "yes", "B": "no"}),
        ("Even?\nA. yes\nB. no", "(B)", {}, {"A": "yes", "B": "no"}),
        ("Which? (A) <image> (B) <image> (C) none", "C", {}, {"A": "", "B": "", "C": "none"}),
        ("Even? (A) yes (B) no", "C", {}, None),  # not all of them stand there
        ("Which is it, A or B?", "B", {}, None),
        ("Even? (A) yes (B) no", "B", {"options": {"A": "y", "B": "n"}}, {"A": "y", "B": "n"}),
        ("Even? (A) yes (B) no", "B", {"choices": ["y", "n"]}, None),
        ("Even? (A) yes (B) no", "no", {}, None),  # a word
    ],
)
def test_the_reward_choice_is_told_the_options_of_a_question(
    text: str, answer: str, meta: dict[str, Any], options: dict[str, str] | None
) -> None:
    row = Row(index=0, id="r", cells={}, image=lambda cell: cell)
    cells = [picture(0)] * text.count("<image>")
    made = reading.problem(row, task="t", text=text, answer=answer, cells=cells, meta=meta)
    assert made.meta.get("options") == options and made.meta.keys() - {"options"} == meta.keys() - {"options"}


# --- mixtures


def test_a_mixture_names_tasks_by_set_and_keeps_test_rows_out_of_training(tmp_path: Path) -> None:
    for name, numbers in (("a", range(6)), ("b", range(4, 9))):
        rows = [{"image": f"{n}.png", "question": f"How many, {n}?", "answer": str(n)} for n in numbers]
        source = lines(tmp_path / name / "rows.jsonl", rows)
        for n in numbers:
            (tmp_path / name / f"{n}.png").write_bytes(encoded(picture(n)))
        RECIPES["columns"](tmp_path / f"set_{name}", source=source, test_rows=2, seed=1)
    sets = f"first={tmp_path}/set_a,second={tmp_path}/set_b"
    manifest = RECIPES["mixture"](tmp_path / "mix", sets=sets)
    test = ProblemSet(tmp_path / "mix", "test")
    train = ProblemSet(tmp_path / "mix", "train")
    asked = {split: {rows.get(i).answer for i in range(len(rows))} for split, rows in (("te", test), ("tr", train))}
    assert asked["te"] & asked["tr"] == set() and asked["te"] | asked["tr"] == {str(n) for n in range(9)}
    assert set(manifest["rows"]["test"]) <= {"first", "second"} and train.get(0).meta["task_of_set"] == "data"
    assert [s["task"] for s in manifest["notes"]["sets"]] == ["first", "second"]
    assert len(test) + len(train) + sum(sum(manifest["notes"][s]["left_out"].values()) for s in ("test", "train")) == 11
    with pytest.raises(DataError, match="write sets=math="):
        RECIPES["mixture"](tmp_path / "no", sets="")


def test_the_card_of_every_recipe_states_a_licence() -> None:
    cards = {}
    for name in RECIPES:
        module = importlib.import_module(f"data_recipes.{name}")
        cards[name] = getattr(module, "CARD", None) or getattr(getattr(module, "SET", None), "card", None)
    # The user says it for the one; the other is drawn here.
    assert [name for name, card in cards.items() if card is None] == ["visual_puzzles", "columns"]
    assert all(card.licence and card.source for card in cards.values() if card)
