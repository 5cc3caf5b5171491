"""What every item was asked and answered, as lines of JSON: written as items are done, gone on with after a stop."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from rewards.answers.extract import last_answer
from rewards.weighted import OWN
from sapo_vl.benchmarks.base import GROUPS
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.record.files import write_text
from sapo_vl.strict import Strict, read_mapping
from sapo_vl.types import UNANSWERED, Finish, Problem, Rollout, ScoreStatus

log = logging.getLogger(__name__)
RECORDS, BLANK, SUMMARY = "records.jsonl", "blank.jsonl", "summary.json"  # files of a benchmark's folder
_SEAL = re.compile(r', "seal": "([0-9a-f]{16})"\}\Z')
ANSWER_CHARS = 500  # of an extracted answer that are kept
MAX_TOKENS = 10_000_000  # of a response, in a record that can be believed
UNREADABLE = "row"  # `skipped` of an item whose row, which could be read before, could not be any more
META_CHARS = 100_000  # `meta` of more JSON than this (test cases of programs) stays in the source


class Verdict(Strict):
    """What a rule said about a response."""

    score: float | None  # of the rule, in [0, 1]; None: it could not be scored
    status: str  # a value of types.ScoreStatus, or "failed": the engine gave nothing
    reason: str  # the rule's, or why there is no score
    parts: dict[str, float]  # what the rule reported beside its score


class Response(Strict):
    """One response and its verdict."""

    text: str
    tokens: int = Field(ge=0, le=MAX_TOKENS)
    finish: Finish
    answer: str | None  # rewards.answers.extract.last_answer, cut to ANSWER_CHARS; None: there is none
    score: float | None  # these four as in Verdict, by the rule of the record
    status: str
    reason: str
    parts: dict[str, float]
    other: Verdict | None = None  # by `other_rule` of the record, if there is one


class Record(Strict):
    """One item with all its responses."""

    benchmark: str
    id: str
    prompt: str  # SHA-256, see items.prompt_hash
    messages: list[dict[str, Any]]  # the chat turns, without the images
    row: int = Field(ge=0)  # where the item comes from
    number: int = Field(ge=0)
    task: str
    reward: str  # as the problem names it
    rule: str  # the reward that judged, or the rule of rewards.official
    other_rule: str = ""  # what judged beside it, for comparison; "" = nothing did
    gold: str
    meta: dict[str, Any] | None  # None: too long to repeat here; the source has it
    groups: dict[str, str]
    skipped: str = ""  # why it was not asked: the kind of a PromptError, "prompt too long" for one
    responses: tuple[Response, ...] = ()

    @property
    def scores(self) -> list[float]:
        """Of the responses that could be scored."""
        return [r.score for r in self.responses if r.score is not None]

    @property
    def is_lacking(self) -> bool:
        """Whether another try may have more: there was no engine to answer, or the row could not be read.

        What an engine refuses, or gives that cannot be used, is the same the next time.
        """
        lost = (r.finish is Finish.FAILED and r.reason.startswith(UNANSWERED) for r in self.responses)
        return self.skipped == UNREADABLE or any(lost)


def make_record(
    benchmark: str,
    problem: Problem,
    place: tuple[int, int],
    prompt: str,
    rules: tuple[str, str],
    *,
    rollouts: Sequence[Rollout] = (),
    others: Sequence[Rollout] = (),
    skipped: str = "",
) -> Record:
    """`place` is the item's row and its number there; `prompt` its hash; `rules` are that of the figures and the other
    one, by which `others` are the same rollouts, or none."""
    meta = dict(problem.meta)
    return Record(
        benchmark=benchmark,
        id=problem.id,
        prompt=prompt,
        messages=[dict(turn) for turn in problem.messages],
        row=place[0],
        number=place[1],
        task=problem.task,
        reward=problem.reward,
        rule=rules[0],
        other_rule=rules[1],
        gold=problem.answer,
        meta=meta if len(json.dumps(meta)) <= META_CHARS else None,
        groups={str(k): str(v) for k, v in dict(meta.get(GROUPS) or {}).items()},
        skipped=skipped,
        responses=responses_of(rollouts, others),
    )


def responses_of(rollouts: Sequence[Rollout], others: Sequence[Rollout] = ()) -> tuple[Response, ...]:
    """Scored rollouts as they are kept; `others` are the same by another rule, or none."""
    return tuple(response_of(r, o) for r, o in zip(rollouts, others or [None] * len(rollouts), strict=True))


def response_of(rollout: Rollout, other: Rollout | None = None) -> Response:
    """A scored rollout as it is kept."""
    answer = None if rollout.finish is Finish.FAILED else last_answer(rollout.text)
    verdict = _verdict_of(rollout)
    return Response(
        text=rollout.text,
        tokens=len(rollout.response_ids),
        finish=rollout.finish,
        answer=None if answer is None else answer[:ANSWER_CHARS],
        score=verdict.score,
        status=verdict.status,
        reason=verdict.reason,
        parts=verdict.parts,
        other=_verdict_of(other) if other else None,
    )


def by_the_other_rule(record: Record) -> Record | None:
    """The record with both rules exchanged; None if a response has one verdict only."""
    exchanged = []
    for r in record.responses:
        if r.other is None:
            return None
        own = Verdict(score=r.score, status=r.status, reason=r.reason, parts=r.parts)
        exchanged.append(r.model_copy(update={**dict(r.other), "other": own}))
    rules = {"rule": record.other_rule, "other_rule": record.rule}
    return record.model_copy(update={**rules, "responses": tuple(exchanged)})


def _verdict_of(rollout: Rollout) -> Verdict:
    scored = rollout.score_status is ScoreStatus.SCORED
    return Verdict(
        score=float(rollout.parts[OWN]) if scored else None,
        status="failed" if rollout.finish is Finish.FAILED else str(rollout.score_status),
        reason=rollout.score_detail,
        parts={k.removeprefix(f"{OWN}/"): float(v) for k, v in rollout.parts.items() if k.startswith(f"{OWN}/")},
    )


class RecordFile:
    """Lines of records, appended. What `append` has written survives the end of the process.

    lacking: ids of the items that `done` found with `Record.is_lacking`. They stay in the file until `append` has more
    of them, so that another try, however it ends, takes nothing away.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lacking: frozenset[str] = frozenset()

    def done(self) -> set[str]:
        """Ids of the items in the file that need not be asked again. A last line that was cut off is taken out of it
        first."""
        if not self.path.exists():
            return set()
        self._drop_cut_line()
        found = {record.id: record.is_lacking for record in read_records(self.path)}
        self.lacking = frozenset(id for id, lacks in found.items() if lacks)
        return set(found) - self.lacking

    def append(self, records: Iterable[Record]) -> None:
        new = {record.id: record for record in records}
        again = {id: record for id, record in new.items() if id in self.lacking}
        with self.path.open("a", encoding="ascii") as file:
            for record in new.values():
                if record.id not in again:
                    file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        if better := {id: record for id, record in again.items() if not record.is_lacking}:
            self._replace(better)

    def _replace(self, better: Mapping[str, Record]) -> None:
        (self.path.parent / SUMMARY).unlink(missing_ok=True)  # it is of the records before
        with self.path.open(encoding="ascii", newline="") as lines:
            ids = (record.id for record in read_records(self.path))
            text = "".join(_line(better[id]) if id in better else line for id, line in zip(ids, lines, strict=True))
        write_text(self.path, text)
        self.lacking -= set(better)

    def _drop_cut_line(self) -> None:
        with self.path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = _end_of_last_line(file, size)
            if end < size:
                log.warning("%s: a last line of %d bytes was cut off; its item is asked again", self.path, size - end)
                file.truncate(end)


def _end_of_last_line(file: Any, size: int, block: int = 1 << 16) -> int:
    """Bytes up to and with the last line break."""
    at = size
    while at > 0:
        start = max(0, at - block)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0


def _line(record: Record) -> str:
    return sealed(json.dumps(record.model_dump(mode="json"), allow_nan=False)) + "\n"


def sealed(line: str) -> str:
    """A JSON object of one line, with a digest of all the rest of it as its last value."""
    return f'{line[:-1]}, "seal": "{_digest(line)}"}}'


def _digest(line: str) -> str:
    return hashlib.blake2b(line.encode("ascii"), digest_size=8).hexdigest()


def _record(line: str) -> Record:
    """Raises ValueError for a line that is no record, or another one than was written."""
    line = line.removesuffix("\n")
    if seal := _SEAL.search(line):  # records from before there were seals have none
        line = line[: seal.start()] + "}"
        if _digest(line) != seal[1]:
            raise ValueError("it is another one than was written")
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc']))} {fault['msg']}") from error


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, each item once. Raises EvaluationError naming file and line for one that is none."""
    seen: set[str] = set()
    try:
        with path.open(encoding="ascii") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = _record(line)
                    if record.id in seen:
                        raise ValueError(f"the item {record.id[:80]!r} has a record above")
                except ValueError as error:
                    raise EvaluationError(
                        f"{path}:{number} is no record ({error}); delete the line, or the folder to ask all items again"
                    ) from error
                seen.add(record.id)
                yield record
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}); give a folder that `sapo-vl eval` wrote") from error


def check_whole(folder: Path, benchmark: str) -> None:
    """Raises EvaluationError if records in a benchmark's folder are of another one, or fewer than its summary counts.

    A folder whose evaluation has not come to its end has no summary.
    """
    number = 0
    for number, record in enumerate(read_records(folder / RECORDS), start=1):
        if record.benchmark != benchmark:
            raise EvaluationError(
                f"{folder / RECORDS}:{number} is of {record.benchmark[:80]!r}, {folder} of {benchmark!r}: a file was "
                "swapped; get the folder again"
            )
    if not (folder / SUMMARY).exists():
        return
    try:
        items = read_mapping(folder / SUMMARY)["items"]
        counted = items["asked"] + sum(items["skipped"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{folder / SUMMARY} is no summary of an evaluation ({error}); delete it, `sapo-vl eval` writes it again"
        ) from error
    if counted != number:
        raise EvaluationError(
            f"{folder / RECORDS} has {number} items, {SUMMARY} counts {counted}: lines are missing; run `sapo-vl eval` "
            "again, which asks those, or delete the summary"
        )
