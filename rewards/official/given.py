"""What an official script is given: a response to our prompt, and the problem's options."""

from __future__ import annotations

from collections.abc import Mapping

from rewards.answers.extract import bare, last_answer, reply
from rewards.base import RewardInput, Unscorable


def given(text: str) -> str:
    r"""The response as a script takes it that asked for an answer and nothing else: the answer, if there is one.

    Our prompts let a model reason and put the answer into a box; the scripts' prompts mostly do not. Handed the whole
    reasoning, a script that looks for the gold anywhere would say yes to nearly everything. Without an answer it is
    the whole reply, as the script would get it. Thinking is never part of it.
    """
    answer = last_answer(text)
    return bare(answer) if answer is not None else reply(text).strip()


def options_of(x: RewardInput) -> Mapping[str, str]:
    """Letter -> text of the options, {} if the question has none; "" for a picture and for a text that two share."""
    options = x.meta.get("options") or {}
    if not isinstance(options, Mapping) or not all(isinstance(text, str) for text in options.values()):
        raise Unscorable(f"meta['options'] must map letters to texts, got {str(options)[:60]!r}")
    return options


def group_of(x: RewardInput, name: str) -> str:
    """A value of meta["groups"], "" if there is none."""
    groups = x.meta.get("groups")
    return str(groups.get(name, "")) if isinstance(groups, Mapping) else ""
