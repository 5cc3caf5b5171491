"""The released sizes, built without weights: what the shipped GPU configs ask of them can be done."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from deepspeed.runtime.config import DeepSpeedConfig
from transformers import AutoModelForImageTextToText, PreTrainedModel

from sapo_vl.config import RunConfig, load_config
from sapo_vl.learning.optim import Tuning, deepspeed_config
from sapo_vl.learning.tuning import WHOLE_ELEMENTS
from sapo_vl.model.export import check_expert_shapes
from sapo_vl.model.folder import MODEL_TYPES, is_moe
from sapo_vl.model.loading import DTYPES, ZERO3_LEAF_MODULES, parts, prepare_model
from sapo_vl.model.prefix_attention import SHARED_PREFIX_ATTENTION
from sapo_vl.planning.published import SIZES, published_config

CONFIGS = Path(__file__).parents[2] / "configs"

SHIPPED = [name for name in SIZES if name != "qwen3_vl_32b"]  # which has no config of its own
MOES = ["qwen3_vl_30b_a3b", "qwen3_vl_235b_a22b"]


@functools.cache
def settings(name: str) -> RunConfig:
    """The shipped config of a size."""
    return load_config(CONFIGS / f"{name}.yaml")


@functools.cache
def model(name: str) -> PreTrainedModel:
    """The model of a size on the meta device, prepared as its shipped config says. Built once."""
    config, wanted = published_config(name), settings(name).model
    extra = {"experts_implementation": wanted.experts_implementation} if is_moe(config) else {}
    with init_empty_weights():
        built = AutoModelForImageTextToText.from_config(config, dtype=DTYPES[wanted.dtype], **extra)
    built.tie_weights()  # moving a parameter to the meta device makes a new one, which parts tied ones
    return prepare_model(built, wanted)


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def test_every_shipped_gpu_config_has_its_size_here():
    shipped = {path.stem for path in CONFIGS.glob("qwen3_vl_*.yaml")}
    assert shipped == set(SHIPPED)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("qwen3_vl_4b", 4e9, 5e9),
        ("qwen3_vl_8b", 8e9, 9.5e9),
        ("qwen3_vl_30b_a3b", 29e9, 33e9),
        ("qwen3_vl_235b_a22b", 225e9, 245e9),
    ],
)
def test_the_number_of_parameters_is_the_one_in_the_name(name, low, high):
    built = model(name)
    assert {p.device.type for p in built.parameters()} == {"meta"}
    assert {p.dtype for p in built.parameters()} == {torch.bfloat16}
    assert built.config.model_type in MODEL_TYPES
    assert low < count(built.parameters()) < high
    tied = built.lm_head.weight is built.model.language_model.embed_tokens.weight
    assert tied == (name == "qwen3_vl_4b")


@pytest.mark.parametrize(("name", "low", "high"), [(MOES[0], 2.8e9, 3.6e9), (MOES[1], 20.5e9, 23.5e9)])
def test_a_token_uses_as_many_parameters_as_the_name_says(name, low, high):
    """Counted by hand from the sizes: attention, 8 of 128 experts and the router per layer, embeddings twice."""
    built, text = model(name), published_config(name).text_config
    hidden, heads, kv = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    attention = hidden * 128 * (2 * heads + 2 * kv) + 2 * 128
    expert = 3 * hidden * text.moe_intermediate_size
    per_layer = attention + hidden * 128 + 2 * hidden  # with the router and two norms
    around = 2 * 151936 * hidden + hidden
    by_hand = text.num_hidden_layers * (per_layer + 8 * expert) + around
    assert low < by_hand < high
    # The same sum with all 128 experts is what was built: no layer is dense and none is missing.
    everything = text.num_hidden_layers * (per_layer + 128 * expert) + around
    assert count(built.model.language_model.parameters()) + count(built.lm_head.parameters()) == everything


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_model_settings_take_hold(name):
    built = model(name)
    assert built.config.text_config._attn_implementation == SHARED_PREFIX_ATTENTION
    assert built.config.vision_config._attn_implementation != SHARED_PREFIX_ATTENTION
    assert built.is_gradient_checkpointing
    learns = {part: {p.requires_grad for p in parameters} for part, parameters in parts(built).items()}
    assert learns["vision"] == {False}
    assert learns["merger"] == learns["language"] == learns["lm_head"] == {True}
    assert learns["router"] == ({True} if name in MOES else set())
    # Depth and DeepStack levels of the tower: 0.3 and 0.4 billion parameters without the mergers.
    tower = count(parts(built)["vision"])
    assert (0.29e9 < tower < 0.32e9) if name == "qwen3_vl_4b" else (0.40e9 < tower < 0.43e9)


@pytest.mark.parametrize("name", MOES)
def test_experts_are_what_loading_export_and_zero3_take_them_for(name):
    built, text = model(name), published_config(name).text_config
    check_expert_shapes(built.config)
    classes = [type(module).__name__ for module in built.modules()]
    for leaf in ZERO3_LEAF_MODULES:
        assert classes.count(leaf) == text.num_hidden_layers
    experts = built.model.language_model.layers[0].mlp.experts
    hidden, inner = text.hidden_size, text.moe_intermediate_size
    assert tuple(experts.gate_up_proj.shape) == (128, 2 * inner, hidden)
    assert tuple(experts.down_proj.shape) == (128, hidden, inner)
    assert built.config.text_config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("name", SHIPPED)
def test_deepspeed_takes_the_shipped_settings(name):
    config = settings(name)
    tuning = Tuning(overlap=True, whole_elements=WHOLE_ELEMENTS, pin_memory=True, cpu_adam=True)
    taken = DeepSpeedConfig(deepspeed_config(config.optim, config.zero, config.model.dtype, tuning))
    zero = taken.zero_config
    assert zero.overlap_comm and zero.param_persistence_threshold == (WHOLE_ELEMENTS if name in MOES else 100_000)
    assert zero.offload_optimizer is None or zero.offload_optimizer.pin_memory
    assert zero.stage == (3 if name in MOES else 2)
    assert (zero.offload_optimizer is not None) == (name == "qwen3_vl_235b_a22b")
    assert taken.bfloat16_config.enabled and taken.gradient_clipping == 1.0
    assert taken.optimizer_params["lr"] == 1e-6
    if name in MOES:
        assert set(ZERO3_LEAF_MODULES) <= set(zero.leaf_module.classes)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_memory_the_comments_promise(name):
    """Of the trainer: weights, 2 bytes of gradient and 12 of optimizer state per parameter that learns. Of vLLM: its
    share, which must hold its weights and a cache for as many full-length responses as make it worth while."""
    config, built = settings(name), model(name)
    gpus = 32 if name == "qwen3_vl_235b_a22b" else 8
    learning = count(p for p in built.parameters() if p.requires_grad)
    weights = 2 * count(built.parameters()) / (gpus if config.zero.stage == 3 else 1)
    updated = 14 * learning / gpus
    sizes = {"qwen3_vl_30b_a3b": [(141e9, False), (80e9, True)], "qwen3_vl_235b_a22b": [(80e9, True)]}
    default, *overridden = sizes.get(name, [(80e9, False)])  # overridden: as its comment advises for less memory
    assert default[1] is config.zero.offload_optimizer
    text, vllm = published_config(name).text_config, config.rollout.vllm
    heads = max(1, text.num_key_value_heads // vllm.tensor_parallel)
    per_token = text.num_hidden_layers * heads * 128 * 2 * 2
    length = config.model.max_prompt_tokens + config.rollout.max_new_tokens
    for memory, offloaded in (default, *overridden):
        share = vllm.gpu_memory_utilization * memory
        assert weights + (0 if offloaded else updated) + share < 0.85 * memory
        cache = share - 2 * count(built.parameters()) / vllm.tensor_parallel - 3e9  # for activations
        assert cache / (length * per_token) > 32  # responses at a time


@pytest.mark.parametrize("name", SHIPPED)
def test_the_model_can_be_cut_as_its_engines_are(name):
    """What vLLM asks of a model that several GPUs share; heads of keys and values may be there more than once."""
    config, hf = settings(name), published_config(name)
    text, vision, ways = hf.text_config, hf.vision_config, config.rollout.vllm.tensor_parallel
    assert config.rollout.engine == "vllm"
    config.rollout.vllm.check_ranks(32 if name == "qwen3_vl_235b_a22b" else 8)
    width = text.moe_intermediate_size if name in MOES else text.intermediate_size
    for size in (text.num_attention_heads, width, vision.num_heads, vision.intermediate_size, text.vocab_size):
        assert size % ways == 0
    assert max(text.num_key_value_heads, ways) % min(text.num_key_value_heads, ways) == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_a_batch_can_be_dealt_to_the_gpus_the_comments_name(name):
    config = settings(name)
    gpus = 32 if name == "qwen3_vl_235b_a22b" else 8
    assert config.rollout.prompts_per_step % (gpus * config.batch.mini_batches) == 0
    image_tokens = config.model.max_pixels // 32**2
    assert image_tokens < config.model.max_prompt_tokens, "an image at max_pixels must leave room for the question"
    # One pass over the 2101 training rows of Geometry3K, times the 15 of the comment.
    passes = config.steps * config.rollout.prompts_per_step / 2101
    assert 14 < passes < 16
