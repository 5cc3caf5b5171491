"""Benchmarks from rows to figures, with a real chat template and rules, and an engine that answers by a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from evaluation_helpers import ScriptedEngine, session, write_own_benchmark
from helpers_models import MODEL
from PIL import Image

from sapo_vl.config import ConfigError, RunConfig, load_config
from sapo_vl.data.problem_set import DataError
from sapo_vl.evaluation.compare import benchmark_folders, compare, describe
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.records import RecordFile, read_records
from sapo_vl.evaluation.registry import find_benchmark
from sapo_vl.evaluation.rescore import Change, rescore
from sapo_vl.evaluation.run import check_benchmarks, evaluate_benchmarks, metric_values
from sapo_vl.rollout.failures import RolloutStopped
from sapo_vl.scoring.scorer import ScoringConfig, ScoringError

Make = Callable[..., RunConfig]


@pytest.fixture
def aime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AIME 2025 in its schema, four problems with the golds 1 to 4 and a broken one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"problem_idx": i, "problem": f"how many circles {i}", "answer": str(i)} for i in range(1, 5)]
    rows.append({"problem_idx": 5, "problem": "how many", "answer": "about seven"})
    folder = tmp_path / "aime"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(folder)
    return folder


@pytest.fixture
def make(aime: Path) -> Make:
    def config(*overrides: str) -> RunConfig:
        given = load_config(None, [f"eval.benchmarks={{aime25: {{source: {aime}}}}}", "eval.k=2", *overrides])
        return given.model_copy(update={"model": MODEL})

    return config


def half_right(name: str, j: int) -> str:
    """aime25-1 right twice, aime25-2 once, the others never; 4 gives no answer and is cut off."""
    number = int(name.rpartition("-")[2])
    if number == 4:
        return "let me think ..."
    return f"so \\boxed{{{number if j < 3 - number else 99}}}"


def lines(path: Path) -> list[dict[str, Any]]:
    """The records without their seals, as they were before there were any."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seal"} for row in rows]


def test_from_rows_to_figures(make: Make, tmp_path: Path) -> None:
    engine = ScriptedEngine(half_right)
    results = evaluate_benchmarks(make(), session(engine), tmp_path / "out")
    folder = tmp_path / "out" / "aime25"
    found = results["aime25"]
    assert found == json.loads((folder / "summary.json").read_text())
    assert found["pass@1"]["mean"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert found["pass@k"]["2"]["mean"] == 0.5 and found["maj@k"] == pytest.approx(0.5)
    assert found["items"]["bad rows"] == {"row": 1} and "about seven" in found["items"]["examples"][0]
    assert (found["responses"]["truncated"], found["responses"]["no answer"]) == (2, 2)
    assert found["harness"] == json.loads((folder / "harness.json").read_text())["hash"]
    first = lines(folder / "records.jsonl")[0]
    assert (first["id"], first["gold"], first["rule"], len(first["prompt"])) == ("aime25-1", "1", "number", 64)
    assert [r["answer"] for r in first["responses"]] == ["1", "1"] and first["responses"][0]["score"] == 1.0
    values = metric_values(results)
    assert values["eval/aime25/pass@1"] == 0.375 and values["eval/aime25/no_answer_share"] == 0.25


def test_what_the_engine_failed_on_is_no_zero(make: Make, tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda name, j: None if j else "\\boxed{1}")
    found = evaluate_benchmarks(make("eval.limit=1"), session(engine), tmp_path / "out")["aime25"]
    assert found["pass@1"]["mean"] == 1.0 and found["responses"]["failed"] == 1
    saved = lines(tmp_path / "out/aime25/records.jsonl")[0]["responses"][1]
    assert (saved["status"], saved["score"], saved["reason"]) == ("failed", None, "the engine was out of luck")


AWAY = "no answer (tries: 3): http://node-1:8000: connection refused"


def away(name: str, j: int) -> str | None:
    """`half_right`, of a server that was away for the first and the third item."""
    return None if name in ("aime25-1", "aime25-3") else half_right(name, j)


@pytest.mark.parametrize("why", [AWAY, "no server is left: http://node-1:8000 (connection refused)"])
def test_what_had_no_answer_is_asked_again(
    why: str, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same command brings what would have been there without."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), whole)
    assert "asks them again" not in caplog.text
    found = evaluate_benchmarks(make(), session(ScriptedEngine(away, why)), out)["aime25"]
    assert found["responses"]["failed"] == 4 and found["pass@1"]["n"] == 2
    assert "aime25: 2 items had no answer or no row; the same command asks them again" in caplog.text
    engine = ScriptedEngine(half_right)
    evaluate_benchmarks(make(), session(engine), out)
    assert engine.asked == ["aime25-1", "aime25-3"]
    for name in ("records.jsonl", "summary.json"):
        assert (out / "aime25" / name).read_bytes() == (whole / "aime25" / name).read_bytes()


def test_what_the_engine_refuses_is_not_asked_again(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A function of the prompt: it would be refused again, for ever."""
    evaluate_benchmarks(make(), session(ScriptedEngine(away, "http://node-1:8000: status 400: too long")), tmp_path)
    engine = ScriptedEngine(half_right)
    evaluate_benchmarks(make(), session(engine), tmp_path)
    assert engine.asked == [] and "again" not in caplog.text


def test_another_try_takes_nothing_away(make: Make, tmp_path: Path) -> None:
    """It has no answer either, or the run is stopped in it, for the share of what failed or by somebody."""
    evaluate_benchmarks(make("eval.batch=2"), session(ScriptedEngine(away, AWAY)), tmp_path)
    folder = tmp_path / "aime25"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def stops(name: str, j: int) -> str:
        raise RolloutStopped("2 of the latest 2 responses could not be used")

    with pytest.raises(RolloutStopped):
        evaluate_benchmarks(make("eval.batch=2"), session(ScriptedEngine(stops)), tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    evaluate_benchmarks(make("eval.batch=2"), session(ScriptedEngine(away, AWAY)), tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before

    def one(name: str, j: int) -> str:
        if name == "aime25-3":
            raise KeyboardInterrupt
        return half_right(name, j)

    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmarks(make("eval.batch=2"), session(ScriptedEngine(one)), tmp_path)
    records = list(read_records(folder / "records.jsonl"))
    assert [record.id for record in records] == [f"aime25-{i}" for i in range(1, 5)]
    assert [record.is_lacking for record in records] == [False, False, True, False]
    assert not (folder / "summary.json").exists(), "it would be of the records before"
    engine = ScriptedEngine(half_right)
    found = evaluate_benchmarks(make("eval.batch=2"), session(engine), tmp_path)["aime25"]
    assert engine.asked == ["aime25-3"] and found["pass@1"]["n"] == 4


def test_a_prompt_that_is_too_long_is_counted(make: Make, tmp_path: Path, aime: Path) -> None:
    rows = [{"problem_idx": i, "problem": "how many " * (1 if i else 400), "answer": "1"} for i in range(3)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = make(f"eval.benchmarks={{aime25: {{source: {tmp_path / 'long.jsonl'}}}}}")
    found = evaluate_benchmarks(config, session(ScriptedEngine(lambda *_: "\\boxed{1}")), tmp_path / "out")["aime25"]
    assert found["items"]["skipped"] == {"prompt too long": 1} and found["pass@1"]["n"] == 2


def test_a_stopped_evaluation_goes_on(make: Make, tmp_path: Path) -> None:
    config = make("eval.batch=2")  # one item at a time
    whole = tmp_path / "whole"
    evaluate_benchmarks(config, session(ScriptedEngine(half_right)), whole)
    complete = (whole / "aime25/records.jsonl").read_bytes()

    def dies(name: str, j: int) -> str:
        if name == "aime25-3":
            raise KeyboardInterrupt
        return half_right(name, j)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmarks(config, session(ScriptedEngine(dies)), out)
    cut = (out / "aime25/records.jsonl").read_bytes()
    assert complete.startswith(cut) and cut.count(b"\n") == 2
    (out / "aime25/records.jsonl").write_bytes(cut[:-30])  # and the disk lost the end of what was written
    engine = ScriptedEngine(half_right)
    evaluate_benchmarks(config, session(engine), out)
    assert engine.asked == ["aime25-2", "aime25-3", "aime25-4"]
    assert (out / "aime25/records.jsonl").read_bytes() == complete
    assert (out / "aime25/summary.json").read_bytes() == (whole / "aime25/summary.json").read_bytes()


def test_a_broken_line_in_the_middle_is_an_error(make: Make, tmp_path: Path) -> None:
    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), tmp_path)
    path = tmp_path / "aime25/records.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"gold": "2"', '"gold": "3"', 1))
    with pytest.raises(EvaluationError, match=r"records\.jsonl:2 is no record \(it is another one than was written\)"):
        RecordFile(path).done()
    records = lines(path)
    records[1]["gold"] = 2
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(EvaluationError, match=r"records\.jsonl:2 is no record \(gold"):
        RecordFile(path).done()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("eval.sampling.temperature=0.5", "sampling.temperature: 0.5, there 1.0"),
        ("eval.k=3", "k: 3, there 2"),
        ("eval.preset=qwen3_vl_instruct", "sampling.presence_penalty"),
        ("eval.limit=2", "benchmark.items"),
        ("rewards.by_task.aime25=word", "rules.word"),
    ],
)
def test_another_harness_is_refused(override: str, key: str, make: Make, tmp_path: Path) -> None:
    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), tmp_path)
    with pytest.raises(EvaluationError, match="holds results of another harness") as error:
        evaluate_benchmarks(make(override), session(ScriptedEngine(half_right)), tmp_path)
    assert key in str(error.value) and "another --out" in str(error.value)


def test_another_prompt_is_another_harness(make: Make, tmp_path: Path, aime: Path) -> None:
    def hashes(text: str, gold: str) -> dict[str, str]:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"problem_idx": 1, "problem": text, "answer": gold}))
        config = make(f"eval.benchmarks={{aime25: {{source: {path}}}}}")
        out = tmp_path / f"{text}{gold}"
        evaluate_benchmarks(config, session(ScriptedEngine(half_right)), out)
        harness = json.loads((out / "aime25/harness.json").read_text())
        return {"hash": harness["hash"], "prompts": harness["harness"]["prompts"]}

    first = hashes("how many", "1")
    assert hashes("how  many", "1")["prompts"] != first["prompts"]
    other_gold = hashes("how many", "2")
    assert other_gold["hash"] != first["hash"] and other_gold["prompts"] == first["prompts"]
    (tmp_path / "how many1").rename(tmp_path / "set aside")
    assert hashes("how many", "1") == first


def test_training_begins_a_step_anew(make: Make, tmp_path: Path) -> None:
    for asked in (4, 4):  # the run was cut off after the evaluation and its step is done again
        engine = ScriptedEngine(half_right)
        evaluate_benchmarks(make(), session(engine), tmp_path / "step", step=3)
        assert len(engine.asked) == asked
    assert json.loads((tmp_path / "step/aime25/harness.json").read_text())["harness"]["model"]["step"] == 3


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The user's benchmark: three pictures, one row without an answer, one without its picture."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for i, (colour, answer) in enumerate([("red", 1), ("blue", 2), ("red", 3), ("red", None), ("red", 4)]):
        rows.append({"name": str(i), "question": "how many", "image": f"{i}.png", "answer": answer, "colour": colour})
        if i != 4:
            Image.new("RGB", (32, 32), colour).save(folder / f"{i}.png")
    return write_own_benchmark(folder, "\n".join(map(json.dumps, rows)))


def test_a_benchmark_of_the_users(own: str, tmp_path: Path) -> None:
    def sighted(name: str, j: int) -> str:
        number = int(name.removesuffix("#blank")[-1]) + 1
        return "\\boxed{1}" if "#blank" in name else f"\\boxed{{{number + (j if number == 3 else 0)}}}"

    config = load_config(None, [f'eval.benchmarks=["{own}"]']).model_copy(update={"model": MODEL})
    check_benchmarks(config)
    engine = ScriptedEngine(sighted)
    found = evaluate_benchmarks(config, session(engine), tmp_path / "out")["squares"]
    assert engine.asked == [f"squares-{i}" for i in range(3)] + [f"squares-{i}#blank" for i in range(3)]
    assert found["k"] == 2 and found["pass@1"]["mean"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert {c: g["mean"] for c, g in found["groups"]["colour"].items()} == {"blue": 1.0, "red": 0.75}
    assert found["metrics"] == {"all right": pytest.approx(2 / 3)}
    assert found["items"]["left out"] == {"no answer given": 1} and found["items"]["bad rows"] == {"image: missing": 1}
    assert found["blank"]["mean"] == pytest.approx(1 / 3) and found["blank"]["n"] == 3
    assert found["blank"]["difference"]["mean"] == pytest.approx(5 / 6 - 1 / 3)


def test_a_row_that_was_gone_for_a_while_is_asked_again(own: str, tmp_path: Path) -> None:
    given = [f'eval.benchmarks=["{own}"]', "eval.batch=2"]  # one item at a time, but for the blank ones
    config = load_config(None, given).model_copy(update={"model": MODEL})
    picture, away = tmp_path / "mine/1.png", tmp_path / "away.png"

    def disk_fails(name: str, j: int) -> str:
        if picture.exists():
            picture.rename(away)
        return "\\boxed{1}"

    found = evaluate_benchmarks(config, session(ScriptedEngine(disk_fails)), tmp_path / "out")["squares"]
    assert found["items"]["skipped"] == {"row": 1} and found["pass@1"]["n"] == 2
    away.rename(picture)
    engine = ScriptedEngine(lambda *_: "\\boxed{1}")
    found = evaluate_benchmarks(config, session(engine), tmp_path / "out")["squares"]
    assert engine.asked == ["squares-1", "squares-1#blank"]
    assert found["items"]["skipped"] == {} and found["pass@1"]["n"] == found["blank"]["n"] == 3
    blank = [record.id for record in read_records(tmp_path / "out/squares/blank.jsonl")]
    assert blank == [f"squares-{i}#blank" for i in range(3)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("aime", "no benchmark 'aime'; there are"),
        ("no/such_file.py:X", r"there is no file .*no/such_file\.py"),
        ("{own}:NOTHING", "has no benchmark 'NOTHING'"),
        ("{own}:problems", "has no benchmark 'problems'"),
        ("{folder}/broken.py:X", "broken.py cannot be imported: NameError"),
        ("{folder}/dots.py:X", "the benchmark's name '../x' must be"),
    ],
)
def test_benchmarks_that_are_not_there(spec: str, message: str, own: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "broken.py").write_text("X = this_is_no_name")
    (folder / "dots.py").write_text(
        (folder / "my_bench.py").read_text().replace('"squares",\n    source', '"../x",\n    source') + "\nX = SQUARES"
    )
    name = spec.format(own=own.rpartition(":")[0], folder=folder)
    with pytest.raises(EvaluationError, match=message):
        check_benchmarks(load_config(None, [f"eval.benchmarks=[{json.dumps(name)}]"]))


def test_a_limit_is_spread_and_an_id_comes_once(make: Make, tmp_path: Path) -> None:
    """Rows 0, 2 and 4 of 6; row 4 has the id of row 0."""
    rows = [{"problem_idx": i % 4, "problem": "how many", "answer": str(i)} for i in range(6)]
    (tmp_path / "six.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = make(f"eval.benchmarks={{aime25: {{source: {tmp_path / 'six.jsonl'}}}}}", "eval.limit=3")
    engine = ScriptedEngine(half_right)
    found = evaluate_benchmarks(config, session(engine), tmp_path / "out")["aime25"]
    assert engine.asked == ["aime25-0", "aime25-2"] and found["items"]["bad rows"] == {"id twice": 1}
    assert found["items"]["examples"] == ["row 4: the id 'aime25-0' is row 0's"]


def test_nothing_to_ask(make: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps({"problem_idx": 1, "problem": "?", "answer": "many"}))
    config = make(f"eval.benchmarks={{aime25: {{source: {tmp_path / 'bad.jsonl'}}}}}")
    with pytest.raises(DataError, match=r"none of 1 rows of .*bad.jsonl can be asked\n  row 0: answer is 'many'"):
        evaluate_benchmarks(config, session(ScriptedEngine(half_right)), tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.preset=warm"], "eval.preset='warm'; there are sapo, qwen3_vl_instruct"),
        (["eval.benchmarks.aime25.sauce=x"], "eval.benchmarks.aime25.sauce"),
        (["eval.sampling.top_p=2"], "eval.sampling.top_p"),
    ],
)
def test_settings_that_are_none(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def test_greedy_asks_once(make: Make, tmp_path: Path) -> None:
    config = make("eval.preset=greedy", "eval.k=0")
    found = evaluate_benchmarks(config, session(ScriptedEngine(half_right)), tmp_path)
    assert found["aime25"]["k"] == 1, "not the 32 of the benchmark"
    with pytest.raises(EvaluationError, match="2 responses an item at temperature 0"):
        check_benchmarks(make("eval.preset=greedy"))


def test_rescoring_finds_the_planted_verdict(make: Make, tmp_path: Path) -> None:
    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), tmp_path)
    folder = tmp_path / "aime25"
    assert rescore(folder, ScoringConfig()).changes == ()
    before = lines(folder / "records.jsonl")
    assert lines(folder / "rescored/records.jsonl") == before
    before[1]["responses"][1]["score"] = 1.0  # it answered 99
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in before))
    found = rescore(folder, ScoringConfig())
    assert found.changes == (Change("aime25-2", 1, "1", "0"),)
    assert (found.before["mean"], found.after["mean"]) == (0.5, 0.375)
    assert json.loads((folder / "rescored/summary.json").read_text())["pass@1"]["mean"] == 0.375


def test_rescoring_with_another_rule(make: Make, tmp_path: Path) -> None:
    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), tmp_path)
    rule = tmp_path / "rule.py"
    rule.write_text("from rewards import RewardOutput\n\ndef generous(x):\n    return RewardOutput(1.0)\n")
    scoring = ScoringConfig(path=f"{rule}:generous", by_task={"aime25": "custom"}, workers=1)
    found = rescore(tmp_path / "aime25", scoring)
    assert found.after["mean"] == 1.0 and len(found.changes) == 5
    ours = json.loads((tmp_path / "aime25/harness.json").read_text())
    theirs = json.loads((tmp_path / "aime25/rescored/harness.json").read_text())
    assert ours["hash"] != theirs["hash"] and list(theirs["harness"]["rules"]) == ["custom"]


def test_a_rescoring_that_fails_leaves_the_earlier_one(make: Make, tmp_path: Path) -> None:
    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), tmp_path)
    folder = tmp_path / "aime25"
    (folder / "rescored.part").mkdir()
    (folder / "rescored.part/records.jsonl").write_text("of one that was killed")
    rescore(folder, ScoringConfig())
    earlier = {path.name: path.read_bytes() for path in (folder / "rescored").iterdir()}
    assert {"records.jsonl", "harness.json", "summary.json"} <= earlier.keys()
    with pytest.raises(ScoringError):  # a judge without settings
        rescore(folder, ScoringConfig(by_task={"aime25": "judge"}))
    records = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(records + "cut off")
    with pytest.raises(EvaluationError, match="is no record"):
        rescore(folder, ScoringConfig())
    assert {path.name: path.read_bytes() for path in (folder / "rescored").iterdir()} == earlier
    assert not (folder / "rescored.part").exists()
    (folder / "rescored/blank.jsonl").write_text("of a control that is not there any more")
    (folder / "records.jsonl").write_text(records)
    rescore(folder, ScoringConfig())
    assert {path.name for path in (folder / "rescored").iterdir()} == earlier.keys() - {"blank.jsonl"}


def test_long_meta_stays_in_the_source(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapo_vl.evaluation.records.META_CHARS", 10)
    config = load_config(None, [f'eval.benchmarks=["{own}"]']).model_copy(update={"model": MODEL})
    evaluate_benchmarks(config, session(ScriptedEngine(lambda *_: "\\boxed{2}")), tmp_path / "out")
    folder = tmp_path / "out/squares"
    assert all(record.meta is None for record in read_records(folder / "records.jsonl"))
    squares = find_benchmark(own)
    assert rescore(folder, ScoringConfig(), [squares]).changes == ()
    assert json.loads((folder / "rescored/summary.json").read_text())["metrics"] == {"all right": pytest.approx(1 / 3)}
    with pytest.raises(EvaluationError, match=r"'squares' is a benchmark of yours: name its file with --benchmark"):
        rescore(folder, ScoringConfig())
    Image.new("RGB", (32, 32), "green").save(tmp_path / "mine/1.png")
    with pytest.raises(EvaluationError, match=r"row 1 of .* is not the item 'squares-1'.* the source has changed"):
        rescore(folder, ScoringConfig(), [squares])


def test_no_code_that_results_name_is_run(own: str, tmp_path: Path) -> None:
    config = load_config(None, [f'eval.benchmarks=["{own}"]']).model_copy(update={"model": MODEL})
    evaluate_benchmarks(config, session(ScriptedEngine(lambda *_: "\\boxed{2}")), tmp_path / "out")
    (tmp_path / "mine/my_bench.py").write_text("raise SystemExit('this ran')")
    assert rescore(tmp_path / "out/squares", ScoringConfig()).changes == ()


def test_comparing_two_models(make: Make, tmp_path: Path) -> None:
    def better(name: str, j: int) -> str:
        return "\\boxed{4}" if name == "aime25-4" else half_right(name, j)

    evaluate_benchmarks(make(), session(ScriptedEngine(half_right)), tmp_path / "a/benchmarks")
    evaluate_benchmarks(make(), session(ScriptedEngine(better)), tmp_path / "b/benchmarks")
    found = compare(tmp_path / "a", tmp_path / "b")["aime25"]
    assert (found["first"], found["second"], found["difference"]["mean"]) == (0.375, 0.625, 0.25)
    # Gains 0, 0, 0, 1: s = 1/2, error 1/4, t(3) = 3.1824.
    assert found["difference"]["ci95"] == pytest.approx([0.25 - 0.7956, 1.0])
    assert (found["wins"], found["losses"], found["ties"]) == (1, 0, 3)
    assert (found["p"], found["test"]) == (1.0, "sign flips") and found["differs"] == {}
    assert "WARNING" not in describe("aime25", found)


def test_comparing_says_what_else_differs(make: Make, tmp_path: Path) -> None:
    evaluate_benchmarks(make("eval.k=1"), session(ScriptedEngine(half_right)), tmp_path / "a")
    rows = [{"problem_idx": i, "problem": f"how many circles {i}", "answer": "1"} for i in (1, 2, 6)]
    rows[1]["problem"] += " ?"
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = make("eval.k=1", f"eval.benchmarks={{aime25: {{source: {tmp_path / 'other.jsonl'}}}}}")
    evaluate_benchmarks(other, session(ScriptedEngine(half_right)), tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b")["aime25"]
    assert found["n"] == 1 and found["test"] == "mcnemar"
    assert found["left out"] == {"only in one": 3, "another prompt": 1, "without a score": 0}
    assert "benchmark.source" in found["differs"] and "WARNING" in describe("aime25", found)


def test_folders_without_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        benchmark_folders(tmp_path)
