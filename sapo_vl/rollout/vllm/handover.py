"""New weights on their way to servers: a folder per version, whole or absent, and the servers that took it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import httpx
from safetensors import SafetensorError

from sapo_vl.rollout.vllm.client import Refusal, ServerFault, open_http
from sapo_vl.rollout.vllm.package import Package
from sapo_vl.rollout.vllm.v0_32_http import Wanted, check_settings, hand_over, is_up

log = logging.getLogger(__name__)

POLL_S = 1.0  # between two looks at a server that is not up
REPORT_S = 30.0  # between two lines about waiting
SLOW_DISK = 50e6  # bytes a second that servers read from a shared disk at the worst
T = TypeVar("T")


class WeightFolder:
    """`root` is for the weights of one run; what an earlier one left there is deleted. Used by the main rank alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self.keep(None)

    def write(self, label: str, items: Iterator[T], write: Callable[[Iterator[T], Path], object]) -> Path:
        """The new folder, under its name only when complete. Raises OSError (a full disk, say) or what `items`
        raises; `items` is always read to its end, since other ranks read along."""
        part = self._root / f"weights-{label}.part"
        try:
            part.mkdir()
            write(items, part)
        except (OSError, SafetensorError) as error:
            for _ in items:
                pass
            shutil.rmtree(part, ignore_errors=True)
            raise OSError(f"cannot write new weights into {part}: {error}") from error
        return part.rename(self._root / f"weights-{label}")

    def keep(self, folder: Path | None) -> None:
        """Deletes all but `folder`."""
        for path in self._root.glob("weights-*"):
            if path != folder:
                _delete(path)

    def remove(self) -> None:
        _delete(self._root)


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:  # a server on a network file system may still have a file open
        log.warning("cannot delete old weights: %s", error)


async def check_servers(urls: Sequence[str], wanted: Wanted, startup_s: float) -> tuple[dict[str, str], dict[str, int]]:
    """Waits for all servers and compares their settings with `wanted`: (faults by url, vocabulary sizes by url)."""
    async with open_http() as http:
        found = await asyncio.gather(*(_check(http, url, wanted, startup_s) for url in urls))
    faults = {url: f for url, f in zip(urls, found, strict=True) if isinstance(f, str)}
    return faults, {url: f for url, f in zip(urls, found, strict=True) if isinstance(f, int)}


async def _check(http: httpx.AsyncClient, url: str, wanted: Wanted, startup_s: float) -> int | str:
    give_up = time.monotonic() + startup_s
    report = time.monotonic() + REPORT_S
    try:
        while reason := await is_up(http, url):
            if time.monotonic() >= give_up:
                return f"not ready after {startup_s:g} s (rollout.server.startup_s): {reason}"
            if time.monotonic() >= report:
                log.info("waiting for rollout server %s: %s", url, reason)
                report += REPORT_S
            await asyncio.sleep(POLL_S)
        return await check_settings(http, url, wanted)
    except ServerFault as fault:
        return str(fault)


async def deliver(
    urls: Sequence[str], package: Package, *, repack: bool, timeout_s: float, wait_s: float
) -> dict[str, str]:
    """Hands the package to all of `urls` at once; by url "" if it took it, else why not.

    If none did, those that may still come are tried again until one does or `wait_s` is over.
    """
    give_up = time.monotonic() + wait_s
    report = time.monotonic() + REPORT_S
    within = reading_s(package.reads, timeout_s)
    taken: dict[str, str] = {}
    pending = list(urls)
    async with open_http() as http:
        while True:
            outcomes = await asyncio.gather(*(_give(http, url, package, repack, within) for url in pending))
            taken |= {url: reason for url, (reason, _) in zip(pending, outcomes, strict=True)}
            pending = [url for url, (_, may_come) in zip(pending, outcomes, strict=True) if may_come]
            if not pending or time.monotonic() >= give_up or not all(taken.values()):
                return taken
            if time.monotonic() >= report:
                reasons = "; ".join(f"{url}: {taken[url]}" for url in pending)
                log.info("no rollout server has the weights %s yet: %s", package.label, reasons)
                report += REPORT_S
            await asyncio.sleep(POLL_S)


def reading_s(nbytes: int, timeout_s: float) -> float:
    """The time a server has to read so much: `timeout_s`, more where it is that large."""
    return max(timeout_s, nbytes / SLOW_DISK)


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


async def _give(
    http: httpx.AsyncClient, url: str, package: Package, repack: bool, timeout_s: float
) -> tuple[str, bool]:
    """("" or why not, whether it may work later)."""
    try:
        if reason := await is_up(http, url):
            return reason, True
        await hand_over(http, url, package, repack=repack, timeout_s=timeout_s)
    except Refusal as refusal:
        return str(refusal), False  # it is there and cannot: the same weights will not do better the next time
    except ServerFault as fault:
        return str(fault), True  # on its way down or up, or its file system does not show the folder yet
    return "", False
