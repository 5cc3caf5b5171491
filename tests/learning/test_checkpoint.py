"""Checkpoints give back the run they were taken from, to the bit; damaged, foreign and hostile ones are refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_worker import CHECKPOINTED, FAULTY_DISK, Malicious
from distributed_worker import VARIANTS
from helpers_launch import run_ranks
from helpers_models import KINDS, make_case, processor

from sapo_vl.distributed import World
from sapo_vl.learning import checkpoint
from sapo_vl.learning.checkpoint import (
    MANIFEST,
    CheckpointError,
    RestrictedCheckpointEngine,
    checkpoint_for,
    complete_checkpoints,
    find_damage,
    newest_checkpoint,
    prune,
    publish,
    read_manifest,
    seal,
    set_aside_from,
    step_dir,
)
from sapo_vl.learning.random_state import random_state, set_random_state
from sapo_vl.model.export import save_hf_folder
from sapo_vl.record.files import sweep

RANKS = 2
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote: checkpoints after steps 1 to 3 with keep=2, for every ZeRO stage."""
    seed = int(request.config.option.seed)
    out = tmp_path_factory.mktemp("checkpoints")
    for kind in KINDS:
        save_hf_folder(make_case(kind, seed).policy.hf, processor(), out / kind)
    run_ranks(RANKS, "checkpoint_worker.py", out, str(seed), timeout=600)
    return out


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}.rank{r}of{RANKS}.json").read_text()) for r in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTY_DISK)
def test_a_disk_that_fails_costs_the_save_and_nothing_else(name: str, folder: Path) -> None:
    """Whichever operation of whichever rank it is that fails."""
    ranks = [record["disk"] for record in seen(folder, name)]
    assert [turn["fault"] for turn in ranks[0]] == [turn["fault"] for turn in ranks[1]], "both ranks are told"
    turns = ranks[0]
    assert sum(turn["fired"] for turn in turns) >= 8, "files of shards, of ranks, the manifest, folders, the rename"
    for turn in turns:
        assert not [n for n in turn["names"] if n.startswith(".") or "superseded" in n], "nothing half written is left"
        if turn["fault"]:
            assert turn["fired"] and turn["whole"] == [3], "the older one stays"
            assert turn["fault"].startswith("the checkpoint of step 4 was not saved: ")
            assert os.strerror(turn["errno"]) in turn["fault"] and "GiB are free in" in turn["fault"]
        else:
            assert 4 in turn["whole"]


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
        assert "was saved with other parameters that learn" in record["wrong parts"]
        # Without ZeRO the optimizer is in the model's file.
        for kind in ("model", "optim") if stage > 0 else ("model",):
            message = record[f"malicious {kind}"]
            assert f"{folder}/malicious-{name}/{kind}/shards/" in message and f"_{kind}_states.pt cannot be" in message
            assert "resume from another checkpoint" in message and message.endswith(" <- UnpicklingError")
        assert not record["executed"]


def test_the_malicious_file_would_work(tmp_path: Path) -> None:
    """The control: read without the restriction it runs its code; through our reader it does not."""
    marker, file = tmp_path / "marker", tmp_path / "x.pt"
    torch.save({"module": Malicious(marker)}, file)
    with pytest.raises(CheckpointError, match=re.escape(f"{file} cannot be read")) as refused:
        RestrictedCheckpointEngine().load(str(file))
    assert isinstance(refused.value.__cause__, pickle.UnpicklingError)
    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all", None], ids=repr)
def test_a_file_that_is_no_archive_is_named(content: bytes | None, tmp_path: Path) -> None:
    """Whatever torch raises for it: cut off, something else, not there."""
    file = tmp_path / "x.pt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{file} cannot be read")) as refused:
        RestrictedCheckpointEngine().load(str(file))
    cause = refused.value.__cause__
    assert cause is not None and f"({type(cause).__name__}: " in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_ranks_agree_on_damage(name: str, folder: Path) -> None:
    """Each rank reads a share of the files; all of them must leave the same checkpoint out, or load different ones."""
    first, second = (record["damage"] for record in seen(folder, name))
    assert first == second
    root = folder / f"damaged-{name}"
    written = read_manifest(folder / f"checkpoints-{name}" / "step_00000003")["files"]
    cut_off = {f: [f"{f} has another digest than when it was written", str(step_dir(root, 2))] for f in written}
    assert first == {"": [None, str(step_dir(root, 3))]} | cut_off


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_old_ones_go(name: str, folder: Path) -> None:
    root = folder / f"checkpoints-{name}"
    assert sorted(p.name for p in root.iterdir()) == ["step_00000002", "step_00000003"]
    assert newest_checkpoint(root, ALONE) == step_dir(root, 3)


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
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    assert {MANIFEST, "rank_0.json", "rank_1.json"} <= {p.name for p in files} and len(files) >= 6
    for victim in files:
        whole = victim.read_bytes()
        DAMAGES[damage](victim)
        found = find_damage(newest, ALONE)
        assert found is not None and victim.name in found
        victim.write_bytes(whole)
    assert find_damage(newest, ALONE) is None
    victim = newest / "rank_1.json"
    DAMAGES[damage](victim)
    assert newest_checkpoint(root, ALONE) == step_dir(root, 2)
    assert "step_00000003 is damaged" in caplog.text and victim.name in caplog.text


@pytest.mark.slow
def test_a_file_that_the_disk_does_not_give_back_is_damage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, whole = step_dir(root, 3), checkpoint._digest

    def digest(path: Path) -> str:
        if path == newest / "rank_1.json":
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr(checkpoint, "_digest", digest)
    assert find_damage(newest, ALONE) == "rank_1.json cannot be read: [Errno 5] Input/output error"
    assert newest_checkpoint(root, ALONE) == step_dir(root, 2)


@pytest.mark.slow
def test_half_written_folders_are_passed_over(root: Path) -> None:
    """A crash while writing leaves a folder of another name, or one without a manifest, or with half of one."""
    shutil.copytree(step_dir(root, 3), root / ".writing_step_00000004")
    shutil.copytree(step_dir(root, 3), step_dir(root, 5))
    (step_dir(root, 5) / MANIFEST).unlink()
    shutil.copytree(step_dir(root, 3), step_dir(root, 6))
    (step_dir(root, 6) / MANIFEST).write_text((step_dir(root, 3) / MANIFEST).read_text()[:-20])
    assert complete_checkpoints(root)[-2:] == [step_dir(root, 3), step_dir(root, 2)]
    assert newest_checkpoint(root, ALONE) == step_dir(root, 3)


@pytest.mark.slow
def test_which_one_a_setting_means(root: Path) -> None:
    """A folder named by hand is checked like any other; it is not replaced by another one in silence."""
    old, newest = step_dir(root, 2), step_dir(root, 3)
    assert checkpoint_for("no", root, ALONE) is None
    assert checkpoint_for("auto", root, ALONE) == newest
    assert checkpoint_for(str(old), root, ALONE) == old
    flip_byte(old / "rank_1.json")
    with pytest.raises(CheckpointError, match=r"step_00000002 is no whole checkpoint: rank_1.json has another digest"):
        checkpoint_for(str(old), root, ALONE)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged or of another version: .*No such file"):
        checkpoint_for(str(root), root, ALONE)


def fake(root: Path, *names: str, note: str = "") -> None:
    """Folders that look like checkpoints, for what only looks at names."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / MANIFEST).write_text(seal({"files": {}, "note": note}))


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


MALFORMED = ("", "{", "[]", "3", "null", '"x"', "{}", '{"content": null}', '{"content": {"files": {}}}', "\udcff")


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_manifest_is_damage(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake(tmp_path, "step_00000001", "step_00000002")
    path = tmp_path / "step_00000002" / MANIFEST
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_manifest(path.parent)
    assert newest_checkpoint(tmp_path, ALONE) == tmp_path / "step_00000001"
    assert "step_00000002 is damaged and passed over" in caplog.text


def test_an_edited_manifest_is_damage(tmp_path: Path) -> None:
    """Valid JSON with other content: another learning-rate step, or a file left out of the check."""
    manifest = {"updates": 7, "files": {"a": "0" * 32}, "state": {"loss": float("nan"), "né": [None, 0.1, 1e-300]}}
    path = tmp_path / MANIFEST
    path.write_text(seal(manifest))
    assert repr(read_manifest(tmp_path)) == repr(manifest)
    for old, new in (('"updates": 7', '"updates": 8'), ('"a": "' + "0" * 32 + '"', ""), ("0.1", "0.10")):
        assert old in seal(manifest)
        path.write_text(seal(manifest).replace(old, new))
        with pytest.raises(CheckpointError, match=r"manifest.json has another digest than when it was written"):
            read_manifest(tmp_path)


def test_only_older_ones_are_pruned(tmp_path: Path) -> None:
    """Numbers, not letters, decide what is older; what is no checkpoint stays."""
    fake(
        tmp_path,
        "step_00000002",
        "step_00000004",
        "step_99999999",
        "step_100000000",
        "step_x",
        ".writing_step_00000001",
    )
    (tmp_path / "step_00000001").mkdir()
    prune(tmp_path, 4, keep=2)
    assert len(names(tmp_path)) == 7
    prune(tmp_path, 4, keep=1)
    assert "step_00000002" not in names(tmp_path) and len(names(tmp_path)) == 6
    prune(tmp_path, 100000000, keep=2)
    left = [".writing_step_00000001", "step_00000001", "step_100000000", "step_99999999", "step_x"]
    assert names(tmp_path) == left
    assert complete_checkpoints(tmp_path) == [tmp_path / "step_100000000", tmp_path / "step_99999999"]


def test_later_ones_are_set_aside_when_a_run_starts_earlier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is deleted, everything is named, and neither resume=auto nor pruning sees them any more."""
    fake(tmp_path, "step_00000002", "step_00000004", "step_00000006", note="first run")
    set_aside_from(tmp_path, 4, ALONE, but=tmp_path / "x" / ".." / "step_00000004")
    assert names(tmp_path) == ["step_00000002", "step_00000004", "superseded_step_00000006"]
    assert "step_00000006 is not of this run, which starts at step 4" in caplog.text
    assert "it is kept as superseded_step_00000006" in caplog.text and "step_00000002" not in caplog.text

    set_aside_from(tmp_path, 4, ALONE, but=tmp_path / "elsewhere" / "step_00000004")  # the same step of another run
    assert newest_checkpoint(tmp_path, ALONE) == tmp_path / "step_00000002"
    set_aside_from(tmp_path, 0, ALONE)
    assert newest_checkpoint(tmp_path, ALONE) is None
    fake(tmp_path, "step_00000006", "step_00000008", note="second run")
    set_aside_from(tmp_path, 0, ALONE)
    assert names(tmp_path) == [
        *(f"superseded_step_0000000{n}" for n in (2, 4, 6)), "superseded_step_00000006.2", "superseded_step_00000008"
    ]  # fmt: skip
    notes = [read_manifest(tmp_path / f"superseded_step_00000006{end}")["note"] for end in ("", ".2")]
    assert notes == ["first run", "second run"]


def test_a_checkpoint_that_is_replaced_is_there_until_the_new_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "step_00000003", note="old")
    fake(tmp_path, ".writing_step_00000003", note="new")
    rename = os.rename

    def crash(source: Path, target: Path) -> None:
        if source.name.startswith(".writing"):
            raise KeyboardInterrupt
        rename(source, target)

    beside, final = tmp_path / ".writing_step_00000003", tmp_path / "step_00000003"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", crash)
        publish(beside, final)
    assert read_manifest(beside)["note"] == "new"
    sweep(tmp_path)  # the next start
    assert read_manifest(final)["note"] == "old" and names(tmp_path) == ["step_00000003"]
    fake(tmp_path, ".writing_step_00000003", note="new")
    publish(beside, final)
    assert read_manifest(final)["note"] == "new"
    fake(tmp_path, ".writing_step_00000003", note="newer")
    publish(beside, final)
    assert read_manifest(final)["note"] == "newer"
    assert names(tmp_path) == ["step_00000003"]


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere", ALONE) is None
    (tmp_path / "step_00000001").mkdir()
    assert newest_checkpoint(tmp_path, ALONE) is None


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
