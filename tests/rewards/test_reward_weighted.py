"""The reward `weighted`: a sum of other rewards, by name."""

import pytest
from reward_helpers import respond, say
from scoring_helpers import group

from rewards import REWARDS
from rewards.workers.preflight import setting_problem
from sapo_vl.scoring.scorer import Scorer, ScoringConfig, ScoringError
from sapo_vl.types import ScoreStatus

TERMS = {"weights": {"box": 0.7, "format": 0.3, "overlong": 0.5}, "params": {"overlong": {"limit": 10, "buffer": 4}}}


def test_by_hand():
    out = REWARDS["weighted"](respond(say("0 0 2 4"), "0 0 4 4", tokens=(1,) * 8), **TERMS)
    assert out.score == pytest.approx(0.7 * 1 + 0.3 * 1 + 0.5 * -0.5)  # 8 tokens are half way down the slope
    assert out.parts == {"box": 1, "box/iou": 0.5, "format": 1, "overlong": -0.5}


def test_as_the_reward_of_a_task():
    settings = ScoringConfig(combine={"accuracy": 1.0}, params={"weighted": TERMS})
    with Scorer(settings) as scorer:
        scorer.check([("ground", "weighted")], "boxes")
        texts = ["<think> hm </think> <answer>0 0 4 4</answer>", "<answer>0 0 4 4</answer>", ""]
        [scored] = scorer.score([group(texts, task="ground", reward="weighted", answer="0 0 4 4")], max_tokens=99)
    # The helper's responses have 20 tokens: beyond the limit of 10.
    assert [r.reward for r in scored.rollouts] == pytest.approx([0.7 + 0.3 - 0.5, 0.7 - 0.5, -0.5])
    assert scored.rollouts[1].parts["accuracy/box/iou"] == 1


def test_a_term_that_cannot_judge_leaves_the_response_unscored():
    with Scorer(ScoringConfig(combine={"accuracy": 1.0}, params={"weighted": TERMS})) as scorer:
        [scored] = scorer.score([group(["x"], reward="weighted", answer="cat")], max_tokens=99)
    assert scored.rollouts[0].score_status is ScoreStatus.UNSCORABLE
    assert "is not a box" in scored.rollouts[0].score_detail


def test_sums_of_sums():
    inner = {"weights": {"word": 1.0, "format": 0.5}}
    out = REWARDS["weighted"](respond(say("red"), "red"), weights={"weighted": 2.0}, params={"weighted": inner})
    assert out.score == 3.0
    assert out.parts["weighted/word"] == 1


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({}, "missing a required argument: 'weights'"),
        ({"weights": {}}, "needs weights, a mapping"),
        ({"weights": ["box"]}, "needs weights, a mapping"),
        ({"weights": {"bax": 1}}, "there is no reward 'bax'; known: box, "),
        ({"weights": {"box": "much"}}, "the weight of 'box' must be a finite number, got 'much'"),
        ({"weights": {"box": float("nan")}}, "must be a finite number"),
        ({"weights": {"box": 1}, "params": {"word": {}}}, "params for 'word', which has no weight"),
        ({"weights": {"overlong": 1}, "params": {"overlong": {"bufer": 1}}}, "unexpected keyword argument 'bufer'"),
        ({"weights": {"weighted": 1}, "params": {"weighted": {"weights": {"bax": 1}}}}, "there is no reward 'bax'"),
        ({"weights": {"code": 1}, "params": {"code": {"total_s": 60}}}, "must be less than rewards.timeout_s=10"),
    ],
)
def test_mistakes_are_found_before_training(params, problem):
    assert problem in setting_problem("weighted", params, timeout_s=10.0)
    if params:
        with Scorer(ScoringConfig(params={"weighted": params})) as scorer:
            with pytest.raises(ScoringError, match=r"^boxes: "):
                scorer.check([("ground", "weighted")], "boxes")
            scorer.check([("ground", "box")], "boxes")  # a reward that nothing uses is not asked
