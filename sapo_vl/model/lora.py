"""Folding LoRA adapters into the weights they adapt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sapo_vl.model.loading import LoraConfig

PREFIX = "base_model.model."


def merged_state(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """A peft model's whole state dict -> the plain model's: W + alpha/rank * B @ A, adapter entries gone.

    Works on a gathered state dict, so it does not matter how the weights were sharded. Raises KeyError if an
    adapter lacks its weight.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix(PREFIX)
        if ".base_layer." in name:
            a = state[name.replace("base_layer.weight", "lora_A.default.weight")]
            b = state[name.replace("base_layer.weight", "lora_B.default.weight")]
            value = (value.float() + config.alpha / config.rank * (b.float() @ a.float())).to(value.dtype)
            plain = plain.replace(".base_layer.", ".")
        out[plain] = value
    return out
