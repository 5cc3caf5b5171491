"""How a family of commands puts its parsers into the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol


class Add(Protocol):
    """Adds a sub-command and says what it runs: what that returns is the exit status, None for 0."""

    def __call__(
        self, name: str, run: Callable[[argparse.Namespace], int | None], text: str, pairs: bool = False
    ) -> argparse.ArgumentParser: ...


def adder(sub: Any, prefix: str = "") -> Add:
    """The `Add` of the sub-parsers `sub`; `prefix` is what stands before the names on the command line."""

    def add(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, pairs: bool = False
    ) -> argparse.ArgumentParser:
        usage = f"sapo-vl {prefix}{name} [options] [key=value ...]" if pairs else None
        p = sub.add_parser(name, help=text, description=text, usage=usage)
        p.set_defaults(run=run, takes_pairs=pairs)
        return p

    return add
