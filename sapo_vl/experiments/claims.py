"""What the paper claims, as comparisons of two arms, and what the runs say of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sapo_vl.experiments.arms import (
    MINI_BATCHES,
    MIXED_MINI_BATCHES,
    PAPER_LOSSES,
    TAU_NEG,
    WIDER_TAU_NEG,
    Arm,
    arms_of,
    family,
    sapo_tau_neg,
)
from sapo_vl.experiments.collect import Results, RunRow
from sapo_vl.experiments.config import ExperimentConfig, Figure
from sapo_vl.experiments.stats import (
    LEVEL,
    Difference,
    Estimate,
    Verdict,
    best_window,
    by_items,
    collapsed,
    estimate,
    holm,
    paired,
    verdict,
)

Measure = Literal["reward", "pass@1"]
MEASURES: dict[Measure, str] = {
    "reward": "training reward, last fifth of the steps",
    "pass@1": "held-out Pass@1 after the last step",
}
_BOTH: tuple[Measure, ...] = ("reward", "pass@1")
BEST_SHARE = 0.1  # of the steps: the window of the best stretch of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`first` is above `second`."""

    figure: Figure
    question: str  # claims of one question, on one measure, are a family for Holm's correction
    first: Arm
    second: Arm
    of_paper: bool = True  # False: a question that the paper does not put

    @property
    def text(self) -> str:
        same = (self.first.mini_batches, self.first.lr_factor, self.first.staleness) == (
            self.second.mini_batches,
            self.second.lr_factor,
            self.second.staleness,
        )
        where = conditions(self.first) if same else ""
        first, second = (a.method if same else f"{a.method} ({conditions(a)})" for a in (self.first, self.second))
        return f"{first} above {second}" + (f" ({where})" if where else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim on one measure. adjusted_p: Holm's over the claims of the same question, on the same measure."""

    claim: Claim
    measure: Measure
    difference: Difference | None
    adjusted_p: float | None
    verdict: Verdict
    items: tuple[Estimate, float] | None  # of pass@1: difference over items, and its p


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """An arm over its seeds."""

    arm: Arm
    n: int
    reward: Estimate
    pass_at_1: Estimate | None
    collapsed: int  # seeds that ended more than the configured drop below the start
    fell: float  # mean over seeds of: best tenth of the steps minus the end
    gate: float | None
    ratio_dev: float | None
    ratio_max: float | None  # largest of all steps and seeds
    flip: float | None


def conditions(arm: Arm) -> str:
    """How hard the arm is pressed, in words."""
    parts = [arm.model + (", mixed" if arm.mixed else ""), f"N={arm.mini_batches}"]
    if arm.lr_factor != 1:
        parts.append(f"learning rate x{arm.lr_factor:g}")
    if arm.staleness:
        parts.append("one step stale")
    return ", ".join(parts)


def claims_of(experiment: ExperimentConfig) -> list[Claim]:
    """Of the figures that are asked for."""
    main = next(iter(experiment.models))
    moe = experiment.models[main].moe
    of_all: dict[Figure, list[Claim]] = {
        "4": list(_sapo_first("4", Arm(model=main, mini_batches=MINI_BATCHES), moe)),
        "5": list(_temperatures(main)),
        "6": [
            claim
            for name, model in experiment.models.items()
            if model.mixed
            for claim in _sapo_first("6", Arm(model=name, mixed=True, mini_batches=MIXED_MINI_BATCHES), model.moe)
        ],
        "stress": list(_stress(experiment)),
    }
    known = {arm for arms in arms_of(experiment).values() for arm in arms}
    asked = (claim for figure in experiment.figures for claim in of_all.get(figure, []))
    return [claim for claim in asked if {claim.first, claim.second} <= known]


def _sapo_first(figure: Figure, base: Arm, moe: bool) -> Iterator[Claim]:
    for other in family(base, moe=moe):
        if other != base:
            yield Claim(figure=figure, question=base.model, first=base, second=other)


def _temperatures(model: str) -> Iterator[Claim]:
    low, middle, high = (sapo_tau_neg(model, tau) for tau in TAU_NEG)
    for first, second in ((high, middle), (middle, low), (high, low)):
        yield Claim(figure="5", question="the paper's temperatures", first=first, second=second)
    narrow, wide = sapo_tau_neg(model, max(WIDER_TAU_NEG)), sapo_tau_neg(model, min(WIDER_TAU_NEG))
    yield Claim(figure="5", question="wider apart", first=narrow, second=wide, of_paper=False)


def _stress(experiment: ExperimentConfig) -> Iterator[Claim]:
    """SAPO against each other loss where all else is equal; replay against none; fresh against stale."""
    arms = arms_of(experiment).get("stress", [])

    def claim(question: str, first: Arm, second: Arm) -> Claim:
        return Claim(figure="stress", question=question, first=first, second=second, of_paper=False)

    for arm in arms:
        sapo = replace(arm, loss="sapo", params=(), replay="none")
        if arm != sapo and not (arm.loss == "sapo" and arm.replay != "none"):
            yield claim(_question(arm), sapo, arm)
    for arm in arms:
        if arm.replay != "none":
            yield claim("replay", arm, replace(arm, replay="none"))
    for arm in arms:
        if arm.staleness:
            yield claim("fresh against stale", replace(arm, staleness=0), arm)


def _question(arm: Arm) -> str:
    """Which of the stress's questions SAPO against this arm belongs to."""
    if arm.staleness:
        return "stale rollouts"
    if arm.replay != "none":
        return "SAPO without replay against others with it"
    if arm.loss not in PAPER_LOSSES or arm.params:
        return "other losses"
    if arm.lr_factor != 1:
        return "learning rate"
    return "number of updates" if arm.mini_batches > 1 else "one update, where losses do not differ"


class _Measured(NamedTuple):
    claim: Claim
    measure: Measure
    difference: Difference | None


def _family(entry: _Measured) -> tuple[str, str, str]:
    return entry.claim.figure, entry.claim.question, entry.measure


def judge(claims: Sequence[Claim], results: Results) -> list[Judged]:
    """Every claim on every measure, the p values adjusted within each family."""
    raw = [_Measured(claim, measure, _difference(claim, measure, results)) for claim in claims for measure in _BOTH]
    judged: list[Judged] = []
    for family_ in dict.fromkeys(map(_family, raw)):
        own = [entry for entry in raw if _family(entry) == family_]
        tested = [d.p for _, _, d in own if d is not None and d.p is not None]
        adjusted = iter(holm(tested))
        for claim, measure, d in own:
            p = next(adjusted) if d is not None and d.p is not None else None
            items = _items(claim, results) if measure == "pass@1" else None
            found = {"difference": d, "adjusted_p": p, "verdict": verdict(d, p), "items": items}
            judged.append(Judged(claim=claim, measure=measure, **found))
    return judged


def value(row: RunRow, measure: Measure) -> float | None:
    """Of one run."""
    return row.end_mean("reward") if measure == "reward" else row.pass_at_1


def _difference(claim: Claim, measure: Measure, results: Results) -> Difference | None:
    first, second = (
        {row.seed: v for row in results.of(arm) if (v := value(row, measure)) is not None}
        for arm in (claim.first, claim.second)
    )
    return paired(first, second)


def _items(claim: Claim, results: Results) -> tuple[Estimate, float] | None:
    """Over the seeds that both arms have."""
    first, second = results.of(claim.first), results.of(claim.second)
    common = {row.seed for row in first} & {row.seed for row in second}
    return by_items(*([row.items for row in rows if row.seed in common] for rows in (first, second)))


def summarise(arm: Arm, results: Results, drop: float) -> ArmSummary | None:
    """None if no run of the arm is finished."""
    rows = results.of(arm)
    ends = [end for row in rows if (end := row.end_mean("reward")) is not None]
    if not ends:
        return None
    passes = [row.pass_at_1 for row in rows if row.pass_at_1 is not None]
    largest = [v for row in rows for v in row.curves["ratio_max"] if v is not None]
    return ArmSummary(
        arm=arm,
        n=len(ends),
        reward=estimate(ends),
        pass_at_1=_of_shares(passes),
        collapsed=sum(_collapsed(row, results, drop) for row in rows),
        fell=math.fsum(_fell(row) for row in rows) / len(rows),
        gate=_over_seeds(rows, "gate"),
        ratio_dev=_over_seeds(rows, "ratio_dev"),
        ratio_max=max(largest, default=None),
        flip=_over_seeds(rows, "flip"),
    )


def _collapsed(row: RunRow, results: Results, drop: float) -> bool:
    end, start = row.end_mean("reward"), results.start_reward(row.start)
    return end is not None and start is not None and collapsed(end, start, drop)


def _of_shares(values: Sequence[float]) -> Estimate | None:
    """The interval cut to [0, 1]."""
    if not values:
        return None
    e = estimate(values)
    return replace(e, ci95=e.ci95 and (max(0.0, e.ci95[0]), min(1.0, e.ci95[1])))


def _fell(row: RunRow) -> float:
    rewards = [r for r in row.curves["reward"] if r is not None]
    end = row.end_mean("reward")
    return best_window(rewards, max(1, round(BEST_SHARE * row.steps))) - (end or 0.0) if rewards else 0.0


def _over_seeds(rows: Sequence[RunRow], name: str) -> float | None:
    """Mean over seeds of the mean over all steps."""
    means = [math.fsum(known) / len(known) for row in rows if (known := [v for v in row.curves[name] if v is not None])]
    return math.fsum(means) / len(means) if means else None


def collapse_verdict(first: ArmSummary | None, second: ArmSummary | None) -> tuple[Verdict, float | None]:
    """Of the claim that `second` collapses and `first` does not: by Fisher's exact test on the seeds; and its p."""
    if first is None or second is None:
        return Verdict.MISSING, None
    p = fisher(first.collapsed, first.n, second.collapsed, second.n)
    if p >= LEVEL:
        return Verdict.NOT_APART, p
    more = second.collapsed / second.n > first.collapsed / first.n
    return (Verdict.SEEN if more else Verdict.CONTRADICTED), p


def fisher(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """Two-sided p of Fisher's exact test that two shares are one: over all tables with the same margins that are no
    likelier than the one seen."""
    hits = hits_a + hits_b

    def ways(a: int) -> int:
        return math.comb(n_a, a) * math.comb(n_b, hits - a)

    tables = range(max(0, hits - n_b), min(n_a, hits) + 1)
    return sum(ways(a) for a in tables if ways(a) <= ways(hits_a)) / math.comb(n_a + n_b, hits)
