"""The judge in the scorer: canaries, counts, outages, and when a run stops (against fake_judge.py)."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_judge as fakes
import httpx
import pytest
import torch
import torch.distributed as dist
from fake_judge import FakeJudge, Reply, answers, honest, params, scoring, verdict
from helpers_run import short_run

from rewards.judging.canaries import RIGHT, WRONG
from sapo_vl.distributed import World
from sapo_vl.scoring.failure_watch import ScoringStopped
from sapo_vl.scoring.judging import MINIMUM, REFUSED, WINDOW, question_of
from sapo_vl.scoring.lines import RewardLinesError, score_lines
from sapo_vl.scoring.scorer import Scorer, ScoringError
from sapo_vl.types import Problem, RolloutGroup, ScoreStatus

pytestmark = pytest.mark.timeout(120)
TASKS = [("moods", "")]


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with fakes.fake_judge() as server:
        yield server


def statuses(groups: list[RolloutGroup]) -> list[tuple[str, float | None]]:
    return [(str(r.score_status), r.reward) for g in groups for r in g.rollouts]


def fooled_by(count: int) -> Any:
    """Honest, but for the first so many wrong canaries."""
    taken_in = {c.answer.replace("<", "< ") for c in WRONG[:count]}
    return lambda asked: verdict(True) if asked.texts["answer"] in taken_in else fakes.honest(asked)


def test_a_batch_with_canaries_an_outage_and_what_was_known_before_it(server: FakeJudge, tmp_path: Path) -> None:
    config = scoring(params(server.url, tmp_path, retries=0), max_failure_share=1.0)
    with Scorer(config) as scorer:
        assert scorer.judge_metrics == {}
        scorer.check(TASKS, "data")
        assert len(server.asked) == 20
        scored = scorer.score(answers("red", "crimson", "green", ""), max_tokens=9)
        assert statuses(scored) == [("scored", 1.0), ("scored", 1.0), ("scored", 0.0), ("scored", 0.0)]
        assert len(server.asked) == 20 + 2 + 4
        assert {a.texts["question"] for a in server.asked if a.texts["answer"] == "green"} == {"Which colour?"}
        expected = {
            "judge/asked": 2, "judge/cache_hits": 0, "judge/failures": 0, "judge/canary_asked": 4,
            "judge/canary_failures": 0, "judge/canary_false_negative_rate": 0, "judge/canary_false_positive_rate": 0,
        }  # fmt: skip
        assert scorer.judge_metrics == expected
        assert [dict(r.parts) for r in scored[0].rollouts[:2]] == [
            {"accuracy": 1.0, "accuracy/judge_asked": 0.0, "accuracy/judge_cached": 0.0,
             "accuracy/rule_score": 1.0, "accuracy/rule_sure": 1.0},
            {"accuracy": 1.0, "accuracy/judge_asked": 1.0, "accuracy/judge_cached": 0.0, "accuracy/judge_verdict": 1.0,
             "accuracy/rule_score": 0.0, "accuracy/rule_sure": 0.0},
        ]  # fmt: skip

        server.close()
        scored = scorer.score(answers("red", "crimson", "blue", "navy", ""), max_tokens=9)
        assert [r.reward for r in scored[0].rollouts] == [1.0, 1.0, None, None, 0.0]
        assert [r.score_status for r in scored[0].rollouts[2:4]] == [ScoreStatus.UNSCORABLE] * 2
        assert scored[0].rollouts[2].score_detail.startswith("the judge gave no verdict: ")
        expected |= {"judge/cache_hits": 1, "judge/failures": 2, "judge/canary_failures": 4}
        del expected["judge/canary_false_negative_rate"]
        assert scorer.judge_metrics == expected

        back = FakeJudge(server.port)
        time.sleep(2 * 0.05)  # pause_s
        try:
            scored = scorer.score(answers("blue", "a dozen"), max_tokens=9)
        finally:
            back.close()
        assert statuses(scored) == [("scored", 0.0), ("scored", 1.0)]


def test_an_outage_without_end_stops_the_run_by_the_rule_for_every_reward(server: FakeJudge, tmp_path: Path) -> None:
    """And soon: after a few responses nobody is asked any more, though each could have taken its deadline."""
    with Scorer(scoring(params(server.url, tmp_path, retries=0, timeout_s=2, pause_s=3600))) as scorer:
        scorer.check(TASKS, "data")
        server.behave = server.hang
        before = len(server.asked)
        with pytest.raises(ScoringStopped, match=r"40 of the latest 40 .*\n.*the judge gave no verdict"):
            scorer.score(answers(*(f"shade {i}" for i in range(40))), max_tokens=9)
        assert len(server.asked) - before < 12


def test_a_quota_that_is_used_up_is_named_for_every_response(server: FakeJudge, tmp_path: Path) -> None:
    """No verdict that was had is lost, and nobody is told that the judge is down."""
    with Scorer(scoring(params(server.url, tmp_path, retries=0, pause_s=3600), max_failure_share=1.0)) as scorer:
        scorer.check(TASKS, "data")
        server.behave = fakes.Quota(7, 3600)
        [scored] = scorer.score(answers("red", *(f"shade {i}" for i in range(20))), max_tokens=9)
        had = [r for r in scored.rollouts if r.score_status == ScoreStatus.SCORED]
        told = [r.score_detail for r in scored.rollouts if r.score_status == ScoreStatus.UNSCORABLE]
        assert (len(had), len(told)) == (1 + 7, 13) and all("status 429 slow down" in why for why in told)
        assert (scorer.judge_metrics["judge/failures"], scorer.judge_metrics["judge/canary_failures"]) == (13, 4)
    assert not (tmp_path / "outage.json").exists()


def test_a_folder_that_goes_away_costs_verdicts_and_raises_nothing(server: FakeJudge, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Scorer(scoring(params(server.url, folder), max_failure_share=1.0)) as scorer:
        scorer.check(TASKS, "data")
        shutil.rmtree(folder)
        folder.write_text("no folder")
        [scored] = scorer.score(answers("red", "crimson"), max_tokens=9)
        assert [r.reward for r in scored.rollouts] == [1.0, None]
        assert scored.rollouts[1].score_detail.startswith("the judge gave no verdict: this machine failed to ask it: ")
        assert (scorer.judge_metrics["judge/failures"], scorer.judge_metrics["judge/canary_failures"]) == (1, 4)


# --- canaries


def test_a_judge_that_accepts_everything_is_refused_before_training(server: FakeJudge, tmp_path: Path) -> None:
    server.behave = lambda _: verdict(True)
    refusal = pytest.raises(ScoringError, match="data: the judge 'm' called 16 of the latest 16 wrong canaries correct")
    with Scorer(scoring(params(server.url, tmp_path))) as scorer, refusal:
        scorer.check(TASKS, "data")
    with Scorer(scoring(params(server.url, tmp_path, canary_limit=1.0))) as scorer:
        scorer.check(TASKS, "data")


def test_a_judge_that_is_not_there_is_named_before_training(server: FakeJudge, tmp_path: Path) -> None:
    server.close()
    refusal = pytest.raises(ScoringError, match=rf"{server.url} gave no verdict on 20 of 20 canaries: .*Start it")
    with Scorer(scoring(params(server.url, tmp_path, retries=0))) as scorer, refusal:
        scorer.check(TASKS, "data")


@pytest.mark.parametrize(("wrong", "refused"), [(3, False), (4, True)])
def test_the_limit_is_a_share_of_the_wrong_canaries(
    server: FakeJudge, tmp_path: Path, wrong: int, refused: bool
) -> None:
    """3 of 16 are 0.19 and pass the limit of 0.2; 4 of 16 are 0.25 and do not."""
    server.behave = fooled_by(wrong)
    with Scorer(scoring(params(server.url, tmp_path))) as scorer:
        if refused:
            with pytest.raises(ScoringError, match=r"called 4 of the latest 16 .* \(25%\)"):
                scorer.check(TASKS, "data")
        else:
            scorer.check(TASKS, "data")


def test_a_judge_that_is_fooled_during_the_run_stops_it(server: FakeJudge, tmp_path: Path) -> None:
    with Scorer(scoring(params(server.url, tmp_path))) as scorer:
        scorer.check(TASKS, "data")
        scorer.score(answers("red"), max_tokens=9)
        server.behave = lambda _: verdict(True)
        scorer.score(answers("red"), max_tokens=9)  # 3 of 16 + 6
        assert scorer.judge_metrics["judge/canary_false_positive_rate"] == pytest.approx(3 / 22)
        with pytest.raises(ScoringStopped, match=r"6 of the latest 25 wrong canaries correct.*canary_limit=0.2"):
            scorer.score(answers("red"), max_tokens=9)


def test_the_canaries_stop_a_run_that_was_not_checked_once_there_are_enough(server: FakeJudge, tmp_path: Path) -> None:
    server.behave = lambda _: verdict(True)
    with Scorer(scoring(params(server.url, tmp_path))) as scorer:
        for _ in range((MINIMUM - 1) // 3):
            scorer.score([], max_tokens=9)
        with pytest.raises(ScoringStopped, match="9 of the latest 9"):
            scorer.score([], max_tokens=9)
    assert WINDOW >= 16, "the check's verdicts would not fit"
    assert not (tmp_path / "verdicts").exists(), "a canary went through the cache"


@pytest.mark.parametrize("kind", ["none", "one"])
def test_a_judge_that_refuses_everything_is_refused_before_training(
    server: FakeJudge, tmp_path: Path, kind: str
) -> None:
    server.behave = lambda asked: verdict(kind == "one" and asked.texts["answer"] == RIGHT[2].answer)
    message = r"data: the judge 'm' called none of the latest 4 right canaries correct: every answer .* would score 0"
    with Scorer(scoring(params(server.url, tmp_path))) as scorer:
        if kind == "none":
            with pytest.raises(ScoringError, match=message):
                scorer.check(TASKS, "data")
        else:
            scorer.check(TASKS, "data")
    with Scorer(scoring(params(server.url, tmp_path, canary_limit=1.0))) as scorer:
        scorer.check(TASKS, "data")


def test_a_judge_that_comes_to_refuse_everything_stops_the_run(server: FakeJudge, tmp_path: Path) -> None:
    with Scorer(scoring(params(server.url, tmp_path))) as scorer:
        scorer.check(TASKS, "data")
        server.behave = lambda _: verdict(False)
        for _ in range(REFUSED - 1):  # a right canary a batch
            scorer.score(answers("red"), max_tokens=9)
        with pytest.raises(ScoringStopped, match="none of the latest 8 right canaries"):
            scorer.score(answers("red"), max_tokens=9)


def test_silence_is_no_refusal(server: FakeJudge, tmp_path: Path) -> None:
    """A run is stopped for what a judge said, and right canaries without a verdict say nothing."""
    with Scorer(scoring(params(server.url, tmp_path, retries=0))) as scorer:
        answered = {canary.answer for canary in RIGHT}
        server.behave = lambda asked: Reply("?") if asked.texts["answer"] in answered else honest(asked)
        scorer.check(TASKS, "data")
        for _ in range(REFUSED + 1):
            scorer.score(answers("red"), max_tokens=9)
        assert scorer.judge_metrics["judge/canary_failures"] == 1


def test_garbage_is_no_false_positive(server: FakeJudge, tmp_path: Path) -> None:
    with Scorer(scoring(params(server.url, tmp_path, canary_limit=0))) as scorer:
        scorer.check(TASKS, "data")
        server.behave = lambda _: Reply("correct")
        scorer.score(answers("red"), max_tokens=9)
        assert scorer.judge_metrics["judge/canary_failures"] == 4
        assert scorer.judge_metrics["judge/canary_false_positive_rate"] == 0


# --- around it


def test_the_judge_as_a_term_beside_another_reward(server: FakeJudge, tmp_path: Path) -> None:
    config = scoring(params(server.url, tmp_path), by_task={"*": "word"}, combine={"accuracy": 0.5, "judge": 0.5})
    with Scorer(config) as scorer:
        scorer.check(TASKS, "data")
        scored = scorer.score(answers("red", "crimson", "green"), max_tokens=9)
        assert [r.reward for r in scored[0].rollouts] == [1.0, 0.5, 0.0]
        assert scorer.judge_metrics["judge/asked"] == 2


def test_a_rule_that_takes_long_to_import(server: FakeJudge, tmp_path: Path) -> None:
    """SymPy belongs to the start of a worker: the time of a response is the judge's."""
    config = scoring(params(server.url, tmp_path, rule="math"), workers=1)
    with Scorer(config) as scorer:
        scored = scorer.score(answers("0.5", "one half", gold="\\frac{1}{2}"), max_tokens=9)
        assert [r.reward for r in scored[0].rollouts] == [1.0, 0.0]
        assert scorer._pool is not None and scorer._pool._preload == {"judge", "math"}


def test_scores_for_lines_of_a_file(server: FakeJudge, tmp_path: Path) -> None:
    rows = [{"response": f"<answer>{a}</answer>", "answer": "red", "question": "Which?"} for a in ("crimson", "green")]
    settings = params(server.url, tmp_path)
    found = list(score_lines("judge", map(json.dumps, rows), settings, 10.0, workers=1))
    assert [(f["score"], f["status"], f["parts"]["judge_asked"]) for f in found] == [(1, "scored", 1), (0, "scored", 1)]
    assert [a.texts["question"] for a in server.asked] == ["Which?"] * 2
    with pytest.raises(RewardLinesError, match="rule must be one of"):
        list(score_lines("judge", [], settings | {"rule": "code"}, 10.0, workers=1))


def test_the_question_is_what_the_user_says() -> None:
    turns = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " How many?\n"}]},
        {"role": "assistant", "content": "Of what?"},
        {"role": "user", "content": "Circles."},
    )
    assert question_of(Problem(id="a", task="t", messages=turns)) == "How many?\nCircles."


@pytest.mark.slow
def test_the_metrics_of_a_training_run_have_what_the_judge_did(server: FakeJudge, tmp_path: Path, seed: int) -> None:
    strict = {canary.answer for canary in RIGHT[1:]}  # one of the four right canaries is refused
    server.behave = lambda asked: verdict(asked.texts["answer"] in strict)
    judge = json.dumps(params(server.url, tmp_path / "cache"))
    settings = {"rewards.by_task": '{"*": judge}', "rewards.params": f'{{"judge": {judge}}}'}
    steps = short_run(tmp_path, seed, {**settings, "steps": 4, "rollout.prompts_per_step": 2, "eval.every": 0})
    assert [step["judge/canary_asked"] for step in steps] == [4] * 4
    assert [step["judge/canary_false_positive_rate"] for step in steps] == [0] * 4
    assert sorted(step["judge/canary_false_negative_rate"] for step in steps) == [0, 0, 0, 1]
    # The model knows nothing and never writes an answer tag: all its responses score 0 without the judge.
    assert {step[f"judge/{name}"] for step in steps for name in ("asked", "cache_hits", "failures")} == {0}
    assert len(server.asked) >= 20 + 4 * 4


# --- ranks

FOOLED_AT = 3  # number of the batch from which on the judge is taken in


def course(url: str, folder: Path, world: World) -> dict[str, Any]:
    """What a rank meets of six batches; the judge at `url` is taken in by everything from one of them on."""
    found: dict[str, Any] = {"metrics": [], "stopped": ""}
    with Scorer(scoring(params(url, folder)), world) as scorer:
        scorer.check(TASKS, "data")
        try:
            for batch in range(6):
                texts = [f"crimson {batch} {i}" for i in range(4)]
                world.barrier()
                if batch == FOOLED_AT and world.is_main:
                    httpx.post(f"{url}/chat/completions", json=FOOL, trust_env=False)
                world.barrier()
                scorer.score(answers(*texts[world.rank :: world.size]), max_tokens=9)
                found["metrics"].append(scorer.judge_metrics)
        except ScoringStopped as stop:
            found["stopped"] = str(stop)
    return found


FOOL = {"messages": [{"content": "be fooled"}]}


def run_rank(rank: int, url: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = course(url, Path(folder, "cache"), World(rank=rank, size=2, device=torch.device("cpu")))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def behave(server: FakeJudge) -> None:
    def honest_until_told(asked: fakes.Asked) -> Reply:
        if asked.texts:
            return fakes.honest(asked)
        server.behave = lambda _: verdict(True)
        return verdict(True)

    server.behave = honest_until_told


@pytest.mark.slow
def test_ranks_share_the_canaries_and_stop_together(server: FakeJudge, tmp_path: Path) -> None:
    behave(server)
    alone = course(server.url, tmp_path / "alone", World.alone())
    asked = len(server.asked)
    behave(server)
    torch.multiprocessing.spawn(run_rank, args=(server.url, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == alone
    # 16 verdicts of the check and 3 a batch: 3 of 28 and 6 of 31 are below 0.2, 9 of the 32 that are kept are not.
    rates = [figures["judge/canary_false_positive_rate"] for figures in alone["metrics"]]
    assert rates == pytest.approx([0, 0, 0, 3 / 28, 6 / 31]) and alone["metrics"][0]["judge/asked"] == 4
    assert "called 9 of the latest 32 wrong canaries correct" in alone["stopped"]
    assert len(server.asked) == 2 * asked, "two ranks asked more than one did"
