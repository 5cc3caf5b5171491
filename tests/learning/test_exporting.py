"""A model written from a checkpoint is the one that its run wrote: every ZeRO stage, one and two ranks, adapters."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_runs import digests, prepare, run_all
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sapo_vl.commands import cli
from sapo_vl.config import load_config, save_config
from sapo_vl.learning import exporting
from sapo_vl.learning.checkpoint import (
    MANIFEST,
    MEMBERS,
    SHARD_CLASSES,
    CheckpointError,
    RestrictedCheckpointEngine,
    _digest,
    read_manifest,
    seal,
    step_dir,
)
from sapo_vl.learning.exporting import find_checkpoint
from sapo_vl.learning.shards import _cut
from sapo_vl.model.folder import EMBEDDING, HEAD
from sapo_vl.pipeline import build_tiny_model

LORA = '{"rank": 3, "alpha": 5}'
RUNS: dict[int, dict[str, dict[str, Any]]] = {  # ranks -> name -> settings; a name begins with that of the model
    1: {
        "dense-0": {"zero.stage": 0, "steps": 2, "checkpoint.every": 1, "data.eval_split": "nowhere"},
        "moe-1-lora": {"zero.stage": 1, "model.lora": LORA},
        "untied-2-bf16": {"zero.stage": 2, "model.dtype": "bfloat16"},
    },
    2: {
        "moe-3-lora": {"zero.stage": 3, "model.lora": LORA},
        "moe-3-frozen-bf16": {"zero.stage": 3, "model.freeze": "[vision, router]", "model.dtype": "bfloat16"},
    },
}
NAMES = [name for runs in RUNS.values() for name in runs]
FAILS = {"dense-0": "nowhere"}  # its last evaluation finds no rows


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run folder for each name, as a stage leaves it."""
    seed, folder = int(request.config.option.seed), tmp_path_factory.mktemp("export")
    common = prepare(folder, seed) | {"steps": 1, "rollout.prompts_per_step": 4}
    (folder / "model").rename(folder / "dense")
    build_tiny_model("moe", folder / "data", folder / "moe", seed % 10_000)
    untie(folder / "moe", folder / "untied")
    for ranks, wanted in RUNS.items():
        jobs = {name: common | {"model.path": str(folder / name.split("-")[0])} | own for name, own in wanted.items()}
        run_all(folder, jobs, {}, ranks, FAILS)
        for name, settings in jobs.items():
            save_config(load_config(None, [f"{k}={v}" for k, v in settings.items()]), folder / name / "config.yaml")
    return folder


def untie(source: Path, out: Path) -> None:
    """A model with a head of its own, in two files."""
    shutil.copytree(source, out)
    state = load_file(out / "model.safetensors")
    state[HEAD] = state[EMBEDDING] + 0.1
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (out / "config.json").write_text(json.dumps(config))


def last(run: Path) -> Path:
    return max((run / "checkpoints").glob("step_*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_the_run_wrote(name: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the byte, in every file, under the same digest of all values; and not what the run started from."""
    run, out = runs / name, tmp_path / "sub" / "out"
    assert cli.main(["export", str(run), "--out", str(out)]) == 0
    assert digests(out) == digests(run / "final")
    if name not in FAILS:
        proof = json.loads((run / "summary.json").read_text())["model"]
        printed = capsys.readouterr().out
        assert f"{proof['weights']} weights" in printed and f"digest {proof['digest']}" in printed
    source = load_file(runs / name.split("-")[0] / "model.safetensors")
    written = load_file(out / "model.safetensors")
    assert any(not torch.equal(written[n].float(), source[n].float()) for n in source), "the run learned nothing"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moe-1-lora", "moe-3-lora"])
def test_adapters_give_the_merged_model(name: str, runs: Path, tmp_path: Path) -> None:
    """peft's own loading and merging of what was written, on the model that the run started from."""
    from peft import PeftModel

    assert cli.main(["export", str(last(runs / name)), "--adapters", "--out", str(tmp_path / "a")]) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    given = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (given["r"], given["lora_alpha"], given["base_model_name_or_path"]) == (3, 5, str(runs / "moe"))
    base = AutoModelForImageTextToText.from_pretrained(runs / "moe")
    base.requires_grad_(False)
    before = {n: p.clone() for n, p in base.named_parameters()}
    model: Any = PeftModel.from_pretrained(base, str(tmp_path / "a"))
    found = dict(model.merge_and_unload().named_parameters())
    final = dict(AutoModelForImageTextToText.from_pretrained(runs / name / "final").named_parameters())
    assert found.keys() == final.keys()
    moved = 0.0
    for weight, value in final.items():
        value = value.detach()
        torch.testing.assert_close(found[weight], value, rtol=1e-5, atol=1e-6)
        moved = max(moved, float((value - before[weight]).abs().max()))
    assert moved > 1e-4, "adapters that change nothing would pass"


@pytest.mark.slow
def test_a_run_means_its_newest_whole_checkpoint(runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "dense-0", run)
    assert find_checkpoint(run) == step_dir(run / "checkpoints", 2)
    with (step_dir(run / "checkpoints", 2) / "rank_0.json").open("a") as file:
        file.write(" ")
    assert find_checkpoint(run) == step_dir(run / "checkpoints", 1)
    assert "step_00000002 is damaged and passed over: rank_0.json" in caplog.text
    assert cli.main(["export", str(run), "--out", str(tmp_path / "first")]) == 0
    assert digests(tmp_path / "first") != digests(run / "final"), "that is the model of step 2"
    # What a cold start had saved is taken where the training has nothing, with the config of the cold start.
    (run / "checkpoints").rename(run / "cold_start_checkpoints")
    (run / "config.yaml").rename(run / "config.sft.yaml")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "again")]) == 0
    assert digests(tmp_path / "again") == digests(tmp_path / "first")
    with (step_dir(run / "cold_start_checkpoints", 1) / "rank_0.json").open("a") as file:
        file.write(" ")
    with pytest.raises(CheckpointError, match=r"\(damaged: step_00000002, step_00000001\)"):
        find_checkpoint(run)


@pytest.mark.slow
def test_files_of_the_older_format_are_read_too(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "moe-3-frozen-bf16", run)
    checkpoint = last(run)
    for file in (checkpoint / "shards").glob("*.pt"):
        with torch.serialization.safe_globals([*SHARD_CLASSES, *MEMBERS]):
            content = torch.load(file, weights_only=True)
        torch.save(content, file, _use_new_zipfile_serialization=False)
    manifest = read_manifest(checkpoint)
    manifest["files"] = {name: _digest(checkpoint / name) for name in manifest["files"]}
    (checkpoint / MANIFEST).write_text(seal(manifest))
    assert cli.main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    assert digests(tmp_path / "out") == digests(run / "final")


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, number = tmp_path / "run", iter(range(1000))
    shutil.copytree(runs / "moe-3-lora", run)
    checkpoint = last(run)

    def refused(*words: str | Path, out: Path | None = None) -> str:
        out = out or tmp_path / f"out{next(number)}"
        there = out.exists()
        assert cli.main(["export", *map(str, words), "--out", str(out)]) == 2
        assert out.exists() == there and not list(tmp_path.glob(".out*"))
        said = capsys.readouterr().err
        assert said.startswith("sapo-vl export: ") and said.count("\n") == 1
        return said

    for name in read_manifest(checkpoint)["files"]:
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:-1])
        assert f"CheckpointError: {checkpoint} is no whole checkpoint: {name} has another digest" in refused(checkpoint)
        (checkpoint / name).write_bytes(whole)
    assert f"{tmp_path} is no checkpoint (it has no {MANIFEST}), and no run folder" in refused(tmp_path)
    assert f"{tmp_path}/nowhere is no checkpoint" in refused(tmp_path / "nowhere")
    assert "exists already" in refused(checkpoint, out=runs)

    untie(runs / "dense", tmp_path / "apart")
    other = refused(checkpoint, "--model", runs / "dense")
    assert f"ModelError: {checkpoint} is not of the model in {runs}/dense" in other
    assert "is not in the checkpoint" in other and "(and " in other and "with --model" in other
    for source, model, there in ((checkpoint, "untied", "one"), (runs / "untied-2-bf16", "moe", "two")):
        assert f"head and embedding are {there} in the checkpoint" in refused(source, "--model", runs / model)
    assert "head and embedding are one in the checkpoint" in refused(runs / "dense-0", "--model", tmp_path / "apart")
    gone = refused(checkpoint, "--model", tmp_path / "gone")
    assert "there is no such folder" in gone and "name its folder with --model" in gone
    assert "without adapters (model.lora)" in refused(runs / "dense-0", "--adapters")

    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(exporting.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 10, 10))
        assert "ExportError" in (full := refused(checkpoint)) and "0.00 GiB are free" in full

    def fills_up(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "write_proved", fills_up)
        assert "was not written: [Errno 28] No space left on device" in refused(checkpoint)

    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("rank: 3", "rank: 4"))
    assert "is [3, 96] in the checkpoint and [4, 96] in the model" in refused(checkpoint)
    (run / "config.yaml").write_text(config.replace("dtype: float32", "dtype: bfloat16"))
    assert "is of a model in torch.float32, the config of its run says torch.bfloat16" in refused(checkpoint)
    for text in ("model: [", "steps: 3", "model: {path: 3}", ""):
        (run / "config.yaml").write_text(text)
        assert f"{run}/config.yaml, which says how the model" in refused(checkpoint)


@pytest.mark.slow
def test_an_evaluation_that_fails_costs_neither_model_nor_checkpoint(runs: Path) -> None:
    """The last one is after both; the test above shows that the two are one model."""
    run = runs / "dense-0"
    assert not (run / "summary.json").exists(), "the evaluation did not fail"
    assert find_checkpoint(run) == step_dir(run / "checkpoints", 2)
    assert AutoModelForImageTextToText.from_pretrained(run / "final").num_parameters() > 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_pieces_of_ranks_are_put_together(ranks: int, seed: int) -> None:
    """Cut by hand: each rank has its share of every weight, the last ones padded, one weight after the other."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 7, (6, 2), generator=random).tolist()
    weights = {f"w{i}": torch.randn(*size, generator=random) for i, size in enumerate([*sizes, (1,), (ranks, 4)])}
    flat: list[list[float]] = [[] for _ in range(ranks)]
    for value in weights.values():
        left = value.flatten().tolist()
        share = (len(left) + ranks - 1) // ranks
        left += [99.0] * (share * ranks - len(left))
        for rank in range(ranks):
            flat[rank] += left[rank * share : (rank + 1) * share]
    shapes = {name: value.shape for name, value in weights.items()}
    found = _cut(shapes, [torch.tensor(values) for values in flat])
    assert {name: stored.shape for name, stored in found.items()} == {n: tuple(v.shape) for n, v in weights.items()}
    for name, value in weights.items():
        assert torch.equal(found[name].whole(torch.float32), value)
        assert torch.equal(found[name].whole(torch.bfloat16), value.bfloat16())
    with pytest.raises(ValueError, match="values on each rank"):
        _cut(shapes, [torch.tensor([*values, 1.0]) for values in flat])


def test_files_are_mapped_and_the_disk_says_why_not(tmp_path: Path) -> None:
    file, older = str(tmp_path / "x.pt"), str(tmp_path / "y.pt")
    state = {"module": {"w": torch.randn(1000, 50)}}
    engine = RestrictedCheckpointEngine()
    engine.save(state, file)
    torch.save(state, older, _use_new_zipfile_serialization=False)
    for path in (file, older):
        assert torch.equal(engine.load(path, "cpu", mapped=True)["module"]["w"], state["module"]["w"])
        assert torch.equal(engine.load(path)["module"]["w"], state["module"]["w"])
    mapped = engine.load(file, "cpu", mapped=True)["module"]["w"]
    maps = Path("/proc/self/maps").read_text()
    assert file in maps and mapped.sum() == state["module"]["w"].sum()
    assert engine.fault == ""
    engine.save(state, "/dev/full")
    assert engine.fault == "/dev/full: [Errno 28] No space left on device"
    engine.save(state, str(tmp_path / "nowhere" / "x.pt"))
    assert engine.fault.startswith("/dev/full"), "the first one counts"

    class Odd:
        def __reduce__(self) -> Any:
            raise RuntimeError("not of the disk")

    with pytest.raises(RuntimeError, match=re.escape("not of the disk")):
        engine.save({"x": Odd()}, file)
