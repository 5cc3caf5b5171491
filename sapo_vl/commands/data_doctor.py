"""`sapo-vl data doctor`: what would a full run on this set meet? The first thing to run where there is a network."""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add

if TYPE_CHECKING:
    from data_recipes.building import HubSet
    from data_recipes.doctor import Findings
    from sapo_vl.benchmarks import Benchmark
    from sapo_vl.types import Problem

MAX_BAD_SHARE = 0.01
KEYS = ("source", "split", "config", "train_from", "test_from", "max_bad_share")
ROWS = {  # of benchmarks, from the sets' cards and loaders of others
    "aime25": 30,
    "aime26": 30,
    "babyvision": 388,
    "beyondaime": 100,
    "chartqa": 2500,
    "charxiv": 1000,
    "countbench": 491,
    "dynamath": 5010,
    "emma": 2788,
    "erqa": 400,
    "geometry3k": 601,
    "hallusionbench": 951,
    "hmmt25": 30,
    "livecodebench": 1055,
    "logicvista": 448,
    "mathverse": 3940,
    "mathvision": 3040,
    "mathvision_testmini": 304,
    "mathvista": 1000,
    "mmmu": 900,
    "mmmu_pro_standard": 1730,
    "mmmu_pro_standard4": 1730,
    "mmmu_pro_vision": 1730,
    "mmstar": 1500,
    "neulab_visualpuzzles": 1168,
    "realworldqa": 765,
    "refcoco_testA": 1975,
    "refcoco_testB": 1810,
    "visulogic": 1000,
    "wemath": 1740,
    "zebralogic": 1000,
    "zerobench": 100,
    "zerobench_subquestions": 334,
}


def add_parser(add: Add) -> None:
    doctor = add("doctor", _doctor, "Would a recipe or a benchmark run on this set? A sample is read.", pairs=True)
    doctor.add_argument("name", help="a recipe, a benchmark, or one of yours: my_bench.py:NAME, my_recipe.py:SET")
    doctor.add_argument("--sample", type=int, default=200, help="rows of a split that are read, evenly spread; 0 = all")
    doctor.add_argument("--workers", type=int, default=2)


def _doctor(args: argparse.Namespace) -> int:
    from data_recipes.doctor import stopped
    from sapo_vl.data.problem_set import DataError

    given = _pairs(args.pairs)
    if args.sample < 0:
        raise UsageError(f"--sample must be 0 or more, got {args.sample}")
    fine = True
    for title, look in _parts(args.name, given, args.sample, args.workers):
        try:
            findings = look()
        except DataError as error:
            print(stopped(title, str(error)) + "\n")
            fine = False
            continue
        for found in findings:
            print(found.text() + "\n")
            fine = fine and found.fine
    return 0 if fine else 1


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Raises UsageError for a key that there is not, and for a share that is none."""
    given: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in KEYS:
            raise UsageError(f"data doctor: {pair!r}; its arguments are {', '.join(KEYS)}, written key=value")
        if key == "max_bad_share" and not _is_share(value):
            raise UsageError(f"data doctor: max_bad_share={value!r} must be a number from 0 to 1")
        given[key] = value
    return given


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _parts(
    name: str, given: Mapping[str, str], sample: int, workers: int
) -> Iterator[tuple[str, Callable[[], Sequence[Findings]]]]:
    """(title, what looks) of all that has the name: a recipe and a benchmark may share one. Raises UsageError."""
    from data_recipes import SETS
    from data_recipes.building import HubSet
    from data_recipes.custom import load_file
    from sapo_vl.benchmarks import BENCHMARKS, Benchmark

    found: list[HubSet | Benchmark | None] = [SETS.get(name), BENCHMARKS.get(name)]
    if ".py:" in name:
        module, attribute = load_file(name)
        yours = vars(module).get(attribute)
        found = [yours] if isinstance(yours, HubSet | Benchmark) else []
    if not any(found):
        near = _nearest(name, [*SETS, *BENCHMARKS])
        meant = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise UsageError(
            f"no recipe or benchmark {name!r} that reads rows of others{meant} recipes: {', '.join(SETS)}; "
            f"benchmarks: {', '.join(BENCHMARKS)}; yours: my_recipe.py:SET (a HubSet), my_bench.py:NAME (a Benchmark)"
        )
    for data in found:
        if isinstance(data, HubSet):
            yield f"recipe {data.name}", functools.partial(_of_recipe, data, given, sample, workers)
        elif isinstance(data, Benchmark):
            yield f"benchmark {data.name}", functools.partial(_of_benchmark, data, given, sample, workers)


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """Up to three of the known names that `name` may stand for: those that differ in case and signs, hold it, are held
    by it ("MMMU-Pro", "mathvision_test"), or are spelt like it."""
    folded = {each: _letters(each) for each in dict.fromkeys(known)}
    word = _letters(name.rpartition("/")[2])  # an id of the hub has its owner before it
    if not word:
        return []
    same = [each for each, letters in folded.items() if letters == word]
    inside = [each for each, letters in folded.items() if letters.startswith(word) or word.startswith(letters)]
    inside.sort(key=lambda each: (not folded[each].startswith(word), abs(len(folded[each]) - len(word))))
    alike = difflib.get_close_matches(word, folded.values(), n=3, cutoff=0.6)
    spelt = [each for letters in alike for each in folded if folded[each] == letters]
    return list(dict.fromkeys([*same, *inside, *spelt]))[:3]


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _of_recipe(data: HubSet, given: Mapping[str, str], sample: int, workers: int) -> Sequence[Findings]:
    from data_recipes.arguments import recipe_arguments
    from data_recipes.building import Rules, recipe
    from data_recipes.doctor import examine_set

    renamed = {"train_from" if key == "split" else key: value for key, value in given.items()}
    arguments = recipe_arguments(recipe(data), [f"{key}={value}" for key, value in renamed.items()], data.name)
    return examine_set(
        data,
        arguments.get("source", data.card.source),
        arguments.get("config", data.config),
        arguments.get("train_from", data.train),
        arguments.get("test_from", data.test),
        sample=sample,
        rules=Rules(max_bad_share=arguments.get("max_bad_share", MAX_BAD_SHARE)),
        workers=workers,
    )


def _of_benchmark(benchmark: Benchmark, given: Mapping[str, str], sample: int, workers: int) -> Sequence[Findings]:
    from data_recipes.doctor import examine_items, whole_file
    from data_recipes.golds import TIMEOUT_S, Judge
    from data_recipes.reading import LeftOut
    from sapo_vl.benchmarks import LeftOut as NotAsked
    from sapo_vl.benchmarks.opening import open_benchmark
    from sapo_vl.evaluation.items import read_problems

    source = open_benchmark(benchmark, *(given.get(key, "") for key in ("source", "split", "config")))

    def read(index: int) -> list[Problem]:
        try:
            return read_problems(benchmark, source, index)
        except NotAsked as reason:
            raise LeftOut(str(reason)) from reason

    own = all(given.get(key, "") in ("", getattr(benchmark, key)) for key in ("source", "split", "config"))
    with Judge(workers, max(TIMEOUT_S, benchmark.timeout_s), benchmark.params) as judge:
        found = examine_items(
            f"benchmark {benchmark.name}",
            source,
            read,
            expected=(benchmark.rows or ROWS.get(benchmark.name, 0)) if own else 0,
            sample=sample,
            judge=judge,
            max_bad_share=float(given.get("max_bad_share", MAX_BAD_SHARE)),
        )
    found.notes += whole_file(given.get("source", ""))
    return [found]
