"""Does the answer box hit the gold box?"""

import re
from typing import Any

from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.extract import last_answer, plain

DEFAULT_THRESHOLD = 0.5
_MAX_CHARS = 120
_NUMBER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{1,6})?")
_BETWEEN = re.compile(r"[\s,;()\[\]]*")

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 with x1 < x2 and y1 < y2


def box_iou(x: RewardInput) -> RewardOutput:
    """1 if the IoU of the answer box and the gold box reaches meta["threshold"] (default 0.5), else 0.

    A box is four numbers x1, y1, x2, y2 in the unit of the gold (pixels, lattice cells, 0-1000: nothing is
    rescaled), with or without brackets. It covers x1 <= x < x2 and y1 <= y < y2, so a box of one pixel is [5,
    5, 6, 6]. With meta["inclusive"] = true, x2 and y2 name the last column and row inside the box, and one
    cell is [5, 5, 5, 5]. A box without area, with swapped corners, or any other count of numbers (two boxes!)
    scores 0. parts["iou"] is the raw IoU in [0, 1].

    Raises:
        Unscorable: the gold is no such box, or the threshold is not in (0, 1].
    """
    threshold = _threshold(x.meta.get("threshold", DEFAULT_THRESHOLD))
    inclusive = x.meta.get("inclusive", False)
    if not isinstance(inclusive, bool):
        raise Unscorable(f"meta['inclusive'] must be true or false, got {inclusive!r}")
    gold = parse_box(x.answer, inclusive)
    if gold is None:
        raise Unscorable(f"the reference answer {x.answer[:60]!r} is not a box x1, y1, x2, y2 with an area")
    answer = last_answer(x.text)
    box = None if answer is None else parse_box(answer, inclusive)
    overlap = 0.0 if box is None else iou(box, gold)
    return RewardOutput(float(overlap >= threshold), {"iou": overlap})


def parse_box(text: str, inclusive: bool = False) -> Box | None:
    """The one box that `text` consists of, or None."""
    text = plain(text)
    if len(text) > _MAX_CHARS:
        return None
    numbers = _NUMBER.findall(text)
    separators = _NUMBER.split(text)
    if len(numbers) != 4 or not all(_BETWEEN.fullmatch(s) for s in separators) or "" in separators[1:-1]:
        return None
    x1, y1, x2, y2 = map(float, numbers)
    if inclusive:
        x2, y2 = x2 + 1, y2 + 1
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def iou(a: Box, b: Box) -> float:
    """Area of the overlap over the area of the union, in [0, 1]."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _threshold(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise Unscorable(f"meta['threshold'] must lie in (0, 1], got {value!r}")
    return float(value)
