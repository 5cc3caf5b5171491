"""The shapes in which other kits keep their training rows: one function each, row -> question, images, answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_recipes.reading import MARKER, LeftOut, Row, cells_of, text_of, unwrap

ASKING = ("user", "human")
ANSWERING = ("assistant", "gpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns hold what."""

    image: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer."""

    text: str  # with a MARKER for each picture, or none
    cells: Sequence[Any]
    answer: str


def plain(row: Row, columns: Columns) -> Exchange:
    """A question, an answer, and a column with one picture or a list of them (EasyR1, R1-V, most others)."""
    cells = cells_of(row.cells.get(columns.image)) if columns.image else []
    return Exchange(text=text_of(row, columns.question), cells=cells, answer=unwrap(text_of(row, columns.answer)))


def conversation(row: Row, columns: Columns) -> Exchange:
    """LLaVA's `conversations` ({"from", "value"}) and ShareGPT's `messages` ({"role", "content"}), as a list or as the
    JSON text of one. One question and one answer: longer talks have no single gold and are left out.

    The answer stands in the last turn, or in the column `answer` if the row has it.
    """
    turns = chat_turns(row.cells.get(columns.question), columns.question)
    asked = [t for t in turns if t[0] in ASKING]
    answered = [t for t in turns if t[0] in ANSWERING]
    if len(asked) > 1:
        raise LeftOut("more than one exchange")
    if not asked:
        raise ValueError(f"{columns.question} has no turn of {' or '.join(ASKING)}")
    _, text, inside = asked[0]
    cells = (cells_of(row.cells.get(columns.image)) if columns.image else []) or inside
    if columns.answer and row.cells.get(columns.answer) is not None:
        return Exchange(text=text, cells=cells, answer=unwrap(text_of(row, columns.answer)))
    if not answered:
        raise ValueError(
            f"{columns.question} has no turn of {' or '.join(ANSWERING)}, and there is no column of answers"
        )
    return Exchange(text=text, cells=cells, answer=unwrap(answered[-1][1]))


def verl(row: Row, columns: Columns) -> Exchange:
    """verl's parquet: `prompt` (chat turns), `images`, and the gold in `reward_model`["ground_truth"]."""
    model = row.cells.get(columns.answer)
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    if not isinstance(truth, str | int | float) or not str(truth).strip():
        raise ValueError(f"{columns.answer} has no text under ground_truth")
    turns = [t for t in chat_turns(row.cells.get(columns.question), columns.question) if t[0] in ASKING]
    if len(turns) != 1:
        raise ValueError(f"{columns.question} has {len(turns)} turns of a user, not 1")
    cells = cells_of(row.cells.get(columns.image)) if columns.image else []
    return Exchange(text=turns[0][1], cells=cells or turns[0][2], answer=unwrap(str(truth)))


def chat_turns(value: Any, column: str) -> list[tuple[str, str, list[Any]]]:
    """(role, text with markers, picture cells found inside) of each turn. Raises ValueError if it is no such list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{column} is a text that is no JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} is not a list of chat turns")
    return [_turn(turn, column) for turn in value]


def _turn(turn: Any, column: str) -> tuple[str, str, list[Any]]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{column} has a turn that is a {type(turn).__name__}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return str(role), content, []
    if not isinstance(content, list):
        raise ValueError(f"{column} has a turn without content")
    text, cells = "", []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            text += str(part.get("text") or "")
        elif kind == "image":
            text += MARKER
            cells += cells_of(part.get("image"))
        else:
            raise ValueError(f"{column} has a part that is neither text nor image: {str(part)[:80]}")
    return str(role), text, cells


FORMS: dict[str, tuple[Callable[[Row, Columns], Exchange], Columns]] = {
    "columns": (plain, Columns(image="image", question="question", answer="answer")),
    "easyr1": (plain, Columns(image="images", question="problem", answer="answer")),
    "r1v": (plain, Columns(image="image", question="problem", answer="solution")),
    "llava": (conversation, Columns(image="image", question="conversations", answer="")),
    "sharegpt": (conversation, Columns(image="images", question="messages", answer="")),
    "verl": (verl, Columns(image="images", question="prompt", answer="reward_model")),
}
