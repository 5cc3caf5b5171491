"""reasoning_gym: logic puzzles made by the package reasoning-gym, offline. `pip install 'sapo-vl[logic]'` brings it.

Its own `score_answer` gives partial credit to answers that merely contain the gold, so the rewards are ours. Tasks
whose answer is one name, one word, a number or a grid are taken; knights and knaves are asked for as a JSON object.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.filters import Seen
from data_recipes.golds import Judge, gold_reasons
from data_recipes.reading import ANSWER, LeftOut, turn
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.writer import Card, write_splits
from sapo_vl.types import Problem

CARD = Card(
    name="reasoning-gym logic",
    source="the package reasoning-gym",
    licence="Apache-2.0",
    url="https://github.com/open-thought/reasoning-gym",
    paper="arXiv 2505.24760",
    notes="Made on this machine; the same version and seed make the same puzzles.",
)
GRID = (
    "Think step by step between <think> and </think>, then give only a JSON object between <answer> and </answer>, "
    'such as {"NAME": {"is": "ROLE"}, ...}, with every inhabitant in it.'
)
TRIES = 20  # puzzles drawn for one that is new
Entry = Mapping[str, Any]


def number_or_word(entry: Entry) -> tuple[str, str, str, str]:
    """(question, instruction, answer, reward) of a puzzle with a short answer."""
    answer = str(entry["answer"]).strip()
    return str(entry["question"]), ANSWER, answer, "number" if answer.isdecimal() else "word"


def knights(entry: Entry) -> tuple[str, str, str, str]:
    """Who is what, as a grid with one column."""
    meta, question = entry["metadata"], str(entry["question"])
    terms = meta["knight_knave_terms"]
    roles = [str(terms["knight" if truthful else "knave"]) for truthful in meta["solution"]]
    names = [str(name) for name in meta["names"]]
    gold = {name: {"is": role} for name, role in zip(names, roles, strict=True)}
    asked, found, _ = question.rpartition("(Format your answer like")
    if not found:
        raise LeftOut("a question of another form than this recipe knows")
    return asked.strip(), GRID, json.dumps(gold), "json_grid"


READERS: dict[str, Callable[[Entry], tuple[str, str, str, str]]] = {
    "aiw": number_or_word,
    "circuit_logic": number_or_word,
    "knights_knaves": knights,
    "self_reference": number_or_word,
    "syllogism": number_or_word,
    "zebra_puzzles": number_or_word,
}


def build(
    out: Path,
    *,
    seed: int = 0,
    tasks: str = ",".join(READERS),
    n_train: int = 2000,
    n_test: int = 200,
) -> dict[str, Any]:
    """Writes the data set folder `out` with the splits test and train, and returns its manifest.

    tasks: names out of READERS, with commas. Each is the task of its rows.
    n_train, n_test: rows, shared equally between the tasks; no question comes twice.

    Raises DataError if the package is missing, a task is unknown, or a task has not so many different puzzles.
    """
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if name not in READERS:
            raise DataError(f"reasoning-gym task {name!r}; there are {', '.join(READERS)}")
    if min(n_train, n_test) < len(names):
        raise DataError(f"n_train={n_train}, n_test={n_test}: every one of the {len(names)} tasks needs a row")
    gym = _package()
    seen, left_out = Seen(), dict[str, int]()
    with Judge() as judge:
        splits = {
            split: _problems(gym, names, split, rows, seed, seen, judge, left_out)
            for split, rows in {"test": n_test, "train": n_train}.items()
        }
        arguments = {"seed": seed, "tasks": tasks, "n_train": n_train, "n_test": n_test}
        notes = {"left_out": left_out}
        return write_splits(splits, Path(out), recipe="reasoning_gym", arguments=arguments, notes=notes, card=CARD)


def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise DataError(f"{error}: the recipe reasoning_gym needs `pip install 'sapo-vl[logic]'`") from error


def _problems(
    gym: Any, names: list[str], split: str, rows: int, seed: int, seen: Seen, judge: Judge, left_out: dict[str, int]
) -> Iterator[Problem]:
    for place, name in enumerate(names):
        wanted = rows // len(names) + (place < rows % len(names))
        start = int(np.random.default_rng([seed, place, split == "test"]).integers(2**31 - TRIES * wanted - 1))
        entries = gym.create_dataset(name, size=TRIES * wanted, seed=start)
        made = 0
        for index in range(TRIES * wanted):
            if made == wanted:
                break
            problem = _problem(entries[index], f"{name}-{split}-{index}", name)
            (reason, _) = gold_reasons(judge, [problem])[0]
            if reason := seen.reason(problem, split) or reason:
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            made += 1
            yield problem
        if made < wanted:
            raise DataError(f"{name} gave {made} different puzzles of the {wanted} that split {split!r} asks for")


def _problem(entry: Entry, id: str, name: str) -> Problem:
    question, instruction, answer, reward = READERS[name](entry)
    return Problem(id=id, task=name, messages=turn(question, 0, instruction), answer=answer, reward=reward)
