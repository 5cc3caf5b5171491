"""Optimizer, learning-rate schedule and DeepSpeed settings, written out: nothing is left to a default elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from sapo_vl.model.loading import ZERO3_LEAF_MODULES
from sapo_vl.strict import Strict


class OptimConfig(Strict):
    """AdamW, or Muon for the matrices of the layers with AdamW for everything else."""

    name: Literal["adamw", "muon"] = "adamw"  # muon: stage 0 only
    lr: float = Field(default=1e-6, gt=0)  # the peak, of AdamW
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    eps: float = Field(default=1e-8, gt=0)  # of AdamW
    weight_decay: float = Field(default=0.0, ge=0)  # decoupled
    muon_lr: float = Field(default=0.02, gt=0)  # of the matrices, with name=muon
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)  # of the matrices, with name=muon
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the learning rate, after the warmup
    warmup_steps: int = Field(default=0, ge=0)  # updates of linear rise from 0
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)  # where linear and cosine end, as a share of lr
    clip: float = Field(default=1.0, gt=0)  # global gradient norm
    max_dropped_updates: int = Field(default=3, ge=0)  # non-finite ones in a row; one more stops the run


class ZeroConfig(Strict):
    """DeepSpeed ZeRO: 0 = replicas, 1 = sharded optimizer, 2 = and gradients, 3 = and weights."""

    stage: Literal[0, 1, 2, 3] = 1  # 3 where the weights alone do not fit a GPU
    offload_optimizer: bool = False  # optimizer states in CPU memory
    offload_params: bool = False  # weights in CPU memory (stage 3)
    bucket_elements: int = Field(default=50_000_000, ge=1)  # reduce and gather bucket
    # Of the sum of an update's gradients over micro-batches; "" = that of the weights. float32 makes up for bfloat16
    # weights: two bytes more for every gradient that a rank holds. Ranks exchange them in the dtype of the weights.
    grad_accum_dtype: Literal["", "float32"] = ""

    @model_validator(mode="after")
    def _where_gradients_are_summed_in_float32(self) -> ZeroConfig:
        """DeepSpeed has no such sum at stage 0; at 1 it takes an optimizer that applies what is not finite, and at 2
        with an offloaded optimizer the sum lies in the host's memory in the dtype of the weights."""
        if not self.grad_accum_dtype:
            return self
        if self.stage < 2:
            raise ValueError(f"zero.grad_accum_dtype={self.grad_accum_dtype} needs zero.stage 2 or 3, got {self.stage}")
        if self.stage == 2 and self.offload_optimizer:
            raise ValueError(
                f"zero.grad_accum_dtype={self.grad_accum_dtype} with zero.offload_optimizer=true needs zero.stage=3"
            )
        return self

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> ZeroConfig:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("zero.offload_optimizer=true needs zero.stage >= 1")
        if self.offload_params and self.stage != 3:
            raise ValueError(f"zero.offload_params=true needs zero.stage=3, got {self.stage}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How DeepSpeed works on a machine. It changes speed and room, and the order of sums, not what is computed.

    The defaults are those of a CPU, see `tuning.py` for a GPU's.
    """

    overlap: bool = False  # gradients and weights travel on a stream of their own, beside the computation
    whole_elements: int = 0  # ZeRO-3: weights of at most so many elements stay whole on every rank
    pin_memory: bool = False  # of what is offloaded to the host
    cpu_adam: bool = False  # DeepSpeed's compiled Adam for an optimizer on the host, in place of torch's


ON_CPU = Tuning()


def lr_factor(config: OptimConfig, update: int, total: int) -> float:
    """Share of the peak learning rate at `update` (0-based) of `total`: a function of the step alone, so it resumes."""
    if update < config.warmup_steps:
        return (update + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (update - config.warmup_steps) / max(1, total - config.warmup_steps))
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape


def tag_for_muon(module: nn.Module) -> None:
    """Marks the parameters Muon takes: 2-D weights of layers, no embeddings, routers or output projection.

    Expert weights are stacks of matrices and stay with AdamW, as do their adapters, norms and biases.
    """
    excluded = ("embed", "lm_head", "mlp.gate.", "mlp.experts.", "head.weight")
    for name, p in module.named_parameters():
        p.use_muon = p.ndim == 2 and not any(word in name for word in excluded)  # type: ignore[attr-defined]


def deepspeed_config(optim: OptimConfig, zero: ZeroConfig, dtype: str, tuning: Tuning = ON_CPU) -> dict[str, Any]:
    """The DeepSpeed configuration. Gradient accumulation is ours: the engine is told the boundary of each update."""
    common = {
        "lr": optim.lr,
        "betas": list(optim.betas),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    if optim.name == "muon":
        optimizer: dict[str, Any] = {
            "type": "Muon",
            "params": common | {"muon_lr": optim.muon_lr, "momentum": optim.muon_momentum, "torch_adam": True},
        }
    else:
        kind = {"torch_adam": False} if tuning.cpu_adam else {"torch_adam": True, "fused": True}
        optimizer = {"type": "AdamW", "params": common | kind}
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if zero.grad_accum_dtype else {}
    return (
        _shards(zero, dtype, tuning)
        | sums
        | {
            # Without ZeRO the norm is known before DeepSpeed's step, see PolicyEngine; in bfloat16 its optimizer clips.
            "gradient_clipping": 0.0 if zero.stage == 0 and dtype == "float32" else optim.clip,
            "optimizer": optimizer,
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
        }
    )


def frozen_config(zero: ZeroConfig, dtype: str, tuning: Tuning = ON_CPU) -> dict[str, Any]:
    """The DeepSpeed configuration of weights that do not learn, in the shards of stage 3 and where those of `zero`
    lie."""
    there = zero.model_copy(update={"stage": 3, "offload_optimizer": False})
    return _shards(there, dtype, tuning)


def _shards(zero: ZeroConfig, dtype: str, tuning: Tuning) -> dict[str, Any]:
    zero_section: dict[str, Any] = {
        "stage": zero.stage,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_bucket_size": zero.bucket_elements,
        "overlap_comm": tuning.overlap,
    }
    if zero.stage == 3:
        zero_section |= {
            "stage3_gather_16bit_weights_on_model_save": False,
            "stage3_prefetch_bucket_size": zero.bucket_elements,
            "stage3_param_persistence_threshold": tuning.whole_elements,
            "leaf_module": {"classes": list(ZERO3_LEAF_MODULES)},
        }
    on_host = {"device": "cpu"} | ({"pin_memory": True} if tuning.pin_memory else {})
    if zero.offload_optimizer:
        zero_section["offload_optimizer"] = on_host
    if zero.offload_params:
        zero_section["offload_param"] = on_host
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": zero_section,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
