"""The cases of bench/vs_trl.py: what is trained on what, and the model and data folders of each."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from sapo_vl.data.writer import write_splits
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.tiny import CHAT_TEMPLATE, tiny_config, train_tokenizer
from sapo_vl.types import Problem

PATCH, MERGE = 16, 2  # an image token covers 32 x 32 pixels, as in the published models
PIXELS = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 1024 * 1024}  # in both, or one side would scale down
SMALL = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
SMALL_EYE = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
LARGE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
LARGE_EYE = SMALL_EYE | {"depth": 4, "hidden_size": 256, "intermediate_size": 768, "num_heads": 4}
WORDS = ("how", "many", "red", "blue", "green", "dots", "squares", "lines", "are", "there", "in", "this", "picture")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A rollout batch of `prompts` x `group` responses, trained on in two updates."""

    name: str
    kind: Literal["dense", "moe"] = "dense"
    sides: tuple[int, ...]  # of the pictures, in pixels, prompt by prompt in turn; () = text only
    tokens: int  # of a response, at most
    prompts: int
    group: int
    words: tuple[int, int] = (6, 6)  # of a question, from and to
    stop: float = 0.0  # how much likelier the end of a response is made, as the length of its embedding; 0 = not
    sizes: dict[str, int] = field(default_factory=lambda: SMALL)
    eye: dict[str, Any] = field(default_factory=lambda: SMALL_EYE)
    reach: float  # what the ratio is to reach


CASES = {
    case.name: case
    for case in (
        Case(name="dense64", sides=(64,), tokens=16, prompts=16, group=8, reach=2.0),
        Case(name="dense256", sides=(256,), tokens=32, prompts=8, group=8, reach=5.0),
        Case(name="moe256", kind="moe", sides=(256,), tokens=32, prompts=8, group=8, reach=5.0),
        Case(name="dense512", sides=(512,), tokens=64, prompts=4, group=16, reach=8.0),
        Case(name="text", sides=(), tokens=32, prompts=16, group=8, words=(60, 60), reach=1.0),
        Case(
            name="ragged", sides=(64, 128, 192, 256), tokens=48, prompts=8, group=8, words=(3, 60), stop=3.0, reach=1.0
        ),
        Case(name="50M", sides=(256,), tokens=32, prompts=4, group=8, sizes=LARGE, eye=LARGE_EYE, reach=1.0),
    )
}
# For tests: what TRL's first update gave for it is recorded.
MINI = {
    kind: Case(
        name=f"mini_{kind}", kind=kind, sides=(64, 32), tokens=6, prompts=4, group=3, words=(2, 9), stop=3.0, reach=0.0
    )
    for kind in ("dense", "moe")
}


def picture(side: int, draw: np.random.Generator) -> Image.Image:
    """Coloured squares: it packs well, as drawn pictures do."""
    squares = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    return squares.resize((side, side), Image.Resampling.NEAREST)


def problems(case: Case, count: int) -> list[Problem]:
    """Questions of the case, with their pictures; the same ones every time."""
    draw, choose = np.random.default_rng(0), random.Random(0)
    made = []
    for i in range(count):
        text = " ".join(choose.choices(WORDS, k=choose.randint(*case.words)))
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        images = ()
        if case.sides:
            content.insert(0, {"type": "image"})
            images = (picture(case.sides[i % len(case.sides)], draw),)
        turn = {"role": "user", "content": content}
        made.append(Problem(id=f"p{i}", task="t", messages=(turn,), images=images, answer="0", reward="number"))
    return made


def write_data(case: Case, folder: Path) -> None:
    """A data set of eight rollout batches, and as many rows as a test split must have."""
    rows = problems(case, 8 * case.prompts)
    write_splits({"train": rows, "test": rows[:1]}, folder, recipe="vs_trl", arguments={})


def build_model(case: Case) -> tuple[Any, Qwen3VLProcessor]:
    """The model of a case, with random weights, and its processor."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50 + ["user\n", "assistant\n"] * 1000, vocab_size=400)
    config = tiny_config(case.kind, tokenizer, case.sizes)
    width = {"patch_size": PATCH, "out_hidden_size": case.sizes["hidden_size"]}
    config.vision_config = type(config.vision_config)(**config.vision_config.to_dict() | case.eye | width)
    assert isinstance(config, Qwen3VLConfig | Qwen3VLMoeConfig)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build = Qwen3VLMoeForConditionalGeneration if case.kind == "moe" else Qwen3VLForConditionalGeneration
        model: Any = build(config)  # type: ignore[arg-type]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if case.stop:  # tied: the row of the embedding is that of the output too, and its length the spread of its logit
        with torch.no_grad():
            model.get_input_embeddings().weight[tokenizer.eos_token_id] *= case.stop
    return model, _processor(tokenizer)


def _processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, size=PIXELS, **mean),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, size=PIXELS),
        chat_template=CHAT_TEMPLATE,
    )


def write_model(case: Case, folder: Path) -> int:
    """Writes the model folder; returns the number of its parameters."""
    model, processor = build_model(case)
    save_hf_folder(model, processor, folder)
    return sum(p.numel() for p in model.parameters())
