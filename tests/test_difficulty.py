"""Pass rates of a model: what stays, on a tiny model with a reward whose outcome is known from the problem's id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_helpers import picture

from sapo_vl.cli import main
from sapo_vl.data import ProblemSet
from sapo_vl.dataset_writer import Card, write_splits
from sapo_vl.difficulty import DifficultyRule
from sapo_vl.types import Problem

ROOT = Path(__file__).resolve().parent.parent
# p0 never, p1 half, p2 always; with blank images (the id ends in #blank) the other way round.
REWARD = """
from rewards import RewardInput, RewardOutput


def known(x: RewardInput) -> RewardOutput:
    number = int(x.id.removeprefix("p").removesuffix("#blank")) % 3
    score = number / 2
    return RewardOutput(1 - score if x.id.endswith("#blank") else score)
"""


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(None, "not measured"), (0.0, "too hard"), (0.01, ""), (0.9, ""), (0.91, "too easy"), (1.0, "too easy")],
)
def test_verdicts(rate: float | None, verdict: str) -> None:
    assert DifficultyRule().verdict(rate, has_images=True) == verdict


def test_verdicts_with_blank_images() -> None:
    rule = DifficultyRule(blank=True, up_to=0.5)
    assert [rule.verdict(rate, True) for rate in (0.0, 0.5, 0.6, None)] == [
        "", "", "solvable without the image", "not measured",
    ]  # fmt: skip
    assert rule.verdict(None, has_images=False) == ""


def problems(names: range) -> list[Problem]:
    """Every fourth has no picture."""
    found = []
    for i in names:
        parts: list[dict[str, str]] = [{"type": "text", "text": f"how many dots {i}"}]
        images = (picture(i, (64, 64)),) if i % 4 else ()
        content = [{"type": "image"}, *parts] if images else parts
        found.append(
            Problem(id=f"p{i}", task="t", messages=({"role": "user", "content": content},), images=images, answer="1")
        )
    return found


def difficulty(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sapo_vl", "data", "difficulty", *words],
        capture_output=True, text=True, timeout=500, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_pass_rates_of_a_tiny_model(tmp_path: Path) -> None:
    write_splits(
        {"train": problems(range(9)), "test": problems(range(9, 11))}, tmp_path / "set",
        recipe="here", arguments={}, card=Card(name="Dots", source="here", licence="CC0"),
    )  # fmt: skip
    (tmp_path / "known.py").write_text(REWARD)
    assert (
        main(["init-tiny", "--kind", "dense", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "model")]) == 0
    )
    words = [
        str(tmp_path / "set"), f"model.path={tmp_path}/model", f"rewards.path={tmp_path}/known.py:known",
        "rollout.max_new_tokens=4", "model.min_pixels=256", "model.max_pixels=4096", "--samples", "2",
    ]  # fmt: skip
    printed = difficulty(*words, "--out", str(tmp_path / "hard"))
    rows = ProblemSet(tmp_path / "hard", "train")
    kept = [rows.get(i) for i in range(len(rows))]
    assert [(p.id, p.meta["pass_rate"]) for p in kept] == [("p1", 0.5), ("p4", 0.5), ("p7", 0.5)]
    assert len(ProblemSet(tmp_path / "hard", "test")) == 2
    manifest = json.loads((tmp_path / "hard/manifest.json").read_text())
    assert manifest["notes"]["train"]["left_out"] == {"kept": 3, "too easy": 3, "too hard": 3}
    assert manifest["card"]["licence"] == "CC0" and manifest["arguments"]["samples"] == 2
    assert "3 too hard" in printed

    difficulty(*words, "--out", str(tmp_path / "seeing"), "--blank", "--up-to", "0.6")
    rows = ProblemSet(tmp_path / "seeing", "train")
    kept = [rows.get(i) for i in range(len(rows))]
    # p3 and p6 are always solved blank, p0 too, but it has no picture; p4 and p8 have none either.
    assert [(p.id, p.meta["pass_rate_blank"]) for p in kept] == [
        ("p0", None), ("p1", 0.5), ("p2", 0.0), ("p4", None), ("p5", 0.0), ("p7", 0.5), ("p8", None),
    ]  # fmt: skip
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
