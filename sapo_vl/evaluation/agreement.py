"""How often a judge model and the rule beside it agree, from the parts that the reward `judge` records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.judge import RULE_SCORE, RULE_SURE, SILENT, VERDICT
from sapo_vl.evaluation.records import Record, Response, Verdict
from sapo_vl.scoring.judging import JUDGE

CELLS = {(r, j): f"rule {r}, judge {j}" for r in (1, 0) for j in (1, 0)}  # 1: called right
ONLY_UNSURE = "the judge was asked only where the rule could not read the answer; set judge.sample or judge.ask=all"


def judge_agreement(records: Sequence[Record]) -> dict[str, Any] | None:
    """Judge and rule on the same responses; None if no response of `records` was scored by the reward `judge`.

    It may be the rule that the figures are by, or the other one (`eval.rule=official`).

    "verdicts": responses that the judge has a verdict on. "silent": sampled ones without. "without a rule": those
        whose gold the rule cannot read. "rule sure" and "rule unsure": a 2x2 count of verdicts each, "n" of it and
        "responses", how many there are of the kind, asked about or not.
    "agree", "kappa" (Cohen's), "rule", "judge" (shares called right): over all responses with an answer that the rule
        has a score for. Where the judge was asked about a sample of the sure ones, each of these stands for
        responses / n of its kind. All None, and "why" says so, where it was asked about none of them: what is then
        left is chosen by the rule's own 0. kappa is None too where chance alone would agree always.

    Responses without an answer, and those whose verdict is missing (counted by status), are not in it.
    """
    judged: list[Response | Verdict] = []
    for record in records:
        if record.rule == JUDGE:
            judged += record.responses
        elif record.other_rule == JUDGE:
            judged += [r.other for r in record.responses if r.other is not None]
    parts = [verdict.parts for verdict in judged if verdict.score is not None]
    if not parts:
        return None
    kinds = {"rule sure": _table(parts, sure=True), "rule unsure": _table(parts, sure=False)}
    verdicts = sum(VERDICT in p for p in parts)
    return {
        "verdicts": verdicts,
        "silent": sum(SILENT in p for p in parts),
        "without a rule": sum(VERDICT in p and RULE_SCORE not in p for p in parts),
        **kinds,
        **_figures(list(kinds.values())),
    }


def _table(parts: Sequence[Mapping[str, float]], *, sure: bool) -> dict[str, Any]:
    kind = [p for p in parts if p.get(RULE_SURE) == float(sure)]
    counts = Counter((int(p[RULE_SCORE] == 1), int(p[VERDICT] == 1)) for p in kind if VERDICT in p)
    return {"responses": len(kind), "n": counts.total(), **{name: counts[cell] for cell, name in CELLS.items()}}


def _figures(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    there = [table for table in tables if table["responses"]]
    nothing: dict[str, Any] = dict.fromkeys(("agree", "kappa", "rule", "judge"))
    if not there:
        return {**nothing, "why": "no response with an answer that the rule can score"}
    if not all(table["n"] for table in there):
        return {**nothing, "why": ONLY_UNSURE}
    total = sum(table["responses"] for table in there)
    share = {
        cell: sum(table[name] * table["responses"] / table["n"] for table in there) / total
        for cell, name in CELLS.items()
    }
    agree, rule, judge = share[1, 1] + share[0, 0], share[1, 1] + share[1, 0], share[1, 1] + share[0, 1]
    chance = rule * judge + (1 - rule) * (1 - judge)
    kappa = (agree - chance) / (1 - chance) if chance < 1 else None
    return {"agree": agree, "kappa": kappa, "rule": rule, "judge": judge, "why": ""}
