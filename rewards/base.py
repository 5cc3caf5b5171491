"""What a reward takes and gives back. Everything here is plain data, importable without torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """One response and the problem it answers."""

    text: str  # the response decoded, special tokens left out; begins with "<think>" if the chat template wrote that
    num_tokens: int  # tokens of the response, end-of-turn token included
    max_tokens: int  # the limit the response was sampled under, in tokens
    finish: str  # value of sapo_vl.types.Finish; a plain str, so that workers need no torch
    token_ids: tuple[int, ...] = ()  # [R] ids of the response
    id: str = ""  # id of the problem
    task: str = ""  # task of the problem
    reward: str = ""  # the reward that the problem itself names, which a config may replace
    answer: str = ""  # the reference answer ("gold")
    question: str = ""  # what the user's turns of the problem say, images left out
    meta: Mapping[str, Any] = field(default_factory=dict)  # whatever else the problem carries for its reward
    images: tuple[Image.Image, ...] = ()  # RGB; empty unless the reward says that it looks at them: `needs_images`


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """A score, the numbers it was made of (logged under their names), and why it is what it is."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""  # a few fixed words such as NO_ANSWER, never text of the response; "" needs no explanation


# Reasons that several rewards give.
NO_ANSWER = "no answer"  # nothing in the response is a final answer: rewards.answers.extract.last_answer
EMPTY = "empty answer"
TOO_LONG = "answer too long"
WRONG = "wrong"


class Unscorable(Exception):
    """The reward cannot judge this response, for example because the reference answer makes no sense.

    Such a response is left out of the update and counted. It is not the same as a wrong answer, which scores
    0.
    """


RewardFn = Callable[..., RewardOutput]  # fn(x: RewardInput, **params) -> RewardOutput


def missing(answer: str | None) -> str:
    """The reason why an answer cannot be read at all: there is none, or it is empty; "" if there is one."""
    if answer is None:
        return NO_ANSWER
    return "" if answer.strip() else EMPTY


def needs_images(reward: RewardFn, params: Mapping[str, Any]) -> bool:
    """Whether the reward looks at the images when it is called with `params`.

    It says so by its attribute `needs_images`: True, or, where it depends on the params, a function of them.
    """
    need = getattr(reward, "needs_images", False)
    return bool(need(params) if callable(need) else need)


def signature_problem(reward: RewardFn, params: Mapping[str, Any]) -> str:
    """Why `reward(x, **params)` cannot be called, or "" if it can."""
    try:
        inspect.signature(reward).bind(object(), **params)
    except TypeError as error:
        return str(error)
    except ValueError:  # a callable that does not tell its signature, such as one written in C
        return ""
    return ""
