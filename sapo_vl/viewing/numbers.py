"""Numbers as the page holds them: JSON without NaN, and no more digits than can be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DIGITS = 6  # significant ones that are kept


def finite(value: Any) -> float | int | None:
    """A number that JSON can hold; None for everything else, NaN and infinities among it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**53 else float(value)
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """What a file held, with None in place of numbers that JSON has no name for."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return finite(value)
    return value if value is None or isinstance(value, str | bool) else str(value)
