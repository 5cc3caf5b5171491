"""Settings of vLLM that a trainer needs; everything else keeps vLLM's default."""

from __future__ import annotations

from pydantic import Field

from sapo_vl.strict import Strict


class VllmConfig(Strict):
    """Section `rollout.vllm`."""

    tensor_parallel: int = Field(default=1, ge=1)  # ranks that share an engine: 1, or all of them
    gpu_memory_utilization: float = Field(default=0.45, gt=0, lt=1)  # share of a GPU's memory for weights and KV cache
    kv_cache_gib: int = Field(default=1, ge=1)  # size of the KV cache where there is no GPU
    max_num_seqs: int = Field(default=256, ge=1)  # responses sampled at a time
    max_images_per_prompt: int = Field(default=8, ge=1)
    enforce_eager: bool = False  # no CUDA graphs: slower, starts sooner, needs less memory. Always so on a CPU
    sleep: bool = True  # give the GPU's memory back while the trainer works. Nothing on a CPU
