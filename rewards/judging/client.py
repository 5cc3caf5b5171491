"""One question to the judge over HTTP: tries, waits, and their bounds.

Importing this module imports httpx and Pillow: see rewards.PRELOAD.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from PIL import Image

from rewards.base import Unscorable
from rewards.judging.cache import Gate
from rewards.judging.pictures import data_uri
from rewards.judging.prompt import MAX_TOKENS, read_verdict, request_body
from rewards.judging.settings import JudgeSettings, api_key, is_loopback

NO_VERDICT = "the judge gave no verdict"  # how the reason of every failure of the judge starts
MAX_BYTES = 1 << 20  # of a reply
_FIRST_WAIT_S = 0.25  # before the second try; it doubles with every try
_MESSAGE = 120  # characters of a server's error that are kept
_BUSY = (429, 503)  # with a Retry-After: there, but at the end of a quota


class NoVerdict(Unscorable):
    """The judge could not be asked, or did not answer with a verdict. Never a score."""

    def __init__(self, why: str):
        super().__init__(f"{NO_VERDICT}: {why}")


class _Fault(Exception):
    """One try failed. `again`: another one may do better, after `wait` seconds if the server has said so."""

    def __init__(self, why: str, again: bool, wait: float = 0.0, status: int = 0):
        super().__init__(why)
        self.again, self.wait, self.status = again, wait, status
        self.timed = bool(wait) and status in _BUSY  # a quota: everybody waits, and it is no try that failed
        self.outage = again and not self.timed and status != 429


class _Reply(NamedTuple):
    text: str
    why: str  # it holds no verdict, if it holds none


class Judge:
    """Asks for verdicts under the settings of a run, from any thread. Keeps no connection open."""

    def __init__(self, settings: JudgeSettings):
        self._settings = settings
        self._gate = Gate(Path(settings.cache), settings.concurrency, settings.pause_s)
        # Whoever had to wait is asked with no less time than this: cut shorter, a request would look like an outage.
        self._least_s = min(settings.timeout_s, settings.deadline_s) / 2
        self._structured = True  # until the server says that it knows no response_format

    def verdict(
        self, question: str, gold: str, answer: str, deadline: float, pictures: Sequence[Image.Image] = ()
    ) -> bool:
        """Whether `answer` says what `gold` says; nothing is cached here.

        Args:
            deadline: of time.monotonic; nothing of this takes longer.
            pictures: of the question, shown with at most `image_pixels` of the settings.

        Raises:
            NoVerdict: no answer in time, an error, or a reply that is no verdict.
        """
        if why := self._gate.down():
            pause = f"{self._settings.pause_s:g} s (judge.pause_s)"
            raise NoVerdict(f"it did not answer lately and is not asked for {pause}; last: {why}")
        shown = [data_uri(picture, self._settings.image_pixels) for picture in pictures]
        ask = functools.partial(
            request_body, self._settings.model, question, gold, answer, pictures=shown, body=self._settings.body
        )
        try:
            reply = self._reply(ask, deadline)
        except _Fault as fault:
            why = self._redacted(str(fault))
            if fault.outage:
                self._gate.report(why)
            raise NoVerdict(why) from None
        except OSError as error:  # of the slots, mostly: the disk of the cache
            raise NoVerdict(f"this machine failed to ask it: {error}") from None
        self._gate.report("")
        correct = read_verdict(reply.text)
        if correct is None:
            raise NoVerdict(self._redacted(reply.why))
        return correct

    def forget_outage(self) -> None:
        """Ask even if a run before this one found nobody there."""
        self._gate.forget()

    def _reply(self, ask: Callable[..., Mapping[str, Any]], deadline: float) -> _Reply:
        if not self._structured:
            return self._tries(ask(structured=False), deadline)
        try:
            return self._tries(ask(structured=True), deadline)
        except _Fault as fault:
            if fault.status not in (400, 422):
                raise
            reply = self._tries(ask(structured=False), deadline)  # it may be the response_format that it minds
        self._structured = False
        return reply

    def _tries(self, body: Mapping[str, Any], deadline: float) -> _Reply:
        fault, failed, latest = None, 0, deadline - self._least_s
        while True:
            with self._gate.slot(latest) as mine:
                if not mine:
                    raise fault or self._no_turn()
                try:
                    return self._try(body, deadline)
                except _Fault as error:
                    fault = error
                    if fault.timed:  # before anybody else has the slot
                        self._gate.refuse(fault.wait, str(fault))
            failed += not fault.timed
            wait = fault.wait or _FIRST_WAIT_S * 2 ** (failed - 1) * random.uniform(0.5, 1.5)
            late = time.monotonic() + wait >= (latest if fault.timed else deadline)
            if failed > self._settings.retries or not fault.again or late:
                raise fault
            time.sleep(wait)

    def _no_turn(self) -> _Fault:
        """Why nothing was asked before the deadline."""
        wait, why = self._gate.refused()
        if wait:
            return _Fault(f"{why}: judge.deadline_s ends before it may be asked again", again=False)
        others = f"{self._settings.concurrency} others were asking all the time (judge.concurrency)"
        return _Fault(f"{others}; raise it, or judge.deadline_s", again=False)

    def _try(self, body: Mapping[str, Any], deadline: float) -> _Reply:
        within = min(self._settings.timeout_s, deadline - time.monotonic())
        if within <= 0:
            raise _Fault("no time was left to ask it", again=True)
        try:
            status, headers, content = asyncio.run(self._exchange(body, within))
        except TimeoutError:
            raise _Fault(f"no answer within {within:.3g} s", again=True) from None
        except httpx.LocalProtocolError as error:  # its text quotes the header that it refuses, so the key
            raise _Fault(f"{type(error).__name__} (is the key of judge.api_key_env whole?)", again=True) from None
        except httpx.RequestError as error:
            raise _Fault(f"{type(error).__name__} {error}".strip(), again=True) from None
        if status != 200:
            again = status in (408, 429) or status >= 500
            text = self._redacted(_line(content))[:_MESSAGE]
            wait = _retry_after(headers) if again else None
            if wait is None:
                raise _Fault(f"status {status} {text}", again, status=status)
            raise _Fault(f"status {status} {text} (Retry-After {wait:.0f} s)", again, max(wait, _FIRST_WAIT_S), status)
        return _read(content)

    async def _exchange(self, body: Mapping[str, Any], within: float) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body), all of it within so many seconds. Redirects are not followed: they have no key."""
        s = self._settings
        key = api_key(s)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        far = not is_loopback(urlsplit(s.url).hostname or "")  # a proxy is never for a server on this machine
        async with (
            asyncio.timeout(within),
            httpx.AsyncClient(timeout=None, trust_env=far, verify=_certificates()) as http,
            http.stream("POST", f"{s.url.rstrip('/')}/chat/completions", json=body, headers=headers) as response,
        ):
            content = b""
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MAX_BYTES:
                    raise _Fault(f"a reply of more than {MAX_BYTES} bytes", again=False)
            return response.status_code, response.headers, content

    def _redacted(self, text: str) -> str:
        """Some servers quote the key they were given in their errors."""
        key = api_key(self._settings)
        return text.replace(key, "***") if key else text


@functools.lru_cache(maxsize=8)
def judge_of(settings: JudgeSettings) -> Judge:
    """The judge of this process, so that what it has found out about the server is kept."""
    return Judge(settings)


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given as such or as a date; None if it does not say."""
    given = headers.get("retry-after", "").strip()
    if given.isascii() and given.isdecimal():
        return float(given[:9])
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _line(text: bytes) -> str:
    return " ".join(text.decode(errors="replace").split())


def _read(body: bytes) -> _Reply:
    """The text of a chat completion; "" for anything else, which is then no verdict."""
    try:
        choice = json.loads(body)["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        text = refusal = ended = None
    why = "its reply is not one of the two that it was given to choose from"
    if isinstance(refusal, str) and refusal.strip():
        why = f"it refused: {_line(refusal.encode(errors='replace'))[:_MESSAGE]}"  # JSON may hold half a character
    elif ended == "length":
        why = (
            f"its reply reached the token limit before a verdict ({MAX_TOKENS}, or what judge.body says); raise "
            "max_tokens in judge.body, or switch its thinking off there"
        )
    return _Reply(text if isinstance(text, str) else "", why)
