"""Scoring: routing of tasks to rewards, built-in rewards, a reward from a file, and when a run must stop."""

import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError
from scoring_helpers import config, group

from rewards import REWARDS
from sapo_vl.scoring.failure_watch import FAILURE_MINIMUM, FAILURE_WINDOW, ScoringStopped
from sapo_vl.scoring.scorer import Scorer, ScoringConfig, ScoringError
from sapo_vl.types import Finish, ScoreStatus

GOOD = "<think> hm </think> <answer> {} </answer>"


def test_built_in_rewards_by_hand_and_without_workers():
    groups = [
        group(
            [GOOD.format(3), GOOD.format(4), "<answer>3</answer>", ""],
            task="count",
            reward="number",
            answer="3",
        ),
        group([GOOD.format("1 2 5 7")], task="ground", reward="box", answer="1 2 5 6"),
        group([GOOD.format("red")], task="grid", reward="word", answer="Red"),
    ]
    with Scorer(ScoringConfig()) as scorer:
        scorer.check([("count", "number"), ("ground", "box"), ("grid", "word")], "data")
        scored = scorer.score(groups, max_tokens=30)
        assert scorer._pool is None
    assert [r.reward for r in scored[0].rollouts] == pytest.approx([1.0, 0.1, 0.9, 0.0])
    assert [dict(r.parts) for r in scored[0].rollouts[:2]] == [
        {"accuracy": 1.0, "format": 1.0},
        {"accuracy": 0.0, "format": 1.0},
    ]
    # 4x4 and 4x5: 16 of 20
    assert scored[1].rollouts[0].parts == {"accuracy": 1.0, "accuracy/iou": pytest.approx(0.8), "format": 1.0}
    assert all(r.score_status is ScoreStatus.SCORED for g in scored for r in g.rollouts)
    assert scored[0].prompt is groups[0].prompt
    assert groups[0].rollouts[0].reward is None  # the input is left as it was


def test_overlong_and_repetition_terms_see_tokens():
    # The helper's responses have 20 different tokens. Slope of 10 tokens before 25: 20 is half way down.
    settings = ScoringConfig(
        combine={"accuracy": 1.0, "overlong": 0.4, "repetition": 0.2},
        params={"overlong": {"buffer": 10}, "repetition": {"n": 2}},
    )
    with Scorer(settings) as scorer:
        [scored] = scorer.score([group(["<answer>3</answer>"], reward="number", answer="3")], max_tokens=25)
    assert scored.rollouts[0].parts == {"accuracy": 1.0, "overlong": -0.5, "repetition": 0.0}
    assert scored.rollouts[0].reward == pytest.approx(1.0 - 0.4 * 0.5)


def test_a_senseless_gold_leaves_its_group_unscored_and_counted():
    groups = [group([GOOD.format(3)] * 2, reward="number", answer=a) for a in ("three", "3")]
    with Scorer(ScoringConfig()) as scorer:
        bad, good = scorer.score(groups, max_tokens=30)
        assert scorer.counts[ScoreStatus.UNSCORABLE] == scorer.counts[ScoreStatus.SCORED] == 2
    assert [r.reward for r in bad.rollouts] == [None, None]
    assert bad.rollouts[0].score_detail == "the reference answer 'three' is not a number"
    assert [r.reward for r in good.rollouts] == [1.0, 1.0]


def test_score_detail_says_why_a_response_scored_zero():
    texts = [GOOD.format("3 cm"), "it is 3", GOOD.format(4), GOOD.format(3)]
    groups = [group(texts, reward=name, answer="3") for name in ("number", "math")]  # in this process, in a worker
    with Scorer(ScoringConfig(workers=1)) as scorer:
        scored = scorer.score(groups, max_tokens=30)
    details = [[r.score_detail for r in g.rollouts] for g in scored]
    assert details == [["wrong unit", "no answer", "wrong", ""], ["", "no answer", "wrong", ""]]
    assert all(r.score_status is ScoreStatus.SCORED for g in scored for r in g.rollouts)


def test_a_response_the_engine_failed_on_is_not_scored():
    with Scorer(ScoringConfig()) as scorer:
        [scored] = scorer.score([group([""] * 40, Finish.FAILED, reward="number", answer="3")], max_tokens=30)
        assert scorer.counts[ScoreStatus.UNSCORABLE] == 40  # and that many did not stop the run
    assert scored.rollouts[0].reward is None
    assert scored.rollouts[0].score_detail == "the rollout engine returned no response"


def test_no_groups_no_results():
    with Scorer(ScoringConfig()) as scorer:
        assert scorer.score([], max_tokens=30) == []


def test_routing_by_task_goes_before_the_data_set():
    answers = [group([GOOD.format("RED")], task=task, reward="number", answer="red") for task in ("grid", "other")]
    with Scorer(ScoringConfig(by_task={"grid": "word", "*": "choice"}, combine={"accuracy": 1.0})) as scorer:
        grid, other = scorer.score(answers, max_tokens=30)
    assert grid.rollouts[0].reward == 1.0
    assert "names none of the options" in other.rollouts[0].score_detail  # "*" sent it to choice


# --- mistakes in the config, found before training


def test_a_task_without_a_reward_is_named_with_the_keys_to_set():
    with Scorer(ScoringConfig()) as scorer:
        with pytest.raises(ScoringError, match=r"puzzles: task 'maze' has no reward.*rewards\.by_task\.maze"):
            scorer.check([("count", "number"), ("maze", "")], "puzzles")
        with pytest.raises(
            ValueError, match=r"puzzles: the reward 'cuont' of task 'maze'.*box, .*choice.*rewards\.path"
        ):
            scorer.check([("maze", "cuont")], "puzzles")
        with pytest.raises(ScoringError, match="problem p7: task 'maze' has no reward"):
            scorer.score([group(["x"], task="maze", reward="")], max_tokens=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combine": {"accuracy": 1.0, "fromat": 0.1}}, "rewards.combine names the unknown reward 'fromat'"),
        ({"combine": {}}, "rewards.combine is empty"),
        ({"by_task": {"maze": "mazes"}}, "rewards.by_task names the unknown reward 'mazes'"),
        ({"params": {"lenght": {}}}, "rewards.params names the unknown reward 'lenght'"),
        ({"params": {"overlong": {"bufer": 3}}}, "unexpected keyword argument 'bufer'"),
        ({"path": "my_reward.py"}, "must look like 'my_reward.py:function_name'"),
        ({"path": "/nowhere/my_reward.py:f"}, "rewards.path names the file /nowhere/my_reward.py"),
        ({"path": f"{__file__}:f", "path_name": "number"}, "'number' is a built-in name"),
    ],
)
def test_mistakes_in_the_config_are_named(settings, message):
    with pytest.raises(ScoringError, match=message.replace(".", r"\.")):
        Scorer(ScoringConfig.model_validate(settings))


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"workers": 0}, {"max_failure_share": 1.5}, {"pth": ""}])
def test_values_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        ScoringConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("code", "params", "message"),
    [
        ("def other(x): pass", {}, r"has no function 'fn' \(it has: other\)"),
        ("fn = 3", {}, "has no function 'fn'"),
        ("def fn(): pass", {}, r"fn\(x, \*\*params\) cannot be called.*too many positional"),
        ("def fn(x, y): pass", {}, "missing a required argument: 'y'"),
        ("def fn(x, y): pass", {"z": 1}, "missing a required argument: 'y'|unexpected"),
        ("def fn(x) pass", {}, r"importing .*mine\.py failed: SyntaxError"),
        ("import no_such_module", {}, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(2)", {}, r"importing .* failed: SystemExit: 2 \(mine\.py:1\)"),
        ("import os\nos._exit(5)", {}, "kills the process"),
    ],
)
def test_a_file_that_cannot_be_used_is_found_before_training(tmp_path: Path, code, params, message):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with Scorer(config(path, "fn", params={"custom": params})) as scorer:
        with pytest.raises(ScoringError, match=message) as error:
            scorer.check([("maze", "custom")], "puzzles")
        assert str(path) in str(error.value)


def test_a_file_that_no_key_names_scores_every_task_but_those_of_by_task(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("from rewards import RewardOutput\ndef fn(x): return RewardOutput(0.25)")
    with Scorer(config(path, "fn", by_task={"grid": "word"})) as scorer:
        scorer.check([("count", "number"), ("grid", "number")], "puzzles")
        count = group(["<answer>3</answer>"], task="count", reward="number", answer="3")
        grid = group(["<answer>red</answer>"], task="grid", reward="number", answer="red")
        scored = scorer.score([count, grid], max_tokens=10)
    assert [g.rollouts[0].parts["accuracy"] for g in scored] == [0.25, 1.0]


def test_a_file_works_from_any_directory_and_stays_as_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "here" / "helper_of_mine.py").write_text("VALUE = 5.0")
    path = tmp_path / "here" / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\nfrom rewards import RewardOutput\n"
        "import helper_of_mine\n@dataclass\nclass Note:\n    value: float\n"
        "def fn(x): return RewardOutput(Note(helper_of_mine.VALUE).value)\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    with Scorer(config(Path("mine.py"), "fn", path_name="mine", by_task={"*": "mine"})) as scorer:
        monkeypatch.chdir(tmp_path / "away")
        path.write_text("broken(")
        scorer.check([("maze", "")], "puzzles")
        [scored] = scorer.score([group(["x"], reward="")], max_tokens=30)
        assert os.getcwd() == str(tmp_path / "away")
    assert scored.rollouts[0].reward == 5.0


# --- a broken grader stops the run


def test_too_many_failures_stop_the_run_and_name_the_commonest_reasons():
    def mixed(bad: int, good: int) -> list:
        return [
            group([GOOD.format(3)] * bad, reward="number", answer="three"),
            group([GOOD.format(3)] * good, reward="number", answer="3"),
        ]

    half = FAILURE_MINIMUM // 2
    with Scorer(ScoringConfig()) as scorer:
        scorer.score(mixed(half, half), max_tokens=30)  # a share of exactly 0.5 is allowed
        with pytest.raises(ScoringStopped, match=f"{half + 1} of the latest {FAILURE_MINIMUM + 1}") as stopped:
            scorer.score(mixed(1, 0), max_tokens=30)
        assert f"{half + 1} x the reference answer 'three' is not a number" in str(stopped.value)
        assert "rewards.max_failure_share=0.5" in str(stopped.value)
    with Scorer(ScoringConfig()) as scorer:
        scorer.score(mixed(FAILURE_MINIMUM - 1, 0), max_tokens=30)  # too few to tell
        with pytest.raises(ScoringStopped):
            scorer.score(mixed(1, 0), max_tokens=30)
    with Scorer(ScoringConfig()) as scorer:  # only the latest count
        scorer.score(mixed(0, 10 * FAILURE_WINDOW), max_tokens=30)
        scorer.score(mixed(FAILURE_WINDOW // 2, 0), max_tokens=30)
        with pytest.raises(ScoringStopped, match=f"of the latest {FAILURE_WINDOW} "):
            scorer.score(mixed(1, 0), max_tokens=30)


def test_a_batch_larger_than_the_window_is_judged_as_a_whole():
    """The failures at its front are not pushed out by the rest: they may be those of another rank."""
    bad, good = FAILURE_WINDOW + 144, FAILURE_WINDOW + 44  # 400 of 700
    batch = [
        group([GOOD.format(3)] * bad, reward="number", answer="three"),
        group([GOOD.format(3)] * good, reward="number", answer="3"),
    ]
    with Scorer(ScoringConfig()) as scorer, pytest.raises(ScoringStopped, match=f"{bad} of the latest {bad + good} "):
        scorer.score(batch, max_tokens=30)


def test_a_failure_without_words_is_a_failure(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("from rewards import Unscorable\ndef fn(x): raise Unscorable('')")
    with Scorer(config(path, "fn")) as scorer, pytest.raises(ScoringStopped, match=r"\n  40 x unscorable\n"):
        scorer.score([group(["x"] * 40)], max_tokens=30)


def test_no_built_in_reward_returns_anything_but_finite_floats():
    for name in sorted(REWARDS):
        with Scorer(ScoringConfig(combine={"accuracy": 1.0, name: 1.0}, max_failure_share=1)) as scorer:
            [scored] = scorer.score([group([GOOD.format("A"), ""], reward="choice", answer="A")], max_tokens=30)
        assert all(r.reward is None or math.isfinite(r.reward) for r in scored.rollouts)
