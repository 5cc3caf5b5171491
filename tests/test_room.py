"""What a run writes against what its disk has: told before the first step; a disk that fills up later costs nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_launch import run_python, start_python
from helpers_runs import write_inputs
from safetensors.torch import load_file

from sapo_vl import room
from sapo_vl.config import ConfigError, RunConfig, load_config
from sapo_vl.record.run_log import read_metrics
from sapo_vl.room import check_room, room_for

GIB = 2**30


def config(*overrides: str) -> RunConfig:
    return load_config(None, ["model.path=m", "data.path=d", *overrides])


def test_what_a_stage_takes_by_hand() -> None:
    """A million parameters. Adam: weights, an fp32 copy and two moments are 4 + 12 bytes of each in fp32."""
    settings = ["steps=100", "checkpoint.every=10", "checkpoint.keep=2", "rollout.prompts_per_step=4"]
    settings += ["rollout.group_size=8", "rollout.max_new_tokens=500", "log.save_rollouts_every=30"]
    train = room_for(config(*settings, "model.dtype=float32"), "train", 10**6)
    # Steps 30, 60 and 90: 3 x 4 x 8 lines. A token: 12 bytes in a line, 19 of numbers beside it.
    assert dataclasses.asdict(train) == {
        "model": 4 * 10**6, "checkpoints": 3 * 16 * 10**6, "rollouts": 96 * (2_000 + 6_000 + 9_500), "weights": 0,
    }  # fmt: skip
    assert train.all == 53_680_000
    without = room_for(config(*settings, "model.dtype=float32", "log.save_tokens=false"), "train", 10**6)
    assert without.rollouts == 96 * 8_000
    # 32 responses of 500 tokens are 304 kB of numbers a step.
    bounded = room_for(config(*settings, "model.dtype=float32", "log.save_tokens_mb=0.1"), "train", 10**6)
    assert bounded.rollouts == 96 * 8_000 + 3 * 100_000
    large = ["steps=1000", "rollout.prompts_per_step=128", "rollout.group_size=8", "rollout.max_new_tokens=4096"]
    of_tokens = [
        room_for(config(*large, f"log.save_tokens={saved}"), "train", 10**6).rollouts for saved in ("true", "false")
    ]
    assert of_tokens[0] - of_tokens[1] == 8 * 10**9, "not the 80 GB of all tokens"

    half = [*settings, "model.dtype=bfloat16", "model.lora.rank=2", "log.save_rollouts_every=0", "checkpoint.every=0"]
    assert room_for(config(*half), "train", 10**6).all == 2 * 10**6
    adapters = config(*half, "checkpoint.every=5")
    assert room_for(adapters, "train", 10**6).checkpoints == 3 * 2 * 10**6

    servers = ["rollout.engine=vllm_server", "rollout.server.urls=[http://127.0.0.1:1]"]
    assert room_for(config(*half, *servers), "train", 10**6).weights == 4 * 10**6
    assert room_for(config(*half, *servers, "rollout.server.sync_dir=/elsewhere"), "train", 10**6).weights == 0
    assert room_for(config(*settings, *servers), "sft", 10**6).rollouts == 0


@pytest.mark.parametrize(("free_gib", "told"), [(70.0, ""), (20.0, "warning"), (3.9, "refused")])
def test_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free_gib: float, told: str
) -> None:
    """A billion parameters in fp32: 4 GB, 3.73 GiB; and 16 GB a checkpoint."""
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=int(free_gib * GIB) - (GIB if told == "refused" else 0))

    monkeypatch.setattr(room, "examine", lambda *_: SimpleNamespace(numel=10**9))
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    c = config("model.dtype=float32", "checkpoint.every=10", "checkpoint.keep=2", "log.save_rollouts_every=0")
    out = tmp_path / "not" / "there yet"
    if told == "refused":
        with pytest.raises(ConfigError, match=r"has 2\.90 GiB free, and the trained model alone takes 3\.73 GiB"):
            check_room(c, "train", out)
    else:
        check_room(c, "train", out)
        assert bool(caplog.records) == (told == "warning")
    if told == "warning":
        said = caplog.text
        assert "20.00 GiB free, and this stage may write 48.43" in said
        assert "the trained model 3.73, checkpoints, one more while the newest is written 44.70)" in said
    assert asked == [tmp_path.resolve()]


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own, in memory. Only root can have one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "small", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        why = f"no file system can be mounted here: {done.stderr if done else 'not root'}"
        assert "CI" not in os.environ, why
        pytest.skip(why)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while(tmp_path: Path, seed: int) -> None:
    """Nothing of the run is missing in the end, but for checkpoints that nobody needs any more."""
    inputs = write_inputs(tmp_path, seed, n_train=30, tasks="count,text_compare")
    settings = [
        *(f"{key}={value}" for key, value in inputs.items()), "optim.lr=0.003", "processes=1", "steps=12",
        "rollout.prompts_per_step=4", "rollout.group_size=2", "rollout.max_new_tokens=4", "eval.before=false",
        "eval.max_per_task=1", "eval.modes=[greedy]", "log.trackers=[]", "checkpoint.every=1", "checkpoint.keep=1",
        "checkpoint.max_failures=1000",
    ]  # fmt: skip
    command = ("-m", "sapo_vl", "train", *settings, "--out")
    run_python(*command, tmp_path / "whole")
    taken = sum(p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file())
    with small_disk(tmp_path / "disk", 2 * taken // 2**20 + 8) as disk:
        process = start_python(*command, disk / "run")
        assert process.stdout is not None
        said: list[str] = []
        full = disk / "of somebody else"
        for line in process.stdout:
            said.append(line)
            if not full.exists() and (disk / "run" / "checkpoints").is_dir() and "of somebody" not in "".join(said):
                with contextlib.suppress(OSError), full.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1 << 16))
                said.append("of somebody else is all the room\n")
            if "was not saved" in line:
                full.unlink()
        printed = "".join(said)
        assert process.wait(60) == 0, printed
        assert "No space left on device" in printed and "older checkpoints stay, and the run goes on" in printed
        run, whole = disk / "run", tmp_path / "whole"
        summary = json.loads((run / "summary.json").read_text())
        assert summary["unwritten"]["checkpoints"] >= 1
        rows = [read_metrics(p / "metrics.jsonl") for p in (run, whole)]
        steps = [[(row["step"], row.get("grad_norm")) for row in one if row["phase"] == "train"] for one in rows]
        assert steps[0] == steps[1] and len(steps[0]) == 12 and all(norm for _, norm in steps[0])
        assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000012"]
        models = [load_file(p / "final" / "model.safetensors") for p in (run, whole)]
        assert models[0].keys() == models[1].keys()
        assert all(bool((models[0][name] == models[1][name]).all()) for name in models[0])
        assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}
