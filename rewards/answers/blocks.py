"""Structured answers: fenced code blocks, and JSON that was written by a model.

Every function takes time proportional to the length of the text, whatever the text is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from rewards.answers.extract import reply, written_answer

MAX_JSON_CHARS = 50_000
_MAX_DEPTH = 16
_ANSWER_TAG = re.compile(r"</?answer>")
# A quoted string that is never closed is taken to the end of its line: were it no match, every quote in it would
# be tried as a beginning again, which takes quadratic time.
_BRACKETS = re.compile(r'"(?:[^"\\\n]|\\.)*"?|\\(?:boxed|text) ?\{|[\[\]{}]')


def answer_or_reply(text: str) -> str | None:
    """Content of the last `<answer>...</answer>`; without any answer tag, all that follows the thinking.

    For answers that show where they begin and end, such as code blocks and JSON objects. None if the answer
    tags do not come in pairs.
    """
    after = reply(text)
    return written_answer(text) if _ANSWER_TAG.search(after) else after


def last_fenced(text: str, languages: Collection[str] | None) -> str | None:
    """Content of the last closed block between lines of three backticks whose opening line names a language.

    Case does not matter; `languages` are in lower case, "" stands for a block that names none; None: any block. A
    block ends at the first line that consists of three backticks.
    """
    found: str | None = None
    language, lines = None, []
    for line in text.split("\n"):
        mark = line.strip()
        if language is None:
            if mark.startswith("```"):
                language, lines = mark[3:].strip().lower(), []
        elif mark == "```":
            if languages is None or language in languages:
                found = "\n".join(lines)
            language = None
        else:
            lines.append(line)
    return found


def last_object(text: str) -> str | None:
    """The last complete `{...}` of the text, the outermost one where they nest; None if there is none.

    Braces within quotes do not count, nor those of a `\\boxed{...}` or `\\text{...}`, which may hold the object. What
    stands in the braces need not be JSON.
    """
    open_at: list[int | None] = []  # None: the brace of a command
    found = None
    for token in _BRACKETS.finditer(text):
        if token.group().startswith("\\"):
            open_at.append(None)
        elif token.group() == "{":
            open_at.append(token.start())
        elif token.group() == "}" and open_at:
            start = open_at.pop()
            found = found if start is None else (start, token.end())
    return None if found is None else text[slice(*found)]


def parse_json(text: str, max_chars: int = MAX_JSON_CHARS) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, longer than `max_chars`, nested deeper than 16, has NaN, Infinity or a
            number of thousands of digits, or an object that has a key twice (which of the two is meant?).
    """
    if len(text) > max_chars:
        raise ValueError(f"JSON of {len(text)} characters, more than {max_chars}")
    depth = 0
    for token in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        if depth > _MAX_DEPTH:
            raise ValueError(f"JSON nested deeper than {_MAX_DEPTH}")
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice in a JSON object")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")
