"""Tiny Qwen3-VL models built from config, with their own tokenizer and processor (`sapo-vl init-tiny`).

They are real transformers models of about one million parameters that learn simple pictures on a CPU in
minutes. The tokenizer is a byte-level BPE trained on a recipe's own texts, so any text can be encoded and
a recipe's words are one token each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from sapo_vl.model.export import save_hf_folder

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # one token each, and part of the decoded text

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 8, 2  # one image token covers 16 x 16 pixels
MAX_IMAGE_PIXELS = 128 * 128


def train_tokenizer(texts: Iterable[str], vocab_size: int = 768) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, learned from `texts`; the same texts give the same tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # lstrip: "a </think>" costs no extra token for the space before the tag.
    bpe.add_tokens([AddedToken(tag, lstrip=True, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    size = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": MAX_IMAGE_PIXELS}
    image = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**image),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, size=size),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(
    kind: Literal["dense", "moe"], tokenizer: PreTrainedTokenizerFast, sizes: Mapping[str, int] | None = None
) -> Qwen3VLConfig | Qwen3VLMoeConfig:
    """Sizes that reach useful accuracy in minutes on one core. `sizes` replaces those of the language model.

    The spread of the initial weights is wider than the default 0.02, which starts slowly at this width. Expert
    sizes differ from the hidden size in both layouts, since transformers tells the layouts apart by shape.
    """
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.06,
    }
    if kind == "moe":
        text |= {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
        }
        text |= {"mlp_only_layers": [], "norm_topk_prob": True}
    common: dict[str, Any] = {
        "text_config": text | dict(sizes or {}),
        "vision_config": vision,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
    }
    return Qwen3VLMoeConfig(**common) if kind == "moe" else Qwen3VLConfig(**common)


def build_tiny(
    kind: Literal["dense", "moe"],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> PreTrainedModel:
    """A freshly initialised tiny model; the seed fixes its weights. For `sizes` see tiny_config."""
    config = tiny_config(kind, tokenizer, sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(config, Qwen3VLMoeConfig):
            model: PreTrainedModel = Qwen3VLMoeForConditionalGeneration(config)
        else:
            model = Qwen3VLForConditionalGeneration(config)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def init_tiny(kind: Literal["dense", "moe"], texts: Iterable[str], out: Path, seed: int = 0) -> Path:
    """Writes a complete Hugging Face folder (weights, config, tokenizer, processor) to `out`."""
    roles = ["user\n", "assistant\n", "system\n"] * 1000  # the words of the chat template itself
    tokenizer = train_tokenizer([*texts, *roles])
    model = build_tiny(kind, tokenizer, seed)
    save_hf_folder(model, tiny_processor(tokenizer), out)
    return out
