"""Blocks of code in the documentation, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n(?:^ {4,}.*\n|^\n(?= {4}))*)", re.MULTILINE)
PROGRAMS = ("sapo-vl", "bash", "python", "torchrun")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block."""

    kind: str  # bash, python, ...
    code: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command line of a page, continued lines joined."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def pages() -> list[Path]:
    """README and all pages, but for what a program wrote."""
    made = (ROOT / "docs" / "reference", ROOT / "docs" / "results")
    return [
        ROOT / "README.md",
        *sorted(p for p in (ROOT / "docs").rglob("*.md") if not any(m in p.parents for m in made)),
    ]


def blocks(page: Path) -> list[Block]:
    return [Block(kind, code) for kind, code in FENCED.findall(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> Iterator[Command]:
    """Every line of a shell block or an indented block that starts one of our programs."""
    text = page.read_text(encoding="utf-8")
    shell = [code for kind, code in FENCED.findall(text) if kind in ("bash", "sh", "shell", "console")]
    shell += INDENTED.findall(FENCED.sub("", text))
    for code in shell:
        for line in _whole(re.sub(r"\\\n\s*", " ", code).splitlines()):
            bare = re.sub(r"^(?:[A-Z_]+=\S+ +)*", "", line)
            if bare.startswith(tuple(f"{p} " for p in PROGRAMS)):
                yield Command(page.relative_to(ROOT).as_posix(), line)


def _whole(lines: list[str]) -> Iterator[str]:
    """Lines with those joined over which a quoted word goes."""
    held = ""
    for line in lines:
        held = f"{held} {line.strip()}".strip()
        if held.count("'") % 2 == 0:
            yield held
            held = ""
