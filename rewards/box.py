"""Do the boxes of the answer hit the gold boxes?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from rewards.answers.blocks import answer_or_reply, last_fenced, parse_json
from rewards.answers.extract import last_answer as final_answer
from rewards.answers.extract import plain, undressed
from rewards.base import WRONG, RewardInput, RewardOutput, Unscorable, missing

DEFAULT_THRESHOLD = 0.5
UNITS = ("pixel", "0-1000")
_MAX_BOXES = 100
_MAX_CHARS = 20_000
_MAX_LINE = 120
_LARGEST = 1e6  # of a coordinate
_NUMBER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{1,6})?")
_BETWEEN = re.compile(r"[\s,;()\[\]]*")

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 with x1 < x2 and y1 < y2


class Found(NamedTuple):
    """A box as written, in the writer's unit; None where the four numbers span no area."""

    box: Box | None
    label: str = ""


def box(x: RewardInput) -> RewardOutput:
    """1 if the IoU of the answer box and the gold box reaches meta["threshold"] (default 0.5), else 0.

    Where the gold has several boxes (or none), the F1 of the answer's boxes: 2 * hits / (boxes of the answer +
    boxes of the gold), in [0, 1]. Each gold box is hit by at most one box of the answer, and the pairs are
    chosen so that there are as many hits as possible. A box too many costs what a missing one costs, so
    covering the picture with boxes does not pay; where there is one gold box, a second box scores 0.

    Written as: four numbers x1, y1, x2, y2, with or without brackets, or one such box a line; or JSON,
    `[x1, y1, x2, y2]`, a list of those, or what Qwen3-VL writes, `[{"bbox_2d": [x1, y1, x2, y2], "label":
    "..."}]`, in a json fence or bare. That last form also counts without answer tags, if the reply is nothing
    else or has it in a json fence. If the gold boxes carry labels, a hit needs the same label (case does not
    matter). `[]` means no box.

    Units: meta["coords"], "pixel" or "0-1000" (thousandths of width and height, as Qwen3-VL answers), is the
    unit that the *answer* was asked for. The gold is in pixels of an image of meta["size"] = [width, height] if
    that is given, else in the unit of the answer; meta["gold_coords"] says otherwise. So a data set with boxes
    in pixels, whose question asks for 0-1000, sets coords and size. Without coords the answer is in the unit of
    the gold, whatever that is (pixels, lattice cells), and nothing is rescaled.

    A box covers x1 <= x < x2 and y1 <= y < y2, so a box of one pixel is [5, 5, 6, 6]. With meta["inclusive"] =
    true, x2 and y2 name the last column and row inside the box, and one cell is [5, 5, 5, 5]; this cannot be
    combined with a change of units. A box without area or with swapped corners hits nothing.

    parts["iou"], in [0, 1], is the mean over the gold boxes of the best IoU with a box of the answer.

    Raises:
        Unscorable: the gold is no such box, the threshold is not in (0, 1], or the units make no sense.
    """
    threshold = _threshold(x.meta.get("threshold", DEFAULT_THRESHOLD))
    inclusive = x.meta.get("inclusive", False)
    if not isinstance(inclusive, bool):
        raise Unscorable(f"meta['inclusive'] must be true or false, got {inclusive!r}")
    scale = _scale(x.meta)
    if inclusive and scale != (1.0, 1.0):
        raise Unscorable(
            "meta['inclusive'] has no meaning where boxes are rescaled; write the gold with x2, y2 outside"
        )
    gold = _gold(x.answer, inclusive)
    written = _answer_boxes(x.text, inclusive)
    answer = _rescaled(written or [], scale)
    # A second box where there is one to find is hedging, which F1 would give two thirds.
    if written is None:
        return RewardOutput(0.0, {"iou": 0.0}, missing(final_answer(x.text)) or "not a box")
    if len(gold) == 1 and len(answer) != 1:
        return RewardOutput(0.0, {"iou": 0.0}, f"{len(answer)} boxes, not one")
    overlaps = [[_overlap(g, a) for a in answer] for g in gold]
    best = [max(row, default=0.0) for row in overlaps]
    mean = sum(best) / len(best) if best else float(not answer)
    hits = _most_pairs([[a for a, value in enumerate(row) if value >= threshold] for row in overlaps])
    total = len(gold) + len(answer)
    score = 2 * hits / total if total else 1.0
    return RewardOutput(score, {"iou": mean}, "" if score == 1 else WRONG)


def parse_box(text: str, inclusive: bool = False) -> Box | None:
    """The one box that `text` consists of, four numbers with or without brackets; else None."""
    text = plain(text)
    if len(text) > _MAX_LINE:
        return None
    numbers = _NUMBER.findall(text)
    separators = _NUMBER.split(text)
    if len(numbers) != 4 or not all(_BETWEEN.fullmatch(s) for s in separators) or "" in separators[1:-1]:
        return None
    return _spanned([float(n) for n in numbers], inclusive)


def iou(a: Box, b: Box) -> float:
    """Area of the overlap over the area of the union, in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def parse_boxes(text: str, inclusive: bool = False) -> list[Found] | None:
    """The boxes that `text` consists of; None if it is anything else, or more than 100 boxes."""
    if len(text) > _MAX_CHARS:
        return None
    text = undressed(text)
    fenced = last_fenced(text, ("json", "")) if text.startswith("```") else None
    text = text if fenced is None else fenced.strip()
    if text.startswith(("[", "{")):
        try:
            found = _from_json(parse_json(text), inclusive)
        except ValueError:  # "[1, 2], [3, 4]" is a way to write a box, too
            found = None
        if found is not None:
            return found if len(found) <= _MAX_BOXES else None
    one = parse_box(text, inclusive)
    if one is not None:
        return [Found(one)]
    lines = [line for line in text.split("\n") if line.strip()]
    boxes = [Found(parse_box(line, inclusive)) for line in lines[: _MAX_BOXES + 1]]
    written = boxes and len(boxes) <= _MAX_BOXES and all(found.box is not None for found in boxes)
    return boxes if written else None


def _from_json(value: Any, inclusive: bool) -> list[Found] | None:
    items: list[Any] = value if isinstance(value, list) and not _is_four(value) else [value]
    found = []
    for item in items:
        numbers, label = item, ""
        if isinstance(item, dict):
            numbers, label = item.get("bbox_2d"), item.get("label", "")
        if not _is_four(numbers) or not isinstance(label, str):
            return None
        found.append(Found(_spanned([float(n) for n in numbers], inclusive), plain(label).casefold()))
    return found


def _is_four(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value))


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _spanned(numbers: Sequence[float], inclusive: bool) -> Box | None:
    x1, y1, x2, y2 = numbers
    if inclusive:
        x2, y2 = x2 + 1, y2 + 1
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _gold(text: str, inclusive: bool) -> list[Found]:
    gold = parse_boxes(text, inclusive)
    if gold is None or any(found.box is None for found in gold):
        raise Unscorable(f"the reference answer {text[:60]!r} is not a box x1, y1, x2, y2 with an area")
    return gold


def _answer_boxes(text: str, inclusive: bool) -> list[Found] | None:
    answer = final_answer(text)
    if answer is not None:
        return parse_boxes(answer, inclusive)
    # Qwen3-VL as released writes its JSON without tags. Four bare numbers without tags stay no answer.
    untagged = answer_or_reply(text) or ""
    fenced = last_fenced(untagged, ("json",))
    shown = untagged.strip() if fenced is None else fenced.strip()
    return parse_boxes(shown, inclusive) if "bbox_2d" in shown[:_MAX_CHARS] else None


def _scale(meta: Mapping[str, Any]) -> tuple[float, float]:
    """What x and y of the answer are multiplied with to be in the unit of the gold."""
    size = meta.get("size")
    answer = meta.get("coords")
    gold = meta.get("gold_coords", answer if size is None or answer is None else "pixel")
    for key, unit in (("coords", answer), ("gold_coords", gold)):
        if unit is not None and unit not in UNITS:
            raise Unscorable(f"meta['{key}'] must be one of {', '.join(UNITS)}, got {unit!r}")
    if answer is None and gold is not None:
        raise Unscorable("meta['gold_coords'] needs meta['coords'], the unit that the answer was asked for")
    if answer == gold:
        return 1.0, 1.0
    pair = size if isinstance(size, list | tuple) and len(size) == 2 else (0, 0)
    if not all(_is_coordinate(side) and side > 0 for side in pair):
        raise Unscorable(
            f"boxes in {answer} against a gold in {gold} need meta['size'] = [width, height], got {size!r}"
        )
    width, height = pair
    return (width / 1000, height / 1000) if gold == "pixel" else (1000 / width, 1000 / height)


def _rescaled(found: Sequence[Found], scale: tuple[float, float]) -> list[Found]:
    sx, sy = scale
    return [Found(b and (b[0] * sx, b[1] * sy, b[2] * sx, b[3] * sy), label) for b, label in found]


def _overlap(gold: Found, answer: Found) -> float:
    if gold.box is None or answer.box is None or (gold.label and gold.label != answer.label):
        return 0.0
    return iou(gold.box, answer.box)


def _most_pairs(partners: Sequence[Sequence[int]]) -> int:
    """Size of a maximum matching. `partners[g]` are the columns that row g may be paired with, each only once.

    By augmenting paths (Kuhn): a row takes a free column, or one whose row can move to another.
    """
    row_of: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column in partners[row]:
            if column in tried:
                continue
            tried.add(column)
            if column not in row_of or place(row_of[column], tried):
                row_of[column] = row
                return True
        return False

    return sum(place(row, set()) for row in range(len(partners)))


def _threshold(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise Unscorable(f"meta['threshold'] must lie in (0, 1], got {value!r}")
    return float(value)
