"""Peak memory of real updates on small models against what `sapo-vl plan` says of them: forward, backward and optimizer
through DeepSpeed on this CPU, each case in a process of its own (forked from one that has the libraries loaded).

Measured is the growth of the resident size (on a GPU: of what torch has allocated there) over that after a first, tiny
update; memory that is freed goes back at once. Ratios are measured / planned: "held" after updates, "forward" of a
pass without gradient, "update" at its peak.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from sapo_vl.config import RunConfig, load_config
from sapo_vl.distributed import World, init_world
from sapo_vl.learning.engine import Objective, PolicyEngine
from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import DTYPES, prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.tiny import build_tiny, tiny_processor, train_tokenizer
from sapo_vl.planning import trainer
from sapo_vl.planning.activations import Row, forward_peak_bytes
from sapo_vl.planning.machine import Machine
from sapo_vl.planning.phases import Case, update_items
from sapo_vl.planning.sizes import model_sizes
from sapo_vl.types import Finish, Problem, Rollout, RolloutGroup

DENSE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 16}
DENSE |= {"num_key_value_heads": 4, "vocab_size": 4096}
MOE = DENSE | {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 192, "num_hidden_layers": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A model, settings, and a row of one group."""

    name: str
    kind: Literal["dense", "moe"]
    sizes: dict[str, int]
    settings: tuple[str, ...]
    prompt: int
    responses: int
    response: int
    quick: bool = False
    text: str = field(default="how many red ? " * 200)


TRIALS = (
    Trial(name="dense fp32 zero 0", kind="dense", sizes=DENSE, settings=("zero.stage=0",), prompt=64, responses=8,
          response=128, quick=True),
    Trial(name="dense fp32 zero 1, recomputed", kind="dense", sizes=DENSE,
          settings=("zero.stage=1", "model.gradient_checkpointing=true"), prompt=200, responses=8, response=192,
          quick=True),
    Trial(name="dense fp32 zero 3, recomputed", kind="dense", sizes=DENSE,
          settings=("zero.stage=3", "model.gradient_checkpointing=true"), prompt=64, responses=8, response=64),
    Trial(name="dense bf16 zero 2", kind="dense", sizes=DENSE,
          settings=("zero.stage=2", "model.dtype=bfloat16"), prompt=64, responses=8, response=128),
    Trial(name="moe fp32 zero 1, in a loop", kind="moe", sizes=MOE,
          settings=("zero.stage=1", "model.experts_implementation=eager"), prompt=64, responses=8, response=96),
    Trial(name="moe fp32 zero 1, grouped", kind="moe", sizes=MOE,
          settings=("zero.stage=1",), prompt=64, responses=8, response=128,
          quick=True),
)  # fmt: skip


def resident(device: torch.device, *, peak: bool = False) -> int:
    """Bytes in use now, or the most since `settle`: resident ones of this process, or those that torch has on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    key = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key))


def settle(device: torch.device) -> int:
    """Gives freed memory back, forgets the peak, and returns what is in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return resident(device)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    return resident(device)


def build(trial: Trial, config: RunConfig, world: World) -> tuple[PolicyEngine, Chat]:
    tokenizer = train_tokenizer(["how many red ?"] * 50 + ["user\n", "assistant\n"], vocab_size=300)
    model = build_tiny(trial.kind, tokenizer, 0, trial.sizes).to(DTYPES[config.model.dtype])
    if trial.kind == "moe":
        model.set_experts_implementation(config.model.experts_implementation)
    model = prepare_model(model, config.model)
    chat = Chat(tiny_processor(tokenizer), model, config.model)
    policy = PolicyModule(model, chat.banned_ids).to(world.device)
    return PolicyEngine(policy, config.optim, config.zero, config.model.dtype, world, 10), chat


def batch(trial: Trial, chat: Chat, number: int) -> MicroBatch:
    rng = np.random.default_rng(number)
    turn = {"role": "user", "content": [{"type": "text", "text": trial.text}]}
    prompt = chat.prompt(Problem(id=f"p{number}", task="t", messages=(turn,), images=()))
    prompt = replace(prompt, ids=prompt.ids[: trial.prompt], positions=prompt.positions[:, : trial.prompt])
    rollouts = tuple(
        Rollout(
            response_ids=rng.integers(20, 250, trial.response).astype(np.int64),
            logprobs=np.zeros(trial.response, np.float32),
            finish=Finish.STOP,
            weight_version=0,
            advantage=1.0,
        )
        for _ in range(trial.responses)
    )
    return pack([RolloutGroup(prompt=prompt, rollouts=rollouts)], chat.blank_pixels())


def objective(mb: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Objective:
    return Objective(loss=logprobs.sum() * 1e-4, finite=torch.ones(len(mb.lengths), dtype=torch.bool))


def measure(trial: Trial) -> dict[str, Any]:
    """Bytes, measured and planned, of a trial in this process."""
    torch.set_num_threads(1)
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks go back when they are freed
    config = load_config(None, ["model.max_prompt_tokens=1500", f"model.tiny={trial.kind}", *trial.settings])
    world = init_world()
    device = world.device
    small = replace(trial, sizes={}, prompt=8, responses=2, response=4)
    engine, chat = build(small, config, world)
    engine.update([batch(small, chat, 0)], batch(small, chat, 0), objective)
    del engine, chat
    base = settle(device)

    engine, chat = build(trial, config, world)
    batches = [batch(trial, chat, i) for i in range(2)]
    engine.logprobs(batches[:1], batches[0])  # whatever a first pass makes once
    before = settle(device)
    engine.logprobs(batches[:1], batches[0])
    forward = resident(device, peak=True) - before
    engine.update(batches[:1], batches[0], objective)
    held = settle(device) - base
    engine.update(batches, batches[0], objective)  # the second backward meets the gradients of the first
    peak = resident(device, peak=True) - base

    hf: Any = engine.module.hf
    m = model_sizes(trial.name, hf.config, config.model)
    case = Case(sizes=m, config=config, machine=Machine(ranks=1, ranks_per_host=1, gpu_bytes=0, host_bytes=2**40))
    row = Row(
        tokens=trial.prompt + trial.responses * trial.response,
        prompts=1,
        prompt=trial.prompt,
        responses=trial.responses,
        response=trial.response,
        targets=trial.responses * trial.response,
        patches=0,
    )
    planned_held = trainer.weights_bytes(m, config, 1) + trainer.states_bytes(m, config, 1)
    if config.zero.stage == 3:
        planned_held += trainer.live_bytes(m, config) + trainer.gradients_bytes(m, config, 1)
    one_layer = m.layer * m.dtype_bytes if config.zero.stage == 3 else 0  # gathered while it runs
    pairs = {
        "held": (held, planned_held),
        "forward": (forward, forward_peak_bytes(m, row) + one_layer),
        "update": (peak, planned_held + sum(size for _, size in update_items(case, row))),
    }
    return {"case": trial.name, "parameters": m.parameters} | {
        name: {"measured_bytes": a, "planned_bytes": b, "ratio": round(a / b, 3)} for name, (a, b) in pairs.items()
    }


def in_a_fork(name: str, work: Callable[[], Any]) -> Any:
    """What `work` gives, as JSON carries it, from a child. Raises RuntimeError, with `name`, if it fails."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        text = f.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError(f"{name} failed; its error stands above")
    return json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for trial in TRIALS:
        if args.quick and not trial.quick:
            continue
        found = in_a_fork(trial.name, functools.partial(measure, trial))
        if args.json:
            print(json.dumps(found), flush=True)
            continue
        ratios = "  ".join(
            f"{name} {found[name]['measured_bytes'] / 1e6:7.0f} / {found[name]['planned_bytes'] / 1e6:7.0f} MB = "
            f"{found[name]['ratio']:.2f}"
            for name in ("held", "forward", "update")
        )
        print(f"{trial.name:32}  {found['parameters'] / 1e6:5.1f}M  {ratios}", flush=True)


if __name__ == "__main__":
    main()
