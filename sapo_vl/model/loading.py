"""Loading a Qwen3-VL or Qwen3-VL-MoE folder, freezing parts of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from sapo_vl.model.errors import ModelError
from sapo_vl.model.lora import LoraConfig, add_lora
from sapo_vl.model.prefix_attention import SHARED_PREFIX_ATTENTION, register_attention
from sapo_vl.strict import Strict

log = logging.getLogger(__name__)

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
# One MoE layer picks its experts by data, so ZeRO-3 must gather it as a whole on every rank.
ZERO3_LEAF_MODULES = ("Qwen3VLMoeTextSparseMoeBlock",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Part = Literal["vision", "merger", "language", "router", "embeddings", "lm_head"]


class ModelConfig(Strict):
    """Which model, in which precision, and which of its parts learn."""

    path: str = ""  # a Hugging Face folder (or hub id, where a hub can be reached)
    revision: str | None = None  # pin of a hub id
    tiny: Literal["", "dense", "moe"] = ""  # build this tiny model from config instead; `path` must be empty
    dtype: Literal["float32", "bfloat16"] = "float32"
    freeze: tuple[Part, ...] = ()  # parts that do not learn; with `lora` nothing but adapters does anyway
    lora: LoraConfig | None = None  # None = all parameters that are not frozen learn
    gradient_checkpointing: bool = False  # recompute layers in the backward pass: less memory, about 1/3 more time
    experts_implementation: Literal["eager", "grouped_mm"] = "eager"  # of the MoE layers; grouped_mm on GPUs
    min_pixels: int = Field(default=4 * 32 * 32, ge=1)  # images are scaled up to at least this many pixels
    max_pixels: int = Field(default=1024 * 32 * 32, ge=1)  # and down to at most this many
    max_prompt_tokens: int = Field(default=4096, ge=1)  # a longer prompt is counted and skipped, never cut


def read_config(path: str, revision: str | None = None) -> PreTrainedConfig:
    """The folder's config; ModelError if it is missing or of a model family that is not supported."""
    folder = Path(path)
    if not folder.exists() and (folder.is_absolute() or path.startswith(".") or len(folder.parts) > 2):
        raise ModelError(f"model.path={path!r}: there is no such folder")
    if folder.exists() and not (folder / "config.json").exists():
        raise ModelError(f"model.path={path!r} has no config.json; give a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as e:
        raise ModelError(f"model.path={path!r} cannot be read: {e}") from e
    if config.model_type not in MODEL_TYPES:
        raise ModelError(f"model.path={path!r} is a {config.model_type!r} model; supported: {', '.join(MODEL_TYPES)}")
    return config


def check_weights(path: str) -> None:
    """ModelError if a local folder lacks weights, or files that its index names: a download that was cut off."""
    folder = Path(path)
    if not folder.exists():
        return  # a hub id
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    missing = sorted(name for name in named if not (folder / name).exists())
    if missing:
        raise ModelError(f"model.path={path!r} lacks {len(missing)} of its weight files: {', '.join(missing[:3])}")


def is_moe(config: PreTrainedConfig) -> bool:
    return config.model_type == "qwen3_vl_moe"


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The model of `config.path`, ready to be trained: attention set, parts frozen, adapters added.

    Returns the transformers model, or a peft model around it. Inside a `HfDeepSpeedConfig` of ZeRO
    stage 3 the weights are partitioned while they are read.
    """
    register_attention()
    hf_config = read_config(config.path, config.revision)
    extra: dict[str, Any] = {"experts_implementation": config.experts_implementation} if is_moe(hf_config) else {}
    model = AutoModelForImageTextToText.from_pretrained(
        config.path, revision=config.revision, dtype=DTYPES[config.dtype], **extra
    )
    return prepare_model(model, config)


def prepare_model(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Attention, checkpointing, frozen parts and adapters, on a model that is already built."""
    register_attention()
    # Only the text model: the vision tower has its own attention over patches.
    model.set_attn_implementation({"text_config": SHARED_PREFIX_ATTENTION})
    freeze(model, config.freeze)
    if config.lora is not None:
        model = add_lora(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.lora is not None:
            model.enable_input_require_grads()
    model.config.use_cache = False
    return model


def base_model(model: nn.Module) -> Any:
    """The Qwen3VL(Moe)ForConditionalGeneration inside, whether peft wraps it or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each part that `freeze` knows."""
    inner = base_model(model)
    visual, language = inner.model.visual, inner.model.language_model
    mergers = [*visual.merger.parameters(), *visual.deepstack_merger_list.parameters()]
    merger_ids = {id(p) for p in mergers}
    routers = [p for name, p in language.named_parameters() if name.endswith("mlp.gate.weight")]
    return {
        "vision": [p for p in visual.parameters() if id(p) not in merger_ids],
        "merger": mergers,
        "language": list(language.parameters()),
        "router": routers,
        "embeddings": list(language.embed_tokens.parameters()),
        "lm_head": list(inner.lm_head.parameters()),
    }


def freeze(model: nn.Module, names: tuple[Part, ...]) -> None:
    """Turns off the gradient of the named parts. Raises ModelError for a part this model lacks."""
    available = parts(model)
    for name in names:
        if not available[name]:
            raise ModelError(f"model.freeze names {name!r}, but this model has no such parameters; remove it")
        for p in available[name]:
            p.requires_grad_(False)
