r"""Take the unit off a formula: `5\text{ cm}^2` is the formula 5 and the unit "cm^2"."""

import re

from rewards.answers.extract import bare
from rewards.answers.latex_writer import MAX_LETTERS
from rewards.answers.numerals import unit_name

# Units that are recognised behind a number, in the normal form of unit_name without powers. Words that count ("dozen",
# "million") are not among them: they change the number. Nor are single letters, which are variables, unless they are
# set as text.
_UNITS = frozenset(
    re.split(
        r"\s+",
        """% ° $ € £ ¥ mm cm dm m km nm in ft yd mi mg g kg lb oz mL L ms s min h day week month year mph km/h m/s cm/s
        ft/s Hz kHz Pa kPa kJ kW kWh cent ton tonne rad radian unit""",
    )
)
_SET_UNITS = _UNITS | frozenset("VAWNJKCF")
_COUNTING = frozenset(["hundred", "thousand", "million", "billion", "trillion", "dozen", "and", "or"])

_CURRENCY = re.compile(r"([+-]? ?)(\\\$|[$\u20ac\u00a3\u00a5]) ?(?=[0-9.])")
_SPACE_AT_END = re.compile(r"(?:\\[ ,;:!]|~|\\quad| )+\Z")
_BEHIND = r"(?:(?<=[0-9)}\]!])|(?<=\ ))"
_POWER = r"(?:\ ?\^\ ?(?:\{[23]\}|[23])|[\u00b2\u00b3])?"
_AT_END = re.compile(
    rf"""
    (?: (?P<set>\\(?:text|textrm|textbf|mathrm|mbox)\ ?\{{[A-Za-z/.\ ]{{1,30}}\}}){_POWER}
      | {_BEHIND}(?P<bare>[A-Za-z][A-Za-z/]{{1,14}}(?:\ [A-Za-z]{{2,14}})?){_POWER}
      | {_BEHIND}(?P<letter>[A-Za-z]){_POWER}
      | (?P<sign>\\?%|\^\ ?(?:\{{\ ?\\circ\ ?\}}|\\circ)|\u00b0|\\?\$|[\u20ac\u00a3\u00a5])
    )\Z
    """,
    re.VERBOSE,
)


def split_unit(text: str, also: str = "", trusted: bool = False) -> tuple[str, str]:
    """(the formula, the normal form of its unit or "").

    Args:
        also: one more unit to recognise, a normal form: that of the gold, for an answer.
        trusted: take any word behind the formula for its unit; for golds.
    """
    text = _trimmed(bare(text).rstrip("."))
    if currency := _CURRENCY.match(text):
        return currency[1] + text[currency.end() :], unit_name(currency[2])
    match = _AT_END.search(text)
    if match is None:
        return text, ""
    formula, unit = _trimmed(text[: match.start()]), unit_name(match.group())
    kind, plain_unit = match.lastgroup, unit.partition("^")[0]
    known = {"set": plain_unit in _SET_UNITS, "bare": plain_unit in _UNITS, "letter": False, "sign": True}[kind or ""]
    if trusted and plain_unit not in _COUNTING:
        known = known or kind == "set" or (kind == "bare" and len(plain_unit) > MAX_LETTERS)
    return (formula, unit) if formula and (known or unit == also) else (text, "")


def _trimmed(text: str) -> str:
    return _SPACE_AT_END.sub("", text.strip())
