r"""Read one written number: decimals, thousands separators, fractions, scientific notation, and what stands beside it.

Everything is exact (`Fraction`), so no two different numbers are equal by rounding.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.answers.extract import bare

MAX_CHARS = 64
# ASCII digits only; exponents of at most two digits keep the exact arithmetic small. No name repeats a repetition,
# so matching takes time proportional to the text, which is at most MAX_CHARS long.
_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,|,\\!)[0-9]{3})+|[0-9]+)"
_EXPONENT = r"[eE](?P<e>[+-]?[0-9]{1,2})(?![0-9])"
_POWER = r"\ ?(?:x|\*|\u00d7|\\times|\\cdot)\ ?10\^(?:\{(?P<p>[+-]?[0-9]{1,2})\}|(?P<q>[+-]?[0-9]{1,2})(?![0-9]))"
# What a fraction of LaTeX holds: a number in braces, with a sign or none, or one digit without.
_WITHIN = r"\ ?(?:\{{\ ?(?P<{0}>[+-]?\ ?[0-9]+)\ ?\}}|(?P<{0}_digit>[0-9]))"
_FRACTION = rf"\\[dt]?frac{_WITHIN.format('top')}{_WITHIN.format('bottom')}(?![0-9])"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]\ ?)?
    (?P<currency>\\\$|[$\u20ac\u00a3\u00a5])?\ ?
    (?:
        (?:(?P<units>[0-9]+)\ ?)?{_FRACTION}
      | (?:(?P<whole>[0-9]+)\ )?(?P<over>[0-9]+)\ ?/\ ?(?P<under>[0-9]+)
      | 10\^(?:\{{(?P<r>[+-]?[0-9]{{1,2}})\}}|(?P<s>[+-]?[0-9]{{1,2}})(?![0-9]))
      | (?P<decimal>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:{_EXPONENT}|{_POWER})?
    )
    """,
    re.VERBOSE,
)
_SEPARATOR = re.compile(r"\{,\}|\\,|,\\!|,")
_UNIT_MARKUP = re.compile(r"\\(?:text|mathrm|rm|mbox)\b|\\[ ,;]|[{}~]")
_DEGREE_SIGN = re.compile(r"\^?\ ?(?:\{\ ?\\circ\ ?\}|\\circ\b|\\degree\b|[\u00b0\u00ba\u02da])\ ?")
_SCRIPT = re.compile(r"\ ?\^\ ?")
_OVER = re.compile(r"\ ?/\ ?")
_ONE_SIGN = str.maketrans({"\u00bd": r"\frac12", "\u00bc": r"\frac14", "\u00be": r"\frac34"})
_UNIT_CHARACTERS = str.maketrans({"\u00b2": "^2", "\u00b3": "^3", "\u00b5": "\u03bc", "\\": ""})
_DEGREE = frozenset(["\u00b0", "degree", "degrees", "deg"])
_CURRENCY = {
    "$": {"$", "dollar", "dollars"},
    "\u20ac": {"\u20ac", "euro", "euros"},
    "\u00a3": {"\u00a3", "pound", "pounds"},
    "\u00a5": {"\u00a5", "yen", "yuan"},
}
_ALIASES = {
    name: unit
    for unit, names in {
        "mm": "millimeter millimetre",
        "cm": "centimeter centimetre",
        "m": "meter metre",
        "km": "kilometer kilometre",
        "in": "inch",
        "ft": "foot feet",
        "yd": "yard",
        "mi": "mile",
        "mg": "milligram",
        "g": "gram",
        "kg": "kilogram",
        "lb": "lbs",
        "oz": "ounce",
        "mL": "ml milliliter millilitre",
        "L": "l liter litre",
        "s": "sec second",
        "min": "mins minute",
        "h": "hr hrs hour",
        "km/h": "kph kmh",
    }.items()
    for name in names.split()
}
_POWERS = {"square ": "^2", "sq ": "^2", "cubic ": "^3"}
_SPELLED_OUT = 4  # letters from which a unit is a word: case and a final s do not matter, as they do in "mW" and "ms"


@dataclass(frozen=True, slots=True)
class Numeral:
    """One written number and the unit it was written with."""

    value: Fraction  # of the number alone: 20 for "20%"
    unit: str = ""  # normal form, see unit_name; "%" for per cent
    currency: bool = False  # the unit stood in front of the number

    @property
    def percent(self) -> bool:
        return self.unit == "%"


def read_numeral(text: str) -> Numeral | None:
    r"""The one number that `text` consists of, with an optional unit; None for anything else.

    Reads "1,234.5", "1{,}234", "-3/4", "1 1/2" (mixed), `\frac{3}{4}`, `\frac34`, "¾", "1e5", "3 \times 10^{5}", "$5",
    "20%", "5 cm^2", each also between `$...$`. What stands behind the number counts as its unit whatever it is; the
    caller says which units it takes. Not numbers: words, NaN, infinity, expressions, a division by zero, more
    than MAX_CHARS characters, exponents of ten beyond 99.
    """
    text = bare(text)
    text = text.translate(_ONE_SIGN) if len(text) <= MAX_CHARS else ""
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = _value(match)
    rest = text[match.end() :]
    behind, before = unit_name(rest), unit_name(match["currency"] or "")
    if value is None or (behind and before) or (not behind and rest.strip(" ~\\,;")):
        return None
    return Numeral(value, behind or before, bool(before))


def unit_name(text: str) -> str:
    r"""Normal form of a unit: "cm^2" for `\text{ cm}^{2}` and "square centimeters", "°" for `^\circ` and "degrees"."""
    name = " ".join(_UNIT_MARKUP.sub(" ", _DEGREE_SIGN.sub("\u00b0", text)).split()).translate(_UNIT_CHARACTERS)
    name = _OVER.sub("/", _SCRIPT.sub("^", name)).removesuffix(".")
    for prefix, power in _POWERS.items():
        if name.casefold().startswith(prefix):
            return _simple_unit(name[len(prefix) :]) + power
    base, power, exponent = name.partition("^")
    return _simple_unit(base) + power + exponent


def _simple_unit(name: str) -> str:
    folded = name.casefold()
    if folded in _DEGREE:
        return "\u00b0"
    if folded in ("%", "percent", "per cent"):
        return "%"
    for sign, names in _CURRENCY.items():
        if folded in names:
            return sign
    if name.isalpha() and len(name) >= _SPELLED_OUT:
        name = folded.removesuffix("es") if folded.endswith("ches") else folded.removesuffix("s")
    return _ALIASES.get(name, name)


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if (match["sign"] or "").startswith("-") else 1
    top = match["top"] or match["top_digit"] or match["over"]
    bottom = match["bottom"] or match["bottom_digit"] or match["under"]
    if top is not None:
        above, below = int(top.replace(" ", "")), int(bottom.replace(" ", ""))
        if below == 0:
            return None
        fraction = Fraction(above, below)
        whole = match["units"] or match["whole"]
        if whole is not None and not (top.isdigit() and bottom.isdigit() and fraction < 1):
            return None  # neither "2 3/2" nor 2\frac{-1}{2} is a mixed number
        return sign * (int(whole or 0) + fraction)
    exponent = int(next((match[name] for name in "epqrs" if match[name] is not None), 0))
    mantissa = Fraction(_SEPARATOR.sub("", match["decimal"])) if match["decimal"] is not None else Fraction(1)
    return sign * mantissa * Fraction(10) ** exponent
