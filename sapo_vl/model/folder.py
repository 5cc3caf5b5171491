"""A model folder on disk, told from its file headers: which weights it holds, in which layout, against what the
model of its config has.

Nothing here loads a weight but to compare two that should be one. transformers fills what a folder lacks with random
numbers and a warning, and turns expert weights by their shape alone; so what it will meet is known before it starts.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from sapo_vl.model.errors import ModelError
from sapo_vl.strict import parse_json

log = logging.getLogger(__name__)

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
# Runtime: gate_up_proj [E, 2I, H] and down_proj [E, H, I]. Hub folders: [E, H, 2I] and [E, I, H].
EXPERT_WEIGHTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
# Buffers that older versions saved; every version computes them anew.
IGNORED = re.compile(r"rotary_(pos_)?emb\.inv_freq$")
SHARD_BYTES = 512 * 2**20
NAMES_SHOWN = 4
# What torch and transformers raise for settings that make no model.
_CONFIG_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError)

Layout = Literal["", "hub", "runtime"]  # of expert weights; "": the model has none


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight in a file, from the file's header."""

    file: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16, ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder that has been examined. `load_model` reads it."""

    path: Path
    config: PreTrainedConfig  # ties what is tied in the files
    weights: Mapping[str, StoredWeight]
    shapes: Mapping[str, tuple[int, ...]]  # runtime name -> shape of every weight of the model
    layout: Layout
    alike: bool  # some expert weight has the same shape in both layouts (2I = H or I = H)
    tied: bool  # the output projection is the embedding

    @property
    def stored_bytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in {w.file for w in self.weights.values()})

    @property
    def numel(self) -> int:
        return sum(_numel(shape) for name, shape in self.shapes.items() if not (self.tied and name == HEAD))


def read_config(path: str, revision: str | None = None) -> PreTrainedConfig:
    """The folder's config; ModelError if it is missing or of a model family that is not supported."""
    folder = Path(path)
    if not folder.exists() and (folder.is_absolute() or path.startswith(".") or len(folder.parts) > 2):
        raise ModelError(f"model.path={path!r}: there is no such folder")
    if folder.exists() and not (folder / "config.json").exists():
        raise ModelError(f"model.path={path!r} has no config.json; give a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(f"model.path={path!r}: its config.json cannot be read: {' '.join(str(e).split())}") from e
    if config.model_type not in MODEL_TYPES:
        raise ModelError(f"model.path={path!r} is a {config.model_type!r} model; supported: {', '.join(MODEL_TYPES)}")
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"model.path={path!r} holds quantised weights ({method}), which cannot be trained; give the model it was "
            "made from"
        )
    return config


def is_moe(config: PreTrainedConfig) -> bool:
    return config.model_type == "qwen3_vl_moe"


def local_folder(path: str, revision: str | None = None) -> Path:
    """`path` itself if it is a folder, else where the hub's copy of that id is kept, downloaded if need be."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, revision=revision, ignore_patterns=["*.bin", "*.pth", "*.pt", "*.gguf"]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as e:
        raise ModelError(f"model.path={path!r} is no folder here and cannot be had from the hub: {e}") from e


def examine(path: str, revision: str | None = None) -> ModelFolder:
    """Reads config and file headers, and compares names and shapes with the model that the config describes.

    Raises ModelError naming the weights that are missing, unexpected or of another shape, and files that are missing or
    cannot be read. Must run outside of a context that shards weights (ZeRO-3).
    """
    config = read_config(path, revision)
    folder = local_folder(path, revision)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} has an adapter_config.json, and transformers would lay those adapters over the weights; merge "
            "them into the weights, or delete the file if they are merged already"
        )
    weights = read_headers(folder)
    _fuse_hint(folder, weights)
    model = _without_weights(folder, config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    tied = HEAD in model.all_tied_weights_keys
    if tied and HEAD in weights and EMBEDDING in weights and not _same(folder, weights, HEAD, EMBEDDING):
        log.warning(
            "%s: the config ties the output projection to the embedding, but the files hold two different weights; it "
            "is trained and saved untied, with a config that says so",
            folder,
        )
        tied = False
        config.tie_word_embeddings = False
        config.get_text_config().tie_word_embeddings = False
    layout, alike = expert_layout(weights, shapes)
    ignored = [IGNORED, *map(re.compile, model._keys_to_ignore_on_load_unexpected or ())]
    known = {name: w for name, w in weights.items() if name in shapes or not any(p.search(name) for p in ignored)}
    _compare(folder, known, shapes, tied, layout)
    return ModelFolder(path=folder, config=config, weights=known, shapes=shapes, layout=layout, alike=alike, tied=tied)


def _without_weights(folder: Path, config: PreTrainedConfig) -> Any:
    """The model of a config that somebody else wrote, on the meta device."""
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except _CONFIG_ERRORS as e:
        why = " ".join(str(e).split())[:300]
        raise ModelError(
            f"{folder}: no model can be built from its config.json ({type(e).__name__}: {why}); get the folder again"
        ) from e


def weight_files(folder: Path) -> dict[str, set[str] | None]:
    """The weight files of a folder, as transformers picks them, each with the names an index gives it (None: no index).

    Raises ModelError if there are none, or an index that cannot be read.
    """
    if (folder / SINGLE).exists():
        return {SINGLE: None}
    index = folder / INDEX
    if not index.exists():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        more = f" (it has {pickled[0]}: pickled weights are not read, save them as safetensors)" if pickled else ""
        raise ModelError(f"{folder} has no {SINGLE} and no {INDEX}{more}; it lacks its weight files")
    try:
        weight_map = parse_json(index.read_bytes())["weight_map"]
        files: dict[str, set[str] | None] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelError(f"{index} names the file {file!r}; a weight file lies beside its index")
            names = files.setdefault(file, set())
            assert names is not None
            names.add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, ModelError):
            raise
        raise ModelError(f"{index} cannot be read as an index of weights: {e!r}; download it again") from e
    if not files:
        raise ModelError(f"{index} names no weights; download it again")
    return files


def read_headers(folder: Path) -> dict[str, StoredWeight]:
    """Name -> where and what, of every weight in the folder's safetensors files. Reads headers only.

    Raises ModelError naming files that are missing, cut off or unreadable, and names that an index promises in vain.
    """
    files = weight_files(folder)
    missing = sorted(name for name in files if not (folder / name).is_file())
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of its weight files: {_some(missing)}")
    found: dict[str, StoredWeight] = {}
    for file, promised in sorted(files.items()):
        here: dict[str, StoredWeight] = {}
        try:
            with safe_open(folder / file, framework="pt") as f:
                for name in f.keys():  # noqa: SIM118
                    view = f.get_slice(name)
                    here[name] = StoredWeight(file, tuple(view.get_shape()), view.get_dtype())
        except (OSError, SafetensorError) as e:
            raise ModelError(
                f"{folder / file} cannot be read ({e}): it is cut off, or no safetensors file; get it again"
            ) from e
        if promised is not None and (vain := sorted(promised - set(here))):
            raise ModelError(f"{folder / file} lacks {len(vain)} weights that {INDEX} places there: {_some(vain)}")
        if twice := sorted(set(here) & set(found)):
            raise ModelError(f"{folder / file} and {found[twice[0]].file} both hold {_some(twice)}")
        found |= here
    return found


def folder_manifest(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights in a folder, from the headers of its files."""
    return {name: weight.shape for name, weight in read_headers(folder).items()}


def expert_layout(weights: Mapping[str, StoredWeight], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layout, bool]:
    """How the expert weights of a folder lie, and whether some have a shape that does not tell.

    With 2I = H a gate_up_proj looks alike in both layouts, with I = H a down_proj; never both, so the two together say
    which it is. Raises ModelError if some say one thing and some the other.
    """
    votes: dict[Layout, list[str]] = {"hub": [], "runtime": []}
    alike = False
    for name, shape in shapes.items():
        if not name.endswith(EXPERT_WEIGHTS) or name not in weights:
            continue
        stored, turned = weights[name].shape, (shape[0], shape[2], shape[1])
        if shape == turned:
            alike = True
        elif stored == turned:
            votes["hub"].append(name)
        elif stored == shape:
            votes["runtime"].append(name)
    if votes["hub"] and votes["runtime"]:
        raise ModelError(
            f"expert weights lie in two layouts: {votes['hub'][0]} as on the hub, {votes['runtime'][0]} as "
            "transformers holds them; write the folder anew from one source"
        )
    layout: Layout = "hub" if votes["hub"] else "runtime" if votes["runtime"] else ""
    return layout, alike


def check_layout_for_vllm(folder: ModelFolder) -> None:
    """ModelError if vLLM, which reads the hub's layout only, cannot load the folder."""
    if folder.layout == "runtime":
        raise ModelError(
            f"vLLM cannot load {folder.path}: its expert weights lie as transformers holds them, not as on the hub; "
            f"`sapo-vl convert {folder.path} --out DIR` writes a folder that both load; or set "
            "rollout.engine=transformers"
        )


def hub_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The runtime state dict with expert weights transposed to the layout of hub folders."""
    return {name: t.transpose(1, 2).contiguous() if name.endswith(EXPERT_WEIGHTS) else t for name, t in state.items()}


def write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Streams weights into safetensors files of at most `shard_bytes` (or one larger weight) each, and their index."""
    written: list[tuple[Path, list[str]]] = []
    total = 0

    def save(shard: dict[str, Tensor]) -> None:
        path = folder / f"shard-{len(written):05d}.part"
        save_file(shard, path, metadata={"format": "pt"})
        written.append((path, list(shard)))

    shard: dict[str, Tensor] = {}
    size = 0
    for name, value in weights:
        nbytes = value.numel() * value.element_size()
        if shard and size + nbytes > shard_bytes:
            save(shard)
            shard, size = {}, 0
        shard[name] = value.detach().to("cpu").contiguous()
        size += nbytes
        total += nbytes
    if shard:
        save(shard)
    if len(written) == 1:
        written[0][0].rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(written, start=1):
        file = f"model-{number:05d}-of-{len(written):05d}.safetensors"
        path.rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _compare(
    folder: Path,
    weights: Mapping[str, StoredWeight],
    shapes: Mapping[str, tuple[int, ...]],
    tied: bool,
    layout: Layout,
) -> None:
    missing = sorted(set(shapes) - set(weights))
    if tied and not {HEAD, EMBEDDING} <= set(missing):  # one of the two is enough
        missing = [name for name in missing if name not in (HEAD, EMBEDDING)]
    unexpected = sorted(set(weights) - set(shapes))
    wrong = []
    for name in sorted(set(weights) & set(shapes)):
        wanted = shapes[name]
        if layout == "hub" and name.endswith(EXPERT_WEIGHTS):
            wanted = (wanted[0], wanted[2], wanted[1])
        if weights[name].shape != wanted:
            wrong.append(f"{name} is {list(weights[name].shape)} and should be {list(wanted)}")
    faults = []
    if missing:
        faults.append(f"{len(missing)} weights are missing: {_some(missing)}")
    if unexpected:
        faults.append(f"{len(unexpected)} weights are of no part of the model: {_some(unexpected)}")
    if wrong:
        faults.append(f"{len(wrong)} weights have another shape: {_some(wrong)}")
    if faults:
        if missing == [HEAD]:
            faults.append("its config does not tie the head to the embedding, so the head would be random")
        raise ModelError(
            f"the weights in {folder} are not those of its config.json; {'; '.join(faults)}. Nothing was loaded: get "
            "the folder anew, or the config that belongs to its weights"
        )


def _fuse_hint(folder: Path, weights: Mapping[str, StoredWeight]) -> None:
    if any(".experts.0." in name for name in weights):
        raise ModelError(
            f"{folder} keeps every expert as a weight of its own; `sapo-vl convert {folder} --out DIR` joins them as "
            "transformers and this program read them"
        )


def _same(folder: Path, weights: Mapping[str, StoredWeight], one: str, other: str) -> bool:
    def read(name: str) -> Tensor:
        with safe_open(folder / weights[name].file, framework="pt") as f:
            return f.get_tensor(name)

    return weights[one].shape == weights[other].shape and torch.equal(read(one), read(other))


def _numel(shape: Iterable[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _some(names: Iterable[Any]) -> str:
    names = list(names)
    more = f" (and {len(names) - NAMES_SHOWN} more)" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(str, names[:NAMES_SHOWN])) + more
