"""Policy losses by name: pure functions (LossInput, config) -> LossOutput, per token and unreduced.

To add one: write `losses/mine.py` with a config class (of LossParams) and a function, add a row to LOSSES, add a
test. docs/losses.md has the formulas. This package needs torch and pydantic only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field, ValidationError, model_validator

from sapo_vl.losses.base import LossInput, LossOutput, LossParams
from sapo_vl.losses.cispo import CispoConfig, cispo
from sapo_vl.losses.dapo import DapoConfig
from sapo_vl.losses.dppo import DppoConfig, dppo
from sapo_vl.losses.dr_grpo import DrGrpoConfig
from sapo_vl.losses.drpo import DrpoConfig, drpo
from sapo_vl.losses.grpo import GrpoConfig, grpo
from sapo_vl.losses.gspo import GspoConfig, gspo, gspo_token
from sapo_vl.losses.kl import kl_k3
from sapo_vl.losses.minirl import MiniRlConfig, minirl
from sapo_vl.losses.reduce import Denominators, Reduction
from sapo_vl.losses.sapo import SapoConfig, sapo
from sapo_vl.losses.sapo_auto import SapoAutoConfig
from sapo_vl.losses.vespo import VespoConfig, vespo
from sapo_vl.strict import Strict

__all__ = ["LOSSES", "Denominators", "LossConfig", "LossInput", "LossOutput", "LossParams", "Reduction", "kl_k3"]

LossFunction = Callable[[LossInput, Any], LossOutput]

LOSSES: dict[str, tuple[LossFunction, type[LossParams]]] = {
    "sapo": (sapo, SapoConfig),
    "sapo_auto": (sapo, SapoAutoConfig),
    "grpo": (grpo, GrpoConfig),
    "gspo": (gspo, GspoConfig),
    "gspo_token": (gspo_token, GspoConfig),
    "dapo": (grpo, DapoConfig),
    "dr_grpo": (grpo, DrGrpoConfig),
    "cispo": (cispo, CispoConfig),
    "minirl": (minirl, MiniRlConfig),
    "dppo": (dppo, DppoConfig),
    "drpo": (drpo, DrpoConfig),
    "vespo": (vespo, VespoConfig),
}


def own_reduction(config: dict[str, Any]) -> Reduction:
    """What the loss named in a LossConfig's fields is reduced with unless the config says otherwise."""
    row = LOSSES.get(config.get("name", ""))
    return (row[1] if row else LossParams).own_reduction


class LossConfig(Strict):
    """Which loss, with what settings, and how per-token losses become one number."""

    name: str = "sapo"
    """A key of LOSSES."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Settings of that loss; those left out keep the defaults of its config class."""
    reduction: Reduction = Field(default_factory=own_reduction)
    """See losses/reduce.py. If not given, the loss's own: sequence_mean for SAPO, GRPO and GSPO, as in their papers."""
    token_sum_constant: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Divisor of reduction = "token_sum" (for instance responses per update x rollout.max_new_tokens). Only with it."""
    kl_coef: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the k3 penalty to the frozen reference; 0 = no reference model."""

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.name not in LOSSES:
            raise ValueError(f"unknown loss {self.name!r}{_nearest(self.name, LOSSES)}")
        self.loss_params()
        if self.reduction == "token_sum" and self.token_sum_constant is None:
            raise ValueError(
                f'loss {self.name!r} with reduction = "token_sum" needs token_sum_constant, the number to divide by '
                "(for instance responses per update x rollout.max_new_tokens)"
            )
        if self.reduction != "token_sum" and self.token_sum_constant is not None:
            raise ValueError(
                f"token_sum_constant = {self.token_sum_constant} has no effect with "
                f'reduction = "{self.reduction}"; '
                'remove it or set reduction = "token_sum"'
            )
        return self

    def loss_params(self) -> LossParams:
        """`params` as the config class of the loss. Raises ValueError naming each setting that is wrong."""
        config_class = LOSSES[self.name][1]
        for key in self.params:
            if key not in config_class.model_fields:
                raise ValueError(f"loss {self.name!r} has no setting {key!r}{_nearest(key, config_class.model_fields)}")
        try:
            return config_class(**self.params)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
            raise ValueError(f"params of loss {self.name!r}: " + "; ".join(faults)) from None

    def loss_function(self) -> LossFunction:
        """The function that `name` stands for, to be called with a LossInput and `loss_params()`."""
        return LOSSES[self.name][0]


def _nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' if something known is close, and the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(names)})"
