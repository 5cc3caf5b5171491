"""Rewriting a model folder in the layout of the hub, which transformers and vLLM load: `sapo-vl convert`.

Expert weights held as transformers holds them are turned, and experts stored one by one are joined. Values, dtype,
config, tokenizer and processor stay. Streamed: memory for one weight and one shard.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from sapo_vl.model.export import is_carried, put_in_place
from sapo_vl.model.folder import (
    EXPERT_WEIGHTS,
    ModelError,
    StoredWeight,
    examine,
    local_folder,
    read_config,
    read_headers,
    write_weights,
)

_ONE_EXPERT = re.compile(r"(?P<stem>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate_proj|up_proj|down_proj)\.weight")


def convert(path: str, out: Path, revision: str | None = None) -> dict[str, int]:
    """Writes the model folder `path` anew as `out` and reads it back; {"weights", "turned", "joined"}.

    Raises ModelError if `path` cannot be read or `out` exists. The folder appears under its name only when complete.
    """
    if out.exists():
        raise ModelError(f"{out} exists already; choose another folder or delete this one")
    config = read_config(path, revision)
    folder = local_folder(path, revision)
    weights = read_headers(folder)
    counts = {"weights": 0, "turned": 0, "joined": 0}
    beside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        for file in sorted(folder.iterdir()):
            if is_carried(file):
                shutil.copyfile(file, beside / file.name)
        joined = any(map(_ONE_EXPERT.fullmatch, weights))
        stream = _joined(folder, config, weights, counts) if joined else _turned(path, revision, counts)
        write_weights(_counted(stream, counts), beside)
        if examine(str(beside)).layout == "runtime":
            raise AssertionError("the converted folder is not in the hub's layout")
        put_in_place(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return counts


def _counted(stream: Iterator[tuple[str, Tensor]], counts: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    for name, value in stream:
        counts["weights"] += 1
        yield name, value


def _turned(path: str, revision: str | None, counts: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    folder = examine(path, revision)
    for name, value in _read(folder.path, folder.weights):
        if folder.layout == "runtime" and name.endswith(EXPERT_WEIGHTS):
            counts["turned"] += 1
            value = value.transpose(1, 2)
        yield name, value


def _joined(
    folder: Path, config: PreTrainedConfig, weights: Mapping[str, StoredWeight], counts: dict[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """[I, H] gate and up and [H, I] down of each expert -> [E, H, 2I] and [E, I, H], as the hub has them."""
    experts: dict[str, int] = {}
    for name in weights:
        if match := _ONE_EXPERT.fullmatch(name):
            experts[match["stem"]] = max(experts.get(match["stem"], 0), int(match["expert"]) + 1)
    yield from _read(folder, {n: w for n, w in weights.items() if not _ONE_EXPERT.fullmatch(n)})
    for stem, found in sorted(experts.items()):
        count = max(found, config.get_text_config().num_experts)
        parts = {p: [f"{stem}.{i}.{p}.weight" for i in range(count)] for p in ("gate_proj", "up_proj", "down_proj")}
        if missing := [name for names in parts.values() for name in names if name not in weights]:
            raise ModelError(f"{folder} lacks {missing[0]} (of {count} experts); get it again")
        tensors = {part: torch.stack([_one(folder, weights, name) for name in names]) for part, names in parts.items()}
        counts["joined"] += 3 * count
        yield f"{stem}.gate_up_proj", torch.cat([tensors["gate_proj"], tensors["up_proj"]], dim=1).transpose(1, 2)
        yield f"{stem}.down_proj", tensors["down_proj"].transpose(1, 2)


def _read(folder: Path, weights: Mapping[str, StoredWeight]) -> Iterator[tuple[str, Tensor]]:
    for file in sorted({w.file for w in weights.values()}):
        with safe_open(folder / file, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                if name in weights:
                    yield name, f.get_tensor(name)


def _one(folder: Path, weights: Mapping[str, StoredWeight], name: str) -> Tensor:
    with safe_open(folder / weights[name].file, framework="pt") as f:
        return f.get_tensor(name)
