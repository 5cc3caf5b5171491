"""Which servers are in use on a rank. A plain state machine: no network, no clock.

A server that leaves comes back in one way only: it took over the current weights again. That it answers is not
enough, since one that was restarted answers from the weights of its start.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

STRIKES = 3  # faults in a row, without an answer between them, that cost a server its place


@dataclass(slots=True, eq=False)
class Server:
    """One server as this rank sees it."""

    url: str
    reason: str = ""  # why it is out; "" = in use
    lost: bool = False  # it is out because it failed
    in_flight: int = 0  # requests of this rank
    sent: int = 0  # requests of this rank so far
    answers: int = 0  # of them, answered so far
    strikes: int = 0  # faults since the last answer


class Pool:
    """The servers in the order in which this rank prefers them: each rank starts at another one."""

    def __init__(self, urls: Sequence[str], rank: int, reason: str) -> None:
        """All of them are out at first, for `reason`."""
        first = rank % len(urls)
        self.servers = [Server(url, reason) for url in (*urls[first:], *urls[:first])]

    @property
    def usable(self) -> list[Server]:
        return [s for s in self.servers if not s.reason]

    @property
    def out(self) -> dict[str, str]:
        """Why, by url."""
        return {s.url: s.reason for s in self.servers if s.reason}

    def pick(self, avoid: Collection[str]) -> Server | None:
        """The usable server with the least to do, one not in `avoid` if there is one; None if there is none at all.

        Equally busy ones take turns.
        """
        usable = self.usable
        fresh = [s for s in usable if s.url not in avoid]
        return min(fresh or usable, key=lambda s: (s.in_flight, s.sent), default=None)

    def answered(self, server: Server) -> None:
        server.answers += 1
        server.strikes = 0

    def strike(self, server: Server, reason: str) -> None:
        """A fault that may pass; STRIKES of them in a row are taken for the server's end."""
        server.strikes += 1
        if server.strikes >= STRIKES:
            self.drop(server.url, f"{STRIKES} faults in a row, the last: {reason}")

    def drop(self, url: str, reason: str) -> None:
        """Out of use until it has taken over weights again. Logged once, by name."""
        server = self._named(url)
        if not server.reason:
            server.reason, server.lost = reason, True
            log.warning("rollout server %s is out of use: %s; in use: %d", url, reason, len(self.usable))

    def expect(self, reason: str) -> None:
        """Those in use are out for a `reason` that is nobody's fault, until `settle`."""
        for server in self.usable:
            server.reason = reason

    def settle(self, outcome: Mapping[str, str]) -> None:
        """What all ranks agree on, by url: "" for a server that took over the current weights, else why it is out."""
        for url, reason in outcome.items():
            server = self._named(url)
            if server.lost and not reason:
                log.info("rollout server %s is in use again: it has the current weights", url)
            server.reason, server.lost, server.strikes = reason, bool(reason), 0

    def __str__(self) -> str:
        """Why each is out."""
        return "; ".join(f"{url}: {reason}" for url, reason in self.out.items()) or "all are in use"

    def _named(self, url: str) -> Server:
        return next(s for s in self.servers if s.url == url)
