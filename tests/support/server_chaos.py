"""Two rollout servers, each on a host of its own, to which something happens in every step of a trainer on a third.

    server_chaos.py FOLDER [--rounds 50] [--seed 0]

Each round is a sync of new weights and a batch. In the middle of either, a number of packets on its way, one server or
both are killed, stopped (SIGSTOP), cut off, slow, or from one moment to the next as they were at their start. What is
right is told by the servers' answers: a token of each says what weights they were made with. Needs root, see hosts.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers_launch import SUPPORT
from hosts import Network, network
from zygote import Forked

TRAINER, SERVERS, PORT = 0, (1, 2), 8000
FAULTS = ("killed", "stopped", "cut off", "slow", "loses packets", "at once back with other weights")
PHASES = ("sync", "step")


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    phase: str
    host: int
    packets: int  # from or to the host, in this phase, before it happens
    seconds: float  # that it lasts


def draw(dice: random.Random, rounds: int) -> list[list[Fault]]:
    """What happens in each round: each kind in each phase equally often, and in one round of three something to the
    other server too."""
    cells = [(kind, phase) for kind in FAULTS for phase in PHASES]
    dealt = [cell for _ in range(rounds // len(cells) + 1) for cell in dice.sample(cells, len(cells))][:rounds]
    plan = []
    for cell in dealt:
        hosts = dice.sample(SERVERS, 2 if dice.random() < 1 / 3 else 1)
        both = zip(hosts, (cell, dice.choice(cells)), strict=False)
        plan.append([Fault(*one, host, int(2 ** dice.uniform(0, 4.5)), dice.uniform(0.3, 3)) for host, one in both])
    return plan


class Servers:
    """The processes that serve, by host."""

    def __init__(self, net: Network) -> None:
        self._net, self.image_token = net, -1
        self.processes: dict[int, Forked] = {}

    def start(self, host: int) -> None:
        words = (self._net.address(host), str(PORT), str(self.image_token), "300")
        self.processes[host] = self._net.start(host, SUPPORT / "fake_server_worker.py", *words)
        assert self.processes[host].stdout.readline() == "listens\n"

    def kill(self, host: int) -> None:
        self.processes[host].kill()
        self.processes[host].wait()

    def begin(self, fault: Fault) -> Callable[[], None]:
        """Does it, and returns what ends it."""
        host = fault.host
        if fault.kind == "stopped":
            self.processes[host].send_signal(signal.SIGSTOP)
            return lambda: self.processes[host].send_signal(signal.SIGCONT)
        if fault.kind == "cut off":
            self._net.cut.add(host)
            return lambda: self._net.cut.discard(host)
        if fault.kind == "slow":
            self._net.slow[host] = 0.3
            return lambda: self._net.slow.__setitem__(host, 0.0)
        if fault.kind == "loses packets":
            self._net.loses[host] = 0.3
            return lambda: self._net.loses.__setitem__(host, 0.0)
        if fault.kind == "killed":
            self.kill(host)
            return lambda: self.start(host)
        self.processes[host].send_signal(signal.SIGUSR1)  # so quickly that nobody has missed it
        return lambda: None


def do(fault: Fault, servers: Servers, net: Network, is_over: threading.Event, before: threading.Thread | None) -> None:
    """The fault, from its packet to its end; at the phase's end if so many packets do not pass, and after what happened
    to the server before."""
    if before:
        before.join()
    first = net.seen[fault.host]
    while net.seen[fault.host] < first + fault.packets and not is_over.wait(0.005):
        pass
    end = servers.begin(fault)
    threading.Event().wait(fault.seconds)
    end()


def run(folder: Path, rounds: int, seed: int) -> list[dict[str, Any]]:
    """What each round came to: `faults`, `weights` (how many responses were made with which), `failed` responses,
    `said` (lines about servers), and of the trainer its `status`."""
    dice = random.Random(seed)
    plan = draw(dice, rounds)
    found: list[dict[str, Any]] = []
    with network(3, seed) as net:
        urls = [f"http://{net.address(host)}:{PORT}" for host in SERVERS]
        trainer = net.start(TRAINER, SUPPORT / "server_chaos_worker.py", folder, str(rounds), str(seed), *urls)
        servers = Servers(net)
        try:
            said: list[str] = []
            doing: dict[int, threading.Thread] = {}
            is_over = threading.Event()
            for line in trainer.stdout:
                word, _, rest = line.partition(" ")
                if word == "IMAGE":
                    servers.image_token = int(rest)
                    for host in SERVERS:
                        servers.start(host)
                    continue
                if word in ("BEGIN", "RESULT"):
                    is_over.set()
                if word == "BEGIN":
                    number, phase = json.loads(rest)
                    is_over = threading.Event()
                    for fault in plan[number - 1]:
                        if fault.phase == phase:
                            words = (fault, servers, net, is_over, doing.get(fault.host))
                            doing[fault.host] = threading.Thread(target=do, args=words)
                            doing[fault.host].start()
                elif word == "RESULT":
                    result = json.loads(rest)
                    faults = [f"{f.kind}, in a {f.phase}" for f in plan[result["round"] - 1]]
                    found.append(result | {"faults": faults, "said": said})
                    said = []
                else:
                    said.append(line)
            is_over.set()
            for thread in doing.values():
                thread.join()
            found.append({"status": trainer.wait(), "said": said})
        finally:
            for process in (*servers.processes.values(), trainer):
                process.kill()
                process.wait()
    return found


def table(found: list[dict[str, Any]]) -> str:
    times: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    for result in found[:-1]:
        for fault in result["faults"]:
            times[fault] += 1
            lost[fault] += result["failed"] + sum(n for w, n in result["weights"].items() if int(w) != result["round"])
            slowest[fault] = max(slowest.get(fault, 0.0), result["seconds"])
    lines = ["| server | times | responses lost or of other weights | longest round, s |", "|---" * 4 + "|"]
    return "\n".join(lines + [f"| {k} | {n} | {lost[k]} | {slowest[k]:.1f} |" for k, n in sorted(times.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["CI"] = "true"  # a network that cannot be had is an error here
    found = run(args.folder, args.rounds, args.seed)
    (args.folder / "servers.json").write_text(json.dumps(found, indent=1))
    print(table(found))
    good = [r for r in found[:-1] if not r["failed"] and set(r["weights"]) == {str(r["round"])}]
    print(f"\n{len(good)} of {args.rounds} steps had all of their responses, made with the right weights")
    return 0 if len(good) == args.rounds and found[-1]["status"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
