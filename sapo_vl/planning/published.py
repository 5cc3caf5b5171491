"""Sizes of the released checkpoints, for a plan where no folder is at hand."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "deepstack_visual_indexes": [5, 11, 17], "intermediate_size": 4096}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "deepstack_visual_indexes": [8, 16, 24], "intermediate_size": 4304}
MOE = {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1}
# (language model, tower, tied embeddings), as in the config.json of the released checkpoints. Those of 32B and 235B
# were not at hand: theirs are read off public launch scripts for Qwen3-32B, the language model of the first, and for
# Qwen3-VL-235B-A22B. Inner width and heads of the towers are those of SigLIP-2 Large (4096, 16) and SO-400M (4304, 16).
# tests/model/test_meta_models.py holds the sums of parameters against the names.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "qwen3_vl_4b": (
        {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_key_value_heads": 8},
        SMALL_TOWER,
        True,
    ),
    "qwen3_vl_8b": (
        {"hidden_size": 4096, "num_hidden_layers": 36, "intermediate_size": 12288, "num_key_value_heads": 8},
        LARGE_TOWER,
        False,
    ),
    "qwen3_vl_32b": (
        {"hidden_size": 5120, "num_hidden_layers": 64, "intermediate_size": 25600, "num_key_value_heads": 8}
        | {"num_attention_heads": 64},
        LARGE_TOWER,
        False,
    ),
    "qwen3_vl_30b_a3b": (
        MOE
        | {"hidden_size": 2048, "num_hidden_layers": 48, "moe_intermediate_size": 768}
        | {"intermediate_size": 6144, "num_key_value_heads": 4},
        LARGE_TOWER,
        False,
    ),
    "qwen3_vl_235b_a22b": (
        MOE
        | {"hidden_size": 4096, "num_hidden_layers": 94, "moe_intermediate_size": 1536}
        | {"intermediate_size": 12288, "num_key_value_heads": 4, "num_attention_heads": 64},
        LARGE_TOWER,
        False,
    ),
}


def published_name(text: str) -> str:
    """The size that a hub id or the name of a file is of: "Qwen/Qwen3-VL-30B-A3B-Instruct" -> "qwen3_vl_30b_a3b".

    "" if it names none.
    """
    plain = "".join(c if c.isalnum() else "_" for c in text.lower())
    return next((name for name in sorted(SIZES, key=len, reverse=True) if name in plain), "")


def published_config(name: str) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    """The config of a size of SIZES, as its config.json would give it."""
    sizes, tower, tied = SIZES[name]
    text = {
        "vocab_size": 151936,
        "num_attention_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": tied,
    } | sizes
    vision = {
        "num_heads": 16,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "out_hidden_size": sizes["hidden_size"],
    } | tower
    build = Qwen3VLMoeConfig if "num_experts" in sizes else Qwen3VLConfig
    return build(text_config=text, vision_config=vision, tie_word_embeddings=tied)
