"""Writing Hugging Face folders that `from_pretrained` and vLLM load."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from sapo_vl.model.folder import CONFIG, GENERATION, HEAD, Layout, ModelError, ModelFolder, hub_layout
from sapo_vl.strict import parse_json

# What a model folder holds beside weights: configs, tokenizer, processor, chat template. Never code.
CARRIED = (".json", ".jinja", ".txt", ".model", ".tiktoken")
# Settings of sampling, which transformers loads beside do_sample=false and refuses to save there.
SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def export_layout(folder: ModelFolder) -> Layout:
    """How the expert weights of a model trained from `folder` are written: as on the hub.

    Where 2I = H or I = H their shapes do not tell, and whoever reads the result takes it as he took `folder`: then as
    they lie there.
    """
    return folder.layout if folder.alike else "hub"


def is_carried(path: Path) -> bool:
    """Whether a file of a model folder goes into one that is written from it."""
    hidden, index = path.name.startswith("."), path.name.endswith(".index.json")
    return path.is_file() and path.suffix in CARRIED and not hidden and not index


def carried_files(folder: ModelFolder, dtype: str) -> tuple[dict[str, bytes], list[str]]:
    """(name -> content of everything in the folder of a model trained from `folder` but its weights, repairs in words).

    The files are those of `folder`, so that whatever read it reads the result; the config says the dtype ("float32",
    "bfloat16") and whether the head is tied. Raises ModelError if transformers could not load or save one of them.
    """
    files = {path.name: path.read_bytes() for path in sorted(folder.path.iterdir()) if is_carried(path)}
    raw = json.loads(files[CONFIG])
    for part in (raw, raw.get("text_config") or {}, raw.get("vision_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is raw and key == "dtype" and "torch_dtype" not in part):
                part[key] = dtype
    raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = folder.tied
    files[CONFIG] = (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()
    if GENERATION not in files:
        return files, []
    content, repairs = _saveable_generation(folder.path / GENERATION)
    return {**files, GENERATION: content}, repairs


def _saveable_generation(path: Path) -> tuple[bytes, list[str]]:
    try:
        given = parse_json(path.read_bytes())
        config = GenerationConfig.from_dict(copy.deepcopy(given))
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise ModelError(f"{path} cannot be read: {e}; repair or delete it") from e
    if _refusal(config) is None:
        return path.read_bytes(), []
    dropped = [key for key in SAMPLING_ONLY if key in given and not given.get("do_sample")]
    kept = {key: value for key, value in given.items() if key not in dropped}
    why = _refusal(GenerationConfig.from_dict(copy.deepcopy(kept)))
    if why is not None:
        raise ModelError(f"{path}: transformers would refuse to save these settings ({why}); repair or delete the file")
    said = f"{GENERATION}: {', '.join(dropped)} without do_sample is refused by transformers, and left out"
    return (json.dumps(kept, indent=2) + "\n").encode(), [said]


def _refusal(config: GenerationConfig) -> str | None:
    """Why transformers will not save these settings."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            config.save_pretrained(scratch)
        except ValueError as e:
            return " ".join(str(e).split())
    return None


def put_in_place(written: Path, out: Path) -> None:
    """Gives a written folder its name. What has that name is deleted only when the new one is in place."""
    old = out.with_name(f".{out.name}.replaced-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    written.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def check_expert_shapes(config: PreTrainedConfig) -> None:
    """Refuses expert sizes whose two layouts cannot be told apart, for a model that is made here.

    transformers decides by shape whether to transpose an expert weight while loading; with 2I == H or I == H
    it silently loads transposed weights. Raises ValueError naming the sizes.
    """
    text = config.get_text_config()
    inner, hidden = getattr(text, "moe_intermediate_size", None), text.hidden_size
    if getattr(text, "num_experts", None) and inner and hidden in (inner, 2 * inner):
        raise ValueError(
            f"moe_intermediate_size={inner} with hidden_size={hidden}: transformers cannot tell the two layouts of the "
            f"expert weights apart by shape; choose sizes with hidden_size different from {inner} and {2 * inner}"
        )


def save_hf_folder(
    model: PreTrainedModel,
    processor: ProcessorMixin | Any,
    out: Path,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model that was built here, not loaded: safetensors in hub layout, config, tokenizer and processor.

    `state` is a full runtime state dict to take in place of the model's own. The folder appears under its name only
    when complete.
    """
    check_expert_shapes(model.config)
    state = dict(model.state_dict() if state is None else state)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        state.pop(HEAD, None)
    state = {k: v.detach().to("cpu") for k, v in state.items()}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    # save_original_format=False: we hand over the hub layout already, whichever way the model was built.
    model.save_pretrained(beside, state_dict=hub_layout(state), save_original_format=False)
    processor.save_pretrained(beside)
    put_in_place(beside, out)
