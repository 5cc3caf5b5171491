"""What would a full run meet? A sample of a set's rows, read and judged as a build or an evaluation would, in a screen.

The set is opened as it will be; its columns and their types, the number of its rows and its splits are shown beside
what is expected. Bad rows, rows left out, damaged pictures and golds that their own rule rejects are counted by reason.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_recipes.building import BATCH, HubSet, Part, Rules, look_through, split_rows
from data_recipes.filters import printable
from data_recipes.golds import UNCHECKED, Judge, gold_reasons
from data_recipes.reading import LeftOut
from sapo_vl.data.images import ImageRefused
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import Source, open_source
from sapo_vl.types import Problem

SAMPLE = 200  # rows of a split that are looked at
NOT_ASKED = "not asked"
NO_GOLD = "no gold"  # why benchmarks leave out a row whose gold is blanked
BLANKED = ("", "?", "___")  # what splits without answers have in their place
BLANKS = "none, or " + ", ".join(map(repr, BLANKED))
KEPT_BACK = "a split whose answers are kept back has such; another split or source is needed"
TYPED = 20  # of these, rows whose types are shown
EXAMPLES = 5  # rows of all faults together that are named
WIDTH = 110  # characters of a line
# Rows of the splits, by recipe, from the cards of the sets and loaders of others: (train, test), 0 = unknown or drawn.
ROWS = {
    "geometry3k": (2101, 601),
    "clevr_count": (70000, 0),
    "virl39k": (38870, 0),
    "mmk12": (15616, 2000),
    "open_r1_multimodal": (7690, 0),
    "dapo_math": (1791700, 0),
    "code_problems": (35735, 0),
}

ReadProblems = Callable[[int], Sequence[Problem]]
"""Index -> the problems of a row. Raises ValueError if it is broken, LeftOut if it is not to be asked."""


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found in one split."""

    title: str
    where: str
    rows: int
    expected: int  # 0 = unknown
    looked: int
    columns: Mapping[str, str]  # name -> types of its cells
    good: int = 0  # problems that would be asked or trained on
    bad: Counter[str] = field(default_factory=Counter)  # rows that cannot be read, by reason
    left_out: Counter[str] = field(default_factory=Counter)
    golds: Counter[str] = field(default_factory=Counter)  # "number: score 1", "math: gold unparsable", ...
    examples: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)  # why a full run would not start, or not end
    notes: list[str] = field(default_factory=list)

    def example(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(printable(text))

    @property
    def fine(self) -> bool:
        return not self.stops

    def text(self) -> str:
        """In lines."""
        count = f"{self.rows}" if not self.expected else f"{self.rows} ({self.expected} expected)"
        if self.expected and self.rows != self.expected:
            count += "  <- another number"
        facts = [("set", self.where), ("rows", count), ("looked at", f"{self.looked}, evenly spread")]
        facts += [("columns", ", ".join(f"{name} ({kind})" for name, kind in self.columns.items()))]
        facts += [("problems", str(self.good))]
        facts += [(n, _counts(c)) for n, c in (("bad rows", self.bad), ("left out", self.left_out)) if c]
        facts += [("golds", _counts(self.golds) or "none that a rule could be asked about")]
        facts += [("for example" if not i else "", text) for i, text in enumerate(self.examples)]
        facts += [("note", note) for note in self.notes]
        facts += [("STOPS", why) for why in self.stops] or [("verdict", "a full run would start and end")]
        return "\n".join([self.title, *(line for name, text in facts for line in _fact(name, text))])


def stopped(title: str, why: str) -> str:
    """In place of findings, where there are none: the set cannot be opened."""
    return "\n".join([title, *_fact("STOPS", why)])


def _fact(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14) or [f"  {name}"]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))


def spread(total: int, sample: int) -> list[int]:
    """Indices of so many rows, evenly spread; of all for 0."""
    return [i * total // sample for i in range(sample)] if 0 < sample < total else list(range(total))


def examine_items(
    title: str, source: Source, read: ReadProblems, *, expected: int, sample: int, judge: Judge, max_bad_share: float
) -> Findings:
    """The rows of a benchmark: which of them become problems, and what their rules say to their golds.

    Args:
        max_bad_share: more bad rows, or golds that do not score 1, than this are worth a note.
    """
    indices = spread(len(source), sample)
    found = _begin(title, source, indices, expected)
    ids: set[str] = set()
    problems: list[Problem] = []
    for index in indices:
        try:
            of_row = read(index)
        except LeftOut as reason:
            found.left_out[str(reason)] += 1
            continue
        except ValueError as error:
            found.bad[f"image {error.kind}" if isinstance(error, ImageRefused) else "malformed row"] += 1
            found.example(f"row {index}: {error}")
            continue
        if twice := [p.id for p in of_row if p.id in ids]:
            found.bad["id twice"] += 1
            found.example(f"row {index}: the id {twice[0]!r} was there before")
            continue
        ids |= {p.id for p in of_row}
        found.good += len(of_row)
        problems += of_row
        if len(problems) >= BATCH:
            _judge(found, problems, judge)
            problems = []
    _judge(found, problems, judge)
    if blanked := found.left_out[NO_GOLD]:
        found.notes.append(f"{blanked} of {found.looked} rows have a blank gold ({BLANKS}): {KEPT_BACK}")
    if not found.good:
        found.stops.append("none of these rows can be asked")
    wrong = sum(n for what, n in found.golds.items() if not what.endswith((": score 1", UNCHECKED, NOT_ASKED)))
    for what, count, of in (("rows are bad", found.bad.total(), found.looked), ("golds fail", wrong, found.good)):
        if of and count > max_bad_share * of:
            found.notes.append(f"{100 * count / of:.1f}% of the {what}: look at them before you believe a figure")
    return found


def whole_file(source: str) -> list[str]:
    """What a note says of a source that is one file: no split is looked for in it. [] for other sources."""
    return [f"{source} is one file: all its rows are read, whatever the split"] if Path(source).is_file() else []


def _judge(found: Findings, problems: Sequence[Problem], judge: Judge) -> None:
    """Counts what the rules of the problems say to their golds."""
    by_rule: dict[str, list[Problem]] = {}
    for problem in problems:
        by_rule.setdefault(problem.reward, []).append(problem)
    for rule, batch in by_rule.items():
        try:
            reasons = gold_reasons(judge, batch)
        except DataError as error:
            found.golds[f"{rule}: {NOT_ASKED}"] += len(batch)
            if not any(repr(rule) in note for note in found.notes):
                found.notes.append(f"the rule {rule!r} cannot be asked without settings: {error}")
            continue
        for problem, (reason, detail) in zip(batch, reasons, strict=True):
            found.golds[f"{rule}: {reason or 'score 1'}"] += 1
            if reason and reason != UNCHECKED:
                found.example(f"{problem.id}: {reason}, {problem.answer[:60]!r}: {detail}")


def examine_set(
    data: HubSet, source: str, config: str, train_from: str, test_from: str, *, sample: int, rules: Rules, workers: int
) -> list[Findings]:
    """The splits that a recipe would write, from a sample of the rows of each. Raises DataError."""

    def opened(split: str) -> Source:
        return open_source(source, split, config=config or None, columns=data.columns, layout=data.layout)

    whole = split_rows(opened, source, train_from, test_from, test_rows=1, max_rows=0, seed=0)
    if whole["test"].rows is whole["train"].rows:  # drawn: the test split is of the same rows
        whole = {"train": Part(rows=whole["train"].rows, indices=range(len(whole["train"].rows)), origin=train_from)}
    parts = {
        split: Part(rows=part.rows, indices=spread(len(part.rows), sample), origin=part.origin)
        for split, part in whole.items()
    }
    notes = look_through(data.name, parts, data.read, rules, workers)
    own = (source, config) == (data.card.source, data.config)
    train, test = ROWS.get(data.name, (0, 0)) if own else (0, 0)
    findings = []
    for split, part in parts.items():
        expected = test if split == "test" else train
        found = _begin(f"recipe {data.name}, {split}", part.rows, part.indices, expected, data.columns)
        found.notes += [f"{note}, and a build draws its test rows from them" for note in whole_file(source)]
        _take_notes(found, notes[split], rules)
        findings.append(found)
    return findings


def _take_notes(found: Findings, notes: Mapping[str, Any], rules: Rules) -> None:
    """What `look_through` counted."""
    left_out: dict[str, int] = notes["left_out"]
    bad = {reason for reason in left_out if reason.startswith("image ") or reason == "malformed row"}
    found.bad.update({reason: left_out[reason] for reason in bad})
    found.left_out.update({reason: n for reason, n in left_out.items() if reason not in bad})
    found.good = notes["kept"]
    checked = found.good - notes["golds_unchecked"]
    found.golds.update({"score 1": checked, UNCHECKED: notes["golds_unchecked"]} if rules.check_golds else {})
    found.golds += Counter()  # without the zeros
    for reason, ids in notes["first_left_out"].items():
        if reason in bad or reason.startswith("gold "):
            found.example(f"{ids[0]} ({reason})")
    if notes["bad_rows"] > rules.max_bad_share * found.looked:
        share = f"{notes['bad_rows']} of {found.looked} rows are bad, over max_bad_share={rules.max_bad_share}"
        found.stops.append(f"{share}; repair the data or raise the limit")
    if not found.good:
        found.stops.append("nothing is left of these rows")


def _begin(title: str, source: Source, indices: Sequence[int], expected: int, needed: Sequence[str] = ()) -> Findings:
    """Findings of a split whose rows have not been looked at, but for the types of the cells of some, and whether those
    of a column that is needed are all blank."""
    kinds: dict[str, Counter[str]] = {}
    blank: Counter[str] = Counter()
    for place in spread(len(indices), TYPED):
        try:
            cells = source.row(indices[place])
        except ValueError:
            continue  # it is counted where the rows are read
        for name, cell in cells.items():
            kinds.setdefault(name, Counter())[kind_of(cell)] += 1
            blank[name] += cell is None or (isinstance(cell, str) and cell.strip() in BLANKED)
    empty = [name for name in needed if name in kinds and blank[name] == kinds[name].total()]
    return Findings(
        title=title,
        where=source.where,
        rows=len(source),
        expected=expected,
        looked=len(indices),
        columns={name: " or ".join(kind for kind, _ in of.most_common()) for name, of in kinds.items()},
        notes=[f"{name!r} is blank ({BLANKS}) in all {blank[name]} rows seen here: {KEPT_BACK}" for name in empty],
    )


def kind_of(cell: Any) -> str:
    """The type of a cell in a word or three."""
    if cell is None:
        return "null"
    if isinstance(cell, Mapping):
        return "image" if "bytes" in cell else "object"
    if isinstance(cell, list | tuple):
        inside = sorted({kind_of(item) for item in cell})
        return f"list of {' or '.join(inside)}" if inside else "empty list"
    names = {bool: "yes or no", str: "text", int: "whole number", float: "number", bytes: "bytes"}
    return names.get(type(cell), type(cell).__name__)
