"""Pictures that try to be more than a picture, in a build that goes on: each is named, counted and left out."""

import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from recipe_helpers import drawing, encoded, lines, picture, read

from data_recipes import RECIPES, building
from data_recipes.filters import Seen, answer_in_question, estimated_tokens, folded, image_digest
from data_recipes.golds import Judge, gold_reasons, gold_response
from sapo_vl.commands.cli import main
from sapo_vl.data.images import MAX_IMAGE_BYTES
from sapo_vl.data.problem_set import TooManyBadRows
from sapo_vl.types import Problem


def bomb(width: int, height: int) -> bytes:
    """The header of a picture that would take gigabytes, without the pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with four good pictures and one trap of each kind; a secret beside it."""
    data = tmp_path / "data"
    data.mkdir()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "s.png").write_bytes(encoded(picture(77)))
    for i in range(4):
        (data / f"good{i}.png").write_bytes(encoded(picture(i)))
    (data / "bomb.png").write_bytes(bomb(60_000, 60_000) + struct.pack(">I", 1000) + b"IDAT")
    with (data / "heavy.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    (data / "link.png").symlink_to(secret / "s.png")
    (data / "cut.png").write_bytes(encoded(Image.effect_noise((64, 64), 50))[:900])
    (data / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (data / "tiff.png").write_bytes(encoded(picture(5), "TIFF"))
    os.mkfifo(data / "pipe.png")
    traps = {
        "bomb.png": "image too many pixels",
        "heavy.png": "image too many bytes",
        "../secret/s.png": "image outside",
        str(secret / "s.png"): "image outside",
        "file:///etc/passwd": "image outside",
        "link.png": "image link",
        "https://example.org/a.png": "image url",
        "http://169.254.169.254/latest": "image url",
        "cut.png": "image damaged",
        "vector.svg": "image wrong type",
        "tiff.png": "image wrong type",
        "pipe.png": "image not a file",
        "nothing.png": "image missing",
    }
    images = [f"good{i}.png" for i in range(4)] + list(traps)
    rows = [{"image": name, "question": f"How many, {name}?", "answer": "3"} for name in images]
    lines(data / "rows.jsonl", rows)
    (tmp_path / "traps.json").write_text(json.dumps(traps))
    return data


def test_each_trap_is_named_and_counted_and_the_build_goes_on(folder: Path, tmp_path: Path, capsys) -> None:
    traps = json.loads((tmp_path / "traps.json").read_text())
    seed = drawing(0, 4 + len(traps))
    command = ["recipe", "columns", f"source={folder}/rows.jsonl", "test_rows=1", f"seed={seed}", "max_bad_share=0.9"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert [p.id for p in read(tmp_path / "out")] == [f"data-train-{i}" for i in range(4)]
    notes = json.loads((tmp_path / "out/manifest.json").read_text())["notes"]["train"]
    wanted = {reason: list(traps.values()).count(reason) for reason in sorted(set(traps.values()))}
    assert notes["left_out"] == wanted and notes["bad_rows"] == len(traps)
    for number, (name, reason) in enumerate(traps.items(), start=4):
        assert any(entry.startswith(f"data-train-{number}: ") for entry in notes["first_left_out"][reason]), name
    printed = capsys.readouterr().out
    assert "train: 3 rows; left out: " in printed and "2 image url" in printed
    assert b"passwd" not in b"".join(p.read_bytes() for p in (tmp_path / "out/train").glob("*.arrow"))


def test_a_set_full_of_traps_stops_the_build(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyBadRows, match=r"over max_bad_share=0.01(.|\n)*60000x60000|exceeds limit"):
        RECIPES["columns"](tmp_path / "out", source=f"{folder}/rows.jsonl", test_rows=1, seed=drawing(0, 17))
    assert not (tmp_path / "out").exists()


# --- filters


@pytest.mark.parametrize(("pixels", "together"), [(1, [1] * 5), (2400, [2, 2, 1]), (10**8, [5])])
def test_few_large_pictures_are_in_memory_together(
    pixels: int, together: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(i)))  # 1200 pixels each
    rows = [{"image": f"{i}.png", "question": f"How many in {i}?", "answer": str(i)} for i in range(6)]
    source = lines(tmp_path / "rows.jsonl", rows)
    batches: list[int] = []

    def watched(judge: Judge, problems: list[Problem]) -> list[tuple[str, str]]:
        batches.append(len(problems))
        return gold_reasons(judge, problems)

    monkeypatch.setattr(building, "gold_reasons", watched)
    monkeypatch.setattr(building, "BATCH_PIXELS", pixels)
    RECIPES["columns"](tmp_path / "out", source=source, test_rows=1, seed=drawing(0, 6))
    assert batches == [1, *together], "the test split, then the training split"
    assert [(p.id.rpartition("-")[2], p.answer) for p in read(tmp_path / "out")] == [(str(i), str(i)) for i in range(6)]


def asked(text: str, answer: str, reward: str = "math", images: tuple[Image.Image, ...] = ()) -> Problem:
    parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
    return Problem(
        id="p", task="t", messages=({"role": "user", "content": parts},), images=images, answer=answer, reward=reward
    )


@pytest.mark.parametrize(
    ("text", "answer", "reward", "given_away"),
    [
        ("Find x. The answer is 12.", "12", "number", True),
        ("Find x. The answer is 123.", "12", "number", False),
        ("We know the final answer: $\\frac{1}{2}$", "\\frac{1}{2}", "math", True),
        ("Which is larger, 12 or 13?", "13", "number", False),
        ("Show that the sum equals \\frac{\\pi^2}{6}+1.", "\\frac{\\pi^2}{6}+1", "math", True),
        ("Is it the brown bear or the black bear?", "the black bear", "word", False),
        ("Options: A. something long B. other", "something long", "choice", False),
        ("What is left?", "", "code", False),
        # Options behind a word for answer are no answer, whichever of them is right.
        ("Choose the correct answer:\nA. red\nB. blue\nC. green", "A", "choice", False),
        ("Which is the answer: (A) red (B) blue", "A", "choice", False),
        ("Is the answer: A) True B) False", "A", "choice", False),
        ("Give the answer:\nA\nB\nC", "A", "choice", False),
        ("The answer is A.", "A", "choice", True),
        ("A. red B. blue. The answer is B.", "B", "choice", True),
        ("It is B or C; the answer is (C).", "(C)", "choice", True),
        # The gold may begin what is said, and not be it.
        ("The result is 3 times larger than 4. What is it?", "3", "math", False),
        ("The solution is 5 L of acid. How much water is in it?", "5", "math", False),
        ("The result is 3.5 rounded up.", "3", "math", False),
        ("What is the answer: yes or no?", "yes", "word", False),
        ("So the answer: yes!", "yes", "word", True),
        ("Given: the result = $12$\nFind the sum.", "12", "math", True),
        ("The answer is \\(x+1\\). Why?", "x+1", "math", True),
        # A long gold that is the text of an option.
        ("Which? A. $\\frac{20}{3}+1$ B. $\\frac{22}{3}+1$", "\\frac{20}{3}+1", "math", False),
        ("Which?\n(1) (u1, u2) = (0, 0)\n(2) none", "(u1, u2) = (0, 0)", "math", False),
        ("Which? A. $\\frac{20}{3}+1$ B. 2. It equals $\\frac{20}{3}+1$.", "\\frac{20}{3}+1", "math", True),
    ],
)
def test_questions_that_give_their_answer_away(text: str, answer: str, reward: str, given_away: bool) -> None:
    assert answer_in_question(asked(text, answer, reward)) is given_away


def test_no_letter_of_the_options_is_left_out(tmp_path: Path) -> None:
    options = "A. red\nB. blue\nC. green\nD. white"
    rows = [{"question": f"Nr. {i}. Choose the correct answer:\n{options}", "answer": "ABCD"[i % 4]} for i in range(40)]
    lines(tmp_path / "rows.jsonl", rows)
    RECIPES["columns"](tmp_path / "out", source=f"{tmp_path}/rows.jsonl", test_rows=8, seed=drawing(0, 40))
    golds = [problem.answer for split in ("train", "test") for problem in read(tmp_path / "out", split)]
    assert {letter: golds.count(letter) for letter in "ABCD"} == dict.fromkeys("ABCD", 10)


def test_estimated_tokens() -> None:
    assert estimated_tokens(asked("a" * 35, "1")) == 10
    assert estimated_tokens(asked("\u6c42\u9762\u79ef", "1")) == 3
    assert estimated_tokens(asked("", "1", images=(Image.new("RGB", (64, 65)),))) == 5  # 4160 / 1024, rounded up
    assert estimated_tokens(asked("", "1", images=(Image.new("RGB", (4000, 4000)),))) == 1280


def test_repeated_rows_and_images_of_the_test_split() -> None:
    seen = Seen()
    first, other = picture(1), picture(2)
    assert seen.reason(asked("Find  x.", "3", images=(first,)), "test") == ""
    assert seen.reason(asked("find X.", "3", images=(first,)), "train") == "duplicate"
    assert seen.reason(asked("Find x.", "4", images=(first.copy(),)), "train") == "duplicate with another answer"
    assert seen.reason(asked("Find y.", "3", images=(first,)), "train") == "image of the test split"
    assert seen.reason(asked("Find x.", "3", images=(other,)), "train") == ""
    assert seen.reason(asked("Find x.", "3"), "train") == ""
    blank = Image.new("RGB", (9, 9), "white")
    assert seen.reason(asked("Find a.", "3", images=(blank,)), "test") == ""
    assert seen.reason(asked("Find b.", "3", images=(blank,)), "train") == ""
    assert folded("x + 1") != folded("x - 1")


def test_the_digest_of_an_image_is_that_of_its_pixels(tmp_path: Path) -> None:
    picture(3).save(tmp_path / "a.bmp")
    assert image_digest(Image.open(tmp_path / "a.bmp")) == image_digest(picture(3))
    assert image_digest(Image.new("RGB", (2, 8))) != image_digest(Image.new("RGB", (4, 4)))


# --- golds


def test_golds_that_their_own_reward_rejects() -> None:
    boxes = {"coords": "0-1000", "size": [200, 100]}
    problems = [
        asked("q", "12", "number"),
        asked("q", "about 12", "number"),
        asked("q", "E", "choice"),
        Problem(id="b", task="t", messages=(), answer="20, 10, 60, 50", reward="box", meta=boxes),
        Problem(id="c", task="t", messages=(), answer="Z", reward="choice", meta={"options": {"A": "x", "B": "y"}}),
        Problem(id="d", task="t", messages=(), reward="maze", meta={"grid": ["S.", ".G"]}),
    ]
    # 20 of 200 pixels, 10 of 100, ...
    assert gold_response(problems[3]) == "<answer>100.000, 100.000, 300.000, 500.000</answer>"
    with Judge() as judge:
        reasons = [reason for reason, _ in gold_reasons(judge, problems)]
    assert reasons == ["", "gold unparsable", "", "", "gold unparsable", "no reference solution"]
