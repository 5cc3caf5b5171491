"""Which experts each token of a forward pass goes through: recorded, and replayed for the R2 and R3 baselines.

A `RouteTape` is an argument of the forward pass, as the layout of the flat row is. Decoder layers receive it with
their other arguments, so a layer that gradient checkpointing runs again reads the same rows, and nothing has to be
remembered between forward and backward. Only the selection is replayed (R2: arXiv 2507.18071, Sec. 5.3; R3: arXiv
2510.11370): the weights of the chosen experts come from the router's present probabilities,

    p = softmax(logits) over all experts, in float32          g_i = p_i / sum_{j in I} p_j,  i in I = the replayed ids

so the router keeps its gradient.

Letters: L MoE layers, k experts a token goes through, E experts; T, P, R as in types.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sapo_vl.model.errors import ModelError

TAPE = "route_tape"  # the argument of the decoder layers
# Whose routes the updates go through: each its own ("none"), the trainer's own of the old log-prob pass ("r2"), or the
# rollout engine's, in that pass too ("r3").
Replay = Literal["none", "r2", "r3"]


class RouteError(RuntimeError):
    """Routes that do not fit the forward pass they are replayed in, or a model that did not read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """What a route of this model looks like."""

    layers: tuple[int, ...]  # [L] the decoder layers that route, by their place among all layers
    experts: int  # E
    top_k: int  # k

    @property
    def dtype(self) -> np.dtype:
        """The smallest that holds every expert id: L * k * itemsize bytes a token."""
        return np.dtype(np.uint8 if self.experts <= 256 else np.uint16)

    def fault(self, routes: np.ndarray, rows: int) -> str:
        """What is wrong with `routes` as [rows, L, k] expert ids; "" if nothing is."""
        shape = (rows, len(self.layers), self.top_k)
        if routes.shape != shape:
            return f"routes have shape {list(routes.shape)} instead of {list(shape)}"
        if routes.dtype.kind not in "iu":
            return f"routes are {routes.dtype} instead of whole numbers"
        if routes.size and (routes.min() < 0 or routes.max() >= self.experts):
            return f"an expert id is outside [0, {self.experts})"
        ordered = np.sort(routes, axis=-1)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            return "a token has one expert twice"
        return ""


class RouteTape:
    """The routing of one forward pass over T tokens: what the routers chose, and what they were told to use.

    `replay` [T, L, k] holds the ids to use in place of the routers' own choice; None lets them choose. After the
    pass `native` and `used`, both [T, L, k], hold what the routers would have chosen and what was gone through.
    """

    def __init__(self, spec: RouteSpec, replay: Tensor | None = None) -> None:
        self.spec = spec
        self._replay = replay
        self._native: list[Tensor | None] = [None] * len(spec.layers)
        self._reads = [0] * len(spec.layers)
        self._closed = False  # a layer that is run again for its gradient reads, and writes nothing

    def route(self, at: int, native: Tensor) -> Tensor:
        """The ids [T, k] int64 that MoE layer number `at` shall use; `native` [T, k] is its own choice."""
        if not self._closed:
            self._reads[at] += 1
            self._native[at] = native.to(_torch_dtype(self.spec))
        if self._replay is None:
            return native
        if len(self._replay) != len(native):
            raise RouteError(f"routes of {len(self._replay)} tokens for a row of {len(native)}")
        return self._replay[:, at].long()

    def close(self) -> None:
        """After the forward pass. Raises RouteError unless every MoE layer read its routes exactly once."""
        wrong = {self.spec.layers[i]: n for i, n in enumerate(self._reads) if n != 1}
        if wrong:
            raise RouteError(
                f"MoE layers that did not read their routes exactly once (layer: reads): {wrong}. Something runs in "
                "place of transformers' MoE block or its router, so nothing that was replayed can be relied on"
            )
        self._closed = True

    @property
    def native(self) -> Tensor:
        """[T, L, k] in the dtype of the spec, on the model's device."""
        kept = [ids for ids in self._native if ids is not None]
        return torch.stack(kept, dim=1)

    @property
    def used(self) -> Tensor:
        return self.native if self._replay is None else self._replay


class RouterMargins:
    """While entered: how near every forward pass of a model comes to a tie between experts.

    The margin of a pass is the smallest gap between the probabilities of the last chosen and the first rejected expert,
    over its tokens and layers; infinite where no expert is rejected.
    """

    def __init__(self, model: nn.Module) -> None:
        self._routers: list[Any] = [m for name, m in model.named_modules() if name.endswith("mlp.gate")]
        self._margins: list[list[Tensor]] = [[] for _ in self._routers]  # by router, then pass
        self._hooks: list[Any] = []

    def __enter__(self) -> RouterMargins:
        for router, margins in zip(self._routers, self._margins, strict=True):
            self._hooks.append(router.register_forward_hook(_margin_hook(margins)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def of_pass(self, i: int) -> float:
        """Of the forward pass number `i` since it was entered; infinite for a dense model."""
        return min((float(margins[i]) for margins in self._margins), default=math.inf)


def _margin_hook(margins: list[Tensor]) -> Callable[..., None]:
    def look(router: Any, _args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits = output[0].detach()
        if logits.shape[-1] == router.top_k:
            margins.append(torch.tensor(math.inf))
            return
        nearest = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(router.top_k + 1, dim=-1).values
        margins.append((nearest[:, -2] - nearest[:, -1]).min())

    return look


def attach_routing(model: nn.Module) -> RouteSpec | None:
    """Lets the decoder layers of a Qwen3-VL-MoE (without peft around it) take a RouteTape; None for a dense model.

    Raises ModelError if a MoE block or router is not transformers' own: it would not read a tape.
    """
    # Not at the top: reading a config, which knows `Replay`, loads no model code.
    from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as qwen

    language: Any = model.model.language_model  # type: ignore[union-attr]
    if (known := getattr(language, "route_spec", None)) is not None:
        return known
    layers = language.layers
    routing = [(i, layer) for i, layer in enumerate(layers) if isinstance(layer, qwen.Qwen3VLMoeTextDecoderLayer)]  # type: ignore[arg-type]
    routing = [(i, layer) for i, layer in routing if not isinstance(layer.mlp, qwen.Qwen3VLMoeTextMLP)]
    if not routing:
        return None
    for i, layer in routing:
        _check_own(layer.mlp, qwen.Qwen3VLMoeTextSparseMoeBlock, i)
        _check_own(layer.mlp.gate, qwen.Qwen3VLMoeTextTopKRouter, i)  # type: ignore[arg-type]
    for at, (_, layer) in enumerate(routing):
        _hook(layer, at)
    gate: Any = routing[0][1].mlp.gate
    language.route_spec = RouteSpec(
        layers=tuple(i for i, _ in routing), experts=int(gate.num_experts), top_k=int(gate.top_k)
    )
    return language.route_spec


def _check_own(module: nn.Module, kind: type[nn.Module], layer: int) -> None:
    """transformers' own class with its own forward: neither another class nor a patched method."""
    forward = getattr(module.forward, "__func__", module.forward)
    home = getattr(forward, "__module__", "")
    if type(module) is not kind or home != kind.__module__:
        raise ModelError(
            f"layer {layer}: {type(module).__qualname__} (forward from {home}) stands where {kind.__name__} of "
            "transformers is expected; routes can be neither recorded nor replayed through it"
        )


def _hook(layer: nn.Module, at: int) -> None:
    """The tape among the layer's arguments reaches its router, for the duration of this call of the layer.

    As hooks, since transformers passes its MoE blocks nothing but hidden states, and a copy of its layer would have
    to follow every change of it. Checkpointing runs them again together with the layer.
    """
    given: list[RouteTape] = []

    def enter(_layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        given[:] = [tape] if (tape := kwargs.get(TAPE)) is not None else []

    def leave(_layer: nn.Module, _args: Any, _output: Any) -> None:
        given.clear()

    layer.register_forward_pre_hook(enter, with_kwargs=True)
    layer.register_forward_hook(leave, always_call=True)
    layer.mlp.gate.register_forward_hook(_router_hook(given, at))  # type: ignore[union-attr]


def _router_hook(given: list[RouteTape], at: int) -> Callable[..., Any]:
    proved = False  # that the weights below are computed as the model computes its own

    def choose(_router: nn.Module, _args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        nonlocal proved
        if not given:
            return None
        logits, weights, native = output
        ids = given[0].route(at, native)
        if ids is native:
            return None  # recorded only: the router's own weights stand, whatever its rule
        if not proved:
            _prove(logits, weights, native)
            proved = True
        return logits, gate_weights(logits, ids), ids

    return choose


def gate_weights(logits: Tensor, ids: Tensor) -> Tensor:
    """[T, E] router logits, [T, k] ids -> [T, k] weights of those experts, in the dtype of the logits."""
    chosen = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(1, ids)
    return (chosen / chosen.sum(dim=-1, keepdim=True)).to(logits.dtype)


def _prove(logits: Tensor, weights: Tensor, native: Tensor) -> None:
    """At the router's own choice our weights must be its own."""
    with torch.no_grad():
        gap = (gate_weights(logits, native).float() - weights.float()).abs().max()
    if float(gap) > max(1e-6, 2 * torch.finfo(weights.dtype).eps):  # a unit in the last place, where kernels differ
        raise RouteError(
            f"this model's router weighs its experts by another rule than softmax over all, renormalised (largest "
            f"difference {float(gap):.2g}); its routes cannot be replayed"
        )


def _torch_dtype(spec: RouteSpec) -> torch.dtype:
    return torch.uint8 if spec.dtype == np.uint8 else torch.uint16
