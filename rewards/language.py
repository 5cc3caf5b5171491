"""A penalty for answering in another language than was asked for."""

from __future__ import annotations

import functools
import re
import unicodedata

from rewards.base import RewardInput, RewardOutput, Unscorable

_LATIN = "ca cs da de en es et fi fr hr hu id it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi"
_CYRILLIC = "be bg kk ky mk mn ru uk"
_DEVANAGARI = "hi mr ne"
_ARABIC = "ar fa ps ur"
LANGUAGES: dict[str, frozenset[str]] = {
    **dict.fromkeys(_LATIN.split(), frozenset({"LATIN"})),
    **dict.fromkeys(_CYRILLIC.split(), frozenset({"CYRILLIC"})),
    **dict.fromkeys(_DEVANAGARI.split(), frozenset({"DEVANAGARI"})),
    **dict.fromkeys(_ARABIC.split(), frozenset({"ARABIC"})),
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ka": frozenset({"GEORGIAN"}),
    "ko": frozenset({"HANGUL", "CJK"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK"}),
}
_ALL = frozenset().union(*LANGUAGES.values())
_ONE_A_LETTER = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI"})  # written without blanks between words
_SYMBOLS = frozenset({"LATIN", "GREEK", "OTHER"})  # letters of formulas, in any language: x, AB, a script R
_LONGEST_SYMBOL = 2
_NO_PROSE = re.compile(r"</?(?:think|answer)>|\\[A-Za-z]+")


def language(x: RewardInput, language: str | None = None) -> RewardOutput:
    """Minus the share of words in a script that the expected language is not written in, in [-1, 0].

    The language is meta["language"] or, where the problem has none, the parameter; a code such as "en", "zh" or
    "ru" (LANGUAGES has all). The whole response counts, the thinking included: what this is against is a
    policy that starts to think in another language. What does not count: Latin or Greek words of one or two
    letters (variables) where another script is expected, LaTeX commands, the think and answer tags, digits and
    signs. A word is a run of letters of one script; in scripts without blanks between words each letter is one.
    A response without words scores 0.

    Limits: it sees scripts, not languages. German where English was asked for costs nothing, nor does Chinese
    where Japanese was; program code and foreign names in a Chinese answer cost their share.

    Raises:
        Unscorable: no language is given, or one that is not in LANGUAGES.
    """
    expected = x.meta.get("language", language)
    if not isinstance(expected, str) or expected not in LANGUAGES:
        raise Unscorable(
            f"the language {expected!r} is none of {', '.join(sorted(LANGUAGES))}; set meta['language'] in the data "
            "or rewards.params.language.language in the config"
        )
    fitting, total = 0, 0
    for script, letters in _words(_NO_PROSE.sub(" ", x.text)):
        if script in LANGUAGES[expected]:
            fitting += 1
        elif script in _SYMBOLS and letters <= _LONGEST_SYMBOL:
            continue
        total += 1
    return RewardOutput((fitting - total) / total if total else 0.0)


def _words(text: str) -> list[tuple[str, int]]:
    """(script, letters) of each word."""
    words: list[tuple[str, int]] = []
    run, letters = "", 0
    for char in text:
        script = _script(char)
        if script == "MARK" and run:  # an accent or vowel sign belongs to the letter before it
            continue
        if script != run or script in _ONE_A_LETTER:
            if run:
                words.append((run, letters))
            run, letters = ("" if script == "MARK" else script), 0
        letters += 1
    if run:
        words.append((run, letters))
    return words


@functools.cache
def _script(char: str) -> str:
    """Script of a letter, "MARK" for a combining mark, "" for anything else. By the Unicode name.

    Python's own tables have no script property, but the name of a letter begins with it. Letters made for
    formulas ("MATHEMATICAL ITALIC SMALL X") belong to none; "OTHER" is any script that LANGUAGES does not have.
    """
    category = unicodedata.category(char)
    if category.startswith("M"):
        return "MARK"
    if not category.startswith("L"):
        return ""
    words = unicodedata.name(char, "").split(" ")
    first = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") and len(words) > 1 else words[0]
    if first in _ALL:
        return first
    return "" if first in ("", "MATHEMATICAL", "MODIFIER") else "OTHER"
