"""DAPO's loss: GRPO's clip with a higher upper end, every token weighing the same. arXiv 2503.14476, Eq. 8.

Its dynamic sampling and its penalty for overlong responses are no part of a loss.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sapo_vl.losses.grpo import GrpoConfig
from sapo_vl.losses.reduce import Reduction


class DapoConfig(GrpoConfig):
    """Clip range of the token ratio ("clip higher")."""

    own_reduction: ClassVar[Reduction] = "token_mean"

    eps_high: float = Field(default=0.28, gt=0, allow_inf_nan=False)
    """Tokens with A > 0 stop at r = 1 + eps_high."""
