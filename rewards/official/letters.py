"""Rules that look for the letter of an option in a text: MMMU, MMMU-Pro, We-Math; and MMMU's open questions."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence

from rewards.answers.extract import reply
from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.official.given import given, options_of

RANDOM = "random letter"  # the reason of a verdict that was drawn
_SIGNS = ",.!?;:'"  # taken off the ends, one kind after the other
_IN_BRACKETS, _APART = "({})", " {} "
_MMMU = (_IN_BRACKETS, _APART)
_MMMU_PRO = (_IN_BRACKETS, "{} ", "{}.")
_FEW_WORDS = 5  # up to which a text is not searched for the texts of options

_TAILS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
# Each starts at the first digit of a run: what begins in the middle of one ends like it, only slower.
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def mmmu(x: RewardInput) -> RewardOutput:
    """MMMU (github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py), on the answer if there is one.

    Options: the last letter in brackets, else between blanks, else, in more than five words, the last text of an
    option; else a random letter. Open questions: see `is_open_right`.
    """
    options = options_of(x)
    if options:
        return _verdict(x, options, find_letter(given(x.text), options, _MMMU))
    golds = [x.answer, *map(str, x.meta.get("answers") or ())]
    return RewardOutput(float(is_open_right(given(x.text), golds)))


def mmmu_pro(x: RewardInput) -> RewardOutput:
    """MMMU-Pro (the same repository, mmmu-pro/evaluate.py), on the whole reply: the prompt is the official one.

    What follows the last "Answer:", if exactly one of the letters is anywhere in it. Else the last letter in brackets,
    else before a blank ("NASA " has an A), else before a full stop, else the text of an option; else a random letter.
    """
    options, text = options_of(x), reply(x.text)
    _, marker, behind = text.rpartition("Answer:")
    named = [letter for letter in options if letter in behind] if marker else []
    return _verdict(x, options, named[0] if len(named) == 1 else find_letter(text, options, _MMMU_PRO))


def wemath(x: RewardInput) -> RewardOutput:
    """We-Math (github.com/We-Math/We-Math, evaluation/accuracy.py), on the answer if there is one.

    The first character after the last "Answer", the signs < > : . aside; it must be a letter up to H.
    """
    said = re.sub(r"[<>:.]", "", given(x.text).split("Answer")[-1].strip()).strip()
    return RewardOutput(float(said[:1] == x.answer and said[:1] in tuple("ABCDEFGH")))


def find_letter(text: str, options: Mapping[str, str], forms: Sequence[str]) -> str | None:
    """The letter of the first of `forms` that any letter has, of several letters the last one; else by the texts.

    Where a letter stands is looked up in brackets or between blanks, whatever the form: of letters that stand so
    nowhere the first option wins.
    """
    for sign in _SIGNS:
        text = text.strip(sign)
    text = f" {text} "
    for form in forms:
        found = [letter for letter in options if form.format(letter) in text]
        place = form if form == _IN_BRACKETS else _APART
        if found:
            return max(found, key=lambda letter: text.rfind(place.format(letter)))
    lower = text.lower()
    texts = {letter: option.lower() for letter, option in options.items() if option and option.lower() in lower}
    if texts and len(text.split()) > _FEW_WORDS:
        return max(texts, key=lambda letter: lower.rfind(texts[letter]))
    return None


def is_open_right(response: str, golds: Iterable[str]) -> bool:
    """MMMU's rule for open questions: a gold text is in a key phrase of the response, or a gold number is one of its
    numbers, both rounded to two decimals.

    Key phrases: of every line what follows "is ", "so ", ..., in the last line also "=", the shortest such tail; the
    whole response if there is none.
    """
    phrases = _key_phrases(response)
    numbers = [number for phrase in phrases for pattern in _NUMBERS for number in pattern.findall(phrase)]
    wanted = [form for gold in golds for form in _normal(gold)]
    texts, values = [w for w in wanted if isinstance(w, str)], {w for w in wanted if isinstance(w, float)}
    forms = [form for phrase in (*phrases, *numbers) for form in _normal(phrase)]
    return any(any(t in form for t in texts) if isinstance(form, str) else form in values for form in forms)


def _key_phrases(response: str) -> list[str]:
    text = response.strip().strip(".").lower()
    lines, phrases = text.split("\n"), []
    for number, line in enumerate(lines, start=1):
        shortest = ""
        for word in (*_TAILS, "=") if number == len(lines) else _TAILS:
            tail = line.split(word)[-1].strip()
            if word in line and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            phrases.append(shortest)
    return phrases or [text]


def _normal(text: str) -> list[str] | list[float]:
    """A number to two decimals, else lower case; a single character is only found beside a blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def _verdict(x: RewardInput, options: Mapping[str, str], letter: str | None) -> RewardOutput:
    """Without a letter one is drawn, by the id of the problem: the same each time it is scored."""
    if not options:
        raise Unscorable("the problem has no options")
    if letter is not None:
        return RewardOutput(float(letter == x.answer))
    return RewardOutput(float(random.Random(x.id).choice(sorted(options)) == x.answer), reason=RANDOM)
