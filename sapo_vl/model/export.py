"""Writing Hugging Face folders that `from_pretrained` and vLLM load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

# Runtime: gate_up_proj [E, 2I, H] and down_proj [E, H, I]. Hub folders: [E, H, 2I] and [E, I, H].
EXPERT_WEIGHTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def check_expert_shapes(config: PreTrainedConfig) -> None:
    """Refuses expert sizes whose two layouts cannot be told apart.

    transformers decides by shape whether to transpose an expert weight while loading; with 2I == H or I == H
    it silently loads transposed weights. Raises ValueError naming the sizes.
    """
    text = config.get_text_config()
    inner, hidden = getattr(text, "moe_intermediate_size", None), text.hidden_size
    if getattr(text, "num_experts", None) and inner and hidden in (inner, 2 * inner):
        raise ValueError(
            f"moe_intermediate_size={inner} with hidden_size={hidden}: transformers cannot tell the two layouts of the "
            f"expert weights apart by shape; choose sizes with hidden_size different from {inner} and {2 * inner}"
        )


def hub_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The runtime state dict with expert weights transposed to the layout of hub folders."""
    return {name: t.transpose(1, 2).contiguous() if name.endswith(EXPERT_WEIGHTS) else t for name, t in state.items()}


def save_hf_folder(
    model: PreTrainedModel,
    processor: ProcessorMixin | Any,
    out: Path,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes weights (safetensors, hub layout), config, tokenizer and processor to `out`.

    `state` is the full runtime state dict where the model's own weights are sharded; default: the model's own.
    The folder appears under its name only when complete.
    """
    check_expert_shapes(model.config)
    state = dict(model.state_dict() if state is None else state)
    if model.config.get_text_config().tie_word_embeddings or model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    state = {k: v.detach().to("cpu") for k, v in state.items()}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    # save_original_format=False: we hand over the hub layout already, whichever way the model was built.
    model.save_pretrained(beside, state_dict=hub_layout(state), save_original_format=False)
    processor.save_pretrained(beside)
    if out.exists():
        shutil.rmtree(out)
    beside.rename(out)
