"""`sapo-vl doctor`: proves on tiny models that this installation fits together, and says what does not.

To add a check: a function in one of the files here and a row in CHECKS.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sapo_vl.doctor import engine_checks, folder_checks, model_checks, system_checks
from sapo_vl.doctor.base import Check, Finding, Inapplicable, Outcome, Subject, Unfit

CHECKS: dict[str, Check] = {
    "versions": system_checks.versions,
    "resources": system_checks.resources,
    "ids": model_checks.ids,
    "positions": model_checks.positions,
    "shared_prefix": model_checks.shared_prefix,
    "deepspeed": model_checks.deepspeed_stages,
    "moe_export": model_checks.moe_export,
    "rewards": system_checks.rewards,
    "vllm_dense": engine_checks.vllm_dense,
    "vllm_moe": engine_checks.vllm_moe,
}
# Those that --model PATH runs.
ON_A_MODEL: dict[str, Check] = {
    "versions": system_checks.versions,
    "resources": system_checks.resources,
    "loading": folder_checks.loading,
    "tokens": folder_checks.tokens,
    "ids": model_checks.ids,
    "positions": model_checks.positions,
    "trial": folder_checks.trial,
    "vllm_model": folder_checks.vllm_model,
    "memory": folder_checks.memory,
}

__all__ = ["CHECKS", "ON_A_MODEL", "Finding", "Outcome", "as_json", "as_text", "examine"]


def examine(names: Sequence[str], model: str = "") -> list[Finding]:
    """Runs the named checks one after the other. What a check raises is its finding: none stops the others."""
    with tempfile.TemporaryDirectory(prefix="sapo_vl_doctor_") as scratch:
        return [_run(name, Subject(model=model, scratch=Path(scratch))) for name in names]


def _run(name: str, subject: Subject) -> Finding:
    started = time.monotonic()
    remedy = ""
    try:
        outcome, detail = Outcome.PASS, (ON_A_MODEL | CHECKS)[name](subject)
    except Inapplicable as reason:
        outcome, detail = Outcome.SKIP, str(reason)
    except Unfit as fault:
        outcome, detail, remedy = Outcome.FAIL, str(fault), fault.remedy
    except Exception as error:  # a check that breaks is a check that does not hold, whatever broke it
        outcome, detail = Outcome.FAIL, f"{type(error).__name__}: {error}"
        remedy = "an error that the check did not expect: reinstall with `bash scripts/setup.sh`, or report it"
    return Finding(name=name, outcome=outcome, detail=detail, remedy=remedy, seconds=time.monotonic() - started)


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, the remedy under one that failed."""
    lines = []
    for f in findings:
        lines.append(f"{f.outcome.value:4}  {f.name:13}  {f.seconds:5.1f} s  {f.detail}")
        if f.remedy:
            lines.append(f"      {'':13}           -> {f.remedy}")
    failed = sum(f.outcome is Outcome.FAIL for f in findings)
    lines.append(f"{failed} of {len(findings)} checks failed" if failed else f"{len(findings)} checks, none failed")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """{"ok": bool, "findings": [...]}"""
    ok = all(f.outcome is not Outcome.FAIL for f in findings)
    return json.dumps({"ok": ok, "findings": [dataclasses.asdict(f) for f in findings]})
