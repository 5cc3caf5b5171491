"""Is the answer right? A rule says so where it can, a language model where the rule cannot read the answer, or always.

The model may be shown the pictures. Where both have a verdict, the parts have both: how often they agree is a figure of
an evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.answers.extract import written_answer
from rewards.answers.latex import words
from rewards.base import TOO_LONG, WRONG, RewardFn, RewardInput, RewardOutput, Unscorable, missing
from rewards.judging.cache import VerdictCache
from rewards.judging.prompt import verdict_key
from rewards.judging.settings import ALL, OF_PROBLEM, UNREAD, JudgeSettings

MAX_CHARS = 400  # of an answer: a longer one is wrong, since half of it could hide what the other half takes back

# Parts. 1 if the judge was asked, and if its verdict came from the cache:
ASKED, CACHED = "judge_asked", "judge_cached"
NOT_ASKED = {ASKED: 0.0, CACHED: 0.0}
VERDICT = "judge_verdict"  # 1 for correct; only where it was asked
SILENT = "judge_silent"  # 1 where it gave no verdict and the rule's counts: an answer of JudgeSettings.sample
RULE_SCORE, RULE_SURE = "rule_score", "rule_sure"  # only where an answer was there to read, and the gold could be read


def judge_by_rule(registry: Callable[[], Mapping[str, RewardFn]]) -> RewardFn:
    """The reward `judge` of a registry, which is asked for the rule at the first call, because `judge` stands in it."""

    def judge(
        x: RewardInput,
        *,
        url: str,
        model: str,
        rule: str,
        cache: str,
        ask: str = JudgeSettings.ask,
        sample: float = JudgeSettings.sample,
        images: bool = JudgeSettings.images,
        image_pixels: int = JudgeSettings.image_pixels,
        body: Mapping[str, Any] | None = JudgeSettings.body,
        timeout_s: float = JudgeSettings.timeout_s,
        deadline_s: float = JudgeSettings.deadline_s,
        retries: int = JudgeSettings.retries,
        concurrency: int = JudgeSettings.concurrency,
        pause_s: float = JudgeSettings.pause_s,
        canary_limit: float = JudgeSettings.canary_limit,
        api_key_env: str = JudgeSettings.api_key_env,
        allow_http: bool = JudgeSettings.allow_http,
    ) -> RewardOutput:
        """What `rule` gives if it is sure; else, and always with ask="all", 1 if the judge calls the answer correct.

        The judge sees the question, with `images` its pictures, the gold and the answer as it is written, nothing
        else of the response. No answer, an empty one, one without a letter or digit, and one of more than MAX_CHARS
        characters score 0 without asking. JudgeSettings explains the arguments.

        Raises:
            NoVerdict: the judge failed. It is an Unscorable: the response is left out, never scored 0.
            Unscorable: the gold is empty; or `rule` is "problem", and the problem names none that can be used.
        """
        settings = JudgeSettings(
            url=url, model=model, rule=rule, cache=cache, ask=ask, sample=sample, images=images,
            image_pixels=image_pixels, body=body, timeout_s=timeout_s, deadline_s=deadline_s, retries=retries,
            concurrency=concurrency, pause_s=pause_s, canary_limit=canary_limit, api_key_env=api_key_env,
            allow_http=allow_http,
        )  # fmt: skip
        return _judged(settings, registry(), x)

    judge.needs_images = _shows_images  # type: ignore[attr-defined]
    return judge


def _shows_images(params: Mapping[str, Any]) -> bool:
    return params.get("images") is True


def _judged(settings: JudgeSettings, rules: Mapping[str, RewardFn], x: RewardInput) -> RewardOutput:
    deadline = time.monotonic() + settings.deadline_s
    if not x.answer.strip():
        raise Unscorable("the reference answer is empty")
    answer = written_answer(x.text)
    reason = missing(answer) or _without_asking(answer or "")
    if reason or answer is None:
        return RewardOutput(0.0, NOT_ASKED, reason)
    name = _rule_of(settings, x)
    ruled, sure, parts = None, False, {}
    try:
        ruled = rules[name](x)
    except Unscorable:  # the rule cannot read the gold
        pass
    else:
        sure = is_sure(name, ruled, x.answer, answer)
        parts = {RULE_SCORE: ruled.score, RULE_SURE: float(sure)}
    if ruled is None or not sure or settings.ask == ALL:
        found = _asked(settings, x, answer, _key(settings, x, answer), deadline)
        return RewardOutput(found[VERDICT], found | parts, "" if found[VERDICT] else "the judge says incorrect")
    key = _key(settings, x, answer) if settings.sample else ""
    return RewardOutput(ruled.score, parts | _sampled(settings, x, answer, key, deadline), ruled.reason)


def _rule_of(settings: JudgeSettings, x: RewardInput) -> str:
    name = x.reward if settings.rule == OF_PROBLEM else settings.rule
    if name not in UNREAD:
        raise Unscorable(f"judge.rule={OF_PROBLEM}, and the problem names {name!r}, not one of {', '.join(UNREAD)}")
    return name


def is_sure(rule: str, ruled: RewardOutput, gold: str, answer: str) -> bool:
    """Whether a rule's verdict stands: it gave a score, or a 0 for an answer that it could read."""
    if ruled.score > 0:
        return True
    if rule == "math" and ruled.reason == WRONG and bool(words(gold)) | bool(words(answer)):
        return False  # words are compared as they stand: "five" is not 5 to it
    return ruled.reason not in UNREAD[rule]


def _asked(settings: JudgeSettings, x: RewardInput, answer: str, key: str, deadline: float) -> dict[str, float]:
    """Parts with what the judge says, or said before. Raises NoVerdict."""
    from rewards.judging.client import judge_of  # imports httpx and Pillow: see rewards.PRELOAD

    cache = VerdictCache(Path(settings.cache))
    correct = cache.get(key)
    cached = correct is not None
    if correct is None:
        shown = x.images if settings.images else ()
        correct = judge_of(settings).verdict(x.question, x.answer, answer, deadline, shown)
        cache.put(key, correct)
    return {ASKED: 1.0, CACHED: float(cached), VERDICT: float(correct)}


def _sampled(settings: JudgeSettings, x: RewardInput, answer: str, key: str, deadline: float) -> dict[str, float]:
    """Parts of an answer that the rule is sure of: a judge that fails there costs no response its score.

    Which ones are asked about is a number that the question itself gives: the same ones in every run.
    """
    if settings.sample and int(key[:8], 16) < settings.sample * 2**32:
        try:
            return _asked(settings, x, answer, key, deadline)
        except Unscorable:
            return {**NOT_ASKED, SILENT: 1.0}
    return NOT_ASKED


def _key(settings: JudgeSettings, x: RewardInput, answer: str) -> str:
    from rewards.judging.pictures import picture_key  # imports Pillow: see rewards.PRELOAD

    shown = [picture_key(image, settings.image_pixels) for image in x.images] if settings.images else []
    return verdict_key(settings.model, x.question, x.answer, answer, shown, settings.body)


def _without_asking(answer: str) -> str:
    """Why an answer is wrong whatever the question, or "": signs alone (":") fool judges."""
    if len(answer) > MAX_CHARS:
        return TOO_LONG
    return "" if any(map(str.isalnum, answer)) else "no letter or digit"
