"""LiveCodeBench (arXiv 2403.07974), code generation, release v6: programs that are run on public and hidden tests.

Rows: question_id, question_content, starter_code ("" for programs that read and print), platform, difficulty,
public_test_cases (JSON: [{"input", "output", "testtype": "stdin" or "functional"}, ...]), private_test_cases (the
same, or that as a compressed pickle, which is read without running it: packed_text), metadata (JSON with "func_name").
The hub's set is a loading script, which is not run: give the JSON lines (`test.jsonl` ... `test6.jsonl`; the last
alone is the 175 problems that v6 added) as the source. The prompt is the official one in our words.

Programs run in the sandbox (reward "code"). "stdin": the printed lines, numbers by value. "functional": arguments and
result are JSON, the arguments a line each, and a tuple is as good as a list. The imports that the official checker
puts before each program are put there here too. The official limit is 6 seconds a test: evaluate with
rewards.params.code={cpu_s: 6, wall_s: 8, total_s: 100} and a rewards.timeout_s above total_s.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from typing import Any

from sapo_vl.benchmarks.base import Benchmark, LeftOut, Row
from sapo_vl.benchmarks.cells import grouped, ident, text
from sapo_vl.benchmarks.packed_text import unpack_text
from sapo_vl.benchmarks.prompts import STARTED_PROGRAM, STDIN_PROGRAM, ask_about
from sapo_vl.types import Problem

# What the official checker imports before each program: all names of these modules, and the modules.
MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
PRELUDE = "\n".join(
    [f"from {name} import *" for name in (*MODULES, "builtins", "typing")]
    + [f"import {name}" for name in MODULES]
    + ["sys.setrecursionlimit(50000)"]
)


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    cases = _cases(row.cells.get("public_test_cases"), "public_test_cases")
    cases += _cases(row.cells.get("private_test_cases"), "private_test_cases")
    if not cases:
        raise LeftOut("no tests")
    kinds = {case["testtype"] for case in cases}
    starter = row.cells.get("starter_code") or ""
    question = text(row, "question_content")
    meta: dict[str, Any] = {"prelude": PRELUDE}
    if kinds == {"stdin"}:
        tests = [{"input": case["input"], "output": case["output"]} for case in cases]
        meta |= {"tests": tests, "compare": "values"}
    elif kinds == {"functional"}:
        name = _function(row.cells.get("metadata"))
        meta["asserts"] = [_call(name, case) for case in cases]
    else:
        raise ValueError(f"testtype is {sorted(kinds)}, neither 'stdin' nor 'functional'")
    if starter.strip():
        question += f"\n\nStarter code:\n```python\n{starter.strip()}\n```"
    yield Problem(
        id=f"livecodebench-{ident(row, 'question_id')}",
        task="livecodebench",
        messages=ask_about(0, question, STARTED_PROGRAM if starter.strip() else STDIN_PROGRAM),
        reward="code",
        meta=meta | grouped(difficulty=row.cells.get("difficulty"), platform=row.cells.get("platform")),
    )


def _cases(cell: Any, name: str) -> list[dict[str, str]]:
    """Test cases of a cell, which is JSON or packed JSON."""
    written = "[]" if cell is None or cell == "" else str(cell)
    cases = _json(written if written.lstrip().startswith("[") else unpack_text(written), name)
    keys = ("input", "output", "testtype")
    whole = isinstance(cases, list) and all(
        isinstance(case, dict) and all(isinstance(case.get(key), str) for key in keys) for case in cases
    )
    if not whole:
        raise ValueError(f"{name} is no list of objects with the texts input, output and testtype")
    return cases


def _function(metadata: Any) -> str:
    """The method that is called. It becomes a part of a program, so it must be a name and nothing else."""
    about = _json(metadata or "{}", "metadata") if isinstance(metadata, str | None) else metadata
    name = about.get("func_name") if isinstance(about, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"func_name is {str(name)[:40]!r}, not the name of a function")
    return name


def _call(name: str, case: dict[str, str]) -> str:
    """Statements that call the method with the JSON values of a case, and assert the result."""
    arguments = [_literal(line) for line in case["input"].split("\n") if line.strip()]
    called = f"_got = Solution().{name}({', '.join(arguments)})"
    return f"{called}\nassert (list(_got) if isinstance(_got, tuple) else _got) == {_literal(case['output'])}"


def _literal(written: str) -> str:
    """A JSON value as Python writes it."""
    literal = repr(_json(written, "a functional test"))
    try:
        ast.literal_eval(literal)  # NaN and Infinity have no literal
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a functional test has a value that cannot be written down: {written[:40]!r}") from error
    return literal


def _json(written: str, name: str) -> Any:
    try:
        return json.loads(written)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error


LIVECODEBENCH = Benchmark(
    name="livecodebench",
    source="livecodebench/code_generation_lite",
    split="test",
    licence="unknown",
    columns=(
        "question_id",
        "question_content",
        "starter_code",
        "platform",
        "difficulty",
        "public_test_cases",
        "private_test_cases",
        "metadata",
    ),
    problems=problems,
    k=8,
    params={"code": {"cpu_s": 6, "wall_s": 8.0, "total_s": 100.0}},  # the official checker gives a case 6 s
    timeout_s=110.0,
)
