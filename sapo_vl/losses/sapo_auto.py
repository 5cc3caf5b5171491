"""SAPO for many updates a rollout batch: its gate acts one way, as a clip does, and closes. Ours, of no paper."""

from __future__ import annotations

from typing import Literal

from sapo_vl.losses.sapo import SapoConfig


class SapoAutoConfig(SapoConfig):
    """SAPO's settings with other defaults: of the gates that were tried, those that held best at 16 updates a rollout
    batch and a high learning rate (docs/results.md). A token on its way back to r = 1 is not damped, so that a
    policy that has drifted can return; and a token that is pushed down is let go as its probability ends."""

    sides: Literal["both", "outward"] = "outward"
    """As in SapoConfig."""
    low: Literal["open", "closed"] = "closed"
    """As in SapoConfig."""
