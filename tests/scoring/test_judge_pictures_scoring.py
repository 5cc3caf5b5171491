"""A judge that sees pictures, in the scorer: what it is shown, and its canaries (against fake_judge.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fake_judge as fakes
import pytest
from fake_judge import FakeJudge, Reply, answers, honest, params, scoring, verdict
from PIL import Image
from scoring_helpers import group

from sapo_vl.scoring.failure_watch import ScoringStopped
from sapo_vl.scoring.scorer import Scorer, ScoringError

pytestmark = pytest.mark.timeout(120)
TASKS = [("moods", "")]
RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with fakes.fake_judge() as server:
        yield server


def blind(asked: fakes.Asked) -> Reply:
    """A language model without eyes, as vLLM serves it."""
    return Reply("At most 0 image(s) may be provided in one prompt.", 400) if asked.images else honest(asked)


def test_pictures_go_through_the_workers_and_the_canaries_have_theirs(server: FakeJudge, tmp_path: Path) -> None:
    with Scorer(scoring(params(server.url, tmp_path, images=True))) as scorer:
        scorer.check(TASKS, "data")
        assert len(server.asked) == 26 and sum(bool(asked.images) for asked in server.asked) == 6
        scored = scorer.score(answers("crimson", "green", images=(RED,)), max_tokens=9)
        assert [r.reward for r in scored[0].rollouts] == [1.0, 0.0]
        assert scorer.judge_metrics["judge/asked"] == 2
    [crimson] = [asked for asked in server.asked if asked.texts["answer"] == "crimson"]
    assert [image.convert("RGB").tobytes() for image in crimson.images] == [RED.tobytes()]


def test_a_judge_of_text_is_shown_none(server: FakeJudge, tmp_path: Path) -> None:
    server.behave = blind
    with Scorer(scoring(params(server.url, tmp_path))) as scorer:
        scorer.check(TASKS, "data")
        scored = scorer.score(answers("crimson", images=(RED,)), max_tokens=9)
        assert scored[0].rollouts[0].reward == 1.0 and not any(asked.images for asked in server.asked)


def test_a_judge_without_eyes_is_refused_before_training(server: FakeJudge, tmp_path: Path) -> None:
    """It answers most canaries, those without a picture; all the responses that matter would be left out."""
    server.behave = blind
    message = r"gave no verdict on 6 of 6 canaries with a picture: .*status 400 At most 0 image.*images=false"
    with (
        Scorer(scoring(params(server.url, tmp_path, images=True))) as scorer,
        pytest.raises(ScoringError, match=message),
    ):
        scorer.check(TASKS, "data")


def test_a_judge_that_comes_to_believe_pictures_stops_the_run(server: FakeJudge, tmp_path: Path) -> None:
    """It calls correct whatever comes with a picture: 4 of 20 at the start, and more with every batch."""
    server.behave = lambda asked: verdict(True) if asked.images else honest(asked)
    with Scorer(scoring(params(server.url, tmp_path, images=True))) as scorer:
        scorer.check(TASKS, "data")  # 4 of 20 is just the limit
        with pytest.raises(ScoringStopped, match=r"more than rewards.params.judge.canary_limit=0.2"):
            for _ in range(10):
                scorer.score([], max_tokens=9)


def test_a_sampled_answer_without_a_verdict_is_counted_and_keeps_its_score(server: FakeJudge, tmp_path: Path) -> None:
    with Scorer(scoring(params(server.url, tmp_path, rule="number", sample=1.0, retries=0))) as scorer:
        scorer.check(TASKS, "data")
        server.behave = lambda _: Reply("?")
        [scored] = scorer.score(answers("12", "13", gold="12"), max_tokens=9)
        assert [r.reward for r in scored.rollouts] == [1.0, 0.0]
        found = scorer.judge_metrics
        assert (found["judge/asked"], found["judge/failures"], found["judge/cache_hits"]) == (2, 2, 0)


def test_the_rule_of_each_problem(server: FakeJudge, tmp_path: Path) -> None:
    config = scoring(params(server.url, tmp_path, rule="problem"))
    with Scorer(config) as scorer:
        scorer.check([("moods", "math"), ("moods", "choice")], "data")
        problems = [("math", "\\frac{1}{2}", "0.5", {}), ("choice", "B", "blue", {"choices": ["red", "blue"]})]
        groups = [
            group([f"<answer>{answer}</answer>"], reward=reward, answer=gold, meta=meta)
            for reward, gold, answer, meta in problems
        ]
        before = len(server.asked)
        scored = scorer.score(groups, max_tokens=9)
        assert [g.rollouts[0].reward for g in scored] == [1.0, 1.0]
        assert len(server.asked) == before + 4, "only the canaries of the batch"
        assert scorer._pool is not None and scorer._pool._preload == {"judge", "math"}
        with pytest.raises(ScoringError, match=r"data: the judge cannot follow the rule 'ocr' .* task 'moods'"):
            scorer.check([("moods", "math"), ("moods", "ocr")], "data")
