"""Pass rates of a model: what stays, on a tiny model with a reward whose outcome is known from the problem's id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_models import make_model, processor
from recipe_helpers import picture

from sapo_vl.commands.cli import main
from sapo_vl.config import RunConfig
from sapo_vl.data.problem_set import DataError, ProblemSet
from sapo_vl.data.writer import Card, write_splits
from sapo_vl.evaluation.difficulty import DifficultyRule, filtered
from sapo_vl.model.export import save_hf_folder
from sapo_vl.types import Problem

ROOT = Path(__file__).resolve().parents[2]
# With blank images, when the id ends in #blank, p0 is always solved, p1 half, p2 never, and so on.
REWARD = """
from rewards import RewardInput, RewardOutput


def known(x: RewardInput) -> RewardOutput:
    number = int(x.id.removeprefix("p").removesuffix("#blank")) % 3
    score = number / 2
    return RewardOutput(1 - score if x.id.endswith("#blank") else 0.0)
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


def rows(folder: Path, split: str = "train") -> list[Problem]:
    problem_set = ProblemSet(folder, split)
    return [problem_set.get(i) for i in range(len(problem_set))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    splits = {"train": problems(range(9)), "test": problems(range(9, 11))}
    card = Card(name="Dots", source="here", licence="CC0")
    write_splits(splits, tmp_path / "set", recipe="here", arguments={}, card=card)
    return tmp_path / "set"


def test_a_set_by_its_pass_rates(folder: Path, tmp_path: Path) -> None:
    config = RunConfig()
    rates = [0.0, 0.5, 1.0, None, 0.25, 0.95, 0.0, 0.9, 0.0]
    counts = filtered(config, folder, tmp_path / "hard", DifficultyRule(samples=4), rates)
    assert counts == {"kept": 3, "too easy": 2, "too hard": 3, "not measured": 1}
    kept = rows(tmp_path / "hard")
    assert [(p.id, p.meta["pass_rate"]) for p in kept] == [("p1", 0.5), ("p4", 0.25), ("p7", 0.9)]
    assert len(rows(tmp_path / "hard", "test")) == 2
    manifest = json.loads((tmp_path / "hard/manifest.json").read_text())
    assert manifest["notes"]["train"]["left_out"] == counts and manifest["card"]["licence"] == "CC0"
    assert manifest["arguments"]["samples"] == 4 and manifest["notes"]["before"]["recipe"] == "here"
    with pytest.raises(DataError, match=r"nothing is left of split 'train' .*'too hard': 9"):
        filtered(config, folder, tmp_path / "none", DifficultyRule(), [0.0] * 9)
    assert not (tmp_path / "none").exists()


def test_an_engine_over_more_ranks_than_there_are_is_refused_before_anything_is_made(
    folder: Path, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shipped configs for larger models have it, in one process."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "model")
    engine = ["rollout.engine=vllm", "rollout.vllm.tensor_parallel=2", f"model.path={tmp_path / 'model'}"]
    sizes = ["model.min_pixels=256", "model.max_pixels=4096"]
    capsys.readouterr()  # a bar of transformers'
    assert main(["data", "difficulty", str(folder), "--out", str(tmp_path / "out"), *engine, *sizes]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rollout.vllm.tensor_parallel=2 with 1 ranks" in line and "torchrun --nproc_per_node" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "set"]


@pytest.mark.slow
def test_what_a_tiny_model_solves_without_looking(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "known.py").write_text(REWARD)
    argvs = [
        ["init-tiny", "--kind", "dense", "--data", str(folder), "--out", str(tmp_path / "model")],
        [
            "data", "difficulty", str(folder), "--out", str(tmp_path / "seeing"), "--blank", "--up-to", "0.6",
            "--samples", "2", f"model.path={tmp_path}/model", f"rewards.path={tmp_path}/known.py:known",
            "rollout.max_new_tokens=4", "model.min_pixels=256", "model.max_pixels=4096",
        ],
    ]  # fmt: skip
    # In a process of its own, which joins a world.
    code = f"from sapo_vl.commands.cli import main\nfor argv in {argvs!r}:\n    assert main(argv) == 0, argv"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=500, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # p3 and p6 are always solved blank, p0 too, but it has no picture; p4 and p8 have none either.
    assert [(p.id, p.meta["pass_rate_blank"]) for p in rows(tmp_path / "seeing")] == [
        ("p0", None), ("p1", 0.5), ("p2", 0.0), ("p4", None), ("p5", 0.0), ("p7", 0.5), ("p8", None),
    ]  # fmt: skip
    assert "2 solvable without the image" in done.stdout
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
