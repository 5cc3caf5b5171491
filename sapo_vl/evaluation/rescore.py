"""Scoring saved responses again with the present rules: no model, the same worker processes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sapo_vl.benchmarks import BENCHMARKS, Benchmark
from sapo_vl.data.problem_set import blank_twin
from sapo_vl.data.source import open_source
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.harness import rule_settings, write_harness
from sapo_vl.evaluation.harness_file import HARNESS_FILE, hash_of, read_harness
from sapo_vl.evaluation.items import prompt_hash, read_problems
from sapo_vl.evaluation.records import BLANK, RECORDS, SUMMARY, Record, RecordFile, read_records, response_of
from sapo_vl.evaluation.rules import rule_scoring
from sapo_vl.evaluation.summary import summarise_folder
from sapo_vl.record.run_log import write_json
from sapo_vl.scoring.scorer import Scorer, ScoringConfig
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup

RESCORED = "rescored"  # folder inside that of the benchmark
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


def rescore(folder: Path, scoring: ScoringConfig, yours: Sequence[Benchmark] = ()) -> Rescored:
    """Writes records, harness and summary to `folder`/rescored and says what changed.

    The params of a rule are those it was used with, unless `scoring` has others. What a record does not hold (images,
    for a rule that looks at them; test cases of programs) is read from the source again. The ids of tokens are not
    saved: a rule that counts repeated tokens cannot be used here.

    Args:
        yours: benchmarks that are not ours. The folder only names the file of one: what lies in a folder of results
            is not run. Without it the benchmark's own figures are left out.

    Raises EvaluationError if the folder is no evaluation, or what has to be read again is not there as it was.
    """
    harness, spec = read_harness(folder)
    name = harness["benchmark"]["name"]
    benchmark = BENCHMARKS.get(name) or next((b for b in yours if b.name == name), None)
    saved = {rule: {k: v for k, v in params.items() if k != "file"} for rule, params in harness["rules"].items()}
    known = {rule: params for rule, params in saved.items() if rule != scoring.path_name}
    scoring = rule_scoring(scoring.model_copy(update={"params": known | dict(scoring.params)}), benchmark)
    out = folder / RESCORED
    out.mkdir(exist_ok=True)
    files = [file for file in (RECORDS, BLANK) if (folder / file).exists()]
    for file in (*files, SUMMARY, HARNESS_FILE):
        (out / file).unlink(missing_ok=True)
    changes: list[Change] = []
    responses, rules = 0, set()
    with Scorer(scoring) as scorer:
        again = _Again(benchmark, harness, scorer)
        for file in files:
            for old, new in again.records(folder / file, RecordFile(out / file)):
                changes += _changes(old, new)
                responses += len(new.responses)
                rules.add(new.rule)
    present = harness | {"rules": rule_settings(rules, scoring)}
    write_harness(out, present, spec)
    k, control = int(harness["k"]), BLANK in files
    figures = summarise_folder(out, k, benchmark.metrics if benchmark else None, blank=control)
    write_json(out / SUMMARY, {"benchmark": name, "harness": hash_of(present)} | figures)
    before = summarise_folder(folder, k, None, blank=control)
    return Rescored(name, responses, tuple(changes), before["pass@1"], figures["pass@1"])


@dataclass(frozen=True, slots=True)
class _Again:
    benchmark: Benchmark | None
    harness: Mapping[str, Any]
    scorer: Scorer

    def records(self, path: Path, out: RecordFile) -> Iterator[tuple[Record, Record]]:
        """(old, new) of every record of `path`; the new ones are written to `out`."""
        records = read_records(path)
        while batch := list(itertools.islice(records, BATCH)):
            new = self._scored(batch)
            out.append(new)
            yield from zip(batch, new, strict=True)

    def _scored(self, batch: Sequence[Record]) -> list[Record]:
        self.scorer.check({(record.task, record.reward) for record in batch}, dataset=batch[0].benchmark)
        problems = [self._problem(record) for record in batch]
        groups = [_group(p, r) for p, r in zip(problems, batch, strict=True)]
        limit = self.harness["sampling"]["max_new_tokens"]
        return [
            record.model_copy(
                update={
                    "rule": self.scorer.rule(group.prompt.problem),
                    "responses": tuple(map(response_of, group.rollouts)),
                }
            )
            for record, group in zip(batch, self.scorer.score(groups, limit), strict=True)
        ]

    def _problem(self, record: Record) -> Problem:
        problem = Problem(
            id=record.id,
            task=record.task,
            messages=tuple(record.messages),
            answer=record.gold,
            reward=record.reward,
            meta=record.meta or {},
        )
        if record.meta is not None and not self.scorer.needs_images(self.scorer.rule(problem)):
            return problem
        if self.benchmark is None:
            raise EvaluationError(
                f"{record.id!r} must be read from the source again, and {record.benchmark!r} is a benchmark of yours: "
                "name its file with --benchmark my_bench.py:NAME"
            )
        about = self.harness["benchmark"]
        columns = self.benchmark.columns
        source = open_source(about["source"], about["split"], config=about["config"], columns=columns)
        problems = read_problems(self.benchmark, source, record.row)
        found = problems[record.number] if record.number < len(problems) else None
        if found is not None and record.id.endswith("#blank"):
            found = blank_twin(found)
        if found is None or prompt_hash(found) != record.prompt:
            raise EvaluationError(
                f"row {record.row} of {source.where} is not the item {record.id!r} that was asked; the source has "
                "changed: evaluate again"
            )
        return dataclasses.replace(found, answer=record.gold)


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
    ]
    lines += [f"  {c.id} response {c.response}: {c.before} -> {c.after}" for c in result.changes[:shown]]
    if len(result.changes) > shown:
        lines.append(f"  and {len(result.changes) - shown} more")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
