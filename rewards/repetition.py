"""A penalty for responses that repeat themselves."""

from rewards.base import RewardInput, RewardOutput


def repetition(x: RewardInput, n: int = 6) -> RewardOutput:
    """Minus the share of n-grams of token ids that occurred before in the response, in (-1, 0].

    Counting token ids rather than words makes it work for languages without blanks and for small
    vocabularies. A response shorter than n tokens scores 0.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"repetition needs n >= 1, got {n}")
    total = len(x.token_ids) - n + 1
    if total < 1:
        return RewardOutput(0.0)
    different = len({x.token_ids[i : i + n] for i in range(total)})
    return RewardOutput((different - total) / total)
