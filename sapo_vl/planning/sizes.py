"""The sizes of a model that a plan reckons with, counted on the meta device."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from sapo_vl.model.folder import read_config
from sapo_vl.model.loading import CLASSES, ModelConfig, ModelError, base_model, parts, prepare_model
from sapo_vl.model.tiny import tiny_config, train_tokenizer
from sapo_vl.planning.published import SIZES, published_config, published_name

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
TINY_VOCABULARY = 772  # of `init-tiny`: 768 tokens learned from the texts of a data set, 4 tags


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Numbers of parameters and widths. "Width" is a number of values per token, "layer" one of the language model."""

    name: str
    dtype_bytes: int  # of a weight, a gradient and an activation
    parameters: int
    learning: int  # that have a gradient
    vision: int  # of them in the tower and its mergers
    vision_learning: int  # and of these, that have a gradient
    layer: int
    largest: int  # of the largest single weight
    experts_in_layer: int  # parameters; 0 for a dense model
    active: int  # that a token of text goes through
    layers: int
    hidden_width: int
    query_width: int  # heads x head size
    key_width: int  # heads of keys x head size
    key_heads: int
    inner_width: int  # of the gated layer, or of one expert
    experts: int
    experts_per_token: int
    vocabulary: int
    tied: bool  # head and embedding are one weight
    positions: int
    vision_layers: int
    vision_width: int
    vision_inner_width: int
    patch_values: int
    patch_pixels: int  # of the side of a patch
    merge: int  # patches of a side that make one token
    eager_experts: bool  # a loop over experts, not one product

    @property
    def is_moe(self) -> bool:
        return self.experts > 0

    @property
    def heads(self) -> int:
        """Of queries."""
        return self.query_width * self.key_heads // self.key_width

    @property
    def experts_parameters(self) -> int:
        """Parameters of all experts of all layers."""
        return self.layers * self.experts_in_layer

    @property
    def key_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.key_width * self.dtype_bytes


def find_config(model: ModelConfig, hint: str = "") -> tuple[str, PreTrainedConfig]:
    """(name, config) of the model that a run would train: its folder's config.json, or a published size that
    model.path (a hub id) or `hint` (the name of a config file, or of a size) names.

    Raises ModelError if none of them tells.
    """
    if model.tiny:
        tokenizer = train_tokenizer(["a"], vocab_size=300)
        return f"tiny {model.tiny}", tiny_config(model.tiny, tokenizer, {"vocab_size": TINY_VOCABULARY})
    if model.path and Path(model.path).exists():
        return model.path, read_config(model.path, model.revision)
    for text in (model.path, hint):
        if name := published_name(text):
            return name, published_config(name)
    if model.path:
        return model.path, read_config(model.path, model.revision)
    raise ModelError(
        f"model.path is empty, and {hint!r} names no published size; give model.path, or --size with one of "
        f"{', '.join(SIZES)}"
    )


def model_sizes(name: str, config: PreTrainedConfig, model: ModelConfig) -> ModelSizes:
    """The sizes of the model of `config`, with what `model` freezes and adapts."""
    text, vision = config.get_text_config(), config.vision_config
    layers = text.num_hidden_layers
    few = max(2, len(vision.deepstack_visual_indexes))
    uniform = not getattr(text, "mlp_only_layers", None) and getattr(text, "decoder_sparse_step", 1) == 1
    # Layers are alike, so a few of them tell of all: whole models of this size take a second to build.
    built = _on_meta(config, model, few if uniform and layers > few else layers)
    more = layers - few if uniform and layers > few else 0
    decoder: Any = base_model(built).model.language_model.layers
    layer, layer_learning = _count(decoder[-1].parameters())
    total, learning = _count(built.parameters())
    tower, tower_learning = _count(base_model(built).model.visual.parameters())
    experts = getattr(text, "num_experts", 0) or 0
    per_token = text.num_experts_per_tok if experts else 0
    in_layer = sum(p.numel() for n, p in decoder[-1].named_parameters() if ".experts." in n and ".lora_" not in n)
    parameters = total + more * layer
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSizes(
        name=name,
        dtype_bytes=DTYPE_BYTES[model.dtype],
        parameters=parameters,
        learning=learning + more * layer_learning,
        vision=tower,
        vision_learning=tower_learning,
        layer=layer,
        largest=max(p.numel() for p in built.parameters()),
        experts_in_layer=in_layer,
        active=parameters - tower - (layers * in_layer * (experts - per_token) // experts if experts else 0),
        layers=layers,
        hidden_width=text.hidden_size,
        query_width=text.num_attention_heads * head_dim,
        key_width=text.num_key_value_heads * head_dim,
        key_heads=text.num_key_value_heads,
        inner_width=text.moe_intermediate_size if experts else text.intermediate_size,
        experts=experts,
        experts_per_token=per_token,
        vocabulary=text.vocab_size,
        tied=base_model(built).lm_head.weight is base_model(built).model.language_model.embed_tokens.weight,
        positions=text.max_position_embeddings,
        vision_layers=vision.depth,
        vision_width=vision.hidden_size,
        vision_inner_width=vision.intermediate_size,
        patch_values=3 * vision.temporal_patch_size * vision.patch_size**2,
        patch_pixels=vision.patch_size,
        merge=vision.spatial_merge_size,
        eager_experts=bool(experts) and model.experts_implementation == "eager",
    )


def _on_meta(config: PreTrainedConfig, model: ModelConfig, layers: int) -> nn.Module:
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):  # where tied parameters stay one
        built = getattr(transformers, CLASSES[config.model_type])._from_config(short)
    assert set(parts(built)) >= set(model.freeze)
    return prepare_model(built, model)


def _count(parameters: Any) -> tuple[int, int]:
    """(all, those that learn)."""
    found = list(parameters)
    return sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)
