"""What an evaluation is of: whatever changes what the model is asked is in its identity."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_models import MODEL, make_model, processor

from sapo_vl.evaluation.harness import model_identity
from sapo_vl.model.export import save_hf_folder

FILES = {
    "config.json": "config",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "chat_template.jinja": "tokenizer",
    "chat_template.json": "tokenizer",  # where the hub has it
    "processor_config.json": "processor",
    "preprocessor_config.json": "processor",  # mean, standard deviation and sizes of pictures, on the hub
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_folder_that_changes_is_noticed(name: str, tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    config = MODEL.model_copy(update={"path": str(tmp_path / "m")})
    path = tmp_path / "m" / name
    if not path.exists():
        path.write_text("{}")
    before = model_identity(config)
    assert model_identity(config) == before
    path.write_text(path.read_text() + " ")
    after = model_identity(config)
    assert {key for key in before if before[key] != after[key]} == {FILES[name]}
