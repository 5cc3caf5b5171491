"""Learning-rate factors by hand, the DeepSpeed settings, and which matrices Muon takes."""

from __future__ import annotations

import math

import pytest
from helpers_models import make_policy
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sapo_vl.learning.optim import OptimConfig, ZeroConfig, deepspeed_config, lr_factor, tag_for_muon


@pytest.mark.parametrize(
    ("schedule", "warmup", "floor", "expected"),
    [
        ("constant", 0, 0.0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, 0.0, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", 0, 0.0, [1, 0.8, 0.6, 0.4, 0.2, 0]),
        ("linear", 1, 0.0, [1, 1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0, 0.5, [1, 0.9, 0.8, 0.7, 0.6, 0.5]),
        ("cosine", 1, 0.0, [1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        ("cosine", 1, 0.2, [1, 1, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2]),
    ],
)
def test_lr_factor(schedule: str, warmup: int, floor: float, expected: list[float]) -> None:
    config = OptimConfig(schedule=schedule, warmup_steps=warmup, min_lr_ratio=floor)  # type: ignore[arg-type]
    assert [lr_factor(config, u, 5) for u in range(6)] == pytest.approx(expected)


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 20),
    floor=st.floats(0, 1),
    update=st.integers(0, 100),
    total=st.integers(1, 60),
)
def test_lr_factor_stays_in_range(schedule: str, warmup: int, floor: float, update: int, total: int) -> None:
    """Never above the peak, never below the floor after the warm-up, also past the end and with a long warm-up."""
    config = OptimConfig(schedule=schedule, warmup_steps=warmup, min_lr_ratio=floor)  # type: ignore[arg-type]
    factor = lr_factor(config, update, total)
    assert factor + 1e-12 > 0 and factor <= 1 + 1e-12
    if update >= warmup:
        assert factor >= floor - 1e-12


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_settings(stage: int) -> None:
    optim = OptimConfig(lr=3e-4, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1, clip=0.5)
    out = deepspeed_config(optim, ZeroConfig(stage=stage), "float32")  # type: ignore[arg-type]
    assert out["zero_optimization"]["stage"] == stage
    assert out["optimizer"]["type"] == "AdamW"
    given = {k: out["optimizer"]["params"][k] for k in ("lr", "betas", "eps", "weight_decay")}
    assert given == {"lr": 3e-4, "betas": [0.8, 0.9], "eps": 1e-7, "weight_decay": 0.1}
    # Without ZeRO the engine clips by the norm it has taken already, but for bfloat16.
    assert out["gradient_clipping"] == (0.0 if stage == 0 else 0.5)
    bfloat16 = deepspeed_config(optim, ZeroConfig(stage=stage), "bfloat16")  # type: ignore[arg-type]
    assert bfloat16["gradient_clipping"] == 0.5
    assert out["gradient_accumulation_steps"] == 1, "shares are summed by the engine, not averaged by DeepSpeed"
    assert out["bf16"] == {"enabled": False}
    assert ("leaf_module" in out["zero_optimization"]) == (stage == 3)


def test_deepspeed_offload_and_bf16() -> None:
    zero = ZeroConfig(stage=3, offload_optimizer=True, offload_params=True)
    out = deepspeed_config(OptimConfig(), zero, "bfloat16")
    assert out["bf16"] == {"enabled": True}
    assert out["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert out["zero_optimization"]["offload_param"] == {"device": "cpu"}


def test_offload_needs_a_stage() -> None:
    with pytest.raises(ValidationError, match="offload_optimizer=true needs"):
        ZeroConfig(stage=0, offload_optimizer=True)
    with pytest.raises(ValidationError, match=r"offload_params=true needs zero.stage=3, got 2"):
        ZeroConfig(stage=2, offload_params=True)


def test_muon_takes_the_matrices_of_the_layers(seed: int) -> None:
    policy, _ = make_policy("moe", seed)
    tag_for_muon(policy)
    tagged = {n for n, p in policy.named_parameters() if p.use_muon}  # type: ignore[attr-defined]
    layer = "hf.model.language_model.layers.1."
    assert {layer + f"self_attn.{x}_proj.weight" for x in "qkvo"} <= tagged
    assert "hf.model.visual.blocks.0.attn.qkv.weight" in tagged
    for name in (
        layer + "mlp.gate.weight",
        layer + "mlp.experts.gate_up_proj",
        layer + "mlp.experts.down_proj",
        layer + "input_layernorm.weight",
        "hf.model.language_model.embed_tokens.weight",
        "hf.model.visual.pos_embed.weight",
        "hf.model.visual.blocks.0.attn.qkv.bias",
    ):
        assert name in dict(policy.named_parameters()) and name not in tagged
    assert all(p.ndim == 2 for n, p in policy.named_parameters() if n in tagged)


def test_muon_settings() -> None:
    out = deepspeed_config(
        OptimConfig(name="muon", lr=1e-4, muon_lr=0.03, muon_momentum=0.9), ZeroConfig(stage=0), "float32"
    )
    assert out["optimizer"]["type"] == "Muon"
    params = out["optimizer"]["params"]
    assert (params["lr"], params["muon_lr"], params["momentum"]) == (1e-4, 0.03, 0.9)
