r"""Make sure that an answer is plain mathematics, and write it the one way in which the LaTeX parser reads it right.

What a model wrote is untrusted input to a large parser and to SymPy, whose numerical code turns the names of
symbols into Python source. So nothing passes but what is listed in latex_tables: digits, letters, a few signs and
commands; text in a command may hold letters and digits only. Anything else is `NotMath`.

The parser (latex2sympy2_extended 1.11, which math-verify 0.9 brings) also has readings that would score wrong
answers: "12 7" is 19 to it and "(2)(3)" is 5, both as mixed numbers. Here the first is refused and the product in the
second is written out, as is what it cannot read: `\frac12`, "x^(1/2)", "sqrt(2)", "2**3", "1e5".
"""

import re

from rewards.answers.extract import bare
from rewards.answers.latex_tables import FUNCTIONS, SYMBOLS, TEXTS, UNICODE, WORDS
from rewards.answers.latex_writer import Formula, NotMath, Writer
from rewards.answers.typeset import scripted

__all__ = ["Formula", "NotMath", "formula", "words"]

_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9.])([0-9]+\.?[0-9]*)[eE]([+-]?[0-9]{1,2})(?![0-9A-Za-z.])")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\,|,\\!)(?=[0-9]{3}(?![0-9]))")
_REPEATING = re.compile(r"(?<![0-9.])([0-9]{0,9})\.([0-9]{0,9})\\overline ?\{([0-9]{1,9})\}")
_MIXED = re.compile(r"(?<![0-9./])([0-9]{1,9}) ([0-9]{1,9}) ?/ ?([0-9]{1,9})(?![0-9./])")
# Behind a comma "and" adds nothing: "3, 4, and 5".
_CONJUNCTION = re.compile(
    r"([,;])(?:[ ~]|\\[ ,;:!]|\\q?quad(?![A-Za-z]))*"
    rf"(?:(?:{'|'.join(WORDS)})(?![A-Za-z])|\\(?:{'|'.join(sorted(TEXTS))}) ?\{{ *(?:{'|'.join(WORDS)}) *\}})"
)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
_WORDS = re.compile(r"[A-Za-z][A-Za-z '-]*")
_SET_AS_TEXT = re.compile(r"\\(?:text|math|mbox)")
_SHORT_WORDS = frozenset(["yes", "no", "odd", "all", "dne"])
_KNOWN = frozenset([*WORDS, *FUNCTIONS, *SYMBOLS, "sqrt"])


def words(text: str) -> str:
    r"""The text in lower case if it is words and no formula ("no solution", `\text{even}`), else ""."""
    content = bare(text).rstrip(". ")
    if not _WORDS.fullmatch(content):
        return ""
    longest = max((len(word) for word in re.findall("[A-Za-z]+", content) if word not in _KNOWN), default=0)
    if longest < (2 if _SET_AS_TEXT.search(text) else 4) and content.casefold() not in _SHORT_WORDS:
        return ""
    return content.casefold()


def formula(text: str) -> Formula:
    """What `text` says, as the parser reads it right.

    Raises:
        NotMath: the text holds anything but plain mathematics, or more of it than is scored.
    """
    text = scripted(text).translate(UNICODE)
    if "matrix" not in text:
        text = _DOUBLED.sub(r"\\", text)  # "\\\\frac": escaped once too often, as in JSON
    text = _CONJUNCTION.sub(r"\1 ", text)
    text = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", _THOUSANDS.sub("", text))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _REPEATING.sub(_repeating, text))
    return Writer(text).formula()


def _repeating(match: re.Match[str]) -> str:
    r"""0.1\overline{6} as a fraction: (16 - 1) / 90."""
    whole, fixed, period = match.groups()
    top = int(whole + fixed + period) - int("0" + whole + fixed)
    return f"\\frac{{{top}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"
