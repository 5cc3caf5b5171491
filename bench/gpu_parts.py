"""The parts of the first hour on a GPU. Each takes a device and a folder for what it writes, and returns plain values;
"said" is its line of the report. With device "cpu" all sizes are tiny: that tries the script, and measures nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_layer
import memory
import torch
import transformers.models.qwen3_vl.modeling_qwen3_vl
import transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe  # noqa: F401

from sapo_vl.config import load_config
from sapo_vl.doctor import CHECKS, Outcome, examine
from sapo_vl.model.logprob import CHUNK, chunk_tokens
from sapo_vl.pipeline import prepare
from sapo_vl.record.run_log import read_metrics
from sapo_vl.session import versions as installed
from sapo_vl.stages import run_stage

ROOT = Path(__file__).resolve().parent.parent
Part = Callable[[str, Path], dict[str, Any]]
# Of the doctor: those that say something of the device. On a CPU two, so that the script is tried.
TRIED = ("versions", "positions")
HEAD_TOKENS, HEAD_WIDTH, HEAD_WORDS = 32768, 2048, 151936
# The widths of a 4B model, six layers of it: 0.9 billion parameters.
MEMORY_SIZES = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 6, "num_attention_heads": 64}
MEMORY_SIZES |= {"num_key_value_heads": 16, "vocab_size": 151936}


def versions(device: str, out: Path) -> dict[str, Any]:
    """What is here; vLLM may be absent."""
    found: dict[str, Any] = installed() | {"cuda": torch.version.cuda, "machine": platform.machine()}
    found["vllm"] = "present" if importlib.util.find_spec("vllm") else "absent"
    found["compiler"] = shutil.which("nvcc") or "no nvcc"
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": about.name, "gpu_bytes": about.total_memory, "gpus": torch.cuda.device_count()}
        found |= {"capability": f"{about.major}.{about.minor}", "processors": about.multi_processor_count}
    named = {k: found[k] for k in ("gpu", "torch", "transformers", "deepspeed", "vllm") if k in found}
    return found | {"said": ", ".join(f"{k} {v}" for k, v in named.items())}


def doctor(device: str, out: Path) -> dict[str, Any]:
    """`sapo-vl doctor` on this device. Its findings are values; one that fails does not fail the part."""
    findings = examine(TRIED if device == "cpu" else tuple(CHECKS))
    failed = [f.name for f in findings if f.outcome is Outcome.FAIL]
    said = f"{len(findings)} checks, failed: {', '.join(failed) or 'none'}"
    return {"findings": [dataclasses.asdict(f) for f in findings], "failed": failed, "said": said}


def layer_4b(device: str, out: Path) -> dict[str, Any]:
    return gpu_layer.compare("qwen3_vl_4b", device)


def layer_30b(device: str, out: Path) -> dict[str, Any]:
    return gpu_layer.compare("qwen3_vl_30b_a3b", device)


def head(device: str, out: Path) -> dict[str, Any]:
    """The log-prob head, forward and backward, against its roofline and the plan's bytes, for several lengths of the
    chunk: the weight and its gradient in float32 are gone through once a chunk, which larger ones may be faster for."""
    small = device == "cpu"
    tokens, width, words = (256, 64, 20000) if small else (HEAD_TOKENS, HEAD_WIDTH, HEAD_WORDS)
    ours = chunk_tokens(width, half=not small)
    found = {n: gpu_layer.head(device, tokens, width, words, n) for n in sorted({CHUNK, ours, 4 * ours})}
    others = ", ".join(f"{each['seconds'] * 1e3:.0f} ms in chunks of {n}" for n, each in found.items() if n != ours)
    return found[ours] | {
        "chunks": {str(n): each for n, each in found.items()},
        "said": f"{found[ours]['said']}; {others}",
    }


def peak_memory(device: str, out: Path) -> dict[str, Any]:
    """Peaks of real updates against the plan, in bfloat16 under ZeRO 1, recomputed, as the shipped configs are."""
    trial = memory.TRIALS[0]
    if device == "cuda":
        trial = dataclasses.replace(
            trial,
            name="dense bf16 zero 1, recomputed, 0.9B",
            sizes=MEMORY_SIZES,
            settings=("zero.stage=1", "model.dtype=bfloat16", "model.gradient_checkpointing=true"),
            prompt=800, responses=16, response=512,
        )  # fmt: skip
    else:
        trial = dataclasses.replace(trial, sizes=trial.sizes | {"num_hidden_layers": 2}, response=16)
    found = memory.measure(trial)
    ratios = {name: found[name]["ratio"] for name in ("held", "forward", "update")}
    return found | {"said": "measured / planned: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())}


def run(device: str, out: Path) -> dict[str, Any]:
    """A tiny run from data to final model, all in this process."""
    folder = out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    pairs = ["cold_start=null", "processes=1", "log.trackers=[]", "eval.before=false", "eval.max_per_task=4"]
    pairs += ["rewards.workers=1", "checkpoint.every=0", "eval.modes=[greedy]", "eval.blank_split=", "eval.blank=false"]
    if device == "cpu":
        pairs += ["steps=1", "rollout.prompts_per_step=4", "rollout.group_size=2", "batch.mini_batches=1"]
        pairs += ["recipe.args={tasks: count, n_cold_start: 8, n_train: 16, n_test: 8, image_size: 32}"]
    else:
        pairs += ["steps=5", "recipe.args={n_cold_start: 100, n_train: 2000, n_test: 60}"]
    prepared = prepare(load_config(ROOT / "configs/tiny_moe.yaml", pairs), folder)
    os.environ.pop("RANK", None)
    run_stage("train", load_config(prepared), folder)
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["phase"] == "train"]
    wrote = (folder / "final" / "config.json").exists()
    if not wrote:
        raise RuntimeError(f"{folder}/final was not written")
    return {"metrics": lines, "said": f"{len(lines)} lines of metrics, final/ written and read back"}


PARTS: dict[str, Part] = {
    "versions": versions,
    "doctor": doctor,
    "layer_4b": layer_4b,
    "layer_30b": layer_30b,
    "head": head,
    "memory": peak_memory,
    "run": run,
}
