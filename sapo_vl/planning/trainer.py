"""Bytes that the trainer holds: weights, gradients, optimizer states, and DeepSpeed's buffers.

n parameters, L of them learn, r ranks, e bytes of a weight. What DeepSpeed does is not written down anywhere; the terms
are what `bench/memory.py` finds of ZeRO 0 to 3 on one rank.
"""

from __future__ import annotations

from sapo_vl.config import RunConfig
from sapo_vl.planning.sizes import ModelSizes

# DeepSpeed's defaults, which sapo_vl.learning.optim leaves as they are (elements).
MAX_LIVE, SUB_GROUP = 1_000_000_000, 1_000_000_000
MASTER, MOMENTS, FLOAT = 4, 8, 4  # bytes a parameter


def weights_bytes(m: ModelSizes, config: RunConfig, ranks: int) -> int:
    """On the device, between passes."""
    if config.zero.offload_params:
        return 0
    return m.dtype_bytes * m.parameters // (ranks if config.zero.stage == 3 else 1)


def live_bytes(m: ModelSizes, config: RunConfig) -> int:
    """ZeRO-3: weights that are whole on a rank while it works, and stay until they are needed no more."""
    return m.dtype_bytes * min(m.parameters, max(MAX_LIVE, m.layer)) if config.zero.stage == 3 else 0


def states_bytes(m: ModelSizes, config: RunConfig, ranks: int) -> int:
    """Master weights and Adam's moments, wherever they lie."""
    if config.zero.stage == 0:
        return (MOMENTS if m.dtype_bytes == FLOAT else MASTER + MOMENTS) * m.learning
    return (MASTER + MOMENTS) * m.learning // ranks


def gradients_bytes(m: ModelSizes, config: RunConfig, ranks: int) -> int:
    """Held on the device from the first backward of an update to its step."""
    e, learning = m.dtype_bytes, m.learning
    if config.zero.stage <= 1:
        return e * learning
    if config.zero.offload_optimizer:
        return 0
    return (FLOAT if config.zero.grad_accum_dtype else e) * learning // ranks


def bucket_bytes(m: ModelSizes, config: RunConfig, ranks: int, *, overlap: bool) -> int:
    """Reduce buckets: what is being reduced, and a copy; while they travel (`overlap`), one that fills meanwhile."""
    if config.zero.stage == 0 or (ranks == 1 and config.zero.stage < 3):
        return 0
    buckets = (2 if config.zero.stage >= 2 else 0) + (1 if overlap else 0)
    return buckets * m.dtype_bytes * min(m.learning, max(config.zero.bucket_elements, m.largest))


def step_bytes(m: ModelSizes, config: RunConfig, ranks: int) -> int:
    """While the optimizer runs: this rank's gradients flat, in float32, and a temporary of Adam's."""
    if config.zero.offload_optimizer:
        return 0
    share = m.learning // ranks
    if config.zero.stage == 0:
        return FLOAT * (m.largest if m.dtype_bytes == FLOAT else m.learning)
    if config.zero.stage == 3:
        return 2 * FLOAT * min(share, SUB_GROUP)
    return (m.dtype_bytes + FLOAT + (0 if m.dtype_bytes == FLOAT else FLOAT)) * share


def offloaded_bytes(m: ModelSizes, config: RunConfig, ranks: int) -> int:
    """In the memory of the host, for one rank: states and gradients in float32, under ZeRO-3 their weights too."""
    total = 0
    if config.zero.offload_optimizer:
        total += (MASTER + MOMENTS + FLOAT + (m.dtype_bytes if config.zero.stage == 3 else 0)) * m.learning // ranks
    if config.zero.offload_params:
        total += (2 if config.loss.kl_coef > 0 else 1) * m.dtype_bytes * m.parameters // ranks
    return total


def reference_bytes(m: ModelSizes, config: RunConfig, ranks: int) -> int:
    """The frozen copy that a KL penalty needs, on a device: where and in such shares as the policy's weights."""
    return weights_bytes(m, config, ranks) if config.loss.kl_coef > 0 else 0
