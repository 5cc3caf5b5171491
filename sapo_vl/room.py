"""Whether what a stage writes will fit on its disk, by what that takes at its largest; asked before the first step."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from sapo_vl.config import ConfigError, RunConfig
from sapo_vl.model.folder import examine
from sapo_vl.record.tokens import BYTES_PER_TOKEN

log = logging.getLogger(__name__)
GIB = 2**30
# A line of a rollout: text and number of each token, and what else stands there with a prompt of some length.
BYTES_IN_LINE, BYTES_PER_LINE = 12, 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes at most. Pictures of rollouts, each once, are not in it: their sizes are the data's."""

    model: int
    checkpoints: int
    rollouts: int
    weights: int  # on their way to servers

    @property
    def all(self) -> int:
        return self.model + self.checkpoints + self.rollouts + self.weights

    def __str__(self) -> str:
        parts = {
            "the trained model": self.model,
            "checkpoints, one more while the newest is written": self.checkpoints,
            "rollouts without their pictures": self.rollouts,
            "weights for servers": self.weights,
        }
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)


def room_for(config: RunConfig, stage: str, numel: int) -> Room:
    """What a stage writes with a model of so many parameters."""
    model = numel * (4 if config.model.dtype == "float32" else 2)
    # A checkpoint holds the weights and, in fp32, a copy of what learns with its two moments.
    checkpoint = model + (0 if config.model.lora else 12 * numel)
    kept = config.checkpoint.keep + 1 if config.checkpoint.every else 0
    rollouts = weights = 0
    if stage == "train":
        every = config.log.save_rollouts_every
        lines = config.rollout.prompts_per_step * config.rollout.group_size
        tokens = lines * config.rollout.max_new_tokens
        numbers = min(BYTES_PER_TOKEN * tokens, int(config.log.save_tokens_mb * 1e6)) * config.log.save_tokens
        a_step = lines * BYTES_PER_LINE + BYTES_IN_LINE * tokens + numbers
        rollouts = (config.steps // every if every else 0) * a_step
        # The old ones stay until all servers have the new ones.
        here = config.rollout.engine == "vllm_server" and not config.rollout.server.sync_dir
        weights = 2 * model if here else 0
    return Room(model=model, checkpoints=kept * checkpoint, rollouts=rollouts, weights=weights)


def check_room(config: RunConfig, stage: str, out: Path) -> None:
    """A warning, with what takes how much, if the disk of `out` may become full.

    Raises ConfigError if not even the model that is written at the end would fit.
    """
    room = room_for(config, stage, examine(config.model.path, config.model.revision).numel)
    existing = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < room.model:
        raise ConfigError(
            f"{existing} has {free / GIB:.2f} GiB free, and the trained model alone takes {room.model / GIB:.2f} GiB; "
            "give --out on a larger disk, or make room"
        )
    if free < room.all:
        log.warning(
            "%s has %.2f GiB free, and this stage may write %.2f (%s): give --out on a larger disk, lower "
            "checkpoint.keep, raise log.save_rollouts_every, or set log.save_tokens=false",
            existing, free / GIB, room.all / GIB, room,
        )  # fmt: skip
