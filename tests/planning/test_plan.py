"""What a plan says of the shipped configs, and of settings that are known not to fit."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import logging
import re
from pathlib import Path

import pytest
import yaml

from sapo_vl.commands.cli import main
from sapo_vl.config import RunConfig, load_config
from sapo_vl.model.loading import ModelConfig, ModelError
from sapo_vl.planning.limits import changed, first_misfit, fits, largest_response, largest_token_budget, with_setting
from sapo_vl.planning.machine import GB, Machine
from sapo_vl.planning.phases import EVALUATION, TRAINING, Case, phases, update
from sapo_vl.planning.plan import as_json, as_text, make_plan, summary
from sapo_vl.planning.published import SIZES, published_name
from sapo_vl.planning.rows import full_row, rows_of_step
from sapo_vl.planning.sizes import ModelSizes, find_config, model_sizes

CONFIGS = Path(__file__).parents[2] / "configs"
# The machines that the comments of the configs name: (GPUs, GB of each), (0, 0) for a CPU.
MACHINES = {
    "qwen3_vl_4b": (8, 80),
    "qwen3_vl_8b": (8, 80),
    "qwen3_vl_30b_a3b": (8, 141),
    "mixture_qwen3_vl_30b_a3b": (8, 141),
    "qwen3_vl_235b_a22b": (32, 80),
    "tiny_moe": (0, 0),
    "tiny_dense": (0, 0),
}


def machine(gpus: int, gigabytes: float, host: float = 2000) -> Machine:
    if not gpus:
        return Machine(ranks=2, ranks_per_host=2, gpu_bytes=0, host_bytes=16 * GB)
    return Machine(ranks=gpus, ranks_per_host=min(8, gpus), gpu_bytes=int(gigabytes * GB), host_bytes=int(host * GB))


@functools.cache
def sizes(name: str, size: str = "", settings: tuple[str, ...] = ()) -> tuple[ModelSizes, RunConfig]:
    config = load_config(CONFIGS / f"{name}.yaml", settings)
    return model_sizes(*find_config(config.model, size or name), config.model), config


def case(name: str, on: Machine, *settings: str, size: str = "") -> Case:
    found, config = sizes(name, size, settings)
    return Case(sizes=found, config=config, machine=on)


def test_every_shipped_config_has_its_machine_here() -> None:
    assert set(MACHINES) == {path.stem for path in CONFIGS.glob("*.yaml")}


@pytest.mark.parametrize("name", MACHINES)
def test_every_shipped_config_can_be_planned(name: str) -> None:
    plan = make_plan(case(name, machine(*MACHINES[name])))
    text = as_text(plan)
    assert all(phase.name in text for phase in plan.phases)
    assert {"load", "rollout", "update", "sync", "checkpoint", "final"} <= {p.name for p in plan.phases}
    assert all(plan.seconds[p.name] >= 0 for p in plan.phases if p.name in plan.seconds)
    assert json.loads(json.dumps(as_json(plan)))["largest_token_budget"] == plan.token_budget
    assert "\n" not in summary(plan.case)
    # The largest one, at full length, is a little beyond 80 GB in an update, and in nothing else.
    assert plan.training is None or (name, plan.training.phase) == ("qwen3_vl_235b_a22b", "update")
    assert plan.evaluation is None


def test_sizes_by_hand() -> None:
    """30B-A3B on 8 GPUs: its parts as its config.json has them."""
    m = case("qwen3_vl_30b_a3b", machine(8, 141)).sizes
    attention = 2048 * 128 * (2 * 32 + 2 * 4) + 2 * 128
    layer = attention + 2 * 2048 + 128 * 2048 + 128 * 3 * 2048 * 768
    assert m.layer == layer and m.experts_in_layer == 128 * 3 * 2048 * 768
    assert m.parameters - m.vision == 48 * layer + 2 * 151936 * 2048 + 2048
    assert m.key_bytes_per_token == 2 * 48 * 4 * 128 * 2
    assert m.largest == 128 * 2 * 768 * 2048 and not m.tied and not m.eager_experts
    assert m.vision_learning < m.vision // 2  # the tower is frozen, the mergers learn


def test_rows_by_hand() -> None:
    """30B-A3B: prompts of 2048 tokens, pictures of 1024 tokens or 4096 patches, 16 responses of 2048."""

    def row(*settings: str) -> tuple[int, int, int]:
        found = case("qwen3_vl_30b_a3b", machine(8, 141), *settings)
        full = full_row(found.sizes, found.config)
        return full.prompts, full.responses, full.tokens

    assert row("batch.tokens_per_micro_batch=77824") == (2, 32, 2 * (2048 + 16 * 2048))
    assert row("batch.tokens_per_micro_batch=77823") == (1, 16, 2048 + 16 * 2048)
    assert row() == (1, 13, 2048 + 13 * 2048)  # (32768 - 2048 - 4096) / 2048
    assert row("rollout.max_new_tokens=8192") == (1, 3, 2048 + 3 * 8192)
    assert row("rollout.max_new_tokens=30000") == (1, 1, 2048 + 30000), "over the budget, alone"
    found = case("qwen3_vl_30b_a3b", machine(8, 141))
    assert rows_of_step(found.config, full_row(found.sizes, found.config), 8) == 20  # 128 x 16 responses, 8 x 13 a row


def test_what_layers_share_is_counted_as_if_all_were_built() -> None:
    """Three layers stand for all: the sum of a whole model built from its config is the same."""
    m, _ = sizes("tiny_moe")
    whole, config = sizes("tiny_moe", settings=("model.freeze=[embeddings]",))
    assert m.parameters == whole.parameters and config.model.freeze == ("embeddings",)
    assert m.learning - whole.learning == m.vocabulary * m.hidden_width
    one, two = (model_sizes("x", _layers(n), ModelConfig(dtype="bfloat16")) for n in (12, 3))
    assert one.parameters - two.parameters == 9 * one.layer and one.layer == two.layer


def _layers(count: int):
    config = find_config(ModelConfig(), "qwen3_vl_8b")[1]
    config.get_text_config().num_hidden_layers = count
    return config


def test_memory_by_hand() -> None:
    found = {p.name: p for p in phases(case("qwen3_vl_30b_a3b", machine(8, 141)))}
    m = sizes("qwen3_vl_30b_a3b")[0]
    held = {i.name: i.bytes for i in found["update"].room("GPU").items}
    assert held["weights"] == 2 * m.parameters // 8
    assert held["optimizer states"] == 12 * m.learning // 8
    assert held["gradient buffer"] == 2 * m.learning // 8
    on_host = {i.name: i.bytes for i in found["load"].room("host").items}
    assert on_host["a slice of a file"] == 8 * 64 * 2**20
    asleep = {i.name: i.bytes for i in found["engine asleep"].room("host").items}
    assert asleep["vLLM's weights, asleep"] == pytest.approx(2 * 2 * m.parameters)  # two engines of four GPUs


@pytest.mark.parametrize(
    ("name", "on", "settings", "size", "stage", "phase"),
    [
        ("qwen3_vl_235b_a22b", machine(32, 80, 1000), (), "", TRAINING, "load"),
        ("qwen3_vl_235b_a22b", machine(8, 80), ("rollout.vllm.tensor_parallel=4",), "", EVALUATION, "evaluation"),
        ("qwen3_vl_30b_a3b", machine(8, 80), (), "", TRAINING, "rollout"),
        ("qwen3_vl_8b", machine(8, 64), ("loss.kl_coef=0.1",), "", TRAINING, "rollout"),
        ("qwen3_vl_30b_a3b", machine(8, 141), ("batch.tokens_per_micro_batch=262144",), "", TRAINING, "update"),
        ("qwen3_vl_8b", machine(8, 80), (), "qwen3_vl_32b", TRAINING, "load"),
        ("qwen3_vl_30b_a3b", machine(8, 141, 130), (), "", TRAINING, "engine asleep"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    name: str, on: Machine, settings: tuple[str, ...], size: str, stage: str, phase: str
) -> None:
    asked = case(name, on, *settings, size=size)
    misfit = first_misfit(asked, stage)
    assert misfit is not None and misfit.phase == phase
    assert misfit.taken_bytes > misfit.capacity_bytes
    if not misfit.mend:
        return
    mended = asked
    if setting := re.fullmatch(r"([a-z_.]+)=(.+)", misfit.mend):
        mended = with_setting(asked, setting[1], yaml.safe_load(setting[2]))
    elif gpus := re.fullmatch(r"(\d+) GPUs", misfit.mend):
        mended = dataclasses.replace(asked, machine=dataclasses.replace(on, ranks=int(gpus[1]), ranks_per_host=8))
    elif host := re.fullmatch(r"([\d,]+) GB of memory on each host", misfit.mend):
        more = int(host[1].replace(",", "")) * GB + GB // 2
        mended = dataclasses.replace(asked, machine=dataclasses.replace(on, host_bytes=more))
    assert mended is not asked
    assert all(p.fits for p in phases(mended) if p.name == phase)
    assert fits(mended, stage) is misfit.also_whole


@pytest.mark.parametrize(
    ("name", "gpus", "settings"),
    [
        ("qwen3_vl_8b", 1, ("rollout.vllm.tensor_parallel=1",)),
        ("qwen3_vl_235b_a22b", 8, ("rollout.vllm.tensor_parallel=8",)),
    ],
)  # fmt: skip
def test_what_vllm_holds_alone_can_be_evaluated(name: str, gpus: int, settings: tuple[str, ...]) -> None:
    """Where no trainer fits."""
    asked = case(name, machine(gpus, 80), *settings)
    assert first_misfit(asked, TRAINING) is not None and first_misfit(asked, EVALUATION) is None
    (found,) = (p for p in phases(asked) if p.name == "evaluation")
    assert {i.name: i.bytes for i in found.room("GPU").items} == {"vLLM": int(0.9 * 80 * GB)}
    assert found.room("vLLM's share").items[0].bytes == 2 * asked.sizes.parameters // gpus


def test_the_trainers_own_model_samples_in_its_share() -> None:
    """Of what is left beside weights and optimizer: a share, or what all prompts of a step take."""
    m = sizes("qwen3_vl_4b")[0]
    for gigabytes, share, whole in ((80, 0.5, False), (80, 0.25, False), (141, 0.9, True)):
        settings = ("rollout.engine=transformers", f"rollout.cache_share={share}", "rollout.prompts_per_step=128")
        asked = case("qwen3_vl_4b", machine(8, gigabytes), *settings)
        room = next(p for p in phases(asked) if p.name == "rollout").room("GPU")
        cache = next(i.bytes for i in room.items if i.name.startswith("cache"))
        held = sum(i.bytes for i in room.items if i.name in ("weights", "optimizer states"))
        c = asked.config
        prompt, own, size = c.model.max_prompt_tokens, c.rollout.max_new_tokens, c.rollout.group_size
        # Own tokens have a quarter more columns; 28 bytes for each entry of the vocabulary.
        group = m.key_bytes_per_token * (prompt + size * own * 1.25) + size * 28 * m.vocabulary
        left = share * (room.capacity_bytes - held)
        assert room.fits
        assert cache == pytest.approx(group * min(16, left // group))
        assert (left > 16 * group) is whole
    short = case("qwen3_vl_4b", machine(8, 18), "rollout.engine=transformers", "rollout.max_new_tokens=32768")
    assert not next(p for p in phases(short) if p.name == "rollout").fits, "not even one response fits"


@pytest.mark.parametrize("name", ["qwen3_vl_4b", "qwen3_vl_8b", "qwen3_vl_30b_a3b"])
def test_limits_are_where_it_stops_to_fit(name: str) -> None:
    asked = case(name, machine(*MACHINES[name]))
    tokens, response = largest_token_budget(asked), largest_response(asked)
    assert tokens > asked.config.batch.tokens_per_micro_batch
    assert update(with_setting(asked, "batch.tokens_per_micro_batch", tokens)).fits
    assert not update(with_setting(asked, "batch.tokens_per_micro_batch", round(tokens * 1.5))).fits
    assert fits(with_setting(asked, "rollout.max_new_tokens", response))
    assert not fits(with_setting(asked, "rollout.max_new_tokens", round(response * 1.1)))


def test_a_reference_is_shared_out_as_the_weights_are() -> None:
    for name, shares in (("qwen3_vl_8b", 1), ("qwen3_vl_30b_a3b", 8)):
        on = machine(*MACHINES[name])
        m = case(name, on).sizes
        held = {i.name: i.bytes for i in update(case(name, on, "loss.kl_coef=0.1")).room("GPU").items}
        assert held["weights of the KL reference"] == 2 * m.parameters // shares
    on = machine(8, 141)
    sums = {i.name: i.bytes for i in update(case(name, on, "zero.grad_accum_dtype=float32")).room("GPU").items}
    assert sums["gradient buffer"] == 4 * m.learning // 8


def test_the_default_engine_is_that_of_the_gpus_that_are_planned_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--size", "qwen3_vl_4b", "--gpus", "8", "--memory", "80", "model.dtype=bfloat16"]
    main(asked)
    assert "rollouts by vllm" in capsys.readouterr().out
    main([*asked, "rollout.engine=transformers"])
    assert "rollouts by transformers" in capsys.readouterr().out


def test_more_takes_more() -> None:
    def peak(*settings: str, gpus: int = 8) -> int:
        return update(case("qwen3_vl_8b", machine(gpus, 80), *settings)).room("GPU").taken_bytes

    usual = peak()
    assert peak("model.gradient_checkpointing=false") > 2 * usual
    assert peak("zero.stage=3") < usual < peak("zero.stage=1") < peak("zero.stage=0")
    assert peak("zero.offload_optimizer=true") < usual
    assert peak(gpus=16) < usual
    assert peak("model.freeze=[]") > usual
    assert peak("model.lora={rank: 8}") < usual
    assert changed(load_config(None), "zero.stage", 3).zero.stage == 3


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_30b_a3b"),
        ("mixture_qwen3_vl_30b_a3b", "qwen3_vl_30b_a3b"),
        ("Qwen/Qwen3-VL-32B-Thinking", "qwen3_vl_32b"),
        ("qwen3_vl_4b", "qwen3_vl_4b"),
        ("Qwen/Qwen3-VL-2B-Instruct", ""),
        ("mine", ""),
    ],
)
def test_names_of_published_sizes(text: str, name: str) -> None:
    assert published_name(text) == name


def test_a_folder_goes_before_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3_vl_8b"
    folder.mkdir()
    find_config(ModelConfig(), "qwen3_vl_4b")[1].save_pretrained(folder)
    name, config = find_config(ModelConfig(path=str(folder)), "qwen3_vl_235b_a22b")
    assert name == str(folder) and config.get_text_config().hidden_size == 2560


def test_no_size_is_an_error_that_lists_them() -> None:
    with pytest.raises(ModelError, match="--size with one of qwen3_vl_4b"):
        find_config(ModelConfig(), "mine")
    assert len(SIZES) == 5


def test_json_is_all_that_stands_in_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """As `sapo-vl plan --json | jq` needs it, while a library has something to say."""
    importlib.import_module("deepspeed")
    argv = ["plan", "--config", str(CONFIGS / "qwen3_vl_4b.yaml"), "--gpus", "8", "--memory", "80", "--json"]
    assert main(argv) == 0
    logging.getLogger("DeepSpeed").error("a line of %s", "the library's")
    printed = capfd.readouterr()
    assert json.loads(printed.out)["machine"]["ranks"] == 8
    assert "a line of the library's" in printed.err


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "qwen3_vl_30b_a3b.yaml")
    assert main(["plan", "--config", config, "--gpus", "8", "--memory", "141"]) == 0
    assert "sapo-vl train: fits" in capsys.readouterr().out
    assert main(["plan", "--config", config, "--gpus", "8", "--memory", "80", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["mend"] == "zero.offload_optimizer=true" and found["machine"]["ranks"] == 8
    assert main(["plan", "--config", config, "--gpus", "8"]) == 2
    assert "--memory" in capsys.readouterr().err
    assert main(["plan", "--config", config, "--gpus", "6", "--memory", "80"]) == 2
    assert "multiple of 4" in capsys.readouterr().err
