"""Is the answer the right option?"""

import re
from typing import Any

from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.extract import last_answer, plain

# "B", "(B)", "B." / "B)" / "B:" alone or followed by the text of the option.
_LETTER = re.compile(r"\(([A-Za-z])\)(?: (.+))?|([A-Za-z])(?:[.):](?: (.+))?)?")


def choice(x: RewardInput) -> RewardOutput:
    """1 if the last `<answer>` names the gold option, by its letter or by its text, else 0.

    The whole answer must name it: "B", "(B)", "B. red" and "red" do (if option B reads "red"); "B or C", "B.
    blue" and a sentence with a B in it do not. meta["choices"] lists the texts of options A, B, ...; where it
    is absent, gold and answer are letters. An answer that is literally the text of an option means that
    option, also where it looks like a letter.

    Raises:
        Unscorable: the gold names no option, or two options read the same.
    """
    options = _options(x.meta.get("choices"))
    gold = _option(plain(x.answer), options)
    if gold is None:
        raise Unscorable(f"reference answer {x.answer[:40]!r} names none of the options {options or 'A-Z'}")
    answer = last_answer(x.text)
    return RewardOutput(float(answer is not None and _option(plain(answer), options) == gold))


def _options(choices: Any) -> list[str]:
    if choices is None:
        return []
    texts = isinstance(choices, list | tuple) and all(isinstance(c, str) for c in choices)
    if not texts or len(choices) > 26:
        raise Unscorable(f"meta['choices'] must be a list of at most 26 texts, got {str(choices)[:60]!r}")
    options = [plain(c).casefold() for c in choices]
    if not options or "" in options or len(set(options)) < len(options):
        raise Unscorable(f"meta['choices'] must hold different, non-empty texts, got {options}")
    return options


def _option(answer: str, options: list[str]) -> int | None:
    """Index of the option that `answer` names, or None."""
    answer = answer.casefold()
    if answer in options:
        return options.index(answer)
    match = _LETTER.fullmatch(answer)
    if match is None:
        return None
    index = ord(match[1] or match[3]) - ord("a")
    text = match[2] or match[4]
    if options and index >= len(options):
        return None
    if text is not None and (not options or text != options[index]):
        return None
    return index
