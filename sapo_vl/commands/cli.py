"""The `sapo-vl` command. Every sub-command is a thin call into the package."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

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

# By module.
BAD_INPUT = {
    "data_recipes.arguments": "UsageError",
    "rewards.workers.pool": "WorkersStuck",
    "sapo_vl.config": "ConfigError",
    "sapo_vl.data.folder": "DataError",
    "sapo_vl.data.problem_set": "TooManyBadRows",
    "sapo_vl.data.sampler": "QuotaError",
    "sapo_vl.evaluation.errors": "EvaluationError",
    "sapo_vl.launching": "StageFailed",
    "sapo_vl.learning.checkpoint": "CheckpointError SaveFailed",
    "sapo_vl.learning.final": "ExportError",
    "sapo_vl.learning.nonfinite": "NonFiniteUpdate",
    "sapo_vl.learning.weights": "ManifestError",
    "sapo_vl.model.errors": "ModelError",
    "sapo_vl.model.prompt_errors": "PromptError",
    "sapo_vl.record.run_lock": "FolderTaken",
    "sapo_vl.rollout.failures": "RolloutStopped",
    "sapo_vl.rollout.parity": "ParityError",
    "sapo_vl.rollout.vllm.contract": "VllmMissing",
    "sapo_vl.rollout.vllm.engine": "EngineFailed",
    "sapo_vl.rollout.vllm.serve": "ServeError",
    "sapo_vl.rollout.vllm.server": "ServersUnusable",
    "sapo_vl.scoring.failure_watch": "ScoringStopped",
    "sapo_vl.scoring.lines": "RewardLinesError",
    "sapo_vl.scoring.scorer": "ScoringError",
    "sapo_vl.strict": "Unreadable",
}


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
    # DeepSpeed's lines, the first of them as it is imported, go to standard output, which is for what a command prints.
    logging.getLogger("DeepSpeed").addFilter(_to_standard_error)
    try:
        return args.run(args) or 0
    except _bad_input() as error:
        print(f"sapo-vl {args.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if str(stopped):
            print(f"sapo-vl {args.command}: {stopped}", file=sys.stderr)
        return stopped.status


def _to_standard_error(record: logging.LogRecord) -> bool:
    """A filter that prints the record itself, and lets no handler have it."""
    print(f"{record.name} {record.levelname}: {record.getMessage()}", file=sys.stderr)
    return False


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
    """Errors that are the input's, not ours: shown as one message.

    Only of modules that are loaded: others cannot have raised, and loading the trainer to refuse a typing error takes
    a while.
    """
    loaded = ((sys.modules.get(module), names) for module, names in BAD_INPUT.items())
    return tuple(getattr(module, name) for module, names in loaded if module is not None for name in names.split())
