"""`sapo-vl plan`: memory and seconds of a run before it is started."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add


def add_parsers(add: Add) -> None:
    plan = add("plan", _plan, "Memory and seconds of every phase of a run, and what does not fit; nothing is loaded.",
               pairs=True)  # fmt: skip
    plan.add_argument("--config", type=Path)
    plan.add_argument("--size", default="", help="a published size, for an empty model.path (default: --config's name)")
    plan.add_argument("--gpus", type=int, default=0, help="GPUs in all (default: those of this machine)")
    plan.add_argument("--memory", type=float, default=0.0, metavar="GB", help="of one GPU")
    plan.add_argument("--gpus-per-host", type=int, default=8)
    plan.add_argument("--host-memory", type=float, default=2000.0, metavar="GB", help="of one host, with --gpus")
    plan.add_argument("--json", action="store_true", help="print one JSON object")


def _plan(args: argparse.Namespace) -> int:
    """1 if training does not fit."""
    from sapo_vl.config import load_config
    from sapo_vl.planning.limits import changed
    from sapo_vl.planning.machine import GB, Machine, this_machine
    from sapo_vl.planning.phases import Case
    from sapo_vl.planning.plan import as_json, as_text, make_plan
    from sapo_vl.planning.sizes import find_config, model_sizes

    config = load_config(args.config, args.pairs)
    if (args.gpus > 0) != (args.memory > 0):
        raise UsageError("--gpus and --memory describe GPUs together; give both (--gpus 8 --memory 80), or neither")
    if args.gpus_per_host < 1 or args.host_memory <= 0 or args.gpus < 0:
        raise UsageError("--gpus-per-host must be 1 or more, --host-memory and --gpus positive")
    machine = this_machine(config.processes)
    if args.gpus:
        if "engine" not in config.rollout.model_fields_set:  # what the default is there, not here
            config = changed(config, "rollout.engine", "vllm")
        machine = Machine(
            ranks=args.gpus,
            ranks_per_host=min(args.gpus, args.gpus_per_host),
            gpu_bytes=int(args.memory * GB),
            host_bytes=int(args.host_memory * GB),
        )
    ways = config.rollout.vllm.tensor_parallel
    if config.rollout.engine == "vllm" and machine.ranks % ways:
        raise UsageError(
            f"rollout.vllm.tensor_parallel={ways} needs a multiple of {ways} GPUs, and there are {machine.ranks}; give "
            "--gpus and --memory, or another tensor_parallel"
        )
    name, hf_config = find_config(config.model, args.size or (args.config.stem if args.config else ""))
    found = make_plan(Case(sizes=model_sizes(name, hf_config, config.model), config=config, machine=machine))
    print(json.dumps(as_json(found)) if args.json else as_text(found))
    return 0 if found.fits else 1
