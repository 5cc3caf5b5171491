"""New weights from GPU to GPU: vLLM's own transfer over NCCL. Not yet run on a GPU; tested up to the NCCL calls.

vLLM's trainer side (`NCCLTrainerWeightTransferEngine`) does the sending. Here is what it asks for, a client of one
server and the weights as it reads them, and what a sync needs around it. Each server has a group of its own with the
main rank, and they are sent to in turn: one that fails takes none of the others with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.weights import check_manifests
from sapo_vl.rollout.vllm.client import Refusal, ServerFault, ask, open_http
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.handover import POLL_S, reading_s
from sapo_vl.rollout.vllm.package import Package
from sapo_vl.rollout.vllm.transfer import Weights
from sapo_vl.rollout.vllm.v0_32_http import begin_update, is_up, joined, settle, worker_count

log = logging.getLogger(__name__)
T = TypeVar("T")


class NcclTransfer:
    """Nothing is kept: a package is the trainer's weights as they are now. Follows Transfer."""

    while_training = False

    def __init__(
        self,
        config: ServerConfig,
        weights: Weights,
        expected: Mapping[str, tuple[int, ...]],
        world: World,
        device: torch.device,
    ) -> None:
        """`device`: what NCCL sends from, this rank's own; the collectives of `world` are on the CPU."""
        self._config, self._weights, self._expected, self._world = config, weights, expected, world
        self._device = device
        self._described: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        self._links: dict[str, Link] = {}  # main rank only

    def pack(self, label: str) -> Package:
        if not self._described:  # gathered once more under ZeRO-3, the first time only
            self._described = [(name, value.dtype, tuple(value.shape)) for name, value in self._weights()]
        check_manifests({name: shape for name, _, shape in self._described}, self._expected)
        size = sum(torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in self._described)
        return Package(Path(label), len(self._described), label, reads=size)

    def deliver(self, urls: Sequence[str], package: Package, *, repack: bool, wait_s: float) -> dict[str, str]:
        """`repack` mends what only servers on a CPU have."""
        give_up = time.monotonic() + wait_s
        took: dict[str, str] = {}
        pending = list(urls)
        while True:
            for url in list(pending):
                took[url], may_come = self._give(url, package)
                if not may_come:
                    pending.remove(url)
            over = not pending or not all(took.values()) or time.monotonic() >= give_up
            if self._world.gather(over)[0]:
                return took
            time.sleep(POLL_S)

    def keep(self, package: Package) -> None:
        """Nothing was."""

    def close(self) -> None:
        for link in self._links.values():
            link.abort()
        self._links.clear()

    def _give(self, url: str, package: Package) -> tuple[str, bool]:
        """("" or why not, whether it may work later). All ranks: each weight is gathered by all of them."""
        outcome = ("", False)
        within = reading_s(package.reads, self._config.timeout_s)
        if self._world.is_main:
            outcome = self._outcome(url, lambda: self._begin(url, package, within))
        outcome = self._world.gather(outcome)[0]
        if outcome[0]:
            return outcome
        source = Source(self._weights, self._described, self._device)
        if self._world.is_main:
            outcome = self._outcome(url, lambda: self._links[url].send(source))
        source.drain()
        if self._world.is_main and not outcome[0]:
            outcome = self._outcome(url, lambda: _call(lambda http: settle(http, url, package)))
        return self._world.gather(outcome)[0]

    def _begin(self, url: str, package: Package, within: float) -> None:
        """The server is paused and in a group with this process."""
        if reason := _call(lambda http: is_up(http, url)):
            raise ServerFault(reason)
        link = self._links.get(url)
        group = link.name if link else ""
        if not _call(lambda http: begin_update(http, url, str(package.folder), group)):
            if link:  # its other end was started again
                self._links.pop(url).abort()
            workers = _call(lambda http: worker_count(http, url))
            source = Source(self._weights, self._described, self._device)
            self._links[url] = link = Link(url, workers, source, self._config.nccl_address, within)
            _call(lambda http: joined(http, url, self._links[url].name))

    def _outcome(self, url: str, action: Callable[[], object]) -> tuple[str, bool]:
        """What came of an action on a server. After a fault its group is given up, in whatever state it is."""
        try:
            action()
        # vLLM's own checks, on this end of the group, raise the last three.
        except (ServerFault, RuntimeError, OSError, AssertionError, ValueError) as error:
            if url in self._links:
                self._links.pop(url).abort()
            return str(error) or type(error).__name__, not isinstance(error, Refusal)
        return "", False


class Link:
    """The group of one server's workers and this process, and vLLM's engine that sends in it."""

    def __init__(self, url: str, workers: int, source: Source, address: str, timeout_s: float) -> None:
        """Raises ServerFault or RuntimeError if the group does not come about."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_open_port

        self.name = secrets.token_hex(8)
        self._engine: Any = None
        client = SyncClient(url, timeout_s, self.abort)
        init = NCCLTrainerInitInfo(rank=0, master_address=address, master_port=get_open_port(), world_size=1 + workers)
        self._engine = WeightTransferTrainerFactory.trainer_init(init, client=client, source=source)  # type: ignore[arg-type]

    def send(self, source: Source) -> None:
        """All weights, from the start of an update to its end. Raises ServerFault or RuntimeError."""
        self._engine.source = source
        self._engine.send_weights()

    def abort(self) -> None:
        """Whoever waits in this group is let go."""
        if self._engine is not None:
            self._engine.shutdown()


class SyncClient:
    """What vLLM's engine says to a server (its VLLMWeightSyncClient). It calls `update_weights` beside the sending."""

    def __init__(self, url: str, timeout_s: float, on_fault: Callable[[], object]) -> None:
        self._url, self._timeout_s, self._on_fault = url, timeout_s, on_fault

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            self._post("/update_weights", {"update_info": update_info})
        except ServerFault:
            self._on_fault()  # this process would wait for ever for a server that does not receive
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Without a version: the label is set last, see v0_32_http.settle."""
        self._post("/finish_weight_update")

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        _call(lambda http: ask(http, self._url, "POST", path, within=self._timeout_s, json=body))


class Source:
    """The weights as vLLM's engine reads them (its WeightSource), on the device that sends them."""

    def __init__(
        self, weights: Weights, described: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], device: torch.device
    ) -> None:
        self._open = ((name, value.to(device)) for name, value in weights())
        self._described = described

    def metadata(self) -> list[Any]:
        """Of what iteration gives, in its order."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, dtype, shape) for name, dtype, shape in self._described]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._open

    def drain(self) -> None:
        """Reads what is left, since other ranks read along."""
        with contextlib.suppress(StopIteration):
            while True:
                next(self._open)


def _call(action: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """One exchange from a thread that has no event loop."""

    async def run() -> T:
        async with open_http() as http:
            return await action(http)

    return asyncio.run(run())
