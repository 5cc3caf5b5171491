"""Keys of a model's config in their old and new places, read from dicts and from transformers' own objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_models import tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from sapo_vl.model.hf_config import (
    eos_ids,
    max_positions,
    rope_settings,
    rope_theta,
    ties_word_embeddings,
    uses_cache,
    weight_dtype,
)
from sapo_vl.model.tiny import tiny_config

# As the hub has it, and as transformers 5 writes the same model.
OLD: dict[str, Any] = {
    "model_type": "qwen3_vl_moe",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 9,
    "text_config": {
        "max_position_embeddings": 262144,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "eos_token_id": 151645,
        "use_cache": False,
    },
}
NEW: dict[str, Any] = {
    "model_type": "qwen3_vl_moe",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "text_config": {
        "tie_word_embeddings": True,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
            "rope_theta": 5000000,
        },
        "eos_token_id": [151645, 151643, 151645],
        "use_cache": False,
    },
}


@pytest.mark.parametrize("config", [OLD, NEW], ids=["old", "new"])
def test_the_same_model_reads_the_same_however_it_was_written(config):
    for form in (config, AutoConfig.for_model(**config)):
        assert not ties_word_embeddings(form)
        assert max_positions(form) == 262144
        assert rope_theta(form) == 5e6
        assert rope_settings(form)["mrope_section"] == [24, 20, 20] and rope_settings(form)["rope_type"] == "default"
        assert weight_dtype(form) == "bfloat16"
        assert not uses_cache(form)


def test_end_of_turn_ids_come_as_a_number_or_a_list_from_the_first_place_that_has_any():
    assert eos_ids(OLD) == (151645,) and eos_ids(NEW) == (151645, 151643)
    assert eos_ids({"eos_token_id": 9, "text_config": {}}) == (9,)
    assert eos_ids({"text_config": {"eos_token_id": 0}}) == (0,)
    assert eos_ids(OLD, {"eos_token_id": [4, 5]}) == (4, 5)
    assert eos_ids(OLD, GenerationConfig(eos_token_id=7)) == (7,)
    assert eos_ids(OLD, GenerationConfig()) == (151645,)
    assert eos_ids({"text_config": {}}) == ()


def test_what_a_config_leaves_out_is_the_default_of_its_class():
    bare = {"model_type": "qwen3_vl", "text_config": {}}
    for form in (bare, AutoConfig.for_model("qwen3_vl")):
        assert not ties_word_embeddings(form) and uses_cache(form) and weight_dtype(form) == ""
        assert max_positions(form) == AutoConfig.for_model("qwen3_vl").text_config.max_position_embeddings
        assert rope_theta(form) == AutoConfig.for_model("qwen3_vl").text_config.rope_parameters["rope_theta"]
    assert rope_settings(bare) == {}


def test_the_oldest_spelling_of_rope():
    text = {"rope_scaling": {"type": "mrope", "mrope_section": [6, 5, 5]}, "rope_theta": 10000.0}
    assert rope_settings({"text_config": text}) == {"rope_type": "default", "mrope_section": [6, 5, 5]}
    assert rope_theta({"text_config": text}) == 10000.0


def test_weights_are_named_by_their_type_not_by_torch():
    config = tiny_config("dense", tokenizer())
    config.dtype = torch.bfloat16
    assert weight_dtype(config) == "bfloat16"


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("top", [True, False, None])
@pytest.mark.parametrize("inner", [True, False, None])
def test_tied_is_what_transformers_makes_of_the_config(kind, top, inner):
    """Looked at on the built model: is the head the same tensor as the embeddings?"""
    raw = tiny_config(kind, tokenizer()).to_dict()
    raw["text_config"] |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    raw["vision_config"] |= {"depth": 1, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
    for section, value in ((raw, top), (raw["text_config"], inner)):
        section.pop("tie_word_embeddings")
        if value is not None:
            section["tie_word_embeddings"] = value
    assert ties_word_embeddings(raw) == bool(top)
    config = AutoConfig.for_model(**raw)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == bool(top)
    assert ties_word_embeddings(config) == ties_word_embeddings(model.config) == bool(top)
