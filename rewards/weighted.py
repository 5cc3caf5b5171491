"""Several rewards added up to one."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from rewards.base import RewardFn, RewardInput, RewardOutput

OWN = "accuracy"  # the name under which the problem's own reward enters the sum


def weighted(
    x: RewardInput,
    weights: Mapping[str, float],
    rewards: Mapping[str, Callable[[RewardInput], RewardOutput]],
) -> RewardOutput:
    """Sum of weights[name] * score of rewards[name]; `rewards` maps "accuracy" to the problem's own reward.

    Every term appears in the parts under its name, before weighting, and its own parts as "name/part". A
    weight of 0 logs a reward without training on it. The reason joins those of the terms, "name: reason" for
    terms other than the problem's own.
    """
    score, parts, reasons = 0.0, {}, []
    for name, weight in weights.items():
        output = rewards[name](x)
        score += weight * output.score
        parts[name] = output.score
        parts |= {f"{name}/{part}": value for part, value in output.parts.items()}
        if output.reason:
            reasons.append(output.reason if name == OWN else f"{name}: {output.reason}")
    return RewardOutput(score, parts, "; ".join(reasons))


def weighted_by_name(registry: Callable[[], Mapping[str, RewardFn]]) -> RewardFn:
    """The reward `weighted` of a registry, for tasks whose own reward is a sum of others.

    It takes weights={"box": 0.7, "ocr": 0.3} and params={"ocr": {"...": ...}}, the arguments of its terms. The
    registry is asked for at the first call, because this reward stands in it.
    """

    def weighted_sum(
        x: RewardInput, weights: Mapping[str, float], params: Mapping[str, Mapping[str, Any]] | None = None
    ) -> RewardOutput:
        """Sum of weights[name] * score of the reward of that name; the parts are as in rewards.combine."""
        rewards, arguments = registry(), params or {}
        terms = {name: functools.partial(rewards[name], **arguments.get(name, {})) for name in weights}
        return weighted(x, weights, terms)

    return weighted_sum


def weighted_problem(params: Mapping[str, Any], term_problem: Callable[[str, Mapping[str, Any]], str]) -> str:
    """Why `weighted` cannot run with these params, or ""; `term_problem` says it of a term's name and params."""
    weights, arguments = params.get("weights"), params.get("params") or {}
    if not isinstance(weights, Mapping) or not weights or not isinstance(arguments, Mapping):
        return f"weighted needs weights, a mapping from rewards to numbers, got {weights!r}"
    if unused := arguments.keys() - weights.keys():
        return f"weighted has params for {min(unused)!r}, which has no weight"
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            return f"the weight of {name!r} must be a finite number, got {weight!r}"
        if problem := term_problem(name, arguments.get(name, {})):
            return f"weighted: {problem}"
    return ""
