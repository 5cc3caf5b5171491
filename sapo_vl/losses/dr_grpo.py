"""Dr. GRPO's loss: GRPO's clip, summed over tokens and divided by a constant. arXiv 2503.20783, Sec. 3.2.

The other half of the method is an advantage without the division by the group's std: advantage.scale=none.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sapo_vl.losses.grpo import GrpoConfig
from sapo_vl.losses.reduce import Reduction


class DrGrpoConfig(GrpoConfig):
    """Clip range of the token ratio."""

    own_reduction: ClassVar[Reduction] = "token_sum"

    eps_high: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    """Tokens with A > 0 stop at r = 1 + eps_high."""
