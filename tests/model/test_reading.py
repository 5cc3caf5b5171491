"""Weights out of a folder: every piece right, nothing read that is not kept, the model that transformers loads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import Kind, make_model, processor
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from sapo_vl.model import reading
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import ModelError, examine
from sapo_vl.model.loading import ModelConfig, load_model
from sapo_vl.model.reading import _fill, _Part, read_weights

CPU = torch.device("cpu")


class Counted:
    """A slice of a file that counts the values it gives."""

    def __init__(self, value: Tensor) -> None:
        self._value, self.largest, self.read = value, 0, 0

    def __getitem__(self, rows: slice) -> Tensor:
        found = self._value[rows]
        self.largest, self.read = max(self.largest, found.numel()), self.read + found.numel()
        return found


@pytest.mark.parametrize("turned", [False, True])
def test_every_rank_gets_its_piece_and_reads_no_more(turned: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random shapes dealt to 1 to 9 ranks as ZeRO-3 deals them; slices of at most 60 values or one row."""
    monkeypatch.setattr(reading, "SLICE_BYTES", 60 * 4)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        shape = tuple(rng.integers(1, 9, 3 if turned else rng.integers(1, 4)).tolist())
        whole = torch.from_numpy(rng.normal(size=shape)).float()
        ranks = int(rng.integers(1, 10))
        size = -(-whole.numel() // ranks)
        padded = torch.cat([whole.flatten(), torch.zeros(size * ranks - whole.numel())])
        row = math.prod(shape[1:])
        for rank in range(ranks):
            view = Counted(whole.transpose(1, 2).contiguous() if turned else whole)
            part = _Part(shape, rank * size, torch.full((size,), float("nan")))
            _fill(part, view, turned=turned)
            assert torch.equal(part.values, padded[rank * size : (rank + 1) * size])
            assert view.read <= part.count + 2 * (row - 1) and view.largest <= max(60, row)


def test_values_are_cast_to_the_dtype_of_the_model(seed: int) -> None:
    whole = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    part = _Part((5, 3), 4, torch.empty(7, dtype=torch.bfloat16))
    _fill(part, whole, turned=False)
    assert torch.equal(part.values, whole.flatten()[4:11].bfloat16())


@pytest.mark.parametrize(("kind", "tied", "dtype"), [("dense", True, "bfloat16"), ("moe", False, "float32")])
def test_it_is_the_model_that_transformers_loads(kind: Kind, tied: bool, dtype: str, tmp_path: Path, seed: int) -> None:
    """Weights, buffers, config and settings; and nothing was drawn from the random generator."""
    model = make_model(kind, seed)
    if not tied:
        for part in (model.config, model.config.text_config):
            part.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    save_hf_folder(model, processor(), tmp_path / "m")
    GenerationConfig(eos_token_id=[3, 5], do_sample=True, temperature=0.5).save_pretrained(tmp_path / "m")
    torch.manual_seed(seed)
    ours: Any = load_model(ModelConfig(path=str(tmp_path / "m"), dtype=dtype))  # type: ignore[arg-type]
    after = torch.get_rng_state()
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "m", dtype=getattr(torch, dtype))
    torch.manual_seed(seed)
    assert torch.equal(after, torch.get_rng_state())
    for of in ("state_dict", "named_buffers", "named_parameters"):
        one, two = dict(getattr(ours, of)()), dict(getattr(stock, of)())
        assert one.keys() == two.keys() and one
        assert all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in two), of
    assert [p.requires_grad for p in ours.parameters()] == [True] * len(list(stock.parameters()))
    assert ours.training is stock.training is False
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == tied
    left_out = ("use_cache", "_name_or_path")  # the first is turned off for training
    config, theirs = ({k: v for k, v in m.config.to_dict().items() if k not in left_out} for m in (ours, stock))
    assert config == theirs
    assert ours.generation_config.to_dict() == stock.generation_config.to_dict()
    assert ours.config.name_or_path == stock.config.name_or_path and ours.name_or_path == stock.name_or_path


def test_what_changes_after_it_was_examined_is_named(tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    folder = examine(str(tmp_path / "m"))
    model = make_model("dense", seed)
    file = tmp_path / "m/model.safetensors"
    state, name = load_file(file), "model.visual.merger.norm.weight"
    with pytest.raises(ModelError, match=rf"{name} is \[1\], and was .* something writes into this folder"):
        save_file(state | {name: torch.zeros(1)}, file)
        read_weights(model, folder, CPU)
    del state[name]
    save_file(state, file)
    with pytest.raises(ModelError, match=rf"cannot be loaded: .*{name}"):
        load_model(ModelConfig(path=str(tmp_path / "m")), folder)
    with pytest.raises(ModelError, match="lacks 1 weights of the model, more among them"):
        model.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
        read_weights(model, folder, CPU)
