"""Flat drawing on a small RGB picture, unsmoothed: every shape can be found again by its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

RGB = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "cyan": (40, 210, 220),
    "purple": (170, 60, 200),
    "white": (255, 255, 255),
    "grey": (90, 90, 90),
    "black": (0, 0, 0),
}

# 5 x 7 bitmaps, one string a glyph, rows separated by spaces.
GLYPHS = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
    "+": "00000 00100 00100 11111 00100 00100 00000",
    "-": "00000 00000 00000 11111 00000 00000 00000",
    "x": "00000 10001 01010 00100 01010 10001 00000",
}
GLYPH_WIDTH, GLYPH_HEIGHT = 5, 7


class Canvas:
    """A black square picture addressed in units of 1/64 of its side."""

    def __init__(self, size: int) -> None:
        """size: side in pixels."""
        self.size = size
        self.image = Image.new("RGB", (size, size), RGB["black"])
        self._draw = ImageDraw.Draw(self.image)

    def _pixel(self, unit: float) -> int:
        return int(unit * self.size) // 64

    def rectangle(self, box: Sequence[float], colour: str) -> None:
        """Fills box = (x1, y1, x2, y2) in units, x2 and y2 exclusive."""
        x1, y1, x2, y2 = map(self._pixel, box)
        self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=RGB[colour])

    def shape(self, item: dict[str, Any]) -> None:
        """Draws an object {"colour", "shape", "box"} so that it touches all four sides of its box."""
        x1, y1, x2, y2 = map(self._pixel, item["box"])
        fill = RGB[item["colour"]]
        if item["shape"] in ("square", "rectangle"):
            self._draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=fill)
        elif item["shape"] == "disc":
            self._draw.ellipse((x1, y1, x2 - 1, y2 - 1), fill=fill)
        elif item["shape"] == "triangle":
            self._draw.polygon([(x1, y2 - 1), (x2 - 1, y2 - 1), ((x1 + x2 - 1) // 2, y1)], fill=fill)
        else:
            raise ValueError(f"no such shape: {item['shape']!r}")

    def text(self, text: str, x: int, y: int, scale: int, colour: str = "white") -> None:
        """Writes `text` in GLYPHS from its top left corner (x, y); a glyph's dot is scale x scale units."""
        for index, character in enumerate(text):
            left = x + index * (GLYPH_WIDTH + 1) * scale
            for row, bits in enumerate(GLYPHS[character].split()):
                for column, bit in enumerate(bits):
                    if bit == "1":
                        dx, dy = left + column * scale, y + row * scale
                        self.rectangle((dx, dy, dx + scale, dy + scale), colour)


def draw_objects(scene: Mapping[str, Any], canvas: Canvas) -> None:
    """Draws the objects of a scene that consists of nothing else."""
    for item in scene["objects"]:
        canvas.shape(item)
