"""The same learning, whole: `sapo-vl train` and TRL's GRPOTrainer from one cold start of the default job.

Both train the same weights on the same rows in the same order, with the same rewards and optimizer, two updates a
rollout batch of 32 x 8, one thread, float32, each in a process of its own, seed by seed: our side first with an even
seed, TRL's with an odd one. Then `sapo-vl eval` measures both models on all held-out items, greedily and with 16
responses to each.

Our side is the default job on one rank; TRL's has its own defaults where the job says nothing. What is left apart: TRL
divides by the standard deviation of the sample, normalises over the ids that are never sampled too, mixes the responses
of a group over both updates, and makes an update without a signal, too. Each side samples its own responses.

Seconds are of all rollout batches but the first, which has what comes once. A (side, seed) that is in OUT/results.jsonl
is not run again.

`bash bench/setup_trl.sh` makes the environment of the other side.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwise import Side
from vs_trl import BENCH, environment, peer_arguments, save_rows
from vs_trl_cases import Case
from vs_trl_learning_report import MODES, comparison, curve, draw, table

from sapo_vl.config import RunConfig, load_config, save_config
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.losses.sapo import SapoConfig
from sapo_vl.model.chat import Chat
from sapo_vl.model.folder import examine, is_moe
from sapo_vl.model.loading import load_without_weights
from sapo_vl.record.files import write_text

JOB = BENCH.parent / "configs" / "tiny_moe.yaml"
STEPS, SEEDS, WINDOW = 300, 3, 50
SAMPLES = 16  # responses to each held-out item, so that what is left of chance is the training's
# Of both sides: one process, and nothing beside the training.
ALONE = ("processes=1", "zero.stage=0", "rollout.engine=transformers", "log.trackers=[]", "checkpoint.every=0")
# It says nothing of learning: its updates are of 8 responses, parts of groups.
MINI_STEPS = 4
# A model that has learned a little of one task, or no group would have a signal.
MINI = (
    "recipe.args={tasks: count, image_size: 32, n_cold_start: 320, n_train: 64, n_test: 16}",
    "processes=1",
    "cold_start.steps=60",
    "cold_start.target_pass_rate=0",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "model.max_prompt_tokens=64",
)


def train_config(prepared: Path, seed: int, steps: int) -> RunConfig:
    """Our side's training: the job as it was prepared, on one rank, with no evaluation to speak of beside it."""
    asked = [f"seed={seed}", f"steps={steps}", "eval.before=false", "eval.max_per_task=1", "eval.modes=[greedy]"]
    return load_config(prepared, [*ALONE, *asked, "eval.blank_split=", "log.save_rollouts_every=0"])


def learning_arguments(config: RunConfig, moe: bool, banned: Sequence[int], out: Path) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig: those of bench/vs_trl.py, with the settings of the job.

    Raises ValueError for a setting that its side would not follow.
    """
    rollout, optim, loss = config.rollout, config.optim, config.loss.loss_params()
    refused = {
        "loss.name": config.loss.name != "sapo" or loss != SapoConfig(**_temperatures(loss)),
        "loss.reduction": config.loss.reduction != "sequence_mean",
        "loss.kl_coef": config.loss.kl_coef != 0,
        "advantage.baseline": config.advantage.baseline != "mean",
        "advantage.keep_dead_groups": not config.advantage.keep_dead_groups,
        "advantage.scale": config.advantage.scale not in ("std", "none"),
        "optim.name": optim.name != "adamw",
        "optim.schedule": optim.schedule != "constant" or optim.warmup_steps > 0,
        "rollout.top_p or top_k": rollout.top_p < 1 or rollout.top_k > 0,
        "rollout.resample": rollout.resample > 0,
        "model.dtype": config.model.dtype != "float32",
        "model.lora or freeze": config.model.lora is not None or bool(config.model.freeze),
    }
    if names := [name for name, wrong in refused.items() if wrong]:
        raise ValueError(f"TRL's side does not follow these settings of the job: {', '.join(names)}")
    case = Case(
        name="job", kind="moe" if moe else "dense", sides=(1,), tokens=rollout.max_new_tokens, reach=0.0,
        prompts=rollout.prompts_per_step, group=rollout.group_size,
    )  # fmt: skip
    updates = config.batch.mini_batches
    return peer_arguments(case, banned, out) | {
        "sapo_temperature_pos": loss.tau_pos,
        "sapo_temperature_neg": loss.tau_neg,
        "scale_rewards": "group" if config.advantage.scale == "std" else "none",
        "temperature": rollout.temperature,
        "per_device_train_batch_size": case.prompts * case.group // updates,
        "steps_per_generation": updates,
        "learning_rate": optim.lr,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "max_grad_norm": optim.clip,
        "weight_decay": optim.weight_decay,
        "max_steps": config.steps * updates,
        "seed": config.seed,
    }


def _temperatures(loss: Any) -> dict[str, float]:
    return {name: getattr(loss, name) for name in ("tau_pos", "tau_neg") if hasattr(loss, name)}


def drawn_rows(config: RunConfig) -> list[int]:
    """The rows of the training split that our side draws, all batches one after the other."""
    problems = ProblemSet(config.data.path, config.data.train_split)
    sampler = QuotaSampler(problems.tasks, config.data.quotas, config.rollout.prompts_per_step, config.seed)
    return [row for batch in itertools.islice(sampler, config.steps) for row in batch]


def peer_spec(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What vs_trl_learning_peer.py is told; its rows are written to `folder`."""
    rows = drawn_rows(config)
    problems = ProblemSet(config.data.path, config.data.train_split)
    order = [problems.get(row) for row in rows]
    save_rows(order, folder / "rows", rows)
    model = examine(config.model.path)
    chat = Chat.load(load_without_weights(model), config.model)
    return {
        "model": config.model.path,
        "threads": 1,
        "config": learning_arguments(config, is_moe(model.config), chat.banned_ids, folder / "trl"),
        "rows": str(folder / "rows"),
        "data": {"path": config.data.path, "split": config.data.train_split},
        "rewards": config.rewards.model_dump(mode="json"),
        "eos": list(chat.eos_ids),
        "max_new_tokens": config.rollout.max_new_tokens,
        "first": [chat.prompt(p).ids.tolist() for p in order[: config.rollout.prompts_per_step]],
        "save": str(folder / "model"),
    }


def start_side(name: str, config: RunConfig, folder: Path, trl_python: Path | None) -> tuple[Side, Path]:
    """Starts a training in `folder`; returns it and where its model will lie."""
    log = folder / "log"
    around = environment(threads=1) | {"CUDA_VISIBLE_DEVICES": ""}
    if name == "ours":
        save_config(config, folder / "ours.yaml")
        command = [sys.executable, BENCH / "vs_trl_ours.py", "--config", folder / "ours.yaml", "--out", folder / "run"]
        return Side("our side", command, around, log), folder / "run" / "final"
    assert trl_python is not None
    (folder / "trl.json").write_text(json.dumps(peer_spec(config, folder)))
    command = [trl_python, BENCH / "vs_trl_learning_peer.py", folder / "trl.json"]
    return Side("TRL's side", command, around, log), folder / "model"


def learn(name: str, config: RunConfig, folder: Path, trl_python: Path | None) -> tuple[list[dict[str, Any]], Path]:
    """A whole training of one side: what it told of each rollout batch, and the folder of its model.

    Raises RuntimeError if it dies, or if TRL's prompts are not ours.
    """
    side, model = start_side(name, config, folder, trl_python)
    try:
        steps = [side.step() for _ in range(config.steps)]
        side.finish()
    except BaseException:
        side.close()
        raise
    if not steps[0].get("same_prompts", True):
        raise RuntimeError("TRL's prompts of the first rollout batch are not those of our side")
    write_text(folder / "steps.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
    return steps, model


def measured(prepared: Path, model: Path, folder: Path) -> dict[str, Any]:
    """Accuracy {mode: {"mean", "n", "ci95"}} of a model by `sapo-vl eval`: greedy, and of SAMPLES responses an item."""
    data = load_config(prepared).data.path
    further = {
        "greedy": ["eval.modes=[greedy]", "eval.blank_split="],
        "sampled": [f"eval.benchmarks={{visual_puzzles: {{source: '{data}', k: {SAMPLES}}}}}", "eval.blank=false"],
    }
    told = {}
    for mode in MODES:
        out = folder.with_name(f"{folder.name}_{mode}")
        words = ["eval", "--config", str(prepared), "--out", str(out), f"model.path={model}", *ALONE, *further[mode]]
        run_ours(words, out.with_suffix(".log"))
        told[mode] = json.loads((out / "eval.json").read_text())
    found = {"greedy": told["greedy"]["greedy"], "sampled": told["sampled"]["benchmarks"]["visual_puzzles"]["pass@1"]}
    return {mode: {key: found[mode][key] for key in ("mean", "n", "ci95")} for mode in MODES}


def run_ours(words: Sequence[str], log: Path) -> None:
    """A command of `sapo-vl`. Raises RuntimeError with the end of its log if it fails."""
    with log.open("w") as printed:
        command = [sys.executable, "-m", "sapo_vl", *words]
        around = environment(threads=1) | {"CUDA_VISIBLE_DEVICES": ""}
        status = subprocess.run(command, stdout=printed, stderr=printed, env=around, check=False).returncode
    if status:
        raise RuntimeError(f"sapo-vl {words[0]} ended with {status}; its log {log}:\n{log.read_text()[-3000:]}")


def record(name: str, seed: int, steps: Sequence[Mapping[str, Any]], accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """A line of results.jsonl; see vs_trl_learning_report."""
    window = min(WINDOW, max(1, len(steps) // 4))
    return {
        "side": name,
        "seed": seed,
        "steps": len(steps),
        "seconds": sum(step["seconds"] for step in steps[1:]),
        "cpu": sum(step["cpu"] for step in steps[1:]),
        "peak_mb": max(step["peak_mb"] for step in steps),
        "live": sum(step["live"] for step in steps) / len(steps),
        "first_reward": steps[0]["reward"],  # of the same prompts and weights: both sides', but for chance
        "curve": curve([step["reward"] for step in steps], window),
        **accuracy,
    }


def to_do(records: Sequence[Mapping[str, Any]], seeds: int) -> list[tuple[str, int]]:
    """(side, seed) that are not finished, in the order of running: the sides take turns at being first."""
    finished = {(r["side"], r["seed"]) for r in records}
    turns = [(side, s) for s in range(seeds) for side in (("ours", "trl") if s % 2 == 0 else ("trl", "ours"))]
    return [turn for turn in turns if turn not in finished]


def read_results(out: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The finished trainings of a folder. Raises ValueError if it was begun with other settings."""
    path = out / "settings.json"
    if path.exists() and (there := json.loads(path.read_text())) != settings:
        raise ValueError(f"{out} was begun with {there}, not {dict(settings)}; give another --out")
    write_text(path, json.dumps(settings) + "\n")
    results = out / "results.jsonl"
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def run(out: Path, trl_python: Path, steps: int, seeds: int, mini: bool) -> dict[str, Any] | None:
    """Runs what is not finished and returns the comparison."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_results(out, {"steps": steps, "mini": mini, "samples": SAMPLES})
    start = out / "start"
    prepared = start / "prepared.yaml"
    if not prepared.exists():
        asked = [*(MINI if mini else ()), "rollout.engine=transformers"]
        run_ours(["run", "--prepare", "--config", str(JOB), "--out", str(start), *asked], out / "start.log")
    before = out / "start_accuracy.json"
    if not before.exists():
        model = Path(load_config(prepared).model.path)
        write_text(before, json.dumps(measured(prepared, model, out / "start_eval")) + "\n")
    for name, seed in to_do(records, seeds):
        folder = out / f"{name}_{seed}"
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run has left
        folder.mkdir()
        print(f"{name}, seed {seed}: {steps} rollout batches", flush=True)
        taken, model = learn(name, train_config(prepared, seed, steps), folder, trl_python)
        records.append(record(name, seed, taken, measured(prepared, model, folder / "eval")))
        write_text(out / "results.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    draw(records, json.loads(before.read_text()), out)
    found = comparison(records)
    write_text(out / "comparison.json", json.dumps(found) + "\n")
    print(table(records))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-env", type=Path, default=BENCH.parent / ".venv-trl", help="made by bench/setup_trl.sh")
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is finished in it is not run again")
    parser.add_argument("--steps", type=int, help=f"rollout batches, at least 2; default {STEPS}")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--mini", action="store_true", help=f"a tiny job of {MINI_STEPS} batches of 4 x 4: says nothing"
    )
    args = parser.parse_args(arguments)
    trl_python = args.trl_env / "bin" / "python"
    if not trl_python.exists():
        parser.error(f"{args.trl_env} is no environment with TRL; make it with: bash bench/setup_trl.sh")
    steps = args.steps or (MINI_STEPS if args.mini else STEPS)
    if steps < 2 or args.seeds < 1:
        parser.error("--steps must be at least 2 and --seeds at least 1")
    try:
        run(args.out.absolute(), trl_python.absolute(), steps, args.seeds, args.mini)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
