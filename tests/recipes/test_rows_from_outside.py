"""Rows as people have them and not as this project writes them: each is read as it was meant, or left out by name."""

from __future__ import annotations

import base64
import codecs
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from recipe_helpers import drawing, encoded, lines, picture, read

from data_recipes import RECIPES
from data_recipes.filters import SPECIAL_TOKENS
from data_recipes.forms import FORMS, one_exchange
from data_recipes.reading import LeftOut, Row
from sapo_vl.commands.cli import main
from sapo_vl.model.tiny import SPECIAL_TOKENS as TINY_TOKENS
from sapo_vl.types import Problem

NAN = float("nan")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))
    return tmp_path


def good(i: int, **more: Any) -> dict[str, Any]:
    return {"image": f"{i}.png", "question": f"how many red points in picture {i}?", "answer": str(i), **more}


def build(
    folder: Path, rows: list[dict[str, Any]], form: str = "columns", **arguments: Any
) -> tuple[list[Problem], dict[str, int], dict[str, Any]]:
    """Problems, what was left out by reason, and the counts of the training split; row 0 is the test split."""
    if "source" not in arguments:
        arguments["source"] = lines(folder / "rows.jsonl", rows)
    settings: dict[str, Any] = {"test_rows": 1, "seed": drawing(0, len(rows)), "max_bad_share": 0.9} | arguments
    notes = RECIPES["columns"](folder / "out", form=form, **settings)["notes"]
    for split in notes.values():
        assert split["kept"] + sum(split["left_out"].values()) == split["rows"]
    return read(folder / "out"), notes["train"]["left_out"], notes["train"]


# --- pictures


@pytest.mark.parametrize("size", [(1000, 4), (4, 1000), (1, 300)])
def test_a_strip_is_left_out_and_does_not_stop_the_build(size: tuple[int, int], folder: Path) -> None:
    Image.new("RGB", size).save(folder / "strip.png")
    rows = [*map(good, range(4)), good(4, image="strip.png")]
    problems, left_out, notes = build(folder, rows, max_bad_share=0.0)
    assert len(problems) == 4 and left_out == {"image aspect ratio": 1} and notes["bad_rows"] == 0
    assert f"{size[0]}x{size[1]} pixels" in notes["first_left_out"]["image aspect ratio"][0]


@pytest.mark.parametrize("cell", [None, "", " ", NAN, {"bytes": None, "path": None}, [None], [""]])
def test_a_picture_that_is_null_is_missing(cell: Any, folder: Path) -> None:
    rows = [good(0), good(1), good(2, image=cell)]
    problems, left_out, notes = build(folder, rows)
    assert len(problems) == 2 and left_out == {"image missing": 1} and notes["without_image"] == 0


def test_the_user_may_say_that_rows_have_no_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [good(0), good(1), good(2, image=None), good(3, image=[]), good(4, image="gone.png"), good(5)]
    del rows[5]["image"]
    problems, left_out, notes = build(folder, rows, text_only=True)
    assert [len(p.images) for p in problems] == [1, 1, 0, 0, 0]
    assert left_out == {"image missing": 1} and notes["without_image"] == 3
    # An empty list and no column at all say that there is none; they are counted all the same.
    command = ["recipe", "columns", "--out", str(folder / "two"), f"source={folder / 'rows.jsonl'}", "test_rows=1"]
    assert main([*command, f"seed={drawing(0, 6)}", "max_bad_share=0.9"]) == 0
    assert "train: 3 rows, 2 without a picture; left out: 2 image missing" in capsys.readouterr().out


def test_a_column_of_nulls_is_told_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lines(folder / "rows.jsonl", [good(i, image=None) for i in range(6)])
    assert main(["recipe", "columns", "--out", str(folder / "out"), f"source={source}", "test_rows=2"]) == 2
    assert "image missing: image 0: the image is missing" in capsys.readouterr().err


def test_base64_is_read_or_refused_by_its_name(folder: Path) -> None:
    written = [base64.b64encode(encoded(picture(i))).decode() for i in range(6)]
    cells = [
        written[0],
        "data:image/png;base64," + written[1],
        "\n".join([written[2][:70], written[2][70:]]),
        written[3].rstrip("=").replace("+", "-").replace("/", "_"),
        {"bytes": written[4]},
        written[5][:81],
    ]
    problems, left_out, notes = build(folder, [good(i, image=cell) for i, cell in enumerate(cells)])
    assert [p.images[0].tobytes() for p in problems] == [picture(i).tobytes() for i in range(5)]
    assert left_out == {"image damaged": 1} and "base64" in notes["first_left_out"]["image damaged"][0]


# --- golds and questions


@pytest.mark.parametrize("form", ["columns", "verl", "sharegpt"])
@pytest.mark.parametrize("gold", [NAN, float("inf"), float("-inf"), None, True, "", []])
def test_a_gold_that_is_no_text_is_a_malformed_row(gold: Any, form: str, folder: Path) -> None:
    def row(i: int, gold: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": f"<image>how many in {i}?"}]
        common = {"images": [f"{i}.png"]}
        if form == "verl":
            return common | {"prompt": turns, "reward_model": {"ground_truth": gold}}
        if form == "sharegpt":
            return common | {"messages": turns, "gold": gold}
        return good(i, answer=gold)

    more = {"answer": "gold"} if form == "sharegpt" else {}
    rows = [row(0, "1"), row(1, 2), row(2, 2.5), row(3, gold)]
    problems, left_out, _ = build(folder, rows, form, **more)
    assert [p.answer for p in problems] == ["1", "2", "2.5"] and left_out == {"malformed row": 1}


def test_nan_in_parquet_is_a_malformed_row(folder: Path) -> None:
    golds = [1.0, 2.0, NAN, None]
    columns = {"question": [f"{i}?" for i in range(4)], "answer": golds}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    problems, left_out, _ = build(folder, [{}] * 4, source=str(folder / "rows.parquet"))
    assert [p.answer for p in problems] == ["1.0", "2.0"] and left_out == {"malformed row": 2}


def test_golds_of_32_bits_are_as_short_as_they_were_written(folder: Path) -> None:
    golds = pa.array([0.1, 33.3, 2.0, NAN, None], pa.float32())
    columns = {"question": [f"{i}?" for i in range(5)], "answer": golds}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    problems, left_out, _ = build(folder, [{}] * 5, source=str(folder / "rows.parquet"))
    assert [p.answer for p in problems] == ["0.1", "33.3", "2.0"] and left_out == {"malformed row": 2}


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_none_na_and_null_are_words(name: str, folder: Path) -> None:
    words = ["None", "NA", "cat", "N/A", "null", "nan"]
    if name.endswith("csv"):
        text = "question,answer\n" + "".join(f"shown in {i}?,{w}\n" for i, w in enumerate([*words, ""]))
        (folder / name).write_text(text)
    else:
        lines(folder / name, [{"question": f"shown in {i}?", "answer": w} for i, w in enumerate([*words, None])])
    checked = name.endswith("csv")  # once: rewards in workers take their time
    problems, left_out, _ = build(folder, [{}] * 7, source=str(folder / name), check_golds=checked)
    assert [p.answer for p in problems] == words and left_out == {"malformed row": 1}


def test_no_row_is_lost_to_a_byte_order_mark(folder: Path) -> None:
    text = "".join(json.dumps(good(i)) + "\n" for i in range(6))
    (folder / "rows.jsonl").write_bytes(codecs.BOM_UTF8 + text.encode())
    problems, left_out, _ = build(folder, [{}] * 6, source=str(folder / "rows.jsonl"))
    assert len(problems) == 6 and not left_out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("half of a pair: \ud83d", "malformed row"),
        ("a whole pair: \U0001f600", ""),
        ("ends with \\u0000: \0", ""),
    ],
)
def test_text_that_is_no_unicode(text: str, reason: str, folder: Path) -> None:
    problems, left_out, _ = build(folder, [good(0), good(1), good(2, question=text)])
    assert left_out == ({reason: 1} if reason else {}) and len(problems) == 3 - len(left_out)


# --- special tokens


def test_the_list_has_the_tokens_of_the_family() -> None:
    assert {*TINY_TOKENS, "<|fim_prefix|>", "<|box_start|>", "<|placeholder|>"} <= {*SPECIAL_TOKENS}


@pytest.mark.parametrize("token", ["<|video_pad|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|im_start|>"])
def test_special_tokens_in_a_question_or_a_system_turn(token: str, folder: Path) -> None:
    def row(i: int, system: str, asked: str) -> dict[str, Any]:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": f"<image>{asked} {i}"}]
        return {"images": [f"{i}.png"], "prompt": turns, "reward_model": {"ground_truth": str(i)}}

    rows = [row(0, "s", "q"), row(1, "s", "a < | b |> im_end"), row(2, f"be{token}", "q"), row(3, "s", f"x{token}y")]
    problems, left_out, notes = build(folder, rows, "verl", max_bad_share=0.0)
    assert len(problems) == 2 and left_out == {"special token in the text": 2}
    assert all(token in shown for shown in notes["first_left_out"]["special token in the text"])


def test_special_tokens_in_a_solution_and_over_two_parts(folder: Path) -> None:
    rows = [{"image": f"{i}.png", "problem": f"Find {i}.", "solution": f"<answer>{i}</answer>"} for i in range(4)]
    rows[2]["solution"] = "<think>a<|im_end|></think><answer>2</answer>"
    arguments = {"test_rows": 1, "seed": drawing(0, 4), "test_from": ""}
    source = lines(folder / "rows.jsonl", rows)
    notes = RECIPES["open_r1_multimodal"](folder / "out", source=source, train_from="train", **arguments)["notes"]
    assert notes["train"]["left_out"] == {"special token in the text": 1} and len(read(folder / "out")) == 3
    parts = [{"type": "text", "text": "a<|im_"}, {"type": "text", "text": "end|>b"}]
    talks = [[{"role": "user", "content": [{"type": "text", "text": f"q{i}"}]}] for i in range(2)]
    talks.append([{"role": "user", "content": parts}])
    rows = [{"messages": t, "gold": str(i)} for i, t in enumerate(talks)]
    (folder / "out").rename(folder / "before")
    assert build(folder, rows, "sharegpt", answer="gold")[1] == {"special token in the text": 1}


def test_a_gold_may_have_a_special_token(folder: Path) -> None:
    problems, left_out, _ = build(folder, [good(0), good(1, answer="<|im_end|>", question="Which token ends a turn?")],
                                  check_golds=False)  # fmt: skip
    assert not left_out and problems[1].answer == "<|im_end|>"


# --- system turns


SYSTEM = "Answer in millimetres."


def talk(form: str, turns: list[tuple[str, str]], **more: Any) -> Row:
    role, content, column = ("from", "value", "conversations") if form == "llava" else ("role", "content", "messages")
    cells: dict[str, Any] = {column: [{role: r, content: text} for r, text in turns], **more}
    if form == "verl":
        cells = {"prompt": cells["messages"], "reward_model": {"ground_truth": "7"}, **more}
    return Row(index=0, id="r", cells=cells, image=lambda cell: cell)


NAMES = {"llava": ("human", "gpt"), "sharegpt": ("user", "assistant"), "verl": ("user", "assistant")}


@pytest.mark.parametrize("form", NAMES)
def test_system_turns_are_kept_in_every_form(form: str, folder: Path) -> None:
    user, model = NAMES[form]
    read_form, columns = FORMS[form]
    end = [] if form == "verl" else [(model, "7")]
    for turns, system in (
        ([(user, "q")], ""),
        ([("system", SYSTEM), (user, "q")], SYSTEM),
        ([("System", SYSTEM), ("developer", " Be brief. "), (user, "q")], SYSTEM + "\n\nBe brief."),
        ([("system", ""), (user, "q")], ""),
    ):
        found = read_form(talk(form, turns + end), columns)
        assert (found.text, found.answer, found.system) == ("q", "7", system)
    for turns, reason in (
        ([(user, "q"), ("system", SYSTEM)], "system turn after the question"),
        ([("system", "look: <image>"), (user, "q")], "image in a system turn"),
        ([("tool", "42"), (user, "q")], "turn of another role"),
        ([(user, "a"), (model, "b"), (user, "q")], "more than one exchange"),
        ([(model, "hello"), (user, "q")], "more than one exchange"),
    ):
        with pytest.raises(LeftOut, match=reason):
            read_form(talk(form, turns + end), columns)


def test_a_system_column_beside_the_talk(folder: Path) -> None:
    read_form, columns = FORMS["llava"]
    turns = [("system", "b"), ("human", "q"), ("gpt", "7")]
    assert read_form(talk("llava", turns, system="a"), columns).system == "a\n\nb"
    assert read_form(talk("llava", turns, system=None), columns).system == "b"
    with pytest.raises(ValueError, match="system is a list"):
        read_form(talk("llava", turns, system=["x"]), columns)


def test_the_system_turn_stands_in_the_problem(folder: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"<image>how many in {i}?"}],
            "images": [f"{i}.png"],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
        }
        for i in range(3)
    ]
    problems, left_out, _ = build(folder, rows, "verl")
    assert not left_out and [p.messages[0] for p in problems] == [{"role": "system", "content": SYSTEM}] * 3
    assert [p.messages[1]["role"] for p in problems] == ["user"] * 3


def test_pictures_as_openai_writes_them(folder: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode(encoded(picture(3))).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "how many?"}]
    asked, answers, system = one_exchange([{"role": "user", "content": content}], "messages")
    assert asked.text == "<image>how many?" and not answers and not system
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}], "gold": str(i)} for i in range(2)]
    rows.append({"messages": [{"role": "user", "content": content}], "gold": "3"})
    problems, _, _ = build(folder, rows, "sharegpt", answer="gold")
    assert problems[2].images[0].tobytes() == picture(3).tobytes()


@pytest.mark.parametrize(
    "turns",
    ["no JSON", "[1]", "{}", 3, None, [], [{"role": "user"}], [{"content": "q"}], [{"role": 1, "content": "q"}],
     [{"role": "user", "content": [{"type": "text", "text": NAN}]}], [{"role": "user", "content": [7]}],
     [{"role": "assistant", "content": "q"}], [{"role": "user", "content": NAN}]],
)  # fmt: skip
def test_talks_that_are_none(turns: Any) -> None:
    with pytest.raises(ValueError, match="messages"):
        one_exchange(turns, "messages")
