"""Weights over NCCL, up to the NCCL calls: vLLM's own sending side against its own routes, a queue between them.

What is stood in for is the group (nccl_engine.open_trainer_endpoint) and what moves tensors in it. Bodies are read by
the routes and dataclasses of the installed vLLM, so that a change of theirs is noticed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_vllm_server import FakeServer
from helpers_models import MODEL, make_policy, make_prompts
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.weights import ManifestError
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.rollout.vllm.config import ServerConfig, VllmConfig
from sapo_vl.rollout.vllm.contract import TransferMissing
from sapo_vl.rollout.vllm.serve import serve_command
from sapo_vl.rollout.vllm.server import ServersUnusable, VllmServerEngine
from sapo_vl.rollout.vllm.worker import WorkerExtension

pytestmark = pytest.mark.timeout(120)  # nothing here may hang
CPU = World(rank=0, size=1, device=torch.device("cpu"))
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}
SHAPES = {name: tuple(value.shape) for name, value in WEIGHTS.items()}
ROUTES = ("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update")
PATCHED = "vllm.distributed.weight_transfer.nccl_engine"


class Group:
    """Of a trainer and the workers of one server. A broadcast waits until it is received or the group is aborted."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self.aborted = world_size, threading.Event()
        self.sent: queue.Queue[Tensor] = queue.Queue()

    def broadcast(self, iterator: Iterator[tuple[str, Tensor]]) -> None:
        for _, value in iterator:
            self.sent.put(value.clone())
        while self.sent.unfinished_tasks:
            if self.aborted.wait(0.01):
                raise RuntimeError("NCCL error: the communicator was aborted")

    def destroy(self) -> None:
        self.aborted.set()


class NcclServer(FakeServer):
    """The routes of weight transfer are vLLM's, on an engine client that receives as a worker does."""

    def __init__(self, groups: dict[int, Group], mark: int = 0) -> None:
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from vllm.entrypoints.rl.online.api_router import router

        self.groups, self.group, self.worker = groups, None, WorkerExtension()
        app = FastAPI()
        app.include_router(router)
        app.state.engine_client = self
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(world_size_across_dp=2, world_size=2))
        self._client = TestClient(app, raise_server_exceptions=False)
        super().__init__(0, mark)
        self.settings["transfer"] = "nccl"

    def restart(self) -> None:
        self.group, self.worker = None, WorkerExtension()
        super().restart()

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if path not in (*ROUTES, "/get_world_size") or path in self.broken:
            return super().reply(path, body)
        self.calls.append(path)
        answer = self._client.request("GET" if path.startswith("/get") else "POST", path, json=body or None)
        return answer.status_code, answer.content

    def control(self, path: str, name: str, body: dict[str, Any]) -> Any:
        if name in ("sapo_expect", "sapo_joined", "sapo_has"):
            return {"results": [getattr(self.worker, name)(**body["kwargs"])] * 2}
        return super().control(path, name, body)

    async def init_weight_transfer_engine(self, request: Any) -> None:
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

        info = NCCLWeightTransferInitInfo(**request.init_info)
        assert (info.rank_offset, info.world_size, info.packed) == (1, 3, True)
        assert info.master_address == "127.0.0.1" and info.master_port
        self.group = self.groups.setdefault(info.master_port, Group(info.world_size))

    async def start_weight_update(self) -> None:
        assert self.paused

    async def update_weights(self, request: Any) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

        info = NCCLWeightTransferUpdateInfo(**request.update_info)
        if self.group is None:
            raise RuntimeError("not initialized")
        received: dict[str, Tensor] = {}
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            value = self.group.sent.get(timeout=10)
            self.group.sent.task_done()
            assert (value.dtype, list(value.shape)) == (getattr(torch, dtype), shape)
            received[name] = value
        self.loaded.append(received)

    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert weight_version is None, "the label is set last, by another route"


class Setup:
    def __init__(self, seed: int, folder: Path) -> None:
        _, self.chat = make_policy("dense", seed)
        self.folder = folder
        self.groups: dict[int, Group] = {}
        self.servers: list[NcclServer] = []
        self.weights = dict(WEIGHTS)
        self.read = 0

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        for item in self.weights.items():
            self.read += 1
            yield item

    def engine(self, count: int = 1) -> VllmServerEngine:
        self.servers += [NcclServer(self.groups, mark) for mark in range(count)]
        config = ServerConfig(urls=tuple(s.url for s in self.servers), transfer="nccl", timeout_s=30, startup_s=5)
        return VllmServerEngine(
            MODEL, config, self.chat, self.stream, SHAPES, CPU, self.folder, max_new_tokens=32, max_failed_share=1.0
        )

    def marks(self, engine: VllmServerEngine) -> set[int]:
        prompts = make_prompts(self.chat, np.random.default_rng(0), [[], [], [], []])
        groups = engine.generate(prompts, SamplingParams(n=1, max_new_tokens=4, temperature=1.0))
        return {int(r.response_ids[0]) - 100 for g in groups for r in g.rollouts if len(r.response_ids)}


@pytest.fixture
def setup(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    pytest.importorskip("vllm")
    made = Setup(seed, tmp_path)

    def endpoint(init: Any) -> Group:
        return made.groups.setdefault(init.master_port, Group(init.world_size))

    def producer(iterator: Any, group: Group, src: int, post_iter_func: Any, **_: Any) -> None:
        assert src == 0
        group.broadcast((item[0], post_iter_func(item)) for item in iterator)

    monkeypatch.setattr(f"{PATCHED}.open_trainer_endpoint", endpoint)
    monkeypatch.setattr(f"{PATCHED}.packed_nccl_broadcast_producer", producer)
    monkeypatch.setattr("sapo_vl.rollout.vllm.server.check_transfer", lambda *_, **__: None)
    yield made
    for server in made.servers:
        server.close()


@pytest.mark.slow
def test_weights_arrive_in_the_order_of_vllms_routes(setup: Setup) -> None:
    engine = setup.engine(2)
    for version in (1, 2):
        setup.weights = {name: value + version for name, value in WEIGHTS.items()}
        engine.sync(version)
        for server in setup.servers:
            assert server.loaded[-1].keys() == WEIGHTS.keys()
            assert all(torch.equal(server.loaded[-1][name], value) for name, value in setup.weights.items())
            assert server.label.endswith(f"-v{version}") and not server.paused
    calls = setup.servers[0].calls
    order = [c for c in calls[calls.index("/pause") :] if c not in ("/health", "/weight_info")]
    start, update, finish = ROUTES[1:]
    settle = ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/update_weight_version", "/resume"]
    sync = [start, update, finish, *settle, "sapo_has"]
    joining = ["/get_world_size", ROUTES[0], "sapo_joined"]
    assert order == ["/pause", "sapo_expect", *joining, *sync, "/pause", "sapo_expect", *sync]
    assert len(setup.groups) == 2 and all(g.world_size == 3 for g in setup.groups.values()), "a group a server"
    assert not (setup.folder / "weights_for_servers").exists()
    engine.close()
    assert all(g.aborted.is_set() for g in setup.groups.values())


@pytest.mark.slow
@pytest.mark.parametrize("route", [*ROUTES, "/pause", "/reset_prefix_cache", "/update_weight_version"])
def test_a_server_that_fails_on_the_way_is_out_until_a_sync_and_holds_up_nobody(setup: Setup, route: str) -> None:
    """Most of all in the middle: the trainer is in a broadcast that the server will never receive."""
    engine = setup.engine(2)
    bad, good = setup.servers
    if route != ROUTES[0]:
        engine.sync(1)
    label = bad.label
    before = setup.read
    bad.broken[route] = (500, b"Worker failed")
    engine.sync(2)
    assert bad.label == label and good.label.endswith("-v2")
    assert bad.paused or route == "/pause"
    # One for each server that was paused and is in a group, whatever came then; one to describe them, at first.
    passes = 1 + (route not in (ROUTES[0], "/pause")) + (route == ROUTES[0])
    assert setup.read - before == passes * len(WEIGHTS), "other ranks would wait for the rest, or give it to nobody"
    assert setup.marks(engine) == {1}
    bad.broken.clear()
    assert setup.marks(engine) == {1}, "in a step the trainer's weights may be newer than the label"
    engine.sync(3)
    assert setup.marks(engine) == {0, 1}
    assert all(torch.equal(bad.loaded[-1][name], value) for name, value in WEIGHTS.items())


@pytest.mark.slow
def test_weights_are_sent_from_the_device_of_the_trainer(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two ranks and more the collectives of servers are on the CPU, and NCCL sends from none."""
    apart = World(rank=0, size=1, device=torch.device("meta"))
    monkeypatch.setattr(World, "apart", lambda self: apart)
    engine = setup.engine()
    engine.sync(1)
    received = setup.servers[0].loaded[-1]
    assert all(torch.equal(received[name], value) for name, value in WEIGHTS.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AssertionError, ValueError, RuntimeError, OSError])
def test_what_vllm_does_not_send_is_a_fault_of_that_server(setup: Setup, kind: type[Exception], monkeypatch) -> None:
    """Its checks are assertions, and this rank is not to die with others waiting for it."""
    engine = setup.engine(2)
    engine.sync(1)
    bad = setup.servers[0]
    group, send = bad.group, Group.broadcast
    assert group is not None

    def broadcast(self: Group, iterator: Iterator[tuple[str, Tensor]]) -> None:
        if self is group:
            raise kind("this communicator is for another device")
        send(self, iterator)

    monkeypatch.setattr(Group, "broadcast", broadcast)
    engine.sync(2)
    assert group.aborted.is_set() and setup.marks(engine) == {1}
    engine.sync(3)
    assert setup.marks(engine) == {0, 1}, "in a group of its own again"


@pytest.mark.slow
def test_a_server_that_was_started_again_joins_anew(setup: Setup) -> None:
    """Its group is that of a process that is gone: a broadcast in it would wait for ever."""
    engine = setup.engine()
    engine.sync(1)
    (old,) = setup.groups.values()
    setup.servers[0].restart()
    engine.sync(2)
    assert old.aborted.is_set() and len(setup.groups) == 2
    assert setup.servers[0].label.endswith("-v2") and setup.marks(engine) == {0}


@pytest.mark.slow
def test_what_is_not_the_served_model_or_a_server_set_otherwise_is_refused(setup: Setup) -> None:
    engine = setup.engine()
    setup.weights["c.weight"] = torch.ones(1)
    with pytest.raises(ManifestError, match=r"the engine never had c\.weight"):
        engine.sync(1)
    setup.servers[0].settings["transfer"] = ""
    with pytest.raises(ServersUnusable, match="--weight-transfer-config is of nothing"):
        VllmServerEngine(
            MODEL, engine.config, setup.chat, setup.stream, SHAPES, CPU, setup.folder,
            max_new_tokens=32, max_failed_share=1.0,
        )  # fmt: skip


def test_without_a_gpu_it_is_refused_at_the_start(tmp_path: Path, seed: int) -> None:
    config = ServerConfig(urls=("http://127.0.0.1:9",), transfer="nccl", startup_s=0)
    said = r"rollout\.server\.transfer=nccl: .* set rollout\.server\.transfer=disk"
    with pytest.raises(TransferMissing, match=said):
        VllmServerEngine(
            MODEL, config, make_policy("dense", seed)[1], lambda: iter(()), {}, CPU, tmp_path,
            max_new_tokens=32, max_failed_share=1.0,
        )  # fmt: skip
    with pytest.raises(TransferMissing, match=said):
        serve_command(MODEL, RolloutConfig(server=config), "127.0.0.1", 8000, on_cpu=True)


def test_a_server_is_started_for_the_way_of_its_config() -> None:
    rollout = RolloutConfig(server=ServerConfig(transfer="nccl"), vllm=VllmConfig(max_num_seqs=7))
    command, _ = serve_command(MODEL, rollout, "127.0.0.1", 8000, on_cpu=False)
    assert command[command.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    rollout = rollout.model_copy(update={"server": ServerConfig()})
    command, _ = serve_command(MODEL, rollout, "127.0.0.1", 8000, on_cpu=False)
    assert "--weight-transfer-config" not in command


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapters_only": True}, "adapters alone go through a file"),
        ({"urls": ["http://10.0.0.2:8000"], "allow_remote": True}, "nccl_address=127.0.0.1 with http://10.0.0.2:8000"),
        ({"transfer": "rdma"}, "Input should be 'disk' or 'nccl'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServerConfig.model_validate({"transfer": "nccl"} | settings)
