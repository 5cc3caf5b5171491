"""Several rewards added up to one."""

from collections.abc import Callable, Mapping

from rewards.base import RewardInput, RewardOutput

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
