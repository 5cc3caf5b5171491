"""What was drawn, step by step, and the groups it makes in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup


class Drawn:
    """Tokens, log-probs and routes of responses, in the order in which they came. A response is a number."""

    def __init__(self, prompts: int, responses: int) -> None:
        self.ended = np.zeros(responses, bool)  # by an end of turn
        self._tokens: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # owners, ids, log-probs
        self._routes: list[tuple[np.ndarray, Tensor]] = []  # owners, [owners, L, k]
        self._prompt_routes: list[np.ndarray | None] = [None] * prompts

    def tokens(self, owners: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """One more token of each of the owners."""
        self._tokens.append((owners, ids, logprobs))

    def routes(self, owners: np.ndarray, routes: Tensor) -> None:
        """Of one more token of each of the owners, as the forward pass that took it recorded them."""
        self._routes.append((owners, indexable(routes)))

    def prompt_routes(self, prompts: Sequence[int], lengths: Sequence[int], routes: Tensor) -> None:
        """[T, L, k] of prompts one after the other. A prompt that was run twice keeps its first ones."""
        parts = np.split(routes.cpu().numpy(), np.cumsum(lengths)[:-1])
        for prompt, own in zip(prompts, parts, strict=True):
            if self._prompt_routes[prompt] is None:
                self._prompt_routes[prompt] = own.copy()

    def groups(
        self, prompts: Sequence[Prompt], n: int, weight_version: int, decode: Callable[[np.ndarray], str]
    ) -> list[RolloutGroup]:
        """Responses i * n to (i + 1) * n - 1 are those of prompt i."""
        if not prompts:
            return []
        count = len(self.ended)
        owners = np.concatenate([owners for owners, _, _ in self._tokens])
        ids = _by_owner(owners, np.concatenate([ids for _, ids, _ in self._tokens]), count)
        logprobs = _by_owner(owners, np.concatenate([logprobs for _, _, logprobs in self._tokens]), count)
        routes = self._routes_by_owner(count)
        rollouts = [
            Rollout(
                response_ids=ids[i],
                logprobs=logprobs[i],
                finish=Finish.STOP if self.ended[i] else Finish.LENGTH,
                weight_version=weight_version,
                text=decode(ids[i]),
                routes=routes[i],
            )
            for i in range(count)
        ]
        return [
            RolloutGroup(
                prompt=prompt, rollouts=tuple(rollouts[i * n : (i + 1) * n]), prompt_routes=self._prompt_routes[i]
            )
            for i, prompt in enumerate(prompts)
        ]

    def _routes_by_owner(self, count: int) -> Sequence[np.ndarray | None]:
        first = next((routes for routes in self._prompt_routes if routes is not None), None)
        if first is None:
            return [None] * count
        if not self._routes:  # no response is longer than one token
            return [first[:0].copy() for _ in range(count)]
        owners = np.concatenate([owners for owners, _ in self._routes])
        routes = torch.cat([routes for _, routes in self._routes]).cpu().numpy().view(first.dtype)
        return _by_owner(owners, routes, count)


def _by_owner(owners: np.ndarray, values: np.ndarray, count: int) -> list[np.ndarray]:
    """The values of each owner in their order, each a copy of its own."""
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=count))[:-1]
    return [part.copy() for part in np.split(values[order], ends)]


def indexable(routes: Tensor) -> Tensor:
    """torch can neither index nor join uint16."""
    return routes.view(torch.int16) if routes.dtype == torch.uint16 else routes
