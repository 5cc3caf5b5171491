"""code_problems: programming problems whose programs are run on test cases (reward `code`, see docs/rewards.md).

The cases are JSON, in one of the shapes in circulation:

* {"inputs": [...], "outputs": [...]}, with "fn_name" where a function is called instead of a program run (APPS, TACO,
  verl's prime_code);
* {"test_cases": [{"type", "input", "output", "fn_name"}]} (open-r1's verifiable-coding-problems), or that list;
* {"assert_case": ["assert f(1) == 2", ...]}, or such a list of texts.

They stand in `verification_info`, `test_cases`, `tests` or `reward_model`["ground_truth"]; the problem in `problem`,
`problem_statement`, `question` or `prompt`; a reference program, if there is one, in `gold_standard_solution` or
`solution`: it must pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_recipes.building import HubSet, recipe
from data_recipes.forms import one_exchange
from data_recipes.reading import PROGRAM, LeftOut, Row, system_turn, turn
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem

CASES = ("verification_info", "test_cases", "tests", "reward_model")
QUESTIONS = ("problem", "problem_statement", "question", "prompt")
PROGRAMS = ("gold_standard_solution", "solution")
MAX_CASES = 100  # of a problem: all of them share rewards.params.code.total_s


def read(row: Row) -> Problem:
    """Other languages than Python are left out. Of more than MAX_CASES cases the first ones are taken."""
    given = next((row.cells[name] for name in CASES if row.cells.get(name) is not None), None)
    if given is None:
        raise ValueError(f"none of the columns {CASES} has test cases")
    program = next((row.cells[n] for n in PROGRAMS if isinstance(row.cells.get(n), str) and row.cells[n].strip()), "")
    question, system = _question(row)
    return Problem(
        id=row.id,
        task="code",
        messages=(*system_turn(system), *turn(question, 0, PROGRAM)),
        solution=f"<answer>\n{_fenced(program)}\n</answer>" if program else "",
        reward="code",
        meta=cases(given),
    )


def cases(value: Any) -> dict[str, Any]:
    """The test cases as the reward `code` wants them in meta. Raises ValueError if they are of no known shape."""
    value = _loaded(value)
    if isinstance(value, Mapping) and "ground_truth" in value:
        value = _loaded(value["ground_truth"])
    if isinstance(value, Mapping):
        language = str(value.get("language") or "python").casefold()
        if not language.startswith("python"):
            raise LeftOut(f"program in {language}")
        if value.get("assert_case"):
            return {"asserts": _asserts(value["assert_case"])}
        if value.get("inputs") is not None and value.get("outputs") is not None:
            return _pairs(value["inputs"], value["outputs"], value.get("fn_name"))
        value = _loaded(value.get("test_cases"))
    if not isinstance(value, list) or not value:
        raise ValueError(f"the test cases are of no known shape: {str(value)[:80]}")
    if isinstance(value[0], str):
        return {"asserts": _asserts(value)}
    if not all(isinstance(case, Mapping) and {"input", "output"} <= case.keys() for case in value):
        raise ValueError(f"a test case has not input and output: {str(value)[:80]}")
    return _pairs([c["input"] for c in value], [c["output"] for c in value], value[0].get("fn_name"))


def _pairs(inputs: Any, outputs: Any, function: Any) -> dict[str, Any]:
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise ValueError("inputs and outputs are not two lists of the same length")
    pairs = list(zip(inputs, outputs, strict=True))[:MAX_CASES]
    if not function:
        return {"tests": [{"input": _lines(given), "output": _lines(wanted)} for given, wanted in pairs]}
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError(f"fn_name {str(function)[:40]!r} is no name of a function")
    calls = [_call(function, given, wanted) for given, wanted in pairs]
    return {"asserts": calls, "entry_point": function}


def _call(function: str, given: Any, wanted: Any) -> str:
    """The call as an assert. Arguments are a list, or a JSON value a line; a result may be wrapped in a list of one, as
    APPS does, so both readings pass."""
    if isinstance(given, str):
        given = [_value(line) for line in given.splitlines()]
    if not isinstance(given, list):
        raise ValueError(f"the arguments of {function} are {str(given)[:60]}, not a list")
    wanted = _value(wanted) if isinstance(wanted, str) else wanted
    arguments = ", ".join(map(repr, given))
    if isinstance(wanted, list) and len(wanted) == 1:
        return f"assert {function}({arguments}) in ({wanted!r}, {wanted[0]!r})"
    return f"assert {function}({arguments}) == {wanted!r}"


def _asserts(value: Any) -> list[str]:
    found = _loaded(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    lines = [found] if isinstance(found, str) else found
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) and line.strip() for line in lines):
        raise ValueError(f"assert_case is no list of texts: {str(value)[:80]}")
    return lines[:MAX_CASES]


def _lines(value: Any) -> str:
    """What is read or printed: a text, or a list of lines."""
    return "\n".join(map(str, value)) + "\n" if isinstance(value, list) else str(value)


def _value(text: str) -> Any:
    """A JSON value; a text that is none stands for itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _loaded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the test cases are no JSON ({error})") from error


def _question(row: Row) -> tuple[str, str]:
    """The text of the problem, and of a system turn before it."""
    value = next((row.cells[name] for name in QUESTIONS if row.cells.get(name)), None)
    if isinstance(value, str) and value.strip():
        return value, ""
    if isinstance(value, list):
        asked, _, system = one_exchange(value, "prompt")
        if asked.text.strip() and not asked.cells:
            return asked.text, system
    raise ValueError(f"none of the columns {QUESTIONS} has the text of the problem")


def _fenced(program: str) -> str:
    return program.strip() if "```" in program else f"```python\n{program.strip()}\n```"


SET = HubSet(
    name="code_problems",
    card=Card(
        name="Verifiable programming problems",
        source="open-r1/verifiable-coding-problems-python",
        url="https://huggingface.co/datasets/open-r1/verifiable-coding-problems-python",
        notes="From contests and exercise sites, whose terms differ; the set states no licence of its own.",
    ),
    columns=(),
    read=read,
)
build = recipe(SET)
