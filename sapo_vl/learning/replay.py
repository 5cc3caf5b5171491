"""How far the experts that an update goes through are from those of the old policy (routing replay, docs/replay.md)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.routing import RouteSpec, RouteTape

CLASSES = ("", "/pos", "/neg", "/text", "/image")  # all tokens, by the sign of the advantage, by the kind of prompt


class FlipStats:
    """Of ONE update. Make one per update and rank; `spec` is the model's, None for a dense one.

    Counted are the tokens that predict a token of a response, in each MoE layer.
    """

    def __init__(self, spec: RouteSpec | None) -> None:
        self._layers = len(spec.layers) if spec else 0
        # Per class: tokens, then flips of each layer, then drifts of each layer.
        self._sums = np.zeros((len(CLASSES), 1 + 2 * self._layers))

    def add(self, mb: MicroBatch, tape: RouteTape) -> None:
        """The routing of one micro-batch in the forward pass of the update. Without old_routes, that pass is the old
        policy's own."""
        assert mb.old_routes is not None or mb.old_logprobs is None
        of_old = tape.used if mb.old_routes is None else mb.old_routes
        # As int: torch cannot index uint16 everywhere.
        old, used, native = (routes.int()[mb.predictor_index] for routes in (of_old, tape.used, tape.native))
        columns = [torch.ones(len(old), 1, device=old.device), other_set(used, old), other_set(native, old)]
        per_token = torch.cat([c.float() for c in columns], dim=1).cpu().numpy().astype(np.float64)  # [N, 1 + 2L]
        advantage = np.repeat(mb.advantages.cpu().numpy(), mb.lengths.cpu().numpy())
        of_images = [g.prompt.pixel_values is not None for g in mb.groups for _ in g.rollouts]
        image = np.repeat(of_images, mb.lengths.cpu().numpy())
        member = np.stack([np.ones_like(image), advantage > 0, advantage < 0, ~image, image]).astype(np.float64)
        self._sums += member @ per_token

    def reduce(self, world: World) -> dict[str, float | list[float]]:
        """The statistics over all ranks, which all call it. Empty without routes to compare with.

        routing/flip, and with each of CLASSES behind it: share of (token, MoE layer) pairs that went through another
        set of experts than under the old policy; 0 with replay. routing/flip/layers: the same by layer, a list.
        routing/drift (.../layers): the same for the routers' own choice, whether or not it was replaced.
        """
        total = world.sum(self._sums.reshape(-1)).reshape(self._sums.shape)
        out: dict[str, float | list[float]] = {}
        for name, (n, *counts) in zip(CLASSES, total, strict=True):
            if n and self._layers:
                flips, drifts = np.split(np.asarray(counts) / n, 2)
                out |= {f"routing/flip{name}": float(flips.mean()), f"routing/drift{name}": float(drifts.mean())}
                if not name:
                    out |= {"routing/flip/layers": flips.tolist(), "routing/drift/layers": drifts.tolist()}
        return out


def other_set(a: Tensor, b: Tensor) -> Tensor:
    """[n, L, k] expert ids twice -> [n, L] bool: whether the sets differ, whatever their order."""
    return (a.long().sort(dim=-1).values != b.long().sort(dim=-1).values).any(dim=-1)
