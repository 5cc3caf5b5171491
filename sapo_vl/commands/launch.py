"""Starting a training on several machines: launch."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_folder


def add_parsers(add: Add) -> None:
    p = add("launch", _launch, "Write the files that start a training on several machines.", pairs=True)
    p.add_argument("--to", choices=["shell", "slurm", "kubernetes", "skypilot"], required=True)
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--out", default=os.environ.get("OUT_DIR", ""), help="run folder, as the machines see it")
    p.add_argument("--write", type=Path, default=Path("launch"), metavar="DIR", help="where the files go")
    p.add_argument("--nodes", type=int, default=2, help="machines")
    p.add_argument("--gpus", type=int, default=8, help="of each machine")
    p.add_argument("--name", default="", help="of the job; default: that of the config")
    p.add_argument("--port", type=int, default=29500, help="of the rendezvous on the first machine")
    p.add_argument("--max-restarts", type=int, default=None, help="default: checkpoint.restarts")
    p.add_argument("--source", default="", metavar="FILE", help="a file that each machine sources first")
    p.add_argument("--hf-home", default="", metavar="DIR", help="default: hf beside the run folder")
    p.add_argument("--time", default="24:00:00", help="slurm")
    p.add_argument("--partition", default="", help="slurm")
    p.add_argument("--account", default="", help="slurm")
    p.add_argument("--image", default="", help="kubernetes, skypilot: a container image with sapo-vl")
    p.add_argument("--volume", default="", help="kubernetes, skypilot: the shared disk, by its name there")
    p.add_argument("--mount", default="/mnt/shared", help="kubernetes, skypilot: where it is mounted")
    p.add_argument("--accelerator", default="H200", help="skypilot: the kind of GPU")


def _launch(args: argparse.Namespace) -> None:
    from sapo_vl.config import load_config, save_config
    from sapo_vl.machines.launch_files import LaunchError, Machines, how_to_start, launch_files
    from sapo_vl.record.files import write_text

    config = load_config(args.config, args.pairs)
    if not args.out:
        raise UsageError("no run folder: pass --out DIR or set OUT_DIR")
    check_folder(args.write)
    machines = Machines(
        nodes=args.nodes,
        gpus=args.gpus,
        name=args.name or re.sub(r"[^a-z0-9]+", "-", args.config.stem.lower()).strip("-"),
        port=args.port,
        restarts=config.checkpoint.restarts if args.max_restarts is None else args.max_restarts,
        source=args.source,
        hf_home=args.hf_home,
        time=args.time,
        partition=args.partition,
        account=args.account,
        image=args.image,
        volume=args.volume,
        mount=args.mount,
        accelerator=args.accelerator,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_config(config, Path(folder) / "config.yaml")
        text = (Path(folder) / "config.yaml").read_text(encoding="utf-8")
    try:
        files = launch_files(args.to, config, text, args.out, args.write, machines)
    except LaunchError as error:
        raise UsageError(str(error)) from error
    args.write.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(args.write / name, text)
    print(how_to_start(args.to, args.write.resolve(), files, machines))
