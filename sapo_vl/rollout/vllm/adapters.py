"""New weights as adapters alone: a file of (A, B) pairs, merged by a server's workers into the model they started from.

The trainer writes this file in place of all weights; a worker reads the model's own folder beside it and merges as the
trainer would (`model.lora.merged`), so on the same kind of device it ends with the same bits. What a server has is a
function of the two folders and of nothing that it was given before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sapo_vl.learning.weights import HubAdapter
from sapo_vl.model.folder import ModelError, hub_layout, local_folder, read_headers
from sapo_vl.model.identity import model_digest
from sapo_vl.model.lora import merged

FILE = "adapters.safetensors"
SCALING = "scaling"  # key of the file's metadata: weight -> alpha / rank, JSON


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """What a trainer sends where it sends adapters alone."""

    adapters: Callable[[], Iterator[HubAdapter]]
    base: Path  # the folder of the model that they belong to
    base_bytes: int  # of its weights, which every server reads at a sync


@dataclass(frozen=True, slots=True)
class _Pair:
    a: Tensor
    b: Tensor
    scaling: float


def base_digest(path: str, revision: str | None = None) -> str:
    """Says which model lies there, wherever it lies. Raises ModelError."""
    return model_digest(str(local_folder(path, revision)))


def write_adapters(adapters: Iterator[HubAdapter], folder: Path) -> int:
    """How many tensors were written. Raises OSError or SafetensorError."""
    tensors: dict[str, Tensor] = {}
    scaling: dict[str, float] = {}
    for adapter in adapters:
        scaling[adapter.name] = adapter.scaling
        for part, value in (("a", adapter.a), ("b", adapter.b)):
            tensors[f"{adapter.name}.{part}"] = value.detach().to("cpu").contiguous()
    save_file(tensors, folder / FILE, metadata={SCALING: json.dumps(scaling)})
    return len(tensors)


def read_adapters(folder: Path, tensors: int, base: Mapping[str, Any]) -> dict[str, _Pair]:
    """Weight -> its adapter. Raises ModelError unless the file has so many tensors, all for weights of `base`."""
    try:
        with safe_open(folder / FILE, framework="pt") as f:
            scaling: dict[str, float] = json.loads((f.metadata() or {})[SCALING])
            found = len(f.keys())
            pairs = {
                name: _Pair(f.get_tensor(f"{name}.a"), f.get_tensor(f"{name}.b"), float(scale))
                for name, scale in scaling.items()
            }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{folder / FILE} cannot be read as this server sees it ({error}); is the file system shared?"
        ) from error
    if found != tensors or 2 * len(pairs) != tensors:
        raise ModelError(f"{folder / FILE} has {found} of {tensors} tensors; is the file system shared?")
    if strangers := sorted(set(pairs) - set(base)):
        raise ModelError(f"{folder / FILE} has an adapter of {strangers[0]}, which is no weight of this server's model")
    return pairs


def adapted_weights(
    base: Path, adapters: Path, tensors: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """All weights of `base`, in hub layout, with adapters merged as a trainer in `dtype` merges them, on `device`.

    What has no adapter stays in its file until it is copied. Raises ModelError before the first weight or never.
    """
    headers = read_headers(base)
    return _adapted(
        base, sorted({w.file for w in headers.values()}), read_adapters(adapters, tensors, headers), dtype, device
    )


def _adapted(
    base: Path, files: list[str], pairs: Mapping[str, _Pair], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(base / file, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                value = f.get_tensor(name)
                if (pair := pairs.get(name)) is not None:
                    # Adapters belong to the layout of the model in memory; the way there and back is the same.
                    inner = hub_layout({name: value.to(device, dtype)})[name]
                    inner = merged(inner, pair.a.to(device), pair.b.to(device), pair.scaling)
                    value = hub_layout({name: inner})[name]
                yield name, value
