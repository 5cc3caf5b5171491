"""Stock folders with something odd about them: some that train all the same (ODD), and some that cannot be meant
(BROKEN), with what the refusal must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from stock_matrix import RELEASED
from stock_models import (
    EMBEDDING,
    EXPERTS,
    HEAD,
    INDEX,
    Folder,
    Sizes,
    build,
    edit_json,
    read_weights,
    rewrite,
    weight_files,
)

SINGLE = "model.safetensors"
DENSE = Folder()
UNTIED = Folder(tied=False)
SHARDED = Folder(shards=True)
MOE = replace(RELEASED["30B-A3B"], dtype="float32", sizes=Sizes())
LAYER = "model.language_model.layers.1."

# Expert sizes with which one of the two expert weights has the same shape in both layouts.
GATE_ALIKE, DOWN_ALIKE = Sizes(hidden=128, expert_inner=64), Sizes(hidden=64, expert_inner=64)

Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Odd:
    """`folder` as it must be taken, which `edit` makes of `built`."""

    folder: Folder
    edit: Edit = lambda _: None
    built: Folder | None = None
    warns: str = ""  # what the run must say about it

    def build(self, out: Path, seed: int) -> Path:
        build(self.built or self.folder, out, seed)
        self.edit(out)
        return out


@dataclass(frozen=True)
class Broken:
    """`says`: what the message must hold, the place and what is wrong there."""

    folder: Folder
    edit: Edit
    says: tuple[str, ...]


def in_json(name: str, **values: Any) -> Edit:
    """Sets keys of a JSON file; a value of None takes the key away."""

    def change(state: dict[str, Any]) -> None:
        for key, value in values.items():
            state.pop(key, None)
            if value is not None:
                state[key] = value

    return lambda folder: edit_json(folder / name, change)


def in_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    """Changes the dict of a folder's only weight file."""

    def edit(folder: Path) -> None:
        state = load_file(folder / SINGLE)
        change(state)
        save_file({n: t.contiguous() for n, t in state.items()}, folder / SINGLE, metadata={"format": "pt"})

    return edit


def in_index(change: Callable[[dict[str, str]], object]) -> Edit:
    return lambda folder: edit_json(folder / INDEX, lambda state: change(state["weight_map"]))


def without(file: str) -> Edit:
    return lambda folder: (folder / file).unlink()


def all_edits(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


# --- trained all the same --------------------------------------------------------------------------


def head_of(scale: float) -> Edit:
    """A head in the file beside the embedding: its copy (1.0), or another."""
    return in_weights(lambda state: state.update({HEAD: (scale * state[EMBEDDING]).clone()}))


def head_alone(folder: Path) -> None:
    """Tied, with the one matrix under the name of the head."""
    rewrite(folder, lambda name, t: t)
    in_weights(lambda state: state.update({HEAD: state.pop(EMBEDDING)}))(folder)


ODD: dict[str, Odd] = {
    "generation_greedy": Odd(
        DENSE, in_json("generation_config.json", do_sample=False, temperature=0.7), warns="temperature"
    ),
    "no_generation_config": Odd(UNTIED, without("generation_config.json")),
    "no_pad_token": Odd(
        replace(DENSE, processor="hub_json"),
        all_edits(
            in_json("tokenizer_config.json", pad_token=None), in_json("generation_config.json", pad_token_id=None)
        ),
    ),
    "head_stored_too": Odd(DENSE, head_of(1.0)),
    "head_differs": Odd(UNTIED, head_of(0.5), built=DENSE, warns="two different weights"),
    "head_alone": Odd(DENSE, head_alone),
    "gate_alike_hub": Odd(replace(MOE, sizes=GATE_ALIKE)),
    "gate_alike_runtime": Odd(replace(MOE, experts="runtime", sizes=GATE_ALIKE)),
    "down_alike_hub": Odd(replace(MOE, sizes=DOWN_ALIKE)),
    "down_alike_runtime": Odd(replace(MOE, experts="runtime", sizes=DOWN_ALIKE)),
}


# --- refused ---------------------------------------------------------------------------------------


def second_shard(folder: Path) -> Path:
    return weight_files(folder)[1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forget_second_shard(folder: Path) -> None:
    """The file is there; the index does not know it."""
    gone = second_shard(folder).name
    edit_json(folder / INDEX, lambda state: [state["weight_map"].pop(n) for n in load_file(folder / gone)])


def halve_layouts(folder: Path) -> None:
    rewrite(folder, lambda name, t: t.transpose(1, 2) if LAYER in name and name.endswith(EXPERTS) else t)


def pickled_only(folder: Path) -> None:
    torch.save(read_weights(folder), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def garbled_header(folder: Path) -> None:
    path = second_shard(folder)
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


BROKEN: dict[str, Broken] = {
    "missing_layer": Broken(
        DENSE,
        in_weights(lambda s: [s.pop(n) for n in list(s) if n.startswith(LAYER)]),
        (f"{LAYER}input_layernorm.weight", "missing"),
    ),
    "missing_head": Broken(UNTIED, in_weights(lambda s: s.pop(HEAD)), (HEAD, "missing")),
    "missing_embedding_and_head": Broken(DENSE, in_weights(lambda s: s.pop(EMBEDDING)), (EMBEDDING,)),
    "extra_weights": Broken(
        DENSE,
        in_weights(lambda s: s.update({"model.language_model.layers.7.mlp.up_proj.weight": torch.ones(2)})),
        ("model.language_model.layers.7.mlp.up_proj.weight",),
    ),
    "wrong_shape": Broken(
        DENSE,
        in_weights(lambda s: s.update({EMBEDDING: s[EMBEDDING][:-3]})),
        (EMBEDDING, "[325, 96]", "[328, 96]"),
    ),
    "more_rows_than_the_config": Broken(
        replace(UNTIED, padded_vocabulary=True),
        lambda folder: edit_json(folder / "config.json", lambda c: c["text_config"].update(vocab_size=328)),
        (EMBEDDING, HEAD, "[448, 96]"),
    ),
    "cut_off_shard": Broken(
        SHARDED, lambda f: cut(second_shard(f)), ("model-00002-of-00003.safetensors", "cut off")
    ),
    "no_shard": Broken(SHARDED, lambda f: second_shard(f).unlink(), ("model-00002-of-00003.safetensors",)),
    "empty_shard": Broken(SHARDED, lambda f: second_shard(f).write_bytes(b""), ("model-00002-of-00003",)),
    "garbled_header": Broken(SHARDED, garbled_header, ("model-00002-of-00003.safetensors",)),
    "shard_not_in_the_index": Broken(SHARDED, forget_second_shard, ("missing", "model.")),
    "index_places_a_weight_elsewhere": Broken(
        SHARDED,
        in_index(lambda m: m.update({EMBEDDING: "model-00003-of-00003.safetensors"})),
        (EMBEDDING, "model-00003-of-00003.safetensors"),
    ),
    "index_that_is_none": Broken(SHARDED, lambda f: (f / INDEX).write_text("{"), (INDEX,)),
    "index_out_of_the_folder": Broken(
        SHARDED, in_index(lambda m: m.update({EMBEDDING: "../model.safetensors"})), ("../model.safetensors",)
    ),
    "no_weights": Broken(DENSE, without(SINGLE), (SINGLE,)),
    "pickled_only": Broken(DENSE, pickled_only, ("pytorch_model.bin", "safetensors")),
    "two_expert_layouts": Broken(replace(MOE, shards=False), halve_layouts, ("two layouts", LAYER)),
    "generation_beyond_repair": Broken(
        DENSE, in_json("generation_config.json", num_return_sequences=3, num_beams=1), ("generation_config.json",)
    ),
    "generation_that_is_none": Broken(
        DENSE, lambda f: (f / "generation_config.json").write_text("["), ("generation_config.json",)
    ),
    "config_of_the_wrong_kind": Broken(
        DENSE, in_json("config.json", model_type="qwen2_5_vl"), ("qwen2_5_vl", "qwen3_vl")
    ),
    # transformers makes a tokenizer of what is there: of eight tokens, or one that cuts "<|image_pad|>" into letters.
    "no_tokenizer": Broken(DENSE, without("tokenizer.json"), ("tokenizer",)),
    "no_special_tokens": Broken(
        replace(DENSE, processor="hub_json"),
        all_edits(without("tokenizer.json"), without("tokenizer_config.json")),
        ("tokenizer",),
    ),
}  # fmt: skip
