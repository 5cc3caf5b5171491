r"""Write one formula the way the LaTeX parser reads it right; part of rewards.latex.

It reads the tokens from left to right and keeps what stood before. Everything it writes is taken from the tables of
rewards.latex_tables or is a number, a letter, or a text of letters and digits.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from rewards.answers.latex_tables import (
    ACCENTS,
    BARS,
    BINOMIALS,
    CLOSING,
    FRACTIONS,
    FUNCTIONS,
    IGNORED,
    IGNORED_ESCAPES,
    NAMED_SETS,
    OPENING,
    OPERATORS,
    SIGNS,
    SYMBOLS,
    TEXTS,
    UNEVALUATED,
    WORDS,
)

MAX_DIGITS = 30  # of one number
MAX_DEPTH = 12  # of arguments in arguments
MAX_BRACKETS = 5  # brackets in brackets: to the parser each level costs as much as 20 characters
MAX_TOWER = 2  # exponents of exponents; the parser itself hangs on the interval [1, 9^{9^{9^{9}}}]
MAX_FUNCTIONS = 12  # sin, log, ...: the parser's time grows with their square
MAX_LETTERS = 3  # of a bare word that is read as a product of variables
MAX_CHOOSE = 9_999  # numbers in a binomial, which is worked out while parsing

_TOKEN = re.compile(
    r"(?P<matrix>\\(?:begin|end) ?\{[pbv]?matrix\})|(?P<command>\\[A-Za-z]+)|(?P<escaped>\\[^A-Za-z])"
    r"|(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<word>[A-Za-z]+)|(?P<sign>\*\*|<=|>=|!=|[-+*/^_=<>()\[\]{}|!,;:&])|(?P<blank>[ ~]+)"
)
_ARGUMENT = re.compile(r" ?\{([A-Za-z0-9 ]{1,40})\}")
_INDEX = re.compile(r"\{ ?([A-Za-z0-9]+(?: ?[,+-] ?[A-Za-z0-9]+)*) ?\}|([A-Za-z0-9])")
_DEGREES = re.compile(r" ?(?:\{ ?\\(?:circ|degree) ?\}|\\(?:circ|degree)(?![A-Za-z]))")
_ROOT = re.compile(r" *\[")
_CHOOSE = re.compile(r"[A-Za-z0-9+-]+")
_VALUES = ("number", "letter", "value", "power")
_LETTERS_OF_FUNCTIONS = frozenset("fghFGH")


class NotMath(Exception):
    """The text is not plain mathematics, or too much of it. The message is the reason for a score of 0."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A text that is safe to parse."""

    tex: str  # what latex2sympy reads
    unevaluated: frozenset[str]  # the UNEVALUATED commands in it, and "diff" for d/dx
    bases: tuple[str, ...]  # subscripts of numbers, ("2",) for 1011_2; the parser would drop them
    brackets: str  # "{}", "()", "[)", ... if they hold a list and make up the whole text
    items: int  # of the list that the text is, with or without brackets; 3, \pm 4 has three


class Writer:
    """Reads the tokens of one text from left to right and writes what the parser is to read."""

    def __init__(self, text: str):
        self._text, self._at = text, 0
        self._out: list[str] = []
        # What stands before: one of _VALUES, "function" (its argument is still to come), or "" (an operator, nothing).
        self._before = ""
        self._depth = self._tower = self._matrices = self._functions = 0
        self._bars = False
        self._open: list[tuple[str, int]] = []  # open brackets and where they are in _out
        self._commas = [0, 0]  # outside of all brackets, and in the last outermost ones
        self._list = ("", 0, 0)  # the last outermost brackets that hold a list, and their span in _out
        self._unevaluated: set[str] = set()
        self._bases: list[str] = []

    def formula(self) -> Formula:
        """Read the whole text.

        Raises:
            NotMath: see there.
        """
        self._sequence(end="")
        if self._matrices or self._bars:
            raise NotMath("unbalanced brackets")
        kind, *span = self._list
        brackets = kind if span == [0, len(self._out)] else ""
        items = 1 + self._commas[bool(brackets)] + self._out.count("\\pm") + self._out.count("\\mp")
        return Formula(" ".join(self._out), frozenset(self._unevaluated), tuple(self._bases), brackets, items)

    def _sequence(self, end: str) -> None:
        """Items up to the sign `end`, which is taken; "" is the end of the text."""
        self._enter()
        outside, self._before = len(self._open), ""
        while (token := self._next()) is not None:
            kind, text = token
            if text == end and len(self._open) == outside:
                break
            self._item(kind, text)
        else:
            if end:
                raise NotMath("unbalanced brackets")
        if len(self._open) != outside:
            raise NotMath("unbalanced brackets")
        self._depth -= 1

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotMath("nested too deeply")

    def _next(self) -> tuple[str, str] | None:
        """The next token but blanks; None at the end."""
        while self._at < len(self._text):
            match = _TOKEN.match(self._text, self._at)
            if match is None or match.lastgroup is None:
                raise NotMath("not mathematics")
            self._at = match.end()
            if match.lastgroup != "blank":
                return match.lastgroup, match.group()
        return None

    def _item(self, kind: str, text: str) -> None:
        if kind == "number":
            self._number(text)
        elif kind == "word":
            self._word(text)
        elif kind == "command":
            self._command(text[1:])
        elif kind == "matrix":
            self._matrix(text)
        elif text in OPENING or text in CLOSING:
            self._bracket(text)
        elif text in BARS:
            self._bar()
        elif kind == "escaped":
            self._escaped(text)
        else:
            self._sign(text)

    def _captured(self, read: Callable[[], None]) -> list[str]:
        """What `read` writes, taken back; the item before is again what it was."""
        before, start = self._before, len(self._out)
        read()
        written = self._out[start:]
        del self._out[start:]
        self._before = before
        return written

    # --- values

    def _value(self, kind: str, *pieces: str, product: bool = True) -> None:
        """Write a value; `product` says whether to write the sign of a product with a value before it."""
        if product and self._before in _VALUES:
            self._out.append("\\cdot")
        self._out += pieces
        self._before = kind

    def _number(self, text: str) -> None:
        if self._before == "number":
            raise NotMath("two numbers side by side")
        if "," in text and (self._open or self._text.count(",") > text.count(",")):  # a list: (1,234) or 1,234,5
            text, _, rest = text.partition(",")
            self._at -= len(rest) + 1
        text = text.replace(",", "")
        if len(text) > MAX_DIGITS:
            raise NotMath("number too long")
        if self._text.startswith(".", self._at):  # "5."
            self._at += 1
        self._value("number", "0" + text if text.startswith(".") else text)

    def _word(self, text: str) -> None:
        if text in WORDS:
            self._operator(WORDS[text])
        elif text == "sqrt" or text in FUNCTIONS or text in SYMBOLS:
            self._command(text)
        elif len(text) > MAX_LETTERS:
            raise NotMath("words")
        else:
            for letter in text:
                self._letter(letter)

    def _letter(self, letter: str) -> None:
        # To the parser "d x" is a differential and i any variable.
        differential = self._out[-1:] == ["d"] and not self._unevaluated & {"int", "diff"}
        self._value("letter", "I" if letter == "i" else letter, product=differential)

    def _command(self, name: str) -> None:
        sign = f"\\{name}"
        if name in SYMBOLS:
            self._value("letter", SYMBOLS[name], product=False)
        elif name in FUNCTIONS:
            self._function(sign)
        elif name in OPERATORS:
            self._operator(OPERATORS[name])
        elif name in UNEVALUATED:
            self._unevaluated.add(name)
            self._function(sign)
        elif sign in OPENING or sign in CLOSING:
            self._bracket(sign)
        elif sign in BARS:
            self._bar()
        elif name in FRACTIONS:
            self._fraction()
        elif name == "sqrt":
            self._root()
        elif name in BINOMIALS:
            self._choose()
        elif name in TEXTS or name in ACCENTS or name == "mathbb":
            self._set_text(name)
        elif name not in IGNORED:
            raise NotMath("a command that is not scored")
        elif name in ("left", "right") and self._text.startswith(".", self._at):
            self._at += 1

    def _function(self, sign: str) -> None:
        self._functions += 1
        if self._functions > MAX_FUNCTIONS:
            raise NotMath("too large")
        self._value("function", sign, product=False)

    def _fraction(self) -> None:
        number = self._before == "number"
        top, bottom = self._argument(first=True), self._argument(first=True)
        if top == ["d"] and bottom[:1] == ["d"]:  # d/dx
            self._unevaluated.add("diff")
            bottom = [piece for piece in bottom if piece != "\\cdot"]
        mixed = number and len(top) == len(bottom) == 1 and top[0].isdigit() and bottom[0].isdigit()
        if mixed and int(top[0]) >= int(bottom[0]):
            raise NotMath("two numbers side by side")
        self._value("value", "\\frac", "{", *top, "}", "{", *bottom, "}", product=not mixed)

    def _root(self) -> None:
        degree, bracket = [], _ROOT.match(self._text, self._at)
        if bracket:
            self._at = bracket.end()
            degree = ["[", *self._captured(lambda: self._sequence(end="]")), "]"]
        self._value("value", "\\sqrt", *degree, "{", *self._argument(), "}")

    def _choose(self) -> None:
        top, bottom = self._argument(first=True), self._argument(first=True)
        for argument in (top, bottom):
            if not all(_CHOOSE.fullmatch(piece) for piece in argument):
                raise NotMath("a binomial of more than sums")
            if any(piece.isdigit() and int(piece) > MAX_CHOOSE for piece in argument):
                raise NotMath("too large")
        self._value("value", "\\binom", "{", *top, "}", "{", *bottom, "}")

    def _set_text(self, name: str) -> None:
        match = _ARGUMENT.match(self._text, self._at)
        if match is None:
            raise NotMath("text in a formula")
        self._at, content = match.end(), match[1].replace(" ", "")
        if name == "mathbb":
            if content not in NAMED_SETS:
                raise NotMath("a command that is not scored")
            self._value("value", f"\\mathbb{{{content}}}")
        elif name in ACCENTS:
            self._value("letter", f"\\{name}{{{content}}}", product=False)
        elif content in WORDS:
            self._operator(WORDS[content])
        elif content in FUNCTIONS:
            self._command(content)
        elif content.isdigit():
            self._number(content)
        elif len(content) == 1:
            self._letter(content)
        elif content:
            self._value("letter", f"\\text{{{content}}}", product=False)

    def _argument(self, first: bool = False) -> list[str]:
        """What the argument that comes next writes: a group, or else one item; with `first`, one digit of a number."""
        token = self._next()
        if token is None:
            raise NotMath("an argument is missing")
        kind, text = token
        if text in ("{", "("):
            return self._captured(lambda: self._sequence(end="}" if text == "{" else ")")) or ["{", "}"]
        if kind == "sign" and text in "+-" and not first:
            return [text, *self._argument()]
        if (kind == "word" and text not in SYMBOLS) or (kind == "number" and first):
            self._at -= len(text) - 1
            text = text[0]
        if kind not in ("number", "word", "command"):
            raise NotMath("an argument is missing")
        return self._captured(lambda: self._alone(kind, text))

    def _alone(self, kind: str, text: str) -> None:
        self._enter()
        self._before = ""
        self._item(kind, text)
        self._depth -= 1

    # --- signs

    def _operator(self, sign: str) -> None:
        if sign == "\\to" and "lim" not in self._unevaluated:
            raise NotMath("a command that is not scored")
        if sign in (",", ";") and len(self._open) <= 1 and self._depth == 1:
            self._commas[len(self._open)] += 1
        self._out.append(sign)
        self._before = ""

    def _sign(self, text: str) -> None:
        if text in ("^", "**"):
            self._power()
        elif text == "_":
            self._subscript()
        elif text == "{":
            group = self._captured(lambda: self._sequence(end="}"))
            if group:
                self._value("value", "{", *group, "}")
        elif text == "!" and self._before in _VALUES:
            self._value("value", "!", product=False)
        elif text == "&" and self._matrices:
            self._operator("&")
        elif text in SIGNS:
            self._operator(SIGNS[text])
        else:
            raise NotMath("unbalanced brackets" if text == "}" else "not mathematics")

    def _escaped(self, text: str) -> None:
        if text == "\\\\" and self._matrices:
            self._operator("\\\\")
        elif text not in IGNORED_ESCAPES:
            raise NotMath("not mathematics")

    def _power(self) -> None:
        degree = _DEGREES.match(self._text, self._at)
        if degree:  # an angle counts by its number
            self._at = degree.end()
            return
        if self._before not in (*_VALUES, "function") or self._before == "power":
            raise NotMath("an exponent of nothing")
        self._tower += 1
        if self._tower > MAX_TOWER:
            raise NotMath("too large")
        exponent = self._argument()
        self._tower -= 1
        self._out += ["^", "{", *exponent, "}"]
        self._before = "function" if self._before == "function" else "power"

    def _subscript(self) -> None:
        if self._before == "function":
            self._out += ["_", "{", *self._argument(), "}"]
            return
        match = _INDEX.match(self._text, self._at)
        if match is None or self._before not in ("number", "letter"):
            raise NotMath("not mathematics")
        self._at, index = match.end(), (match[1] or match[2]).replace(" ", "")
        if self._before == "number":
            self._bases.append(index)
        else:
            self._out[-1] += f"_{{{index}}}"

    def _bracket(self, text: str) -> None:
        if text in OPENING:
            call = self._before == "letter" and self._out[-1] in _LETTERS_OF_FUNCTIONS and text == "("
            self._value("", OPENING[text], product=not call)
            if not self._open:
                self._commas[1] = 0
            self._open.append((OPENING[text], len(self._out) - 1))
            if len(self._open) > MAX_BRACKETS:
                raise NotMath("nested too deeply")
            return
        if not self._open:
            raise NotMath("unbalanced brackets")
        (opening, start), closing = self._open.pop(), CLOSING[text]
        self._out.append(closing)
        self._before = "value"
        if not self._open and self._commas[1] and self._depth == 1:
            self._list = (opening[-1] + closing[-1], start, len(self._out))

    def _bar(self) -> None:
        closes = self._bars and self._before in _VALUES
        if self._bars and not closes:
            raise NotMath("unbalanced brackets")
        self._bars = not closes
        self._value("value" if closes else "", "|", product=not closes)

    def _matrix(self, text: str) -> None:
        kind = text.partition("{")[2][:-1]
        if kind == "vmatrix":
            self._unevaluated.add("det")
        if text.startswith("\\begin"):
            self._matrices += 1
            self._value("", f"\\begin{{{kind}}}")
        elif self._matrices:
            self._matrices -= 1
            self._value("value", f"\\end{{{kind}}}", product=False)
        else:
            raise NotMath("unbalanced brackets")
