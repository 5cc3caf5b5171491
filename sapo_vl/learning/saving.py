"""Saving on a disk that may be full or away: what fails is told and counted, and costs no training."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from sapo_vl.learning.checkpoint import CheckpointConfig, SaveFailed, save_checkpoint
from sapo_vl.learning.engine import PolicyEngine

log = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one stage. All ranks use it together."""

    def __init__(self, root: Path, engine: PolicyEngine, config: CheckpointConfig, last: int) -> None:
        """`last`: the step that the run goes on from."""
        self._root, self._engine, self._config = root, engine, config
        self._in_a_row = 0
        self.last = last  # the newest step that is saved
        self.failed = 0  # saves that failed, in all
        self.seconds = 0.0  # that the latest save took, failed or not

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        return self._config.every > 0 and step % self._config.every == 0

    def save(self, step: int, state: dict[str, Any], *, at_the_end: bool = False) -> bool:
        """Saves the state after `step` steps (`save_checkpoint`); False if that failed, which is a warning.

        Raises SaveFailed where checkpoint.max_failures in a row did, unless nothing is left to train.
        """
        started = time.monotonic()
        try:
            save_checkpoint(self._root, step, self._engine, state, self._config.keep)
        except SaveFailed as error:
            self.failed += 1
            self._in_a_row += 1
            if self._in_a_row >= self._config.max_failures and not at_the_end:
                raise SaveFailed(
                    f"{error}; that makes {self._in_a_row} in a row (checkpoint.max_failures): the run ends, and goes "
                    "on from its newest checkpoint once there is room"
                ) from None
            if self._engine.world.is_main:
                log.warning("%s; older checkpoints stay, and the run goes on", error)
            return False
        finally:
            self.seconds = time.monotonic() - started
        self._in_a_row, self.last = 0, step
        return True
