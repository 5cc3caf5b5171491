"""One rank's prompts on their way to the servers: each is answered once, or the reason why not is kept.

A prompt is at one server at a time. What happens to it when that server fails it:

* no connection: the server is out of use;
* silence for `timeout_s`, or for as long as a longest response takes at SLOWEST_TOKENS_PER_S: if the server answered
  nothing else in that time it is wedged and out of use, and its other requests are given up at once; if it did, the
  prompt alone was too slow;
* an answer under another label than that of the current weights: out of use, and the answer is thrown away;
* a status of 5xx or 429, a broken connection, an unreadable answer: a strike against it (see pool.py);
* any other status but those below: it is not what it should be, and out of use;
* 400, 413 or 422: the prompt itself is refused. It is not sent again.

In all cases but the last the prompt goes to another server, if need be after a pause to the same, `retries` times.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from sapo_vl.rollout.vllm.client import BadAnswer, NoAnswer, Refusal, ServerFault, ask, open_http
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.pool import Pool, Server
from sapo_vl.rollout.vllm.responses import Answer
from sapo_vl.rollout.vllm.v0_32_http import GENERATE, Labelled, read_answer, request
from sapo_vl.types import NO_ANSWER, Prompt

PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # before a prompt is sent again; doubled each time
SLOWEST_TOKENS_PER_S = 10.0  # of one response: 40,960 tokens may take 68 minutes, whatever timeout_s says
THE_PROMPT = (400, 413, 422)  # statuses that speak of the request, not of the server


class Batch:
    """Prompts, their sampling parameters, and what has become of them so far."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[Mapping[str, Any]],
        on_answer: Callable[[int, Answer | str], None] | None = None,
    ) -> None:
        """`on_answer` is told of each answer (or refusal) when it comes, in a thread of the dispatcher's."""
        self.prompts, self.sampling, self.on_answer = prompts, sampling, on_answer
        self.answers: list[Answer | str | None] = [None] * len(prompts)  # a string: refused, and why
        self.tries = [0] * len(prompts)
        self.reasons = [""] * len(prompts)  # why the last try failed

    def open(self, retries: int) -> list[int]:
        """Prompts that are not answered and may be sent (again)."""
        return [i for i, a in enumerate(self.answers) if a is None and self.tries[i] <= retries]

    def result(self, why: str) -> list[Answer | str]:
        """Every prompt's answer, or the reason why it has none; `why` for those that no server was left for."""
        return [
            answer if answer is not None else f"{NO_ANSWER} (tries: {tries}): {reason}" if tries else why
            for answer, tries, reason in zip(self.answers, self.tries, self.reasons, strict=True)
        ]


class Dispatcher:
    """Sends a rank's prompts to the servers of its pool. `rank` and `run` make the names of requests unique."""

    def __init__(self, pool: Pool, config: ServerConfig, run: str, rank: int) -> None:
        self.pool, self.config = pool, config
        self._names: Iterator[str] = (f"{run}-{rank}-{i}" for i in itertools.count())
        self._deadlines: dict[str, set[asyncio.Timeout]] = {s.url: set() for s in pool.servers}

    def send(self, batch: Batch, label: str) -> None:
        """Sends what is open until it is answered, given up, or no server is in use. `label`: of current weights."""
        asyncio.run(self._send(batch, label))

    async def _send(self, batch: Batch, label: str) -> None:
        queue = deque(batch.open(self.config.retries))
        workers = min(len(queue), self.config.max_in_flight * len(self.pool.usable))
        async with open_http() as http, asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(http, batch, queue, label))

    async def _work(self, http: httpx.AsyncClient, batch: Batch, queue: deque[int], label: str) -> None:
        while queue:
            i = queue.popleft()
            body = await asyncio.to_thread(request, batch.prompts[i], batch.sampling[i])
            failed: set[str] = set()
            while batch.answers[i] is None and batch.tries[i] <= self.config.retries:
                if failed:
                    await asyncio.sleep(min(PAUSE_S * 2 ** (batch.tries[i] - 1), LONGEST_PAUSE_S))
                server = self.pool.pick(failed)
                if server is None:
                    return
                batch.tries[i] += 1
                batch.answers[i], batch.reasons[i] = await self._ask(http, server, body, label)
                failed.add(server.url)
            if (answer := batch.answers[i]) is not None and batch.on_answer is not None:
                await asyncio.to_thread(batch.on_answer, i, answer)  # decoding must not hold the other answers up

    async def _ask(
        self, http: httpx.AsyncClient, server: Server, body: Mapping[str, Any], label: str
    ) -> tuple[Answer | str | None, str]:
        """(the answer, a text if the prompt is refused, or None for neither; why there is none)."""
        before = server.answers
        server.in_flight += 1
        server.sent += 1
        try:
            found = await self._exchange(http, server.url, {**body, "request_id": next(self._names)})
            if found.labels != {label}:
                given = ", ".join(repr(text) for text in sorted(found.labels)) or "none"
                raise ServerFault(f"it answered from weights {given}, the current ones are {label!r}")
        except ServerFault as fault:
            self._blame(server, fault, idle=server.answers == before)
            reason = f"{server.url}: {server.reason or fault}"
            return (reason, "") if _is_the_prompts(fault) else (None, reason)
        finally:
            server.in_flight -= 1
        self.pool.answered(server)
        return found.answer, ""

    async def _exchange(self, http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Labelled:
        limit = max(self.config.timeout_s, body["sampling_params"]["max_tokens"] / SLOWEST_TOKENS_PER_S)
        try:
            async with asyncio.timeout(limit) as deadline:
                self._deadlines[url].add(deadline)
                try:
                    answer = await ask(http, url, "POST", GENERATE, within=None, json=body)
                finally:
                    self._deadlines[url].discard(deadline)
        except TimeoutError:
            raise NoAnswer(f"no answer within {limit:g} s") from None
        return read_answer(answer, body["request_id"])

    def _blame(self, server: Server, fault: ServerFault, idle: bool) -> None:
        """What the fault costs the server. `idle`: it has answered nothing since the request was sent."""
        if _is_the_prompts(fault):
            self.pool.answered(server)
        elif isinstance(fault, BadAnswer) or (isinstance(fault, Refusal) and fault.status in (429, *range(500, 600))):
            self.pool.strike(server, str(fault))
        elif idle or not isinstance(fault, NoAnswer):
            self.pool.drop(server.url, str(fault))
        if server.reason:  # its other requests would only wait for their time to run out
            now = asyncio.get_running_loop().time()
            for deadline in self._deadlines[server.url]:
                if not deadline.expired():
                    deadline.reschedule(now)


def _is_the_prompts(fault: ServerFault) -> bool:
    return isinstance(fault, Refusal) and fault.status in THE_PROMPT
