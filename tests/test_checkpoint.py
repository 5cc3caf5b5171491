"""Checkpoints give back the run they were taken from, to the bit; damaged, foreign and hostile ones are refused."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_worker import CHECKPOINTED, Malicious
from distributed_worker import VARIANTS
from helpers_launch import run_ranks
from helpers_models import KINDS, make_case, processor

from sapo_vl.checkpoint import (
    MANIFEST,
    CheckpointError,
    RestrictedCheckpointEngine,
    checkpoint_for,
    complete_checkpoints,
    find_damage,
    newest_checkpoint,
    random_state,
    set_random_state,
    step_dir,
)
from sapo_vl.export import save_hf_folder

RANKS = 2


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote: checkpoints after steps 1 to 3 with keep=2, for every ZeRO stage."""
    seed = int(request.config.option.seed)
    out = tmp_path_factory.mktemp("checkpoints")
    for kind in KINDS:
        save_hf_folder(make_case(kind, seed).policy.hf, processor(), out / kind)
    run_ranks(RANKS, "checkpoint_worker.py", out, str(seed), timeout=300)
    return out


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.rank{r}of{RANKS}.json").read_text()) for r in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_round_trip(name: str, folder: Path) -> None:
    """The update after a load equals the one that came after the save, byte by byte: weights, moments, dice."""
    for rank, record in enumerate(seen(folder, name)):
        assert record["loaded"] == record["saved"]
        assert record["resumed"] == record["uninterrupted"]
        assert record["resumed"]["hash"] != record["saved"], "the last update should move the weights"
        assert record["updates"] == 30
        assert record["state"] == {
            "step": 3,
            "accuracy_before": {"all": 0.25},
            "per_rank": {"rank": rank, "step": 3},
        }
    first, second = (record["resumed"]["dice"] for record in seen(folder, name))
    assert first != second, "each rank has a random state of its own"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_foreign_and_hostile_checkpoints_are_refused(name: str, folder: Path) -> None:
    for record in seen(folder, name):
        stage = VARIANTS[name].stage
        assert f"was saved with zero_stage={stage}, this run has {(stage + 1) % 4}" in record["wrong stage"]
        assert "was saved with world_size=2, this run has 3" in record["wrong ranks"]
        assert record["malicious model"].startswith("UnpicklingError")
        if stage > 0:  # without ZeRO the optimizer is in the model's file
            assert record["malicious optim"].startswith("UnpicklingError")
        assert not record["executed"]


def test_the_malicious_file_would_work(tmp_path: Path) -> None:
    """The control: read without the restriction it runs its code; through our reader it does not."""
    marker, file = tmp_path / "marker", tmp_path / "x.pt"
    torch.save({"module": Malicious(marker)}, file)
    with pytest.raises(pickle.UnpicklingError):
        RestrictedCheckpointEngine().load(str(file))
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_old_ones_go(name: str, folder: Path) -> None:
    root = folder / f"checkpoints-{name}"
    assert sorted(p.name for p in root.iterdir()) == ["step_00000002", "step_00000003"]
    assert newest_checkpoint(root) == step_dir(root, 3)


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage, with steps 2 and 3."""
    shutil.copytree(folder / "checkpoints-dense-2", tmp_path / "c")
    return tmp_path / "c"


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


DAMAGES = {
    "a byte is flipped": flip_byte,
    "the end is missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bytes are added": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "the file is empty": lambda path: path.write_bytes(b""),
    "the file is gone": Path.unlink,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: str, root: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """In any file; the newest checkpoint that is whole is taken instead, and the damaged one named."""
    newest = step_dir(root, 3)
    files = [p for p in newest.rglob("*") if p.is_file() and p.name != MANIFEST]
    assert {"rank_0.json", "rank_1.json"} <= {p.name for p in files} and len(files) >= 5
    for victim in files:
        whole = victim.read_bytes()
        DAMAGES[damage](victim)
        found = find_damage(newest)
        assert found is not None and victim.name in found
        victim.write_bytes(whole)
    assert find_damage(newest) is None
    DAMAGES[damage](files[0])
    assert newest_checkpoint(root) == step_dir(root, 2)
    assert "step_00000003 is damaged" in caplog.text and files[0].name in caplog.text


@pytest.mark.slow
def test_half_written_folders_are_passed_over(root: Path) -> None:
    """A crash while writing leaves a folder of another name, or one without a manifest, or with half of one."""
    shutil.copytree(step_dir(root, 3), root / ".writing_step_00000004")
    shutil.copytree(step_dir(root, 3), step_dir(root, 5))
    (step_dir(root, 5) / MANIFEST).unlink()
    shutil.copytree(step_dir(root, 3), step_dir(root, 6))
    (step_dir(root, 6) / MANIFEST).write_text((step_dir(root, 3) / MANIFEST).read_text()[:-20])
    assert complete_checkpoints(root)[-2:] == [step_dir(root, 3), step_dir(root, 2)]
    assert newest_checkpoint(root) == step_dir(root, 3)


@pytest.mark.slow
def test_which_one_a_setting_means(root: Path) -> None:
    """A folder named by hand is checked like any other; it is not replaced by another one in silence."""
    old, newest = step_dir(root, 2), step_dir(root, 3)
    assert checkpoint_for("no", root) is None
    assert checkpoint_for("auto", root) == newest
    assert checkpoint_for(str(old), root) == old
    flip_byte(old / "rank_1.json")
    with pytest.raises(CheckpointError, match=r"step_00000002 is no whole checkpoint: rank_1.json has another digest"):
        checkpoint_for(str(old), root)
    with pytest.raises(CheckpointError, match=r"manifest.json: .*No such file"):
        checkpoint_for(str(root), root)


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step_00000001").mkdir()
    assert newest_checkpoint(tmp_path) is None


def test_random_state_round_trip(seed: int) -> None:
    """Through JSON, as on disk."""
    np.random.normal(size=3)  # leaves a cached second normal behind
    state = json.loads(json.dumps(random_state()))

    def draw() -> list[float]:
        return [random.random(), *np.random.normal(size=3), *torch.rand(3).tolist(), *torch.randn(3).tolist()]

    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first
