"""`sapo-vl serve`: the command line that it becomes, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_models import MODEL, make_model, processor
from qwen_vl_utils.vision_process import smart_resize as resize_first
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as resize_again

from sapo_vl.commands.cli import main
from sapo_vl.model.export import save_hf_folder
from sapo_vl.rollout import RolloutConfig
from sapo_vl.rollout.vllm import v0_32
from sapo_vl.rollout.vllm.config import ServerConfig, VllmConfig
from sapo_vl.rollout.vllm.serve import ServeError, serve_command

SIZES = ["model.min_pixels=256", "model.max_pixels=16384", "model.max_prompt_tokens=400", "rollout.max_new_tokens=32"]


def options(command: list[str]) -> dict[str, str]:
    return {k: v for k, v in zip(command, [*command[1:], ""], strict=True) if k.startswith("--")}


def test_the_server_is_set_as_the_trainer_needs_it() -> None:
    model = MODEL.model_copy(update={"path": "/m", "revision": "abc", "dtype": "bfloat16"})
    rollout = RolloutConfig(max_new_tokens=32, vllm=VllmConfig(tensor_parallel=2, max_num_seqs=7))
    command, environment = serve_command(model, rollout, "127.0.0.1", 8123, on_cpu=False)
    given = options(command)
    assert given | {
        "--model": "/m", "--revision": "abc", "--dtype": "bfloat16", "--host": "127.0.0.1", "--port": "8123",
        "--max-model-len": "432", "--tensor-parallel-size": "2", "--max-num-seqs": "7",
        "--logprobs-mode": "processed_logprobs", "--generation-config": "vllm",
        "--worker-extension-cls": "sapo_vl.rollout.vllm.worker.WorkerExtension",
        "--mm-processor-kwargs": '{"size": {"shortest_edge": 1, "longest_edge": 16384}}',
        "--limit-mm-per-prompt": '{"image": 8, "video": 0}',
    } == given  # fmt: skip
    flags = {"--enable-scale-out", "--no-enforce-eager", "--no-trust-remote-code", "--enable-chunked-prefill"}
    assert flags <= set(command)
    assert environment == {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command, environment = serve_command(model, rollout, "::1", 8123, on_cpu=True)
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(command)
    assert environment["TORCHDYNAMO_DISABLE"] == "1"


@pytest.mark.parametrize("factor", [16, 32])
@pytest.mark.parametrize(
    ("least", "most"), [(256, 16384), (4096, 1 << 20), (1 << 18, 1 << 18), (200704, 1 << 18), (65536, 65536 + 9)]
)
def test_a_second_resize_changes_no_image(least: int, most: int, factor: int, seed: int) -> None:
    """vLLM resizes as transformers does what the trainer has resized: with the same bounds not always to the same."""
    rng = np.random.default_rng(seed)
    bounds = v0_32.image_bounds(least, most)
    assert bounds["longest_edge"] == most or most < 2 * least, "no wider than needed: vLLM makes room for the largest"
    for _ in range(2000):
        width, height = (int(x) for x in np.exp(rng.uniform(np.log(8), np.log(4000), 2)))
        if max(width, height) > 200 * min(width, height):
            continue
        first = resize_first(height, width, factor, least, most)
        if min(first) < factor or max(first) > 200 * min(first):
            continue  # a bad row: rounded down to nothing, or too thin once it is rounded
        again = resize_again(
            *first, factor=factor, min_pixels=bounds["shortest_edge"], max_pixels=bounds["longest_edge"]
        )
        assert again == first, (height, width)


def test_triton_multiplies_exactly_where_the_model_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TRITON_F32_DEFAULT"
    rollout = RolloutConfig(vllm=VllmConfig(max_num_seqs=7))
    for dtype, told in (("float32", "ieee"), ("bfloat16", None)):
        monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
        model = MODEL.model_copy(update={"path": "/m", "dtype": dtype})
        assert serve_command(model, rollout, "127.0.0.1", 8123, on_cpu=False)[1].get(name) == told
        v0_32.set_environment(rollout.vllm, dtype, on_cpu=False)
        assert os.environ.get(name) == told
    os.environ[name] = "tf32x3"
    v0_32.set_environment(rollout.vllm, "float32", on_cpu=False)
    assert os.environ[name] == "tf32x3", "what the user set stays"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "trainer.example"])
def test_it_listens_on_this_machine_only_unless_told(host: str) -> None:
    with pytest.raises(ServeError, match="without a key"):
        serve_command(MODEL, RolloutConfig(), host, 8000, on_cpu=True)
    told = RolloutConfig(server=ServerConfig(allow_remote=True))
    assert options(serve_command(MODEL, told, host, 8000, on_cpu=True)[0])["--host"] == host


def test_the_command_replaces_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, seed: int) -> None:
    save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
    became: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert main(["serve", "--port", "8001", f"model.path={tmp_path / 'm'}", *SIZES]) == 0
    ((program, command, environment),) = became
    assert program == command[0] and options(command)["--port"] == "8001"
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "3", "what the user set was overwritten"
    assert "VLLM_SERVER_DEV_MODE=1" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "model.path is empty"),
        (["model.path=/nowhere/m"], "there is no such folder"),
        (["--host", "0.0.0.0"], "without a key"),
        (["--port", "x"], "invalid int value"),
        (["rollout.vllm.sizes=3"], "unknown key"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was started"))
    if "--host" in arguments:
        save_hf_folder(make_model("dense", seed), processor(), tmp_path / "m")
        arguments = [*arguments, f"model.path={tmp_path / 'm'}"]
    try:
        status: Any = main(["serve", *arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    assert words in capsys.readouterr().err
