"""Several short training runs on a tiny dense model, and what they left behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers_launch import run_ranks
from helpers_run import SHORT

from data_recipes import RECIPES
from sapo_vl.pipeline import build_tiny_model

# An untrained model earns nothing from the recipe's own rewards, and groups without a difference teach nothing.
REWARD = """
from rewards.base import RewardOutput

def by_tokens(x):
    return RewardOutput(sum(x.token_ids) % 7 / 6)
"""
CLOCK = ("time", "seconds", "tokens_per_s")  # keys that begin so depend on the machine


def prepare(folder: Path, seed: int, reward: str = REWARD) -> dict[str, Any]:
    """Writes data, model and reward; the settings of a run on them."""
    seed %= 10_000
    RECIPES["visual_puzzles"](
        folder / "data", seed=seed, n_cold_start=6, n_train=120, n_test=6, image_size=32, tasks="count,text_compare"
    )
    build_tiny_model("dense", folder / "data", folder / "model", seed)
    (folder / "reward.py").write_text(reward)
    return SHORT | {
        "seed": seed,
        "model.path": str(folder / "model"),
        "data.path": str(folder / "data"),
        "rewards.path": f"{folder / 'reward.py'}:by_tokens",
        "rewards.by_task": '{"*": custom}',
        "optim.lr": 0.003,
        "log.save_rollouts_every": 1,
    }


def run_all(
    folder: Path,
    runs: Mapping[str, Mapping[str, Any]],
    cut: Mapping[str, str],
    ranks: int = 1,
    fails: Mapping[str, str] | None = None,
) -> str:
    """Trains into folder/name for each name, in order; what was printed. `cut`: name -> the run that it resumes;
    `fails`: name -> what the error says that it ends with."""
    jobs = [
        {"out": str(folder / name), "settings": dict(settings), "fails": (fails or {}).get(name, "")}
        | ({"cut_from": str(folder / cut[name])} if name in cut else {})
        for name, settings in runs.items()
    ]
    path = folder / f"runs-{ranks}.json"
    path.write_text(json.dumps(jobs))
    return run_ranks(ranks, "train_worker.py", path, timeout=600)


def steps(out: Path) -> list[dict[str, Any]]:
    """The rows of training steps in metrics.jsonl, without what the clock decides."""
    return [row for row in rows(out) if row["phase"] == "train"]


def rows(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCK)} for line in lines]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}
