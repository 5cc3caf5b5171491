"""Options that stand in the text of a question, for readers of rows to tell the reward "choice"."""

import re
from collections.abc import Mapping

from rewards.choice import folded

_ASCII = str.maketrans("\uff08\uff09\uff0e\uff1a\uff1f", "().:?")
# The mark of an option: "(A)", or "A." and the like where no word, no formula and no name in points goes before it.
_MARK = re.compile(
    r"(?<![A-Za-z\\])\((?P<closed>[A-Z])\)|(?<![\w(\\.$^{/-])(?P<open>[A-Z])(?P<kind>[.:)\u3001])", re.ASCII
)
# What a list follows: in a sentence "A. Smith" is a name. Three in brackets are a list anywhere.
_OPENING = ("\n", ".", "?", "!", ":", ";", ")", "]", "_", "\u3002", "\uff01", "\uff1b")
_JOINED = re.compile(r"(?:\A|\s)(?:and|or)\Z")  # "(A) and (B)"
_GOES_ON = re.compile(r"[?\n]|[.!] +[A-Z]|\u3002.")  # if the last text alone does, the question may, behind it
_LETTERED = re.compile(r"^[ \t]*\(?([A-Z])[.:)\u3001][ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_PICTURE = re.compile(r"<image[ _]?\d{0,2}>")


def options_in(question: str) -> dict[str, str]:
    """Options that stand in the question itself; {} if there are none, or it is in doubt what they are.

    They stand one behind the other and end it, "Choices: (A) yes (B) no", "A. Left. B. Right.", "A: a dog, B: a cat",
    or a line each, "A. text", "(A) text", "A: text". The last that count up from A are meant.
    """
    question = question.translate(_ASCII)
    return _in_a_row(question) or _in_lines(question)


def _in_a_row(question: str) -> dict[str, str]:
    marks = list(_MARK.finditer(question))
    letters = [mark["closed"] or mark["open"] for mark in marks]
    first = len(letters) - 1 - letters[::-1].index("A") if "A" in letters else len(letters)
    marks, letters = marks[first:], letters[first:]
    counted = letters == [chr(ord("A") + i) for i in range(len(letters))]
    if len(marks) < 2 or not counted or len({mark["kind"] for mark in marks}) > 1:
        return {}
    before = question[: marks[0].start()].rstrip(" \t")
    bracketed = len(marks) > 2 and marks[0][0].endswith(")")
    if not before or not (before.endswith(_OPENING) or bracketed):
        return {}
    ends = [*(mark.start() for mark in marks[1:]), len(question)]
    texts = [question[mark.end() : end].strip(" \t\r\n,;") for mark, end in zip(marks, ends, strict=True)]
    goes_on = [_GOES_ON.search(text) is not None for text in texts]
    if not all(map(_is_text, texts)) or (goes_on[-1] and not any(goes_on[:-1])):
        return {}
    return dict(zip(letters, texts, strict=True))


def _is_text(piece: str) -> bool:
    """Whether an option may read so: something is said, to its end, and no command of LaTeX is cut off."""
    return bool(piece.strip(".")) and not _JOINED.search(piece) and piece.count("{") == piece.count("}")


def _in_lines(question: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for letter, option in _LETTERED.findall(question):
        if letter == "A":
            found = {}
        if ord(letter) - ord("A") == len(found):
            found[letter] = option
    return found if len(found) > 1 else {}


def option_meta(options: Mapping[str, str]) -> dict[str, str]:
    """`options` as the reward "choice" takes them.

    A text is left out ("") where it can name no option: a picture, or a text that two options share. Such an option
    can be named by its letter.
    """
    texts = [folded(option) for option in options.values()]
    return {
        label: "" if texts.count(folded(option)) > 1 or _PICTURE.search(option) else option
        for label, option in options.items()
    }
