"""The ways of new weights to servers, behind one interface: what is handed over, and how.

By the disk, the main rank writes a folder, whole weights or adapters alone, and servers read it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.weights import ManifestError, check_manifests
from sapo_vl.model.folder import write_weights
from sapo_vl.rollout.vllm.adapters import AdapterSource, write_adapters
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.handover import Package, WeightFolder, deliver, stored_bytes

Weights = Callable[[], Iterator[tuple[str, Tensor]]]  # hub names, hub layout, whole on every rank
T = TypeVar("T")


class CannotPack(RuntimeError):
    """New weights cannot be made ready. Says why, on all ranks."""


class Transfer(Protocol):
    """Called by all ranks together."""

    while_training: bool  # whether a server can be given the newest package when the trainer's weights have changed

    def pack(self, label: str) -> Package:
        """The weights that the trainer has now, ready to be handed over; earlier packages are still there.

        Raises ManifestError or CannotPack, on all ranks.
        """
        ...

    def deliver(self, urls: Sequence[str], package: Package, *, repack: bool, wait_s: float) -> dict[str, str]:
        """By url "" if the server took the package, else why not; the same on all ranks."""
        ...

    def keep(self, package: Package) -> None:
        """No other package is needed any more."""
        ...

    def close(self) -> None:
        """Leaves nothing behind."""
        ...


class DiskTransfer:
    """By the file system, where a package stays until the next one has been handed over. Follows Transfer."""

    while_training = True

    def __init__(
        self,
        config: ServerConfig,
        weights: Weights,
        expected: Mapping[str, tuple[int, ...]],
        world: World,
        run_folder: Path,
        adapters: AdapterSource | None = None,
        base: str = "",
    ) -> None:
        """`expected` is the name and shape of every weight of the served model.

        With `adapters` those are sent; `base` says which model they belong to.
        """
        self._config, self._world = config, world
        self._weights, self._expected, self._adapters = weights, expected, adapters
        self._base = base
        self._folder = WeightFolder(weights_root(config, run_folder)) if world.is_main else None

    def pack(self, label: str) -> Package:
        if self._adapters is not None:
            return self._pack_adapters(label, self._adapters)
        sent: dict[str, tuple[int, ...]] = {}
        noted = _noting(self._weights(), lambda item: sent.update({item[0]: tuple(item[1].shape)}))
        path = self._written(label, noted, write_weights)
        check_manifests(sent, self._expected)
        return self._shared(path, lambda folder: Package(folder, len(sent), label, reads=stored_bytes(folder)))

    def deliver(self, urls: Sequence[str], package: Package, *, repack: bool, wait_s: float) -> dict[str, str]:
        took: dict[str, str] = {}
        if self._world.is_main:
            took = asyncio.run(deliver(urls, package, repack=repack, timeout_s=self._config.timeout_s, wait_s=wait_s))
        return self._world.gather(took)[0]

    def keep(self, package: Package) -> None:
        if self._folder:
            self._folder.keep(package.folder)

    def close(self) -> None:
        """Deletes the weights on disk."""
        if self._folder:
            self._folder.remove()

    def _pack_adapters(self, label: str, source: AdapterSource) -> Package:
        names: list[str] = []
        noted = _noting(source.adapters(), lambda adapter: names.append(adapter.name))
        path = self._written(label, noted, write_adapters)
        if strangers := sorted(set(names) - set(self._expected)):
            raise ManifestError(f"the trainer has an adapter of {strangers[0]}, which the served model has not")
        return self._shared(
            path,
            lambda folder: Package(
                folder, 2 * len(names), label, base=self._base, reads=source.base_bytes + stored_bytes(folder)
            ),
        )

    def _written(self, label: str, items: Iterator[T], write: Callable[[Iterator[T], Path], object]) -> Path | str:
        """The folder, or why there is none; nothing of either on other ranks, which read along."""
        if self._folder is None:
            for _ in items:
                pass
            return ""
        try:
            return self._folder.write(label, items, write)
        except OSError as error:
            return str(error)

    def _shared(self, written: Path | str, package: Callable[[Path], Package]) -> Package:
        """The main rank's package on all ranks. Raises CannotPack where it has none."""
        made = package(written) if isinstance(written, Path) else written
        made = self._world.gather(made)[0]
        if isinstance(made, str):
            raise CannotPack(made)
        return made


def _noting(items: Iterable[T], note: Callable[[T], object]) -> Iterator[T]:
    for item in items:
        note(item)
        yield item


def weights_root(config: ServerConfig, run_folder: Path) -> Path:
    """The folder for the weights of this run alone. In a `sync_dir` that several runs share, each has its own."""
    if not config.sync_dir:
        return run_folder.resolve() / "weights_for_servers"
    name = hashlib.blake2b(str(run_folder.resolve()).encode(), digest_size=6).hexdigest()
    return Path(config.sync_dir).resolve() / f"sapo_vl-{name}"
