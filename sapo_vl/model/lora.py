"""LoRA: which weights of the language model are adapted, adding the adapters, folding them into the weights.

An adapted weight is W + alpha / rank * B A. Linear layers get one pair (A, B), through peft's own layers. The experts
of a MoE layer are two stacks of matrices, gate_up_proj [E, 2I, H] and down_proj [E, H, I]; through peft's parameter
targets each gets a pair for every expert, kept in two matrices: the rows of A are ordered by expert, then rank, the
columns of B by rank, then expert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from sapo_vl.model.errors import ModelError
from sapo_vl.strict import Strict

PREFIX = "base_model.model."
FUSED = ("gate_proj", "up_proj")  # one weight, gate_up_proj, in the experts
STACKS = ("gate_up_proj", "down_proj")
ROUTER_WORDS = ("gate", "mlp.gate", "router")


class LoraConfig(Strict):
    """Low-rank adapters on layers of the language model, through peft. All other weights are frozen.

    What is sampled from, streamed to a rollout engine and saved at the end are the merged weights.
    """

    rank: int = Field(default=16, ge=1)  # of each adapter; of each expert's, where experts are adapted
    alpha: int = Field(default=32, ge=1)  # an adapter is scaled by alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # before A, in updates; 0 where experts are adapted
    # Names of linear layers. On MoE models gate_proj with up_proj, and down_proj, mean the experts' as well; "experts"
    # means those alone. The adapted weights of a layer's experts are built whole in its forward pass, and kept until
    # the backward pass unless gradient_checkpointing is on.
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


@dataclass(frozen=True, slots=True)
class Targets:
    """What the adapters of a model go to, by full name."""

    linear: tuple[str, ...]  # modules
    experts: tuple[str, ...]  # parameters, each a stack of matrices


@dataclass(frozen=True, slots=True)
class Adapter:
    """The pair of one weight, by name in the state dict of the model."""

    a: str  # [rank, in]; of experts [E * rank, in]
    b: str  # [out, rank]; of experts [out, rank * E]
    scaling: float


def check_lora(hf_config: PreTrainedConfig, config: LoraConfig) -> None:
    """ModelError if the adapters cannot be had on a model of this config; builds it without weights."""
    with torch.device("meta"):  # where tied parameters stay one, as they do not in accelerate's init_empty_weights
        model = AutoModelForImageTextToText.from_config(hf_config)
    find_targets(model, config)


def find_targets(model: nn.Module, config: LoraConfig) -> Targets:
    """What `config.target_modules` means on this model. Raises ModelError for a name that means nothing on it."""
    inner: Any = model
    language = inner.model.language_model
    linear: dict[str, list[str]] = {}
    for name, module in language.named_modules(prefix="model.language_model"):
        if isinstance(module, nn.Linear):
            linear.setdefault(name.rpartition(".")[2], []).append(name)
    stacks: dict[str, list[str]] = {}
    for name, _ in language.named_parameters(prefix="model.language_model"):
        if name.endswith(tuple(f".experts.{weight}" for weight in STACKS)):
            stacks.setdefault(name.rpartition(".")[2], []).append(name)

    known = {*linear, *((*FUSED, "down_proj", "experts") if stacks else ())}
    wanted = set(config.target_modules)
    for name in config.target_modules:
        if name not in known:
            raise ModelError(
                f"model.lora.target_modules names {name!r}: {_reason(inner, name, bool(stacks))}. There is to adapt: "
                + ", ".join(sorted(known))
            )
    adapted = _adapted_stacks(wanted) if stacks else set()
    if adapted and config.dropout > 0:
        raise ModelError(
            f"model.lora.dropout={config.dropout:g} with adapters on experts: those are added to the weight, where "
            "there is no input to drop; set dropout=0, or take "
            + ", ".join(n for n in config.target_modules if n in (*FUSED, "down_proj", "experts"))
            + " out of target_modules"
        )
    return Targets(
        linear=tuple(n for leaf, names in linear.items() if leaf in wanted for n in names),
        experts=tuple(n for leaf, names in stacks.items() if leaf in adapted for n in names),
    )


def _adapted_stacks(wanted: set[str]) -> set[str]:
    """Which of the two weights of experts these names mean."""
    if "experts" in wanted:
        return {*STACKS}
    halves = wanted & {*FUSED}
    if len(halves) == 1:
        raise ModelError(
            f"model.lora.target_modules names one of {' and '.join(FUSED)}, which are one weight in the experts of "
            'this model: name both, or "experts"'
        )
    return (wanted & {"down_proj"}) | ({"gate_up_proj"} if halves else set())


def _reason(model: Any, name: str, moe: bool) -> str:
    """Why there is no adapter of this name."""
    if name in ROUTER_WORDS and moe:
        return "the router chooses experts and is no linear layer; it stays as it is"
    if name in (*ROUTER_WORDS, "experts"):
        return "this is a dense model, without experts"
    if name == "lm_head":
        tied = model.lm_head.weight is model.model.language_model.embed_tokens.weight
        return "log-probs are taken from the weight of lm_head itself, past any adapter" + (
            "; it is also that of the embeddings, to which it is tied" if tied else ""
        )
    if name in ("embed_tokens", "embeddings"):
        return "embeddings are no linear layer; they stay as they are"
    if any(n.rpartition(".")[2] == name for n, m in model.model.visual.named_modules() if isinstance(m, nn.Linear)):
        return "that is in the vision tower, which has no adapters"
    return "no linear layer of the language model has this name"


def add_lora(model: PreTrainedModel, config: LoraConfig) -> Any:
    """The model inside peft, with adapters that change nothing yet (B = 0); everything else is frozen.

    Raises ModelError as find_targets.
    """
    import peft

    targets = find_targets(model, config)
    return peft.get_peft_model(
        model,  # type: ignore[arg-type]
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            # As one pattern: a list of names would be matched as endings too, the vision tower's among them.
            target_modules="|".join(map(re.escape, targets.linear)) or [],
            target_parameters=list(targets.experts),
        ),
        # In the type of the weights, as DeepSpeed keeps them below ZeRO-3 too; its optimizer holds them in fp32.
        autocast_adapter_dtype=False,
    )


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Adapted weight -> its adapter, by name in the state dict of `model`; {} if peft has not wrapped it."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "lora_A", None), nn.ModuleDict):
            continue
        layer: Any = module
        weight = name
        while hasattr(layer, "base_layer"):  # the two weights of experts are wrapped one around the other
            layer, weight = layer.base_layer, f"{weight}.base_layer"
        found[f"{weight}.{getattr(module, 'parameter_name', 'weight')}"] = Adapter(
            a=f"{name}.lora_A.default.weight",
            b=f"{name}.lora_B.default.weight",
            scaling=module.scaling["default"],  # type: ignore[index]
        )
    return found


def merged_state(state: Mapping[str, Tensor], adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """A whole state dict with `adapters` -> the plain model's: W + scaling * B A, adapter entries gone.

    Works on gathered weights, so it does not matter how they were sharded. What has no adapter stays to the bit: biases
    of adapted layers, and with adapters = {} everything. Raises KeyError if a weight's adapter is not in `state`.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        if name in adapters:
            adapter = adapters[name]
            value = merged(value, state[adapter.a], state[adapter.b], adapter.scaling)
        out[runtime_name(name)] = value
    return out


def runtime_name(name: str) -> str:
    """What a weight is called in the plain model, by its name inside peft."""
    return name.removeprefix(PREFIX).replace(".base_layer", "")


def merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + scaling * B A in fp32, as W's type. W [out, in] or [E, out, in]; a and b as in Adapter."""
    a, b = a.float(), b.float()
    if weight.ndim == 3:
        count = len(weight)
        a = a.unflatten(0, (count, -1))  # [E, rank, in]
        b = b.unflatten(1, (-1, count)).permute(2, 0, 1)  # [E, out, rank]
        return torch.baddbmm(weight.float(), b, a, alpha=scaling).to(weight.dtype)
    return torch.addmm(weight.float(), b, a, alpha=scaling).to(weight.dtype)
