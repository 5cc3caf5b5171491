"""Accuracy on held-out data, as the config of a run asks for it: greedy, sampled, and with blank images."""

from __future__ import annotations

import logging
from typing import Any

from sapo_vl.data.problem_set import DataError, ProblemSet
from sapo_vl.evaluation.accuracy import evaluate
from sapo_vl.evaluation.config import EvaluationSections
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import SamplingSession

log = logging.getLogger(__name__)


def evaluate_held_out(config: EvaluationSections, session: SamplingSession, scorer: Scorer) -> dict[str, Any]:
    """Every configured mode, and the blank-image control in the first of them, as summary.json wants it.

    The same on every rank: {mode: result of `evaluate`, "blank_image": ...}, and the first mode's entries on top.
    """
    sampling: dict[str, Any] = {"max_new_tokens": config.rollout.max_new_tokens, "seed": config.seed}
    problems = ProblemSet(config.data.path, config.data.eval_split)
    result: dict[str, Any] = {}
    for mode in config.eval.modes:
        result[mode] = evaluate(session, problems, scorer, config.eval, mode=mode, **sampling)
    headline = config.eval.modes[0]
    if config.eval.blank_split:
        try:
            blank = ProblemSet(config.data.path, config.eval.blank_split)
        except DataError as error:
            log.warning("no blank-image control: %s", error)
        else:
            result["blank_image"] = evaluate(session, blank, scorer, config.eval, mode=headline, **sampling)
    return {**result[headline], **result}
