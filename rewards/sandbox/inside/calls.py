"""Asserts about a solution, checked by a process that the solution has no way into.

    calls.py serve                          runs solution.py and answers calls
    calls.py judge SECONDS REQUESTS ENTRY   runs case_0.py, case_1.py, ... against it

SECONDS: what a case may take. REQUESTS: descriptor of the pipe to `serve`, whose replies come in on the standard
input. ENTRY: a name that the solution's is meant by even if a built-in function or a module has it, or "".

Both run in sandboxes of their own, joined by two pipes. In a case, each name of the solution stands for a call
to the other process. Only values travel: numbers, texts and containers of these, rebuilt here as the plain
built-in types. So nothing that the solution does to its own process (leave it, replace builtins, define an
`__eq__` that is always true) makes an assert pass that the values do not pass, and it never sees what an assert
expects. The judge writes the outcome of each case as a line to its standard output.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

LONGEST = 4 << 20  # bytes of a message
MOST_ITEMS = 100_000  # taken out of an iterator
SMALL = 1 << 53  # larger integers travel as hexadecimal text


class Unsendable(Exception):
    """A value that is no plain data."""


class Broken(Exception):
    """The other process has ended or does not keep to the protocol."""


class TimeUp(BaseException):
    """A case takes too long. Not an Exception: a case that catches those does not catch this."""


def encode(value: Any, handle: Callable[[Any], int]) -> Any:
    """`value` as JSON: scalars as they are, everything else as [kind, ...]. `handle(value)` takes the rest."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= SMALL else ["int", hex(value)]
    if isinstance(value, (float, str)):
        return value
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[encode(k, handle), encode(v, handle)] for k, v in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item, handle) for item in value]]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), handle)  # a number of numpy's, which is none of Python's types
    if hasattr(type(value), "__next__"):  # a generator, map, zip
        items = list(itertools.islice(value, MOST_ITEMS + 1))
        if len(items) > MOST_ITEMS:
            raise Unsendable("an iterator of more than 100,000 items")
        return ["iterator", [encode(item, handle) for item in items]]
    return ["handle", handle(value)]


def decode(data: Any, handle: Callable[[int], Any]) -> Any:
    """The value of `encode`'s JSON, made of exact built-in types; `handle(number)` stands for the rest."""
    if not isinstance(data, list):
        return data
    kind, *rest = data
    if kind == "int":
        return int(rest[0], 16)
    if kind == "complex":
        return complex(*rest)
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    if kind == "dict":
        return {decode(k, handle): decode(v, handle) for k, v in rest[0]}
    if kind in ("list", "tuple", "set", "frozenset", "iterator"):
        items = [decode(item, handle) for item in rest[0]]
        if kind == "iterator" and len(items) > MOST_ITEMS:  # forged; handed on, it would be the case's fault
            raise Broken("an iterator of too many items")
        return iter(items) if kind == "iterator" else getattr(builtins, kind)(items)
    if kind == "range":
        return range(*rest)
    if kind == "handle":
        return handle(rest[0])
    raise Broken(f"unknown kind {kind!r}")


# --- the process of the solution


def serve() -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # what the solution prints is not part of the protocol
    solution = type(sys)("solution")
    sys.modules["solution"] = solution
    objects = [solution]

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    loader = SourceFileLoader("solution", str(Path(__file__).parent / "solution.py"))
    for line in requests:
        number, request, target, name, *arguments = json.loads(line)
        try:
            if request == "load":
                result = loader.exec_module(solution)
            elif request == "get":
                result = getattr(objects[target], name)
            else:
                args, kwargs = decode(arguments[0], objects.__getitem__), decode(arguments[1], objects.__getitem__)
                result = objects[target](*args, **kwargs)
            reply = [number, "value", encode(result, keep)]
        except BaseException as error:  # also SystemExit: the assert that asked gets it as an error
            reply = [number, "error", type(error).__name__]
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


# --- the process of the judge


class Remote:
    """An object of the solution that is no plain data: can be called, has attributes, equals nothing."""

    def __init__(self, link: Link, number: int):
        self.__link, self.__number = link, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__link.ask("call", self.__number, "", encode(args, number_of), encode(kwargs, number_of))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__link.ask("get", self.__number, name)

    def __refuse(self, *_: object) -> NoReturn:
        raise TypeError("an object of the solution is no plain value; it cannot be compared")

    __eq__ = __ne__ = __bool__ = __hash__ = __refuse


def number_of(value: Any) -> int:
    if type(value) is not Remote:
        raise Unsendable(f"a case hands over a {type(value).__name__}; only plain data can be")
    return value._Remote__number


class Link:
    """Questions to the process of the solution."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO):
        self.requests, self.replies = requests, replies
        self.asked, self.broken = 0, False

    def ask(self, *question: Any) -> Any:
        if self.broken:
            raise Broken("the solution has ended")
        self.asked += 1
        self.broken = True  # until the reply is there: a case that runs out of time leaves the link unusable
        self.requests.write(json.dumps([self.asked, *question]).encode() + b"\n")
        self.requests.flush()
        line = self.replies.readline(LONGEST)
        if not line.endswith(b"\n"):
            raise Broken("the solution has ended, or returned too much")
        number, kind, result = json.loads(line)
        if number != self.asked:
            raise Broken("the reply to another question")
        self.broken = False
        if kind == "value":
            return decode(result, lambda target: Remote(self, int(target)))
        known = getattr(builtins, str(result), None)
        if not isinstance(known, type) or not issubclass(known, Exception):
            known = RuntimeError
        raise known(f"raised by the solution: {result}")


def free_names(tree: ast.AST, entry: str) -> tuple[set[str], set[str]]:
    """(names that a case wants from the solution, standard modules that it uses without importing them)."""
    nodes = list(ast.walk(tree))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    aliases = [alias for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)) for alias in n.names]
    bound |= {(alias.asname or alias.name).split(".")[0] for alias in aliases}
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - bound
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    modules = {name for name in used - called - {entry} if name in sys.stdlib_module_names}
    return {n for n in used - modules if n == entry or not hasattr(builtins, n)}, modules


def run_case(path: Path, wanted: set[str], modules: set[str], link: Link) -> str:
    """The outcome in one word."""
    case = type(sys)("case")
    try:
        for name in wanted:
            setattr(case, name, link.ask("get", 0, name))
        for name in modules:
            setattr(case, name, importlib.import_module(name))
        SourceFileLoader("case", str(path)).exec_module(case)
    except Unsendable as error:
        return f"broken: {error}"
    except AssertionError:
        return "wrong"
    except Exception:  # whatever the program raises is the verdict on it
        return "died" if link.broken else "error"
    return "died" if link.broken else "passed"


def judge(seconds: float, requests: int, entry: str) -> None:
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a case prints is no verdict

    def timed(step: Callable[..., str], *arguments: Any) -> str:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return step(*arguments)
        except TimeUp:
            return "timeout"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    folder = Path(__file__).parent
    cases = list(itertools.takewhile(Path.exists, (folder / f"case_{i}.py" for i in itertools.count())))
    names = []
    for case in cases:
        try:
            names.append(free_names(ast.parse(case.read_bytes()), entry))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            print(f"broken: {case.stem} is no Python: {error}".replace("\n", " "), file=verdicts)
            return
    signal.signal(signal.SIGALRM, raise_time_up)
    link = Link(os.fdopen(requests, "wb"), os.fdopen(0, "rb"))
    loaded = timed(load, link)
    fate = "" if loaded == "passed" else loaded  # of all cases from now on
    for case, (wanted, modules) in zip(cases, names, strict=True):
        outcome = fate or timed(run_case, case, wanted, modules, link)
        fate = fate or (outcome if link.broken else "")
        print(outcome.replace("\n", " "), file=verdicts, flush=True)


def load(link: Link) -> str:
    try:
        link.ask("load", 0, "")
    except Exception:  # the same
        return "died" if link.broken else "error"
    return "passed"


def raise_time_up(*_: object) -> NoReturn:
    raise TimeUp


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        judge(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
