"""The settings of the reward `judge`, and what can be wrong with them before anything is asked."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SPARE_S = 1.0  # of a worker's time limit that the judge leaves for everything else

# Rule -> the reasons with which it says that it could not read an answer. Any other verdict of a rule is sure, right
# or wrong, and the judge is not asked; docs/rewards.md says it in words. A rule that is not here cannot be used.
UNREAD: dict[str, frozenset[str]] = {
    "chart": frozenset({"not a number"}),
    "choice": frozenset({"not an option"}),
    "count": frozenset({"not a count"}),
    "math": frozenset(
        {
            "words",
            "text in a formula",
            "not mathematics",
            "cannot be parsed",
            "cannot be compared",
            "a command that is not scored",
            "other names",
        }
    ),
    "number": frozenset({"not a number"}),
    "word": frozenset({"wrong"}),  # another spelling is all that it can tell
}
OF_PROBLEM = "problem"  # the rule that each problem itself names: benchmarks mix choices and formulas
UNSURE, ALL = "unsure", "all"  # which answers the judge is asked about
PROTOCOL = ("messages", "model", "n", "stream")  # of a request, that `body` may not touch: a reply is read by them
MIN_PIXELS = 1024  # of a picture; with fewer nothing is left to see


@dataclass(frozen=True, kw_only=True)  # no slots: the reward takes its defaults from the class
class JudgeSettings:
    """`rewards.params.judge`. The key itself is read from the environment and kept nowhere."""

    url: str  # base of an OpenAI-compatible API, https://host/v1
    model: str  # the name it serves the model under
    rule: str  # the reward that is asked first: a key of UNREAD, or OF_PROBLEM
    cache: str  # folder for verdicts, and for what the processes that ask tell each other
    ask: str = UNSURE  # about answers that the rule is not sure of, or about ALL: then the judge's verdict counts
    sample: float = 0.0  # with UNSURE: share of the other answers that it is asked about too; the rule's verdict counts
    images: bool = False  # show the pictures of the problem
    image_pixels: int = 1 << 20  # a picture of more is scaled down to so many
    # Of the request, over what it says by itself; None takes a key out. No part of the hash, as a dict has none:
    body: Mapping[str, Any] | None = field(default=None, hash=False)
    timeout_s: float = 4.0  # for one request
    deadline_s: float = 8.0  # for a response, with all tries and waits
    retries: int = 2  # times that a request without an answer is sent again
    concurrency: int = 8  # requests at a time, of all processes that share the folder `cache`
    pause_s: float = 30.0  # how long nothing is asked after several responses in a row got no answer
    canary_limit: float = 0.2  # share of wrong canaries called correct that stops a run; 1 = canaries stop nothing
    api_key_env: str = ""  # name of the environment variable with the key; "" = the endpoint wants none
    allow_http: bool = False  # http to another machine: answers, golds and the key can be read on the way


def judge_problem(params: Mapping[str, Any], timeout_s: float) -> str:
    """Why the judge cannot run with `params`, or ""; to be found before training. Nothing is asked here; the
    folder for the cache is made.

    Args:
        timeout_s: seconds a response may take in a worker.
    """
    values = JudgeSettings(**params)
    if problem := next(filter(None, (_type_problem(values, field.name) for field in fields(values))), ""):
        return f"judge: {problem}"
    if values.rule not in (*UNREAD, OF_PROBLEM):
        return f"judge: rule must be one of {', '.join(sorted(UNREAD))}, or {OF_PROBLEM}, got {values.rule!r}"
    if problem := _asking_problem(values):
        return f"judge: {problem}"
    if values.canary_limit > 1:
        return f"judge: canary_limit is a share, at most 1, got {values.canary_limit}"
    if values.deadline_s + SPARE_S > timeout_s:
        return (
            f"judge: deadline_s={values.deadline_s:g} must be at least {SPARE_S:g} s below the {timeout_s:g} s that a "
            "response may take (rewards.timeout_s), or a slow judge would cost the worker"
        )
    if problem := _key_problem(values):
        return f"judge: {problem}"
    if problem := _cache_problem(values):
        return f"judge: {problem}"
    return _url_problem(values)


def _cache_problem(values: JudgeSettings) -> str:
    """Why its folder, which is made, cannot be used, or ""."""
    try:
        Path(values.cache).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=values.cache) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                return (
                    f"cache={values.cache!r} is on a disk without file locks ({error}), which hold judge.concurrency "
                    "over all processes; name a folder on another disk"
                )
    except OSError as error:
        return f"cache={values.cache!r} is no folder that can be written to: {error}"
    return ""


def api_key(values: JudgeSettings) -> str:
    """The key, or "" without one; a line break at its end, as secrets from files often have, is no part of it."""
    return os.environ.get(values.api_key_env, "").strip() if values.api_key_env else ""


def _key_problem(values: JudgeSettings) -> str:
    """What is wrong with the key, without a character of it, or ""."""
    key, name = api_key(values), f"the environment variable {values.api_key_env} (api_key_env)"
    if values.api_key_env and not key:
        return f"{name} is not set, or blank"
    if not all("!" <= sign <= "~" for sign in key):
        return f"{name} holds white space, a control character or one beyond ASCII inside; no HTTP header takes that"
    return ""


def _asking_problem(values: JudgeSettings) -> str:
    """What is wrong with what is asked, or ""."""
    if values.ask not in (UNSURE, ALL):
        return f"ask must be {UNSURE} or {ALL}, got {values.ask!r}"
    if values.sample > 1:
        return f"sample is a share, at most 1, got {values.sample}"
    if values.sample and values.ask == ALL:
        return f"ask={ALL} asks about every answer, so there is nothing to sample; leave sample={values.sample:g} out"
    if values.image_pixels < MIN_PIXELS:
        return f"image_pixels must be at least {MIN_PIXELS}, got {values.image_pixels}"
    return ""


def _type_problem(values: JudgeSettings, name: str) -> str:
    """What is wrong with one value taken by itself, or ""."""
    value = getattr(values, name)
    if name == "body":
        return _body_problem(value)
    kind = type(JudgeSettings.__dataclass_fields__[name].default)
    if name in ("allow_http", "images"):
        return "" if isinstance(value, bool) else f"{name} must be true or false, got {value!r}"
    if name == "api_key_env" or name in ("url", "model", "rule", "cache", "ask"):
        good = isinstance(value, str) and (bool(value.strip()) or name == "api_key_env")
        return "" if good else f"{name} must be a text, got {value!r}"
    zero = name in ("retries", "canary_limit", "sample")
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not number or not (value >= 0 if zero else value > 0) or not value < float("inf"):
        whole = "an integer" if kind is int else "a number"
        return f"{name} must be {whole} {'from 0' if zero else 'above 0'}, got {value!r}"
    return ""


def _body_problem(body: Any) -> str:
    if body is None:
        return ""
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        return f"body must be a mapping of names in the request to values, got {body!r}"
    if fixed := [key for key in PROTOCOL if key in body]:
        return f"body has {', '.join(fixed)}: without its own {', '.join(PROTOCOL)} no verdict could be read"
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"body={body!r} cannot be written as JSON: {error}"
    return ""


def _url_problem(values: JudgeSettings) -> str:
    try:
        parts = urlsplit(values.url)
        host, _ = parts.hostname or "", parts.port  # port raises for one beyond 65535
    except ValueError as error:
        return f"judge: url is no address ({error})"
    if parts.username or parts.password:
        return "judge: url holds a name or a password; give the key in an environment variable (api_key_env)"
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        return f"judge: url={values.url!r} is no address; write it like https://judge.example/v1"
    if parts.scheme == "http" and not is_loopback(host) and not values.allow_http:
        return (
            f"judge: url={values.url!r} is http to another machine: all it is asked, and the key, can be read on the "
            "way. Use https, or set rewards.params.judge.allow_http=true inside a network that you trust"
        )
    return ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
