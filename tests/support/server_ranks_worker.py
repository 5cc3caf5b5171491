"""Runs on two ranks for test_server_faults.py: servers that fail while both ranks ask them.

    server_ranks_worker.py OUT SEED

The servers live in the main rank. It writes OUT, JSON; what is right is decided by the test.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fake_vllm_server as fakes
import numpy as np
import torch
from fake_vllm_server import FakeServer
from helpers_models import MODEL, make_policy, make_prompts

from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.server import ServersUnusable, VllmServerEngine
from sapo_vl.session import setup_logging
from sapo_vl.types import Finish

SAMPLING = SamplingParams(n=3, max_new_tokens=12, temperature=1.0)
WEIGHTS = {"a.weight": torch.ones(2, 3)}


class Ranks:
    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        _, self.chat = make_policy("dense", seed)
        prompts = make_prompts(self.chat, np.random.default_rng(seed), [[(32, 32)], [], [(48, 32)], []] * 4)
        self.prompts = prompts[world.rank :: 2]
        self.servers = [FakeServer(self.chat.image_token_id, mark) for mark in (0, 1)] if world.is_main else []
        self.urls = world.gather([s.url for s in self.servers])[0]
        self.folder = Path(world.gather(tempfile.mkdtemp())[0])

    def engine(self, **changes: Any) -> VllmServerEngine:
        config = ServerConfig(urls=tuple(self.urls), timeout_s=30.0, **({"startup_s": 10.0} | changes))
        return VllmServerEngine(
            MODEL, config, self.chat, lambda: iter(WEIGHTS.items()), {"a.weight": (2, 3)}, self.world, self.folder,
            max_new_tokens=12, max_failed_share=1.0,
        )  # fmt: skip

    def look(self, engine: VllmServerEngine, count: int = 8) -> dict[str, Any]:
        """Marks of the servers that answered, failed responses, servers that are out; each by rank."""
        groups = engine.generate(self.prompts[:count], SAMPLING)
        rollouts = [r for g in groups for r in g.rollouts]
        by = sorted({int(r.response_ids[0]) - 100 for r in rollouts if r.finish is not Finish.FAILED})
        mine = (by, sum(r.finish is Finish.FAILED for r in rollouts), [self.urls.index(u) for u in engine._pool.out])
        marks, failed, out = zip(*self.world.gather(mine), strict=True)
        assert engine._package is not None
        alike = len(set(self.world.gather(engine._package.label))) == 1
        return {"by": list(marks), "failed": list(failed), "out": list(out), "label": alike}

    def fault(self, *faults: fakes.Fault | None) -> None:
        self.world.barrier()
        for server, fault in zip(self.servers, faults, strict=self.world.is_main):
            server.fault = fault
        self.world.barrier()

    def run(self) -> dict[str, Any]:
        engine = self.engine()
        engine.sync(1)
        seen: dict[str, Any] = {"both": self.look(engine)}
        self.fault(fakes.die, None)
        seen["one dies"] = self.look(engine)
        self.fault(None, None)
        if self.servers:
            self.servers[0].restart()
        engine.sync(2)
        seen["it returns"] = self.look(engine)
        self.fault(lambda e: (0, b"") if "-1-" in e.body["request_id"] else None, None)
        seen["rank 1 loses it"] = self.look(engine)
        engine.sync(3)
        self.fault(fakes.always((500, b"")), fakes.always((500, b"")))
        seen["none answers"] = self.look(engine, count=2)
        if self.servers:
            self.servers[0].stop()
        self.world.barrier()
        try:
            self.engine(startup_s=0.0)
        except ServersUnusable as error:
            said = str(error)
        else:
            said = ""
        return seen | {"start": self.world.gather(said), "absent": self.urls[:1]}


def main() -> None:
    world = init_world()
    setup_logging(world)
    ranks = Ranks(world, int(sys.argv[2]))
    result = ranks.run()
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(result))
    for server in ranks.servers:
        server.close()
    shutdown_world()


if __name__ == "__main__":
    main()
