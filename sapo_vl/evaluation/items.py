"""The items of a benchmark: looked through once without keeping a picture, read again when they are asked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sapo_vl.benchmarks import Benchmark, LeftOut, Row
from sapo_vl.benchmarks.opening import open_benchmark
from sapo_vl.data.images import ImageRefused
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import Source
from sapo_vl.distributed import World
from sapo_vl.evaluation.config import BenchmarkConfig
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.types import Problem

EXAMPLES = 5  # bad rows that are named in full


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item, without what is large."""

    row: int  # in the split
    number: int  # among the problems of its row
    id: str
    prompt: str  # SHA-256 of the chat turns and the images, see `prompt_hash`
    truth: str  # SHA-256 of the gold and of what else the rule is given
    task: str
    reward: str  # as the problem names it, "" if it leaves that to the config
    has_images: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """What a benchmark has to ask, and what is wrong with the rest."""

    benchmark: Benchmark
    source: Source
    items: tuple[Item, ...]  # in the order of the rows
    bad: Mapping[str, int]  # rows by what is wrong with them: "row", "image: damaged", ...
    left_out: Mapping[str, int]  # rows that the benchmark leaves out, by its reason
    examples: tuple[str, ...]  # the first bad rows, in words

    @property
    def rules(self) -> set[tuple[str, str]]:
        """(task, reward) of the items, as `Scorer.check` wants them."""
        return {(item.task, item.reward) for item in self.items}

    def problem(self, row: int, number: int) -> Problem:
        """The problem of an item, its images decoded. Raises ValueError if it cannot be read any more."""
        return read_problems(self.benchmark, self.source, row)[number]


@dataclass(frozen=True, slots=True)
class _Looked:
    """One row, looked at: its items, or why it has none."""

    row: int
    items: tuple[Item, ...] = ()
    left_out: str = ""
    bad: str = ""  # the kind of fault
    detail: str = ""


def open_items_source(benchmark: Benchmark, given: BenchmarkConfig) -> Source:
    """Opens the data of `benchmark`, from where the config says if it does. Raises DataError."""
    return open_benchmark(benchmark, given.source, given.split, given.config)


def load_items(benchmark: Benchmark, given: BenchmarkConfig, limit: int, world: World) -> Items:
    """Looks through the rows, each rank through its share; the same result on all of them.

    Args:
        limit: at most so many items, from rows spread evenly over the split; 0 = all.

    Raises DataError if the source cannot be opened or nothing in it can be asked.
    """
    source = open_items_source(benchmark, given)
    total = len(source)
    rows = [i * total // limit for i in range(limit)] if 0 < limit < total else list(range(total))
    mine = [_look(benchmark, source, row) for row in rows[world.rank :: world.size]]
    looked = sorted((x for part in world.gather(mine) for x in part), key=lambda x: x.row)
    items: dict[str, Item] = {}
    bad: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    examples: list[str] = []
    for x in looked:
        twice = next((item.id for item in x.items if item.id in items), None)
        kind, detail = ("id twice", f"the id {twice!r} is row {items[twice].row}'s") if twice else (x.bad, x.detail)
        if kind:
            bad[kind] += 1
            examples.append(f"row {x.row}: {detail}")
        elif x.left_out:
            left_out[x.left_out] += 1
        else:
            items |= {item.id: item for item in x.items}
    if not items:
        reasons = "\n  ".join([*examples[:EXAMPLES], *(f"{n} rows left out: {why}" for why, n in left_out.items())])
        raise DataError(f"benchmark {benchmark.name}: none of {total} rows of {source.where} can be asked\n  {reasons}")
    return Items(
        benchmark=benchmark,
        source=source,
        items=tuple(items.values())[: limit or None],
        bad=dict(sorted(bad.items())),
        left_out=dict(sorted(left_out.items())),
        examples=tuple(examples[:EXAMPLES]),
    )


def read_problems(benchmark: Benchmark, source: Source, row: int) -> list[Problem]:
    """The problems of a row. Raises ValueError if it is broken, LeftOut if it is not to be asked.

    `meta` has been through JSON, so that the rule is given the same now and when saved responses are scored again.
    """
    cells = source.row(row)
    if missing := [name for name in benchmark.columns if name not in cells]:
        raise ValueError(f"it lacks the columns {missing}")
    problems = list(benchmark.problems(Row(index=row, cells=cells, image=source.image)))
    return [dataclasses.replace(p, meta=_plain_meta(benchmark, p)) for p in problems]


def prompt_hash(problem: Problem) -> str:
    """SHA-256 of the chat turns, and of size and RGB bytes of every image."""
    digest = hashlib.sha256(json.dumps(list(problem.messages), sort_keys=True).encode())
    for image in problem.images:
        digest.update(f"\0{image.width}x{image.height}:".encode())
        digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def _plain_meta(benchmark: Benchmark, problem: Problem) -> Any:
    try:
        return json.loads(json.dumps(dict(problem.meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"benchmark {benchmark.name}, item {problem.id}: meta must be JSON ({error})") from error


def _look(benchmark: Benchmark, source: Source, row: int) -> _Looked:
    try:
        problems = read_problems(benchmark, source, row)
    except EvaluationError:
        raise
    except LeftOut as reason:
        return _Looked(row, left_out=str(reason))
    except ImageRefused as error:
        return _Looked(row, bad=f"image: {error.kind}", detail=str(error))
    except ValueError as error:
        return _Looked(row, bad="row", detail=str(error))
    return _Looked(row, items=tuple(_item(row, number, p) for number, p in enumerate(problems)))


def _item(row: int, number: int, problem: Problem) -> Item:
    truth = json.dumps([problem.answer, dict(problem.meta)], sort_keys=True)
    return Item(
        row=row,
        number=number,
        id=problem.id,
        prompt=prompt_hash(problem),
        truth=hashlib.sha256(truth.encode()).hexdigest(),
        task=problem.task,
        reward=problem.reward,
        has_images=bool(problem.images),
    )
