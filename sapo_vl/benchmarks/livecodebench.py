"""LiveCodeBench (arXiv 2403.07974), code generation, release v6: programs that are run on public and hidden tests.

Rows: question_id, question_content, starter_code ("" for programs that read and print), platform, difficulty,
public_test_cases (JSON: [{"input", "output", "testtype": "stdin" or "functional"}, ...]), private_test_cases (the
same, or that as a compressed pickle, which is read without running it: packed_text), metadata (JSON with "func_name"),
contest_date. The hub's set is a loading script, which is not run: its files are opened by name. The config says which,
as the script does: release_v6 (all six files, 1055 problems of May 2023 to April 2025, 4.5 GB) and those before it, v6
(what the sixth file added: 175 problems of 2025, 134 MB) and those before it, v4_v5 and the like. A local copy is a
folder with files of these names, or one file. The prompt is the official one in our words.

Dates: accuracy is given by month of the contest, and for the windows that are usually reported (WINDOWS), among the
problems that were asked. config=v6 has all of 2025.02-2025.05.

Programs run in the sandbox (reward "code"). "stdin": the printed lines, numbers by value. "functional": arguments and
result are JSON, the arguments a line each, a tuple is as good as a list, and a plain function is as good as a method of
Solution. The imports that the official checker puts before each program are put there here too, numpy and the others of
rewards.sandbox.packages can be imported, and the last code block counts whatever its opening line names. Each test has
6 s of CPU time and 7 s in all, with the start of the interpreter; officially 6 s, and it is started once for all tests.

Left to differ: 2 GiB of memory a process, officially there is no limit; a program that prints the right thing and ends
with another status than 0 fails; of more than MAX_CASES tests of a problem the first ones are taken.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import combinations
from typing import Any

from rewards.code import MAX_CASES, most_seconds
from sapo_vl.benchmarks.base import GROUPS, Benchmark, ItemScores, LeftOut, Row
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


# (first month, last month) of contests, as papers report them: "2025.02-2025.05" ends before the first of May.
WINDOWS = {"2024.08-2025.02": ("2024-08", "2025-01"), "2025.02-2025.05": ("2025-02", "2025-04")}
# For answers that define a function and no class: what is called is a method.
SOLUTION = """if "Solution" not in globals():
    class Solution:
        pass
    Solution.{name} = staticmethod({name})"""
FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")
WALL_S = 7.0  # of a test


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    cases = _cases(row.cells.get("public_test_cases"), "public_test_cases")
    cases += _cases(row.cells.get("private_test_cases"), "private_test_cases")
    if not cases:
        raise LeftOut("no tests")
    cases = cases[:MAX_CASES]
    kinds = {case["testtype"] for case in cases}
    starter = row.cells.get("starter_code") or ""
    question = text(row, "question_content")
    date = _date(row.cells.get("contest_date"))
    meta: dict[str, Any] = {"prelude": PRELUDE, "contest_date": date}
    if kinds == {"stdin"}:
        tests = [{"input": case["input"], "output": case["output"]} for case in cases]
        meta |= {"tests": tests, "compare": "values"}
    elif kinds == {"functional"}:
        name = _function(row.cells.get("metadata"))
        meta["asserts"] = [_call(name, case) for case in cases]
        meta["postlude"] = SOLUTION.format(name=name)
    else:
        raise ValueError(f"testtype is {sorted(kinds)}, neither 'stdin' nor 'functional'")
    if starter.strip():
        question += f"\n\nStarter code:\n```python\n{starter.strip()}\n```"
    yield Problem(
        id=f"livecodebench-{ident(row, 'question_id')}",
        task="livecodebench",
        messages=ask_about(0, question, STARTED_PROGRAM if starter.strip() else STDIN_PROGRAM),
        reward="code",
        meta=meta | grouped(difficulty=row.cells.get("difficulty"), platform=row.cells.get("platform"), month=date[:7]),
    )


def windows(items: Sequence[ItemScores]) -> Mapping[str, float]:
    """The accuracy in each window of contest dates that has items, and how many."""
    figures: dict[str, float] = {}
    for name, (first, last) in WINDOWS.items():
        months = [(x.meta.get(GROUPS, {}).get("month", ""), x.mean) for x in items]
        means = [mean for month, mean in months if mean is not None and first <= month <= last]
        if means:
            figures |= {name: sum(means) / len(means), f"{name} items": len(means)}
    return figures


def _date(cell: Any) -> str:
    """The day of a contest, "2025-02-01"; a column of dates may have become one of timestamps. "" if it is missing."""
    if cell is None:
        return ""
    written = cell.isoformat() if isinstance(cell, datetime) else str(cell)
    if not re.match(r"\d{4}-\d{2}-\d{2}(?!\d)", written):
        raise ValueError(f"contest_date is {written[:40]!r}, not a date")
    return written[:10]


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error


LIVECODEBENCH = Benchmark(
    name="livecodebench",
    source="livecodebench/code_generation_lite",
    split="test",
    licence="CC (the card says no more)",
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
    config="release_v6",
    files={
        **{f"release_v{i}": FILES[:i] for i in range(1, 7)},
        **{f"v{i}": FILES[i - 1 : i] for i in range(1, 7)},
        **{f"v{i}_v{j}": FILES[i - 1 : j] for i, j in combinations(range(1, 7), 2)},
    },
    problems=problems,
    k=8,
    params={
        "code": {
            "cpu_s": 6,
            "wall_s": WALL_S,
            "total_s": 0.0,  # no bound but that of each test
            "memory_mb": 2048,
            "packages": True,
            "any_fence": True,
        }
    },
    timeout_s=most_seconds(WALL_S) + 10,
    metrics=windows,
)
