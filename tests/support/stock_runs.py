"""Which runs are made of which folder of stock_models.py, and their settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stock_matrix import PAIRWISE, RELEASED
from stock_models import Folder, build
from stock_odd import ODD
from stock_worker import REWARD

from data_recipes import RECIPES
from sapo_vl.model.convert import convert

# As each must be taken.
FOLDERS: dict[str, Folder] = RELEASED | PAIRWISE | {name: odd.folder for name, odd in ODD.items()}
# vLLM reads experts in the hub's layout only: this one is first rewritten by `sapo-vl convert`, as CONVERTED.
RUNTIME = next(name for name, folder in PAIRWISE.items() if folder.experts == "runtime" and not folder.tied)
CONVERTED = "converted"
FOLDERS[CONVERTED] = replace(FOLDERS[RUNTIME], experts="hub")
# MoE, untied, as released; dense, tied, sharded; MoE that was built, not loaded, before it was saved.
VLLM = ("30B-A3B", "4B", CONVERTED)

SETTINGS: dict[str, Any] = {
    "steps": 2,
    "processes": 1,
    "resume": "no",
    "model.max_prompt_tokens": 512,
    "model.min_pixels": 32 * 32,
    "model.max_pixels": 128 * 128,
    "rewards.workers": 1,
    "rewards.by_task": {"*": REWARD},
    "rewards.combine": {"accuracy": 1.0},
    "rollout.prompts_per_step": 2,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 5,
    "batch.mini_batches": 1,
    "optim.lr": 1e-3,
    "eval.before": False,
    "eval.max_per_task": 1,
    "eval.modes": ["greedy"],
    "eval.blank_split": "",
    "checkpoint.every": 0,
    "log.trackers": [],
    "log.save_rollouts_every": 0,
}


@dataclass(frozen=True)
class Run:
    """Two steps of a folder."""

    folder: str
    kind: str
    stage: int
    dtype: str  # the policy's; the folder's may be another
    freeze: tuple[str, ...] = ()
    lora: dict[str, Any] | None = None
    vllm: bool = False

    @property
    def name(self) -> str:
        return f"{self.folder}-{self.kind}"


LORA = {"rank": 4, "alpha": 12}  # on what it is on by default


# With STOCK_RUNS=all every run of every folder is made, as the table does it; else some of each folder's, in turn.
ALL = os.environ.get("STOCK_RUNS") == "all"


def plan(everything: bool) -> Iterable[Run]:
    """The runs of every folder; the table is in test_stock_folders.py."""
    for i, (name, folder) in enumerate(FOLDERS.items()):
        own = folder.dtype
        zero0 = Run(name, "zero0", 0, "float32", freeze=("vision",))
        zero3 = Run(name, "zero3", 3, own)
        lora0, lora3 = Run(name, "lora0", 0, own, lora=LORA), Run(name, "lora3", 3, "float32", lora=LORA)
        lora = Run(name, "lora", 3 * (i % 2), own, lora=LORA)
        if name == CONVERTED:
            continue
        if name in ODD:
            runs = [Run(name, "odd0", 0, own), Run(name, "odd3", 3, own)]
            yield from runs if everything else runs[i % 2 :: 2]
        elif name in RELEASED:
            yield from [zero0, zero3, lora0, lora3] if everything else [[zero3, lora0], [zero0, lora3]][i % 2]
        else:
            yield from [zero0, zero3, lora] if everything else [[zero0, zero3, lora][i % 3]]
    for name in VLLM:
        yield Run(name, "vllm", 0, "float32", vllm=True)


PLAN: dict[str, Run] = {run.name: run for run in plan(ALL)}


def settings(root: Path, run: Run) -> dict[str, Any]:
    """Of the run's config; models, data and results lie in `root`."""
    out = SETTINGS | {
        "model.path": str(root / "models" / run.folder),
        "data.path": str(root / "data"),
        "model.dtype": run.dtype,
        "model.freeze": list(run.freeze),
        "zero.stage": run.stage,
    }
    if run.lora is not None:
        out["model.lora"] = run.lora
    if run.vllm:
        out |= {"rollout.engine": "vllm", "rollout.vllm.max_num_seqs": 16, "rollout.parity.every": 1}
    return out


def write_plan(root: Path) -> Path:
    """Of all runs, for stock_worker.py."""
    runs = PLAN.values()
    entries = [{"name": r.name, "out": str(root / "out" / r.name), "settings": settings(root, r)} for r in runs]
    path = root / "plan.json"
    path.write_text(json.dumps(entries))
    return path


def build_folders(root: Path) -> None:
    """With fixed seeds: in a fresh one a router may come close to a tie, and two right ways to different experts."""
    for seed, (name, folder) in enumerate(FOLDERS.items()):
        out = root / "models" / name
        if name in ODD:
            ODD[name].build(out, seed)
        elif name == CONVERTED:
            convert(root / "models" / RUNTIME, out)
        else:
            build(folder, out, seed)


def write_data(out: Path) -> None:
    """Problems with a picture of 64 x 64, and without one."""
    RECIPES["visual_puzzles"](
        out, seed=0, n_cold_start=4, n_train=8, n_test=4, image_size=64, tasks="count,text_compare"
    )
