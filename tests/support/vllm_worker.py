"""Runs on every rank for test_vllm.py: a real vLLM engine beside a real DeepSpeed engine.

    vllm_worker.py OUT FOLDER KIND STAGE TENSOR_PARALLEL SEED

FOLDER/KIND is a model folder; KIND+lora trains adapters on it. The main rank writes OUT, JSON; what
is right is decided by the test.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from helpers_models import MODEL, make_prompts
from torch.utils._python_dispatch import TorchDispatchMode

from sapo_vl.distributed import init_world, shutdown_world
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.learning.random_state import random_state
from sapo_vl.learning.weights import ManifestError, check_manifests, manifest
from sapo_vl.model.folder import write_weights
from sapo_vl.model.lora import LoraConfig
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.rollout.base import ParityConfig
from sapo_vl.rollout.parity import ParityError, ParityGate, ParityReport, measure
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.engine import EngineFailed, VllmEngine
from sapo_vl.session import Session, open_session, setup_logging
from sapo_vl.types import Finish, Prompt, RolloutGroup

IMAGES: list[list[tuple[int, int]]] = [[(48, 32)], [], [(32, 64), (32, 32)], [(64, 64)], []]
SAMPLING = SamplingParams(n=3, max_new_tokens=12, temperature=1.0, seed=3)


def perturb(session: Session, seed: int, part: str = "") -> None:
    """The same noise on all ranks, on weights whose name contains `part`."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in session.engine.module.hf.named_parameters():
        if part not in name:
            continue
        if session.engine.zero.stage < 3:
            p.data += 0.03 * torch.randn(p.shape, generator=generator)
            continue
        with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
            p.data += 0.03 * torch.randn(p.shape, generator=generator)


def numbers(report: ParityReport) -> dict[str, Any]:
    """The gaps of prompts that are not routed near a tie, where another order of summation may choose other experts."""
    return {kind: dataclasses.asdict(gap) for kind, gap in report.settled.items()} | {"refused": list(report.refused)}


def said(action: Callable[[], object]) -> str:
    """The message an action fails with, "" if it does not."""
    try:
        action()
    except (ParityError, ManifestError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class CopiedFrom(TorchDispatchMode):
    """Counts the bytes that are copied out of the mapped safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = str(folder.resolve())
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = [a for a in args if isinstance(a, torch.Tensor) and a.device.type == "cpu"]
        made = out if isinstance(out, torch.Tensor) else None
        if made is None or made.device.type == "meta":  # vLLM tries every copy on the meta device first, to count
            return out
        for source in sources:
            if source.untyped_storage().data_ptr() != made.untyped_storage().data_ptr() and self._mapped(source):
                self.nbytes += source.nbytes
        return out

    def _mapped(self, tensor: torch.Tensor) -> bool:
        with open("/proc/self/maps") as maps:
            for line in maps:
                if self._folder in line:
                    begin, end = (int(word, 16) for word in line.split(maxsplit=1)[0].split("-"))
                    if begin <= tensor.data_ptr() < end:
                        return True
        return False


class Checks:
    def __init__(self, folder: Path, kind: str, stage: int, tensor_parallel: int, seed: int) -> None:
        self.world = init_world()
        setup_logging(self.world)
        self.seed = seed
        self.session = open_session(
            MODEL.model_copy(
                update={
                    "path": str(folder / kind.removesuffix("+lora")),
                    "lora": LoraConfig(rank=4) if kind.endswith("+lora") else None,
                }
            ),
            OptimConfig(),
            ZeroConfig(stage=stage),  # type: ignore[arg-type]
            RolloutConfig(
                engine="vllm", vllm=VllmConfig(tensor_parallel=tensor_parallel, max_num_seqs=64), max_new_tokens=32
            ),
            self.world,
            total_updates=1,
            seed=seed,
        )
        assert isinstance(self.session.rollouts, VllmEngine)
        self.vllm = self.session.rollouts
        everyone = make_prompts(self.session.chat, np.random.default_rng(seed), IMAGES * self.world.size)
        share = len(everyone) // self.world.size
        self.prompts = everyone[self.world.rank * share :][:share]
        self.gate = self.new_gate()

    def new_gate(self) -> ParityGate:
        s = self.session
        return ParityGate(ParityConfig(every=1), s.engine, s.chat, s.rollouts, self.prompts, self.world, "float32")

    def measure(self, prompts: Sequence[Prompt] | None = None) -> dict[str, Any]:
        s = self.session
        return numbers(measure(s.engine, s.chat, s.rollouts, prompts or self.prompts, SAMPLING, self.world))

    def syncs(self) -> dict[str, Any]:
        """Parity before and after three syncs of changed weights; what the plain reload alone would have given."""
        out: dict[str, Any] = {"start": self.measure()}
        self.vllm.sync(0)
        plain = self.measure()
        perturb(self.session, self.seed)
        self.vllm.sync(1)
        out["plain_reload"] = {"same_weights": plain, "new_weights": self.measure(), "method": self.vllm.sync_method}
        self.gate.after_sync(1)
        out["method"] = self.vllm.sync_method
        out["synced"] = []
        for version in (2, 3, 4):
            perturb(self.session, self.seed + version)
            out["synced"].append({"stale": self.measure()})
            before = random_state()
            self.vllm.sync(version)
            out["synced"][-1]["random_state_kept"] = random_state() == before
            self.gate.after_sync(version)
            out["synced"][-1] |= self.measure() | {
                "version": self.vllm.generate(self.prompts, SAMPLING)[0].rollouts[0].weight_version
            }
        return out

    def sampling(self) -> dict[str, Any]:
        """The same seed gives the same responses, another seed and another temperature others; greedy is greedy."""

        def ids(**changes: Any) -> list[list[list[int]]]:
            before = random_state()
            groups = self.vllm.generate(self.prompts, dataclasses.replace(SAMPLING, **changes))
            kept.append(random_state() == before)
            return [[r.response_ids.tolist() for r in g.rollouts] for g in groups]

        def reversed_ids() -> list[list[list[int]]]:
            groups = self.vllm.generate(self.prompts[::-1], SAMPLING)
            return [[r.response_ids.tolist() for r in g.rollouts] for g in groups][::-1]

        kept: list[bool] = []
        hot = measure_hot(self)
        return {
            "first": ids(), "again": ids(), "reversed": reversed_ids(), "other": ids(seed=4),
            "greedy": ids(temperature=0.0, n=2), "hot": hot, "banned": list(self.session.chat.banned_ids),
            "random_state_kept": kept,
        }  # fmt: skip

    def shared(self) -> dict[str, Any]:
        """Two batches whose images are prepared once for all ranks, one without; who processed how many images."""
        renderer, processed = self.vllm.llm.renderer, 0
        process = renderer._process_multimodal

        def counted(prompt: Any, data: Any, *others: Any, **more: Any) -> Any:
            nonlocal processed
            processed += len(data["image"])
            return process(prompt, data, *others, **more)

        renderer._process_multimodal = counted
        batches = []
        for shares in (True, False, True):
            self.vllm._shares_memory &= shares
            groups = self.vllm.generate(self.prompts, SAMPLING)
            responses = [[r.response_ids.tolist() for r in g.rollouts] for g in groups]
            batches.append({"processed": self.world.gather(processed), "responses": self.world.gather(responses)})
            self.vllm._shares_memory, processed = True, 0
        renderer._process_multimodal = process
        return {"batches": batches, "images": self.world.gather(sum(len(p.images) for p in self.prompts))}

    def parts(self) -> dict[str, Any]:
        """New weights from a folder, as a server takes them; how much of it each rank's worker copied."""
        path = Path(self.world.gather(tempfile.mkdtemp())[0])
        perturb(self.session, self.seed + 70)
        weights = dict(self.vllm._checked_weights())
        if self.world.is_main:
            write_weights(iter(weights.items()), path)
        self.world.barrier()
        given = {"folder": str(path), "tensors": str(len(weights))}
        with CopiedFrom(path) as seen:
            said = self.vllm.llm.collective_rpc("sapo_load_weights", kwargs=given)
        self.world.barrier()
        if self.world.is_main:
            shutil.rmtree(path)  # as a trainer does soon after
        self.vllm.llm.collective_rpc("sapo_repack_cpu")
        self.vllm.contract.reset_caches(self.vllm.llm)
        total = sum(w.nbytes for w in weights.values())
        return {"said": said, "shares": self.world.gather(seen.nbytes / total)} | self.measure()

    def faults(self) -> dict[str, Any]:
        """Each fault planted in turn; what noticed it, in its own words."""
        out: dict[str, Any] = {}
        images = [p for p in self.prompts if p.images]
        swapped = [dataclasses.replace(p, images=tuple(i.rotate(180) for i in p.images)) for p in images]
        out["swapped_image"] = self._verdict([*swapped, *self._text()])
        flat = [
            dataclasses.replace(p, positions=np.broadcast_to(np.arange(len(p.ids)), (3, len(p.ids)))) for p in images
        ]
        out["wrong_positions"] = self._verdict([*flat, *self._text()])
        expanded = [dataclasses.replace(p, compact_ids=p.ids) for p in images]
        out["double_expanded"] = self._reasons(self.vllm.generate(expanded, SAMPLING))

        self.vllm.sync(10)
        perturb(self.session, self.seed + 50)
        self.vllm.weight_version = 11  # claimed, not done
        out["stale_weights"] = self._verdict(self.prompts)
        self.vllm.sync(11)

        out["raw_logprobs"] = self._raw_logprobs()
        out["fresh"] = self._fresh()

        # A runner that keeps the vision tower's outputs although it was told to forget them: other versions did.
        runner = self._runner()
        reset_caches, forget = self.vllm.contract.reset_caches, runner.reset_encoder_cache
        self.vllm.generate(self.prompts, SAMPLING)
        perturb(self.session, self.seed + 51, "visual")
        self.vllm.contract.reset_caches = lambda llm: llm.reset_prefix_cache()
        runner.reset_encoder_cache = lambda: None
        self.vllm.sync(12)
        out["stale_encoder_cache"] = self._verdict(self.prompts)
        runner.reset_encoder_cache = forget
        out["unaware_scheduler"] = self._lost_encoder_cache()
        self.vllm.contract.reset_caches = reset_caches

        # Last: an engine whose reload was broken off is not used again.
        whole = self.vllm._weights
        lost = next(n for n in manifest(self.session.engine) if "layers.1.mlp" in n)
        self.vllm._weights = lambda: ((n, w) for n, w in whole() if n != lost)
        out["missing_weight"] = {"name": lost, "said": said(lambda: self.vllm.sync(9))}
        self.vllm._weights = whole
        shapes = manifest(self.session.engine)
        shapes[lost] = (1, 2)
        out["wrong_shape"] = said(lambda: check_manifests(shapes, self.vllm._expected))
        return out

    def _raw_logprobs(self) -> str:
        """Log-probs before the bans, as vLLM gives them by default."""
        sampler = self._runner().sampler
        parts = (sampler, sampler.topk_topp_sampler)
        for part in parts:
            part.logprobs_mode = "raw_logprobs"
        said_so = self._verdict(self.prompts)
        for part in parts:
            part.logprobs_mode = "processed_logprobs"
        return said_so

    def _fresh(self) -> dict[str, Any]:
        """A second engine in the same process, on weights written to disk."""
        perturb(self.session, self.seed + 60)
        self.vllm._method = self.vllm.contract.SYNC_METHODS.index("fresh")
        before = random_state()
        self.vllm.sync(11)
        figures = self.measure() | {"random_state_kept": random_state() == before}
        self.vllm._method = self.vllm.contract.SYNC_METHODS.index("repack")
        return figures

    def _runner(self) -> Any:
        return self.vllm.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner

    def _lost_encoder_cache(self) -> str:
        """The runner forgets, the scheduler does not: the next image request must fail loudly."""
        self.vllm.sync(13)
        try:
            self.vllm.generate(self.prompts, SAMPLING)
        except EngineFailed as error:
            return str(error)
        return ""

    def _text(self) -> list[Prompt]:
        return [p for p in self.prompts if not p.images]

    def _verdict(self, prompts: Sequence[Prompt]) -> str:
        """What the gate says, with no other way of syncing left to try."""
        gate = self.new_gate()
        gate._prompts = prompts
        self.vllm._method = len(self.vllm.contract.SYNC_METHODS) - 1
        try:
            return said(lambda: gate.check(0))
        finally:
            self.vllm._method = 1

    @staticmethod
    def _reasons(groups: Sequence[RolloutGroup]) -> list[str]:
        return [r.score_detail for g in groups for r in g.rollouts if r.finish is Finish.FAILED]


def measure_hot(checks: Checks) -> dict[str, Any]:
    s = checks.session
    params = dataclasses.replace(SAMPLING, temperature=1.7)
    return numbers(measure(s.engine, s.chat, s.rollouts, checks.prompts, params, checks.world))


def main() -> None:
    out, folder, kind, stage, tensor_parallel, seed = sys.argv[1:7]
    checks = Checks(Path(folder), kind, int(stage), int(tensor_parallel), int(seed))
    result = {name: getattr(checks, name)() for name in sys.argv[7:]}
    if checks.world.is_main:
        Path(out).write_text(json.dumps(result))
    checks.vllm.close()
    shutdown_world()


if __name__ == "__main__":
    main()
