r"""Take the unit off a formula: `5\text{ cm}^2` is the formula 5 and the unit "cm^2"."""

import re

from rewards.answers.extract import bare
from rewards.answers.latex_writer import MAX_LETTERS
from rewards.answers.numerals import unit_name
from rewards.answers.typeset import scripted

# Units that are recognised behind a number, in the normal form of unit_name without powers. Words that count ("dozen",
# "million") are not among them: they change the number. Nor are single letters, which are variables, unless they are
# set as text, or stand in a gold behind a plain number.
_UNITS = frozenset(
    re.split(
        r"\s+",
        """% ° $ € £ ¥ mm cm dm m km nm in ft yd mi mg g kg lb oz mL L ms s min h day week month year mph km/h m/s cm/s
        ft/s Hz kHz Pa kPa kJ kW kWh cent ton tonne rad radian unit""",
    )
)
_SET_UNITS = _UNITS | frozenset("VAWNJKCF")
_LETTER_UNITS = frozenset("msghL")  # in a gold: "4.4 m", "685 m" and "4.4m"; "3m" and "x m" are products
_COUNTING = frozenset(["hundred", "thousand", "million", "billion", "trillion", "dozen", "and", "or"])

_AMOUNT = re.compile(r"[+-]? ?[0-9][0-9,]*(?: |\.[0-9]+ ?)")
_CURRENCY = re.compile(r"([+-]? ?)(\\\$|[$\u20ac\u00a3\u00a5]) ?(?=[0-9.])")
_SPACE_AT_END = re.compile(r"(?:\\[ ,;:!]|~|\\quad| )+\Z")
_BEHIND = r"(?:(?<=[0-9)}\]!])|(?<=\ ))"
_RAISED = r"\^\ ?(?:\{[23]\}|[23])"
_POWER = rf"(?:\ ?{_RAISED})?"
_DEGREES = r"\^\ ?(?:\{\ ?\\circ\ ?\}|\\circ)|\\degree|[\u00b0\u00ba\u02da]"
# "215\u00b0T" is a true bearing: the T says from where it is measured, and is no factor.
_AT_END = re.compile(
    rf"""
    (?: (?P<set>\\(?:text|textrm|textbf|mathrm|mbox)\ ?\{{(?:[A-Za-z/.~\ ]|{_RAISED}){{1,30}}\}}){_POWER}
      | {_BEHIND}(?P<bare>[A-Za-z][A-Za-z/]{{1,14}}(?:\ [A-Za-z]{{2,14}}|\ ?/\ ?[A-Za-z]{{1,14}})?){_POWER}
      | {_BEHIND}(?P<letter>[A-Za-z]){_POWER}
      | (?P<degrees>{_DEGREES})(?:\ ?(?:T|\\(?:text|mathrm)\ ?\{{\ ?T\ ?\}}))?
      | (?P<sign>\\?%|\\?\$|[\u20ac\u00a3\u00a5])
    )\Z
    """,
    re.VERBOSE,
)


def split_unit(text: str, also: str = "", trusted: bool = False) -> tuple[str, str]:
    """(the formula, the normal form of its unit or "").

    Args:
        also: one more unit to recognise, a normal form: that of the gold, for an answer.
        trusted: take any word behind the formula for its unit, and a letter behind a number; for golds.
    """
    text = _trimmed(scripted(bare(text).rstrip(".")))
    if currency := _CURRENCY.match(text):
        return currency[1] + text[currency.end() :], unit_name(currency[2])
    match = _AT_END.search(text)
    if match is None:
        return text, ""
    kind = match.lastgroup or ""
    formula, unit = _trimmed(text[: match.start()]), "\u00b0" if kind == "degrees" else unit_name(match.group())
    plain_unit = unit.partition("^")[0]
    known = kind in ("sign", "degrees") or plain_unit in {"set": _SET_UNITS, "bare": _UNITS}.get(kind, ())
    if trusted and plain_unit not in _COUNTING:
        named = kind == "bare" and all(part in _UNITS or len(part) > MAX_LETTERS for part in plain_unit.split("/"))
        measured = kind == "letter" and unit in _LETTER_UNITS and _AMOUNT.fullmatch(text[: match.start()])
        known = known or kind == "set" or named or bool(measured)
    return (formula, unit) if formula and (known or unit == also) else (text, "")


def _trimmed(text: str) -> str:
    return _SPACE_AT_END.sub("", text).strip()
