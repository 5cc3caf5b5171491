"""Prompts for one vLLM engine over several ranks: prepared by one rank each and shared, against images handed to all
ranks and prepared by each. Up to where the engine would begin. Wall seconds: what one rank waits for, another does.

    python -m torch.distributed.run --standalone --nproc_per_node 2 bench/prompts.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import random_prompt

from sapo_vl.distributed import World, init_world
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig, load_model
from sapo_vl.model.tiny import init_tiny
from sapo_vl.rollout.vllm import v0_32, v0_32_prepared
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.engine import as_vllm_reads_it
from sapo_vl.rollout.vllm.shared import share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, nargs="+", default=[256, 896], help="of the images, in pixels")
    parser.add_argument("--prompts", type=int, default=8, help="of each rank, an image each")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    world = init_world()
    with tempfile.TemporaryDirectory() as scratch:
        folder = world.gather(scratch)[0]
        if world.is_main:
            init_tiny("dense", ["how many red ?"] * 50, Path(folder) / "model")
        world.barrier()
        config = ModelConfig(path=f"{folder}/model", min_pixels=256, max_pixels=max(args.side) ** 2)
        chat = Chat.load(load_model(config), config)
        vllm = VllmConfig(max_num_seqs=8)  # what prepares prompts is the same, whatever the engine behind it
        llm = v0_32.open_engine(config.path, config, vllm, 4096, on_cpu=True, distributed=True)
        world.barrier()
    if world.is_main:
        print(f"{world.size} ranks, {args.prompts} prompts each; seconds, median of {args.repeats} [least, most]")
    for side in args.side:
        rng = np.random.default_rng(world.rank)
        prompts = [random_prompt(chat, rng, side, i) for i in range(args.prompts)]
        ways = {"shared": lambda p=prompts: shared(llm, world, p), "each": lambda p=prompts: each(llm, world, p)}
        seconds = timed(ways, world, args.repeats)
        if world.is_main:
            print(f"{side:5d} px", *(f"{name} {spread(found)}" for name, found in seconds.items()), end="  ")
            print(f"each / shared {spread([b / a for a, b in zip(seconds['shared'], seconds['each'], strict=True)])}")


def shared(llm: object, world: World, prompts: list) -> object:
    found = share(world, v0_32.prepare(llm, prompts))
    assert found is not None
    return v0_32_prepared.read(found)


def each(llm: object, world: World, prompts: list) -> object:
    everyones = world.gather([as_vllm_reads_it(p) for p in prompts])
    return llm.renderer.render_cmpl([v0_32.request(p) for ps in everyones for p in ps], skip_mm_cache=True)


def timed(ways: dict[str, Callable[[], object]], world: World, repeats: int) -> dict[str, list[float]]:
    """Wall seconds until the last rank is done; the ways take turns, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, run in ways.items():
            world.barrier()
            started = time.perf_counter()
            run()
            world.barrier()
            seconds[name].append(time.perf_counter() - started)
    return {name: found[1:] for name, found in seconds.items()}


def spread(found: list[float]) -> str:
    return f"{statistics.median(found):.3f} [{min(found):.3f}, {max(found):.3f}]"


if __name__ == "__main__":
    main()
