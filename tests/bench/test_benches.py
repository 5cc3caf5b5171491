"""The benches beside bench/vs_trl.py in their short form: that they run, and that their checks can fail. No timings.

Libraries print to the same stream when they are first imported: a result is its last line.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


def test_the_floor_of_a_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import floor

    assert floor.main(["mini_dense", "--steps", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["phases"]) == ["sampling", "old log-probs", "updates"]
    assert found["phases"]["updates"]["floor"] == pytest.approx(3 * found["phases"]["sampling"]["floor"])
    assert found["gflops"]["vision"] > 0 and found["apart"] < 1e-5
    monkeypatch.setattr(floor, "TOLERANCE", 0.0)
    monkeypatch.setattr(floor, "measure", lambda *_: found)
    assert floor.main(["mini_dense", "--json"]) == 1


def test_flops_by_hand() -> None:
    """Of the text: twice the weights a token goes through, the head at responses, and exact attention."""
    import floor
    from load import load
    from vs_trl_cases import CASES

    case = dataclasses.replace(CASES["dense64"], prompts=2, group=3, tokens=5)
    it = load(case)
    layer = 192 * 32 * (6 + 2 + 2 + 6) + 3 * 192 * 512
    norms = 2 * 192 + 2 * 32  # counted as weights, though a product of each is one FLOP less
    prompts = [len(p.ids) for p in it.prompts]
    pairs = sum(p * p / 2 + 3 * (5 * p + 5 * 5 / 2) for p in prompts)
    expected = 2 * (4 * (layer + norms) + 192) * (sum(prompts) + 2 * 3 * 5)
    expected += 2 * 192 * len(it.chat.tokenizer) * 2 * 3 * 5 + 4 * 4 * 192 * pairs
    assert floor.pass_flops(it)["text"] == pytest.approx(expected)


def test_the_cost_of_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cost

    assert cost.main(["--short", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    assert {sweep: len(points) for sweep, points in found.items()} == dict.fromkeys(cost.SWEEPS, 2)
    a, b = (p["tokens"] for p in found["group"])
    assert b - a == 2 * 2 * 4  # two more responses of four tokens to each of two prompts
    assert (tmp_path / "cost.png").stat().st_size > 1000
    monkeypatch.setattr(cost, "TOLERANCE", 0.0)
    monkeypatch.setattr(cost, "measure", lambda case, repeats: found["group"][0])
    assert cost.main(["--short"]) == 1


def test_ways_to_log_probs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import logprob

    small = ["--widths", "16", "--vocabulary", "5000", "--tokens", "32", "--memory-tokens", "16000", "--repeats", "1"]
    assert logprob.main([*small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["memory"]["of_logits"] < 0.125  # 320 MB of logits
    assert set(found["seconds"]["16"]) == {"ours", "plain", "chunks of 32", "chunks of 512"}
    exact = logprob.token_logprobs

    def wrong(*args: Any, **settings: Any) -> Any:
        logprobs, entropy = exact(*args, **settings)
        return (logprobs * 1.01 if settings.get("chunk_size") == 32 else logprobs), entropy

    monkeypatch.setattr(logprob, "token_logprobs", wrong)
    assert logprob.main([*small, "--json"]) == 1


def test_growth_is_that_of_the_second_half() -> None:
    import growth

    assert growth.slope([0.0, 50.0, 100.0, 100.5, 101.0, 101.5]) == pytest.approx(0.5)
    assert growth.slope([0.0, 80.0, 100.0, 100.0]) == pytest.approx(0.0)


def test_runs_on_other_ranks_are_compared() -> None:
    import ranks

    steps = [{"loss": 0.1, "grad_norm": 2.0}, {"loss": -0.2, "grad_norm": 3.0}]
    assert ranks.difference(steps, steps) == 0
    assert ranks.difference(steps, [steps[0], {"loss": -0.2, "grad_norm": 3.3}]) == pytest.approx(1 / 11)
    assert ranks.difference(steps, [steps[0] | {"loss": 0.3}, steps[1]]) == pytest.approx(0.1)
