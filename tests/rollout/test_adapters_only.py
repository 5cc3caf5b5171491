"""Adapters alone, on their way to servers that merge them into the model they were started from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from fake_vllm_server import FakeServer
from helpers_models import KINDS, MODEL, Kind, make_model, make_policy, processor
from safetensors.torch import load_file
from torch import Tensor

from sapo_vl.config import ConfigError, load_config
from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.weights import HubAdapter, ManifestError, hub_adapters, hub_weights
from sapo_vl.model.errors import ModelError
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import examine
from sapo_vl.model.loading import DTYPES, load_model
from sapo_vl.model.lora import LoraConfig
from sapo_vl.rollout.vllm.adapters import FILE, AdapterSource, adapted_weights, base_digest, write_adapters
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.handover import stored_bytes
from sapo_vl.rollout.vllm.server import ServersUnusable, VllmServerEngine
from sapo_vl.rollout.vllm.transfer import CannotPack, DiskTransfer
from sapo_vl.rollout.vllm.worker import WorkerExtension

CPU = torch.device("cpu")


class Trainer:
    """A model with trained adapters, and the folder that it was loaded from. `engine` has what streaming needs."""

    def __init__(self, folder: Path, kind: Kind, seed: int, dtype: str = "float32") -> None:
        self.base = folder / f"{kind}-{seed}"
        save_hf_folder(make_model(kind, seed), processor(), self.base)
        changes = {"path": str(self.base), "dtype": dtype, "lora": LoraConfig(rank=4, alpha=6)}
        model: Any = load_model(MODEL.model_copy(update=changes))
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.data = 0.1 * torch.randn(p.shape).to(p.dtype)
        self.engine = cast(
            PolicyEngine, SimpleNamespace(zero=SimpleNamespace(stage=0), module=SimpleNamespace(hf=model))
        )

    def write(self, folder: Path) -> int:
        folder.mkdir()
        return write_adapters(hub_adapters(self.engine, bucket_bytes=10_000), folder)

    def source(self) -> AdapterSource:
        return AdapterSource(lambda: hub_adapters(self.engine), self.base, stored_bytes(self.base))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_ends_with_the_bits_that_a_trainer_would_send(
    tmp_path: Path, kind: Kind, dtype: str, seed: int
) -> None:
    trainer = Trainer(tmp_path, kind, seed, dtype)
    count = trainer.write(tmp_path / "sent")
    taken = dict(adapted_weights(trainer.base, tmp_path / "sent", count, DTYPES[dtype], CPU))
    whole = dict(hub_weights(trainer.engine))
    assert taken.keys() == whole.keys()
    assert all(torch.equal(taken[name].to(DTYPES[dtype]), value) for name, value in whole.items())
    changed = {n for n, v in load_file(trainer.base / "model.safetensors").items() if not torch.equal(v, taken[n])}
    assert 2 * len(changed) == count, "an adapter changes nothing, or is of another weight"
    assert (kind == "moe") == any("experts" in name for name in changed)
    sent = sum(a.a.nbytes + a.b.nbytes for a in hub_adapters(trainer.engine))
    assert sent < stored_bytes(tmp_path / "sent") < sum(v.nbytes for v in whole.values())


class Worker(WorkerExtension):
    """What the extension needs of vLLM's worker."""

    def __init__(self, model: Path) -> None:
        config = SimpleNamespace(model=str(model), revision=None, dtype=torch.float32)
        self.vllm_config, self.device = SimpleNamespace(model_config=config), CPU
        self.taken: list[dict[str, Tensor]] = []

    def reload_weights(self, weights_iterator: Any) -> None:
        self.taken.append(dict(weights_iterator))


def test_a_worker_of_another_model_refuses_and_keeps_what_it_has(tmp_path: Path, seed: int) -> None:
    trainer = Trainer(tmp_path, "dense", seed)
    count, base = str(trainer.write(tmp_path / "sent")), base_digest(str(trainer.base))
    save_hf_folder(make_model("dense", seed + 1), processor(), tmp_path / "other")
    sent = str(tmp_path / "sent")

    worker, other = Worker(trainer.base), Worker(tmp_path / "other")
    assert (worker.sapo_base() == base) and (other.sapo_base() != base)
    assert worker.sapo_load_adapters(sent, count, base) == "" and worker.sapo_has(sent) == ""
    assert "is not the one that the run trains" in other.sapo_load_adapters(sent, count, base)
    assert other.taken == [] and other.sapo_has(sent) != ""
    again = Worker(trainer.base)  # a process that was started again, with nothing but the model's folder
    assert again.sapo_has(sent) != "" and again.sapo_load_adapters(sent, count, base) == ""
    assert all(torch.equal(again.taken[0][n], v) for n, v in worker.taken[0].items())


def test_what_is_no_whole_set_of_adapters_is_refused(tmp_path: Path, seed: int) -> None:
    trainer = Trainer(tmp_path, "dense", seed)
    worker, sent = Worker(trainer.base), tmp_path / "sent"
    count, base = trainer.write(sent), base_digest(str(trainer.base))
    assert f"has {count} of {count + 2} tensors" in worker.sapo_load_adapters(str(sent), str(count + 2), base)
    assert "is the file system shared?" in worker.sapo_load_adapters(str(tmp_path / "absent"), str(count), base)
    (sent / FILE).write_bytes((sent / FILE).read_bytes()[:-8])
    assert "cannot be read" in worker.sapo_load_adapters(str(sent), str(count), base)
    stranger = HubAdapter("model.nowhere.weight", torch.ones(2, 3), torch.ones(3, 2), 1.0)
    write_adapters(iter([stranger]), sent)
    assert "an adapter of model.nowhere.weight" in worker.sapo_load_adapters(str(sent), "2", base)
    assert worker.taken == []
    with pytest.raises(ModelError, match="no weight of this server's model"):
        adapted_weights(trainer.base, sent, 2, torch.float32, CPU)


def open_engine(trainer: Trainer, server: FakeServer, folder: Path, seed: int) -> VllmServerEngine:
    shapes = {name: w.shape for name, w in examine(str(trainer.base)).weights.items()}
    _, chat = make_policy("dense", seed)
    return VllmServerEngine(
        MODEL, ServerConfig(urls=(server.url,), startup_s=1.0), chat, lambda: hub_weights(trainer.engine),
        shapes, World(rank=0, size=1, device=CPU), folder / "run",
        max_new_tokens=32, max_failed_share=1.0, adapters=trainer.source(),
    )  # fmt: skip


def test_a_server_is_handed_adapters_and_must_be_of_the_same_model(tmp_path: Path, seed: int) -> None:
    trainer = Trainer(tmp_path, "dense", seed)
    server = FakeServer(0, 0)
    try:
        server.base = "another"
        with pytest.raises(ServersUnusable, match="another model than the run trains"):
            open_engine(trainer, server, tmp_path, seed)
        server.base = base_digest(str(trainer.base))
        engine = open_engine(trainer, server, tmp_path, seed)
        engine.sync(1)
        whole = {a.name: a for a in hub_adapters(trainer.engine)}
        assert server.loaded[-1].keys() == {f"{name}.{part}" for name in whole for part in "ab"}
        assert all(torch.equal(server.loaded[-1][f"{n}.a"], a.a) for n, a in whole.items())
        assert "sapo_load_weights" not in server.calls
        assert server.label.endswith("-1-v1")

        server.restart()  # with the weights of its start
        server.base = "another"
        with pytest.raises(ServersUnusable, match="no server took the weights of version 2"):
            engine.sync(2)
        engine.close()
        assert not (tmp_path / "run" / "weights_for_servers").exists()
    finally:
        server.close()


def test_an_adapter_of_no_weight_of_the_model_is_not_sent(tmp_path: Path, seed: int) -> None:
    trainer = Trainer(tmp_path, "dense", seed)
    transfer = DiskTransfer(
        ServerConfig(), lambda: hub_weights(trainer.engine), {"a": (1,)}, World(rank=0, size=1, device=CPU),
        tmp_path / "run", trainer.source(), "base",
    )  # fmt: skip
    with pytest.raises(ManifestError, match=re.escape(min(a.name for a in hub_adapters(trainer.engine)))):
        transfer.pack("x")


@pytest.mark.parametrize("adapters", [True, False])
def test_a_disk_that_is_gone_stops_no_other_rank(tmp_path: Path, adapters: bool, seed: int) -> None:
    """Weights are gathered by all ranks together: the main rank must read on whatever its disk says."""
    trainer = Trainer(tmp_path, "dense", seed)
    read: list[str] = []

    def noted(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            read.append(item.name if adapters else item[0])
            yield item

    expected = {name: w.shape for name, w in examine(str(trainer.base)).weights.items()}
    source = AdapterSource(lambda: noted(hub_adapters(trainer.engine)), trainer.base, 0) if adapters else None
    transfer = DiskTransfer(
        ServerConfig(), lambda: noted(hub_weights(trainer.engine)), expected, World(rank=0, size=1, device=CPU),
        tmp_path / "run", source, "base",
    )  # fmt: skip
    transfer.close()
    with pytest.raises(CannotPack, match="cannot write new weights"):
        transfer.pack("x")
    assert len(read) == len(list(hub_adapters(trainer.engine)) if adapters else expected)


def test_adapters_alone_need_adapters() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.server\.adapters_only=true without model\.lora"):
        load_config(None, ["rollout.server.adapters_only=true"])
    assert load_config(None, ["rollout.server.adapters_only=true", "model.lora={rank: 2}"]).rollout.server.adapters_only
