"""The phases of a run, what each holds at its peak, and where. Change a phase's function with the way it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sapo_vl.config import RunConfig
from sapo_vl.model.folder import SHARD_BYTES
from sapo_vl.model.reading import SLICE_BYTES
from sapo_vl.planning import rollouts, trainer
from sapo_vl.planning.activations import (
    FLOAT_BYTES,
    INDEX_BYTES,
    Row,
    backward_peak_bytes,
    forward_peak_bytes,
    layout_bytes,
)
from sapo_vl.planning.machine import GB, Load, Machine
from sapo_vl.planning.rows import full_row, mixed_row, patches_of_prompt
from sapo_vl.planning.sizes import ModelSizes

PROCESS_BYTES = int(1.5 * GB)  # of a rank: libraries, data, pinned buffers
WORKER_BYTES = int(0.3 * GB)  # of a process that scores
TRAINING, EVALUATION = "train", "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that takes room."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A memory and what lies in it at the peak of a phase."""

    place: str  # "GPU", "host", or "vLLM's share"
    capacity_bytes: int
    items: tuple[Item, ...]

    @property
    def taken_bytes(self) -> int:
        return sum(i.bytes for i in self.items)

    @property
    def fits(self) -> bool:
        return self.taken_bytes <= self.capacity_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    name: str
    stage: str  # TRAINING, or EVALUATION: `sapo-vl eval` of the same config
    rooms: tuple[Room, ...]

    @property
    def fits(self) -> bool:
        return all(r.fits for r in self.rooms)

    def room(self, place: str) -> Room:
        return next(r for r in self.rooms if r.place == place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that a phase depends on."""

    sizes: ModelSizes
    config: RunConfig
    machine: Machine
    load: Load = field(default_factory=Load)


Items = Sequence[tuple[str, int]]


def phases(case: Case) -> list[Phase]:
    """In the order in which a run goes through them."""
    found = [loading(case), rollout(case)]
    if case.config.rollout.engine == "vllm":
        found.append(asleep(case))
    if case.config.old_passes:
        found.append(old_logprobs(case))
    return [*found, update(case), sync(case), checkpoint(case), final(case), evaluation(case)]


def _phase(
    case: Case, name: str, gpu: Items, per_rank: Items, per_host: Items = (), *, stage: str = TRAINING,
    share: Room | None = None,
) -> Phase:  # fmt: skip
    """`gpu` and `per_rank` are of one rank; without GPUs both lie in the host's memory. Every host has its processes,
    what optimizer and weights have there, and vLLM's weights while it sleeps."""
    machine, ranks = case.machine, case.machine.ranks_per_host
    processes = ranks * (PROCESS_BYTES + case.config.rewards.workers * WORKER_BYTES)
    mine = [("processes", processes), *((n, b * ranks) for n, b in per_rank), *per_host]
    rooms = []
    if machine.gpu_bytes:
        rooms.append(Room(place="GPU", capacity_bytes=machine.usable_gpu_bytes, items=_items(gpu)))
    else:
        mine += [(n, b * ranks) for n, b in gpu]
    rooms.append(Room(place="host", capacity_bytes=int(0.95 * machine.host_bytes), items=_items(mine)))
    return Phase(name=name, stage=stage, rooms=tuple(rooms + ([share] if share else [])))


def _items(items: Items) -> tuple[Item, ...]:
    return tuple(Item(name=n, bytes=b) for n, b in items if b)


def _held(case: Case) -> list[tuple[str, int]]:
    """Of the trainer on a device, between its passes."""
    m, c, ranks = case.sizes, case.config, case.machine.ranks
    return [
        ("weights", trainer.weights_bytes(m, c, ranks)),
        ("optimizer states", 0 if c.zero.offload_optimizer else trainer.states_bytes(m, c, ranks)),
        ("gradient buffer", trainer.gradients_bytes(m, c, ranks) if c.zero.stage == 3 else 0),
        ("weights of the KL reference", trainer.reference_bytes(m, c, ranks)),
    ]


def _offloaded(case: Case) -> list[tuple[str, int]]:
    return [("offloaded by the trainer", trainer.offloaded_bytes(case.sizes, case.config, case.machine.ranks))]


def _batch_on_host(case: Case) -> tuple[str, int]:
    """Patches of a step's prompts: of those sampled here and of those handed over, at most as many. Of the one
    micro-batch that is packed its patches, of every token an id, three positions and what its attention needs, and of
    every target its id, its place and two log-probs."""
    m, c = case.sizes, case.config
    row = mixed_row(m, c, case.load)
    prompts = -(-c.rollout.prompts_per_step // case.machine.ranks) * min(2, case.machine.ranks)
    pixels = (prompts + row.prompts) * patches_of_prompt(m, c) * m.patch_values * 4
    numbers = row.tokens * 4 * INDEX_BYTES + row.targets * (2 * INDEX_BYTES + 2 * FLOAT_BYTES)
    return "prompts of a step, and a micro-batch", layout_bytes(row) + numbers + pixels


def _sleeping(case: Case) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(on a GPU, on a host for each rank) of the engine while the trainer works."""
    m, c = case.sizes, case.config
    if c.rollout.engine != "vllm":
        return [], []
    if not (case.machine.gpu_bytes and c.rollout.vllm.sleep):
        return [("vLLM, awake", rollouts.share_bytes(m, c, case.machine))], []
    rest = ("vLLM, asleep", rollouts.ASLEEP_BYTES)
    return [rest], [("vLLM's weights, asleep", m.dtype_bytes * m.parameters // c.rollout.vllm.tensor_parallel)]


def loading(case: Case) -> Phase:
    """Every rank reads what it keeps, a slice of a file at a time, after room was made for one weight after the other;
    DeepSpeed then makes master weights through a copy."""
    m, c, ranks = case.sizes, case.config, case.machine.ranks
    copy = 0 if c.zero.stage == 0 or c.zero.offload_optimizer else trainer.MASTER * min(
        m.learning // ranks, trainer.SUB_GROUP
    )  # fmt: skip
    one = m.dtype_bytes * m.largest if c.zero.stage == 3 else 0
    gpu = [*_held(case), ("a copy of master weights", max(one, copy))]
    return _phase(case, "load", gpu, [("a slice of a file", slice_bytes(m)), *_offloaded(case)])


def slice_bytes(m: ModelSizes) -> int:
    """What is read at a time: rows, or one matrix of an expert."""
    return max(SLICE_BYTES, 2 * m.inner_width * m.hidden_width * m.dtype_bytes)


def rollout(case: Case) -> Phase:
    m, c = case.sizes, case.config
    if c.rollout.engine == "vllm":
        engine = [("vLLM", rollouts.share_bytes(m, c, case.machine))]
        share = rollouts.inside_vllm(m, c, case.machine)
        items = tuple(Item(name=n, bytes=b) for n, b in share)
        inside = Room(place="vLLM's share", capacity_bytes=engine[0][1], items=items)
        return _phase(case, "rollout", [*_held(case), *engine], _offloaded(case), share=inside)
    if c.rollout.engine == "vllm_server":
        return _phase(case, "rollout", _held(case), _offloaded(case))
    own = rollouts.own_sampling(m, c, case.machine, free_for_sampling(case))
    return _phase(case, "rollout", [*_before_sampling(case), *own], _offloaded(case))


def free_for_sampling(case: Case) -> int:
    """Bytes that a rank has left when the trainer's own model begins to sample."""
    return _left(case, [*_before_sampling(case), *_offloaded(case)])


def _before_sampling(case: Case) -> list[tuple[str, int]]:
    return [*_held(case), ("gathered weights", trainer.live_bytes(case.sizes, case.config))]


def _left(case: Case, held: Items) -> int:
    """On a rank's GPU, or of its part of the host's memory, beside what is held there."""
    machine, taken = case.machine, sum(size for _, size in held)
    if machine.gpu_bytes:
        return max(0, machine.usable_gpu_bytes - taken)
    process = PROCESS_BYTES + case.config.rewards.workers * WORKER_BYTES
    return max(0, int(0.95 * machine.host_bytes) // machine.ranks_per_host - process - taken)


def asleep(case: Case) -> Phase:
    on_gpu, on_host = _sleeping(case)
    return _phase(case, "engine asleep", [*_held(case), *on_gpu], [*_offloaded(case), *on_host])


def old_logprobs(case: Case) -> Phase:
    rows = (full_row(case.sizes, case.config), mixed_row(case.sizes, case.config, case.load))
    pass_bytes = max(forward_peak_bytes(case.sizes, row) for row in rows)
    return _working(case, "old log-probs", [("activations", pass_bytes)])


def update(case: Case) -> Phase:
    rows = (full_row(case.sizes, case.config), mixed_row(case.sizes, case.config, case.load))
    return _working(case, "update", max((update_items(case, row) for row in rows), key=lambda x: sum(b for _, b in x)))


def update_items(case: Case, row: Row) -> list[tuple[str, int]]:
    """Of one update, beside what is held: the backward pass or the step, whichever takes more."""
    m, c, ranks = case.sizes, case.config, case.machine.ranks
    gradients = 0 if c.zero.stage == 3 else trainer.gradients_bytes(m, c, ranks)
    backward = [
        ("gradients", gradients),
        ("activations", backward_peak_bytes(m, row, c.model.gradient_checkpointing)),
        ("reduce buckets", trainer.bucket_bytes(m, c, ranks, overlap=bool(case.machine.gpu_bytes))),
    ]
    step = [("gradients", gradients), ("the optimizer's temporaries", trainer.step_bytes(m, c, ranks))]
    return max(backward, step, key=lambda x: sum(b for _, b in x))


def _working(case: Case, name: str, extra: Items) -> Phase:
    live = ("gathered weights", trainer.live_bytes(case.sizes, case.config))
    on_gpu, on_host = _sleeping(case)
    per_rank = [*_offloaded(case), *on_host, _batch_on_host(case)]
    return _phase(case, name, [*_held(case), live, *extra, *on_gpu], per_rank)


def sync(case: Case) -> Phase:
    """Two buckets of whole weights on every rank, beside an engine that is awake."""
    m, c = case.sizes, case.config
    bucket = max(SHARD_BYTES, m.largest * m.dtype_bytes)
    buckets = 0 if c.rollout.engine == "transformers" else (2 if c.zero.stage == 3 else 1) * bucket
    awake = rollouts.share_bytes(m, c, case.machine) if c.rollout.engine == "vllm" else 0
    return _phase(case, "sync", [*_held(case), ("vLLM", awake), ("buckets of weights", buckets)], _offloaded(case))


def checkpoint(case: Case) -> Phase:
    """Tensors go to the file one by one, through the host's memory."""
    m, c, ranks = case.sizes, case.config, case.machine.ranks
    on_gpu, on_host = _sleeping(case)
    one = 0 if c.zero.offload_optimizer else trainer.MASTER * min(m.learning // ranks, trainer.SUB_GROUP)
    return _phase(case, "checkpoint", [*_held(case), *on_gpu], [*_offloaded(case), *on_host, ("a tensor", one)])


def final(case: Case) -> Phase:
    """Weights are streamed to rank 0 in shards and read back; the probe runs on the files, mapped into memory."""
    m, c = case.sizes, case.config
    bucket = max(SHARD_BYTES, m.largest * m.dtype_bytes)
    on_gpu, on_host = _sleeping(case)
    gpu = [*_held(case), *on_gpu, ("buckets of weights", 2 * bucket if c.zero.stage == 3 else 0)]
    return _phase(case, "final", gpu, [*_offloaded(case), *on_host], [("a shard, written and read", 2 * bucket)])


def evaluation(case: Case) -> Phase:
    """`sapo-vl eval` opens no trainer: vLLM alone, at a share of its own, or the weights to sample with."""
    m, c, ranks = case.sizes, case.config, case.machine.ranks
    if c.rollout.engine == "vllm":
        alone = {"gpu_memory_utilization": c.eval.gpu_memory_utilization}
        c = c.model_copy(
            update={"rollout": c.rollout.model_copy(update={"vllm": c.rollout.vllm.model_copy(update=alone)})}
        )
        share = rollouts.share_bytes(m, c, case.machine)
        inside = Room(
            place="vLLM's share", capacity_bytes=share, items=_items(rollouts.inside_vllm(m, c, case.machine))
        )
        return _phase(case, "evaluation", [("vLLM", share)], [], stage=EVALUATION, share=inside)
    if c.rollout.engine == "vllm_server":
        shard = max(SHARD_BYTES, m.largest * m.dtype_bytes)
        return _phase(case, "evaluation", [], [], [("a shard for the servers", shard)], stage=EVALUATION)
    gpu = [
        ("weights", trainer.weights_bytes(m, c, ranks)),
        ("gathered weights", trainer.live_bytes(m, c)),
    ]
    gpu += rollouts.own_sampling(m, c, case.machine, _left(case, gpu))
    return _phase(case, "evaluation", gpu, [("a slice of a file", slice_bytes(m))], stage=EVALUATION)
