"""Figures 2 and 3: how far token ratios scatter within responses, from the records of log.save_sequences_every."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sapo_vl.learning.sequence_stats import BOUND_FROM, SMALL_VAR
from sapo_vl.learning.sequence_stats import FINE_LOG_RATIO_EDGES as LOG_RATIO_EDGES

FOLDER = "sequences"  # of a run's folder
NEAR_ONE = 10**-1.0  # |log r| below this edge counts as near 1
SLACK = 1e-9  # rounding of numbers that were written as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Responses of one model, over its seeds, in updates after the first of their step: in the first r = 1."""

    model: str
    seeds: int
    responses: int
    tokens: int
    var: np.ndarray  # [B]
    d: np.ndarray  # [B]
    bound: np.ndarray  # [B] tau^2 / 4 Var
    log_ratio_counts: np.ndarray  # [len(LOG_RATIO_EDGES) + 1]
    violations: int
    left_out: int  # responses with a ratio that is not finite

    @property
    def small_share(self) -> float:
        return float(np.mean(self.var < SMALL_VAR))

    @property
    def near_one_share(self) -> float:
        """Of the tokens."""
        inside = [i for i, edge in enumerate(LOG_RATIO_EDGES) if -NEAR_ONE < edge <= NEAR_ONE]
        return float(self.log_ratio_counts[inside].sum() / max(1, self.log_ratio_counts.sum()))


def read_scatter(model: str, folders: Iterable[Path]) -> Scatter | None:
    """`folders`: of the runs. None if they hold no record of an update after the first."""
    var, d, bound = [], [], []
    counts = np.zeros(len(LOG_RATIO_EDGES) + 1, np.int64)
    tokens = left_out = seeds = 0
    for folder in folders:
        seen = False
        for path in sorted((folder / FOLDER).glob("step_*.jsonl")):
            for line in _later_updates(path):
                seen = True
                if line["var"] is None:
                    left_out += 1
                    continue
                var.append(line["var"])
                d.append(line["d"])
                bound.append(line["bound"])
                tokens += line["tokens"]
                for place, n in line["log_ratio_bins"].items():
                    counts[int(place)] += n
        seeds += seen
    if not var:
        return None
    d_, bound_ = np.asarray(d), np.asarray(bound)
    return Scatter(
        model=model,
        seeds=seeds,
        responses=len(var),
        tokens=tokens,
        var=np.asarray(var),
        d=d_,
        bound=bound_,
        log_ratio_counts=counts,
        violations=int(np.count_nonzero(d_ > bound_ * (1 + SLACK) + SLACK)),
        left_out=left_out,
    )


def _later_updates(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line["update"] > 1:
                yield line


def histogram_line(scatter: Scatter) -> dict[str, Any]:
    """What figures 2 and 3 are drawn from, as JSON: histograms, and quantiles of Var, D and D over its bound."""
    quantiles = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
    judged = scatter.bound > BOUND_FROM
    share = scatter.d[judged] / scatter.bound[judged]
    return {
        "model": scatter.model,
        "seeds": scatter.seeds,
        "responses": scatter.responses,
        "tokens": scatter.tokens,
        "violations": scatter.violations,
        "left_out": scatter.left_out,
        "var_below_0.02": scatter.small_share,
        "tokens_near_1": scatter.near_one_share,
        "log_ratio_edges": list(LOG_RATIO_EDGES),
        "log_ratio_counts": scatter.log_ratio_counts.tolist(),
        "quantiles": list(quantiles),
        "var": np.quantile(scatter.var, quantiles).tolist(),
        "d": np.quantile(scatter.d, quantiles).tolist(),
        "d_over_bound": np.quantile(share, quantiles).tolist() if len(share) else None,
    }
