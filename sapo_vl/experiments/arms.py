"""What is run: an arm is a model, a loss and how hard it is pressed; a figure is a list of arms.

Arms of one model differ in what their fields say and in nothing else: same start, same rows, same settings. Equal arms
of two figures are one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sapo_vl.config import RunConfig
from sapo_vl.experiments.config import ExperimentConfig, Figure
from sapo_vl.losses import LOSSES

MINI_BATCHES = 4  # updates per rollout batch in the paper's controlled runs (figures 4 and 5)
MIXED_MINI_BATCHES = 2  # and in its Qwen3-VL runs (figure 6)
PAPER_LOSSES = ("sapo", "gspo", "grpo")
TAU_NEG = (0.95, 1.0, 1.05)  # figure 5
WIDER_TAU_NEG = (0.5, 4.0)  # what the paper does not show
# Not run: its gradient is that of gspo where all tokens of a response have one advantage, as here.
SAME_AS_ANOTHER = ("gspo_token",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Runs that differ in their seed alone."""

    model: str  # a key of ExperimentConfig.models
    loss: str = "sapo"
    params: tuple[tuple[str, float | str], ...] = ()  # of the loss, beside its defaults
    replay: str = "none"  # or "r2", "r3"
    mini_batches: int = MINI_BATCHES
    lr_factor: float = 1.0
    staleness: int = 0
    mixed: bool = False  # on the mixed text and image data
    sequences: bool = False  # writes down every sequence now and then

    @property
    def method(self) -> str:
        """The name in tables: SAPO, GRPO-R2, SAPO(tau_neg=4)."""
        name = self.loss.upper() + ("" if self.replay == "none" else f"-{self.replay.upper()}")
        return name + (f"({', '.join(_settings(self.params))})" if self.params else "")

    @property
    def label(self) -> str:
        """Names the arm on the command line and its folder: one label, one arm."""
        parts = [
            self.model + ("-mixed" if self.mixed else ""),
            self.loss + ("" if self.replay == "none" else f"-{self.replay}"),
            *_settings(self.params),
            f"n{self.mini_batches}",
        ]
        if self.lr_factor != 1:
            parts.append(f"lrx{self.lr_factor:g}")
        if self.staleness:
            parts.append(f"stale{self.staleness}")
        return ".".join([*parts, *(["seq"] if self.sequences else [])])

    def overrides(self, base: RunConfig, sequences_every: int) -> list[str]:
        """`key=value` on top of the config `base` that all arms of the model share."""
        # A saved config has the reduction of its own loss, which is not that of every loss.
        reduction = LOSSES[self.loss][1].own_reduction
        pairs = [f"loss.name={self.loss}", f"loss.params={json.dumps(dict(self.params))}"]
        pairs += [f"loss.reduction={reduction}", f"batch.mini_batches={self.mini_batches}"]
        if reduction == "token_sum":
            responses = base.rollout.prompts_per_step * base.rollout.group_size / self.mini_batches
            pairs.append(f"loss.token_sum_constant={responses * base.rollout.max_new_tokens:g}")
        if LOSSES[self.loss][1].weighs_by_rollout and base.mismatch.correction != "none":
            pairs.append("mismatch.correction=none")  # it makes up for the engine itself
        if self.lr_factor != 1:
            pairs.append(f"optim.lr={base.optim.lr * self.lr_factor!r}")
        if self.replay != "none":
            pairs.append(f"replay={self.replay}")
        if self.staleness:
            pairs.append(f"rollout.staleness={self.staleness}")
        if self.sequences:
            pairs.append(f"log.save_sequences_every={sequences_every}")
        return pairs


def _settings(params: Sequence[tuple[str, float | str]]) -> list[str]:
    return [f"{key}={value}" if isinstance(value, str) else f"{key}={value:g}" for key, value in params]


def arms_of(experiment: ExperimentConfig) -> dict[Figure, list[Arm]]:
    """Figure -> its arms; the same arm may be in several. Figure 1 needs none."""
    names = list(experiment.models)
    main = names[0]
    of_all = {
        "1": [],
        "2": [Arm(model=name, sequences=True) for name in names],
        "4": [*family(Arm(model=main), moe=experiment.models[main].moe)],
        "5": [sapo_tau_neg(main, tau) for tau in (*TAU_NEG, *WIDER_TAU_NEG)],
        "6": [
            arm
            for name in names
            if experiment.models[name].mixed
            for arm in _mixed(Arm(model=name, mixed=True, mini_batches=MIXED_MINI_BATCHES), experiment.models[name].moe)
        ],
        "stress": list(dict.fromkeys(_stress(experiment, main))),
    }
    return {figure: of_all[figure] for figure in experiment.figures}


def family(base: Arm, *, moe: bool) -> Iterator[Arm]:
    """SAPO, GSPO, GRPO and, for a mixture of experts, GRPO with routing replay."""
    yield base
    yield replace(base, loss="gspo")
    yield replace(base, loss="grpo")
    if moe:
        yield replace(base, loss="grpo", replay="r2")


def replayed(base: Arm) -> Iterator[Arm]:
    """The seven that differ in loss and replay alone."""
    yield from family(base, moe=True)
    yield replace(base, loss="grpo", replay="r3")
    yield replace(base, replay="r2")
    yield replace(base, replay="r3")


def _mixed(base: Arm, moe: bool) -> list[Arm]:
    """The paper's three: its GRPO has routing replay, which a dense model cannot have."""
    arms = list(family(base, moe=moe))
    return [arm for arm in arms if not moe or arm.loss != "grpo" or arm.replay != "none"]


def _stress(experiment: ExperimentConfig, model: str) -> Iterator[Arm]:
    grid, moe = experiment.stress, experiment.models[model].moe
    most = max(grid.mini_batches)
    for n in sorted(grid.mini_batches):
        yield from (Arm(model=model, loss=loss, mini_batches=n) for loss in PAPER_LOSSES)
    for factor in grid.lr_factors:
        yield from (Arm(model=model, loss=loss, mini_batches=most, lr_factor=factor) for loss in PAPER_LOSSES)
    hard = Arm(model=model, mini_batches=most, lr_factor=grid.hard_lr_factor)
    if moe:
        yield from replayed(hard)
        yield replace(hard, loss="gspo", replay="r2")
    if grid.stale:
        for n in (MINI_BATCHES, most):
            yield from family(Arm(model=model, mini_batches=n, staleness=1), moe=moe)
    yield from (replace(hard, loss=loss) for loss in LOSSES if loss not in SAME_AS_ANOTHER)
    for other in grid.also:
        yield replace(hard, loss=other.loss, params=tuple(other.params.items()), replay=other.replay)


def sapo_tau_neg(model: str, value: float) -> Arm:
    """SAPO with another temperature of negative tokens; with the default one it is the same arm as plain SAPO."""
    default: Mapping[str, float] = LOSSES["sapo"][1]().model_dump()
    return Arm(model=model, params=() if value == default["tau_neg"] else (("tau_neg", value),))
