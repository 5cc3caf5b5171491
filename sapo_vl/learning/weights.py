"""The policy's weights as folders and rollout engines have them: hub names, hub layout, adapters merged, whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sapo_vl.learning.engine import PolicyEngine, gathered
from sapo_vl.model.folder import SHARD_BYTES, hub_layout
from sapo_vl.model.lora import adapters, merged_state, runtime_name


class ManifestError(ValueError):
    """The weights of the trainer and of the rollout engine are not the same set. Names what differs."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Parameters that make one weight: itself alone, or a base weight with its two adapters."""

    parameters: dict[str, Any]  # by the name in the model's state dict
    nbytes: int


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """The adapter of one weight, as model.lora.merged takes it: of the layout that the model has in memory."""

    name: str  # of the weight, in hub folders
    a: Tensor
    b: Tensor
    scaling: float


@torch.no_grad()
def hub_weights(engine: PolicyEngine, bucket_bytes: int = SHARD_BYTES) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the policy, one after the other, on the trainer's device. All ranks iterate together.

    Under ZeRO-3 a bucket of at most `bucket_bytes` (or one larger weight) is gathered at a time and copied, since
    the consumer may keep what it is given: the extra memory is two buckets. Below stage 3 nothing is copied but
    merged adapters and transposed expert weights, and a consumer must not change what it is given.
    """
    stage = engine.zero.stage

    def whole(parameters: Mapping[str, Any]) -> dict[str, Tensor]:
        with gathered(list(parameters.values()), stage):
            return {name: p.detach().clone() if stage == 3 else p.detach() for name, p in parameters.items()}

    yield from in_hub_layout(engine.module.hf, whole, bucket_bytes)


def in_hub_layout(
    model: torch.nn.Module, whole: Callable[[Mapping[str, Any]], dict[str, Tensor]], bucket_bytes: int = SHARD_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """The weights of `model`, perhaps inside peft, as the hub has them; `whole` gives the values of some parameters,
    at most `bucket_bytes` (or one weight's) at a time, by name in `model`."""
    pairs = adapters(model)
    for bucket in _buckets(_pieces(model), bucket_bytes):
        state = whole({name: p for piece in bucket for name, p in piece.parameters.items()})
        yield from hub_layout(merged_state(state, pairs)).items()


@torch.no_grad()
def hub_adapters(engine: PolicyEngine, bucket_bytes: int = SHARD_BYTES) -> Iterator[HubAdapter]:
    """The adapters of the policy, in no more than `bucket_bytes` at a time. All ranks iterate together.

    Gathered ones are copies, as in `hub_weights`.
    """
    stage = engine.zero.stage
    own = dict(engine.module.hf.named_parameters())
    pairs = adapters(engine.module.hf)
    pieces = [_Piece({n: own[n] for n in (p.a, p.b)}, _bytes(own[p.a]) + _bytes(own[p.b])) for p in pairs.values()]
    names = {pair.a: (runtime_name(name), pair) for name, pair in pairs.items()}
    for bucket in _buckets(pieces, bucket_bytes):
        with gathered([p for piece in bucket for p in piece.parameters.values()], stage):
            whole = {
                n: p.detach().clone() if stage == 3 else p.detach() for b in bucket for n, p in b.parameters.items()
            }
        for piece in bucket:
            first, second = piece.parameters
            name, pair = names[first]
            yield HubAdapter(name, whole[first], whole[second], pair.scaling)


def manifest(engine: PolicyEngine) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what `hub_weights` will give; gathers nothing."""
    state = {
        name: torch.empty(getattr(p, "ds_shape", p.shape), device="meta")
        for piece in _pieces(engine.module.hf)
        for name, p in piece.parameters.items()
    }
    merged = merged_state(state, adapters(engine.module.hf))
    return {name: tuple(t.shape) for name, t in hub_layout(merged).items()}


def check_manifests(trainer: Mapping[str, tuple[int, ...]], loaded: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ManifestError unless both hold the same names with the same shapes.

    A tied output projection may be stored on one side only.
    """
    ours, theirs = dict(trainer), dict(loaded)
    for one, other in ((ours, theirs), (theirs, ours)):
        if "lm_head.weight" not in other:
            one.pop("lm_head.weight", None)
    faults = [f"the engine never had {name}" for name in sorted(set(ours) - set(theirs))]
    faults += [f"the trainer does not send {name}" for name in sorted(set(theirs) - set(ours))]
    faults += [
        f"{name} is {ours[name]} in the trainer and {theirs[name]} in the engine"
        for name in sorted(set(ours) & set(theirs))
        if ours[name] != theirs[name]
    ]
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise ManifestError(
            "the weights of trainer and rollout engine do not match: "
            + "; ".join(faults[:5])
            + more
            + ". Both must load the same model folder, in the hub's layout, which `sapo-vl convert` writes"
        )


def _pieces(model: torch.nn.Module) -> list[_Piece]:
    own = dict(model.named_parameters())  # a tied weight once, under its first name
    pairs = adapters(model)
    pieces = []
    for name in own:
        if ".lora_" in name:
            continue
        names = [name, *((pairs[name].a, pairs[name].b) if name in pairs else ())]
        parameters = {n: own[n] for n in names}
        pieces.append(_Piece(parameters, sum(_bytes(p) for p in parameters.values())))
    return pieces


def _bytes(p: Any) -> int:
    return int(getattr(p, "ds_numel", p.numel())) * p.element_size()


def _buckets(pieces: list[_Piece], limit: int) -> Iterator[list[_Piece]]:
    bucket: list[_Piece] = []
    size = 0
    for piece in pieces:
        if bucket and size + piece.nbytes > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(piece)
        size += piece.nbytes
    if bucket:
        yield bucket
