"""Seconds per rollout batch of `sapo-vl train` against TRL's GRPOTrainer, both with the SAPO loss, pair by pair.

Both train the same model on the same rows with a reward that leaves no group without a signal, two updates a rollout
batch, one thread, fp32. Each is a process of its own that does a step at a word, in turn. End-to-end seconds of a step
are from that word to the next: prompts, images, sampling, rewards, both updates, metrics.

Before anything is timed both make the same two updates from the same weights: TRL is given the responses of our first
step. Prompt ids, rewards, losses and gradient norms of both must agree to TOLERANCE, and then, with responses of their
own, both must train on as many tokens, but for chance, with as many updates and live groups.

`bash bench/setup_trl.sh` makes the environment of the other side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from stepwise import Side
from vs_trl_cases import CASES, MINI, Case, build_model, problems, write_data, write_model
from vs_trl_hooks import BETAS, CLIP, EPS, LR, overrides
from vs_trl_reward import share_of

from sapo_vl.config import load_config, save_config
from sapo_vl.types import Problem

BENCH = Path(__file__).resolve().parent
TOLERANCE = 1e-3  # relative, of losses and gradient norms: fp32 sums of thousands of terms in another order
TOKENS_APART = 0.15  # share by which the mean tokens of a step may differ: each side samples its own


def peer_arguments(case: Case, banned: Sequence[int], out: Path) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig: what our side has, and TRL's own defaults elsewhere."""
    chosen: dict[str, Any] = {
        "output_dir": str(out),
        "loss_type": "sapo",
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "beta": 0.0,
        "scale_rewards": "none",
        "num_generations": case.group,
        "max_completion_length": case.tokens,
        "temperature": 1.0,
        # Two updates a rollout batch, each of one micro-batch: what is fastest for it at these sizes.
        "per_device_train_batch_size": case.prompts * case.group // 2,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "num_iterations": 1,
        "learning_rate": LR,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPS,
        "max_grad_norm": CLIP,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_steps": 100_000,
        "shuffle_dataset": False,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "generation_kwargs": {"suppress_tokens": list(banned)},
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }
    return chosen | ({"router_aux_loss_coef": 0.0} if case.kind == "moe" else {})


def write_rows(case: Case, first: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The rows of the case as TRL reads them, those of our first step in front, update by update."""
    rows = {p.id: p for p in problems(case, 8 * case.prompts)}
    order = [group["id"] for update in first for group in update["groups"]]
    order += [name for name in rows if name not in set(order)]
    save_rows([rows[name] for name in order], out)


def save_rows(order: Sequence[Problem], out: Path, rows: Sequence[int] = ()) -> None:
    """Problems of one turn, its pictures before its text, as TRL reads them; `rows`: a number of each, for its reward.

    Either all of them have pictures or none has.
    """
    features: dict[str, Any] = {"prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}]}
    if order[0].images:
        features["images"] = datasets.List(datasets.Image())
    if rows:
        features["row"] = datasets.Value("int64")

    def row(i: int, problem: Problem) -> dict[str, Any]:
        (turn,) = problem.messages
        prompt = [{"role": turn["role"], "content": turn["content"][-1]["text"]}]
        found = {"prompt": prompt, "images": list(problem.images)} | ({"row": rows[i]} if rows else {})
        return {name: found[name] for name in features}

    datasets.disable_progress_bars()
    made = [row(i, problem) for i, problem in enumerate(order)]
    datasets.Dataset.from_list(made, features=datasets.Features(features)).save_to_disk(out)


def same_updates(ours: Sequence[Mapping[str, Any]], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Whether both made the same updates of the same prompts and responses; relative differences.

    A loss is a mean of terms that nearly cancel: its difference is relative to the size of a term, 2.
    """
    groups = [group for update in ours for group in update["groups"]]
    rewards = [
        (reward, share_of(ids)) for g in groups for ids, reward in zip(g["responses"], g["rewards"], strict=True)
    ]
    found: dict[str, Any] = {
        "same_prompts": theirs["same_prompts"],
        "same_rewards": all(abs(a - b) < 1e-6 for a, b in rewards),
        "loss": max(abs(a["loss"] - b["loss"]) / 2 for a, b in zip(ours, theirs["done"], strict=True)),
        "grad_norm": max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(ours, theirs["done"], strict=True)),
    }
    alike = found["loss"] < TOLERANCE and found["grad_norm"] < TOLERANCE
    return found | {"ok": bool(alike and found["same_prompts"] and found["same_rewards"])}


def same_work(case: Case, ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether both trained on as many tokens, with as many updates and live groups, in the timed steps."""
    a, b = (statistics.mean(step["tokens"] for step in side) for side in (ours, theirs))
    whole = all(step["updates"] == 2 and step["live"] == case.prompts for step in [*ours, *theirs])
    return {"tokens": [a, b], "whole": whole, "ok": bool(whole and abs(a / b - 1) < TOKENS_APART)}


def summary(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the timed steps of a side."""
    names = sorted({name for step in steps for name in step["phases"]})
    middle = statistics.median
    return {
        "seconds": middle(s["seconds"] for s in steps),
        "cpu": middle(s["cpu"] for s in steps),
        "phases": {name: middle(s["phases"].get(name, 0.0) for s in steps) for name in names},
        "peak_mb": max(s["peak_mb"] for s in steps),
        "children_mb": max(s["children_mb"] for s in steps),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as long the other side takes, pair by pair."""
    pairs = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {"median": statistics.median(pairs), "min": pairs[0], "max": pairs[-1]}


def prepare_ours(case: Case, folder: Path) -> list[int]:
    """Writes model, data and config of our side; returns the ids that are never sampled."""
    write_model(case, folder / "model")
    write_data(case, folder / "data")
    save_config(load_config(None, overrides(case, folder / "model", folder / "data")), folder / "ours.yaml")
    config = json.loads((folder / "model" / "config.json").read_text())
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return sorted({config[name] for name in names})


def ours_command(folder: Path) -> list[str | Path]:
    script, first = BENCH / "vs_trl_ours.py", folder / "first.json"
    return [sys.executable, script, "--config", folder / "ours.yaml", "--out", folder / "run", "--first", first]


def environment(threads: int) -> dict[str, str]:
    """Of both sides' processes."""
    return dict(os.environ) | {
        "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(BENCH.parent),
    }  # fmt: skip


def first_updates(case: Case, folder: Path, trl_python: Path, threads: int) -> tuple[Side, Side, dict[str, Any]]:
    """Starts both sides and has both make the same first two updates; what they were, under "ours" and "trl".

    Raises RuntimeError if a side dies.
    """
    banned = prepare_ours(case, folder)
    around = environment(threads)
    ours = Side("our side", ours_command(folder), around, folder / "ours.log")
    try:
        ours.step()
        first = json.loads((folder / "first.json").read_text())
        write_rows(case, first, folder / "rows")
        paths = {"model": str(folder / "model"), "rows": str(folder / "rows"), "first": str(folder / "first.json")}
        config = peer_arguments(case, banned, folder / "trl")
        spec = paths | {"threads": threads, "config": config}
        (folder / "trl.json").write_text(json.dumps(spec))
        command = [trl_python, BENCH / "vs_trl_peer.py", folder / "trl.json"]
        theirs = Side("TRL's side", command, around, folder / "trl.log")
    except BaseException:
        ours.close()
        raise
    try:
        return ours, theirs, {"ours": first, "trl": theirs.step()}
    except BaseException:
        ours.close()
        theirs.close()
        raise


def compare(case: Case, folder: Path, trl_python: Path, pairs: int, threads: int) -> dict[str, Any]:
    """Runs a case. Raises RuntimeError if a side dies."""
    ours, theirs, first = first_updates(case, folder, trl_python, threads)
    try:
        ours.step()
        theirs.step()  # the first step of either's own
        taken: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for number in range(pairs):
            turn = [(ours, taken[0]), (theirs, taken[1])]
            for side, steps in turn if number % 2 == 0 else reversed(turn):
                steps.append(side.step())
    finally:
        ours.close()
        theirs.close()
    by = {kind: ratios(*([s[kind] for s in side] for side in taken)) for kind in ("seconds", "cpu")}
    return {
        "case": case.name,
        "parameters": sum(p.numel() for p in build_model(case)[0].parameters()),
        "pairs": pairs,
        "ratio": by["seconds"],
        "ratio_cpu": by["cpu"],
        "reach": case.reach,
        "ours": summary(taken[0]),
        "trl": summary(taken[1]),
        "same_updates": same_updates(first["ours"], first["trl"]),
        "same_work": same_work(case, *taken),
    }


def record(case: Case, trl_python: Path, out: Path) -> None:
    """Writes the first updates of both sides to a file, for a test that has no TRL."""
    with tempfile.TemporaryDirectory(prefix="vs_trl_") as folder:
        ours, theirs, first = first_updates(case, Path(folder), trl_python, threads=1)
        ours.close()
        theirs.close()
    out.write_text(json.dumps(first) + "\n")


def told(found: Mapping[str, Any]) -> str:
    """A row of the table."""
    ours, trl, ratio, cpu = found["ours"], found["trl"], found["ratio"], found["ratio_cpu"]

    def parts(side: Mapping[str, Any]) -> str:
        return " ".join(f"{side['phases'].get(name, 0.0):.2f}" for name in ("rollout", "train"))

    checks = found["same_updates"], found["same_work"]
    verdict = "same" if all(c["ok"] for c in checks) else f"NOT THE SAME: {checks}"
    return (
        f"{found['case']:9} {found['parameters'] / 1e6:5.1f}M  {trl['seconds']:6.2f} ({parts(trl)})  "
        f"{ours['seconds']:6.2f} ({parts(ours)})  {ratio['median']:5.2f}x [{ratio['min']:.2f}, {ratio['max']:.2f}]  "
        f"{cpu['median']:5.2f}x  {trl['peak_mb']:6.0f} {ours['peak_mb']:6.0f}  {verdict}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="default: all")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl-env", type=Path, default=BENCH.parent / ".venv-trl", help="made by bench/setup_trl.sh")
    parser.add_argument("--out", type=Path, help="a file that gets a line of JSON a case")
    parser.add_argument("--record", type=Path, help="a folder: write the first updates of the tests' cases instead")
    args = parser.parse_args()
    trl_python = args.trl_env / "bin" / "python"
    if not trl_python.exists():
        parser.error(f"{args.trl_env} is no environment with TRL; make it with: bash bench/setup_trl.sh")
    if args.record:
        for case in MINI.values():
            record(case, trl_python.absolute(), args.record / f"trl_{case.name}.json")
        return 0
    print(f"seconds per rollout batch (of sampling, of 2 updates), medians of {args.pairs} alternating pairs; peak MB")
    print(
        "case        size    TRL                    sapo_vl                ratio [min, max]      by CPU     TRL   ours"
    )
    ok = True
    for name in args.cases or CASES:
        with tempfile.TemporaryDirectory(prefix="vs_trl_") as folder:
            found = compare(CASES[name], Path(folder), trl_python.absolute(), args.pairs, args.threads)
        print(told(found), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
        ok &= found["same_updates"]["ok"] and found["same_work"]["ok"]
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
