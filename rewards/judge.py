"""Is the answer right? A rule says so where it can, a language model where the rule cannot read the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rewards.answers.extract import written_answer
from rewards.answers.latex import words
from rewards.base import TOO_LONG, WRONG, RewardFn, RewardInput, RewardOutput, Unscorable, missing
from rewards.judging.cache import VerdictCache
from rewards.judging.prompt import verdict_key
from rewards.judging.settings import UNREAD, JudgeSettings

MAX_CHARS = 400  # of an answer: a longer one is wrong, since half of it could hide what the other half takes back
ASKED, CACHED = "judge_asked", "judge_cached"  # parts: 1 if the verdict is the judge's, fresh or from the cache


def judge_by_rule(registry: Callable[[], Mapping[str, RewardFn]]) -> RewardFn:
    """The reward `judge` of a registry, which is asked for the rule at the first call, because `judge` stands in it."""

    def judge(
        x: RewardInput,
        *,
        url: str,
        model: str,
        rule: str,
        cache: str,
        timeout_s: float = JudgeSettings.timeout_s,
        deadline_s: float = JudgeSettings.deadline_s,
        retries: int = JudgeSettings.retries,
        concurrency: int = JudgeSettings.concurrency,
        pause_s: float = JudgeSettings.pause_s,
        canary_limit: float = JudgeSettings.canary_limit,
        api_key_env: str = JudgeSettings.api_key_env,
        allow_http: bool = JudgeSettings.allow_http,
    ) -> RewardOutput:
        """What `rule` gives if it is sure; else 1 if the judge calls the answer correct, 0 if not.

        The judge sees the question, the gold and the answer as it is written, nothing else of the response. No
        answer, an empty one, one without a letter or digit, and one of more than MAX_CHARS characters score 0 without
        asking. JudgeSettings explains the arguments.

        Raises:
            NoVerdict: the judge failed. It is an Unscorable: the response is left out, never scored 0.
            Unscorable: the gold is empty.
        """
        settings = JudgeSettings(
            url=url, model=model, rule=rule, cache=cache, timeout_s=timeout_s, deadline_s=deadline_s, retries=retries,
            concurrency=concurrency, pause_s=pause_s, canary_limit=canary_limit, api_key_env=api_key_env,
            allow_http=allow_http,
        )  # fmt: skip
        return _judged(settings, registry()[rule], x)

    return judge


def _judged(settings: JudgeSettings, rule: RewardFn, x: RewardInput) -> RewardOutput:
    deadline = time.monotonic() + settings.deadline_s
    if not x.answer.strip():
        raise Unscorable("the reference answer is empty")
    answer = written_answer(x.text)
    reason = missing(answer) or _without_asking(answer or "")
    if reason or answer is None:
        return _output(0.0, reason)
    try:
        ruled = rule(x)
    except Unscorable:  # the rule cannot read the gold
        pass
    else:
        if is_sure(settings.rule, ruled, x.answer, answer):
            return _output(ruled.score, ruled.reason)
    return _asked(settings, x, answer, deadline)


def is_sure(rule: str, ruled: RewardOutput, gold: str, answer: str) -> bool:
    """Whether a rule's verdict stands: it gave a score, or a 0 for an answer that it could read."""
    if ruled.score > 0:
        return True
    if rule == "math" and ruled.reason == WRONG and bool(words(gold)) | bool(words(answer)):
        return False  # words are compared as they stand: "five" is not 5 to it
    return ruled.reason not in UNREAD[rule]


def _asked(settings: JudgeSettings, x: RewardInput, answer: str, deadline: float) -> RewardOutput:
    from rewards.judging.client import judge_of  # imports httpx: see rewards.PRELOAD

    cache = VerdictCache(Path(settings.cache))
    key = verdict_key(settings.model, x.question, x.answer, answer)
    correct = cache.get(key)
    cached = correct is not None
    if correct is None:
        correct = judge_of(settings).verdict(x.question, x.answer, answer, deadline)
        cache.put(key, correct)
    return _output(float(correct), "" if correct else "the judge says incorrect", 1.0, float(cached))


def _without_asking(answer: str) -> str:
    """Why an answer is wrong whatever the question, or "": signs alone (":") fool judges."""
    if len(answer) > MAX_CHARS:
        return TOO_LONG
    return "" if any(map(str.isalnum, answer)) else "no letter or digit"


def _output(score: float, reason: str, asked: float = 0.0, cached: float = 0.0) -> RewardOutput:
    return RewardOutput(score, {ASKED: asked, CACHED: cached}, reason)
