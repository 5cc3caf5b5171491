"""What the recipes of other people's data share: rows are read, judged and counted one by one, then written.

A recipe is a HubSet, whose reader turns one row into a problem, and `build = recipe(SET)`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.filters import Seen, answer_in_question, check_writable, printable, special_token, too_long
from data_recipes.golds import UNCHECKED, Judge, gold_reasons
from data_recipes.reading import LeftOut, ReadRow, Row
from sapo_vl.data.images import ImageRefused
from sapo_vl.data.problem_set import BadRow, BadRows, DataError
from sapo_vl.data.source import Layout, Source, open_source
from sapo_vl.data.writer import Card, write_splits
from sapo_vl.types import Problem

BATCH = 64  # problems whose golds are checked at a time
BATCH_PIXELS = 100_000_000  # of their pictures, which are in memory until then, 3 bytes a pixel
FIRST_SHOWN = 5  # ids kept of each reason
MAX_TOKENS = 2048  # model.max_prompt_tokens of the shipped configs
MAX_BAD_SHARE = 0.01
UNSUITED = ("image aspect ratio",)  # of whole pictures that no model here can be shown: they do not stop a build


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """A data set as its authors publish it."""

    name: str  # of the recipe, its task and its ids
    card: Card  # card.source is opened if no other source is given
    columns: tuple[str, ...]  # that a source must have
    read: ReadRow
    train: str = "train"  # split of the source
    test: str = ""  # split of the source that becomes our test split; "" = rows drawn from `train`
    config: str = ""  # configuration of the hub set
    layout: Layout | None = None  # which files hold the rows, where the id alone does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of the source that may become one of our splits."""

    rows: Source
    indices: Sequence[int]
    origin: str  # split of the source; stands in the ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is left out, and when a build stops."""

    max_tokens: int = MAX_TOKENS  # of a prompt, estimated (data_recipes.filters); 0 = any
    check_golds: bool = True  # leave out problems whose own reward does not give their gold 1
    max_bad_share: float = MAX_BAD_SHARE  # more rows of a split than this that cannot be read stop the build


def recipe(data: HubSet) -> Callable[..., dict[str, Any]]:
    """The build function of a set."""

    def build(
        out: Path,
        *,
        seed: int = 0,
        source: str = data.card.source,
        config: str = data.config,
        train_from: str = data.train,
        test_from: str = data.test,
        test_rows: int = 200,
        max_rows: int = 0,
        max_tokens: int = MAX_TOKENS,
        check_golds: bool = True,
        max_bad_share: float = MAX_BAD_SHARE,
    ) -> dict[str, Any]:
        """Writes the data set folder `out` with the splits test and train, and returns its manifest.

        seed: which rows are drawn, where test_rows or max_rows draw any.
        source: a hub id, a local copy of it, or one file (sapo_vl.data.source.open_source); config is that of a hub set
            that has several, or a subfolder of a local one.
        train_from, test_from: splits of the source. With test_from "", or a source that is one file, test_rows rows of
            train_from become the test split.
        max_rows: at most so many rows are taken for training; 0 = all.
        max_tokens, check_golds, max_bad_share: see Rules.

        Raises DataError if the source lacks splits or columns, or no row is left of a split.
        """
        arguments = {
            "seed": seed, "source": source, "config": config, "train_from": train_from, "test_from": test_from,
            "test_rows": test_rows, "max_rows": max_rows, "max_tokens": max_tokens, "check_golds": check_golds,
            "max_bad_share": max_bad_share,
        }  # fmt: skip
        rules = Rules(max_tokens=max_tokens, check_golds=check_golds, max_bad_share=max_bad_share)

        def opened(split: str) -> Source:
            return open_source(source, split, config=config or None, columns=data.columns, layout=data.layout)

        parts = split_rows(opened, source, train_from, test_from, test_rows, max_rows, seed)
        return write_set(out, data.name, data.card, parts, data.read, rules, arguments)

    return build


def split_rows(
    opened: Callable[[str], Source],
    source: str,
    train_from: str,
    test_from: str,
    test_rows: int,
    max_rows: int,
    seed: int,
) -> dict[str, Part]:
    """The rows of test and train; test comes first, so that training rows that repeat it are found."""
    rows = opened(train_from)
    drawn = np.random.default_rng(seed).permutation(len(rows))
    if test_from and not Path(source).is_file():
        test_source = opened(test_from)
        test = Part(rows=test_source, indices=range(len(test_source)), origin=test_from)
    else:
        if not 0 < test_rows < len(rows):
            raise DataError(f"test_rows={test_rows}: {rows.where} has {len(rows)} rows; give 1 to {len(rows) - 1}")
        test = Part(rows=rows, indices=sorted(drawn[:test_rows].tolist()), origin=train_from)
        drawn = drawn[test_rows:]
    train = sorted(drawn[: max_rows or None].tolist())
    return {"test": test, "train": Part(rows=rows, indices=train, origin=train_from)}


def write_set(
    out: Path,
    name: str,
    card: Card,
    parts: Mapping[str, Part],
    read: ReadRow,
    rules: Rules,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the problems of `parts`; the manifest's notes say, by split, what was left out and why.

    Raises TooManyBadRows, and DataError if nothing is left of a split.
    """
    notes: dict[str, Any] = {}
    seen = Seen()
    with Judge() as judge:
        splits = {
            split: _problems(name, split, part, read, rules, seen, judge, notes.setdefault(split, {}))
            for split, part in parts.items()
        }
        return write_splits(splits, Path(out), recipe=name, arguments=arguments, notes=notes, card=card)


def look_through(
    name: str, parts: Mapping[str, Part], read: ReadRow, rules: Rules, workers: int
) -> dict[str, dict[str, Any]]:
    """The notes that `write_set` would write in the manifest, by split. Nothing is written, and bad rows stop nothing.

    Raises DataError for a reward that cannot run here.
    """
    notes: dict[str, dict[str, Any]] = {}
    seen, all_of_them = Seen(), replace(rules, max_bad_share=1.0)
    with Judge(workers) as judge:
        for split, part in parts.items():
            here = notes.setdefault(split, {})
            deque(_problems(name, split, part, read, all_of_them, seen, judge, here, empty=True), maxlen=0)
    return notes


def _problems(
    name: str,
    split: str,
    part: Part,
    read: ReadRow,
    rules: Rules,
    seen: Seen,
    judge: Judge,
    notes: dict[str, Any],
    empty: bool = False,
) -> Iterator[Problem]:
    """The problems that are kept; `notes` is filled at their end. Raises DataError if none is, unless `empty`."""
    tally = _Tally(BadRows(rules.max_bad_share, total=len(part.indices)))
    new = _new(name, split, part, read, rules, seen, tally)
    kept = without_image = 0
    for batch in _batches(new):
        for problem in _with_good_golds(batch, judge, tally) if rules.check_golds else batch:
            kept += 1
            without_image += not problem.images
            yield problem
    counts = {"rows": len(part.indices), "kept": kept, "without_image": without_image}
    notes |= {"from": part.origin, **counts, **tally.notes()}
    if not kept and not empty:
        raise DataError(f"nothing is left of split {split!r}: {_counts(tally.left_out) or 'it has no rows'}")


class _Tally:
    """What became of the rows of a split."""

    def __init__(self, bad_rows: BadRows) -> None:
        self.bad_rows = bad_rows
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self.unchecked = 0

    def leave_out(self, reason: str, id: str, detail: str = "") -> None:
        reason = printable(reason)
        self.left_out[reason] += 1
        shown = self.first.setdefault(reason, [])
        if len(shown) < FIRST_SHOWN:
            shown.append(f"{id}: {printable(detail)}" if detail else id)

    def notes(self) -> dict[str, Any]:
        return {
            "left_out": dict(sorted(self.left_out.items())),
            "first_left_out": self.first,
            "bad_rows": self.bad_rows.bad,
            "first_bad_rows": self.bad_rows.first,
            "golds_unchecked": self.unchecked,
        }


def _new(
    name: str, split: str, part: Part, read: ReadRow, rules: Rules, seen: Seen, tally: _Tally
) -> Iterator[Problem]:
    """The problems of rows that can be read, are short enough, do not give themselves away and were not met before."""
    long = too_long(rules.max_tokens)
    for index in part.indices:
        id = f"{name}-{part.origin}-{index}"
        try:
            problem = read(Row(index=index, id=id, cells=part.rows.row(index), image=part.rows.image))
            check_writable(problem)
        except LeftOut as error:
            tally.bad_rows.record(None)
            tally.leave_out(str(error), id)
            continue
        except ValueError as error:
            reason = f"image {error.kind}" if isinstance(error, ImageRefused) else "malformed row"
            tally.leave_out(reason, id, str(error))
            tally.bad_rows.record(None if reason in UNSUITED else BadRow(index, id, printable(f"{reason}: {error}")))
            continue
        tally.bad_rows.record(None)
        if token := special_token(problem):
            tally.leave_out("special token in the text", id, token)
            continue
        given_away = "answer in the question" if answer_in_question(problem) else ""
        if reason := long(problem) or given_away or seen.reason(problem, split):
            tally.leave_out(reason, id)
            continue
        yield problem


def _batches(problems: Iterable[Problem]) -> Iterator[list[Problem]]:
    """`problems` in their order, up to BATCH of them together, fewer once their pictures have BATCH_PIXELS."""
    batch: list[Problem] = []
    pixels = 0
    for problem in problems:
        batch.append(problem)
        pixels += sum(image.width * image.height for image in problem.images)
        if len(batch) >= BATCH or pixels >= BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _with_good_golds(batch: Sequence[Problem], judge: Judge, tally: _Tally) -> Iterable[Problem]:
    for problem, (reason, detail) in zip(batch, gold_reasons(judge, batch), strict=True):
        if reason and reason != UNCHECKED:
            tally.leave_out(reason, problem.id, f"{problem.answer[:60]!r}: {detail}")
            continue
        tally.unchecked += reason == UNCHECKED
        yield problem


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


def summary(manifest: Mapping[str, Any]) -> str:
    """The manifest of a set in lines: rows by split, and what was left out."""
    lines = []
    for split, tasks in manifest["rows"].items():
        notes = manifest["notes"].get(split, {})
        notes = notes if isinstance(notes, Mapping) else {}
        without = notes.get("without_image", 0)
        line = f"{split}: {sum(tasks.values())} rows" + (f", {without} without a picture" if without else "")
        left_out = _counts(notes.get("left_out", {}))
        lines.append(line + (f"; left out: {left_out}" if left_out else ""))
    return "\n".join(lines)
