"""A short training run on one rank, through the command line: what it writes to metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers_launch import run_python

from data_recipes import RECIPES
from sapo_vl.pipeline import build_tiny_model

SHORT: dict[str, Any] = {
    "steps": 2,
    "processes": 1,
    "model.min_pixels": 256,
    "rewards.workers": 1,
    "rollout.prompts_per_step": 8,
    "rollout.group_size": 3,
    "rollout.max_new_tokens": 6,
    "eval.before": False,
    "eval.max_per_task": 1,
    "eval.modes": "[greedy]",
    "checkpoint.every": 0,
    "log.trackers": "[]",
}


def short_run(folder: Path, seed: int, settings: Mapping[str, Any], before: str = "") -> list[dict[str, Any]]:
    """The metrics of each step of a tiny model that knows nothing, on counting and on text-only problems.

    It is dense, unless the settings say `model_kind`. `before`: what the program does first.
    """
    seed %= 10_000
    settings = dict(settings)
    kind = settings.pop("model_kind", "dense")
    RECIPES["visual_puzzles"](
        folder / "data", seed=seed, n_cold_start=6, n_train=60, n_test=6, image_size=32, tasks="count,text_compare"
    )
    build_tiny_model(kind, folder / "data", folder / "model", seed)
    paths = {"seed": seed, "model.path": folder / "model", "data.path": folder / "data"}
    pairs = [f"{key}={value}" for key, value in {**SHORT, **paths, **settings}.items()]
    program = (
        ["-c", f"{before}\nimport runpy\nrunpy.run_module('sapo_vl', run_name='__main__')"]
        if before
        else ["-m", "sapo_vl"]
    )
    printed = run_python(*program, "train", "--out", folder / "out", *pairs).stdout
    (folder / "printed").write_text(printed)
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == "train"]
