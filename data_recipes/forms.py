"""The shapes in which other kits keep their training rows: one function each, row -> question, images, answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_recipes.reading import MARKER, LeftOut, Row, as_text, cells_in, text_of, unwrap
from sapo_vl.data.images import is_missing

SAYING = ("system", "developer")  # how to answer; before the question
ASKING = ("user", "human")
ANSWERING = ("assistant", "gpt", "chatgpt", "bing", "bard", "model")
LONG = "more than one exchange"  # there is no single gold


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
    system: str = ""  # what stands before the question


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a chat."""

    role: str
    text: str  # with a MARKER for each picture inside
    cells: Sequence[Any]  # of the pictures inside


def plain(row: Row, columns: Columns) -> Exchange:
    """A question, an answer, and a column with one picture or a list of them (EasyR1, R1-V, most others)."""
    cells = cells_in(row, columns.image)
    return Exchange(text=text_of(row, columns.question), cells=cells, answer=unwrap(text_of(row, columns.answer)))


def conversation(row: Row, columns: Columns) -> Exchange:
    """LLaVA's `conversations` ({"from", "value"}) and ShareGPT's `messages` ({"role", "content"}), as a list or as the
    JSON text of one. One question and one answer: longer talks have no single gold and are left out.

    The answer stands in the last turn, or in the column `answer` if the row has it. A column `system` is a system turn.
    """
    given = row.cells.get("system")
    before = "" if is_missing(given) else as_text(given, "system")
    asked, answers, system = one_exchange(row.cells.get(columns.question), columns.question, before)
    if columns.answer and row.cells.get(columns.answer) is not None:
        answer = text_of(row, columns.answer)
    elif answers:
        answer = answers[-1]
    else:
        raise ValueError(
            f"{columns.question} has no turn of {' or '.join(ANSWERING[:2])}, and there is no column of answers"
        )
    return Exchange(text=asked.text, cells=_cells(row, columns, asked), answer=unwrap(answer), system=system)


def verl(row: Row, columns: Columns) -> Exchange:
    """verl's parquet: `prompt` (chat turns), `images`, and the gold in `reward_model`["ground_truth"]."""
    model = row.cells.get(columns.answer)
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    gold = as_text(truth, f"{columns.answer}[ground_truth]")
    asked, answers, system = one_exchange(row.cells.get(columns.question), columns.question)
    if answers:
        raise LeftOut(LONG)  # examples, or the beginning of an answer
    return Exchange(text=asked.text, cells=_cells(row, columns, asked), answer=unwrap(gold), system=system)


def one_exchange(value: Any, column: str, before: str = "") -> tuple[Turn, list[str], str]:
    """The turn that asks, the texts of those that answer it, and what the system turns say, after `before`.

    Several system turns become one, since chat templates look at the first turn only.

    Raises ValueError if `value` is no chat, LeftOut for talks that are more than one question and its answer.
    """
    turns = chat_turns(value, column)
    if any(t.role not in (*SAYING, *ASKING, *ANSWERING) for t in turns):
        raise LeftOut("turn of another role")  # of a tool, say: without it something else would be asked
    places = [place for place, t in enumerate(turns) if t.role in ASKING]
    if not places:
        raise ValueError(f"{column} has no turn of {' or '.join(ASKING)}")
    first, after = turns[: places[0]], turns[places[0] + 1 :]
    if len(places) > 1 or any(t.role in ANSWERING for t in first):
        raise LeftOut(LONG)
    if any(t.role in SAYING for t in after):
        raise LeftOut("system turn after the question")
    if any(t.cells or MARKER in t.text for t in first):
        raise LeftOut("image in a system turn")
    said = [before, *(t.text.strip() for t in first)]
    return turns[places[0]], [t.text for t in after], "\n\n".join(text for text in said if text)


def _cells(row: Row, columns: Columns, asked: Turn) -> Sequence[Any]:
    """The pictures of the column, or those inside of the turn where the row has none of its own."""
    inside = asked.cells
    return inside if inside and is_missing(row.cells.get(columns.image)) else cells_in(row, columns.image)


def chat_turns(value: Any, column: str) -> list[Turn]:
    """The turns of a chat, as a list or as the JSON text of one. Raises ValueError if it is no such list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{column} is a text that is no JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} is not a list of chat turns")
    return [_turn(turn, column) for turn in value]


def _turn(turn: Any, column: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{column} has a turn that is a {type(turn).__name__}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str):
        raise ValueError(f"{column} has a turn without a role")
    if isinstance(content, str):
        return Turn(role=role.lower(), text=content, cells=())
    if not isinstance(content, list):
        raise ValueError(f"{column} has a turn without content")
    text = ""
    cells: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif kind in ("image", "image_url"):
            text += MARKER
            given = part.get(kind)  # none where the pictures are in a column
            cells += [] if given is None else [given]
        else:
            raise ValueError(f"{column} has a part that is neither text nor image: {str(part)[:80]}")
    return Turn(role=role.lower(), text=text, cells=cells)


FORMS: dict[str, tuple[Callable[[Row, Columns], Exchange], Columns]] = {
    "columns": (plain, Columns(image="image", question="question", answer="answer")),
    "easyr1": (plain, Columns(image="images", question="problem", answer="answer")),
    "r1v": (plain, Columns(image="image", question="problem", answer="solution")),
    "llava": (conversation, Columns(image="image", question="conversations", answer="")),
    "sharegpt": (conversation, Columns(image="images", question="messages", answer="")),
    "verl": (verl, Columns(image="images", question="prompt", answer="reward_model")),
}
