"""`sapo-vl reward test`: every reward passes on its samples, and one that judges wrongly does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fake_judge
import pytest

from rewards import REWARDS
from rewards.judging.canaries import RIGHT
from sapo_vl.commands.cli import main
from sapo_vl.scoring import trial as reward_trial
from sapo_vl.scoring.lines import RewardLinesError
from sapo_vl.scoring.trial import SAMPLES, Sample, read_samples, try_reward


def test_there_are_samples_of_every_reward() -> None:
    assert SAMPLES.keys() == REWARDS.keys()


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"judge"}))
def test_every_reward_passes(name: str) -> None:
    table, fine = try_reward(name)
    assert fine, table


@pytest.mark.parametrize("score", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_reward_that_gives_everything_the_same_score_does_not_pass(
    name: str, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same(_: str, lines: Sequence[str], *__: Any) -> list[dict[str, Any]]:
        return [{"score": score, "status": "scored", "reason": ""} for _ in lines]

    monkeypatch.setattr(reward_trial, "score_lines", same)
    table, fine = try_reward(name)
    assert not fine
    best = 0.0 if name in ("language", "overlong", "repetition") else 1.0
    assert ("gold" in marked(table)) == (score != best), table


def marked(table: str) -> list[str]:
    return [line.split("  ")[0] for line in table.splitlines() if line.endswith("<- wrong")]


def careful(asked: fake_judge.Asked) -> fake_judge.Reply:
    """Correct is what is correct for this question."""
    right = {(canary.question, canary.answer) for canary in RIGHT}
    return fake_judge.verdict((asked.texts["question"], asked.texts["answer"]) in right)


@pytest.mark.parametrize(
    ("behave", "wrong"),
    [
        (careful, []),
        (lambda _: fake_judge.verdict(True), ["another's gold", "wrong"]),
        (lambda _: fake_judge.verdict(False), ["gold"]),
        (lambda _: fake_judge.Reply("down", status=500), ["gold"]),
    ],
)
def test_a_judge(behave: Callable[[fake_judge.Asked], fake_judge.Reply], wrong: list[str], tmp_path: Path) -> None:
    with fake_judge.fake_judge() as judge:
        judge.behave = behave
        table, fine = try_reward("judge", fake_judge.params(judge.url, tmp_path / "cache", retries=0))
    assert (fine, marked(table)) == (not wrong, wrong), table


def test_golds_that_a_reward_cannot_read_are_no_pass_and_the_reason_is_shown() -> None:
    table, fine = try_reward("number", samples=[Sample(answer="42"), Sample(answer="many")])
    assert not fine
    assert "1 scored, 1 unscorable   <- wrong" in table
    assert "'many'" in table


def test_golds_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golds = tmp_path / "golds.jsonl"
    golds.write_text('{"answer": 7}\n\n{"answer": "5 cm", "meta": {"unit": "cm"}, "response": "\\\\boxed{5 m}"}\n')
    assert read_samples(golds.read_text().splitlines()) == [
        Sample(answer="7"),
        Sample(answer="5 cm", meta={"unit": "cm"}, right="\\boxed{5 m}"),
    ]
    assert main(["reward", "test", "number", str(golds)]) == 1  # metres
    assert marked(capsys.readouterr().out) == ["gold"]
    golds.write_text(golds.read_text().replace("5 m}", "5}"))
    assert main(["reward", "test", "number", str(golds)]) == 0
    # With a tolerance of 3 the 7 is right where 5 is.
    golds.write_text(golds.read_text().replace('{"unit": "cm"}', '{"unit": "cm", "tolerance": 3}'))
    assert main(["reward", "test", "number", str(golds)]) == 1
    assert marked(capsys.readouterr().out) == ["another's gold"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line"),
        ("{", "line 1 is no JSON"),
        ("[]", "line 1 must be an object"),
        ('\n{"meta": {}}', "line 2 must be an object with an"),
        ('{"answer": "1", "meta": 5}', '"meta" must be an object'),
        ('{"answer": "1", "response": 5}', '"response" and "question" texts'),
    ],
)
def test_broken_lines_of_golds_are_refused(text: str, message: str) -> None:
    with pytest.raises(RewardLinesError, match=message):
        read_samples(text.split("\n"))


def test_a_file_of_ones_own_needs_golds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rewards import RewardOutput\n"
        "from rewards.answers.extract import last_answer\n"
        "def same(x, case=True):\n"
        "    given, gold = last_answer(x.text), x.answer\n"
        "    return RewardOutput(float(given == gold if case else (given or '').lower() == gold.lower()))\n"
    )
    assert main(["reward", "test", f"{file}:same"]) == 2
    assert "has no samples; give a file" in capsys.readouterr().err
    golds = tmp_path / "golds.jsonl"
    lines = [{"answer": "Red", "response": "<answer>red</answer>"}, {"answer": "blue"}]
    golds.write_text("\n".join(map(json.dumps, lines)))
    assert main(["reward", "test", f"{file}:same", str(golds)]) == 1
    assert main(["reward", "test", f"{file}:same", str(golds), "case=false"]) == 0


def test_params_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "test", "repetition"]) == 0
    assert main(["reward", "test", "repetition", "n=20"]) == 1  # the sample repeats three words five times
    assert main(["reward", "test", "number", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["reward", "test", "judge", "url=http://127.0.0.1:1/v1"]) == 2
    assert "missing a required argument: 'model'" in capsys.readouterr().err
