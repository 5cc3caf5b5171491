"""How DeepSpeed is set to work on a GPU changes no value: run on a CPU, on two ranks. And what the machine decides."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from helpers_launch import run_ranks
from helpers_models import KINDS, TOLERANCE, Kind, flat, make_case, processor, worst_error
from pydantic import ValidationError
from safetensors.torch import load_file
from zero_worker import REPEATS, SHARES, SUMS, TEMPERATURE, UPDATES

from sapo_vl.distributed import World
from sapo_vl.learning import tuning
from sapo_vl.learning.optim import OptimConfig, Tuning, ZeroConfig, deepspeed_config
from sapo_vl.learning.resuming import match_counts
from sapo_vl.learning.tuning import WHOLE_ELEMENTS, cpu_adam_fault, launched_with, threads_of_rank, tune, use_cores
from sapo_vl.model.export import save_hf_folder

GPU = World(rank=0, size=1, device=torch.device("cuda"))
CPU = World.alone()


@pytest.fixture(scope="module")
def run_seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.option.seed)


@pytest.fixture(scope="module")
def folder(run_seed: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zero")
    for kind in KINDS:
        save_hf_folder(make_case(kind, run_seed).policy.hf, processor(), out / kind)
    run_ranks(2, "zero_worker.py", out, str(run_seed), timeout=900)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", UPDATES)
def test_weights_after_updates_are_the_same_however_deepspeed_works(name: str, folder: Path) -> None:
    found = load_file(folder / f"updates {name}.0")
    error, where = worst_error(found, load_file(folder / f"updates {UPDATES[name][0]}.0"))
    assert error < TOLERANCE, f"{where} differs by {error:.2e}, relative"


@pytest.mark.slow
@pytest.mark.parametrize("name", SUMS)
def test_float32_sums_keep_what_bfloat16_loses(name: str, folder: Path) -> None:
    """Many micro-batches that are alike have as many times the gradient of one; in bfloat16 small terms get lost. Of a
    norm, what was lost in one place may make up for what was gained in another: hardly for every number of them."""
    norms = load_file(folder / f"sums {name}.0")["norms"]
    error = float((norms / (torch.tensor(REPEATS) * norms[0]) - 1).abs().max())
    # 1e-7 in float32, some 1e-4 in bfloat16.
    assert (error < 1e-5) == (SUMS[name].grad_accum_dtype == "float32"), norms


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_model_in_bfloat16_is_the_whole_one(kind: Kind, folder: Path) -> None:
    """DeepSpeed makes the tensors of a sharded model; the frequencies of the rotary embedding are float32 all the same:
    rounded to bfloat16 they moved log-probs by 0.009 (dense) and 0.017 (MoE) in the mean."""
    for rank in range(len(SHARES)):
        found = load_file(folder / f"half {kind}.{rank}")
        names = [key.removeprefix("1 ") for key in found if key.startswith("1 ")]
        frequencies = [name for name in names if "inv_freq" in name]
        assert len(frequencies) >= 2, "of the text and of the vision tower"
        for name in names:
            whole, sharded = found[f"1 {name}"], found[f"3 {name}"]
            if name.startswith("log-probs"):
                assert torch.allclose(sharded, whole, rtol=0, atol=1e-3), (sharded - whole).abs().max()
            else:
                assert sharded.dtype == whole.dtype and torch.equal(sharded, whole), name
        assert all(found[f"3 {name}"].dtype == torch.float32 for name in frequencies)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["3", "3 on the host"])
def test_a_sharded_reference_says_what_a_whole_one_says(kind: Kind, how: str, folder: Path, run_seed: int) -> None:
    """On ranks with three micro-batches and with one; and each rank holds half of it."""
    case = make_case(kind, run_seed)
    for rank, share in enumerate(SHARES):
        found = load_file(folder / f"reference {kind}.{rank}")
        for i, groups in enumerate(share):
            with torch.no_grad():
                right, _ = case.policy(flat(case.chat, [case.groups[j] for j in groups]), temperature=TEMPERATURE)
            assert torch.allclose(found[f"1 {i}"], right, rtol=0, atol=1e-6)
            assert torch.allclose(found[f"{how} {i}"], found[f"1 {i}"], rtol=0, atol=1e-6)
        assert float(found[f"held {how}"] / found["held 1"]) == pytest.approx(0.5, rel=0.01)


# --- what the machine decides


def test_a_cpu_is_tuned_as_it_always_was() -> None:
    assert tune(OptimConfig(), ZeroConfig(stage=3, offload_optimizer=True), CPU) == Tuning()
    section = deepspeed_config(OptimConfig(), ZeroConfig(stage=3, offload_optimizer=True), "float32")
    zero = section["zero_optimization"]
    assert (zero["overlap_comm"], zero["stage3_param_persistence_threshold"]) == (False, 0)
    assert zero["offload_optimizer"] == {"device": "cpu"} and section["optimizer"]["params"]["torch_adam"] is True
    assert "data_types" not in section


@pytest.mark.parametrize("fault", ["", "no compiler"])
def test_a_gpu_overlaps_and_takes_the_compiled_adam_if_there_is_one(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "cpu_adam_fault", lambda: fault)
    zero = ZeroConfig(stage=3, offload_optimizer=True, grad_accum_dtype="float32")
    found = tune(OptimConfig(), zero, GPU)
    assert found == Tuning(overlap=True, whole_elements=WHOLE_ELEMENTS, pin_memory=True, cpu_adam=not fault)
    assert ("no compiler" in caplog.text) is bool(fault)
    section = deepspeed_config(OptimConfig(), zero, "bfloat16", found)
    assert section["optimizer"]["params"]["torch_adam"] is bool(fault)
    assert section["zero_optimization"]["overlap_comm"] is True
    assert section["zero_optimization"]["stage3_param_persistence_threshold"] == WHOLE_ELEMENTS
    assert section["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert section["data_types"] == {"grad_accum_dtype": "fp32"}


def test_a_gpu_without_offload_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "cpu_adam_fault", lambda: pytest.fail("compiled"))
    assert tune(OptimConfig(), ZeroConfig(stage=2), GPU) == Tuning(overlap=True, whole_elements=WHOLE_ELEMENTS)


def test_a_build_that_fails_or_waits_for_ever_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def load(self) -> None:
            raise OSError("no such compiler")

    class Waiting:
        def load(self) -> None:
            threading.Event().wait(60)

    monkeypatch.setattr(tuning, "CPUAdamBuilder", Broken)
    assert cpu_adam_fault() == "OSError: no such compiler"
    monkeypatch.setattr(tuning, "CPUAdamBuilder", Waiting)
    assert "lock" in cpu_adam_fault(within=0.01)


def test_a_checkpoint_of_the_other_adam_can_be_gone_on_from() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    ours = torch.optim.AdamW([weight], lr=0.1)
    ours.state[weight] = {"step": 7, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}  # as DeepSpeed saves it
    match_counts(ours)
    weight.grad = torch.ones(3)
    ours.step()
    assert ours.state[weight]["step"].item() == 8
    before = ours.state[weight]["step"]
    match_counts(ours)
    assert ours.state[weight]["step"] is before, "its own are left alone"
    compiled: Any = DeepSpeedCPUAdam.__new__(DeepSpeedCPUAdam)
    compiled.state = {weight: {"step": torch.tensor(8.0)}, torch.nn.Parameter(torch.ones(1)): {}}
    match_counts(compiled)
    assert compiled.state[weight]["step"] == 8 and isinstance(compiled.state[weight]["step"], int)


def test_a_count_lies_where_its_weight_does() -> None:
    """torch's fused Adam reads it there; a file of another layout, or of DeepSpeed's Adam, gives it elsewhere."""
    for given in (7, torch.tensor(7.0)):
        weight = torch.nn.Parameter(torch.ones(3, device="meta"))
        ours = torch.optim.AdamW([weight], lr=0.1)
        ours.state[weight] = {"step": given}
        match_counts(ours)
        assert ours.state[weight]["step"].device == weight.device


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("environ", "launcher", "threads"),
    [
        (TORCHRUN, {"PATH": "/bin"}, 12),
        (TORCHRUN, {"OMP_NUM_THREADS": "1"}, 0),  # the user's own
        (TORCHRUN | {"OMP_NUM_THREADS": "4"}, {}, 0),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "200"}, {}, 1),
        ({"OMP_NUM_THREADS": "1"}, {}, 0),  # no torchrun
        ({"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1"}, {}, 0),  # one rank: torchrun sets nothing
    ],
)
def test_threads_of_a_rank(environ: dict[str, str], launcher: dict[str, str], threads: int) -> None:
    assert threads_of_rank(environ, launcher, cores=96) == threads


def test_what_a_process_was_started_with_and_not_what_it_has_set_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_SINCE", "1")
    found = launched_with(os.getpid())
    assert "SET_SINCE" not in found and found["PATH"]
    assert launched_with(2**31 - 1) == {}


def test_only_an_optimizer_on_the_host_beside_a_gpu_changes_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(tuning, "launched_with", lambda pid: {})
    for name, value in (TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)
    use_cores(ZeroConfig(stage=2, offload_optimizer=True), CPU)
    use_cores(ZeroConfig(stage=2), GPU)
    assert not given and os.environ["OMP_NUM_THREADS"] == "1"
    use_cores(ZeroConfig(stage=2, offload_optimizer=True), GPU)
    assert given == [len(os.sched_getaffinity(0))] == [int(os.environ["OMP_NUM_THREADS"])]


@pytest.mark.parametrize(
    "settings", [{"stage": 0}, {"stage": 1}, {"stage": 2, "offload_optimizer": True}], ids=lambda s: str(s)
)
def test_float32_sums_are_refused_where_deepspeed_has_none(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"zero\.grad_accum_dtype=float32 .*needs zero\.stage"):
        ZeroConfig.model_validate({**settings, "grad_accum_dtype": "float32"})
