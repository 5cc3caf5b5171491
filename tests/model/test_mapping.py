"""A model whose weights are the files: the same log-probs as a loaded one, and no memory of its own for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import MODEL, Kind, flat, make_groups, make_model, mixed_specs, processor
from safetensors.torch import load_file, save_file

from sapo_vl.model.chat import Chat
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import ModelError, examine
from sapo_vl.model.loading import load_model, map_model
from sapo_vl.model.policy import PolicyModule


def mapped_files() -> list[tuple[int, int, str]]:
    """(first address, end, file) of every file in this process's memory."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    found = []
    for line in lines:
        if len(line) == 6 and line[5].startswith("/"):
            first, end = (int(n, 16) for n in line[0].split("-"))
            found.append((first, end, line[5].strip()))
    return found


@pytest.mark.parametrize(
    ("kind", "layout", "tied", "dtype"),
    [
        ("dense", "hub", True, "float32"),
        ("dense", "hub", False, "bfloat16"),
        ("moe", "hub", True, "float32"),
        ("moe", "runtime", False, "bfloat16"),
    ],
)
def test_it_is_the_loaded_model(kind: Kind, layout: str, tied: bool, dtype: str, tmp_path: Path, seed: int) -> None:
    model = make_model(kind, seed)
    if not tied:
        for part in (model.config, model.config.text_config):
            part.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model = model.to(getattr(torch, dtype))
    if layout == "hub":
        save_hf_folder(model, processor(), tmp_path)
    else:
        model.save_pretrained(tmp_path, save_original_format=False)
        processor().save_pretrained(tmp_path)
    folder = examine(str(tmp_path))
    config = MODEL.model_copy(update={"path": str(tmp_path), "dtype": dtype})
    loaded: Any = load_model(config, folder)
    mapped: Any = map_model(config, folder)
    chat = Chat.load(loaded, config)
    rng = np.random.default_rng(seed)
    batch = flat(chat, make_groups(chat, rng, mixed_specs(rng)))
    with torch.no_grad():
        expected, found = (PolicyModule(m, chat.banned_ids).eval()(batch)[0] for m in (loaded, mapped))
    assert torch.equal(found, expected)
    for (name, one), (other, two) in zip(loaded.state_dict().items(), mapped.state_dict().items(), strict=True):
        assert name == other and torch.equal(one, two)
    assert {n for n, _ in mapped.named_parameters()} == {n for n, _ in loaded.named_parameters()}
    files = [(a, b) for a, b, file in mapped_files() if Path(file).parent == tmp_path and file.endswith(".safetensors")]
    for name, value in mapped.named_parameters():
        assert any(first <= value.data_ptr() < end for first, end in files), f"{name} lies in memory of its own"


def test_files_that_are_not_the_model_are_refused(tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path)
    folder = examine(str(tmp_path))
    with pytest.raises(ModelError, match=r"is torch.float32, not torch.bfloat16"):
        map_model(MODEL.model_copy(update={"path": str(tmp_path), "dtype": "bfloat16"}), folder)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    gone = next(name for name in state if "layers.1" in name)
    save_file({name: value for name, value in state.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 weights of the model, {gone}"):
        map_model(MODEL.model_copy(update={"path": str(tmp_path)}), folder)
    save_file(state | {gone: state[gone][:1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be mapped"):
        map_model(MODEL.model_copy(update={"path": str(tmp_path)}), folder)
