"""Rollouts from vLLM servers that are already running, over HTTP.

**Weights** take one of the ways of transfer.py. Servers answer under a label that names one sync of one run, so an
answer from any other weights is recognised.

**When servers fail.** Each rank sends its own prompts to the server with the least to do. dispatch.py says what
happens to a prompt that gets no answer, pool.py when a server is out of use. If prompts are left over when a rank can
do no more, all ranks meet, servers that are out are given the current weights again if they are there, and what is
left over is sent again, `rollout.server.retries` times. What is then still unanswered becomes responses with finish
FAILED and the reason; the step goes on without them, and the run stops past rollout.max_failed_share.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sapo_vl.distributed import World
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.routing import RouteSpec
from sapo_vl.rollout.base import OnGroup, SamplingParams
from sapo_vl.rollout.failures import FailureWatch
from sapo_vl.rollout.vllm.adapters import AdapterSource, base_digest
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.contract import check_transfer
from sapo_vl.rollout.vllm.dispatch import Batch, Dispatcher
from sapo_vl.rollout.vllm.engine import request_seed
from sapo_vl.rollout.vllm.handover import Package, check_servers
from sapo_vl.rollout.vllm.nccl import NcclTransfer
from sapo_vl.rollout.vllm.pool import Pool
from sapo_vl.rollout.vllm.responses import Answer, repeat_greedy, to_group
from sapo_vl.rollout.vllm.transfer import CannotPack, DiskTransfer, Transfer, Weights
from sapo_vl.rollout.vllm.v0_32 import sampling_fields, sync_methods
from sapo_vl.rollout.vllm.v0_32_http import Wanted
from sapo_vl.types import NO_SERVER, Prompt, RolloutGroup

log = logging.getLogger(__name__)

# A server that somebody else started cannot be started afresh.
METHODS = ("reload", "repack")


class ServersUnusable(RuntimeError):
    """The servers are not there, are set differently from the trainer, or cannot be given weights. Names each."""


class VllmServerEngine:
    """Follows the RolloutEngine protocol. `expected` is the name and shape of every weight of the served model.

    The servers need not hold the trainer's weights: they get them at the first sync, or before the first prompt.
    With rollout.staleness=1 `generate` runs in a thread beside training, so `world` is one with a group of its own.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: ServerConfig,
        chat: Chat,
        weights: Weights,
        expected: Mapping[str, tuple[int, ...]],
        world: World,
        run_folder: Path,
        *,
        max_new_tokens: int,
        max_failed_share: float,
        routes: RouteSpec | None = None,
        adapters: AdapterSource | None = None,
    ) -> None:
        """With `adapters`, a sync hands over those and not `weights`.

        Waits for all servers and looks at their settings. Raises ServersUnusable on all ranks.
        """
        check_transfer(config.transfer, on_cpu=world.device.type == "cpu")
        # Its own collectives: with rollout.staleness=1 `generate` runs in a thread beside the trainer's.
        self.chat, self.world, self.config = chat, world.apart(), config
        self.weight_version = 0
        self._routes = routes
        self._watch = FailureWatch(max_failed_share)
        self._method = 0
        self._methods = [method for method in sync_methods(world.device.type == "cpu") if method in METHODS]
        self._run, self._syncs = self.world.gather(secrets.token_hex(4))[0], 0
        self._package: Package | None = None
        base = base_digest(str(adapters.base)) if adapters else ""
        self._vocab_size = self._check(
            Wanted(
                dtype=model.dtype,
                max_model_len=model.max_prompt_tokens + max_new_tokens,
                min_pixels=model.min_pixels,
                max_pixels=model.max_pixels,
                routes=routes is not None,
                transfer=config.transfer,
                base=base,
            )
        )
        self._transfer: Transfer
        if config.transfer == "nccl":
            self._transfer = NcclTransfer(config, weights, expected, self.world, world.device)
        else:
            self._transfer = DiskTransfer(config, weights, expected, self.world, run_folder, adapters, base)
        self._pool = Pool(config.urls, world.rank, "it has no weights of this run yet")
        self._dispatcher = Dispatcher(self._pool, config, self._run, world.rank)

    @property
    def sync_method(self) -> str:
        """The name of the way in which weights are taken over."""
        return self._methods[self._method]

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[RolloutGroup]:
        """Raises RolloutStopped when too many responses are missing or were refused, see the head of this file."""
        if params.n < 1 or not prompts:
            raise ValueError(f"{len(prompts)} prompts with n={params.n}: give at least one of each")
        if self._package is None:  # an evaluation, say: nothing was trained, and servers may hold anything
            self.sync(self.weight_version)
        routes = self._routes if params.routes else None  # evaluations and parity checks need none
        groups: dict[int, RolloutGroup] = {}

        def finished(i: int, answer: Answer | str) -> None:
            if params.temperature == 0 and not isinstance(answer, str):
                answer = repeat_greedy(answer, params.n)
            groups[i] = to_group(prompts[i], answer, params.n, self.weight_version, self.chat, self._vocab_size, routes)
            if on_group is not None:
                on_group(i, groups[i])

        answers = self._answers(prompts, params, finished)
        for i, answer in enumerate(answers):
            if i not in groups:  # nobody answered
                finished(i, answer)
        out = [groups[i] for i in range(len(prompts))]
        self._watch.record(out)
        return out

    def sync(self, version: int) -> None:
        """All ranks together; the main rank writes and hands over.

        A server that cannot take the weights is out of use until it does. Raises ServersUnusable on all ranks if
        none could, after waiting `startup_s` for those that were not there, or if the weights cannot be written.
        """
        self._package = self._pack(version)
        self._pool.expect(f"it has not taken the weights of version {version}")
        self._bring_up()
        self._transfer.keep(self._package)  # for a server that comes back before the next sync
        self.weight_version = version
        if not self._pool.usable:
            raise ServersUnusable(f"no server took the weights of version {version}: {self._pool}")

    def surer_sync(self) -> str | None:
        """Switches to the next way of taking weights over and names it; None if there is none left."""
        if self._method + 1 >= len(self._methods):
            return None
        self._method += 1
        return self.sync_method

    def rest(self) -> None:
        """Nothing on these devices is for sampling alone."""

    def close(self) -> None:
        """Leaves no weights on disk. The servers go on running."""
        self._transfer.close()

    def _check(self, wanted: Wanted) -> int:
        """The vocabulary of the served model."""
        faults: dict[str, str] = {}
        sizes: dict[str, int] = {}
        if self.world.is_main:
            faults, sizes = asyncio.run(check_servers(self.config.urls, wanted, self.config.startup_s))
        faults, sizes = self.world.gather((faults, sizes))[0]
        if len(set(sizes.values())) > 1:
            faults["the servers"] = f"their vocabularies differ ({sizes}), so they serve different models"
        if faults:
            text = "; ".join(f"{url}: {fault}" for url, fault in faults.items())
            raise ServersUnusable(
                f"{text}. Start servers with `sapo-vl serve --config F --port N` and the config of this run, and name "
                "them in rollout.server.urls"
            )
        return next(iter(sizes.values()))

    def _answers(
        self, prompts: Sequence[Prompt], params: SamplingParams, finished: Callable[[int, Answer | str], None]
    ) -> list[Answer | str]:
        assert self._package is not None
        seeds = [request_seed(p.problem.id, params.seed) for p in prompts]
        batch = Batch(
            prompts,
            [sampling_fields(params, seed, self.chat.eos_ids, self.chat.banned_ids) for seed in seeds],
            finished,
        )
        for turn in range(1 + self.config.retries):
            # Without a copy of them, weights are handed over at a sync alone: in a step, the trainer's may be newer.
            if (turn or not self._pool.usable) and self._transfer.while_training:
                self._bring_up()
            if not self._pool.usable:
                break
            self._dispatcher.send(batch, self._package.label)
            for lost in self.world.gather(self._pool.out):
                self._pool.settle(lost)
            if not self.world.any(bool(batch.open(self.config.retries))):
                break
        answers = batch.result(f"{NO_SERVER}: {self._pool}")
        if missing := [a for a, b in zip(answers, batch.answers, strict=True) if isinstance(a, str) and b is None]:
            log.warning("%d of %d prompts have no answer; one of them: %s", len(missing), len(prompts), missing[0])
        return answers

    def _bring_up(self) -> None:
        """Gives the current weights to all servers that are out, and notes on all ranks which took them."""
        package = self._package
        assert package is not None
        took = self._transfer.deliver(
            list(self._pool.out),
            package,
            repack=self.sync_method == "repack",
            wait_s=0.0 if self._pool.usable else self.config.startup_s,
        )
        if self.world.is_main:
            for url, reason in took.items():
                if reason:
                    log.warning("rollout server %s did not take the weights %s: %s", url, package.label, reason)
        self._pool.settle(took)

    def _pack(self, version: int) -> Package:
        """Raises ManifestError or ServersUnusable, on all ranks."""
        self._syncs += 1
        try:
            return self._transfer.pack(f"{self._run}-{self._syncs}-v{version}")
        except CannotPack as error:
            raise ServersUnusable(f"the weights of version {version} cannot be handed over: {error}") from error
