"""Does the rollout engine compute what the trainer computes? Checked on sampled responses; a run stops if not.

An engine with stale or misplaced weights, other positions or another sampling law answers fluently, and the
ratios of an update are wrong from the first token on. So the law that the engine recorded for what it sampled is
compared with the trainer's log-probs of the same tokens, for prompts with images and for text-only ones apart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sapo_vl.data.feed import read_prompt
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.model.batching import filler, pack
from sapo_vl.model.chat import Chat
from sapo_vl.model.routing import RouterMargins
from sapo_vl.rollout import RolloutEngine, SamplingParams
from sapo_vl.rollout.base import ParityConfig
from sapo_vl.types import Finish, Prompt

log = logging.getLogger(__name__)

# |log p_engine - log p_trainer| in nats that 95% of the tokens must keep below. Two orders of summation in fp32
# differ by 1e-6; the limit leaves room for depth, and for the few tokens that another expert may be chosen for.
# In bfloat16 no run on a GPU has been measured yet, so its limit is a metric first: beyond it the run says so and goes
# on, and it stops on the mean of all tokens, which wrong weights or positions move by nats.
LIMITS = {"float32": 1e-4, "bfloat16": 0.15}
MEAN_LIMITS = {"bfloat16": 0.15}
QUANTILE = 0.95
# Another order of summation moves a router's probabilities by some 1e-7 in float32. Where the last chosen and the first
# rejected expert are nearer than this, engine and trainer may go through different ones with the same weights, which
# moves log-probs by what rounding to bfloat16 does: 0.05 on tiny models.
NEAR_TIE = 1e-6
KINDS = ("text", "image")


class ParityError(RuntimeError):
    """Engine and trainer disagree, and no way of handing weights over mends it. Says which part differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Distribution of |log p_engine - log p_trainer| over the tokens of one kind of prompt, all ranks."""

    tokens: int
    mean: float
    quantile: float  # the QUANTILE one
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Gaps by kind; kinds without prompts are absent."""

    gaps: Mapping[str, Gap]
    settled: Mapping[str, Gap]  # of prompts whose routing, with their responses', is nowhere within NEAR_TIE of a tie
    refused: tuple[str, ...]  # why responses could not be used, any rank

    def values(self, kind: str) -> dict[str, float]:
        """To log. near_tie_share: of the tokens, those of prompts that are not settled, which have the wider limit."""
        gap, settled = self.gaps[kind], self.settled.get(kind)
        near = 1 - (settled.tokens if settled else 0) / gap.tokens
        return {"mean": gap.mean, "p95": gap.quantile, "largest": gap.largest, "near_tie_share": near}

    def bad(self, limit: float, mean_limit: float = math.inf) -> tuple[str, ...]:
        """Kinds beyond a limit. Where routing is near a tie, a float32 limit is that of bfloat16."""
        return tuple(kind for kind, gap in self.gaps.items() if not self._within(kind, gap, limit, mean_limit))

    def _within(self, kind: str, gap: Gap, limit: float, mean_limit: float) -> bool:
        settled = self.settled.get(kind)
        if settled is not None and not settled.quantile <= limit:
            return False
        tied = settled is None or settled.tokens < gap.tokens
        return gap.mean <= mean_limit and gap.quantile <= (max(limit, LIMITS["bfloat16"]) if tied else limit)


def measure(
    engine: PolicyEngine,
    chat: Chat,
    rollouts: RolloutEngine,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    world: World,
) -> ParityReport:
    """All ranks together, equally many prompts on each."""
    near_tie = NEAR_TIE if next(engine.module.parameters()).dtype == torch.float32 else 0.0
    groups = rollouts.generate(prompts, params)
    blank = chat.blank_pixels()
    usable = [g for g in groups if all(r.finish is not Finish.FAILED for r in g.rollouts)]
    refused = {r.score_detail for g in groups for r in g.rollouts if r.finish is Finish.FAILED}
    batches = [pack([g], blank) for g in usable]
    with RouterMargins(engine.module.hf) as margins:
        own = engine.logprobs(batches, pack([filler(prompts[0], chat.eos_ids[0])], blank), params.temperature)
    gaps: list[tuple[str, bool, np.ndarray]] = []
    for i, (batch, (logprobs, _, _)) in enumerate(zip(batches, own, strict=True)):
        difference = (batch.rollout_logprobs - logprobs.float().cpu()).abs().numpy()
        gaps.append(("image" if batch.has_images else "text", margins.of_pass(i) >= near_tie, difference))
    everyone = world.gather((gaps, refused))
    all_gaps = [gap for part, _ in everyone for gap in part]
    return ParityReport(
        gaps=_by_kind(all_gaps),
        settled=_by_kind([gap for gap in all_gaps if gap[1]]),
        refused=tuple(sorted(set().union(*(r for _, r in everyone)))),
    )


def _by_kind(gaps: Sequence[tuple[str, bool, np.ndarray]]) -> dict[str, Gap]:
    values = {kind: [v for k, _, v in gaps if k == kind] for kind in KINDS}
    return {kind: _gap(np.concatenate(v)) for kind, v in values.items() if v}


def _gap(values: np.ndarray) -> Gap:
    return Gap(
        tokens=len(values),
        mean=float(values.mean()),
        quantile=float(np.quantile(values, QUANTILE)),
        largest=float(values.max()),
    )


class ParityGate:
    """Checks after a sync, and mends it or stops the run. One per run; all ranks call it together."""

    def __init__(
        self,
        config: ParityConfig,
        engine: PolicyEngine,
        chat: Chat,
        rollouts: RolloutEngine,
        prompts: Sequence[Prompt],
        world: World,
        dtype: str,
    ) -> None:
        self._config, self._engine, self._chat, self._rollouts = config, engine, chat, rollouts
        self._prompts, self._world = prompts, world
        self.limit = config.limit or LIMITS[dtype]
        # By default what is only an estimate does not stop a run; a limit that the user has set does.
        self.mean_limit = math.inf if config.limit else MEAN_LIMITS.get(dtype, math.inf)
        self._syncs = 0

    def after_sync(self, version: int) -> dict[str, float]:
        """Numbers to log, none where no check was due or there are no prompts. Raises ParityError.

        The first sync hands over the weights the engine started from, the second the first that differ.
        """
        self._syncs += 1
        due = self._syncs <= 2 or (self._config.every > 0 and self._syncs % self._config.every == 0)
        if not due or not self._prompts:
            return {}
        report = self.check(version)
        return {f"parity/{kind}/{key}": value for kind in report.gaps for key, value in report.values(kind).items()}

    def check(self, version: int) -> ParityReport:
        """Measures; beyond the limit it hands the weights over in a surer way and measures again."""
        while True:
            report = self._measure(version)
            beyond = report.bad(self.limit)
            bad = beyond if self.mean_limit == math.inf else report.bad(math.inf, self.mean_limit)
            if not bad and report.gaps:
                if beyond and self._world.is_main:
                    text = _describe(report, beyond, self.limit)
                    log.warning(
                        "after the sync of version %d: %s. The run goes on: it stops at a mean of %g, or at "
                        "rollout.parity.limit for 95%% of the tokens",
                        *(version, text, self.mean_limit),
                    )
                return report
            problem = _describe(report, bad, self.limit)
            if self.mean_limit < math.inf:
                problem = f"a mean of at most {self.mean_limit:g}, and {problem}"
            surer = self._rollouts.surer_sync()
            if surer is None:
                raise ParityError(f"after the sync of version {version}: {problem}")
            if self._world.is_main:
                log.warning("after the sync of version %d: %s. Syncing by %r from now on", version, problem, surer)
            self._rollouts.sync(version)

    def _measure(self, version: int) -> ParityReport:
        params = SamplingParams(
            n=self._config.responses, max_new_tokens=self._config.max_new_tokens, temperature=1.0, seed=version
        )
        return measure(self._engine, self._chat, self._rollouts, self._prompts, params, self._world)


def probe_prompts(problems: ProblemSet, chat: Chat, count: int) -> list[Prompt]:
    """The first `count` readable prompts with images and the first `count` without; the same on every rank."""
    found: dict[bool, list[Prompt]] = {True: [], False: []}
    for row in range(min(len(problems), 100 * count)):
        if all(len(prompts) >= count for prompts in found.values()):
            break
        prompt, _ = read_prompt(problems, row, chat)
        if prompt is not None and len(found[bool(prompt.images)]) < count:
            found[bool(prompt.images)].append(prompt)
    return found[True] + found[False]


def _describe(report: ParityReport, bad: Sequence[str], limit: float) -> str:
    if not report.gaps:
        return f"every probe was refused: {'; '.join(report.refused[:3])}"
    figures = ", ".join(
        f"{kind} prompts {gap.quantile:.2g} (mean {gap.mean:.2g}, max {gap.largest:.2g}, {gap.tokens} tokens)"
        for kind, gap in report.gaps.items()
    )
    if "text" in bad:
        part = (
            "text-only prompts differ too, so look at the language model first: weights that the engine did not take "
            "over (embeddings, output projection, experts), or its sampling law"
        )
    elif bad:
        part = (
            "text-only prompts agree, so it is the images: pixels, the vision tower's weights, M-RoPE positions, or "
            "features cached from before the sync"
            if "text" in report.gaps
            else "there is no text-only prompt to compare with: it may be the images or the language model"
        )
    return (
        f"{QUANTILE:.0%} of the tokens should have log-probs within {limit:g} of the trainer's; they are within "
        f"{figures}; {part}"
    )
