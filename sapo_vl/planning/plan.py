"""A plan as a whole, as text and as JSON."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from sapo_vl.config import RunConfig
from sapo_vl.planning.limits import Misfit, first_misfit, largest_response, largest_token_budget
from sapo_vl.planning.machine import GB, STATED, Rates, this_machine
from sapo_vl.planning.phases import EVALUATION, TRAINING, Case, Phase, phases
from sapo_vl.planning.rows import full_row
from sapo_vl.planning.seconds import phase_seconds, step_seconds
from sapo_vl.planning.sizes import find_config, model_sizes

log = logging.getLogger(__name__)
NOT_COUNTED = "Estimates: nothing here was measured on a GPU. Not counted: other users of the memory, the page cache."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    case: Case
    phases: tuple[Phase, ...]
    seconds: dict[str, float]
    token_budget: int  # the largest that fits
    response_tokens: int  # the longest response that fits
    training: Misfit | None
    evaluation: Misfit | None

    @property
    def fits(self) -> bool:
        """Whether training does."""
        return self.training is None


def make_plan(case: Case, rates: Rates = STATED) -> Plan:
    return Plan(
        case=case,
        phases=tuple(phases(case)),
        seconds=phase_seconds(case, rates),
        token_budget=largest_token_budget(case),
        response_tokens=largest_response(case),
        training=first_misfit(case, TRAINING),
        evaluation=first_misfit(case, EVALUATION),
    )


def summary(case: Case) -> str:
    """One line: the fullest moment of training, and what does not fit."""
    found = [(room.taken_bytes / max(1, room.capacity_bytes), p, room) for p in phases(case) if p.stage == TRAINING
             for room in p.rooms]  # fmt: skip
    _, phase, room = max(found, key=lambda x: x[0])
    m = case.sizes
    text = (
        f"plan: {m.parameters / 1e9:.3g}B parameters on {case.machine.text()}; fullest in phase '{phase.name}': "
        f"{room.taken_bytes / GB:.1f} of {room.capacity_bytes / GB:.1f} GB ({room.place})"
    )
    misfit = first_misfit(case, TRAINING)
    return text if misfit is None else f"{text}. {misfit_text(misfit)}"


def summary_here(config: RunConfig) -> str:
    """`summary` of a run on this machine, whose model.path is a folder. Under a second: nothing is loaded.

    Models come from anywhere, and the checks of a run have let this one pass: where only the estimate cannot deal with
    it, the line says so, with the traceback in the log, and the run goes on.
    """
    try:
        name, hf_config = find_config(config.model)
        sizes = model_sizes(name, hf_config, config.model)
        return summary(Case(sizes=sizes, config=config, machine=this_machine(config.processes)))
    except Exception as error:
        log.warning("no plan could be made of %s", config.model.path, exc_info=True)
        return f"plan: none, {type(error).__name__}: {error}"


def misfit_text(misfit: Misfit) -> str:
    items = ", ".join(f"{name} {size / GB:.1f}" for name, size in misfit.largest)
    mend = "no single setting mends it"
    if misfit.mend:
        mend = f"{misfit.mend} mends {'it' if misfit.also_whole else 'this phase, not all of them'}"
    return (
        f"Does not fit: phase '{misfit.phase}' takes {misfit.taken_bytes / GB:.1f} of {misfit.capacity_bytes / GB:.1f} "
        f"GB ({misfit.place}; {items}); {mend}"
    )


def as_text(plan: Plan) -> str:
    case, m, c = plan.case, plan.case.sizes, plan.case.config
    row = full_row(m, c)
    share = f", {m.active / 1e9:.3g}B of them for a token" if m.is_moe else ""
    lines = [
        f"{m.name}: {m.parameters / 1e9:.4g}B parameters{share}, {m.learning / 1e9:.4g}B learn; {c.model.dtype}",
        f"{case.machine.text()}; ZeRO {c.zero.stage}, rollouts by {c.rollout.engine}",
        "",
        f"{'phase':14} {'GB a GPU':>14} {'GB a host':>16} {'seconds':>9}  largest",
    ]
    for phase in plan.phases:
        room = max(phase.rooms, key=lambda r: r.taken_bytes / max(1, r.capacity_bytes))
        largest = ", ".join(f"{i.name} {i.bytes / GB:.1f}" for i in sorted(room.items, key=lambda i: -i.bytes)[:3])
        seconds = plan.seconds.get(phase.name)
        lines.append(
            f"{phase.name:14} {_room(phase, 'GPU'):>14} {_room(phase, 'host'):>16} "
            f"{'' if seconds is None else f'{seconds:,.0f}':>9}  {'' if phase.fits else 'DOES NOT FIT: '}{largest}"
        )
    step = step_seconds(plan.seconds)
    lines += [
        "",
        f"a step takes about {step:,.0f} s at the stated rates, {c.steps} steps {c.steps * step / 3600:,.1f} h",
        f"largest row: {row.tokens:,} tokens, {row.responses} response(s) to {row.prompts} prompt(s); "
        f"batch.tokens_per_micro_batch up to {plan.token_budget:,} and rollout.max_new_tokens up to "
        f"{plan.response_tokens:,} fit",
    ]
    for stage, misfit in (("train", plan.training), ("eval", plan.evaluation)):
        lines.append(f"sapo-vl {stage}: {'fits' if misfit is None else misfit_text(misfit)}")
    return "\n".join([*lines, NOT_COUNTED])


def _room(phase: Phase, place: str) -> str:
    found = [r for r in phase.rooms if r.place == place]
    return f"{found[0].taken_bytes / GB:,.1f} / {found[0].capacity_bytes / GB:,.0f}" if found else "-"


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain values, units in the keys."""
    return {
        "model": dataclasses.asdict(plan.case.sizes),
        "machine": dataclasses.asdict(plan.case.machine),
        "load": dataclasses.asdict(plan.case.load),
        "phases": [dataclasses.asdict(p) | {"fits": p.fits, "seconds": plan.seconds.get(p.name)} for p in plan.phases],
        "step_seconds": step_seconds(plan.seconds),
        "largest_token_budget": plan.token_budget,
        "largest_response_tokens": plan.response_tokens,
        "train": None if plan.training is None else dataclasses.asdict(plan.training),
        "eval": None if plan.evaluation is None else dataclasses.asdict(plan.evaluation),
    }
