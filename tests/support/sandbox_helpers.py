"""Programs for the sandbox, and what is left of them."""

import json
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

from rewards.sandbox.launch import Child, Limits, memory_file, run, start

NOTHING = 5.0  # seconds in which something that must happen has happened


@contextmanager
def running(program: str, limits: Limits, *arguments: str, unsafe: bool = False) -> Iterator[tuple[Child, int]]:
    """(the child, a pipe that says "end of file" when no process of it is left).

    The program gets the number of the other end of that pipe as its last argument.
    """
    read, write = os.pipe()
    try:
        with memory_file() as stdin, memory_file() as stdout:
            child = start(
                {"main.py": program.encode()},
                "main.py",
                limits,
                stdin=stdin,
                stdout=stdout,
                arguments=[*arguments, str(write)],
                keep=[write],
                unsafe=unsafe,
            )
            os.close(write)
            with child:
                child.wait_ready()
                yield child, read
    finally:
        os.close(read)


def heard(fd: int, seconds: float = NOTHING) -> bytes | None:
    """What comes through the pipe: b"" for its end, None for nothing within the time."""
    return os.read(fd, 4096) if select.select([fd], [], [], seconds)[0] else None


def result(program: str, *given: object, unsafe: bool = False, **limits: float) -> object:
    """What the program prints, as JSON; `given` is the JSON on its standard input."""
    ended = run(program.encode(), json.dumps(given).encode(), Limits(**limits), unsafe)  # type: ignore[arg-type]
    assert (ended.how, ended.status) == ("exit", 0), ended
    return json.loads(ended.stdout)
