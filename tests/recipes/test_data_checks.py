"""Checks of a whole data set: golds by their own reward, and what repeats a benchmark."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from recipe_helpers import lines

from data_recipes.check import TaskCheck, foreign_golds
from data_recipes.contamination import Reference, difference_hash, grams_of
from data_recipes.filters import folded
from data_recipes.golds import Judge
from sapo_vl.commands.cli import main
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.data.writer import Card, write_splits
from sapo_vl.types import Problem

CARD = Card(name="A set", source="here", licence="CC0")


def asked(id: str, text: str, answer: str = "1", reward: str = "number", *images: Image.Image, **more) -> Problem:
    parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
    return Problem(
        id=id, task=more.pop("task", "t"), messages=({"role": "user", "content": parts},), images=images,
        answer=answer, reward=reward, **more,
    )  # fmt: skip


def written(folder: Path, train: list[Problem], test: list[Problem] | None = None) -> Path:
    splits = {"train": train, "test": test or [asked("only", "the only test row")]}
    write_splits(splits, folder, recipe="here", arguments={}, card=CARD)
    return folder


def scene(seed: int) -> Image.Image:
    """A drawing with shades, as a photo would have them."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray((rng.random((4, 5, 3)) * 255).astype(np.uint8)).resize((240, 180), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = rng.integers(0, 200), rng.integers(0, 140)
        draw.ellipse((x, y, x + 40, y + 30), fill=tuple(rng.integers(0, 255, 3).tolist()))
    return image


# --- golds


def test_a_sound_set_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = [("1 2", "3", "print(sum(map(int, input().split())))"), ("5", "25", "print(int(input()) ** 2)")]
    train = [asked(f"n{i}", f"{i}?", str(i)) for i in range(5)]
    train += [asked(f"c{i}", f"{i}?", "AB"[i % 2], "choice", task="mc") for i in range(4)]
    train += [
        asked(f"p{i}", f"program {i}", "", "code", task="code", meta={"tests": [{"input": given, "output": wanted}]},
              solution=f"<answer>```python\n{program}\n```</answer>")
        for i, (given, wanted, program) in enumerate(programs)
    ]  # fmt: skip
    folder = written(tmp_path / "set", train)
    assert main(["recipe", "check", str(folder)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        ["code", "2", "2", "0", "0", "0", "of", "2"],
        ["mc", "4", "4", "0", "0", "0", "of", "4"],
        ["t", "5", "5", "0", "0", "0", "of", "5"],
    ]


def test_rejected_golds_and_paid_nonsense_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {"grid": ["SG"]}
    train = [
        asked("good", "a", "4"),
        asked("words", "b", "about four"),
        asked("percent", "c", "20%"),
        asked("same", "d", "4.0"),  # equal to that of "good", written otherwise: not tried on it
        asked("maze", "e", "", "maze", meta=grid),
        asked("near", "f", "100", "chart", task="chart"),
        asked("far", "g", "900", "chart", task="chart"),
        asked("nearer", "h", "101", "chart", task="chart"),
    ]
    folder = written(tmp_path / "set", train)
    assert main(["recipe", "check", str(folder), "--split", "train"]) == 1
    printed = capsys.readouterr().out
    assert "golds that their own reward rejects: 2 {'gold unparsable': 2}" in printed
    assert "words  gold unparsable: gold 'about four'" in printed and "percent  gold unparsable" in printed
    assert (
        "answers that score 1 and should not" in printed
        and "nearer  gold '101', paid for '<answer>100</answer>'" in printed
    )
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("t ")]
    assert row[:4] == ["t", "5", "2", "1"]  # rows, golds that score 1, unchecked
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("chart ")]
    assert row == ["chart", "3", "3", "0", "0", "1", "of", "3"]


@pytest.mark.parametrize(("reward", "paid", "fine"), [("chart", 1, True), ("chart", 2, False), ("number", 1, False)])
def test_how_many_foreign_golds_may_pay(reward: str, paid: int, fine: bool) -> None:
    check = TaskCheck()
    golds = {1: ["100", "101", "500", "600", "700"], 2: ["100", "101", "102", "600", "700"]}[paid]
    with Judge() as judge:
        problems = [asked(str(i), "?", gold, reward, meta={"tolerance": 1}) for i, gold in enumerate(golds)]
        foreign_golds(check, problems, judge)
    # Each is answered with the next one's gold: 101 for 100 pays, and 102 for 101.
    assert (check.shuffled, check.shuffled_right, check.fine) == (5, paid, fine)


def test_a_reward_that_is_not_there_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "set", [asked("a", "b", "1", "bleu")])
    assert main(["recipe", "check", str(folder)]) == 2
    assert "there is no reward 'bleu'" in capsys.readouterr().err


# --- contamination

LONG = "A train leaves the station at noon and travels north at sixty miles an hour until it meets another one"


@pytest.fixture(scope="module")
def reference() -> Reference:
    items = [
        asked("b0", LONG + ". When do they meet?", "1", "number", scene(0)),
        asked("b1", "What is the area of the shaded region in this figure?", "1", "number", scene(1)),
        asked("b2", "Find x.", "1", "number", scene(2)),
    ]
    return Reference(
        "bench", [*items, *(asked(f"f{i}", f"filler {i}", "1", "number", scene(10 + i)) for i in range(20))]
    )


@pytest.mark.parametrize(
    ("problem", "item", "reason"),
    [
        (asked("p", "Other words.", "1", "number", scene(1)), "b1", "same image"),
        (asked("p", "Other words.", "1", "number", scene(1).crop((3, 2, 238, 178))), "b1", "similar image"),
        (asked("p", "Other words.", "1", "number", scene(2).resize((120, 90))), "b2", "similar image"),
        (asked("p", "what is  the AREA of the shaded region in this figure?"), "b1", "same text"),
        (asked("p", "Imagine this. " + LONG.upper() + "!"), "b0", "shared words"),
    ],
)
def test_planted_rows_are_found(problem: Problem, item: str, reason: str, reference: Reference) -> None:
    hit = reference.hit(problem)
    assert hit is not None and (hit.item, hit.reason) == (item, reason)


def test_an_image_stored_anew_as_jpeg_is_found(reference: Reference, tmp_path: Path) -> None:
    scene(1).save(tmp_path / "a.jpg", quality=40)
    hit = reference.hit(asked("p", "?", "1", "number", Image.open(tmp_path / "a.jpg").convert("RGB")))
    assert hit is not None and (hit.item, hit.reason) == ("b1", "similar image")


@pytest.mark.parametrize(
    "problem",
    [
        asked("p", "Find x."),  # short texts are everywhere
        asked("p", "Compute the size of the dark part of the drawing that is shown here."),  # a paraphrase: not found
        asked(
            "p", "At noon a train departs going north; it covers sixty miles each hour. When does it meet the other?"
        ),
        asked("p", "filler", "1", "number", scene(99)),
        asked("p", "?", "1", "number", Image.new("RGB", (100, 100), "white")),
        asked("p", "?", "1", "number", scene(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),  # mirrored: not found
    ],
)
def test_what_is_not_found(problem: Problem, reference: Reference) -> None:
    assert reference.hit(problem) is None


def triangle(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (300, 220), "white")
    corners = [(int(x), int(y)) for x, y in zip(rng.integers(20, 280, 3), rng.integers(20, 200, 3), strict=True)]
    ImageDraw.Draw(image).polygon(corners, outline="black", width=2)
    return image


def test_line_drawings_that_only_look_alike_are_not_joined() -> None:
    """Difference hashes alone join many of them: a drawing is mostly white."""
    drawings = [triangle(seed) for seed in range(160)]
    bench = Reference("b", [asked(f"b{i}", "?", "1", "number", image) for i, image in enumerate(drawings[:80])])
    others = [bench.hit(asked("p", "?", "1", "number", image)) for image in drawings[80:]]
    assert sum(hit is not None for hit in others) <= 1
    halved = [bench.hit(asked("p", "?", "1", "number", image.resize((150, 110)))) for image in drawings[:80]]
    right = [hit is not None and hit.item == f"b{i}" for i, hit in enumerate(halved)]
    assert sum(right) >= 60 and all(ok or hit is None for ok, hit in zip(right, halved, strict=True))


def test_a_benchmarks_own_instruction_does_not_count() -> None:
    said = "Think step by step and put the final answer of your solution into a box at the very end please"
    items = [
        Problem(id=f"i{n}", task="b", messages=({"role": "user", "content": f"Question {n}?"},
                                                {"role": "user", "content": said})) for n in range(5)
    ]  # fmt: skip
    assert Reference("b", items).hit(asked("p", said)) is None
    assert Reference("b", [asked("one", said)]).hit(asked("p", said)) is not None


def test_grams_have_thirteen_words() -> None:
    assert list(grams_of(" ".join("abcdefghijklmn"))) == [" ".join("abcdefghijklm"), " ".join("bcdefghijklmn")]
    assert list(grams_of("one two three")) == []


def test_grams_of_texts_with_blanks_are_those_of_words() -> None:
    rng = random.Random(0)
    alphabet = "abcdeXYZ019_ .,-+=$\\n\u00e9\u00df\u03b1\u0416\ud55c\uad6d"  # Hangul among them
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(200)))
        words = re.findall(r"[^\W_]+", folded(text))
        assert list(grams_of(text)) == [" ".join(words[i : i + 13]) for i in range(len(words) - 12)]


CHINESE = (  # 35 letters, of which the first 13 are a stock phrase
    "\u5982\u56fe\u6240\u793a\uff0c\u5728\u5e73\u9762\u76f4\u89d2\u5750\u6807\u7cfb\u4e2d"
    "\uff0c\u5df2\u77e5\u629b\u7269\u7ebf\u7ecf\u8fc7\u4e24\u4e2a\u70b9\uff0c\u4e14\u4e0e\u8f74\u76f8\u4ea4"
    "\u4e8e\u53e6\u4e00\u70b9\uff0c\u6c42\u9762\u79ef\u3002"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHINESE, "same text"),
        (CHINESE[:30] + "\u662f\u591a\u5c11", "shared words"),  # 27 letters
        ("\u5df2\u77e5\uff1a" + CHINESE[:32], "shared words"),
        (CHINESE[:14] + "\uff0c\u6709\u4e00\u4e2a\u4e09\u89d2\u5f62\u548c\u4e00\u4e2a\u5706", None),  # the phrase
        (CHINESE[:24], None),  # 22 letters, and no whole text
    ],
)
def test_scripts_without_blanks(text: str, reason: str | None) -> None:
    fillers = [asked(f"f{i}", f"filler {i}") for i in range(20)]
    hit = Reference("bench", [asked("zh", CHINESE), *fillers]).hit(asked("p", text))
    assert (hit.reason if hit else None) == reason


def test_a_letter_of_a_script_without_blanks_is_half_a_word() -> None:
    letters = [chr(0x4E00 + i) for i in range(30)]
    assert list(grams_of("".join(letters[:27]))) == [" ".join(letters[:26]), " ".join(letters[1:27])]
    assert list(grams_of("".join(letters[:25]))) == []
    mixed = "a b c " + "".join(letters[:20]) + " d"  # three words, twenty letters
    assert list(grams_of(mixed)) == [" ".join(["a", "b", "c", *letters[:20]]), " ".join(["b", "c", *letters[:20], "d"])]
    thai = "\u0e01\u0e34\u0e19" * 13  # two letters, one of which has a mark
    assert len(list(grams_of(thai))) == 1 and list(grams_of(thai[:-1])) == []

    def found(text: str) -> bool:
        return Reference("b", [asked("b", text)]).hit(asked("p", text)) is not None

    assert found("".join(letters[:16])) and not found("".join(letters[:15]))


def test_the_difference_hash_by_hand() -> None:
    """Nine columns, each brighter than the one before in the upper half, darker in the lower: 32 bits set."""
    rising = np.tile(np.arange(9) * 20, (4, 1))
    image = Image.fromarray(np.vstack([rising, rising[:, ::-1]]).astype(np.uint8))
    assert difference_hash(image) == 0xFFFFFFFF00000000
    assert difference_hash(Image.fromarray(np.full((8, 9), 7, np.uint8))) is None


def test_contaminated_rows_are_listed_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aime = "Let N be the number of ordered pairs of positive integers whose product divides ten factorial"
    bench = lines(tmp_path / "aime.jsonl", [{"problem_idx": 1, "problem": aime, "answer": "5"},
                                            {"problem_idx": 2, "problem": "Other.", "answer": "x"}])  # fmt: skip
    own = written(tmp_path / "own", [asked("z", "z")], [asked("t0", "A picture.", "1", "number", scene(4))])
    train = [
        asked("clean", "How many cats sit on the red mat in the house?"),
        asked("copied", "Hard one: " + aime),
        asked("seen", "What is this?", "1", "number", scene(4)),
    ]
    folder = written(tmp_path / "set", train)
    against = ["--against", f"aime25={bench}", f"mine={own}"]
    assert main(["data", "contamination", str(folder), *against, "--list", str(tmp_path / "hits.jsonl")]) == 1
    printed = capsys.readouterr().out
    assert "2 of 3 rows repeat a benchmark" in printed and "seen  same image as mine t0" in printed
    assert "aime25: 1 of 2 rows cannot be compared, the first: row 1: answer is 'x'" in printed
    hits = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [(h["id"], h["benchmark"], h["item"]) for h in hits] == [
        ("copied", "aime25", "aime25-1"), ("seen", "mine", "t0"),
    ]  # fmt: skip
    assert main(["data", "contamination", str(folder), *against, "--out", str(tmp_path / "clean")]) == 0
    manifest = json.loads((tmp_path / "clean/manifest.json").read_text())
    assert manifest["rows"] == {"train": {"t": 1}, "test": {"t": 1}} and manifest["card"]["licence"] == "CC0"
    assert manifest["notes"]["train"]["left_out"] == {"repeats aime25": 1, "repeats mine": 1}
    assert main(["data", "contamination", str(tmp_path / "clean"), *against]) == 0
    assert main(["data", "contamination", str(folder), "--against", "chess"]) == 2
    assert "no benchmark 'chess'; there are aime25" in capsys.readouterr().err
    assert main(["data", "contamination", str(folder), "--against", "refcoco_val"]) == 2
    assert "the published one is 'refcoco_unc_val'" in capsys.readouterr().err
    assert ProblemSet(tmp_path / "clean", "train").get(0).id == "clean"
