"""What came back from vLLM becomes rollouts, or is refused with a reason. Shared by all vLLM engines.

Nothing of a response is trusted: ids, lengths and log-probs are checked before a trainer sees them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapo_vl.model.chat import Chat
from sapo_vl.model.routing import RouteSpec
from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup


@dataclass(frozen=True, slots=True)
class Sample:
    """One response as the engine gave it."""

    ids: np.ndarray  # [R] int64
    logprobs: np.ndarray  # [R] float32, processed: of the law that was sampled from
    finish: str  # the engine's word for how it ended: "stop", "length", or anything else
    routes: np.ndarray | None = None  # [P + R - 1, layers, k] experts of all tokens that were fed, if it told them


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine gave for one prompt."""

    prompt_ids: np.ndarray  # [P] int64, images expanded by the engine
    samples: tuple[Sample, ...]


def to_group(
    prompt: Prompt,
    answer: Answer | str,
    n: int,
    version: int,
    chat: Chat,
    vocab_size: int,
    routes: RouteSpec | None = None,
) -> RolloutGroup:
    """The group of `n` rollouts; what cannot be used becomes a rollout with finish FAILED and its reason.

    A string instead of an answer says why there is none. With `routes`, responses need routes of that kind.
    """
    reason = answer if isinstance(answer, str) else _prompt_fault(prompt, answer, n)
    if reason or isinstance(answer, str):
        return RolloutGroup(prompt=prompt, rollouts=tuple(failed(reason, version) for _ in range(n)))
    group = RolloutGroup(
        prompt=prompt, rollouts=tuple(_rollout(sample, version, chat, vocab_size) for sample in answer.samples)
    )
    return group if routes is None else _with_routes(group, [s.routes for s in answer.samples], routes)


def _with_routes(group: RolloutGroup, given: Sequence[np.ndarray | None], spec: RouteSpec) -> RolloutGroup:
    """The group with its routes; a response whose routes do not cover it, or are none, becomes a failed one.

    The prompt is in the trainer's row once, with the routes of the group's first usable response.
    """
    size = len(group.prompt.ids)
    of_prompt: np.ndarray | None = None
    rollouts: list[Rollout] = []
    for rollout, rows in zip(group.rollouts, given, strict=True):
        if rollout.finish is Finish.FAILED:
            rollouts.append(rollout)
            continue
        try:
            mine = moe_layers(rows, spec)
            if fault := spec.fault(mine, size + len(rollout.response_ids) - 1):
                raise RouteFault(fault)
            if of_prompt is None:
                of_prompt = mine[:size].astype(spec.dtype)
            rollouts.append(dataclasses.replace(rollout, routes=mine[size:].astype(spec.dtype)))
        except RouteFault as fault:
            rollouts.append(failed(f"routes: {fault}", rollout.weight_version))
    return dataclasses.replace(group, rollouts=tuple(rollouts), prompt_routes=of_prompt)


class RouteFault(ValueError):
    """Routes that cannot be replayed, and why."""


def moe_layers(rows: np.ndarray | None, spec: RouteSpec) -> np.ndarray:
    """[rows, L, k] of an engine's [rows, layers, k], whose layer axis may hold the dense layers too."""
    if rows is None:
        raise RouteFault("none were returned")
    if rows.ndim == 3 and rows.shape[1] != len(spec.layers):
        if rows.shape[1] <= spec.layers[-1]:
            raise RouteFault(f"they are of {rows.shape[1]} layers; the last that routes is number {spec.layers[-1]}")
        return rows[:, list(spec.layers)]
    return rows


def repeat_greedy(answer: Answer, n: int) -> Answer:
    """The one greedy response n times, with the log-prob of a law that has no other: 0."""
    sure = tuple(dataclasses.replace(s, logprobs=np.zeros(len(s.ids), np.float32)) for s in answer.samples)
    return Answer(prompt_ids=answer.prompt_ids, samples=sure * n)


def failed(reason: str, version: int) -> Rollout:
    """A response that does not exist, and why."""
    return Rollout(
        response_ids=np.empty(0, np.int64),
        logprobs=np.empty(0, np.float32),
        finish=Finish.FAILED,
        weight_version=version,
        score_detail=reason,
    )


def _prompt_fault(prompt: Prompt, answer: Answer, n: int) -> str:
    if len(answer.samples) != n:
        return f"{len(answer.samples)} samples instead of {n}"
    ours, theirs = prompt.ids, answer.prompt_ids
    if len(ours) != len(theirs):
        return f"prompt ids differ: the engine read {len(theirs)} tokens, the trainer {len(ours)}"
    if not np.array_equal(ours, theirs):
        at = int((ours != theirs).argmax())
        return f"prompt ids differ: at token {at} the engine read {int(theirs[at])}, the trainer {int(ours[at])}"
    return ""


def _rollout(sample: Sample, version: int, chat: Chat, vocab_size: int) -> Rollout:
    reason = _sample_fault(sample, chat.banned_ids, chat.eos_ids, vocab_size)
    if reason:
        return failed(reason, version)
    return Rollout(
        response_ids=sample.ids,
        logprobs=sample.logprobs,
        finish=Finish.STOP if sample.finish == "stop" else Finish.LENGTH,
        weight_version=version,
        text=chat.decode(sample.ids),
    )


def _sample_fault(sample: Sample, banned: Sequence[int], eos: Sequence[int], vocab_size: int) -> str:
    ids, logprobs = sample.ids, sample.logprobs
    if sample.finish not in ("stop", "length"):
        return f"the engine ended it with {sample.finish!r}"
    if len(ids) == 0:
        return "no tokens"
    if len(logprobs) != len(ids):
        return f"{len(logprobs)} log-probs for {len(ids)} tokens"
    if ids.min() < 0 or ids.max() >= vocab_size:
        return f"token {int(ids.min() if ids.min() < 0 else ids.max())} is outside the vocabulary of {vocab_size}"
    if vision := sorted(set(ids.tolist()) & set(banned)):
        return f"it contains the vision token {vision[0]}"
    if not np.isfinite(logprobs).all() or logprobs.max() > 1e-4:
        return "a log-prob is not finite, or above 0"
    # The end-of-turn token is part of the response: the trainer learns when to stop from it.
    if sample.finish == "stop" and int(ids[-1]) not in eos:
        return f"it stopped at token {int(ids[-1])}, which ends no turn"
    return ""
