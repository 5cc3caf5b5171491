"""Runs on every rank for test_vllm_server.py: a real vLLM server beside a real DeepSpeed engine.

    server_worker.py OUT FOLDER KIND STAGE SEED

FOLDER/KIND is a model folder. The main rank starts the server with `sapo-vl serve`, kills it and starts it again.
The main rank writes OUT, JSON; what is right is decided by the test.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from helpers_launch import environment, free_port
from helpers_models import MODEL, make_prompts
from vllm_worker import IMAGES, SAMPLING, numbers, perturb
from zygote import Forked, start

from sapo_vl.distributed import init_world, shutdown_world
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.learning.weights import hub_weights
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.lora import LoraConfig
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.rollout.base import ParityConfig
from sapo_vl.rollout.parity import ParityGate, measure
from sapo_vl.rollout.vllm.config import ServerConfig, VllmConfig
from sapo_vl.rollout.vllm.handover import stored_bytes
from sapo_vl.rollout.vllm.server import VllmServerEngine
from sapo_vl.session import open_session, setup_logging


class Server:
    """`sapo-vl serve` in a session of its own, so that all its processes can be killed at once. Its three processes are
    forks of one that has vLLM loaded, unless `fresh`."""

    def __init__(self, config: Path, port: int, fresh: bool) -> None:
        self.config, self.port, self.fresh = config, port, fresh
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._lock = threading.Lock()
        self._over = False

    def start(self) -> None:
        command = ["-m", "sapo_vl", "serve", "--config", str(self.config), "--port", str(self.port)]
        with self._lock, open(self.config.with_suffix(".log"), "ab") as log:
            if self._over:
                return
            if self.fresh:
                command = [sys.executable, *command]
                self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            else:
                self.process = start(command, environment(), forked_ranks=0, vllm=True, log=log)
            self.fresh = False  # once is enough

    def kill(self, over: bool = False) -> None:
        with self._lock:
            self._over = over
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                self.process = None

    def log(self) -> str:
        return self.config.with_suffix(".log").read_text(errors="replace")


class Checks:
    def __init__(self, folder: Path, kind: str, stage: int, seed: int) -> None:
        self.world = init_world()
        setup_logging(self.world)
        self.seed = seed
        model = MODEL.model_copy(update={"path": str(folder / kind)})
        port = self.world.gather(free_port())[0]
        rollout = RolloutConfig(
            engine="vllm_server",
            vllm=VllmConfig(max_num_seqs=64),
            server=ServerConfig(urls=(f"http://127.0.0.1:{port}",), timeout_s=240, startup_s=400),
            max_new_tokens=32,
        )
        config = folder / f"{kind}.yaml"
        self.server = Server(config, port, fresh=kind == "dense")
        if self.world.is_main:
            sections = {"model": model.model_dump(mode="json"), "rollout": rollout.model_dump(mode="json")}
            config.write_text(yaml.safe_dump(sections))
            self.server.start()
        try:
            self.open(model, rollout, stage, folder / "run")
        except BaseException:
            self.stop()
            raise

    def open(self, model: ModelConfig, rollout: RolloutConfig, stage: int, out: Path) -> None:
        self.model, self.rollout, self.stage, self.out = model, rollout, stage, out
        self.session = open_session(
            model, OptimConfig(), ZeroConfig(stage=stage), rollout, self.world,  # type: ignore[arg-type]
            total_updates=1, seed=self.seed, out=out,
        )  # fmt: skip
        assert isinstance(self.session.rollouts, VllmServerEngine)
        self.engine = self.session.rollouts
        everyone = make_prompts(self.session.chat, np.random.default_rng(self.seed), IMAGES * self.world.size)
        share = len(everyone) // self.world.size
        self.prompts = everyone[self.world.rank * share :][:share]
        s = self.session
        self.gate = ParityGate(ParityConfig(every=1), s.engine, s.chat, s.rollouts, self.prompts, self.world, "float32")

    def stop(self) -> None:
        self.server.kill(over=True)

    def measure(self, params: SamplingParams = SAMPLING) -> dict[str, Any]:
        s = self.session
        return numbers(measure(s.engine, s.chat, s.rollouts, self.prompts, params, self.world))

    def ids(self, **changes: Any) -> list[list[list[int]]]:
        groups = self.engine.generate(self.prompts, dataclasses.replace(SAMPLING, **changes))
        return [[r.response_ids.tolist() for r in g.rollouts] for g in groups]

    def run(self) -> dict[str, Any]:
        self.engine.sync(0)
        out: dict[str, Any] = {"plain": self.measure(), "first_method": self.engine.sync_method}
        self.gate.after_sync(0)
        out["start"] = self.measure()
        out["first"], out["again"] = self.ids(), self.ids()
        out["other"], out["greedy"] = self.ids(seed=4), self.ids(temperature=0.0, n=2)
        out["hot"] = self.measure(dataclasses.replace(SAMPLING, temperature=1.7))
        out["banned"] = list(self.session.chat.banned_ids)
        out["synced"] = []
        for version, part in ((1, ""), (2, ""), (3, ""), (4, "visual")):
            perturb(self.session, self.seed + version, part)
            seen: dict[str, Any] = {"stale": self.measure()}
            started = time.monotonic()
            self.engine.sync(version)
            seen["seconds"] = time.monotonic() - started
            self.gate.after_sync(version)
            seen |= self.measure()
            seen["version"] = self.engine.generate(self.prompts, SAMPLING)[0].rollouts[0].weight_version
            out["synced"].append(seen)
        out["method"] = self.engine.sync_method
        out["restarted"] = self.restart()
        self.engine.close()
        out["adapters"] = self.adapters()
        return out

    def adapters(self) -> dict[str, Any]:
        """Another run on the same server, which has other weights by now: it is handed adapters alone."""
        model = self.model.model_copy(update={"lora": LoraConfig(rank=4)})
        server = self.rollout.server.model_copy(update={"adapters_only": True})
        self.open(model, self.rollout.model_copy(update={"server": server}), self.stage, self.out)
        self.engine.sync(0)
        self.gate.after_sync(0)
        perturb(self.session, self.seed + 5, ".lora_")
        out: dict[str, Any] = {"stale": self.measure()}
        started = time.monotonic()
        self.engine.sync(1)
        out["seconds"] = time.monotonic() - started
        self.gate.after_sync(1)
        out |= self.measure()
        assert self.engine._package is not None
        out["written"] = stored_bytes(self.engine._package.folder)
        out["whole"] = sum(value.nbytes for _, value in hub_weights(self.session.engine))
        out["method"] = self.engine.sync_method
        self.engine.close()
        return out

    def restart(self) -> dict[str, Any]:
        """The server is killed, and started again with the weights of its start while a step waits for it."""
        before = self.ids()
        if self.world.is_main:
            self.server.kill()
            threading.Timer(1.0, self.server.start).start()
        self.world.barrier()
        return {"before": before, "after": self.ids(), **self.measure()}


def main() -> None:
    out, folder, kind, stage, seed = sys.argv[1:6]
    checks = Checks(Path(folder), kind, int(stage), int(seed))
    try:
        result = checks.run()
    except BaseException:
        print(checks.server.log()[-4000:], flush=True)
        raise
    finally:
        checks.stop()
    if checks.world.is_main:
        Path(out).write_text(json.dumps(result))
    shutdown_world()


if __name__ == "__main__":
    main()
