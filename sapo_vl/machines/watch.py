"""Machines that train together notice that one of them is gone, or that the network between them is cut.

Nothing else would: gloo and NCCL wait for their peer as long as a collective may take, which is an hour here, and
torchrun asks only its own store. Between each two machines there is a connection on which nothing is said, and which
the kernels at its ends probe (TCP keepalive). So it does not depend on what the ranks are busy with, and a machine that
is slow, or whose ranks were stopped, answers all the same.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sapo_vl.distributed import World
from sapo_vl.lifeline import CUT_OFF, Stopped

log = logging.getLogger(__name__)
MEETING_S = 60.0  # that machines have to connect to each other
LAST_WORDS_S = 5.0  # for what a rank has to say itself, where another machine's process has just ended
_TOKEN_BYTES = 16
_GOODBYE = b"."


@dataclass(frozen=True, slots=True)
class Machine:
    """The first rank of each machine watches for all of it."""

    rank: int
    host: str  # its own name for itself
    address: str  # by which the others reach it
    port: int
    token: bytes  # tells its peers from anybody else who connects

    def __str__(self) -> str:
        return f"{self.host} ({self.address}, rank {self.rank} and those beside it)"


@contextlib.contextmanager
def machines_watched(world: World, limit_s: float) -> Iterator[None]:
    """Inside `with`, this rank ends with CUT_OFF, and says so, when another machine could not be reached for `limit_s`,
    or when what watches there has ended without a word.

    All ranks call it together. On one machine it does nothing.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE", str(world.size))
    if int(here) == world.size:
        yield
        return
    links = _connected(world, limit_s)
    over, wake = os.pipe()
    watching = threading.Thread(target=_watch, args=(links, limit_s, over), name="machines", daemon=True)
    watching.start()
    try:
        yield
    except Stopped:
        _leave(links)
        raise
    else:
        _leave(links)
    finally:
        os.close(wake)
        watching.join()
        os.close(over)
        for link in links:
            link.close()


def _connected(world: World, limit_s: float) -> dict[socket.socket, Machine]:
    """A connection to each other machine, on the first rank of each; one that cannot be had is a warning."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener()) if first else None
        me = None
        if listener is not None:
            address, port = _address(os.environ["MASTER_ADDR"]), int(listener.getsockname()[1])
            me = Machine(world.rank, socket.gethostname(), address, port, secrets.token_bytes(_TOKEN_BYTES))
        machines = [machine for machine in world.gather(me) if machine is not None]
        if listener is None or me is None:
            return {}
        links: dict[socket.socket, Machine] = {}
        for machine in machines:
            if machine.rank < me.rank:
                with _warned(machine, limit_s):
                    link = socket.create_connection((machine.address, machine.port), MEETING_S)
                    link.sendall(machine.token + me.token)
                    links[link] = machine
        _accept(listener, me, {m.token: m for m in machines if m.rank > me.rank}, links)
    for link in links:
        _probe(link, limit_s)
    return links


def _accept(
    listener: socket.socket, me: Machine, missing: dict[bytes, Machine], links: dict[socket.socket, Machine]
) -> None:
    """Takes connections until none of `missing` (by its token) is, and puts them into `links`."""
    until = time.monotonic() + MEETING_S
    while missing and (left := until - time.monotonic()) > 0:
        listener.settimeout(left)
        with contextlib.suppress(TimeoutError, ConnectionError):
            link, _ = listener.accept()
            link.settimeout(MEETING_S)
            said = link.recv(2 * _TOKEN_BYTES, socket.MSG_WAITALL)
            machine = missing.pop(said[_TOKEN_BYTES:], None) if said[:_TOKEN_BYTES] == me.token else None
            if machine is None:  # of somebody else
                link.close()
            else:
                links[link] = machine
    for machine in missing.values():
        log.warning("%s has not connected: if it is lost, that is noticed after an hour", machine)


@contextlib.contextmanager
def _warned(machine: Machine, limit_s: float) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("%s: %s; if it is lost, that is noticed after an hour, not after %g s", machine, error, limit_s)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _address(first: str) -> str:
    """By which other machines reach this one: that of its network towards the first one, or what that is called."""
    family, _, _, _, there = socket.getaddrinfo(first, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as asked:
        asked.connect(there)  # sends nothing
        mine = str(asked.getsockname()[0])
        on_first = mine == asked.getpeername()[0] or ipaddress.ip_address(mine.partition("%")[0]).is_loopback
    return first if on_first else mine


def _probe(link: socket.socket, limit_s: float) -> None:
    """The kernel asks the other end again and again, and gives it up after `limit_s`; many times, so that losing some
    of what is sent does not matter."""
    idle, interval = max(1, int(limit_s / 6)), max(1, int(limit_s / 30))
    link.setblocking(True)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, min(127, max(1, int((limit_s - idle) / interval))))


def _leave(links: dict[socket.socket, Machine]) -> None:
    for link in links:
        with contextlib.suppress(OSError):  # it has left before
            link.sendall(_GOODBYE)


def _watch(links: dict[socket.socket, Machine], limit_s: float, over: int) -> None:
    left = dict(links)
    while left:
        ready, _, _ = select.select([over, *left], [], [])
        if over in ready:
            return
        for link in [link for link in left if link in ready]:
            machine = left.pop(link)
            try:
                if link.recv(1) == _GOODBYE:
                    continue
                if select.select([over], [], [], LAST_WORDS_S)[0]:
                    return
                why = "has ended, or lost its ranks"
            except ConnectionResetError:
                why = "has ended, or lost its ranks"
            except OSError as error:
                why = f"could not be reached for {limit_s:g} s (checkpoint.silent_s; {error.strerror})"
            log.error("machine %s %s: this run ends, and goes on from its newest checkpoint", machine, why)
            os._exit(CUT_OFF)
