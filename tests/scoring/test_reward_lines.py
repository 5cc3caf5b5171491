"""`sapo-vl reward`: lines in, lines out, through the workers of training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from helpers_models import processor

from sapo_vl.commands.cli import main
from sapo_vl.model.tiny import CHAT_TEMPLATE
from sapo_vl.scoring import lines as reward_lines
from sapo_vl.scoring.lines import RewardLinesError, score_lines


def score(name: str, *rows: Any, timeout_s: float = 10.0, **params: Any) -> list[dict[str, Any]]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return list(score_lines(name, lines, params, timeout_s, workers=1))


def row(response: str, answer: str = "", **more: Any) -> dict[str, Any]:
    return {"id": "a", "response": response, "answer": answer} | more


def test_a_line_for_each_line_in_order_with_what_the_contract_names() -> None:
    found = score(
        "number",
        row("<answer>42</answer>", "42", id="first"),
        row("<answer>41</answer>", "42", id="second"),
        row("it is 42", "42", id="third"),
        row("<answer>20%</answer>", "20", id=4, meta={"percent": True}),
        row("<answer>5</answer>", "five", id="bad gold"),
    )
    assert found[0] == {"id": "first", "score": 1.0, "status": "scored", "parts": {}, "reason": ""}
    assert [(r["id"], r["score"], r["status"]) for r in found[1:]] == [
        ("second", 0.0, "scored"),
        ("third", 0.0, "scored"),
        ("4", 1.0, "scored"),
        ("bad gold", None, "unscorable"),
    ]
    assert found[2]["reason"] == "no answer"
    assert "five" in found[4]["reason"]


@pytest.mark.parametrize(
    ("name", "response", "answer", "meta", "expected"),
    [
        ("math", "so \\boxed{\\frac{2}{4}}", "\\frac{1}{2}", {}, 1),
        ("math", "Answer: 3", "3", {}, 1),
        ("choice", "<answer>blue</answer>", "B", {"options": {"A": "red", "B": "blue"}}, 1),
        ("box", "<answer>[100, 100, 500, 500]</answer>", "20 10 100 50", {"coords": "0-1000", "size": [200, 100]}, 1),
        ("box", "<answer>[20, 10, 100, 50]</answer>", "20 10 100 50", {"coords": "pixel", "size": [200, 100]}, 1),
        ("box", "<answer>[20, 10, 100, 50]</answer>", "20 10 100 50", {"coords": "0-1000", "size": [200, 100]}, 0),
        ("number", "<answer>3.14159</answer>", "3.14", {"precision": 2}, 1),
        ("number", "<answer>5 cm</answer>", "5", {"unit": "cm"}, 1),
        ("number", "<answer>5 m</answer>", "5", {"unit": "cm"}, 0),
        ("chart", "<answer>104</answer>", "100", {}, 1),
        ("count", "<answer>three</answer>", "3", {}, 1),
    ],
)
def test_the_options_of_the_contract(
    name: str, response: str, answer: str, meta: dict[str, Any], expected: int
) -> None:
    (result,) = score(name, row(response, answer, meta=meta))
    assert (result["score"], result["status"]) == (expected, "scored")


def test_a_broken_line_is_a_result_and_the_others_are_scored() -> None:
    good = row("<answer>1</answer>", "1")
    found = score("number", "{", good, "", "[1]", '{"response": 5}', row("x", ["1"]), row("x", "1", meta=[1]), good)
    assert [r["status"] for r in found] == ["error", "scored", "error", "error", "error", "error", "scored"]
    assert "line 1 is no JSON" in found[0]["reason"]
    assert "line 4 must be an object" in found[2]["reason"]


def test_a_hard_response_costs_its_own_line_at_most() -> None:
    hang = "<answer>" + "9" * 30 + "!" + "</answer>"
    found = score("math", row(hang, "1"), row("<answer>1</answer>", "1"), timeout_s=5.0)
    assert found[0]["status"] in ("scored", "timeout") and found[0]["score"] in (0.0, None)
    assert found[1]["score"] == 1.0
    assert reward_lines.STATUS["crash"] == "error"


def test_tokens_are_words_unless_given() -> None:
    words, given = score("repetition", row("a b c d " * 8), row("x", token_ids=list(range(32))))
    assert words["score"] < 0
    assert given["score"] == 0
    (short,) = score("overlong", row("x", token_ids=[1] * 90, max_tokens=100), buffer=20)
    assert short["score"] == pytest.approx(-0.5)


def test_unknown_names_and_params_are_refused() -> None:
    with pytest.raises(RewardLinesError, match=r"no reward 'nmber'; there are box, "):
        score("nmber", row("x"))
    with pytest.raises(RewardLinesError, match="total_s"):
        score("code", row("x"), timeout_s=1.0)
    with pytest.raises(RewardLinesError, match="'url'; arguments are key=value words"):
        score("judge", row("x"))


def test_a_reward_in_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rewards import RewardOutput\n"
        "def length(x, most=10):\n"
        "    return RewardOutput(min(len(x.text), most) / most, {'most': most})\n"
        "broken = 5\n"
    )
    assert [r["score"] for r in score(f"{file}:length", row("abcde"), row("x" * 40))] == [0.5, 1.0]
    (short,) = score(f"{file}:length", row("abcde"), most=20)
    assert (short["score"], short["parts"]) == (0.25, {"most": 20.0})
    for spec, params, message in (
        (f"{file}:broken", {}, "has no function 'broken'"),
        (f"{file}:length", {"least": 1}, "cannot be called with params"),
        (f"{tmp_path}/none.py:length", {}, "cannot be read"),
    ):
        with pytest.raises(RewardLinesError, match=message):
            score(spec, row("x"), **params)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps(row("<answer>Ja\u2011a</answer>", "x")) + "\n")
    assert main(["reward", "score", "word", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 0
    assert main(["reward", "score", "word", str(file), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["status"] == "scored"
    assert main(["reward", "score", "word", str(tmp_path / "none")]) == 2
    assert main(["reward", "score", "word"]) == 2


def test_responses_of_a_template_that_opens_the_thinking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a flag, or by the chat template of a folder that has no weights."""
    rows = [
        row("The sides are 3 and 4, so maybe \\boxed{5}. Wait, the angle is", "5", id="cut"),
        row("The sides are 3 and 4.\n</think>\n\n<answer>5</answer>", "5", id="whole"),
        row("<think>hm</think> <answer>5</answer>", "5", id="opened again"),
    ]
    file = tmp_path / "responses.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for name, prompt_end in (("thinking", "<think>\n"), ("plain", "")):
        template = CHAT_TEMPLATE.removesuffix("{% endif %}") + prompt_end + "{% endif %}"
        other = copy.deepcopy(processor())
        other.chat_template = other.tokenizer.chat_template = template
        other.save_pretrained(tmp_path / name)
    for reward, more, scores in [
        ("number", [], [1, 1, 1]),
        ("number", ["--thinking-open"], [0, 1, 1]),
        ("number", ["--model", str(tmp_path / "thinking")], [0, 1, 1]),
        ("number", ["--model", str(tmp_path / "plain")], [1, 1, 1]),
        ("format", [], [0, 0, 1]),
        ("format", ["--thinking-open"], [0, 1, 0]),
    ]:
        assert main(["reward", "score", reward, str(file), *more]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [r["score"] for r in found] == scores, (reward, more)
        assert found[0]["reason"] == ("no answer" if reward == "number" and scores[0] == 0 else "")
    for words, message in [
        (["score", "number", str(file), "--model", str(tmp_path / "none")], "no usable processor"),
        (
            ["score", "number", str(file), "--thinking-open", "--model", str(tmp_path / "plain")],
            "does not open <think>",
        ),
        (["test", "number", "--thinking-open"], "reward score"),
    ]:
        assert main(["reward", *words]) == 2
        assert message in capsys.readouterr().err
