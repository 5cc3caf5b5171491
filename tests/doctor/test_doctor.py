"""The doctor passes here, and every check of it can fail."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_launch import run_python
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from sapo_vl import doctor
from sapo_vl.doctor import case, folder_checks, model_checks, system_checks
from sapo_vl.doctor.base import Finding, Inapplicable, Outcome
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import examine as examine_folder
from sapo_vl.model.tiny import build_tiny
from sapo_vl.rollout.vllm.contract import VllmMissing, load_contract


def only(name: str, model: str = "") -> Finding:
    (finding,) = doctor.examine([name], model)
    return finding


def assert_fails(name: str, *words: str) -> None:
    finding = only(name)
    assert finding.outcome is Outcome.FAIL, finding
    assert finding.remedy
    for word in words:
        assert word in finding.detail


@pytest.mark.slow
def test_all_checks_pass_here() -> None:
    printed = run_python("-m", "sapo_vl", "doctor", "--json", timeout=400, fresh=True).stdout
    result = json.loads(printed.splitlines()[-1])
    assert result["ok"]
    assert {f["name"]: f["outcome"] for f in result["findings"]} == dict.fromkeys(doctor.CHECKS, "pass")
    moe = next(f["detail"] for f in result["findings"] if f["name"] == "vllm_moe")
    assert "synced by 'repack'" in moe


@pytest.mark.slow
def test_a_model_folder_of_the_user_is_tried_in_whole(tmp_path: Path) -> None:
    """Five layers, of which a copy keeps two; experts in the layout that vLLM does not read."""
    sizes = {"num_hidden_layers": 5}
    model = build_tiny("moe", case.processor().tokenizer, 0, sizes)
    model.save_pretrained(tmp_path / "model", save_original_format=False)
    case.processor().save_pretrained(tmp_path / "model")
    printed = run_python(
        "-m", "sapo_vl", "doctor", "--json", "--model", tmp_path / "model", timeout=400, fresh=True
    ).stdout
    result = json.loads(printed.splitlines()[-1])
    details = {f["name"]: f["detail"] for f in result["findings"]}
    assert {f["name"]: f["outcome"] for f in result["findings"]} == dict.fromkeys(doctor.ON_A_MODEL, "pass")
    assert "experts as transformers holds them" in details["loading"] and "sapo-vl convert" in details["loading"]
    assert "head tied to the embedding" in details["loading"]
    assert "the chat template opens no thinking" in details["tokens"]
    for name in ("trial", "vllm_model"):
        assert details[name].startswith("2 of 5 layers and 8 of 8 experts, all widths as they are: ")
    assert "weights written and read back" in details["trial"] and "Not tried: the whole model" in details["trial"]


def test_a_folder_that_does_not_load_is_one_finding(tmp_path: Path) -> None:
    save_hf_folder(case.tiny_model("moe", 0), case.processor(), tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    findings = {f.name: f for f in doctor.examine(tuple(doctor.ON_A_MODEL), str(tmp_path / "model"))}
    failed = [name for name, f in findings.items() if f.outcome is Outcome.FAIL]
    assert failed == ["loading"] and "lacks its weight files" in findings["loading"].detail
    assert {n for n, f in findings.items() if f.outcome is Outcome.SKIP} == {"tokens", "trial", "vllm_model", "memory"}
    assert only("ids", str(tmp_path / "none")).outcome is Outcome.FAIL


def test_a_copy_keeps_few_layers_and_few_experts_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny("moe", case.processor().tokenizer, 0, {"num_hidden_layers": 4})
    save_hf_folder(model, case.processor(), tmp_path / "model")
    folder = examine_folder(str(tmp_path / "model"))
    needed = 16 * folder_checks._numel(folder, 2, 2)
    memory = SimpleNamespace(available=needed / folder_checks.SHARE)
    monkeypatch.setattr(folder_checks.psutil, "virtual_memory", lambda: memory)
    cut = folder_checks.cut_down(folder, tmp_path / "cut")
    assert (cut.layers, cut.of_layers, cut.experts, cut.of_experts) == (2, 4, 2, 8)
    copy = examine_folder(str(tmp_path / "cut"))
    kept = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "cut").named_parameters())
    assert copy.numel == folder_checks._numel(folder, 2, 2) == sum(p.numel() for p in kept.values())
    whole = dict(model.named_parameters())
    for name, value in kept.items():
        assert torch.equal(value, whole[name][: value.shape[0]]), name
    memory.available /= 100
    with pytest.raises(Inapplicable, match="even 2 layers take"):
        folder_checks.cut_down(folder, tmp_path / "again")


def test_missing_and_old_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = system_checks.metadata.version
    monkeypatch.setattr(system_checks.metadata, "version", lambda name: "0.1" if name == "peft" else real(name))
    assert_fails("versions", "peft 0.1 is not >=")


def test_too_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    assert_fails("resources", "1.0 GiB free")


def test_an_image_of_the_wrong_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = case.prompts

    def longer(chat: Any, seed: int) -> list[Any]:
        return [dataclasses.replace(p, ids=np.append(p.ids, p.ids[-1])) for p in real(chat, seed)]

    monkeypatch.setattr(case, "prompts", longer)
    assert_fails("ids", "probe-0")


def test_text_positions_under_an_image_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = case.prompts

    def in_a_row(chat: Any, seed: int) -> list[Any]:
        return [
            dataclasses.replace(p, positions=np.broadcast_to(np.arange(len(p.ids)), (3, len(p.ids))))
            for p in real(chat, seed)
        ]

    monkeypatch.setattr(case, "prompts", in_a_row)
    assert_fails("positions", "probe-0")


def test_a_response_that_sees_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = model_checks.pack

    def leaky(groups: Any, blank: Any) -> Any:
        batch = real(groups, blank)
        return dataclasses.replace(batch, positions=batch.positions.flip(-1))

    monkeypatch.setattr(model_checks, "pack", leaky)
    assert_fails("shared_prefix", "differs by")


def test_a_stage_that_updates_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "_updated_logprobs", lambda stage, _: torch.full((3,), 1e-4 * (stage == 2)))
    assert_fails("deepspeed", "1.0e-04")


def test_transposed_experts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = model_checks.load_model

    def transposed(config: Any) -> Any:
        model = real(config)
        experts = model.model.language_model.layers[0].mlp.experts
        experts.down_proj.data = experts.down_proj.data.flip(0)
        return model

    monkeypatch.setattr(model_checks, "load_model", transposed)
    assert_fails("moe_export", "after a round trip")


def test_a_check_that_breaks_is_a_finding_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Any) -> str:
        raise RuntimeError("out of luck")

    def absent(_: Any) -> str:
        raise Inapplicable("no such thing here")

    monkeypatch.setitem(doctor.CHECKS, "ids", breaks)
    monkeypatch.setitem(doctor.CHECKS, "vllm_moe", absent)
    first, second, third = doctor.examine(["ids", "vllm_moe", "resources"])
    assert (first.outcome, first.detail) == (Outcome.FAIL, "RuntimeError: out of luck")
    assert (second.outcome, third.outcome) == (Outcome.SKIP, Outcome.PASS)
    text = doctor.as_text([first, second, third])
    assert "1 of 3 checks failed" in text
    assert not json.loads(doctor.as_json([first]))["ok"]
    assert json.loads(doctor.as_json([second]))["ok"]


def test_an_unknown_vllm_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(VllmMissing, match=r"vLLM 0\.19\.1 is not known.*0\.32\.x"):
        load_contract("0.19.1")
    assert load_contract("0.32.7").SYNC_METHODS[0] == "reload"


def test_noise_is_added_where_the_weights_are() -> None:
    """A stand-in for a GPU, which has shapes and devices, and no values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = torch.nn.Linear(2, 3, device="cuda")
        case.perturb(model, seed=1)
        assert {p.device.type for p in model.parameters()} == {"cuda"}
