"""Does the program of the answer pass its tests? It runs in a sandbox."""

from __future__ import annotations

import dataclasses
import inspect
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from decimal import Decimal
from importlib import resources
from typing import Any, NamedTuple, TypedDict

from rewards.answers.blocks import answer_or_reply, last_fenced
from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.sandbox.launch import Limits, SandboxError, pipe, run, start
from rewards.sandbox.probe import probe, probe_packages

LANGUAGES = ("python", "python3", "py")
MAX_CHARS = 100_000
MAX_CASES = 500  # of a problem; what a recipe keeps for training is its own affair
START_S = 1.0  # of a case on a busy machine, before its clock starts
_SPARE_OUTPUT = 1 << 16  # bytes that a program may print beyond twice what is expected
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_CALLS = resources.files("rewards.sandbox.inside").joinpath("calls.py").read_bytes()


class Walls(TypedDict):
    """What a program may reach: arguments of rewards.sandbox.launch."""

    packages: bool
    unsafe: bool


class Cases(NamedTuple):
    io: list[tuple[str, str]]  # what the program reads, what it must print
    asserts: list[str]
    entry: str
    prelude: str  # "" or lines that end in a line break
    postlude: str  # "" or lines
    values: bool  # numbers in the output are compared by value


def code(
    x: RewardInput,
    cpu_s: int = 2,
    wall_s: float = 4.0,
    total_s: float = 8.0,
    memory_mb: int = 512,
    packages: bool = False,
    any_fence: bool = False,
    unsafe: bool = False,
) -> RewardOutput:
    """1 if the program passes all cases, else 0. parts["passed"] is the share of the cases that it passes.

    The program is the last closed ```python block in the last `<answer>...</answer>` or, where there is no answer
    tag, after the thinking. It has Python's standard library, no network, and no files but its own in /tmp. The
    cases are, at most MAX_CASES of each kind, from the problem's meta:

    * "tests": [{"input": "3 4\\n", "output": "7\\n"}, ...]. The program reads the input on its standard input; it
      must end with status 0 and have printed the output, up to white space at the ends of lines and of all. Each
      case is a run of its own. With meta["compare"] = "values" (LiveCodeBench's rule) white space before lines does
      not count either, and two lines of numbers are the same if their numbers are: "1.50 2" for "1.5 2.0".
    * "asserts": ["assert add(3, 4) == 7", ...], one or more statements each, that call what the program defines.
      They run in a second sandbox and reach the program by messages (rewards/sandbox/inside/calls.py): ending the
      process, replacing builtins or returning an object that equals everything is of no use. What is handed over and
      returned is copied, and must be plain data, so a change that a function makes to its argument is not seen;
      objects of the program's own classes can be called and have attributes. Built-in functions are the real
      ones; meta["entry_point"] names a function of the program that has the name of one. All asserts share one
      process of the program. Its `if __name__ == "__main__"` does not run.

    meta["prelude"] is a program that runs before that of the answer, such as imports that the task promises, and
    meta["postlude"] one that runs after it, in the same process.

    A case that takes too long fails, and so do those after it. parts["timed_out"] and parts["crashed"] are the
    shares of cases that failed for want of time or because the program ended or raised.

    Args:
        cpu_s: CPU seconds of a run of the program (for asserts, for each of them).
        wall_s: seconds of a case.
        total_s: seconds of all cases; less than rewards.timeout_s, or a program that loops is not scored at all.
            0 = each case has its wall_s, whatever the others took: (wall_s + 1) times the number of cases.
        memory_mb: MiB of each process of the program.
        packages: it may import numpy, and of scipy, pandas, sympy, networkx, sortedcontainers and numba those that
            are installed here.
        any_fence: the program is the last closed block whatever its opening line names, also nothing.
        unsafe: run it without the sandbox: it can then read, change and send whatever the trainer can.

    Raises:
        Unscorable: there are no cases or they make no sense, or the sandbox does not start.
    """
    cases = _cases(x.meta)
    program = last_fenced(answer_or_reply(x.text) or "", None if any_fence else LANGUAGES)
    total = len(cases.io) + len(cases.asserts)
    if program is None or not program.strip() or len(program) > MAX_CHARS:
        return _output(Counter(), total)
    limits = Limits(cpu_s=cpu_s, wall_s=wall_s, memory_mb=memory_mb)
    text = (cases.prelude + program + cases.postlude).encode(errors="replace")
    deadline = time.monotonic() + (total_s or most_seconds(wall_s, total))
    walls: Walls = {"packages": packages, "unsafe": unsafe}
    try:
        if not unsafe:
            probe()  # once in a process; a run that was started around the checks before training is held to it too
        outcomes = _run_io(text, cases, limits, deadline, walls)
        if cases.asserts and "timeout" not in outcomes:
            outcomes += _run_asserts(text, cases, limits, deadline, walls)
    except SandboxError as error:
        raise Unscorable(str(error)) from error
    outcomes += ["timeout"] * (total - len(outcomes))
    return _output(Counter(outcomes), total)


def code_problem(params: Mapping[str, Any], timeout_s: float) -> str:
    """Why `code` cannot run with these params on this machine, or ""; to be found before training."""
    defaults = {name: p.default for name, p in inspect.signature(code).parameters.items() if p.default is not p.empty}
    values = defaults | dict(params)
    flags = {name: values.pop(name) for name in ("packages", "any_fence", "unsafe")}
    for name, value in values.items():
        whole = name in ("cpu_s", "memory_mb")
        if name == "total_s" and value == 0 and not isinstance(value, bool):
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
            return f"code: {name} must be a positive {'integer' if whole else 'number'}, got {value!r}"
    longest = values["total_s"] or most_seconds(values["wall_s"])
    if longest >= timeout_s:
        derived = "" if values["total_s"] else f" (that is {longest:g} s for {MAX_CASES} cases)"
        return (
            f"code: total_s={values['total_s']}{derived} must be less than rewards.timeout_s={timeout_s}, or programs "
            "that never end would be left out instead of scoring 0"
        )
    for name, value in flags.items():
        if not isinstance(value, bool):
            return f"code: {name} must be true or false, got {value!r}"
    if not flags["unsafe"]:
        try:
            probe()
            if flags["packages"]:
                probe_packages(values["memory_mb"])
        except SandboxError as error:
            return (
                f"code runs programs that the model has written, and there is no sandbox for them here: {error}. "
                "Or, if this machine may be lost and holds nothing secret, set rewards.params.code.unsafe=true"
            )
    return ""


def most_seconds(wall_s: float, cases: int = MAX_CASES) -> float:
    """Seconds that so many cases take at most if each takes all of its time."""
    return (wall_s + START_S) * cases


def _run_io(program: bytes, cases: Cases, limits: Limits, deadline: float, walls: Walls) -> list[str]:
    """Outcomes of the cases, up to the first that ran out of time."""
    outcomes: list[str] = []
    for given, expected in cases.io:
        left = deadline - time.monotonic()
        if left <= 0 or "timeout" in outcomes:
            break
        bounds = dataclasses.replace(
            limits, wall_s=min(limits.wall_s, left), output_bytes=2 * len(expected.encode()) + _SPARE_OUTPUT
        )
        ended = run(program, given.encode(), bounds, **walls)
        if ended.how == "timeout":
            outcomes.append("timeout")
        elif ended.how == "flood" or ended.status != 0:
            outcomes.append("crashed")
        else:
            same = _same_output(ended.stdout.decode(errors="replace"), expected, cases.values)
            outcomes.append("passed" if same else "wrong")
    return outcomes


def _run_asserts(program: bytes, cases: Cases, limits: Limits, deadline: float, walls: Walls) -> list[str]:
    """Outcomes of the asserts, up to where time ran out.

    Raises:
        SandboxError: a sandbox does not start.
        Unscorable: an assert is no Python, or hands the program something that cannot be handed over.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return []
    per_case = min(limits.wall_s, left)
    together = dataclasses.replace(limits, cpu_s=limits.cpu_s * (len(cases.asserts) + 1), wall_s=left)
    texts = {f"case_{i}.py": text.encode() for i, text in enumerate(cases.asserts)}
    with pipe() as (verdicts, say), ExitStack() as running:
        with pipe() as (asked, ask), pipe() as (replied, reply):  # closed here, so that each sees the other's end
            solution = {"calls.py": _CALLS, "solution.py": program}
            served = running.enter_context(
                start(solution, "calls.py", together, stdin=asked, stdout=reply, arguments=["serve"], **walls)
            )
            judged = running.enter_context(
                start(
                    {"calls.py": _CALLS, **texts},
                    "calls.py",
                    dataclasses.replace(together, memory_mb=Limits().memory_mb),
                    stdin=replied,
                    stdout=say,
                    arguments=["judge", str(per_case), str(ask), cases.entry],
                    keep=[ask],
                    unsafe=walls["unsafe"],
                )
            )
        served.wait_ready()
        ended = judged.wait(verdicts, together)
    lines = ended.stdout.decode(errors="replace").splitlines()
    broken = [line for line in lines if line.startswith("broken")]
    if broken:
        raise Unscorable(f"meta['asserts']: {broken[0]}")
    return ["crashed" if line in ("error", "died") else line for line in lines]


def _output(outcomes: Counter[str], total: int) -> RewardOutput:
    passed = outcomes["passed"]
    parts = {"passed": passed, "timed_out": outcomes["timeout"], "crashed": outcomes["crashed"]}
    return RewardOutput(float(passed == total), {name: count / total for name, count in parts.items()})


def _same_output(printed: str, expected: str, values: bool) -> bool:
    if not values:
        return _lines(printed) == _lines(expected)
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(lines) == len(wanted) and all(a == b or _same_numbers(a, b) for a, b in zip(lines, wanted, strict=True))


def _same_numbers(line: str, wanted: str) -> bool:
    numbers, golds = line.split(), wanted.split()
    if len(numbers) != len(golds) or not all(map(_NUMBER.fullmatch, (*numbers, *golds))):
        return False
    return all(Decimal(a) == Decimal(b) for a, b in zip(numbers, golds, strict=True))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _cases(meta: Mapping[str, Any]) -> Cases:
    tests, asserts, entry = meta.get("tests", []), meta.get("asserts", []), meta.get("entry_point", "")
    prelude, postlude, compare = meta.get("prelude", ""), meta.get("postlude", ""), meta.get("compare", "text")
    if not _two_texts(prelude, postlude) or compare not in ("text", "values"):
        raise Unscorable(
            f"meta['prelude'] and meta['postlude'] must be texts, meta['compare'] 'text' or 'values', got {compare!r}"
        )
    for key, value in (("tests", tests), ("asserts", asserts)):
        if not isinstance(value, list | tuple) or len(value) > MAX_CASES:
            raise Unscorable(f"meta['{key}'] must be a list of at most {MAX_CASES} cases, got {str(value)[:60]!r}")
    if not all(isinstance(test, Mapping) and _two_texts(test.get("input"), test.get("output")) for test in tests):
        raise Unscorable("meta['tests'] must hold {'input': TEXT, 'output': TEXT}")
    if not all(isinstance(text, str) and text.strip() for text in asserts) or not isinstance(entry, str):
        raise Unscorable("meta['asserts'] must hold texts of statements, and meta['entry_point'] be a name")
    if not tests and not asserts:
        raise Unscorable("there is nothing to test the program with: no meta['tests'] and no meta['asserts']")
    io = [(test["input"], test["output"]) for test in tests]
    before, after = f"{prelude}\n" if prelude else "", f"\n\n{postlude}\n" if postlude else ""
    return Cases(io, list(asserts), entry, before, after, compare == "values")


def _two_texts(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
