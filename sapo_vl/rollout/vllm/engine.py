"""vLLM inside the trainer's processes: one engine per rank, or one over several of them."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.random_state import kept_random_state
from sapo_vl.learning.weights import check_manifests
from sapo_vl.model.chat import Chat
from sapo_vl.model.folder import write_weights
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.routing import RouteSpec
from sapo_vl.rollout.base import OnGroup, SamplingParams
from sapo_vl.rollout.failures import FailureWatch
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.contract import load_contract
from sapo_vl.rollout.vllm.responses import Answer, repeat_greedy, to_group
from sapo_vl.rollout.vllm.shared import Bytes, can_share, share
from sapo_vl.types import Prompt, RolloutGroup

log = logging.getLogger(__name__)
Weights = Callable[[], Iterator[tuple[str, Tensor]]]  # hub names, hub layout, whole on every rank


class EngineFailed(RuntimeError):
    """vLLM itself raised; its own error is the cause. Resume the run from its newest checkpoint."""


class VllmEngine:
    """Follows the RolloutEngine protocol. `expected` is the name and shape of every weight the engine has.

    vLLM seeds the generators of its process when it starts and draws from them, so after each call they are what they
    were: training draws the same numbers whatever the engine did (LoRA's dropout), and so does a resumed run.

    `sync` uses the fastest way of taking weights over until `surer_sync` is called, which a parity check does when
    the engine's answers are not the trainer's.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: VllmConfig,
        chat: Chat,
        weights: Weights,
        expected: Mapping[str, tuple[int, ...]],
        world: World,
        *,
        max_new_tokens: int,
        max_failed_share: float,
        routes: RouteSpec | None = None,
    ) -> None:
        config.check_ranks(world.size)
        self.model, self.config, self.chat, self.world = model, config, chat, world
        self.contract = load_contract()
        self.weight_version = 0
        self._weights, self._expected, self._routes = weights, expected, routes
        self._sharing = world.neighbours(config.tensor_parallel)  # the ranks of this engine
        self._shares_memory = can_share(self._sharing)
        self._watch = FailureWatch(max_failed_share)
        self._on_cpu = world.device.type == "cpu"
        self._max_model_len = model.max_prompt_tokens + max_new_tokens
        self._method = 0  # index into the contract's sync_methods
        self.llm: Any = self._open(model.path)
        self._vocab_size = self.llm.llm_engine.model_config.get_vocab_size()

    @property
    def sync_method(self) -> str:
        """The name of the way in which weights are taken over."""
        return self.contract.sync_methods(self._on_cpu)[self._method]

    @kept_random_state()
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[RolloutGroup]:
        """Raises RolloutStopped when too many responses were refused; see responses.py for why one is."""
        if params.n < 1 or not prompts:
            raise ValueError(f"{len(prompts)} prompts with n={params.n}: give at least one of each")
        self.contract.wake(self.llm)
        routes = self._routes if params.routes else None  # evaluations and parity checks need none
        groups: dict[int, RolloutGroup] = {}

        def finished(i: int, answer: Answer) -> None:
            if params.temperature == 0:
                answer = repeat_greedy(answer, params.n)
            groups[i] = to_group(prompts[i], answer, params.n, self.weight_version, self.chat, self._vocab_size, routes)
            if on_group is not None:
                on_group(i, groups[i])

        self._sample(prompts, params, finished)
        self.contract.sleep(self.llm)
        out = [groups[i] for i in range(len(prompts))]
        self._watch.record(out)
        return out

    @kept_random_state()
    def sync(self, version: int) -> None:
        """All ranks together: every rank reads all weights, an engine over several keeps its part."""
        self.contract.wake(self.llm)
        if self.sync_method == "fresh":
            self._start_afresh()
        else:
            self.contract.reload(self.llm, self._checked_weights(), repack=self.sync_method == "repack")
        self.contract.reset_caches(self.llm)
        self.weight_version = version

    def surer_sync(self) -> str | None:
        """Switches to the next way of taking weights over and names it; None if there is none left."""
        if self._method + 1 >= len(self.contract.sync_methods(self._on_cpu)):
            return None
        self._method += 1
        return self.sync_method

    def rest(self) -> None:
        """A sync wakes the engine, which is asleep after it has sampled."""
        self.contract.sleep(self.llm)

    def close(self) -> None:
        """Frees the engine's memory."""
        self.llm = None
        gc.collect()

    def _checked_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as they are sent. vLLM keeps the old value of one that is missing, with a warning at most."""
        sent: dict[str, tuple[int, ...]] = {}
        for name, value in self._weights():
            sent[name] = tuple(value.shape)
            yield name, value
        check_manifests(sent, self._expected)

    def _sample(
        self, prompts: Sequence[Prompt], params: SamplingParams, finished: Callable[[int, Answer], None]
    ) -> None:
        """`finished` is told of the answer to each of this rank's prompts."""
        contract, sharing = self.contract, self._sharing
        # The ranks of one engine must hand it the same requests in the same order.
        shares = sharing.gather([request_seed(p.problem.id, params.seed) for p in prompts])
        before = sum(len(share) for share in shares[: sharing.rank])
        mine = range(before, before + len(prompts))
        seeds = [seed for share in shares for seed in share]
        requests = [contract.sampling(params, seed, self.chat.eos_ids, self.chat.banned_ids) for seed in seeds]

        def answered(i: int, answer: Answer) -> None:
            if i in mine:
                finished(i - before, answer)

        try:
            prepared = self._prepared(prompts) if sharing.size > 1 and self._shares_memory else None
            if prepared is not None:
                contract.generate_prepared(self.llm, prepared, requests, answered)
            else:
                everyones = sharing.gather([as_vllm_reads_it(p) for p in prompts])
                contract.generate(self.llm, [p for share in everyones for p in share], requests, answered)
        except RuntimeError as error:  # whatever went wrong inside, the engine cannot be used any more
            raise EngineFailed(f"vLLM failed while sampling {len(requests)} prompts: {error}") from error

    def _prepared(self, prompts: Sequence[Prompt]) -> list[list[memoryview]] | None:
        """The prompts of all ranks of this engine; each rank processes the images of its own alone. None on all of
        them where one has no room for it."""
        fault: Exception | None = None
        buffers: Sequence[Bytes] = ()
        try:
            buffers = self.contract.prepare(self.llm, prompts)
        except Exception as error:  # raised below, on all ranks: the others would wait for this one
            fault = error
        faults = self._sharing.gather(f"{type(fault).__name__}: {fault}" if fault else "")
        if any(faults):
            raise RuntimeError(next(f for f in faults if f)) from fault
        shared = share(self._sharing, buffers)
        if shared is None:
            log.warning("no shared memory for %d prompts: each rank of this engine prepares them all", len(prompts))
        return shared

    @kept_random_state()
    def _open(self, path: str) -> Any:
        return self.contract.open_engine(
            path,
            self.model,
            self.config,
            self._max_model_len,
            on_cpu=self._on_cpu,
            distributed=self.world.size > 1,
            routes=self._routes is not None,
        )

    def _start_afresh(self) -> None:
        """A new engine on weights written to disk. Slow, but it has no memory of the old ones."""
        folder = Path(tempfile.mkdtemp(prefix="sapo_vl_weights_"))
        try:
            for path in Path(self.model.path).iterdir():
                if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json")):
                    shutil.copy(path, folder / path.name)
            write_weights(self._checked_weights(), folder)
            self.close()
            self.llm = self._open(str(folder))
        finally:
            shutil.rmtree(folder)


def as_vllm_reads_it(prompt: Prompt) -> Prompt:
    """The prompt without the patches of its images, eight times their bytes, and without the problem's own images."""
    problem = dataclasses.replace(prompt.problem, images=())
    return dataclasses.replace(prompt, problem=problem, pixel_values=None, image_grid_thw=None)


def request_seed(problem_id: str, seed: int) -> int:
    """The seed of a prompt's first response: a function of its names, not of rank, batch or order."""
    digest = hashlib.blake2b(f"{seed}\0{problem_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") // 2  # room to count the other responses up from it
