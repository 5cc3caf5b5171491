"""The written model is read back, and a folder that is not the model never gets its name."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_launch import run_ranks
from helpers_models import MODEL, Kind, make_model, processor
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from sapo_vl.distributed import World
from sapo_vl.learning import final
from sapo_vl.learning.final import ExportError, make_probe, save_model, tensor_digest, tried_probe
from sapo_vl.learning.optim import ZeroConfig
from sapo_vl.model.chat import Chat
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import ModelFolder, examine
from sapo_vl.model.loading import load_model
from sapo_vl.model.policy import PolicyModule


@dataclasses.dataclass
class Engine:
    """As much of a PolicyEngine of one rank as an export uses."""

    module: PolicyModule
    zero: ZeroConfig
    world: World

    def logprobs(self, batches: list[Any], filler: Any) -> list[Any]:
        with torch.no_grad():
            return [self.module.eval()(batch) for batch in batches]


@dataclasses.dataclass
class Trained:
    engine: Any
    folder: ModelFolder
    chat: Chat
    state: dict[str, torch.Tensor]


def trained(kind: Kind, seed: int, path: Path) -> Trained:
    """A loaded model whose weights have moved since."""
    save_hf_folder(make_model(kind, seed), processor(), path)
    folder = examine(str(path))
    config = MODEL.model_copy(update={"path": str(path)})
    model = load_model(config, folder)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn_like(p)
    chat = Chat.load(model, config)
    engine = Engine(
        PolicyModule(model, chat.banned_ids), ZeroConfig(stage=0), World(rank=0, size=1, device=torch.device("cpu"))
    )
    return Trained(engine, folder, chat, {n: p.detach().clone() for n, p in model.named_parameters()})


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_what_is_written_is_what_was_trained(kind: Kind, seed: int, tmp_path: Path) -> None:
    t = trained(kind, seed, tmp_path / "source")
    proof = save_model(t.engine, t.folder, "float32", tmp_path / "final", make_probe(t.chat))
    assert proof.weights == len(t.state) and proof.probe_gap == 0 and proof.probe == ""
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    found = dict(stock.named_parameters())
    assert found.keys() == t.state.keys() and all(torch.equal(found[n], v) for n, v in t.state.items())
    assert "use_cache" not in json.loads((tmp_path / "final" / "config.json").read_text())
    names = {p.name for p in (tmp_path / "source").iterdir()}
    assert {p.name for p in (tmp_path / "final").iterdir()} == names
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "source"]
    # Once more over what is there, from other weights: the new one counts.
    with torch.no_grad():
        t.engine.module.head.weight.add_(1)
    assert save_model(t.engine, t.folder, "float32", tmp_path / "final", make_probe(t.chat)).digest != proof.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "source"]


@pytest.mark.parametrize(("stage", "met"), [(1, ["write", "read back"]), (3, ["read back"])])
def test_the_other_ranks_meet_the_one_that_is_at_the_disk(
    stage: Any, met: list[str], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sharded weights they gather along while it writes."""
    t = trained("dense", seed, tmp_path / "source")
    monkeypatch.setattr("sapo_vl.learning.weights.gathered", lambda *_: contextlib.nullcontext())
    t.engine.zero = ZeroConfig(stage=stage)
    inside, done = [False], list[str]()

    def of_main(self: World, work: Any) -> Any:
        inside[0] = True
        try:
            return work()
        finally:
            inside[0] = False

    def noted(name: str, action: Any) -> Any:
        def run(*given: Any) -> Any:
            if inside[0]:
                done.append(name)
            return action(*given)

        return run

    monkeypatch.setattr(World, "of_main", of_main)
    monkeypatch.setattr(final, "write_weights", noted("write", final.write_weights))
    monkeypatch.setattr(final, "check_values", noted("read back", final.check_values))
    save_model(t.engine, t.folder, "float32", tmp_path / "final", None)
    assert done == met


def test_a_probe_has_a_picture_and_a_text(seed: int, tmp_path: Path) -> None:
    t = trained("dense", seed, tmp_path / "source")
    one, two = make_probe(t.chat), make_probe(t.chat)
    assert one is not None and two is not None
    assert torch.equal(one.ids, two.ids) and one.has_images and len(one.targets) == 16
    assert not set(one.targets.tolist()) & set(t.chat.banned_ids)


def test_a_probe_that_cannot_be_run_is_known_at_the_start(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trained("dense", seed, tmp_path / "source")
    probe, right = tried_probe(t.engine, t.chat), make_probe(t.chat)
    assert probe is not None and right is not None and torch.equal(probe.ids, right.ids)

    def broken(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Engine, "logprobs", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        tried_probe(t.engine, t.chat)
    t.chat.config = t.chat.config.model_copy(update={"max_prompt_tokens": 1})
    assert tried_probe(t.engine, t.chat) is None, "nothing is asked"


def test_a_probe_leaves_out_what_no_prompt_can_be_made_of(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A template that writes no pictures, and limits that nothing fits: known at the start, and no model is lost."""
    t = trained("dense", seed, tmp_path / "source")
    t.chat.processor = copy.copy(t.chat.processor)
    t.chat.processor.chat_template = "{% for m in messages %}{{ m.content[-1].text }}{% endfor %}"
    probe = make_probe(t.chat)
    assert probe is not None and not probe.has_images and len(probe.targets) == 8
    assert "image placeholders for 1 images" in caplog.text
    t.chat.config = t.chat.config.model_copy(update={"max_prompt_tokens": 1})
    assert make_probe(t.chat) is None
    proof = save_model(t.engine, t.folder, "float32", tmp_path / "final", None)
    assert proof.probe_gap is None and proof.probe == "no probe could be made a prompt"
    assert proof.weights == len(t.state)


def spoil(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = final.write_weights

    def spoiled(weights: Any, folder: Path) -> None:
        write(weights, folder)
        file = folder / "model.safetensors"
        state = load_file(file)
        name = "model.language_model.norm.weight"
        if what == "a value":
            state[name] = state[name].clone()
            state[name][0] += 1e-3
        elif what == "a name":
            del state[name]
        save_file(state, file, metadata={"format": "pt"})
        if what == "the config":
            path = folder / "config.json"
            config = json.loads(path.read_text())
            config["text_config"]["rope_parameters"]["rope_theta"] /= 1000
            path.write_text(json.dumps(config))
        if what == "the processor":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
        if what == "the disk":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(final, "write_weights", spoiled)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a value", "1 weights were not read back as they were written: model.language_model.norm.weight"),
        ("a name", "1 weights are missing"),
        ("the config", "config or layout is read otherwise"),
        ("the disk", "No space left on device"),
        ("the processor", "tokenizer"),
    ],
)
def test_a_folder_that_is_not_the_model_does_not_get_its_name(
    what: str, message: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trained("dense", seed, tmp_path / "source")
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "older").touch()
    spoil(what, monkeypatch)
    with pytest.raises(ExportError, match=message) as raised:
        save_model(t.engine, t.folder, "float32", tmp_path / "final", make_probe(t.chat))
    assert (tmp_path / "final" / "older").exists(), "the older model stays"
    assert str(tmp_path / "final_unproved") in str(raised.value) and (tmp_path / "final_unproved").is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "final_unproved", "source"]


@pytest.mark.slow
def test_sharded_ranks_write_one_model_and_fail_together(seed: int, tmp_path: Path) -> None:
    """ZeRO-3 on two ranks: the others gather along while one writes, also when its disk fills up midway."""
    save_hf_folder(make_model("moe", seed), processor(), tmp_path / "source")
    (tmp_path / "out").mkdir()
    run_ranks(2, "final_worker.py", tmp_path / "source", tmp_path / "out")
    one, two = (json.loads((tmp_path / "out" / f"rank{r}.json").read_text()) for r in (0, 1))
    assert one == two and one["proof"]["probe_gap"] < 1e-5 and "No space left on device" in one["refused"]
    before = load_file(tmp_path / "source" / "model.safetensors")
    after = load_file(tmp_path / "out" / "final" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name] + 0.25) for name in before)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["final", "rank0.json", "rank1.json", "second_unproved"]


def test_digests_tell_values_and_types_apart() -> None:
    a = torch.arange(6.0).view(2, 3)
    assert tensor_digest(a) == tensor_digest(a.clone()) == tensor_digest(a.view(3, 2))  # shapes are compared apart
    b = a.clone()
    b[1, 2] = torch.nextafter(b[1, 2], torch.tensor(9.0))
    assert tensor_digest(a) != tensor_digest(b) and tensor_digest(a) != tensor_digest(a.bfloat16())
    assert tensor_digest(torch.empty(0)) != tensor_digest(torch.zeros(1))
