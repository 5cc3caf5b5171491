"""The figures of a benchmark, from its records alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.answers.extract import plain
from rewards.base import NO_ANSWER
from rewards.official import OFFICIAL as OFFICIAL_RULES
from sapo_vl.benchmarks import ItemScores
from sapo_vl.evaluation.agreement import judge_agreement
from sapo_vl.evaluation.items import Items
from sapo_vl.evaluation.records import BLANK, RECORDS, Record, by_the_other_rule, read_records
from sapo_vl.evaluation.rules import OFFICIAL, OURS
from sapo_vl.evaluation.statistics import mean_and_interval, paired_difference, pass_at_k
from sapo_vl.types import Finish, ScoreStatus

Metrics = Callable[[Sequence[ItemScores]], Mapping[str, float]]


def summarise_folder(folder: Path, k: int, metrics: Metrics | None, *, blank: bool) -> dict[str, Any]:
    """`summarise` on the records of a folder, in the order of the items, its blank-image control, and `other_rule`."""
    records = _without_texts(folder / RECORDS)
    control = blank_control(records, _without_texts(folder / BLANK)) if blank else None
    return summarise(records, k, metrics) | {"blank": control, "other rule": other_rule(records, k, metrics)}


def summarise(records: Sequence[Record], k: int, metrics: Metrics | None = None) -> dict[str, Any]:
    """The figures of items with up to k responses each. Records of items that were not asked are counted by reason.

    pass@1: mean over items of the mean score of an item's responses; see `mean_and_interval`.
    pass@k: for 1, 2, 4, ... and k, {"mean", "n"}: `pass_at_k` averaged over the n items with so many scored responses;
        a response is right if its score is 1.
    maj@k: the score of the answer that most responses gave, see `majority_score`; None if none gave any.
    votes: {"answers": "ours": by which reading of the responses they are counted, "n", "right without one": responses
        that score 1 and have no answer to vote with, which an official rule that reads responses in its own way has}.
    judge: `judge_agreement`, where a judge model scored.
    Responses without a score are in no mean: they are counted by status.
    """
    asked = [record for record in records if not record.skipped]
    scored = [record for record in asked if record.scores]
    responses = [r for record in asked for r in record.responses]
    statuses = Counter(r.status for r in responses)
    return {
        "k": k,
        "pass@1": mean_and_interval([_mean(record.scores) for record in scored]),
        "pass@k": {str(m): _pass_at(scored, m) for m in _powers(k)},
        "maj@k": _majority(scored),
        "votes": _votes(scored),
        "items": {
            "asked": len(asked),
            "without a score": len(asked) - len(scored),
            "skipped": dict(Counter(record.skipped for record in records if record.skipped)),
        },
        "responses": {
            "n": len(responses),
            "truncated": sum(r.finish == Finish.LENGTH for r in responses),
            "no answer": sum(NO_ANSWER in r.reason.split("; ") for r in responses if r.score is not None),
            **{status: statuses[status] for status in ["failed", *ScoreStatus] if statuses[status]},
            "tokens": _mean([r.tokens for r in responses]) if responses else None,
            "reasons": dict(Counter(r.reason for r in responses if r.score is not None and r.reason)),
        },
        "judge": judge_agreement(asked),
        "groups": _by_group(scored),
        "metrics": dict(metrics([_item_scores(record) for record in asked])) if metrics and asked else {},
    }


def with_items(summary: Mapping[str, Any], items: Items) -> dict[str, Any]:
    """The summary with the counts of rows that never became items."""
    counts = {"bad rows": dict(items.bad), "left out": dict(items.left_out), "examples": list(items.examples)}
    return {**summary, "items": {**summary["items"], **counts}}


def blank_control(records: Sequence[Record], blank: Sequence[Record]) -> dict[str, Any] | None:
    """What is left without the pictures: accuracy on blank twins, and pass@1 on the same items minus it.

    None if there is no item that both could be scored on. The interval of the difference is of paired items.
    """
    seen = {record.id: _mean(record.scores) for record in records if record.scores}
    pairs = [(seen[i], _mean(b.scores)) for b in blank if b.scores and (i := b.id.removesuffix("#blank")) in seen]
    if not pairs:
        return None
    return {
        **mean_and_interval([without for _, without in pairs]),
        "with images": _mean([with_images for with_images, _ in pairs]),
        "difference": paired_difference([a - b for a, b in pairs]),
    }


def other_rule(records: Sequence[Record], k: int, metrics: Metrics | None) -> dict[str, Any] | None:
    """The figures by the other one of our rule and the benchmark's own, on the items that have both verdicts.

    {"rule": "official" or "ours", "pass@1", "metrics": as in `summarise`, "difference": pass@1 minus that of the rule
    that the figures are by, with the interval of paired items, "responses": those whose score is another one}. None if
    there is one rule only.
    """
    pairs = [(record, exchanged) for record in records if (exchanged := by_the_other_rule(record)) is not None]
    both = [(_mean(a.scores), _mean(b.scores)) for a, b in pairs if a.scores and b.scores]
    if not both:
        return None
    figures = summarise([b for _, b in pairs], k, metrics)
    return {
        "rule": OFFICIAL if pairs[0][1].rule in OFFICIAL_RULES else OURS,
        "pass@1": figures["pass@1"],
        "difference": paired_difference([other - own for own, other in both]),
        "responses": sum(r.other is not None and r.score != r.other.score for a, _ in pairs for r in a.responses),
        "metrics": figures["metrics"],
    }


def majority_score(record: Record) -> float | None:
    """The score of the first response with the answer that most responses gave; of equally common ones the first.

    Answers are the same here if they are the same text, full-width characters and white space made plain and case
    aside. A rule knows better ("1/2" is "0.5"), but judges responses, not pairs of them: this counts such answers
    apart, so it may be below what a majority by value would give. They are those of `rewards.answers.extract` whatever
    the rule: official scripts judge one response at a time and hand out no answer to count. Responses without an
    answer or a score do not vote; without any vote the item scores 0. None if no response could be scored.
    """
    scored = [r for r in record.responses if r.score is not None]
    if not scored:
        return None
    votes = [(plain(r.answer).casefold(), r.score) for r in scored if r.answer]
    if not votes:
        return 0.0
    counts = Counter(answer for answer, _ in votes)  # keeps the order in which answers came
    winner = max(counts, key=lambda answer: counts[answer])
    return next(score for answer, score in votes if answer == winner)


def _majority(scored: Sequence[Record]) -> float | None:
    if not any(r.answer for record in scored for r in record.responses):
        return None  # programs, say, have no short answer to vote on
    return _mean([score for record in scored if (score := majority_score(record)) is not None])


def _votes(scored: Sequence[Record]) -> dict[str, Any]:
    voters = [r for record in scored for r in record.responses if r.score is not None]
    silent = [r for r in voters if not r.answer]
    return {"answers": OURS, "n": len(voters) - len(silent), "right without one": sum(r.score == 1.0 for r in silent)}


def _pass_at(scored: Sequence[Record], m: int) -> dict[str, Any]:
    values = [pass_at_k(len(r.scores), sum(s == 1.0 for s in r.scores), m) for r in scored if len(r.scores) >= m]
    return {"mean": _mean(values) if values else None, "n": len(values)}


def _powers(k: int) -> list[int]:
    return [*(m for m in (2**i for i in range(k.bit_length())) if m < k), k]


def _by_group(scored: Sequence[Record]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in scored:
        for kind, value in record.groups.items():
            found[kind][value].append(_mean(record.scores))
    return {
        kind: {value: mean_and_interval(means) for value, means in sorted(values.items())}
        for kind, values in sorted(found.items())
    }


def _item_scores(record: Record) -> ItemScores:
    return ItemScores(
        id=record.id,
        meta=record.meta or {"groups": record.groups},
        scores=[r.score for r in record.responses],
        parts=[r.parts for r in record.responses],
    )


def _without_texts(path: Path) -> list[Record]:
    """Responses can be long, and no figure needs them."""
    light = [
        record.model_copy(update={"responses": tuple(r.model_copy(update={"text": ""}) for r in record.responses)})
        for record in read_records(path)
    ]
    return sorted(light, key=lambda record: (record.row, record.number))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
