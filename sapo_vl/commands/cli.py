"""The `sapo-vl` command. Every sub-command is a thin call into the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_recipes.arguments import UsageError
from sapo_vl import __version__
from sapo_vl.commands import (
    data,
    evaluation,
    experiments,
    explain,
    launch,
    model,
    plan,
    recipe,
    reward,
    training,
    viewing,
)
from sapo_vl.commands.adding import adder
from sapo_vl.lifeline import Stopped

FAMILIES = (recipe, model, plan, training, launch, evaluation, experiments, viewing, reward, explain)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; 0 if it succeeded, 1 if a check found something, 2 for bad input (one message, no
    traceback), STOPPED or CUT_OFF of sapo_vl.lifeline for a run that was told to stop."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["recipe", "check"]:  # whoever has just built a set looks for it there
        words[0] = "data"
    parser = make_parser()
    args, rest = parser.parse_known_args(words)
    # key=value words may stand anywhere, which argparse's own "*" positionals do not allow.
    if wrong := [text for text in rest if text.startswith("-") or "=" not in text or not args.takes_pairs]:
        parser.error(f"unexpected {' '.join(wrong)}")
    args.pairs, args.parser = rest, parser
    try:
        return args.run(args) or 0
    except _bad_input() as error:
        print(f"sapo-vl {args.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if str(stopped):
            print(f"sapo-vl {args.command}: {stopped}", file=sys.stderr)
        return stopped.status


def make_parser() -> argparse.ArgumentParser:
    """With a sub-command each, and no library loaded."""
    parser = argparse.ArgumentParser(prog="sapo-vl", description=__doc__)
    parser.add_argument("--version", action="version", version=f"sapo-vl {__version__}")
    sub = parser.add_subparsers(dest="command", required=True)
    for family in FAMILIES:
        family.add_parsers(adder(sub))
    sets = sub.add_parser("data", help="Check data set folders; fetch images.", description="Check data set folders.")
    data.add_parsers(adder(sets.add_subparsers(dest="action", required=True), "data "))
    return parser


def _bad_input() -> tuple[type[Exception], ...]:
    """Errors that are the input's, not ours: shown as one message."""
    from rewards.workers.pool import WorkersStuck
    from sapo_vl.config import ConfigError
    from sapo_vl.data.problem_set import DataError, TooManyBadRows
    from sapo_vl.data.sampler import QuotaError
    from sapo_vl.evaluation.errors import EvaluationError
    from sapo_vl.launching import StageFailed
    from sapo_vl.learning.checkpoint import CheckpointError, SaveFailed
    from sapo_vl.learning.final import ExportError
    from sapo_vl.learning.nonfinite import NonFiniteUpdate
    from sapo_vl.learning.weights import ManifestError
    from sapo_vl.model.chat import PromptError
    from sapo_vl.model.loading import ModelError
    from sapo_vl.record.run_lock import FolderTaken
    from sapo_vl.rollout.failures import RolloutStopped
    from sapo_vl.rollout.parity import ParityError
    from sapo_vl.rollout.vllm.contract import VllmMissing
    from sapo_vl.rollout.vllm.engine import EngineFailed
    from sapo_vl.rollout.vllm.serve import ServeError
    from sapo_vl.rollout.vllm.server import ServersUnusable
    from sapo_vl.scoring.failure_watch import ScoringStopped
    from sapo_vl.scoring.lines import RewardLinesError
    from sapo_vl.scoring.scorer import ScoringError
    from sapo_vl.strict import Unreadable

    return (
        UsageError, ConfigError, DataError, ModelError, QuotaError, PromptError, TooManyBadRows, ScoringError,
        ScoringStopped, CheckpointError, SaveFailed, NonFiniteUpdate, StageFailed, ExportError,
        WorkersStuck, RewardLinesError, ParityError, RolloutStopped, VllmMissing, EngineFailed, ManifestError,
        ServeError, ServersUnusable, EvaluationError, FolderTaken, Unreadable,
    )  # fmt: skip
