"""What rewards.latex lets pass: names of commands without their backslash, and what the parser gets for each."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_GREEK = _names(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)

# Values without arguments. The parser would take \Gamma and \gamma for Euler's constant or a function.
SYMBOLS = {name: f"\\{name}" for name in _GREEK if name.casefold() != "gamma"} | {
    "gamma": "\\text{gammaletter}",
    "Gamma": "\\text{Gammaletter}",
    "infty": "\\infty",
    "infinity": "\\infty",
    "inf": "\\infty",
    "emptyset": "\\emptyset",
    "varnothing": "\\emptyset",
    "ell": "\\text{ell}",
    "angle": "\\text{angle}",
    "triangle": "\\text{triangle}",
}

FUNCTIONS = _names("sin cos tan csc sec cot arcsin arccos arctan arccsc arcsec arccot sinh cosh tanh ln log exp")

OPERATORS = {
    "times": "\\times",
    "cdot": "\\cdot",
    "div": "\\div",
    "pm": "\\pm",
    "mp": "\\mp",
    "le": "\\leq",
    "leq": "\\leq",
    "leqslant": "\\leq",
    "ge": "\\geq",
    "geq": "\\geq",
    "geqslant": "\\geq",
    "lt": "<",
    "gt": ">",
    "ne": "\\neq",
    "neq": "\\neq",
    "in": "\\in",
    "notin": "\\notin",
    "cup": "\\cup",
    "cap": "\\cap",
    "setminus": "\\setminus",
    "approx": "\\approx",
    "to": "\\to",
    "rightarrow": "\\to",
}

SIGNS = {
    "+": "+",
    "-": "-",
    "*": "\\cdot",
    "/": "/",
    "=": "=",
    "<": "<",
    ">": ">",
    "<=": "\\leq",
    ">=": "\\geq",
    "!=": "\\neq",
    ",": ",",
    ";": ";",
    ":": ":",
}

# Bare words that are signs: "2 or 3" is the list 2, 3.
WORDS = {"and": ",", "or": ","}

OPENING = {"(": "(", "[": "[", "\\{": "\\{", "\\lbrace": "\\{", "\\lfloor": "\\lfloor", "\\lceil": "\\lceil"}
CLOSING = {")": ")", "]": "]", "\\}": "\\}", "\\rbrace": "\\}", "\\rfloor": "\\rfloor", "\\rceil": "\\rceil"}
BARS = frozenset(["|", "\\|", "\\vert", "\\lvert", "\\rvert"])

IGNORED = _names(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits quad qquad thinspace degree"
)
IGNORED_ESCAPES = frozenset(["\\ ", "\\,", "\\;", "\\:", "\\!"])

FRACTIONS = _names("frac dfrac tfrac cfrac")
BINOMIALS = _names("binom dbinom tbinom")

# Commands whose argument is a text.
TEXTS = _names("text textbf textit textrm textnormal mathrm mathbf mathit mathsf mbox operatorname")
ACCENTS = _names("hat bar vec tilde overline overrightarrow widehat mathcal")
NAMED_SETS = frozenset("NZQRC")  # \mathbb{R}

# These state a computation instead of doing it. An answer may use one only if the gold does: otherwise copying
# the integral or the sum out of the question would be an answer.
UNEVALUATED = _names("int sum prod lim det gcd lcm max min partial mod")

UNICODE = str.maketrans(
    {
        "\u00d7": "\\times ",
        "\u00b7": "\\cdot ",
        "\u22c5": "\\cdot ",
        "\u00f7": "\\div ",
        "\u2013": "-",
        "\u3001": ", ",
        "\u00b1": "\\pm ",
        "\u2264": "\\le ",
        "\u2265": "\\ge ",
        "\u2260": "\\ne ",
        "\u2248": "\\approx ",
        "\u221e": "\\infty ",
        "\u221a": "\\sqrt ",
        "\u2208": "\\in ",
        "\u222a": "\\cup ",
        "\u2229": "\\cap ",
        "\u2205": "\\emptyset ",
        "\u00b0": "^{\\circ}",
        "\u00ba": "^{\\circ}",  # this and the next are typed for it
        "\u02da": "^{\\circ}",
        "\u00bd": "\\frac{1}{2}",
        "\u00bc": "\\frac{1}{4}",
        "\u00be": "\\frac{3}{4}",
        "\u211d": "\\mathbb{R}",
        "\u2124": "\\mathbb{Z}",
        "\u03c0": "\\pi ",
        "\u03b1": "\\alpha ",
        "\u03b2": "\\beta ",
        "\u03b8": "\\theta ",
        "\u03bb": "\\lambda ",
        "\u03c6": "\\phi ",
        "\u03c9": "\\omega ",
    }
)
