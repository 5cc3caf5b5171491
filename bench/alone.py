"""Bytes a parameter that `sapo-vl eval` holds beside the engine that samples, against those that a trainer takes before
its first step: one rank, a dense model of 34 million parameters, each way in a fork of its own.

With vLLM the engine is left out: what is counted lies beside it. With "transformers" the weights are the engine.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from memory import DENSE, settle

from sapo_vl.distributed import World, init_world
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import examine
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.tiny import build_tiny, tiny_processor, train_tokenizer
from sapo_vl.rollout import RolloutConfig
from sapo_vl.rollout.vllm import engine as vllm_engine
from sapo_vl.session import open_sampling, open_session


def build(out: Path) -> None:
    tokenizer = train_tokenizer(["how many red ?"] * 50 + ["user\n", "assistant\n"], vocab_size=300)
    save_hf_folder(build_tiny("dense", tokenizer, 0, DENSE), tiny_processor(tokenizer), out)


def trainer(config: ModelConfig, zero: ZeroConfig, world: World) -> Any:
    """As evaluations were opened before."""
    return open_session(config, OptimConfig(), zero, RolloutConfig(), world, total_updates=1, seed=0)


def alone(config: ModelConfig, zero: ZeroConfig, world: World, engine: str) -> Any:
    rollout = RolloutConfig(engine=engine)  # type: ignore[arg-type]
    return open_sampling(config, zero, rollout, world, seed=0, gpu_share=0.9)


def without_an_engine() -> None:
    """vLLM itself is not opened."""
    sizes = SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 4096)))
    contract: Any = SimpleNamespace(open_engine=lambda *_, **__: sizes)
    vllm_engine.load_contract = lambda: contract


def measure(ways: Callable[..., Any], model: Path, small: Path, zero: ZeroConfig) -> float:
    """Bytes a parameter, by the growth of the resident size over that with a tiny model."""
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks go back when they are freed
    without_an_engine()
    world = init_world()
    first = ways(ModelConfig(path=str(small)), zero, world)
    del first
    base = settle(torch.device("cpu"))
    session = ways(ModelConfig(path=str(model)), zero, world)
    grown = settle(torch.device("cpu")) - base
    return grown / session.folder.numel


def in_a_fork(run: Callable[[], float]) -> float:
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writer, json.dumps(run()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        text = f.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError("it failed; its error stands above")
    return float(json.loads(text))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as root:
        model, small = Path(root) / "model", Path(root) / "small"
        build(model)
        tokenizer = train_tokenizer(["how many red ?"] * 50 + ["user\n", "assistant\n"], vocab_size=300)
        save_hf_folder(build_tiny("dense", tokenizer, 0), tiny_processor(tokenizer), small)
        print(f"{examine(str(model)).numel / 1e6:.1f}M parameters, float32")
        for stage in (1, 3):
            for name, ways in (
                ("a trainer before its first step", trainer),
                ("alone, transformers", functools.partial(alone, engine="transformers")),
                ("alone, beside vLLM", functools.partial(alone, engine="vllm")),
            ):
                zero = ZeroConfig(stage=stage)  # type: ignore[arg-type]
                found = in_a_fork(functools.partial(measure, ways, model, small, zero))
                print(f"ZeRO {stage}, {name:32} {found:5.2f} bytes a parameter", flush=True)


if __name__ == "__main__":
    main()
