"""A model that is only sampled from: the trainer's responses, and nothing of a trainer in memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_launch import run_ranks
from helpers_models import MODEL, make_model, make_problem, processor
from safetensors.torch import load_file
from sampling_worker import held

from sapo_vl.distributed import World
from sapo_vl.learning.optim import ZeroConfig
from sapo_vl.model.chat import Chat
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.loading import load_model
from sapo_vl.rollout import RolloutConfig
from sapo_vl.rollout.vllm import engine as vllm_engine
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.session import open_sampling


def test_its_responses_are_the_trainers_and_it_holds_its_weights_alone(tmp_path: Path, seed: int) -> None:
    save_hf_folder(make_model("moe", seed), processor(), tmp_path / "model")
    run_ranks(2, "sampling_worker.py", tmp_path)
    weights = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "model/model.safetensors").values())
    for rank in range(2):
        found = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        for way in ("alone 0", "alone 3"):
            ours, trainers = found[way]["responses"], found["trainer"]["responses"]
            assert [ids for ids, _ in ours] == [ids for ids, _ in trainers]
            for (_, one), (_, other) in zip(ours, trainers, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)
        assert weights <= found["alone 0"]["held"] < 1.05 * weights
        assert 0.5 * weights <= found["alone 3"]["held"] < 0.6 * weights
        assert found["trainer"]["held"] > 1.4 * weights, "a trainer holds more: else this measures nothing"


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_with_vllm_nothing_of_the_model_is_loaded(kind: Any, tmp_path: Path, seed: int, monkeypatch: Any) -> None:
    """Prompts are the trainer's all the same; the engine gets the whole GPU and does not sleep."""
    save_hf_folder(make_model(kind, seed), processor(), tmp_path / "model")
    opened: dict[str, Any] = {}

    def open_engine(path: str, _model: Any, config: VllmConfig, *_: Any, **__: Any) -> Any:
        opened.update(path=path, config=config)
        sizes = SimpleNamespace(get_vocab_size=lambda: 1000)
        return SimpleNamespace(llm_engine=SimpleNamespace(model_config=sizes))

    monkeypatch.setattr(vllm_engine, "load_contract", lambda: SimpleNamespace(open_engine=open_engine))
    model = MODEL.model_copy(update={"path": str(tmp_path / "model")})
    before = held()
    session = open_sampling(
        model, ZeroConfig(), RolloutConfig(engine="vllm"), World.alone(), seed=0, gpu_share=0.8
    )  # fmt: skip
    assert held() - before < 10_000
    assert opened["path"] == str(tmp_path / "model")
    assert (opened["config"].gpu_memory_utilization, opened["config"].sleep) == (0.8, False)
    whole = Chat.load(load_model(model), model)
    problem = make_problem(np.random.default_rng(seed), "p", [(32, 48), (64, 16)])
    ours, theirs = session.chat.prompt(problem), whole.prompt(problem)
    assert session.chat.eos_ids == whole.eos_ids and session.chat.banned_ids == whole.banned_ids
    assert ours.ids.tolist() == theirs.ids.tolist() and np.array_equal(ours.positions, theirs.positions)
    assert ours.pixel_values is not None and theirs.pixel_values is not None
    assert torch.equal(ours.pixel_values, theirs.pixel_values)


def test_servers_are_handed_what_is_in_the_folder(tmp_path: Path, seed: int, monkeypatch: Any) -> None:
    """Which they may not hold: another run trained them."""
    save_hf_folder(make_model("moe", seed), processor(), tmp_path / "model")
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "sapo_vl.session.VllmServerEngine", lambda *args, **_: given.update(weights=args[3], expected=args[4])
    )
    model = MODEL.model_copy(update={"path": str(tmp_path / "model"), "dtype": "bfloat16"})
    rollout = RolloutConfig(engine="vllm_server", server={"urls": ["http://127.0.0.1:1"]})  # type: ignore[arg-type]
    open_sampling(model, ZeroConfig(), rollout, World.alone(), seed=0, gpu_share=0.9, out=tmp_path)
    sent = dict(given["weights"]())
    right = load_file(tmp_path / "model/model.safetensors")
    assert sent.keys() == right.keys() == given["expected"].keys()
    assert all(torch.equal(sent[n], t.to(torch.bfloat16)) for n, t in right.items())
