"""Texts and chat turns that several benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKER = "<image>"  # where an image belongs in the text of a row
BOXED = "Think step by step, and put the final answer in \\boxed{}."


def ask(text: str, instruction: str) -> tuple[Mapping[str, Any], ...]:
    """One user turn: the text, with an image part at every MARKER, then the instruction."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(MARKER)):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return ({"role": "user", "content": [*parts, {"type": "text", "text": "\n" + instruction}]},)
