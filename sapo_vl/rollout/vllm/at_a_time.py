"""How many responses an engine samples at a time, where the config does not say: what its cache holds."""

from __future__ import annotations

from pathlib import Path

import torch

from sapo_vl.model.folder import read_config
from sapo_vl.model.loading import ModelConfig
from sapo_vl.rollout.vllm.config import VllmConfig

ON_CPU = 256  # vLLM's own default; there is no more to be had from a processor
FEWEST, MOST, STEP = 32, 1024, 32
WORKSPACE_BYTES = 3 * 10**9  # activations and graphs
TYPICAL = 0.5  # of the longest prompt and response; vLLM puts back what does not fit after all


def responses_at_a_time(path: str | Path, model: ModelConfig, config: VllmConfig, longest: int, on_cpu: bool) -> int:
    """For an engine on the weights of `path`, for prompts with responses of at most `longest` tokens in all."""
    if config.max_num_seqs or on_cpu:
        return config.max_num_seqs or ON_CPU
    text = read_config(str(path), model.revision).get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = -(-text.num_key_value_heads // config.tensor_parallel)  # of one GPU
    width = {"float32": 4, "bfloat16": 2}[model.dtype]
    weights = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return cache_holds(
        room=int(config.gpu_memory_utilization * torch.cuda.get_device_properties(0).total_memory),
        weights=weights // config.tensor_parallel,
        per_token=2 * text.num_hidden_layers * heads * head * width,
        longest=longest,
    )


def cache_holds(*, room: int, weights: int, per_token: int, longest: int) -> int:
    """Responses at a time. In bytes of one GPU: vLLM's share, its weights, keys and values of a token."""
    cache = room - weights - WORKSPACE_BYTES
    found = int(cache / (TYPICAL * longest * per_token))
    return min(MOST, max(FEWEST, found // STEP * STEP))
