r"""Short texts as they read once they are set: `$45^\circ$` is 45°, `\frac{1}{2}` is 1/2, `50\%` is 50%.

For texts that are compared as texts, such as those of options. Nothing is worked out: 2/4 is not 1/2, and what is no
typesetting (`\int`, a word) stays as it is. Brackets keep apart what LaTeX keeps apart: `\frac{1}{2x}` is 1/(2x) and
`x^{2y}` is x^(2y).
"""

import functools
import re

from rewards.answers.extract import bare

MAX_CHARS = 400
_MAX_DEPTH = 12  # of groups in groups
# Command=sign, for commands without arguments.
_TABLE = """
    times=\u00d7 cdot=\u00b7 div=\u00f7 pm=\u00b1 mp=\u2213 le=\u2264 leq=\u2264 ge=\u2265 geq=\u2265 ne=\u2260
    neq=\u2260 approx=\u2248 equiv=\u2261 cong=\u2245 sim=\u223c propto=\u221d infty=\u221e angle=\u2220
    triangle=\u25b3 perp=\u22a5 parallel=\u2225 circ=\u2218 degree=\u00b0 prime=\u2032 to=\u2192
    rightarrow=\u2192 Rightarrow=\u21d2 leftarrow=\u2190 leftrightarrow=\u2194 in=\u2208 notin=\u2209
    subset=\u2282 subseteq=\u2286 cup=\u222a cap=\u2229 emptyset=\u2205 varnothing=\u2205 forall=\u2200
    exists=\u2203 neg=\u00ac land=\u2227 wedge=\u2227 lor=\u2228 vee=\u2228 ldots=... dots=... cdots=... lt=<
    gt=> colon=: dollar=$ alpha=\u03b1 beta=\u03b2 gamma=\u03b3 delta=\u03b4 epsilon=\u03b5 varepsilon=\u03b5
    zeta=\u03b6 eta=\u03b7 theta=\u03b8 iota=\u03b9 kappa=\u03ba lambda=\u03bb mu=\u03bc nu=\u03bd xi=\u03be
    pi=\u03c0 rho=\u03c1 sigma=\u03c3 tau=\u03c4 phi=\u03c6 varphi=\u03c6 chi=\u03c7 psi=\u03c8 omega=\u03c9
    Gamma=\u0393 Delta=\u0394 Theta=\u0398 Lambda=\u039b Xi=\u039e Pi=\u03a0 Sigma=\u03a3 Phi=\u03a6 Psi=\u03a8
    Omega=\u03a9
"""
_SIGNS = {name: sign for name, _, sign in (pair.partition("=") for pair in _TABLE.split())}
_UPPER = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f"
_LOWER = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_PLAIN_SCRIPT = str.maketrans(_UPPER + _LOWER, "0123456789-n0123456789")
_ONE_SIGN = str.maketrans(
    {
        "\u22c5": "\u00b7", "\u2013": "-", "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}",
        "\u2206": "\u0394", "\u00b5": "\u03bc", "\u03d5": "\u03c6", "\u00ba": "\u00b0", "\u2026": "...",
    }
)  # fmt: skip

_INLINE = re.compile(r"\$(?:(?=[^$]*[\\^_{])|(?![0-9 ]))([^$]*[^$ ])\$|\\\((.*?)\\\)")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|\\,|,\\!)(?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"\\[,;: ]|(?<=[\w{])~(?=[\w\\])|\\(?:quad|qquad|thinspace)(?![A-Za-z])")
_IGNORED = re.compile(r"\\!|\\(?:left|right|displaystyle|textstyle|big|Big|bigg|Bigg)(?![A-Za-z])")
_COMMAND = re.compile(r"\\([A-Za-z]+)(?:\{\}| ?)")  # the blank behind it ends it and is not shown
_COMMAND_AT_END = re.compile(r"\\[A-Za-z]+\Z")
_ESCAPED = re.compile(r"\\([%&#_])")
_RUNS = (re.compile(f"[{_UPPER}]+"), re.compile(f"[{_LOWER}]+"))
_MINUS_UP = re.compile(r"\^(-[0-9A-Za-z]+)")
_DEGREES = re.compile(r" ?\^ ?(?:\{ ?[\u2218\u00b0] ?\}|[\u2218\u00b0])")
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname) ?\{([^{}]*)\}"
)
_ROOT = re.compile(r"\\sqrt ?(?:\[([^\[\]{}]*)\] ?)?(?:\{([^{}]*)\}|([0-9A-Za-z\u03b1-\u03c9]))")
_PLAIN_ROOT = re.compile(r"(\u221a|\u221b) ?(?![(\[])([0-9]+(?:\.[0-9]+)?|\w)|(\u221b)(?=\()")
_FRACTION = re.compile(r"\\[dtc]?frac ?(?:\{([^{}]*)\}|([0-9A-Za-z])) ?(?:\{([^{}]*)\}|([0-9A-Za-z]))")
_SCRIPT = re.compile(r" ?([\^_]) ?\{([^{}]*)\}")
_ABOVE = re.compile(r"[\w.,]*(?:\u221a\([^()]*\))?")  # a product that needs no brackets over a fraction bar
_BELOW = re.compile(r"[0-9.,]+|\w|[0-9]*\u221a\([^()]*\)")
_FACTOR = re.compile(r"(?<=[0-9]) +(?=[\u0391-\u03a9\u03b1-\u03c9])")  # a Greek letter behind a number
_BLANK = re.compile(r"(?<!\w) | (?!\w)")


def typeset(text: str) -> str:
    """The signs that `text` shows, apart from what `bare` takes off; texts of more than MAX_CHARS as they are."""
    return _typeset(text) if len(text) <= MAX_CHARS else text


def scripted(text: str) -> str:
    """Small raised and lowered signs as LaTeX: x\u2074 is x^{4}, x\u2081 is x_{1}, 10\u207b\u00b3 is 10^{-3}."""
    for mark, run in zip("^_", _RUNS, strict=True):
        text = run.sub(lambda m, mark=mark: f"{mark}{{{m[0].translate(_PLAIN_SCRIPT)}}}", text)
    return text


@functools.lru_cache(maxsize=4096)
def _typeset(text: str) -> str:
    text = bare(text).translate(_ONE_SIGN)
    text = _INLINE.sub(_inside, text).replace("\\$", "$")
    text = _IGNORED.sub("", _SPACE.sub(" ", _THOUSANDS.sub(",", text)))
    text = _ESCAPED.sub(r"\1", text).replace("<=", "\u2264").replace(">=", "\u2265").replace("!=", "\u2260")
    text = _FACTOR.sub("", _COMMAND.sub(lambda m: _SIGNS.get(m[1], m[0]), scripted(text)))
    text = _DEGREES.sub("\u00b0", _MINUS_UP.sub(r"^{\1}", text))
    text = re.sub(r"(?<![A-Za-z\\])sqrt ?(?=\()", "\u221a", text)
    for _ in range(_MAX_DEPTH):  # from the innermost groups outwards
        before = text
        text = _TEXT.sub(r"\1", text)
        text = _ROOT.sub(lambda m: f"\u221a{f'[{m[1]}]' if m[1] else ''}({(m[2] or m[3] or '').strip()})", text)
        text = _PLAIN_ROOT.sub(_plain_root, text)
        text = _FRACTION.sub(_fraction, _SCRIPT.sub(_script, text))
        if text == before:
            break
    return _BLANK.sub("", " ".join(text.split()))


def _inside(match: re.Match[str]) -> str:
    """What stands between math marks, in a text that goes on: the blank behind them is shown."""
    content = match[1] or match[2] or ""
    return content + ("{}" if _COMMAND_AT_END.search(content) else "")


def _plain_root(match: re.Match[str]) -> str:
    index = "[3]" if "\u221b" in match[0] else ""
    return f"\u221a{index}" + (f"({match[2]})" if match[2] else "")


def _script(match: re.Match[str]) -> str:
    content, after = match[2].strip(), match.string[match.end() : match.end() + 1]
    alone = len(content) == 1 or content.isdecimal()
    return match[1] + (content if alone and not (content.isdecimal() and after.isdecimal()) else f"({content})")


def _fraction(match: re.Match[str]) -> str:
    """a/b; in brackets where something beside it would take a part of it."""
    top, bottom = (match[1] or match[2] or "").strip(), (match[3] or match[4] or "").strip()
    before, after = match.string[: match.start()].rstrip()[-1:], match.string[match.end() : match.end() + 1]
    minus = "-" if not before and top.startswith("-") else ""
    above, below = top.removeprefix(minus), bottom
    above = above if _ABOVE.fullmatch(above) else f"({above})"
    below = below if _BELOW.fullmatch(below) else f"({below})"
    fraction = f"{minus}{above}/{below}"
    if before.isdecimal() and not (minus or after.isalnum()):
        return f" {fraction}"  # a mixed number
    beside = before.isalnum() or before in ("/", "^", ")") if before else False
    return f"({fraction})" if beside or after.isalnum() or (after in ("(", "\u221a", "^") and after) else fraction
