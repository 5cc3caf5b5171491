"""Benchmarks scored by a judge model: figures, its agreement with the rule, its place in the harness."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_judge as fakes
import pytest
from evaluation_helpers import ScriptedEngine, record, response, session, write_own_benchmark
from fake_judge import Asked, FakeJudge, Reply, verdict
from helpers_models import MODEL
from PIL import Image

from rewards.judging.prompt import _TEXT
from sapo_vl.config import RunConfig, load_config
from sapo_vl.evaluation.agreement import ONLY_UNSURE, judge_agreement
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.harness import saved_params
from sapo_vl.evaluation.records import Verdict
from sapo_vl.evaluation.registry import find_benchmark
from sapo_vl.evaluation.rescore import rescore
from sapo_vl.evaluation.run import evaluate_benchmarks, metric_values
from sapo_vl.evaluation.table import figures_table
from sapo_vl.scoring.scorer import ScoringConfig, ScoringError

pytestmark = pytest.mark.timeout(120)
Make = Callable[..., RunConfig]
SAID = {"0": ("1", "two"), "1": ("2", "9"), "2": ("three", "7"), "3": ("4", None)}  # golds are 1, 2, 3, 4


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with fakes.fake_judge() as server:
        server.behave = lenient
        yield server


def lenient(asked: Asked) -> Reply:
    """Honest to the canaries; of the items it takes these."""
    if asked.texts["question"].startswith("how many"):
        return verdict(asked.texts["answer"] in ("1", "three", "7", "4"))
    return fakes.honest(asked)


def script(name: str, j: int) -> str:
    if name.endswith("#blank"):
        return "\\boxed{some}"
    said = SAID[name[-1]][j]
    return f"so \\boxed{{{said}}}" if said else "let me think"


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Four pictures, each with a dot at another place; the golds are 1 to 4."""
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = []
    for i in range(4):
        rows.append({"name": str(i), "question": "how many", "image": f"{i}.png", "answer": i + 1, "colour": "red"})
        image = Image.new("RGB", (32, 32), "white")
        image.putpixel((i, 3), (0, 0, 0))
        image.save(folder / f"{i}.png")
    return write_own_benchmark(folder, "\n".join(map(json.dumps, rows)))


@pytest.fixture
def make(own: str, server: FakeJudge, tmp_path: Path) -> Make:
    def config(**judge: Any) -> RunConfig:
        params = fakes.params(server.url, tmp_path / "cache", rule="number") | judge
        pairs = [f'eval.benchmarks=["{own}"]', "rewards.workers=1"]
        pairs += ["rewards.by_task={squares: judge}", f"rewards.params={json.dumps({'judge': params})}"]
        return load_config(None, pairs).model_copy(update={"model": MODEL})

    return config


def dots(asked: Asked) -> list[int]:
    """At which place each picture has its dot; -1: there is none."""
    found = []
    for image in asked.images:
        dark = [x for x in range(32) if image.convert("RGB").getpixel((x, 3)) == (0, 0, 0)]
        found.append(dark[0] if dark else -1)
    return found


def test_a_benchmark_scored_by_a_judge_with_eyes(make: Make, server: FakeJudge, tmp_path: Path) -> None:
    results = evaluate_benchmarks(make(ask="all", images=True), session(ScriptedEngine(script)), tmp_path / "out")
    found = results["squares"]
    assert found["pass@1"]["mean"] == pytest.approx((1 / 2 + 0 + 1 + 1 / 2) / 4)
    # The rule reads 1, 2, 9, 7 and 4, of which 1, 2 and 4 are right; the judge takes 1, 7, 4 and three.
    sure = {"responses": 5, "n": 5, "rule 1, judge 1": 2, "rule 1, judge 0": 1, "rule 0, judge 1": 1}
    unsure = {"responses": 2, "n": 2, "rule 1, judge 1": 0, "rule 1, judge 0": 0, "rule 0, judge 1": 1}
    assert found["judge"] == {
        "verdicts": 7, "silent": 0, "without a rule": 0, "why": "",
        "rule sure": sure | {"rule 0, judge 0": 1}, "rule unsure": unsure | {"rule 0, judge 0": 1},
        "agree": pytest.approx(4 / 7), "rule": pytest.approx(3 / 7), "judge": pytest.approx(4 / 7),
        "kappa": pytest.approx((4 / 7 - 24 / 49) / (1 - 24 / 49)),  # by chance 3/7 4/7 + 4/7 3/7
    }  # fmt: skip
    assert found == json.loads((tmp_path / "out/squares/summary.json").read_text())
    assert metric_values(results)["eval/squares/judge_agreement"] == pytest.approx(4 / 7)
    assert "  judge agrees with it" in figures_table(results)

    items = [asked for asked in server.asked if asked.texts["question"].startswith("how many")]
    assert len(items) == 7 + 4, "and one of each blank twin"
    assert all(dots(asked) == [int(asked.texts["reference"]) - 1] for asked in items), (
        "the picture of the item, also where the model saw a blank one"
    )


def test_the_judge_is_part_of_the_harness(
    make: Make, server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_benchmarks(make(), session(ScriptedEngine(script)), tmp_path / "out")
    harness = json.loads((tmp_path / "out/squares/harness.json").read_text())["harness"]
    identity = {"model": "m", "url": server.url, "rule": "number", "ask": "unsure", "sample": 0.0, "images": False}
    assert harness["judge"] == harness["rules"]["judge"]
    prompt = harness["judge"].pop("prompt")
    assert harness["judge"] == identity and len(prompt) == 16
    engine = ScriptedEngine(script)
    evaluate_benchmarks(make(timeout_s=3, cache=str(tmp_path / "b"), retries=0), session(engine), tmp_path / "out")
    assert engine.asked == [], "waiting longer changes no verdict"
    for change, key in (
        ({"model": "n"}, 'judge.model: "n", there "m"'),
        ({"images": True}, "judge.images: true, there false"),
        ({"ask": "all"}, 'judge.ask: "all", there "unsure"'),
        ({"sample": 0.5}, "judge.sample: 0.5, there 0.0"),
        ({"rule": "count"}, 'judge.rule: "count", there "number"'),
    ):
        with pytest.raises(EvaluationError, match=rf"results of another harness \(.*{key}"):
            evaluate_benchmarks(make(**change), session(engine), tmp_path / "out")
    monkeypatch.setattr("rewards.judging.prompt._TEXT", _TEXT.replace("You grade", "You judge"))
    with pytest.raises(EvaluationError, match=r"judge\.prompt: "):
        evaluate_benchmarks(make(), session(engine), tmp_path / "out")


def test_the_bound_of_the_pictures_and_the_rule_of_the_problem_are_part_of_it_too(make: Make, tmp_path: Path) -> None:
    config = make(images=True, image_pixels=2048, rule="problem")
    evaluate_benchmarks(config, session(ScriptedEngine(script)), tmp_path / "out")
    harness = json.loads((tmp_path / "out/squares/harness.json").read_text())["harness"]
    assert harness["judge"]["image_pixels"] == 2048 and list(harness["rules"]) == ["judge", "number"]


def test_what_the_request_says_besides_is_part_of_it_too(make: Make, server: FakeJudge, tmp_path: Path) -> None:
    """And a judge that is asked again about saved responses is asked with it."""
    evaluate_benchmarks(make(), session(ScriptedEngine(script)), tmp_path / "plain")
    config = make(ask="all", body={"max_tokens": None, "max_completion_tokens": 9})
    evaluate_benchmarks(config, session(ScriptedEngine(script)), tmp_path / "out")
    plain, other = (
        json.loads((tmp_path / f"{f}/squares/harness.json").read_text())["harness"] for f in ("plain", "out")
    )
    assert "body" not in plain["judge"] and plain["judge"]["prompt"] != other["judge"]["prompt"]
    assert other["judge"]["body"] == {"max_tokens": None, "max_completion_tokens": 9}
    assert saved_params(other)["judge"]["body"] == other["judge"]["body"]
    assert "max_tokens" not in server.asked[-1].body and server.asked[-1].body["max_completion_tokens"] == 9
    with pytest.raises(EvaluationError, match=r"results of another harness \(.*judge\.body"):
        evaluate_benchmarks(make(ask="all"), session(ScriptedEngine(script)), tmp_path / "out")


@pytest.mark.slow
def test_saved_responses_are_judged_without_a_model(make: Make, own: str, server: FakeJudge, tmp_path: Path) -> None:
    """The rule's figure and the judge's, of the same responses; and back again."""
    plain = load_config(None, [f'eval.benchmarks=["{own}"]']).model_copy(update={"model": MODEL})
    by_rule = evaluate_benchmarks(plain, session(ScriptedEngine(script)), tmp_path / "out")["squares"]
    assert by_rule["pass@1"]["mean"] == pytest.approx(3 / 8) and by_rule["judge"] is None and server.asked == []
    squares, folder = find_benchmark(own), tmp_path / "out/squares"
    scoring = make(ask="all", images=True).rewards
    found = rescore(folder, scoring, [squares])
    assert (found.before["mean"], found.after["mean"]) == (pytest.approx(3 / 8), pytest.approx(1 / 2))
    harness = json.loads((folder / "rescored/harness.json").read_text())["harness"]
    assert harness["judge"]["images"] is True and harness["rules"]["judge"] == harness["judge"]
    summary = json.loads((folder / "rescored/summary.json").read_text())
    assert summary["judge"]["agree"] == pytest.approx(4 / 7)
    items = [asked for asked in server.asked if asked.texts["question"].startswith("how many")]
    assert all(dots(asked) == [int(asked.texts["reference"]) - 1] for asked in items) and len(items) == 11

    judged = tmp_path / "judged"
    evaluate_benchmarks(make(ask="all"), session(ScriptedEngine(script)), judged)
    assert rescore(judged / "squares", ScoringConfig(), [squares]).after["mean"] == pytest.approx(3 / 8)
    assert json.loads((judged / "squares/rescored/harness.json").read_text())["harness"]["judge"] is None
    again = ScoringConfig(by_task={"squares": "judge"}, params={"judge": {"cache": str(tmp_path / "cache")}})
    assert rescore(judged / "squares", again, [squares]).changes == (), "the rest is as it was"
    with pytest.raises(ScoringError, match=r"missing a required .*'cache'"):
        rescore(judged / "squares", ScoringConfig(by_task={"squares": "judge"}), [squares])


# --- the figure of agreement


def said(rule: int | None, judge: int | None, sure: int = 1, **more: Any) -> Any:
    parts = {} if rule is None else {"rule_score": float(rule), "rule_sure": float(sure)}
    parts |= {} if judge is None else {"judge_verdict": float(judge)}
    return response(1.0, parts=parts, **more)


def test_a_sample_stands_for_all_that_the_rule_was_sure_of() -> None:
    """4 of 10 sure answers were asked about: each counts 2.5 times. Of 12 then agree 5 + 2.5 + 1."""
    asked = [said(1, 1), said(1, 1), said(1, 0), said(0, 0)]
    others = [said(1, None)] * 4 + [said(0, None)] * 2
    unsure = [said(0, 0, sure=0), said(0, 1, sure=0)]
    rest = [said(None, 1), said(None, None), response(None, None)]
    found = judge_agreement([record("a", *asked, *others, rule="judge"), record("b", *unsure, *rest, rule="judge")])
    assert found is not None
    assert (found["rule sure"]["responses"], found["rule sure"]["n"], found["rule unsure"]["n"]) == (10, 4, 2)
    assert (found["verdicts"], found["without a rule"]) == (7, 1)
    shares = [found[key] for key in ("agree", "rule", "judge", "kappa")]
    assert shares == pytest.approx([8.5 / 12, 7.5 / 12, 6 / 12, (8.5 / 12 - 0.5) / 0.5])


def test_no_agreement_where_the_rule_chose_what_is_asked() -> None:
    found = judge_agreement([record("a", said(1, None), said(0, 1, sure=0), said(0, 0, sure=0), rule="judge")])
    assert found is not None
    assert (found["agree"], found["kappa"], found["why"]) == (None, None, ONLY_UNSURE)
    assert found["rule unsure"]["rule 0, judge 1"] == 1


def test_agreement_beside_the_official_rule() -> None:
    """`eval.rule=official`: the judge is the other rule, and what it says is not lost."""
    others = [said(1, 1), said(0, 1), said(0, 0)]
    verdicts = [Verdict(score=r.score, status=r.status, reason="", parts=r.parts) for r in others]
    rules = {"rule": "official_x", "other_rule": "judge"}
    found = judge_agreement([record(str(i), response(0.0, other=v), **rules) for i, v in enumerate(verdicts)])
    assert found is not None and found == judge_agreement([record("a", *others, rule="judge")])
    assert (found["verdicts"], found["agree"]) == (3, pytest.approx(2 / 3))
    assert (
        judge_agreement([record("a", response(1.0, other=verdicts[0]), rule="official_x", other_rule="word")]) is None
    )


def test_agreement_at_its_ends() -> None:
    assert judge_agreement([record("a", said(1, 1), rule="number")]) is None
    alike = judge_agreement([record("a", said(1, 1), said(1, 1), rule="judge")])
    assert alike is not None and (alike["agree"], alike["kappa"]) == (1.0, None), "chance alone agrees always"
    nothing = judge_agreement([record("a", said(None, None), rule="judge")])
    assert nothing is not None and nothing["agree"] is None and nothing["why"].startswith("no response")
    opposed = judge_agreement([record("a", said(1, 0), said(0, 1), rule="judge")])
    assert opposed is not None and (opposed["agree"], opposed["kappa"]) == (0.0, -1.0)
