"""Tiny Qwen3-VL and Qwen3-VL-MoE folders as people have them: written by stock transformers, nothing of ours.

A `Folder` says what a folder is like; `build` writes it. Which ones are built: stock_matrix.py and stock_odd.py.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

HEAD_DIM, MROPE, THETA = 32, [6, 5, 5], 5_000_000  # sections of half a head
PATCH, MERGE = 16, 2  # one image token is 32 x 32 pixels
INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

# Their ids come behind those of the ordinary tokens, as on the hub.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEXTS = ("How many red circles are there? Which has more squares? Give a number. answer yes no boxed", "user assistant")
TEMPLATE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- if m.content is string -%}{{- m.content -}}{%- else -%}{%- for c in m.content -%}"
    "{%- if c.type == 'image' or 'image' in c -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif c.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in c -%}{{- c.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Sizes:
    """Of the language model and the vision tower. Expert sizes are such that the two layouts differ in shape."""

    hidden: int = 96
    inner: int = 128
    layers: int = 3
    heads: int = 3
    kv_heads: int = 1
    num_experts: int = 4
    experts_per_token: int = 2
    expert_inner: int = 64
    vision_depth: int = 2
    deepstack: tuple[int, ...] = (0, 1)  # one in the last layer of the language model would learn nothing


@dataclass(frozen=True)
class Folder:
    """What a model folder is like. Each field with a Literal or a bool is an axis of the matrix."""

    experts: Literal["none", "hub", "runtime"] = "none"
    """none = dense; hub = [E, H, 2I], as released; runtime = [E, 2I, H], as `save_pretrained` of a built model."""
    tied: bool = True  # top-level tie_word_embeddings, and whether the head is the embedding matrix
    inner_tie: Literal["absent", "true", "false"] = "absent"  # text_config.tie_word_embeddings, which decides nothing
    rope: Literal["hub", "new"] = "new"  # rope_scaling and rope_theta (transformers 4), or rope_parameters (5)
    shards: bool = False  # several weight files and an index, or one file
    dtype: Literal["float32", "bfloat16"] = "float32"
    processor: Literal["hub_json", "hub_jinja", "one"] = "one"
    """hub_*: preprocessor_config.json, video_preprocessor_config.json, the tokenizer of the released models and
    chat_template.json or .jinja; one: processor_config.json, as transformers 5 saves it."""
    eos: Literal["one", "list", "pad"] = "one"  # of the generation config; pad: the pad token is the eos token
    padded_vocabulary: bool = False  # more embedding rows than tokens
    attention_bias: bool = False
    sizes: Sizes = Sizes()

    @property
    def moe(self) -> bool:
        return self.experts != "none"

    @property
    def alike(self) -> bool:
        """Some expert weight has the same shape in both layouts."""
        return self.moe and self.sizes.hidden in (self.sizes.expert_inner, 2 * self.sizes.expert_inner)

    def __str__(self) -> str:
        """The values that differ from the defaults of a folder that transformers 5 saves."""
        words = ["dense" if not self.moe else f"moe({self.experts})", "tied" if self.tied else "untied"]
        words += [f"inner={self.inner_tie}", f"rope={self.rope}", "shards" if self.shards else "file"]
        words += ["fp32" if self.dtype == "float32" else "bf16", self.processor, f"eos={self.eos}"]
        return " ".join(words + ["padded"] * self.padded_vocabulary + ["bias"] * self.attention_bias)


# --- building --------------------------------------------------------------------------------------


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of a small byte-level BPE."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(TEXTS * 10, trainer)
    state = json.loads(raw.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def tokenizer(pad: str = "<|endoftext|>") -> Qwen2Tokenizer:
    """The class of the released models; special tokens come behind the ordinary ones."""
    vocab, merges = vocabulary()
    made = Qwen2Tokenizer(vocab=dict(vocab), merges=list(merges), unk_token=None, eos_token="<|im_end|>", pad_token=pad)
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    made.chat_template = TEMPLATE
    return made


def model_config(folder: Folder, tok: Any) -> Any:
    """The transformers config, with its own defaults for whatever is not said here."""
    s, ids = folder.sizes, {name: tok.convert_tokens_to_ids(name) for name in SPECIAL}
    text: dict[str, Any] = {
        "vocab_size": 64 * (len(tok) // 64 + 2) if folder.padded_vocabulary else len(tok),
        "hidden_size": s.hidden,
        "intermediate_size": s.inner,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": MROPE,
            "mrope_interleaved": True,
            "rope_theta": THETA,
        },
        "attention_bias": folder.attention_bias,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    if folder.moe:
        text |= {
            "num_experts": s.num_experts,
            "num_experts_per_tok": s.experts_per_token,
            "moe_intermediate_size": s.expert_inner,
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
        }
    vision = {
        "depth": s.vision_depth,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": s.hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": list(s.deepstack),
    }
    return AutoConfig.for_model(
        "qwen3_vl_moe" if folder.moe else "qwen3_vl",
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=folder.tied,
    )


def build(folder: Folder, out: Path, seed: int) -> Path:
    """Writes the folder. The same seed gives the same bytes."""
    tok = tokenizer("<|im_end|>" if folder.eos == "pad" else "<|endoftext|>")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(model_config(folder, tok))
        with torch.no_grad():
            for p in model.parameters():  # biases and norms are constants otherwise, and a lost one would not show
                p += 0.05 * torch.randn(p.shape)
    model = model.to(getattr(torch, folder.dtype))
    model.generation_config = _generation_config(folder, tok)
    model.save_pretrained(out, max_shard_size=_nbytes(model) * 2 // 5 if folder.shards else "5GB")
    if folder.experts == "hub":
        rewrite(out, lambda name, t: t.transpose(1, 2) if name.endswith(EXPERTS) else t)
    _rewrite_config(folder, out / "config.json")
    _save_processor(folder, tok, out)
    return out


def _nbytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _generation_config(folder: Folder, tok: Any) -> GenerationConfig:
    end, text_end = tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    if folder.eos == "list":  # word for word the released one
        sampling = {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.0}
        ends: dict[str, Any] = {"bos_token_id": text_end, "pad_token_id": text_end, "eos_token_id": [end, text_end]}
        return GenerationConfig(**ends, **sampling)
    return GenerationConfig(eos_token_id=end, pad_token_id=end if folder.eos == "pad" else text_end)


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files, as it is there; a name in two files is an error."""
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        part = load_file(path)
        assert not set(found) & set(part), f"{path} repeats {set(found) & set(part)}"
        found |= part
    return found


def rewrite(folder: Path, change: Any) -> None:
    """`change(name, tensor)` for every tensor, file by file; None leaves it out (of the file, not of the index)."""
    for path in weight_files(folder):
        changed = {name: change(name, t) for name, t in load_file(path).items()}
        kept = {name: t.contiguous() for name, t in changed.items() if t is not None}
        save_file(kept, path, metadata={"format": "pt"})


def edit_json(path: Path, change: Any) -> None:
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state, indent=2))


def _rewrite_config(folder: Folder, path: Path) -> None:
    """The keys as the folder wants them, by hand: transformers writes its own choice of them."""

    def change(state: dict[str, Any]) -> None:
        text, vision = state["text_config"], state["vision_config"]
        text.pop("tie_word_embeddings", None)
        if folder.inner_tie != "absent":
            text["tie_word_embeddings"] = folder.inner_tie == "true"
        if folder.rope == "new":
            return
        state["transformers_version"] = "4.57.1"
        rope = text.pop("rope_parameters")
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = rope
        text["dtype"] = state.pop("dtype")
        vision.pop("rope_parameters", None)
        vision["model_type"] = state["model_type"]
        for key in ("pad_token_id", "sliding_window", "output_router_logits"):
            text.pop(key, None)
        if "num_local_experts" in text:
            text["num_experts"] = text.pop("num_local_experts")

    edit_json(path, change)


def _save_processor(folder: Folder, tok: Qwen2Tokenizer, out: Path) -> None:
    size = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
    common: dict[str, Any] = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2, "size": size}
    common |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if folder.processor == "one":
        images, videos = Qwen2VLImageProcessor(**common), Qwen3VLVideoProcessor(**common)
        Qwen3VLProcessor(images, tok, videos, chat_template=TEMPLATE).save_pretrained(out)
        return
    # As the hub has them: four files of the processor and five of the tokenizer, two of which say the same.
    (out / "preprocessor_config.json").write_text(
        json.dumps(
            common | {"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}
        )
    )
    (out / "video_preprocessor_config.json").write_text(
        json.dumps(common | {"processor_class": "Qwen3VLProcessor", "video_processor_type": "Qwen3VLVideoProcessor"})
    )
    vocab, merges = vocabulary()
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (out / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges))
    tok.backend_tokenizer.save(str(out / "tokenizer.json"))
    added = {
        str(tok.convert_tokens_to_ids(t)): {
            "content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
        }
        for t in SPECIAL
    }  # fmt: skip
    about = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": [t for t in SPECIAL if t != "<|endoftext|>"],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": tok.eos_token,
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": tok.pad_token,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, ensure_ascii=False))
    if folder.processor == "hub_json":
        (out / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        (out / "chat_template.jinja").write_text(TEMPLATE)
