"""Does the answer list the right items?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from typing import Any

from rewards.answers.blocks import parse_json
from rewards.answers.extract import last_answer as final_answer
from rewards.answers.extract import plain, settled, undressed
from rewards.base import WRONG, RewardInput, RewardOutput, Unscorable, missing

SEPARATORS = ",;\n"
_SPELLINGS = {",": ",\uff0c\u3001", ";": ";\uff1b", "\n": "\n"}  # Chinese and Japanese write others, too
MAX_ITEMS = 1000
_MAX_CHARS = 20_000
_BULLET = re.compile(r"^(?:[-*\u2022]|[0-9]{1,3}[.)]) +(?=\S)")
_LATEX_SIZE = re.compile(r"\\(?:left|right) ?(?=[()\[\]])")
_LATEX_BLANK = re.compile(r"(?<!\\)\\[,;! ]")
_VALUE = re.compile(r"-?[0-9]+(?:/[0-9]+)?")  # a number as `_comparable` writes it
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?")
_PAIRS = ("[]", "()", "{}", "\uff08\uff09")
_QUOTES = ('""', "''", "``", "\u201c\u201d")


def list_items(x: RewardInput) -> RewardOutput:
    r"""1 if the answer lists exactly the items of the gold, each as often as the gold does, else 0.

    With meta["ordered"] = true they must come in the order of the gold; the default is any order. An item too
    many scores 0 like one too few, so listing everything gains nothing. With meta["tolerance"], a number >= 0, which
    needs an order, an item that is a number need only be so close to that of the gold.

    Gold and answer are read alike: a JSON array of texts and numbers, or items between commas, semicolons (full-width
    ones too) or line breaks, with or without one pair of brackets around all. A separator that occurs inside an item
    of the gold does not separate (such a gold is written as a JSON array). Items are compared without regard to case,
    the amount of white space, a bullet ("- ", "2. ") before them, quotes and Markdown around them and a full stop
    behind them; numbers by value ("1.50" is "1.5"). `\left(`, `\right)` and LaTeX's blanks are brackets and blanks. A
    separator at the end of a line is ignored; an empty item elsewhere is an item.

    parts["overlap"], in [0, 1], is the F1 of the items without regard to order.

    Raises:
        Unscorable: the gold has no items, or more than 1000, meta["ordered"] is not a truth value, or the tolerance is
            no such number or without an order.
    """
    ordered = x.meta.get("ordered", False)
    if not isinstance(ordered, bool):
        raise Unscorable(f"meta['ordered'] must be true or false, got {ordered!r}")
    tolerance = _tolerance(x.meta.get("tolerance"), ordered)
    inside = set("".join(_array(x.answer) or []))
    separators = "".join(mark for mark in SEPARATORS if inside.isdisjoint(_SPELLINGS[mark]))
    gold = _items(x.answer, separators)
    if not gold or "" in gold:
        raise Unscorable(f"the reference answer {x.answer[:60]!r} is no list of at most {MAX_ITEMS} items")
    found = final_answer(x.text)
    answer = _items(found or "", separators)
    if not answer:
        return RewardOutput(0.0, {"overlap": 0.0}, missing(found) or "not a list")
    if tolerance:
        answer = [_near(item, wanted, tolerance) for item, wanted in zip_longest(answer, gold[: len(answer)])]
    common = (Counter(gold) & Counter(answer)).total()
    same = answer == gold if ordered else common == len(gold) == len(answer)
    return RewardOutput(float(same), {"overlap": 2 * common / (len(gold) + len(answer))}, "" if same else WRONG)


def _tolerance(value: Any, ordered: bool) -> Fraction:
    if value is None:
        return Fraction(0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise Unscorable(f"meta['tolerance'] must be a finite number >= 0, got {value!r}")
    if not ordered:
        raise Unscorable("meta['tolerance'] needs meta['ordered'] = true: else it is open which item is which")
    return Fraction(str(value))


def _near(item: str, wanted: str | None, tolerance: Fraction) -> str:
    """`wanted` if both are numbers that close to each other, else the item itself."""
    numbers = wanted is not None and _VALUE.fullmatch(item) and _VALUE.fullmatch(wanted)
    return wanted if wanted and numbers and abs(Fraction(item) - Fraction(wanted)) <= tolerance else item


def _items(text: str, separators: str) -> list[str]:
    """The items, ready to be compared; [] if there are none, or too many."""
    if len(text) > _MAX_CHARS:
        return []
    text = undressed(text)
    texts = _array(text)
    if texts is None:
        texts = _split(_LATEX_BLANK.sub(" ", _LATEX_SIZE.sub("", text)), separators)
    return [] if len(texts) > MAX_ITEMS else [_comparable(item) for item in texts]


def _array(text: str) -> list[str] | None:
    """The items of a JSON array of texts and numbers; None if `text` is none."""
    if not text.lstrip().startswith("[") or len(text) > _MAX_CHARS:
        return None
    try:
        value = parse_json(text)
    except ValueError:  # "[red, blue]" is a list, too, if not in JSON
        return None
    if not isinstance(value, list):
        return None
    plain_items = all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in value)
    return [str(item) for item in value] if plain_items else None


def _split(text: str, separators: str) -> list[str]:
    items: list[str] = []
    marks = f"[{''.join(_SPELLINGS[mark] for mark in separators)}]" if separators else ""
    text = _inside(text.strip(), _PAIRS)
    for line in text.split("\n") if "\n" in separators else [text]:
        parts = re.split(marks, line.strip()) if marks else [line]
        # A separator at the end of a line, or of all, is followed by no item; nor is a blank line one.
        items += parts if parts[-1].strip() else parts[:-1]
    return items


def _comparable(item: str) -> str:
    item = settled(_inside(settled(_BULLET.sub("", plain(item))), _QUOTES))
    return str(Fraction(item)) if _NUMBER.fullmatch(item) else item.casefold()


def _inside(text: str, pairs: Sequence[str]) -> str:
    """Without the pair of marks around the whole of `text`, if there is one and none inside."""
    for left, right in pairs:
        inside = text[1:-1]
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in inside and right not in inside:
            return inside.strip()
    return text
