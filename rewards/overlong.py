"""A penalty for responses that come close to the token limit."""

from rewards.base import RewardInput, RewardOutput


def overlong(x: RewardInput, limit: int | None = None, buffer: int | None = None) -> RewardOutput:
    """Soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), in [-1, 0].

    With y the tokens of the response, end-of-turn token included: 0 up to limit - buffer, then (limit - buffer -
    y) / buffer, and -1 beyond the limit, however long the response is. Tokens, not characters: the limit that a
    response runs into is one of tokens.

    Args:
        limit: L_max in tokens; None means the limit the response was sampled under.
        buffer: length of the slope in tokens; None means a fifth of the limit, DAPO's 4096 of 20480.

    Raises:
        ValueError: limit < 1, or buffer outside 1..limit.
    """
    limit = x.max_tokens if limit is None else limit
    buffer = max(1, limit // 5) if buffer is None else buffer
    if not 1 <= buffer <= limit:
        raise ValueError(f"overlong needs 1 <= buffer <= limit, got buffer={buffer} and limit={limit} tokens")
    over = x.num_tokens - (limit - buffer)
    return RewardOutput(min(max(-over / buffer, -1.0), 0.0))
