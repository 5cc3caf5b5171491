"""Loading a MoE model on several ranks under ZeRO-3: memory of the host that every rank takes, and seconds, against
transformers' own way and against safetensors alone. A random model of about 1 GB is written to --scratch and deleted.

"peak" is the growth of the resident size, pages of the files among it, which ranks share; "share" is what a rank keeps.
Seconds are of the CPU: of the slowest rank, and of all ranks together.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from memory import resident, settle
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen3VLMoeForConditionalGeneration
from transformers.integrations import HfDeepSpeedConfig

from sapo_vl.distributed import World, init_world
from sapo_vl.learning.inference import inference_config
from sapo_vl.learning.optim import ZeroConfig
from sapo_vl.model.folder import ModelFolder, examine, hub_layout, write_weights
from sapo_vl.model.loading import ModelConfig, load_model
from sapo_vl.model.tiny import tiny_config, train_tokenizer

SIZES = {"hidden_size": 1024, "num_hidden_layers": 6, "num_experts": 48, "num_experts_per_tok": 4}
SIZES |= {"moe_intermediate_size": 576, "vocab_size": 8192}
SHARD = 200 * 2**20


def write(out: Path, sizes: dict[str, int]) -> None:
    """A folder in the hub's layout, bfloat16."""
    config = tiny_config("moe", train_tokenizer(["a"], vocab_size=300), sizes)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in AutoModelForImageTextToText.from_config(config).named_parameters()}

    def weights() -> Iterator[tuple[str, Tensor]]:
        for name, shape in shapes.items():
            yield from hub_layout({name: torch.randn(shape).to(torch.bfloat16)}).items()

    out.mkdir(parents=True)
    config.save_pretrained(out)
    write_weights(weights(), out, SHARD)


def ours(path: Path, folder: ModelFolder) -> Any:
    return load_model(ModelConfig(path=str(path), dtype="bfloat16"), folder)


def stock(path: Path, _folder: ModelFolder) -> Any:
    return Qwen3VLMoeForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16)


def files_alone(path: Path, _folder: ModelFolder) -> Any:
    """Every tensor, copied out of the mapped files."""
    state = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118
                state[name] = f.get_tensor(name).clone()
    return state


WAYS: dict[str, Callable[[Path, ModelFolder], Any]] = {"ours": ours, "transformers": stock, "safetensors": files_alone}


def measure(way: str, root: Path, world: World) -> dict[str, Any]:
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD: larger blocks go back when they are freed
    torch.set_num_threads(1)
    folders = {name: examine(str(root / name)) for name in ("small", "model")}  # which nothing may shard
    sharding = HfDeepSpeedConfig(inference_config(ZeroConfig(stage=3), "bfloat16"))
    cpu = torch.device("cpu")
    first = WAYS[way](root / "small", folders["small"])
    del first
    base = settle(cpu)
    world.barrier()
    started, wall = time.process_time(), time.monotonic()
    loaded = WAYS[way](root / "model", folders["model"])
    seconds, wall = time.process_time() - started, time.monotonic() - wall
    peak = resident(cpu, peak=True) - base
    held = settle(cpu) - base
    del loaded, sharding
    return {"peak": peak, "held": held, "seconds": seconds, "wall": wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        way, root = args.worker
        world = init_world()
        found = world.gather(measure(way, Path(root), world))
        if world.is_main:
            print("RESULT " + json.dumps(found), flush=True)
        return
    root = Path(tempfile.mkdtemp(dir=args.scratch, prefix="bench_loading_"))
    try:
        write(root / "small", {"vocab_size": 512})
        write(root / "model", SIZES)
        size = sum(p.stat().st_size for p in (root / "model").glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB in {len(list((root / 'model').glob('*.safetensors')))} files, bfloat16")
        for ranks in args.ranks:
            for way in args.ways:
                report(way, ranks, size, launched(way, ranks if way != "safetensors" else 1, root))
    finally:
        shutil.rmtree(root)


def launched(way: str, ranks: int, root: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += [__file__, "--worker", way, str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{way} on {ranks} ranks failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def report(way: str, ranks: int, size: int, found: list[dict[str, Any]]) -> None:
    ranks = len(found)
    share = size / (ranks if way != "safetensors" else 1)
    peak, held = (max(f[key] for f in found) for key in ("peak", "held"))
    slowest, total = max(f["seconds"] for f in found), sum(f["seconds"] for f in found)
    print(
        f"{ranks} rank(s), {way:12} share {share / 1e6:6.0f} MB, held {held / 1e6:6.0f}, peak {peak / 1e6:6.0f} MB; "
        f"{slowest / size * 1e9:5.2f} s/GB on the slowest rank, {total / size * 1e9:5.2f} on all of them",
        flush=True,
    )


if __name__ == "__main__":
    main()
