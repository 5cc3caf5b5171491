"""Weights out of a model folder, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import Tensor

from sapo_vl.model.folder import ModelFolder


def folder_weights(folder: ModelFolder, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the folder as its files have it, in `dtype`; the memory of one. Raises SafetensorError or OSError
    if a file cannot be read any more."""
    for file in sorted({w.file for w in folder.weights.values()}):
        with safe_open(folder.path / file, framework="pt") as f:
            for name in sorted(set(f.keys()) & set(folder.weights)):
                yield name, f.get_tensor(name).to(dtype)
