"""What the benchmarks share: a tiny model with random weights, prompts with random images, and paired timing."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig, load_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.tiny import init_tiny
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


def tiny_policy(kind: str) -> tuple[PolicyModule, Chat]:
    """A tiny model with random weights on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = init_tiny(kind, ["how many red ?"] * 50, Path(folder) / "model")  # type: ignore[arg-type]
        config = ModelConfig(path=str(path), min_pixels=256, max_pixels=512 * 512)
        model = load_model(config)
        chat = Chat.load(model, config)
    return PolicyModule(model, chat.banned_ids), chat


def random_prompt(chat: Chat, rng: np.random.Generator, side: int, number: int) -> Prompt:
    image = Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
    content = [{"type": "image"}, {"type": "text", "text": "how many red ?"}]
    problem = Problem(id=f"bench-{number}", task="t", messages=({"role": "user", "content": content},), images=(image,))
    return chat.prompt(problem)


def random_group(
    chat: Chat, rng: np.random.Generator, side: int, responses: int, length: int, number: int
) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            response_ids=rng.integers(20, 250, length).astype(np.int64),
            logprobs=np.zeros(length, np.float32),
            finish=Finish.STOP,
            weight_version=0,
            advantage=1.0,
        )
        for _ in range(responses)
    )
    return RolloutGroup(prompt=random_prompt(chat, rng, side, number), rollouts=rollouts)


def paired(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each way; the ways take turns, after one warm-up each."""
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
