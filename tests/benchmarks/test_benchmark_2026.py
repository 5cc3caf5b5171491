"""The benchmarks added in 2026: rows as problems, and responses with scores worked out by hand."""

from pathlib import Path

import pytest
from benchmark_helpers import box, centre, check, item, opened, said
from benchmark_sets import WORDS

from sapo_vl.benchmarks import BENCHMARKS
from sapo_vl.benchmarks.short_answers import rule_of


def test_competitions_of_2026(tmp_path: Path) -> None:
    cases = [
        ("aime26-1", box("42"), 1, "the gold"),
        ("aime26-1", box("042"), 1, "leading zero"),
        ("aime26-1", box("42^{\\circ}"), 1, "an angle"),
        ("aime26-1", "42", 0, "no box"),
        ("aime26-1", box("42.5"), 0, "another number"),
        ("aime26-1", box("41 or 42"), 0, "not settled"),
        ("aime26-1", box("142"), 0, "the gold is a part of it"),
        ("aime26-2", box("7"), 1, "the gold"),
        ("aime26-2", box("007"), 1, "zeros"),
        ("aime26-2", box("seven"), 0, "a word"),
        ("aime26-2", box("\\text{7}"), 1, "set as text"),
    ]
    assert check("aime26", tmp_path / "a", cases).bad == ["answer is '1000', not an integer in 0..999"]
    cases = [
        ("hmmt26-1", box("0.5"), 1, "1/2"),
        ("hmmt26-1", box("\\frac{2}{4}"), 1, "1/2"),
        ("hmmt26-1", box("\\tfrac12"), 1, "1/2"),
        ("hmmt26-1", box("2"), 0, "upside down"),
        ("hmmt26-1", "1/2", 0, "no box"),
        ("hmmt26-1", box(""), 0, "nothing"),
        ("hmmt26-2", box("-3, 3"), 1, "any order"),
        ("hmmt26-2", box("3, -3"), 1, "the gold"),
        ("hmmt26-2", box("3"), 0, "one of two"),
        ("hmmt26-2", box("3, -3, 0"), 0, "one too many"),
    ]
    check("hmmt26", tmp_path / "b", cases)
    assert (BENCHMARKS["aime26"].k, BENCHMARKS["hmmt26"].k) == (32, 16)


def test_mmstar(tmp_path: Path) -> None:
    cases = [
        ("mmstar-0", box("B"), 1, "letter"),
        ("mmstar-0", box("B: a cat, black"), 1, "as the question writes it"),
        ("mmstar-0", box("a cat, black"), 1, "its text, with a comma in it"),
        ("mmstar-0", box("A"), 0, "another"),
        ("mmstar-0", box("a cat"), 0, "half of the text"),
        ("mmstar-0", "The answer is B", 0, "no final answer"),
        ("mmstar-1", box("C"), 1, "letter"),
        ("mmstar-1", box("3"), 1, "the text of option C"),
        ("mmstar-1", box("(C) 3"), 1, "both"),
        ("mmstar-1", box("D"), 0, "another"),
        ("mmstar-2", box("d"), 1, "options that were not found in the question"),
        ("mmstar-2", box("A, B, C, D"), 0, "all"),
    ]
    found = check("mmstar", tmp_path, cases)
    assert found.bad == ["answer is 'AB', not the letter of an option"]
    assert found.problems["mmstar-0"].meta["groups"] == {"category": "math", "fine": "geometry"}
    metrics = BENCHMARKS["mmstar"].metrics
    assert metrics is not None
    fine = [{"groups": {"fine": name}} for name in ("a", "a", "b", "b")]
    scores = [(1.0,), (0.0,), (1.0, 1.0), (None,)]
    items = [item(str(i), meta, *each) for i, (meta, each) in enumerate(zip(fine, scores, strict=True))]  # type: ignore[arg-type]
    # a: 1/2; b: 1, the item that could not be scored left out; their mean
    assert metrics(items) == {"average": pytest.approx(0.75)} and metrics([]) == {}


def test_charxiv(tmp_path: Path) -> None:
    def id(number: int) -> str:
        return f"charxiv-{number}"

    cases = [
        (id(0), box("acc+"), 1, "case"),
        (id(0), box("ACC"), 0, "another term"),
        (id(1), box("Model A, Model B"), 1, "any order"),
        (id(1), box("Model A"), 0, "one of two"),
        (id(1), box("Model A, Model B, Model C"), 0, "one too many"),
        (id(2), box("b"), 1, "without brackets"),
        (id(2), box("(b)"), 1, "with them"),
        (id(2), box("(a)"), 0, "another"),
        (id(3), box("Increases"), 1, "case"),
        (id(3), box("it goes up"), 0, "other words are the judge's"),
        (id(4), box("10^{-2}"), 1, "another notation"),
        (id(4), box("0.012"), 0, "another value"),
        (id(5), box("12.5"), 1, "the value"),
        (id(5), box("12.51"), 0, "no tolerance"),
        (id(6), box("seven"), 0, "an integer was asked for"),
        (id(6), "7", 0, "no final answer"),
    ]
    found = check("charxiv", tmp_path, cases)
    assert found.bad == ["reasoning_q_source is '5', none of 1, 2, 3, 4"]
    assert said(found.problems[id(5)]).endswith("a number with 2 digits after the point.")
    assert said(found.problems[id(6)]).endswith("It must be an integer.")
    assert found.problems[id(4)].meta["groups"] == {"source": "number in chart"}


def test_visulogic(tmp_path: Path) -> None:
    one, two = "visulogic-0", "visulogic-1"
    cases = [
        (one, box("B"), 1, "letter"),
        (one, box("(b)"), 1, "brackets, lower case"),
        (one, box("B."), 1, "full stop"),
        (one, box("A"), 0, "another"),
        (one, box("E"), 0, "no such option"),
        (one, box("A or B"), 0, "not settled"),
        (one, "answer: (B)", 0, "no final answer"),
        (one, "Option B", 0, "no final answer"),
        (two, box("A"), 1, "a gold in lower case"),
        (two, box("B"), 0, "another"),
        (two, box("ABCD"), 0, "all"),
    ]
    found = check("visulogic", tmp_path, cases)
    assert found.bad == ["label is 'E', none of A, B, C, D"]
    assert centre(found.problems[one]) == WORDS["red"]


def test_visulogic_reads_the_authors_file(tmp_path: Path) -> None:
    """Pictures by their path, beside data.jsonl."""
    from benchmark_sets import drawing

    from sapo_vl.benchmarks import Row
    from sapo_vl.data.source import open_source

    (tmp_path / "images").mkdir()
    drawing("blue").save(tmp_path / "images" / "00000.png")
    line = '{"image_path": "images/00000.png", "question": "Which?", "label": "C", "id": "00000", "tag": "Style"}\n'
    (tmp_path / "data.jsonl").write_text(line)
    benchmark = BENCHMARKS["visulogic"]
    source = open_source(str(tmp_path / "data.jsonl"), benchmark.split, columns=benchmark.columns)
    [problem] = benchmark.problems(Row(index=0, cells=source.row(0), image=source.image))
    assert (problem.answer, centre(problem)) == ("C", WORDS["blue"])


def test_neulab_visualpuzzles(tmp_path: Path) -> None:
    one, two = "neulab_visualpuzzles-1", "neulab_visualpuzzles-2"
    cases = [
        (one, box("C"), 1, "letter"),
        (one, box("8"), 1, "its text"),
        (one, box("C. 8"), 1, "both"),
        (one, box("C. 5"), 0, "letter and text disagree"),
        (one, box("13"), 0, "another's text"),
        (one, "I cannot tell.", 0, "kits draw a letter"),
        (one, "Answer: C", 1, "the official form is read too"),
        (two, box("D"), 1, "options in the picture"),
        (two, box("d"), 1, "case"),
        (two, box("B"), 0, "another"),
        (two, box("E"), 0, "no such option"),
    ]
    found = check("neulab_visualpuzzles", tmp_path, cases)
    assert found.bad == ["answer is 'C', none of the letters A, B"]
    assert "A. 3\nB. 5\nC. 8\nD. 13" in said(found.problems[one]) and "A." not in said(found.problems[two])


def test_emma(tmp_path: Path) -> None:
    one, two, three = "emma-math_1", "emma-math_2", "emma-math_3"
    cases = [
        (one, box("B"), 1, "letter"),
        (one, box("A"), 0, "another"),
        (one, box("image 3"), 0, "pictures have letters only"),
        (two, box("12"), 1, "the gold"),
        (two, box("12.004"), 1, "two decimals"),
        (two, box("12.01"), 0, "another second decimal"),
        (two, box("12\\,\\text{N}"), 1, "with a unit"),
        (two, box("12 of 20"), 0, "no unit"),
        (two, box("21"), 0, "another"),
        (two, "12", 0, "no final answer"),
        (three, box("\\sqrt{2}"), 1, "the gold"),
        (three, box("\\frac{2}{\\sqrt{2}}"), 1, "the same value"),
        (three, box("2"), 0, "another"),
    ]
    found = check("emma", tmp_path, cases)
    assert len(found.bad) == 2 and "none of the letters A, B" in found.bad[0] and "'essay'" in found.bad[1]
    pictured = found.problems[one]
    assert said(pictured).startswith("Turn [image] . What comes?\nA. [image] B. [image]")
    assert [centre(pictured, n) for n in range(3)] == [WORDS["blue"], WORDS["red"], WORDS["green"]]
    assert said(found.problems[two]).startswith("Think of a die.\nHow many dots has [image] ?")
    assert "none" not in said(pictured), "a context of 'none' is not said"


def test_hallusionbench(tmp_path: Path) -> None:
    first, copy, blind = (f"hallusionbench-{id}" for id in ("VD-chart-0-1-0", "VD-chart-0-2-0", "VS-chart-0-0-0"))
    cases = [
        (first, box("yes"), 1, "the gold"),
        (first, box("Yes"), 1, "case"),
        (first, box("YES."), 1, "full stop"),
        (first, box("no"), 0, "the opposite"),
        (first, "Yes, it is.", 0, "no final answer"),
        (first, box("yes and no"), 0, "both"),
        (copy, box("no"), 1, "the edited picture"),
        (copy, box("yes"), 0, "the original's answer"),
        (copy, box("not yes"), 0, "kits look for a yes"),
        (blind, box("yes"), 1, "without a picture"),
        (blind, box("I cannot tell"), 0, "right officially, no answer here"),
    ]
    found = check("hallusionbench", tmp_path, cases)
    assert len(found.bad) == 2 and "gt_answer is '2'" in found.bad[0], "and a picture that is missing"
    assert said(found.problems[blind]).startswith("Is the left bar longer?") and not found.problems[blind].images
    assert found.problems[copy].meta["pair"] == found.problems[first].meta["pair"] == "VD-chart-0-0"
    assert found.problems[blind].meta["figure"] == "" and found.problems[copy].meta["figure"] == "VD-chart-0-2"


def test_the_consistency_of_hallusionbench() -> None:
    metrics = BENCHMARKS["hallusionbench"].metrics
    assert metrics is not None

    def ask(pair: str, figure: str, *scores: float | None):
        return item(f"{pair}-{figure}", {"pair": pair, "figure": figure}, *scores)

    items = [
        ask("q0", "f1", 1, 1),
        ask("q0", "f2", 1, 0),
        ask("q1", "f1", 0, 1),
        ask("q1", "f2", 1, None),
        ask("q2", "", 1, 1),
    ]
    # first responses: q0 and q2 of q0, q1, q2; f2 of f1, f2; 4 of 5. Second: q2; f1; 3 of 5
    assert metrics(items) == pytest.approx({"aAcc": 7 / 10, "qAcc": 3 / 6, "fAcc": 2 / 4})
    assert metrics([]) == {} and metrics([ask("q", "", 1)]) == {"aAcc": 1, "qAcc": 1}, "no picture was shown"


def test_erqa(tmp_path: Path) -> None:
    one, two, three = "erqa-ERQA_1", "erqa-ERQA_2", "erqa-ERQA_4"
    cases = [
        (one, box("D"), 1, "letter"),
        (one, box("d"), 1, "case"),
        (one, box("(D)"), 1, "brackets"),
        (one, box("C"), 0, "another"),
        (one, box("D. Right"), 1, "as the question writes it"),
        (one, box("Right"), 1, "its text"),
        (one, box("D. Left"), 0, "another text"),
        (one, box("Left"), 0, "another text"),
        (one, box("C, D"), 0, "two"),
        (one, "D", 0, "no final answer"),
        (one, "<answer>D</answer>", 1, "another form that is read"),
        (two, box("A"), 1, "letter"),
        (two, box("B"), 0, "another"),
        (two, box("1"), 1, "the text of A"),
        (two, box("2"), 0, "the text of B"),
        (three, box("A"), 1, "options that were not found in the question"),
        (three, box("1"), 0, "where only letters are known"),
    ]
    found = check("erqa", tmp_path, cases)
    assert found.bad == ["images is empty"]
    assert "directly" not in said(found.problems[one]) and "D. Right." in said(found.problems[one])
    several = found.problems[two]
    assert said(several).startswith("[image] [image] Which is nearer?")
    assert [centre(several, n) for n in (0, 1)] == [WORDS["red"], WORDS["blue"]]
    assert several.meta["groups"] == {"type": "Multi-view", "images": "several"}


def test_babyvision(tmp_path: Path) -> None:
    def id(number: int) -> str:
        return f"babyvision-{number}"

    cases = [
        (id(1), box("C"), 1, "the third option, counted from 0 as 2"),
        (id(1), box("neither"), 1, "its text"),
        (id(1), box("B"), 0, "another"),
        (id(2), box("B"), 1, "options in the picture"),
        (id(2), box("C"), 0, "another"),
        (id(3), box("(4, 7)"), 1, "a blank"),
        (id(3), box("4,7"), 1, "without brackets"),
        (id(3), box("(7,4)"), 0, "exchanged"),
        (id(4), box("5"), 1, "number"),
        (id(4), box("15"), 0, "the gold is a part of it"),
        (id(5), box("Red"), 1, "case"),
        (id(5), box("the red one"), 0, "other words are the judge's"),
    ]
    found = check("babyvision", tmp_path, cases)
    assert len(found.bad) == 2 and "choiceAns is '2'" in found.bad[0] and "ansType is 'draw'" in found.bad[1]
    assert said(found.problems[id(1)]).startswith("[image] Task 1?\nA. left\nB. right\nC. neither")


@pytest.mark.parametrize(
    ("gold", "reward"),
    [
        ("(5.000, -2.000)", "list"),
        ("[3, 2, 1]", "list"),
        ("69, 51, 59", "list"),
        ("(1,2), (3,4)", "list"),
        ("1,250", "number"),  # one number with a separator
        ("275", "number"),
        ("-1.5", "number"),
        ("8:0", "chart"),
        ("17:06", "chart"),
        ("x = 0", "math"),
        ("y=-1.5", "math"),
        ("11/02/2006", "word"),
        ("AB", "word"),
        ("Product C", "word"),
        ("(2, b)", "word"),
        ("x = y", "word"),
    ],
)
def test_the_rule_of_a_short_gold(gold: str, reward: str) -> None:
    assert rule_of(gold)[0] == reward


def test_old_names_say_the_new_ones() -> None:
    from sapo_vl.evaluation.errors import EvaluationError
    from sapo_vl.evaluation.registry import find_benchmark

    for old, new in (("refcoco_val", "refcoco_unc_val"), ("refcocog_val", "refcocog_umd_val")):
        assert old not in BENCHMARKS and new in BENCHMARKS
        with pytest.raises(EvaluationError, match=f"no benchmark '{old}' any more.*'{new}'"):
            find_benchmark(old)


def test_published_splits_of_refcoco(tmp_path: Path) -> None:
    """Pictures with their regions: 100..300 by 50..150 pixels of 400 by 200 is 250 to 750 thousandths both ways."""
    first, second, other = (f"refcoco_unc_val-0-{place}" for place in ("0-0", "0-1", "1-0"))
    found = opened("refcoco_unc_val", tmp_path)
    assert list(found.problems) == [first, second, other] and len(found.bad) == 2
    assert 'refers to: "the red disc"' in said(found.problems[first]) and '"left"' in said(found.problems[second])
    golds = [found.problems[id].answer for id in (first, second, other)]
    assert golds == ["100.000 50.000 300.000 150.000"] * 2 + ["0.000 0.000 4.000 2.000"]
    assert [p.split("-")[0] for p in opened("refcocog_umd_val", tmp_path).problems] == ["refcocog_umd_val"] * 3
