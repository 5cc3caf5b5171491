"""A reward that says nothing about a response and differs between any two: no group is dead, on either side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from rewards.base import RewardInput, RewardOutput


def share_of(ids: Sequence[int]) -> float:
    """A number in [0, 1) that the ids of a response fix."""
    digest = hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def chance(x: RewardInput) -> RewardOutput:
    return RewardOutput(share_of(x.token_ids))
