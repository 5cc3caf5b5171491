r"""Several values under their names: "domain: [0, 4] and range: (1, 2]" is {"domain": "[0, 4]", "range": "(1, 2]"}."""

import re
from collections.abc import Mapping

from rewards.answers.extract import bare
from rewards.answers.latex_tables import FUNCTIONS, SYMBOLS, WORDS

_MAX_WORDS = 3  # of a name; more are a sentence, which nobody gives word for word
_MIN_LETTERS = 4  # of a word that makes a name: shorter ones are products of variables
# Words that belong to a name but tell nothing apart, and words that are values.
_FILLERS = frozenset(
    ["the", "function", "is", "are", "on", "at", "of", "in", "for", "and", "interval", "intervals", "when"]
)
_VALUES = frozenset([*WORDS, *FUNCTIONS, *SYMBOLS, "sqrt"])
_NO_NAME = _FILLERS | _VALUES
_SET = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox) ?\{([^{}\\]*)\}")
_SPACE = re.compile(r"\\q?quad(?![A-Za-z])|\\[,;: ]|\\\\|[~$]")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")


def labelled(text: str) -> Mapping[str, str]:
    """Name -> value, in the order of the text; {} if it does not begin with a name, or has not two values or more.

    Names are words ("increasing on", `\\text{Local maximum: }`), told apart without their case and small words. A
    name that occurs twice, a name without a value and a sentence in place of a name make it no such text.
    """
    text = _SPACE.sub(" ", _SET.sub(r" \1 ", bare(text))).strip()
    runs: list[tuple[int, int, list[str]]] = []  # words with only blanks between them: start, end, words
    for match in _WORD.finditer(text):
        if runs and not text[runs[-1][1] : match.start()].strip():
            start, _, said = runs.pop()
            runs.append((start, match.end(), [*said, match[0].casefold()]))
        else:
            runs.append((match.start(), match.end(), [match[0].casefold()]))
    names = [(start, end, [word for word in said if word not in _NO_NAME]) for start, end, said in runs]
    names = [name for name in names if max(map(len, name[2]), default=0) >= _MIN_LETTERS]
    if len(names) < 2 or names[0][0] != 0:
        return {}
    found: dict[str, str] = {}
    for (_, end, name), (following, _, _) in zip(names, [*names[1:], (len(text), 0, [])], strict=True):
        value = text[end:following].lstrip(" :=").strip(" ,;.")
        if not value or len(name) > _MAX_WORDS or " ".join(name) in found:
            return {}
        found[" ".join(name)] = value
    return found
