"""What short training runs on a tiny model start from, several of them at once, and what they left behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from helpers_launch import run_ranks
from helpers_run import SHORT

from data_recipes import RECIPES
from sapo_vl.config import load_config, save_config
from sapo_vl.pipeline import build_tiny_model

# An untrained model earns nothing from the recipe's own rewards, and groups without a difference teach nothing.
REWARD = """
from rewards.base import RewardOutput

def by_tokens(x):
    return RewardOutput(sum(x.token_ids) % 7 / 6)
"""
CLOCK = ("time", "seconds", "tokens_per_s")  # keys that begin so depend on the machine


def write_inputs(
    folder: Path, seed: int, kind: Literal["dense", "moe"] = "dense", reward: str = REWARD, **recipe: Any
) -> dict[str, Any]:
    """Writes data, model and reward; the settings that name them. The reward, a file of the user's, is scored in a
    worker process."""
    seed %= 10_000
    sizes = {"n_cold_start": 6, "n_train": 60, "n_test": 6, "image_size": 32}
    RECIPES["visual_puzzles"](folder / "data", seed=seed, **(sizes | recipe))
    build_tiny_model(kind, folder / "data", folder / "model", seed)
    (folder / "reward.py").write_text(reward)
    return {
        "seed": seed,
        "model.path": str(folder / "model"),
        "model.min_pixels": 256,
        "data.path": str(folder / "data"),
        "rewards.path": f"{folder / 'reward.py'}:by_tokens",
        "rewards.by_task": '{"*": custom}',
        "rewards.workers": 1,
    }


def write_config(settings: Mapping[str, Any], path: Path) -> None:
    save_config(load_config(None, [f"{k}={v}" for k, v in settings.items()]), path)


def prepare(folder: Path, seed: int, reward: str = REWARD) -> dict[str, Any]:
    """Writes data, model and reward; the settings of a run on them."""
    inputs = write_inputs(folder, seed, reward=reward, n_train=120, tasks="count,text_compare")
    return SHORT | inputs | {"optim.lr": 0.003, "log.save_rollouts_every": 1}


def run_all(
    folder: Path,
    runs: Mapping[str, Mapping[str, Any]],
    cut: Mapping[str, str],
    ranks: int = 1,
    fails: Mapping[str, str] | None = None,
    told: Mapping[str, tuple[str, int]] | None = None,
) -> str:
    """Trains into folder/name for each name, in order; what was printed. `cut`: name -> the run that it resumes;
    `fails`: name -> what the error says that it ends with; `told`: name -> which question to StopRequest is
    the first to be answered with a signal, by its number among its kind; it stops, and is started again."""
    jobs = [
        {"out": str(folder / name), "settings": dict(settings), "fails": (fails or {}).get(name, "")}
        | {"told": (told or {}).get(name)}
        | ({"cut_from": str(folder / cut[name])} if name in cut else {})
        for name, settings in runs.items()
    ]
    path = folder / f"runs-{ranks}.json"
    path.write_text(json.dumps(jobs))
    return run_ranks(ranks, "train_worker.py", path, timeout=600)


def steps(out: Path) -> list[dict[str, Any]]:
    """The rows of training steps in metrics.jsonl, without what the clock decides."""
    return rows(out, "train")


def rows(out: Path, phase: str = "") -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl, of one phase or all, without what the clock decides. None before it is there."""
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    found = [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCK)} for line in lines]
    return [row for row in found if phase in ("", row["phase"])]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}
