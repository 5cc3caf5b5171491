"""Machines that are network namespaces of this one, and a network between them that a test can cut, delay and lose on.

Each has a TUN device, whose other end is here: a thread passes packets on between them. So it does not depend on what
the kernel has to disturb a link with, and each fault is at hand while a run is under way. Needs root.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_launch import environment
from zygote import Forked, start

_SET_IFF, _TUN, _NO_INFO = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_numbers = itertools.count()
GONE_S = 20  # longer than launchers take to end after each other, on a busy machine


class Network:
    """Hosts 0 to n - 1 with the addresses 10.77.0.1 to 10.77.0.n, and what happens between them."""

    def __init__(self, count: int, seed: int) -> None:
        self.cut: set[int] = set()  # hosts that nothing comes from or to
        self.delay_s = 0.0  # each way
        self.loss = 0.0  # share of packets
        self.slow = [0.0] * count  # further delay to and from a host
        self.loses = [0.0] * count  # further loss there
        self.passed = self.lost = 0  # packets
        self.seen = [0] * count  # packets to and from a host, lost ones too
        self.names = [f"sv{os.getpid()}-{next(_numbers)}" for _ in range(count)]
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._ends: list[int] = []

    def address(self, host: int) -> str:
        return f"10.77.0.{host + 1}"

    def start(self, host: int, *arguments: str | Path, forked_ranks: int = 0) -> Forked:
        """This Python on a host: a fork of one that has the libraries loaded, as so many of its ranks are."""
        env = environment() | {"GLOO_SOCKET_IFNAME": self.names[host]}
        return start(list(map(str, arguments)), env, forked_ranks, self.names[host])

    def torchrun(self, host: int, hosts: int, *arguments: str | Path) -> Forked:
        """What node.sh starts: a launcher of one rank on each of so many hosts, the first of which they meet at."""
        meeting = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"{self.address(0)}:29500", "--rdzv_id", "tests")
        known = ("--rdzv_conf", f"is_host={str(host == 0).lower()}", "--local-addr", self.address(host))
        agent = ("-m", "sapo_vl.machines.agent", "--gone-s", str(GONE_S))
        words = ("--nnodes", str(hosts), "--nproc_per_node", "1", *meeting, *known, *arguments)
        return self.start(host, *agent, *words, forked_ranks=1)

    def _make(self, stack: contextlib.ExitStack) -> None:
        for number, name in enumerate(self.names):
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, end)
            self._ends.append(end)
            fcntl.ioctl(end, _SET_IFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_INFO))
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("link", "set", name, "netns", name)
            _ip("-n", name, "address", "add", f"{self.address(number)}/24", "dev", name)
            _ip("-n", name, "link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        passing = threading.Thread(target=self._pass_on, name="network", daemon=True)
        passing.start()
        stack.callback(passing.join)
        stack.callback(self._over.set)

    def _pass_on(self) -> None:
        under_way: list[tuple[float, int, bytes]] = []  # (when it arrives, at whom, packet)
        while not self._over.is_set():
            until_next = under_way[0][0] - time.monotonic() if under_way else 0.1
            ready, _, _ = select.select(self._ends, [], [], min(0.1, max(0.0, until_next)))
            for end in ready:
                packet = os.read(end, 65_536)
                if packet[0] >> 4 != 4:
                    continue
                sender, to = packet[15] - 1, packet[19] - 1  # the last bytes of the addresses of an IPv4 packet
                if not 0 <= to < len(self._ends):
                    continue
                self.seen[sender] += 1
                self.seen[to] += 1
                loss = max(self.loss, self.loses[sender], self.loses[to])
                if {sender, to} & self.cut or self._random.random() < loss:
                    self.lost += 1
                    continue
                delay_s = self.delay_s + self.slow[sender] + self.slow[to]
                heapq.heappush(under_way, (time.monotonic() + delay_s, to, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, to, packet = heapq.heappop(under_way)
                self.passed += 1
                with contextlib.suppress(BlockingIOError):  # lost on the way
                    os.write(self._ends[to], packet)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def network(count: int, seed: int) -> Iterator[Network]:
    """A network, and nothing of it afterwards. Where none can be made the test is skipped, or fails with CI set."""
    made = Network(count, seed)
    with contextlib.ExitStack() as stack:
        try:
            made._make(stack)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or b""
            reason = f"no hosts of network namespaces: {error} {said.decode()}(root, ip and /dev/net/tun are needed)"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        yield made
