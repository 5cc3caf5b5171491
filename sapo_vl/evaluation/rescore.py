"""Scoring saved responses again with the present rules: no model, the same worker processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sapo_vl.benchmarks import BENCHMARKS, Benchmark
from sapo_vl.benchmarks.opening import open_benchmark
from sapo_vl.data.problem_set import blank_twin
from sapo_vl.evaluation.config import Rule
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.harness import rules_of, saved_params, used_rules, write_harness
from sapo_vl.evaluation.harness_file import HARNESS_FILE, hash_of, read_harness
from sapo_vl.evaluation.items import prompt_hash, read_problems
from sapo_vl.evaluation.records import (
    BLANK,
    RECORDS,
    SUMMARY,
    Record,
    RecordFile,
    check_whole,
    read_records,
    responses_of,
)
from sapo_vl.evaluation.rules import OFFICIAL, OURS, Judged, Judges
from sapo_vl.evaluation.summary import summarise_folder
from sapo_vl.evaluation.table import RULE_NAMES, differing
from sapo_vl.record.run_log import write_json
from sapo_vl.scoring.judging import JUDGE
from sapo_vl.scoring.scorer import ScoringConfig
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup

RESCORED = "rescored"  # folder inside that of the benchmark
PART = "rescored.part"  # in its place until all is written
BATCH = 64  # items at a time


@dataclass(frozen=True, slots=True)
class Change:
    """A response whose verdict is another one now."""

    id: str
    response: int  # its place among the responses of the item
    before: str  # the score, or the status if there was none
    after: str


@dataclass(frozen=True, slots=True)
class Rescored:
    """What came of scoring a folder again."""

    benchmark: str
    responses: int
    changes: tuple[Change, ...]
    before: Any  # pass@1
    after: Any
    rule: Rule  # by which it is now
    other: Any  # "other rule" of the summary


def rescore(
    folder: Path, scoring: ScoringConfig, yours: Sequence[Benchmark] = (), rule: Rule | None = None
) -> Rescored:
    """Writes records, harness and summary to `folder`/rescored and says what changed.

    They take the place of an earlier rescoring when all of them are written: one that fails leaves that as it was.

    The params of a rule are those it was used with, unless `scoring` has others. What a record does not hold (images,
    for a rule that looks at them; test cases of programs) is read from the source again. The ids of tokens are not
    saved: a rule that counts repeated tokens cannot be used here.

    Args:
        yours: benchmarks that are not ours. The folder only names the file of one: what lies in a folder of results
            is not run. Without it the benchmark's own figures are left out.
        rule: by which the figures are to be; None = by which they were.

    Raises EvaluationError if the folder is no evaluation, or what has to be read again is not there as it was.
    """
    harness, spec = read_harness(folder)
    name = harness["benchmark"]["name"]
    check_whole(folder, name)
    benchmark = BENCHMARKS.get(name) or next((b for b in yours if b.name == name), None)
    known = {rule: params for rule, params in saved_params(harness).items() if rule != scoring.path_name}
    given, judge = dict(scoring.params), known.pop(JUDGE, {})
    if JUDGE in given or JUDGE in scoring.by_task.values():  # the rest of its params is not in the harness
        given[JUDGE] = judge | given.get(JUDGE, {})
    scoring = scoring.model_copy(update={"params": known | given})
    rule = rule or (OURS if harness["rule"] == OURS else OFFICIAL)
    files = [file for file in (RECORDS, BLANK) if (folder / file).exists()]
    k, control = int(harness["k"]), BLANK in files
    before = summarise_folder(folder, k, None, blank=control)
    changes: list[Change] = []
    judged: set[tuple[str, str]] = set()  # by our rules
    responses = 0
    with _in_place_of(folder / RESCORED) as out:
        with Judges(scoring, benchmark, rule) as judges:
            again = _Again(benchmark, harness, judges)
            for file in files:
                for old, new in again.records(folder / file, RecordFile(out / file)):
                    changes += _changes(old, new)
                    responses += len(new.responses)
                    judged.add((new.rule if judges.headline == OURS else new.other_rule, new.reward))
        present = harness | {"rule": judges.harness_rule} | rules_of(used_rules(judged, judges.scoring), judges.scoring)
        write_harness(out, present, spec)
        figures = summarise_folder(out, k, benchmark.metrics if benchmark else None, blank=control)
        head = {"benchmark": name, "harness": hash_of(present), "rule": judges.headline}
        write_json(out / SUMMARY, head | figures)
    return Rescored(
        name, responses, tuple(changes), before["pass@1"], figures["pass@1"], judges.headline, figures["other rule"]
    )


@contextlib.contextmanager
def _in_place_of(results: Path) -> Iterator[Path]:
    """A folder to write to; without an error its files take the place of those in `results`, of which none is kept."""
    part = results.with_name(PART)
    shutil.rmtree(part, ignore_errors=True)  # of one that was killed
    part.mkdir()
    try:
        yield part
        results.mkdir(exist_ok=True)
        for file in (RECORDS, BLANK, HARNESS_FILE, SUMMARY):
            (results / file).unlink(missing_ok=True)
        for file in part.iterdir():
            file.replace(results / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Again:
    benchmark: Benchmark | None
    harness: Mapping[str, Any]
    judges: Judges

    def records(self, path: Path, out: RecordFile) -> Iterator[tuple[Record, Record]]:
        """(old, new) of every record of `path`; the new ones are written to `out`."""
        records = read_records(path)
        while batch := list(itertools.islice(records, BATCH)):
            new = self._scored(batch)
            out.append(new)
            yield from zip(batch, new, strict=True)

    def _scored(self, batch: Sequence[Record]) -> list[Record]:
        self.judges.ours.check({(record.task, record.reward) for record in batch}, dataset=batch[0].benchmark)
        problems = [self._problem(record) for record in batch]
        groups = [_group(p, r) for p, r in zip(problems, batch, strict=True)]
        limit = self.harness["sampling"]["max_new_tokens"]
        return [self._rejudged(*pair) for pair in zip(batch, self.judges.judge(groups, limit), strict=True)]

    def _rejudged(self, record: Record, judged: Judged) -> Record:
        rule, other = self.judges.rules(judged.group.prompt.problem)
        responses = responses_of(judged.group.rollouts, judged.other.rollouts if judged.other else ())
        return record.model_copy(update={"rule": rule, "other_rule": other, "responses": responses})

    def _problem(self, record: Record) -> Problem:
        problem = Problem(
            id=record.id,
            task=record.task,
            messages=tuple(record.messages),
            answer=record.gold,
            reward=record.reward,
            meta=record.meta or {},
        )
        if record.meta is not None and not self.judges.ours.needs_images(self.judges.ours.rule(problem)):
            return problem
        if self.benchmark is None:
            raise EvaluationError(
                f"{record.id!r} must be read from the source again, and {record.benchmark!r} is a benchmark of yours: "
                "name its file with --benchmark my_bench.py:NAME"
            )
        about = self.harness["benchmark"]
        source = open_benchmark(self.benchmark, about["source"], about["split"], about["config"] or "")
        problems = read_problems(self.benchmark, source, record.row)
        found = problems[record.number] if record.number < len(problems) else None
        asked = blank_twin(found) if found is not None and record.id.endswith("#blank") else found
        if found is None or asked is None or prompt_hash(asked) != record.prompt:
            raise EvaluationError(
                f"row {record.row} of {source.where} is not the item {record.id!r} that was asked; the source has "
                "changed: evaluate again"
            )
        # A rule that looks at pictures sees those of the problem, also where the model saw blank ones.
        return dataclasses.replace(asked, images=found.images, answer=record.gold)


def _group(problem: Problem, record: Record) -> RolloutGroup:
    """The responses as an engine would have given them; what only a model needs is empty."""
    nothing = np.empty(0, np.int64)
    prompt = Prompt(
        problem=problem,
        ids=nothing,
        compact_ids=nothing,
        positions=np.empty((3, 0), np.int64),
        pixel_values=None,
        image_grid_thw=None,
    )
    rollouts = tuple(
        Rollout(
            response_ids=np.arange(r.tokens),
            logprobs=np.empty(0, np.float32),
            finish=Finish(r.finish),
            weight_version=0,
            text=r.text,
            score_detail=r.reason if r.finish == Finish.FAILED else "",
        )
        for r in record.responses
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


def _changes(old: Record, new: Record) -> list[Change]:
    pairs = enumerate(zip(old.responses, new.responses, strict=True))
    return [
        Change(old.id, i, _verdict(a.score, a.status), _verdict(b.score, b.status))
        for i, (a, b) in pairs
        if (a.score, a.status) != (b.score, b.status)
    ]


def _verdict(score: float | None, status: str) -> str:
    return status if score is None else f"{score:g}"


def describe(result: Rescored, shown: int = 20) -> str:
    """What changed, in lines to read."""
    items = {change.id for change in result.changes}
    lines = [
        f"{result.benchmark}: {len(result.changes)} of {result.responses} responses have another verdict, in "
        f"{len(items)} items; pass@1 {_number(result.before['mean'])} -> {_number(result.after['mean'])}"
        + (" by the official rule" if result.rule == OFFICIAL else "")
    ]
    if other := differing(result.other):
        lines.append(f"  by {RULE_NAMES[other['rule']]} pass@1 is {_number(other['pass@1']['mean'])}")
    lines += [f"  {c.id} response {c.response}: {c.before} -> {c.after}" for c in result.changes[:shown]]
    if len(result.changes) > shown:
        lines.append(f"  and {len(result.changes) - shown} more")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
