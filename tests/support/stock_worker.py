"""Trains many model folders in one process, for test_stock_folders.py: a process of its own for each costs seconds.

    stock_worker.py PLAN

PLAN is a JSON file: [{"name": ..., "out": a folder, "settings": {key: value of the run's config}}, ...]. Into each
`out` goes what `train` writes, `trained.safetensors` and `record.json`: what it began with, trained, and said. What is
right is decided by the test.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import sapo_vl.scoring.scorer as scoring
import sapo_vl.train as training
from rewards import REWARDS, RewardInput, RewardOutput
from sapo_vl.config import load_config
from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.lifeline import StopRequest
from sapo_vl.model.batching import pack
from sapo_vl.session import Session, setup_logging
from sapo_vl.types import Finish, Problem, Rollout, RolloutGroup

REWARD = "early_letters"
QUESTION = "How many red circles are there?"


def early_letters(x: RewardInput) -> RewardOutput:
    """Share of the characters that come before "m": a model that knows nothing has something to learn."""
    return RewardOutput(sum(c < "m" for c in x.text) / max(1, len(x.text)))


def probe_image() -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def probe_response(vocabulary: int) -> np.ndarray:
    """Ids of ordinary tokens."""
    return np.random.default_rng(6).integers(0, vocabulary, 12)


def whole(session: Session) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under every name it has, gathered; nothing of the code under test but the module."""
    for name, p in session.engine.module.hf.named_parameters(remove_duplicate=False):
        if session.engine.zero.stage < 3:
            yield name, p.detach().clone()
            continue
        with deepspeed.zero.GatheredParameters([p]):
            yield name, p.detach().clone()


def digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


@torch.no_grad()
def probe(session: Session) -> dict[str, Any]:
    """Log-probs of a fixed response to a fixed picture, under the trained policy, and the ids that it was given."""
    chat = session.chat
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    problem = Problem(id="probe", task="t", messages=({"role": "user", "content": content},), images=(probe_image(),))
    prompt = chat.prompt(problem)
    ids = probe_response(256)
    rollout = Rollout(
        response_ids=ids, logprobs=np.zeros(len(ids), np.float32), finish=Finish.STOP, weight_version=0, advantage=1.0
    )
    batch = pack([RolloutGroup(prompt=prompt, rollouts=(rollout,))], chat.blank_pixels())
    session.engine.ds.eval()
    logprobs, _ = session.engine.module(batch)
    return {
        "prompt": prompt.ids.tolist(),
        "response": ids.tolist(),
        "banned": list(chat.banned_ids),
        "eos": list(chat.eos_ids),
        "logprobs": logprobs.float().tolist(),
    }


class Watched:
    """Keeps the session that `train` opens, and what it began with."""

    session: Session
    loaded: dict[str, str]

    def open_session(self, *args: Any, **kwargs: Any) -> Session:
        self.session = open_session(*args, **kwargs)
        self.loaded = {name: digest(value) for name, value in whole(self.session)}
        return self.session


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


open_session = training.open_session


def run(out: Path, settings: dict[str, Any], world: World) -> dict[str, Any]:
    config = load_config(None, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    watched, heard = Watched(), Warnings()
    training.open_session = watched.open_session
    logging.getLogger("sapo_vl").addHandler(heard)
    out.mkdir(parents=True)
    started = time.process_time()
    try:
        with scoring.Scorer(config.rewards, world) as scorer:
            result = training.train(config, out, world, scorer, StopRequest(1))
        tensors = {name: value.contiguous() for name, value in whole(watched.session)}
        save_file(tensors, out / "trained.safetensors")
        return {
            "loaded": watched.loaded,
            "probe": probe(watched.session),
            "warnings": heard.said,
            "proof": result["model"],
            "cpu_s": time.process_time() - started,  # all of it, judging data gathered included
        }
    finally:
        logging.getLogger("sapo_vl").removeHandler(heard)
        if hasattr(watched, "session"):
            watched.session.engine.ds.destroy()


def main() -> None:
    world = init_world()
    setup_logging(world)
    torch.set_num_threads(1)
    REWARDS[REWARD] = early_letters
    scoring.IN_PROCESS |= {REWARD}
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        out = Path(entry["out"])
        try:
            record = run(out, entry["settings"], world)
        except Exception:  # the test tells what it thinks of it, folder by folder
            record = {"error": traceback.format_exc()}
        (out / "record.json").write_text(json.dumps(record))
        print(entry["name"], record.get("cpu_s"), record.get("error", ""), flush=True)
    shutdown_world()


if __name__ == "__main__":
    main()
