"""Model folders told from their headers: names, shapes, layouts, ties; and rewriting them in the hub's layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_launch import run_python, run_ranks
from helpers_models import MODEL, make_model, processor
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from sapo_vl.model.convert import convert
from sapo_vl.model.export import carried_files, save_hf_folder
from sapo_vl.model.folder import INDEX, SINGLE, ModelError, check_layout_for_vllm, examine, read_headers, write_weights
from sapo_vl.model.identity import model_digest
from sapo_vl.model.loading import load_model

State = dict[str, Tensor]
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
HIDDEN = 96  # of the tiny text model


def write(folder: Path, change: Callable[[State], State]) -> Path:
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": "pt"})
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def turned(state: State) -> State:
    return {n: t.transpose(1, 2).contiguous() if n.endswith(EXPERTS) else t for n, t in state.items()}


@pytest.fixture
def dense(seed: int, tmp_path: Path) -> Path:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def moe(seed: int, tmp_path: Path) -> Path:
    save_hf_folder(make_model("moe", seed), processor(), tmp_path / "moe")
    return tmp_path / "moe"


# --- names and shapes -----------------------------------------------------------------------------


def test_a_whole_folder_is_told_from_its_headers(moe: Path) -> None:
    folder = examine(str(moe))
    model = AutoModelForImageTextToText.from_pretrained(moe)
    assert folder.shapes == {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert (folder.layout, folder.alike, folder.tied) == ("hub", False, True)
    assert folder.numel == sum(p.numel() for p in model.parameters())
    assert folder.stored_bytes == (moe / SINGLE).stat().st_size


NORM = "model.language_model.layers.1.input_layernorm.weight"
Change = Callable[[State], State]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: t for n, t in s.items() if ".layers.1." not in n}, rf"weights are missing: {NORM}"),
        (lambda s: {n: t for n, t in s.items() if "embed_tokens" not in n}, r"2 weights are missing: lm_head\.weight"),
        (lambda s: s | {"model.language_model.extra": torch.ones(2)}, r"1 weights are of no part.*model\.extra"),
        (lambda s: s | {NORM: torch.ones(95)}, rf"{NORM} is \[95\] and should be \[96\]"),
    ],
)
def test_what_is_not_the_models_is_named(dense: Path, change: Change, message: str) -> None:
    write(dense, change)
    with pytest.raises(ModelError, match=message):
        examine(str(dense))


def test_files_that_cannot_be_read_are_named(dense: Path) -> None:
    whole = (dense / SINGLE).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\xff" * 200, whole[:6]):
        (dense / SINGLE).write_bytes(content)
        with pytest.raises(ModelError, match=re.escape(f"{dense / SINGLE} cannot be read")):
            examine(str(dense))
    (dense / SINGLE).unlink()
    (dense / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: pickled weights are not read"):
        examine(str(dense))


def sharded(folder: Path) -> list[str]:
    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    write_weights(iter(state.items()), folder, shard_bytes=sum(t.numel() * 4 for t in state.values()) // 3)
    return sorted(p.name for p in folder.glob("*.safetensors"))


def test_shards_and_their_index(dense: Path) -> None:
    one = {n: t.clone() for n, t in load_file(dense / SINGLE).items()}
    files = sharded(dense)
    assert files == [f"model-0000{i + 1}-of-0000{len(files)}.safetensors" for i in range(len(files))] and len(files) > 2
    found = examine(str(dense))
    assert {n: w.shape for n, w in found.weights.items()} == {n: tuple(t.shape) for n, t in one.items()}
    loaded = AutoModelForImageTextToText.from_pretrained(dense).state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in one.items())

    edit(dense / INDEX, lambda index: index["weight_map"].update({NORM: files[-1], "nowhere": files[0]}))
    with pytest.raises(ModelError, match=rf"{files[0]} lacks 1 weights that .* places there: nowhere"):
        examine(str(dense))
    edit(dense / INDEX, lambda index: index["weight_map"].update({"nowhere": "../x.safetensors"}))
    with pytest.raises(ModelError, match="a weight file lies beside its index"):
        examine(str(dense))
    edit(dense / INDEX, lambda index: index["weight_map"].update({"nowhere": "gone.safetensors"}))
    with pytest.raises(ModelError, match=r"lacks 1 of its weight files: gone\.safetensors"):
        examine(str(dense))
    (dense / INDEX).write_text('{"weight_map": [1]}')
    with pytest.raises(ModelError, match="cannot be read as an index"):
        read_headers(dense)


def test_what_transformers_leaves_alone_is_left_alone(dense: Path) -> None:
    """Buffers that old trainers saved, and files beside the model's own that nobody reads."""
    before = model_digest(str(dense))
    (dense / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (dense / "adapter_model.safetensors").write_bytes(b"")
    assert model_digest(str(dense)) == before
    buffers = ("model.language_model.layers.0.self_attn.rotary_emb.inv_freq", "model.visual.rotary_pos_emb.inv_freq")
    write(dense, lambda s: s | {name: torch.ones(8) for name in buffers})
    folder = examine(str(dense))
    assert folder.weights.keys() | {"lm_head.weight"} == folder.shapes.keys()
    load_model(MODEL.model_copy(update={"path": str(dense)}), folder)
    convert(str(dense), dense.parent / "out")
    assert load_file(dense.parent / "out" / SINGLE).keys() == folder.weights.keys()


def test_adapters_on_top_are_refused(dense: Path) -> None:
    (dense / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"has an adapter_config\.json"):
        examine(str(dense))


def test_quantised_weights_are_refused(dense: Path) -> None:
    edit(dense / "config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"}))
    with pytest.raises(ModelError, match=r"quantised weights \(fp8\)"):
        examine(str(dense))


# --- tied or not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("inner", [True, False, None])
def test_a_tie_is_a_fact_about_two_weights(moe: Path, top: bool, inner: bool | None) -> None:
    """Against what transformers makes of the same folder."""

    def change(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = top
        config["text_config"].pop("tie_word_embeddings", None)
        if inner is not None:
            config["text_config"]["tie_word_embeddings"] = inner

    edit(moe / "config.json", change)
    head = torch.randn(load_file(moe / SINGLE)["model.language_model.embed_tokens.weight"].shape)
    if not top:
        with pytest.raises(ModelError, match=r"1 weights are missing: lm_head\.weight; its config does not tie"):
            examine(str(moe))
        write(moe, lambda s: s | {"lm_head.weight": head})
    folder = examine(str(moe))
    stock = AutoModelForImageTextToText.from_pretrained(moe)
    assert folder.tied == (stock.lm_head.weight is stock.get_input_embeddings().weight) == top
    ours: Any = load_model(MODEL.model_copy(update={"path": str(moe)}))
    assert torch.equal(ours.lm_head.weight, stock.lm_head.weight)
    written = json.loads(carried_files(folder, "float32")[0]["config.json"])
    assert written["tie_word_embeddings"] is written["text_config"]["tie_word_embeddings"] is top


def test_two_different_weights_are_not_tied_whatever_the_config_says(
    dense: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = load_file(dense / SINGLE)["model.language_model.embed_tokens.weight"].clone()
    write(dense, lambda s: s | {"lm_head.weight": embedding.clone()})
    assert examine(str(dense)).tied
    write(dense, lambda s: s | {"lm_head.weight": embedding + 1})
    folder = examine(str(dense))
    assert not folder.tied and "two different weights" in caplog.text
    model: Any = load_model(MODEL.model_copy(update={"path": str(dense)}), folder)
    assert torch.equal(model.lm_head.weight, embedding + 1)
    assert torch.equal(model.get_input_embeddings().weight, embedding)


# --- layouts of expert weights --------------------------------------------------------------------


@pytest.mark.slow
def test_experts_lie_right_in_every_layout_and_stage(seed: int, tmp_path: Path) -> None:
    """Also with 2I = H (48) and I = H (96), where one of the two weights has one shape in both layouts."""
    truth: dict[str, State] = {}
    for inner in (64, HIDDEN // 2, HIDDEN):
        model = make_model("moe", seed, text={"moe_intermediate_size": inner})
        name = f"inner{inner}"
        truth[name] = {n: p.detach().clone() for n, p in model.named_parameters()}
        for layout in ("runtime", "hub"):
            out = tmp_path / f"{name}-{layout}"
            model.save_pretrained(out, save_original_format=False)  # the layout of the running model
            if layout == "hub":
                write(out, turned)
            processor().save_pretrained(out)
            folder = examine(str(out))
            assert (folder.layout, folder.alike) == (layout, inner != 64)
    run_ranks(2, "layout_worker.py", tmp_path)
    for path in sorted(tmp_path.glob("*.zero?.safetensors")):
        loaded, wanted = load_file(path), truth[path.name.split("-")[0]]
        assert loaded.keys() == wanted.keys()
        wrong = [n for n, t in wanted.items() if not torch.equal(loaded[n], t)]
        assert not wrong, f"{path.name}: {wrong}"
    assert len(list(tmp_path.glob("*.zero?.safetensors"))) == 12


def test_mixed_layouts_are_refused(moe: Path) -> None:
    first = "model.language_model.layers.0.mlp.experts.down_proj"
    write(moe, lambda s: s | {first: s[first].transpose(1, 2).contiguous()})
    with pytest.raises(ModelError, match="expert weights lie in two layouts"):
        examine(str(moe))


def one_by_one(state: State) -> State:
    """Every expert a weight of its own, from the hub's layout."""
    out = {n: t for n, t in state.items() if not n.endswith(EXPERTS)}
    for name, value in state.items():
        stem = name.rpartition(".")[0]
        for i in range(len(value)):
            if name.endswith("gate_up_proj"):
                gate, up = value[i].T.chunk(2)
                out |= {
                    f"{stem}.{i}.gate_proj.weight": gate.contiguous(),
                    f"{stem}.{i}.up_proj.weight": up.contiguous(),
                }
            elif name.endswith("experts.down_proj"):
                out[f"{stem}.{i}.down_proj.weight"] = value[i].T.contiguous()
    return out


@pytest.mark.parametrize(("change", "counted"), [(turned, "turned"), (one_by_one, "joined"), (dict, "")])
def test_convert_writes_the_hubs_layout(moe: Path, tmp_path: Path, change: Change, counted: str) -> None:
    original = {n: t.clone() for n, t in load_file(moe / SINGLE).items()}
    write(moe, change)
    if counted == "turned":
        with pytest.raises(ModelError, match=r"vLLM cannot load .*sapo-vl convert"):
            check_layout_for_vllm(examine(str(moe)))
    if counted == "joined":
        with pytest.raises(ModelError, match="sapo-vl convert"):
            examine(str(moe))
    counts = convert(str(moe), tmp_path / "out")
    found = load_file(tmp_path / "out" / SINGLE)
    assert found.keys() == original.keys() and all(torch.equal(found[n], t) for n, t in original.items())
    layers, experts = 3, 8
    wanted = {"turned": 2 * layers, "joined": 3 * layers * experts, "": 0}[counted]
    assert counts == {"weights": len(original), "turned": 0, "joined": 0} | ({counted: wanted} if counted else {})
    check_layout_for_vllm(examine(str(tmp_path / "out")))
    names = {p.name for p in moe.iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(ModelError, match="exists already"):
        convert(str(moe), tmp_path / "out")


def test_convert_names_a_missing_expert_and_leaves_nothing(moe: Path, tmp_path: Path) -> None:
    for expert in (3, 7):  # in the middle, and the last, which only the config tells of
        names_a_missing_expert(moe, tmp_path, f"model.language_model.layers.1.mlp.experts.{expert}.up_proj.weight")


def names_a_missing_expert(moe: Path, tmp_path: Path, gone: str) -> None:
    whole = {n: t.clone() for n, t in load_file(moe / SINGLE).items()}
    write(moe, lambda s: {n: t for n, t in one_by_one(s).items() if n != gone})
    with pytest.raises(ModelError, match=re.escape(gone)):
        convert(str(moe), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["moe"]
    save_file(whole, moe / SINGLE, metadata={"format": "pt"})


@pytest.mark.slow
def test_the_command(moe: Path, tmp_path: Path) -> None:
    write(moe, turned)
    done = run_python("-m", "sapo_vl", "convert", moe, "--out", tmp_path / "out")
    assert "6 expert weights turned" in done.stdout
    shutil.rmtree(tmp_path / "out")
    (moe / SINGLE).unlink()
    failed = run_python("-m", "sapo_vl", "convert", moe, "--out", tmp_path / "out", check=False)
    assert failed.returncode == 2 and "it lacks its weight files" in failed.stdout and "Traceback" not in failed.stdout


# --- what is carried over -------------------------------------------------------------------------


def test_generation_settings_that_transformers_would_not_save(dense: Path) -> None:
    path = dense / "generation_config.json"
    given = path.read_bytes()
    assert carried_files(examine(str(dense)), "float32")[0]["generation_config.json"] == given
    edit(path, lambda g: g.update(do_sample=False, temperature=0.7, top_k=20))
    files, repairs = carried_files(examine(str(dense)), "float32")
    kept = json.loads(files["generation_config.json"])
    assert (
        "temperature" not in kept and "top_k" not in kept and kept["eos_token_id"] == json.loads(given)["eos_token_id"]
    )
    assert len(repairs) == 1 and "temperature, top_k" in repairs[0]
    path.write_text("[1]")
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read"):
        carried_files(examine(str(dense)), "float32")


def test_the_config_says_the_dtype_that_is_written(dense: Path) -> None:
    for key in ("dtype", "torch_dtype"):

        def change(config: dict[str, Any], key: str = key) -> None:
            for part in (config, config["text_config"]):
                part.pop("dtype", None)
                part[key] = "float32"

        edit(dense / "config.json", change)
        written = json.loads(carried_files(examine(str(dense)), "bfloat16")[0]["config.json"])
        assert written[key] == written["text_config"][key] == "bfloat16"
        assert ("torch_dtype" in written) == (key == "torch_dtype") and ("dtype" in written) == (key == "dtype")
