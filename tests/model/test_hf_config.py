"""Keys of a model's config in their old and new places, read from dicts and from transformers' own objects."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from sapo_vl.model.hf_config import eos_ids, max_positions

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
        assert max_positions(form) == 262144


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
        assert max_positions(form) == AutoConfig.for_model("qwen3_vl").text_config.max_position_embeddings
