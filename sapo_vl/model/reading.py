"""Values out of the files of a model folder: each weight, or the piece of it that this rank keeps, and nothing else.

Files are read in slices that go where they belong at once, so a rank needs its own share and one slice. Experts that
lie as on the hub are turned on the way, one matrix at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from sapo_vl.model.errors import ModelError
from sapo_vl.model.folder import EXPERT_WEIGHTS, HEAD, ModelFolder

SLICE_BYTES = 64 * 2**20  # read at a time, or one matrix of an expert


def folder_weights(folder: ModelFolder, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the folder as its files have it, in `dtype`; the memory of one. Raises SafetensorError or OSError
    if a file cannot be read any more."""
    for file in sorted({w.file for w in folder.weights.values()}):
        with safe_open(folder.path / file, framework="pt") as f:
            for name in sorted(set(f.keys()) & set(folder.weights)):
                yield name, f.get_tensor(name).to(dtype)


@dataclass(frozen=True, slots=True)
class _Part:
    """A weight of the model, or this rank's piece of it."""

    shape: tuple[int, ...]  # of the whole
    start: int  # the first value of the piece, in the flat whole
    values: Tensor  # [n] of the model, to be filled

    @property
    def count(self) -> int:
        """Values that the piece has; what is left of it is padding."""
        return max(0, min(self.values.numel(), math.prod(self.shape) - self.start))


def read_weights(model: nn.Module, folder: ModelFolder, device: torch.device) -> None:
    """Fills the parameters of `model` from the folder. They come to `device`; pieces of ZeRO-3 stay where they are.

    Raises ModelError naming weights of the model that the folder has not, or files that are not as they were examined;
    SafetensorError or OSError if one cannot be read.
    """
    parts = _parts(model, folder, device)
    by_file: dict[str, list[str]] = {}
    for name in sorted(parts):
        by_file.setdefault(folder.weights[name].file, []).append(name)
    for file, names in sorted(by_file.items()):
        with safe_open(folder.path / file, framework="pt") as f:
            for name in names:
                view, part = f.get_slice(name), parts[name]
                turned = folder.layout == "hub" and name.endswith(EXPERT_WEIGHTS)
                stored = (part.shape[0], part.shape[2], part.shape[1]) if turned else part.shape
                if tuple(view.get_shape()) != stored:
                    raise ModelError(
                        f"{folder.path / file}: {name} is {list(view.get_shape())}, and was {list(stored)} a moment "
                        "ago; something writes into this folder"
                    )
                _fill(part, view, turned=turned)


def assign_mapped(model: nn.Module, folder: ModelFolder, dtype: torch.dtype) -> None:
    """The parameters of `model` become views of the folder's files, mapped into memory and read where they are used.

    Raises ModelError naming weights that the folder has not or has in another dtype; RuntimeError for another shape.
    """
    mapped: dict[str, Tensor] = {}
    for file in sorted({w.file for w in folder.weights.values()}):
        with safe_open(folder.path / file, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                turned = folder.layout == "hub" and name.endswith(EXPERT_WEIGHTS)
                mapped[name] = f.get_tensor(name).transpose(1, 2) if turned else f.get_tensor(name)
    other = [name for name, value in mapped.items() if value.dtype != dtype]
    if other:
        raise ModelError(f"{folder.path}: {other[0]} is {mapped[other[0]].dtype}, not {dtype}")
    lacking = model.load_state_dict(mapped, strict=False, assign=True).missing_keys
    if missing := [name for name in lacking if not (folder.tied and name == HEAD)]:
        raise ModelError(f"{folder.path} lacks {len(missing)} weights of the model, {missing[0]} among them")
    for module in model.modules():
        turned = [p for p in module.parameters(recurse=False) if not p.is_contiguous()]
        if turned:
            _straighten_while_used(module, turned)


def _straighten_while_used(module: nn.Module, turned: list[nn.Parameter]) -> None:
    """The experts of a layer are copied in order for its pass, so that products add up as in a loaded model."""
    views = [p.data for p in turned]

    def before(*_: Any) -> None:
        for p in turned:
            p.data = p.data.contiguous()

    def after(*_: Any) -> None:
        for p, view in zip(turned, views, strict=True):
            p.data = view

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def _parts(model: nn.Module, folder: ModelFolder, device: torch.device) -> dict[str, _Part]:
    """What is to be read, by the name in the folder; a weight that has several names once."""
    names: dict[int, list[str]] = {}
    values: dict[int, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
        values[id(value)] = value
    missing = [own[0] for own in names.values() if not any(name in folder.weights for name in own)]
    if missing:
        raise ModelError(f"{folder.path} lacks {len(missing)} weights of the model, {missing[0]} among them")
    return {
        next(name for name in own if name in folder.weights): _part(values[key], device) for key, own in names.items()
    }


def _part(value: Any, device: torch.device) -> _Part:
    piece = getattr(value, "ds_tensor", None)
    if piece is not None:
        return _Part(tuple(value.ds_shape), dist.get_rank() * piece.numel(), piece.data)
    if value.device != device:
        value.data = torch.empty_like(value, device=device)
    return _Part(tuple(value.shape), 0, value.data.view(-1))


def _fill(part: _Part, view: Any, *, turned: bool) -> None:
    """Copies values start ... start + count of the flat weight, row by row of its first dimension."""
    part.values[part.count :].zero_()
    row = math.prod(part.shape[1:])  # values
    at_a_time = 1 if turned else max(1, SLICE_BYTES // (row * part.values.element_size()))
    first, end = part.start // row, -(-(part.start + part.count) // row)
    for low in range(first, end if part.count else first, at_a_time):
        high = min(low + at_a_time, end)
        begin, stop = max(part.start, low * row), min(part.start + part.count, high * row)
        target = part.values[begin - part.start : stop - part.start]
        rows = view[low:high]
        if not turned:
            target.copy_(rows.reshape(-1)[begin - low * row : stop - low * row])
            continue
        matrix = rows[0].to(target.device).t()  # [in, out] in the file
        if stop - begin == row:
            target.view(matrix.shape).copy_(matrix)
        else:
            target.copy_(matrix.reshape(-1)[begin - low * row : stop - low * row])
