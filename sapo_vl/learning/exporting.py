"""A Hugging Face folder from a checkpoint, in one process and without an engine: `sapo-vl export`.

What is written is what `final/` would have been after that step, by the same code from the same names; only where the
values come from differs. Memory: a few shards of the model, whatever its size.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sapo_vl.distributed import World
from sapo_vl.learning.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    CheckpointError,
    complete_checkpoints,
    find_damage,
    newest_checkpoint,
    read_manifest,
)
from sapo_vl.learning.final import ExportError, check_values, tensor_digest, write_proved
from sapo_vl.learning.shards import Stored, stored_weights
from sapo_vl.learning.weights import in_hub_layout
from sapo_vl.model.export import put_in_place
from sapo_vl.model.folder import EMBEDDING, HEAD, NAMES_SHOWN, ModelError, ModelFolder, examine
from sapo_vl.model.loading import DTYPES, ModelConfig
from sapo_vl.model.lora import add_lora
from sapo_vl.record.identity import CONFIG_FILES

log = logging.getLogger(__name__)
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GIB = 2**30
_NAMED = re.compile(r"(superseded_)?step_\d{8,}(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    checkpoint: Path
    step: int
    weights: int
    bytes: int
    digest: str  # over names, shapes and values, as in summary.json of a run; "" of adapters


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest whole one of the run in the folder `path`.

    A cold start's count where the training has none. Raises CheckpointError if there is none, or a file of the one
    that is named is not as it was written.
    """
    if (path / MANIFEST).exists() or _NAMED.fullmatch(path.name):
        if damage := find_damage(path, World.alone()):
            raise CheckpointError(f"{path} is no whole checkpoint: {damage}; export another one")
        return path
    roots = [path / name for name in CHECKPOINTS.values()]
    for root in roots:
        if (newest := newest_checkpoint(root, World.alone())) is not None:
            return newest
    damaged = [folder.name for root in roots for folder in complete_checkpoints(root)]
    raise CheckpointError(
        f"{path} is no checkpoint (it has no {MANIFEST}), and no run folder with one in "
        f"{' or '.join(f'{name}/' for name in CHECKPOINTS.values())} that is whole"
        + (f" (damaged: {', '.join(damaged)})" if damaged else "")
        + "; name a folder .../checkpoints/step_N"
    )


def model_of_run(checkpoint: Path, model: str = "") -> ModelConfig:
    """The section `model` of the config that the run of a checkpoint has in its folder; with `model` for its path.

    Raises CheckpointError if there is no such config.
    """
    root = checkpoint.resolve().parent
    stage = next((stage for stage, name in CHECKPOINTS.items() if name == root.name), "train")
    path = root.parent / CONFIG_FILES[stage]
    try:
        given = ModelConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValidationError, yaml.YAMLError, KeyError, TypeError, UnicodeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path}, which says how the model of {checkpoint} was set up, cannot be read ({why}); a checkpoint is "
            "exported from where its run left it, RUN/checkpoints/step_N"
        ) from error
    if checkpoint.name.startswith("superseded_"):
        log.warning(
            "%s was set aside by a later run; dtype and adapters are those of that run, in %s", checkpoint, path
        )
    return given.model_copy(update={"path": model, "revision": None}) if model else given


def export(checkpoint: Path, config: ModelConfig, out: Path, *, only_adapters: bool = False) -> Exported:
    """Writes the model of a checkpoint to the new folder `out`, adapters merged, or `only_adapters` as peft has them.

    `checkpoint` is whole (`find_checkpoint`), `config` that of its run (`model_of_run`). Raises CheckpointError if its
    files are laid out otherwise than is known here, ModelError if the folder that `config` names is of another model,
    ExportError if `out` could not be written; nothing is left of it then.
    """
    if out.exists():
        raise ModelError(f"{out} exists already; choose another folder or delete this one")
    if only_adapters and config.lora is None:
        raise ModelError(
            f"{checkpoint} is of a run without adapters (model.lora): its whole model learned, export that"
        )
    try:
        folder = examine(config.path, config.revision)
    except ModelError as error:
        raise ModelError(
            f"the model that the run started from cannot be used: {error}; name its folder with --model (config, "
            "tokenizer and processor are taken from there)"
        ) from error
    model = _without_weights(folder, config)
    stored = stored_weights(checkpoint, DTYPES[config.dtype])
    _compare(checkpoint, folder, model, stored)
    beside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write = _write_adapters if only_adapters else _write_model
        counts = write(folder, config, model, stored, beside)
        put_in_place(beside, out)
    except (OSError, SafetensorError, ExportError) as error:
        raise ExportError(f"{out} was not written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(checkpoint=checkpoint, step=read_manifest(checkpoint)["step"], **counts)


def _without_weights(folder: ModelFolder, config: ModelConfig) -> Any:
    """The model that was trained, for its names and shapes."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(folder.config)
        return model if config.lora is None else add_lora(model, config.lora)


def _compare(checkpoint: Path, folder: ModelFolder, model: Any, stored: Mapping[str, Stored]) -> None:
    """Raises ModelError unless the checkpoint has the parameters of the model."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    known = model.state_dict()  # a tied weight under both of its names
    faults = []
    if (one := _tied(stored)) != folder.tied:
        there, here = ("one", "two") if one else ("two", "one")
        faults += [f"head and embedding are {there} in the checkpoint and {here} in the model"]
    faults += [f"{name} is not in the checkpoint" for name in wanted if name not in stored]
    faults += [f"{name} is not in the model" for name in stored if name not in known]
    faults += [
        f"{name} is {list(stored[name].shape)} in the checkpoint and {list(shape)} in the model"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    if faults:
        more = f" (and {len(faults) - NAMES_SHOWN} more)" if len(faults) > NAMES_SHOWN else ""
        raise ModelError(
            f"{checkpoint} is not of the model in {folder.path}, or its run had another model.lora than its config "
            f"says: {'; '.join(faults[:NAMES_SHOWN])}{more}; name the folder that the run started from with --model"
        )


def _tied(stored: Mapping[str, Stored]) -> bool:
    """Whether head and embedding are one weight: it has one name under ZeRO-3, and one place in the file below."""
    places = {
        name.endswith(HEAD): s.pieces[0].data_ptr() for name, s in stored.items() if name.endswith((HEAD, EMBEDDING))
    }
    return len(places) < 2 or places[True] == places[False]


def _write_model(
    folder: ModelFolder, config: ModelConfig, model: Any, stored: Mapping[str, Stored], beside: Path
) -> dict[str, Any]:
    dtype = DTYPES[config.dtype]
    _check_room(beside.parent, folder.numel * dtype.itemsize)

    def whole(parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: stored[name].whole(dtype) for name in parameters}

    proof = write_proved(
        in_hub_layout(model, whole), folder, config.dtype, beside, "its log-probs while training are not known"
    )
    return {"weights": proof.weights, "bytes": proof.bytes, "digest": proof.digest}


def _write_adapters(
    folder: ModelFolder, config: ModelConfig, model: Any, stored: Mapping[str, Stored], beside: Path
) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    dtype = DTYPES[config.dtype]
    own = {name: stored[name].whole(dtype) for name, _ in model.named_parameters() if ".lora_" in name}
    size = sum(value.numel() for value in own.values()) * dtype.itemsize
    _check_room(beside.parent, size)
    # By the names that peft reads: its own rule for them.
    named: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=own, save_embedding_layers=False)
    named = {name: value.contiguous() for name, value in named.items()}
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.inference_mode = str(folder.path.resolve()), True
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    settings.save_pretrained(str(beside))
    save_file(named, beside / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    check_values(beside, {name: (tuple(value.shape), tensor_digest(value)) for name, value in named.items()})
    type(settings).from_pretrained(str(beside))
    return {"weights": len(named), "bytes": size, "digest": ""}


def _check_room(there: Path, size: int) -> None:
    free = shutil.disk_usage(there).free
    if free < size:
        raise ExportError(f"it takes {size / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free in {there}; make room")
