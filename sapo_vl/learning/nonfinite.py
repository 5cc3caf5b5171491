"""What follows when an update was dropped for a loss or gradient that is not finite, in any stage that updates.

Its samples are saved, and too many such updates in a row stop the run.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from sapo_vl.learning.engine import PolicyEngine, UpdateResult
from sapo_vl.model.batching import MicroBatch
from sapo_vl.record.rollout_log import RolloutLog
from sapo_vl.types import RolloutGroup

log = logging.getLogger(__name__)
NONFINITE = "nonfinite"  # folder inside a run folder


class NonFiniteUpdate(RuntimeError):
    """Too many updates in a row had a loss or gradient that is not finite. The samples are in nonfinite/."""


def watch_update(
    engine: PolicyEngine,
    result: UpdateResult,
    micro_batches: Sequence[MicroBatch],
    out: Path,
    step: int,
    section: str = "optim",
) -> None:
    """Takes the engine's latest update, made of this rank's `micro_batches`; does nothing if it was applied.

    Else saves its samples to out/nonfinite/SECTION_update_N: `section` is where in the config the optimizer of this
    stage is, N counts its updates from 1 (a step may have several). Every rank must call it.

    Raises NonFiniteUpdate, on all ranks alike, after more than max_dropped_updates dropped ones in a row.
    """
    if result.applied:
        return
    folder = out / NONFINITE / f"{section}_update_{engine.updates:06d}"
    named_somewhere = engine.world.any(bool(result.offenders))
    if result.offenders or not named_somewhere:
        _save_offenders(micro_batches, result, folder, step, engine.world.rank)
    allowed = engine.optim.max_dropped_updates
    if engine.dropped_in_a_row > allowed:
        raise NonFiniteUpdate(
            f"step {step}: {engine.dropped_in_a_row} updates in a row had a non-finite loss or gradient and were "
            f"dropped ({section}.max_dropped_updates={allowed}); the samples are in {out / NONFINITE}. Lower "
            f"{section}.lr, or look at them"
        )


def _save_offenders(
    micro_batches: Sequence[MicroBatch], result: UpdateResult, folder: Path, step: int, rank: int
) -> None:
    """Writes this rank's responses with a non-finite loss or gradient, or all of them if there are none such."""
    named = {i for i, _ in result.offenders}
    rows: list[RolloutGroup] = []
    for i, mb in enumerate(micro_batches):
        flat = [(g, r) for g in mb.groups for r in g.rollouts]
        picked = [j for k, j in result.offenders if k == i] if named else range(len(flat))
        rows += [dataclasses.replace(flat[j][0], rollouts=(flat[j][1],)) for j in picked]
    RolloutLog(folder, save_images=True).write(step, rows, rank)
    ids = sorted({g.prompt.problem.id for g in rows})
    log.warning(
        "step %d: the update was dropped on all ranks, loss %s, gradient norm %s; %s on this rank: %s (saved in %s)",
        step, result.loss, result.grad_norm, "offending problems" if named else "none singled out, problems",
        ids[:8], folder,
    )  # fmt: skip
