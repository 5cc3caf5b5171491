"""What can be known about a reward's settings before a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards import REWARDS
from rewards.base import signature_problem
from rewards.code import code_problem
from rewards.judging.settings import judge_problem
from rewards.weighted import weighted_problem


def setting_problem(name: str, params: Mapping[str, Any], timeout_s: float) -> str:
    """Why the built-in reward `name` cannot run with `params` on this machine, or "".

    Args:
        timeout_s: seconds a response may take in a worker.
    """
    if name not in REWARDS:
        return f"there is no reward {name!r}; known: {', '.join(sorted(REWARDS))}"
    if problem := signature_problem(REWARDS[name], params):
        return f"the params {dict(params)} do not fit the reward {name!r}: {problem}"
    if name == "code":
        return code_problem(params, timeout_s)
    if name == "weighted":
        return weighted_problem(params, lambda term, own: _term_problem(term, own, timeout_s))
    if name == "judge":
        return judge_problem(params, timeout_s)
    return ""


def _term_problem(name: str, params: Mapping[str, Any], timeout_s: float) -> str:
    """The same of a term of `weighted`."""
    if name == "judge":
        return "judge can be no term of it, for its canaries would not be asked; put both into rewards.combine"
    return setting_problem(name, params, timeout_s)
