"""The trainer's side of the reward `judge`: canaries with every batch, what the judge did, and when a run must stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any

from rewards.base import Unscorable
from rewards.judge import ASKED, CACHED, SILENT
from rewards.judging.canaries import Canary, canaries, chosen
from rewards.judging.pictures import drawn
from rewards.judging.settings import JudgeSettings
from rewards.workers.worker import Result
from sapo_vl.distributed import World
from sapo_vl.types import Problem

JUDGE = "judge"
PER_BATCH = (3, 1)  # wrong and right canaries asked with every scored batch, over all ranks together
WINDOW = 32  # verdicts on wrong canaries that the false-positive rate is taken over, the latest ones
MINIMUM = 8  # and a run is not stopped before there are this many
REFUSED = 8  # right canaries in a row, or all of those before training, that it takes to be a judge that says no to all


class JudgeUnfit(RuntimeError):
    """The judge cannot be asked, calls too many wrong answers correct, or calls no answer correct. Says the figures
    and what to set."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the judge said to a canary."""

    right: bool  # the verdict that it should get
    called_right: bool | None  # None: no verdict
    pictured: bool
    why: str = ""  # that there is none


class JudgeWatch:
    """Asks the judge of `params` (rewards.params) its canaries. Without one it does nothing.

    Canaries never go through the cache, and are dealt over the ranks; all ranks come to the same figures and to the
    same end.
    """

    def __init__(self, params: Mapping[str, Mapping[str, Any]], world: World):
        self._params, self._world = params.get(JUDGE), world
        self._batches = 0
        self._wrong: list[bool] = []  # verdicts on the latest wrong canaries, True for a false positive
        self._right: list[bool] = []  # verdicts on the latest right ones, True for one that was called correct
        self._checked = False
        self.metrics: dict[str, float] = {}  # of the latest batch

    def check(self) -> None:
        """Ask every canary once, before training; a second call does nothing.

        Raises:
            JudgeUnfit: on all ranks: most canaries get no verdict, too many wrong ones are called correct, or none of
                the right ones.
        """
        if self._params is None or self._checked:
            return
        settings = JudgeSettings(**self._params)
        _client(settings).forget_outage()
        outcomes = self._ask(settings, canaries(settings.images))
        _refuse_silence(settings, outcomes, "canaries", "Start it, or correct rewards.params.judge")
        pictured = [outcome for outcome in outcomes if outcome.pictured]
        cure = "Serve a model that sees pictures, or set rewards.params.judge.images=false"
        _refuse_silence(settings, pictured, "canaries with a picture", cure)
        self._take_in(settings, outcomes)
        self._refuse_refusal(settings, len(self._right))
        self._checked = True

    def after_batch(self, results: Sequence[Result]) -> None:
        """Ask this batch's canaries, and count what the judge did for `results`, those of this rank.

        Raises:
            JudgeUnfit: on all ranks: too many of the latest wrong canaries were called correct, or none of the latest
                right ones.
        """
        if self._params is None:
            return
        settings = JudgeSettings(**self._params)
        outcomes = self._ask(settings, chosen(self._batches, *PER_BATCH, settings.images))
        self._batches += 1
        verdicts, cached, failures = self._world.sum(_counts(results))
        right = _verdicts(outcomes, right=True)
        self.metrics = {
            "judge/asked": verdicts - cached + failures,
            "judge/cache_hits": cached,
            "judge/failures": failures,
            "judge/canary_asked": len(outcomes),
            "judge/canary_failures": sum(o.called_right is None for o in outcomes),
        }
        if right:
            self.metrics["judge/canary_false_negative_rate"] = 1 - sum(right) / len(right)
        self._take_in(settings, outcomes)
        self._refuse_refusal(settings, REFUSED)

    def _ask(self, settings: JudgeSettings, canaries: Sequence[Canary]) -> list[_Outcome]:
        """Outcomes of all ranks in rank order; this rank asks its share, several at a time."""
        mine = canaries[self._world.rank :: self._world.size]
        with ThreadPoolExecutor(max_workers=min(len(mine), settings.concurrency) or 1) as threads:
            outcomes = list(threads.map(lambda canary: _outcome(settings, canary), mine))
        return [outcome for part in self._world.gather(outcomes) for outcome in part]

    def _take_in(self, settings: JudgeSettings, outcomes: Sequence[_Outcome]) -> None:
        self._right = [*self._right, *_verdicts(outcomes, right=True)][-REFUSED:]
        self._wrong = [*self._wrong, *_verdicts(outcomes, right=False)][-WINDOW:]
        if not self._wrong:
            return
        fooled, asked = sum(self._wrong), len(self._wrong)
        self.metrics["judge/canary_false_positive_rate"] = fooled / asked
        if asked >= MINIMUM and fooled / asked > settings.canary_limit:
            raise JudgeUnfit(
                f"the judge {settings.model!r} called {fooled} of the latest {asked} wrong canaries correct "
                f"({fooled / asked:.0%}), more than rewards.params.judge.canary_limit={settings.canary_limit:g}: a "
                "policy would learn to fool it. Use a better judge or a rule (rewards/judging/canaries.py has the "
                "canaries); raise the limit only if you accept such rewards"
            )

    def _refuse_refusal(self, settings: JudgeSettings, least: int) -> None:
        """Stop for a judge that called none of at least `least` right canaries correct: what it scores is always 0."""
        if 0 < least <= len(self._right) and not any(self._right) and settings.canary_limit < 1:
            raise JudgeUnfit(
                f"the judge {settings.model!r} called none of the latest {len(self._right)} right canaries correct: "
                "every answer that reaches it would score 0, which trains against answers that the rule cannot read. "
                "Use a better judge or the rule alone (rewards/judging/canaries.py has the canaries); "
                "rewards.params.judge.canary_limit=1 goes on in spite of canaries"
            )


def _client(settings: JudgeSettings) -> Any:
    from rewards.judging.client import judge_of  # httpx, for runs that have a judge

    return judge_of(settings)


def _outcome(settings: JudgeSettings, canary: Canary) -> _Outcome:
    deadline, pictured = monotonic() + settings.deadline_s, bool(canary.picture)
    shown = [drawn(canary.picture)] if pictured else []
    try:
        verdict = _client(settings).verdict(canary.question, canary.gold, canary.answer, deadline, shown)
    except Unscorable as error:
        return _Outcome(canary.right, None, pictured, str(error))
    return _Outcome(canary.right, verdict, pictured)


def _refuse_silence(settings: JudgeSettings, outcomes: Sequence[_Outcome], what: str, cure: str) -> None:
    """Raises JudgeUnfit if more than half of them have no verdict."""
    silent = Counter(o.why for o in outcomes if o.called_right is None)
    if 2 * silent.total() > len(outcomes):
        raise JudgeUnfit(
            f"the judge {settings.model!r} at {settings.url} gave no verdict on {silent.total()} of {len(outcomes)} "
            f"{what}: {silent.most_common(1)[0][0]}. {cure}"
        )


def _verdicts(outcomes: Sequence[_Outcome], right: bool) -> list[bool]:
    """What was said to the canaries that are `right`; those without a verdict are left out."""
    return [o.called_right for o in outcomes if o.right == right and o.called_right is not None]


def _counts(results: Sequence[Result]) -> list[float]:
    """[verdicts of the judge, those that came from its cache, its failures] of scored responses."""
    from rewards.judging.client import NO_VERDICT

    def total(part: str) -> float:
        return sum(value for r in results for name, value in r.parts.items() if name.rpartition("/")[2] == part)

    left_out = sum(r.status == "unscorable" and r.detail.startswith(NO_VERDICT) for r in results)
    return [total(ASKED), total(CACHED), left_out + total(SILENT)]


def question_of(problem: Problem) -> str:
    """What the user's turns say, a line break between two texts; images are left out."""
    contents = [turn["content"] for turn in problem.messages if turn.get("role") == "user"]
    parts = [part for c in contents for part in (c if isinstance(c, list | tuple) else [{"text": c}])]
    return "\n".join(str(part["text"]).strip() for part in parts if part.get("text"))
