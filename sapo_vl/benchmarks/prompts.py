"""Texts and chat turns that several benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKER = "<image>"  # where an image belongs in the text of a row

# Every instruction asks for a form that rewards.answers.extract.last_answer (or the reward itself) reads.
BOXED = "Think step by step, and put the final answer in \\boxed{}."
BOXED_LETTER = "Think step by step, and put the letter of the correct option in \\boxed{}."
BOXED_LETTERS = (
    "Think step by step, and put the letter of the correct option in \\boxed{}. If several options are correct, put "
    "all their letters there, separated by commas."
)
BOXED_SHORT = "Think step by step, and put the final answer, a single word, number or phrase, in \\boxed{}."
BOXED_TEXT = (
    "Think step by step, and put the final answer, a single word, number or phrase, in \\boxed{}. Decimal numbers in "
    "it have three digits after the point."
)
BOXED_YES_NO = "Think step by step, and put the final answer, yes or no, in \\boxed{}."
BOXED_NUMBER = "Think step by step, and put the final answer, a number alone, in \\boxed{}."
BOXED_DECIMAL = (
    "Think step by step, and put the final answer, as a decimal number with three digits after the point, in \\boxed{}."
)
ANSWER_LETTER = (
    'Think step by step before answering. The last line of your response must be of the form "Answer: LETTER", where '
    "LETTER is the letter of the correct option."
)
VISION_LETTER = "Read the multiple-choice question in the image and solve it. " + ANSWER_LETTER
BOX_JSON = (
    'Give its bounding box as JSON, {"bbox_2d": [x1, y1, x2, y2]}, with x from 0 at the left to 1000 at the right of '
    "the image and y from 0 at the top to 1000 at the bottom, and nothing else."
)
STDIN_PROGRAM = (
    "Write a Python program that reads the input from standard input and prints the answer to standard output. Think "
    "step by step, then give the whole program in one ```python block."
)
STARTED_PROGRAM = (
    "Complete the starter code above in Python. Think step by step, then give the whole program in one ```python block."
)


def ask(text: str, instruction: str) -> tuple[Mapping[str, Any], ...]:
    """One user turn: the text, with an image part at every MARKER, then the instruction."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(MARKER)):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return ({"role": "user", "content": [*parts, {"type": "text", "text": "\n" + instruction}]},)


def ask_about(images: int, text: str, instruction: str) -> tuple[Mapping[str, Any], ...]:
    """One user turn: so many images, then the text, in which "<image>" is no marker, then the instruction."""
    return ask(MARKER * images + text.replace(MARKER, " "), instruction)
