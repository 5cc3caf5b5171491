"""`sapo-vl data ...`: checks of data set folders, and the fetching of pictures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data_recipes.arguments import UsageError
from sapo_vl.commands import data_doctor
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_file, check_folder

if TYPE_CHECKING:
    from sapo_vl.types import Problem


def add_parsers(add: Add) -> None:
    """The sub-commands; `add(name, run, text, pairs)` makes a parser that calls `run`."""
    check = add("check", _check, "Do the golds of a data set score 1, and empty and foreign answers not?")
    check.add_argument("folder", type=Path)
    check.add_argument("--split", default="train")
    check.add_argument("--workers", type=int, default=2)

    data_doctor.add_parser(add)

    against = add("contamination", _contamination, "Which rows repeat an item of a benchmark?")
    against.add_argument("folder", type=Path)
    help_against = "benchmarks, with a local copy if need be; or any name with a data set folder"
    against.add_argument("--against", nargs="+", required=True, metavar="NAME[=SOURCE]", help=help_against)
    against.add_argument("--split", default="train")
    against.add_argument("--out", type=Path, help="write the set without these rows (default: list them)")
    against.add_argument("--list", type=Path, help="write all of them as JSON lines")

    difficulty = add("difficulty", _difficulty, "Pass rates of a model; rows that teach it nothing go.", pairs=True)
    difficulty.add_argument("folder", type=Path)
    difficulty.add_argument("--out", type=Path, required=True)
    difficulty.add_argument("--config", type=Path)
    difficulty.add_argument("--split", default="train")
    difficulty.add_argument("--samples", type=int, default=8)
    difficulty.add_argument("--above", type=float, default=0.0, help="pass rates up to this are too hard")
    difficulty.add_argument("--up-to", type=float, default=0.9, help="pass rates above this are too easy")
    difficulty.add_argument("--blank", action="store_true", help="with blank images: what is solved without looking")

    images = add("fetch-images", _fetch, "Turn rows with URLs of images into rows with files.")
    images.add_argument("source", help="a file of rows, a folder, or a hub id")
    images.add_argument("--out", type=Path, required=True)
    images.add_argument("--hosts", nargs="+", required=True, help="the only hosts that are asked")
    images.add_argument("--column", default="image")
    images.add_argument("--split", default="train")
    images.add_argument("--allow-private", action="store_true", help="private addresses and http: your own mirror")


def _check(args: argparse.Namespace) -> int:
    from data_recipes.check import check_set, table
    from data_recipes.golds import Judge
    from sapo_vl.data.problem_set import ProblemSet

    with Judge(args.workers) as judge:
        checks = check_set(ProblemSet(args.folder, args.split), judge)
    print(table(checks))
    return 0 if all(check.fine for check in checks.values()) else 1


def _contamination(args: argparse.Namespace) -> int:
    from data_recipes.contamination import Reference, contaminated, report
    from sapo_vl.data.problem_set import ProblemSet
    from sapo_vl.data.writer import copy_set

    if args.out is not None:
        check_folder(args.out, new=True)
    check_file(args.list, "--list")
    problems = ProblemSet(args.folder, args.split)
    references = [Reference(text.partition("=")[0], _items(text)) for text in args.against]
    hits = contaminated(problems, references)
    print(report(hits, references, len(problems)))
    if args.list is not None:
        lines = [json.dumps(dataclasses.asdict(hit), ensure_ascii=False) + "\n" for hit in hits.values()]
        args.list.parent.mkdir(parents=True, exist_ok=True)
        args.list.write_text("".join(lines), encoding="utf-8")
    if args.out is None:
        return 1 if hits else 0
    if len(hits) == len(problems):
        raise UsageError(f"every row of split {args.split!r} repeats a benchmark: nothing to write")
    copy_set(
        args.folder,
        args.out,
        {args.split: lambda row, problem: None if row in hits else problem},
        recipe="contamination",
        arguments={"against": args.against, "split": args.split},
        notes={args.split: {"left_out": {f"repeats {r.name}": _count(hits.values(), r.name) for r in references}}},
    )
    print(f"wrote {args.out}")
    return 0


def _count(hits: object, name: str) -> int:
    return sum(hit.benchmark == name for hit in hits)  # type: ignore[attr-defined]


def _items(text: str) -> Iterator[Problem]:
    """The items of "NAME" or "NAME=SOURCE"; SOURCE may be a data set folder of ours, whose test split is meant."""
    from sapo_vl.benchmarks import BENCHMARKS, RENAMED, Row
    from sapo_vl.benchmarks.opening import open_benchmark
    from sapo_vl.data.problem_set import BadRow, ProblemSet

    name, _, given = text.partition("=")
    skipped: list[str] = []
    if name not in BENCHMARKS:
        if name in RENAMED:
            raise UsageError(f"no benchmark {name!r} any more: {RENAMED[name]}")
        if not given:
            raise UsageError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}, or write NAME=FOLDER")
        problems = ProblemSet(given, "test")
        for index in range(len(problems)):
            try:
                yield problems.get(index)
            except BadRow as bad:
                skipped.append(str(bad))
        _say_skipped(name, skipped, len(problems))
        return
    benchmark = BENCHMARKS[name]
    rows = open_benchmark(benchmark, given)
    for index, cells in rows.rows():
        try:
            if isinstance(cells, ValueError):
                raise cells
            yield from benchmark.problems(Row(index=index, cells=cells, image=rows.image))
        except ValueError as error:
            skipped.append(f"row {index}: {error}")
    _say_skipped(name, skipped, len(rows))


def _say_skipped(name: str, skipped: list[str], total: int) -> None:
    if skipped:
        print(f"{name}: {len(skipped)} of {total} rows cannot be compared, the first: {skipped[0]}")


def _difficulty(args: argparse.Namespace) -> None:
    from sapo_vl.config import load_config
    from sapo_vl.evaluation.difficulty import DifficultyRule, measure_set
    from sapo_vl.lengths import check_lengths, fitted
    from sapo_vl.model.chat import check_tokenizer, load_processor
    from sapo_vl.model.folder import check_layout_for_vllm, examine

    check_folder(args.out, new="RANK" not in os.environ)
    config = load_config(args.config, args.pairs)
    if not config.model.path:
        raise UsageError("model.path is empty; give the model that the pass rates are of")
    if args.samples < 1 or not 0 <= args.above < args.up_to <= 1:
        raise UsageError("--samples must be 1 or more, and 0 <= --above < --up-to <= 1")
    folder = examine(config.model.path, config.model.revision)
    check_tokenizer(load_processor(config.model.path, config.model.revision), folder)
    config = fitted(config)
    check_lengths(config)
    if config.rollout.engine != "transformers":
        check_layout_for_vllm(folder)
    if config.rollout.engine == "vllm":
        try:
            config.rollout.vllm.check_ranks(int(os.environ.get("WORLD_SIZE", "1")))
        except ValueError as error:
            raise UsageError(f"{error}; torchrun --nproc_per_node N -m sapo_vl data difficulty ... starts N") from error
    rule = DifficultyRule(
        split=args.split, samples=args.samples, above=args.above, up_to=args.up_to, blank=args.blank
    )  # fmt: skip
    try:
        counts = measure_set(config, config.zero, args.folder, args.out, rule)
    except FileExistsError as error:
        raise UsageError(str(error)) from error
    if counts is not None:
        print("\n".join(f"{count:7} {what}" for what, count in sorted(counts.items())))
        print(f"wrote {args.out}")


def _fetch(args: argparse.Namespace) -> None:
    from data_recipes.fetch_images import fetch_images
    from data_recipes.fetching import Rules

    check_folder(args.out, new=True)
    rules = Rules(hosts=frozenset(args.hosts), allow_private=args.allow_private)
    try:
        fetched = fetch_images(args.source, args.split, args.column, args.out, rules)
    except FileExistsError as error:
        raise UsageError(str(error)) from error
    print(fetched.text())
    print(f"wrote {args.out}")
