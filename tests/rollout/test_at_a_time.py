"""How many responses vLLM samples at a time, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_models import MODEL, make_model, processor

from sapo_vl.model.export import save_hf_folder
from sapo_vl.rollout.vllm.at_a_time import cache_holds, responses_at_a_time
from sapo_vl.rollout.vllm.config import VllmConfig


def test_what_the_cache_holds() -> None:
    """30B-A3B on four GPUs of 141 GB: 49.35 GB less 15.5 and 3, at 2048 tokens of 48 layers x 128 x 2 x 2 bytes."""
    thirty = {"room": 49_350_000_000, "weights": 15_500_000_000, "per_token": 48 * 128 * 4}
    assert cache_holds(**thirty, longest=4096) == 608  # 612.9, in steps of 32
    assert cache_holds(**thirty, longest=1024) == 1024
    assert cache_holds(**thirty, longest=200_000) == 32
    assert cache_holds(room=10, weights=20, per_token=1, longest=1) == 32  # vLLM itself says that it does not fit


def test_a_number_that_is_set_is_taken_and_a_cpu_has_vllms_own(tmp_path: Any) -> None:
    for on_cpu in (True, False):
        assert responses_at_a_time("/nowhere", MODEL, VllmConfig(max_num_seqs=7), 100, on_cpu) == 7
    assert responses_at_a_time("/nowhere", MODEL, VllmConfig(), 100, True) == 256


def test_sizes_are_read_from_the_folder(tmp_path: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("dense", seed)
    save_hf_folder(model, processor(), tmp_path)
    text = model.config.text_config
    weights = sum(p.numel() for p in model.parameters()) * 4
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
    memory = 2 * (weights + 3_000_000_000 + 100 * 500 * per_token)  # half of it, for 100 responses of 500 tokens
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
    assert responses_at_a_time(tmp_path, MODEL, VllmConfig(gpu_memory_utilization=0.5), 1000, False) in (64, 96)
