"""The benchmark's own rule beside ours: in records, figures, the table, and when responses are scored again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from benchmark_sets import write_set
from evaluation_helpers import ScriptedEngine, record, response, session
from helpers_models import MODEL
from PIL import Image

from sapo_vl.commands.cli import main
from sapo_vl.config import RunConfig, load_config
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.records import Verdict, read_records
from sapo_vl.evaluation.rescore import describe, rescore
from sapo_vl.evaluation.run import evaluate_benchmarks, metric_values
from sapo_vl.evaluation.summary import other_rule, summarise
from sapo_vl.evaluation.table import differing, figures_table
from sapo_vl.scoring.scorer import ScoringConfig


def config(source: Path, *overrides: str) -> RunConfig:
    given = [f"eval.benchmarks={{dynamath: {{source: {source}}}}}", "eval.k=1", "eval.blank=false", *overrides]
    return load_config(None, given).model_copy(update={"model": MODEL})


def with_units(name: str, j: int) -> str:
    """Ten variants with a unit, and "uneven" for "even": right to DynaMath, wrong to us. The other two are right."""
    _, question, row = name.split("-")
    said = {"7": f"{int(row) / 2} cm", "8": "B", "9": "uneven", "10": "1.333"}[question]
    return f"so \\boxed{{{said}}}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    Image.new("RGB", (32, 32), "red").save(folder / "0.png")
    items = [("7", f"What is half of {n}?", f"{n / 2}", "float") for n in range(10)]
    items += [("8", "Is it even? (A) yes (B) no", "B", "multiple choice"), ("9", "Odd or even?", "even", "text")]
    items.append(("10", "Which root?", "1.333", "float"))
    columns = ("id", "question", "ground_truth", "answer_type")
    rows = [dict(zip(columns, item, strict=True)) | {"decoded_image": "0.png"} for item in items]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def evaluated(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and summary of an evaluation by our rule."""
    out = tmp_path_factory.mktemp("out")
    results = evaluate_benchmarks(config(source), session(ScriptedEngine(with_units)), out)
    return out / "dynamath", results["dynamath"]


def lines(path: Path) -> list[dict[str, Any]]:
    """The records without their seals, as they were before there were any."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seal"} for row in rows]


def test_both_verdicts_are_kept(evaluated: tuple[Path, dict[str, Any]]) -> None:
    folder, found = evaluated
    first = lines(folder / "records.jsonl")[0]
    assert (first["rule"], first["other_rule"]) == ("number", "official_dynamath")
    [kept] = first["responses"]
    assert (kept["score"], kept["reason"]) == (0.0, "wrong unit")
    assert kept["other"] == {"score": 1.0, "status": "scored", "reason": "", "parts": {}}
    assert (found["rule"], found["pass@1"]["mean"]) == ("ours", pytest.approx(2 / 13))
    assert found["metrics"]["worst_case"] == 0
    other = found["other rule"]
    assert (other["rule"], other["pass@1"]["mean"], other["pass@1"]["n"], other["responses"]) == ("official", 1, 13, 11)
    assert other["difference"]["mean"] == pytest.approx(11 / 13) and other["metrics"]["worst_case"] == 1
    harness = json.loads((folder / "harness.json").read_text())["harness"]
    assert harness["rule"] == "ours" and sorted(harness["rules"]) == ["choice", "number", "word"]
    values = metric_values({"dynamath": found})
    assert (values["eval/dynamath/pass@1"], values["eval/dynamath/pass@1/official"]) == (pytest.approx(2 / 13), 1)


def test_the_official_rule_as_the_headline(
    evaluated: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    engine = ScriptedEngine(with_units)
    found = evaluate_benchmarks(config(source, "eval.rule=official"), session(engine), tmp_path)["dynamath"]
    assert (found["rule"], found["pass@1"]["mean"], found["metrics"]["worst_case"]) == ("official", 1, 1)
    assert (found["other rule"]["rule"], found["other rule"]["responses"]) == ("ours", 11)
    assert found["other rule"]["pass@1"]["mean"] == pytest.approx(2 / 13)
    assert json.loads((tmp_path / "dynamath/harness.json").read_text())["harness"]["rule"] == "official_dynamath"
    assert {r.rule for r in read_records(tmp_path / "dynamath/records.jsonl")} == {"official_dynamath"}
    with pytest.raises(EvaluationError, match='rule: "ours", there "official_dynamath"'):
        evaluate_benchmarks(config(source), session(engine), tmp_path)


def test_rescoring_gives_the_figures_of_either_rule(evaluated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = evaluated
    assert rescore(folder, ScoringConfig()).changes == ()
    official = rescore(folder, ScoringConfig(), rule="official")
    assert (len(official.changes), official.after["mean"]) == (11, 1.0)
    assert "pass@1 0.1538 -> 1.0000 by the official rule\n  by our rule pass@1 is 0.1538" in describe(official)
    again = json.loads((folder / "rescored/summary.json").read_text())
    assert (again["rule"], again["metrics"]["worst_case"]) == ("official", 1)
    (folder / "rescored").rename(tmp_path / "official")
    kept = rescore(tmp_path / "official", ScoringConfig())
    assert (kept.changes, kept.rule) == ((), "official"), "the rule that the folder is by, unless another is named"
    ours = rescore(tmp_path / "official", ScoringConfig(), rule="ours")
    assert ours.after["mean"] == found["pass@1"]["mean"] and len(ours.changes) == 11
    saved = tmp_path / "official/rescored"
    assert lines(saved / "records.jsonl") == lines(folder / "records.jsonl")
    assert (saved / "harness.json").read_bytes() == (folder / "harness.json").read_bytes()


def test_rescoring_on_the_command_line(
    evaluated: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rescore", str(evaluated[0]), "eval.rule=official"]) == 0
    assert "-> 1.0000 by the official rule" in capsys.readouterr().out
    assert main(["rescore", str(evaluated[0]), "eval.k=2"]) == 2
    assert "only rewards.... and eval.rule can be set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says", "official", "metrics"),
    [
        ("mmstar", "the answer is c, I think", 1 / 3, {"average": 1 / 3}),
        ("visulogic", "so it must be B.", 1 / 2, {}),
        ("neulab_visualpuzzles", "Of these I like (D) best", 1 / 2, {}),
        ("erqa", "d.", 1 / 3, {}),
        pytest.param("emma", "The correct answer is B. I am sure", 1 / 3, {}, marks=pytest.mark.slow),  # SymPy starts
        # yes is right for the first picture's first question and for the one without a picture
        ("hallusionbench", "Yes, it is.", 2 / 4, {"aAcc": 2 / 4, "qAcc": 1 / 3, "fAcc": 0 / 2}),
    ],
)
def test_both_rules_of_the_benchmarks_of_2026(
    name: str, says: str, official: float, metrics: dict[str, float], tmp_path: Path
) -> None:
    """Replies without a final answer, which are all wrong to us. The figures of both rules are there, own ones too."""
    source = write_set(name, tmp_path / "set", only_good=True)
    given = [f"eval.benchmarks={{{name}: {{source: {source}}}}}", "eval.k=1", "eval.blank=false"]
    run = load_config(None, given).model_copy(update={"model": MODEL})
    found = evaluate_benchmarks(run, session(ScriptedEngine(lambda *_: says)), tmp_path / "out")[name]
    assert found["pass@1"]["mean"] == 0 and set(found["metrics"].values()) <= {0.0}
    assert found["other rule"]["pass@1"]["mean"] == pytest.approx(official)
    assert found["other rule"]["metrics"] == pytest.approx(metrics)
    assert "by the official rule" in figures_table({name: found})


def test_results_from_before_there_were_two_rules(
    evaluated: tuple[Path, dict[str, Any]], source: Path, tmp_path: Path
) -> None:
    """Without the new fields: read, rescored, compared, and gone on with."""
    old = tmp_path / "dynamath"
    old.mkdir()
    records = lines(evaluated[0] / "records.jsonl")
    for r in records:
        del r["other_rule"]
        for kept in r["responses"]:
            del kept["other"]
    (old / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[:-1]))
    harness = json.loads((evaluated[0] / "harness.json").read_text())
    del harness["harness"]["rule"], harness["hash"]
    (old / "harness.json").write_text(json.dumps(harness))
    first = next(read_records(old / "records.jsonl"))
    assert first.other_rule == "" and first.responses[0].other is None
    assert rescore(old, ScoringConfig(), rule="official").after["mean"] == 1.0
    engine = ScriptedEngine(with_units)
    found = evaluate_benchmarks(config(source), session(engine), tmp_path)["dynamath"]
    assert len(engine.asked) == 1 and found["pass@1"]["n"] == 13
    assert found["other rule"]["pass@1"]["n"] == 1, "of the item that was asked now"


def test_a_benchmark_without_an_official_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "aime.jsonl"
    path.write_text(json.dumps({"problem_idx": 1, "problem": "how many", "answer": "1"}))
    given = [f"eval.benchmarks={{aime25: {{source: {path}}}}}", "eval.k=1", "eval.rule=official"]
    run = load_config(None, given).model_copy(update={"model": MODEL})
    with caplog.at_level(logging.WARNING):
        found = evaluate_benchmarks(run, session(ScriptedEngine(lambda *_: "\\boxed{1}")), tmp_path / "out")["aime25"]
    assert (found["rule"], found["other rule"], found["pass@1"]["mean"]) == ("ours", None, 1)
    assert "aime25 has no official rule" in caplog.text


def judged(own: float | None, other: float | None) -> Any:
    verdict = Verdict(score=other, status="scored" if other is not None else "timeout", reason="", parts={})
    return response(own, other=verdict)


def test_both_are_shown_from_half_a_point_on() -> None:
    def summary(extra: int) -> dict[str, Any]:
        """200 items, of which the official rule takes 100 + extra and ours 100."""
        records = [
            record(str(i), judged(float(i < 100), float(i < 100 + extra)), other_rule="official_mmmu")
            for i in range(200)
        ]
        return {"rule": "ours", "blank": None} | summarise(records, 1) | {"other rule": other_rule(records, 1, None)}

    half, more = summary(1), summary(2)
    assert half["other rule"]["difference"]["mean"] == pytest.approx(0.005) and not differing(half["other rule"])
    assert "official" not in figures_table({"b": half})
    table = figures_table({"b": more}).splitlines()
    assert any("by the official rule" in line and "0.510" in line for line in table)
    assert any(line.startswith("b ") and "0.500" in line for line in table)


def test_votes_under_the_official_rule() -> None:
    """They are our answers; a response that only the official rule can read is counted, not forgotten."""
    records = [
        record("a", response(1.0, None), response(1.0, None), response(0.0, "C"), rule="official_mmmu_pro"),
        record("b", response(1.0, "B"), response(1.0, "b"), response(0.0, "C"), rule="official_mmmu_pro"),
        record("c", response(0.0, None), response(None, None), response(1.0, "A"), rule="official_mmmu_pro"),
    ]
    found = summarise(records, 3)
    assert found["maj@k"] == pytest.approx((0 + 1 + 1) / 3)
    assert found["votes"] == {"answers": "ours", "n": 5, "right without one": 2}
    shown = {"blank": None, "other rule": None} | found
    [line] = [line for line in figures_table({"b": shown | {"rule": "official"}}).splitlines() if "no vote" in line]
    assert line.split() == ["right,", "but", "no", "vote", "in", "maj@k", "2"]
    assert "no vote" not in figures_table({"b": shown | {"rule": "ours"}})


def test_what_only_one_rule_could_score() -> None:
    records = [
        record("a", judged(1.0, 0.0), other_rule="official_mmmu"),
        record("b", judged(None, 1.0), other_rule="official_mmmu"),
        record("c", judged(1.0, None), other_rule="official_mmmu"),
        record("d", response(1.0)),  # from before
        record("e", skipped="prompt too long"),
    ]
    found = other_rule(records, 1, None)
    assert found is not None
    assert (found["pass@1"]["mean"], found["pass@1"]["n"]) == (0.5, 2), "of a and b"
    assert (found["difference"]["mean"], found["difference"]["n"], found["responses"]) == (-1.0, 1, 3)
    assert other_rule(records[3:], 1, None) is None
