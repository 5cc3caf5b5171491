"""Reading a config: the shipped files, overrides, mistakes that are named, settings that contradict each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sapo_vl.config import ConfigError, RunConfig, load_config, save_config
from sapo_vl.losses import LOSSES
from sapo_vl.losses.sapo import SapoConfig
from sapo_vl.rollout import base as rollout_base

CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def refusal(*overrides: str, path: Path | None = None) -> str:
    """The message with which these overrides are refused."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value)


# --- the shipped files


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_config_is_read_and_survives_being_saved(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "deep" / "saved.yaml")
    assert load_config(tmp_path / "deep" / "saved.yaml") == config
    # The saved file names every setting, so that a later default cannot change what was run.
    saved = yaml.safe_load((tmp_path / "deep" / "saved.yaml").read_text())
    assert set(saved) == set(RunConfig.model_fields)
    assert saved["advantage"]["std_floor"] == config.advantage.std_floor
    # And the shipped file says nothing that a run would have to guess: every value it gives is the one that holds.
    for section, values in yaml.safe_load(path.read_text()).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            held = getattr(getattr(config, section), key)
            if not isinstance(value, dict):
                assert (list(held) if isinstance(held, tuple) else held) == value, f"{section}.{key}"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("qwen3_vl_*.yaml")), ids=lambda p: p.stem)
def test_the_gpu_configs_train_as_the_paper_says(path):
    config = load_config(path)
    assert config.loss.name == "sapo" and config.loss.reduction == "sequence_mean"
    assert config.loss.loss_params() == SapoConfig(tau_pos=1.0, tau_neg=1.05)
    assert SapoConfig() == SapoConfig(gate="sigmoid", sides="both", low="open", target_gate=None)
    assert config.batch.mini_batches == 2 and config.optim.lr == 1e-6
    assert config.model.dtype == "bfloat16" and config.model.gradient_checkpointing
    assert config.cold_start is None and not config.model.path and not config.data.path
    # Engine and trainer differ in bfloat16: what is left of it after the trainer's own pass is weighed.
    assert (config.rollout.old_logprobs, config.mismatch.correction) == ("trainer", "token_tis")
    assert "has not been run on a GPU" in " ".join(path.read_text().replace("#", " ").split())
    # What the user must give is all that is missing.
    load_config(path, ["model.path=/models/m", "data.path=/data/d"])


@pytest.mark.parametrize("name", ["tiny_dense", "tiny_moe"])
def test_the_tiny_configs_need_nothing_from_the_user(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.model.tiny == name.removeprefix("tiny_") and config.recipe.name and config.cold_start


@pytest.mark.slow
def test_reading_a_config_loads_no_model_code(tmp_path):
    """In a fresh process, with a model path that does not exist: nothing looks at it."""
    code = (
        "import sys; from sapo_vl.config import load_config\n"
        f"c = load_config({str(SHIPPED[0])!r}, ['model.path=/nowhere/m', 'data.path=/nowhere/d', 'recipe.name=',"
        " 'model.tiny='])\n"
        "assert c.model.path == '/nowhere/m'\n"
        "print([m for m in sys.modules if 'modeling_qwen3_vl' in m or m.startswith('vllm')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


# --- overrides


def test_overrides_go_over_the_file_and_later_ones_win(tmp_path):
    path = write(tmp_path, "steps: 5\noptim: {lr: 1e-3, betas: [0.8, 0.9]}\ncold_start: {steps: 7}\n")
    config = load_config(
        path,
        ["steps=6", "steps=8", "optim.clip=0.5", "cold_start.optim.lr=2e-5", "model.freeze=[vision, merger]"],
    )
    assert config.steps == 8
    assert (config.optim.lr, config.optim.clip, config.optim.betas) == (1e-3, 0.5, (0.8, 0.9))
    assert config.cold_start is not None
    assert (config.cold_start.steps, config.cold_start.optim.lr) == (7, 2e-5)
    assert config.model.freeze == ("vision", "merger")


@given(st.floats(min_value=1e-30, max_value=1e30))
def test_a_number_is_read_however_it_is_written(lr):
    for text in (repr(lr), f"{lr:.17e}", f"{lr:.17E}"):
        assert load_config(None, [f"optim.lr={text}"]).optim.lr == lr


@pytest.mark.parametrize("there", LOSSES)
def test_another_loss_than_a_saved_one_has_its_own_reduction(there, tmp_path):
    """A saved config has every default in it, among them the reduction of its loss."""

    def own(name):
        return LOSSES[name][1].own_reduction

    def constant(name):
        return ["loss.token_sum_constant=77"] if own(name) == "token_sum" else []

    save_config(load_config(None, [f"loss.name={there}", *constant(there)]), path := tmp_path / "saved.yaml")
    for here in LOSSES:
        found = load_config(path, [f"loss.name={here}", *constant(here)]).loss
        assert (found.name, found.reduction) == (here, own(here))
        if own(here) == "token_sum" != own(there):
            assert "token_sum_constant" in refusal(f"loss.name={here}", path=path)
    asked = "token_mean" if own(there) == "sequence_mean" else "sequence_mean"
    save_config(load_config(None, [f"loss.name={there}", f"loss.reduction={asked}"]), path)
    other = next(name for name in LOSSES if name != there and own(name) != "token_sum")
    assert load_config(path, [f"loss.name={other}"]).loss.reduction == asked, "what a user chose stays"


def test_another_loss_than_the_files_leaves_its_params(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("loss: {name: sapo, params: {tau_pos: 2.0}}")

    def given(*overrides: str) -> dict[str, float]:
        return load_config(path, overrides).loss.params

    assert given() == given("loss.name=sapo") == {"tau_pos": 2.0}
    assert given("loss.name=grpo") == {}
    assert given("loss.params.eps_low=0.1", "loss.name=grpo") == {"eps_low": 0.1}
    assert given("loss.name=grpo", "loss.name=sapo") == {"tau_pos": 2.0}
    path.write_text("loss: {params: {tau_neg: 3.0}}")  # of the default, which is SAPO
    assert given("loss.name=gspo") == {} and given("loss.name=sapo") == {"tau_neg": 3.0}
    said = refusal("loss.name=grpo", "loss.params.tau_pos=1", path=path)
    assert "loss 'grpo' has no setting 'tau_pos'" in said


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", "0.000001", "1.e-06"])
def test_one_millionth(text, tmp_path):
    assert load_config(None, [f"optim.lr={text}"]).optim.lr == 1e-6
    assert load_config(write(tmp_path, f"optim: {{lr: {text}}}")).optim.lr == 1e-6


def test_an_override_can_clear_or_open_an_optional_section(tmp_path):
    path = write(tmp_path, "cold_start: {steps: 7}\nmodel: {revision: abc, path: /m}")
    config = load_config(path, ["cold_start=null", "model.revision=null", "model.path=", "data.quotas={a: 2, b: 1}"])
    assert config.cold_start is None and config.model.revision is None and config.model.path == ""
    assert config.data.quotas == {"a": 2.0, "b": 1.0}
    lora = load_config(None, ["model.lora.rank=4"]).model.lora
    assert lora is not None and (lora.rank, lora.alpha) == (4, 32)
    assert load_config(None, ["cold_start={}"]).cold_start is not None


@pytest.mark.parametrize("word", ["no", "auto", "runs/a/checkpoints/step_00000003"])
def test_resume_is_a_word_also_where_yaml_sees_a_boolean(word, tmp_path):
    assert load_config(None, [f"resume={word}"]).resume == word
    assert load_config(write(tmp_path, f"resume: {word}")).resume == word
    assert "resume: Input should be a valid string (got True)" in refusal("resume=yes")


def test_keys_of_the_user_are_not_checked_but_kept():
    config = load_config(
        None, ["recipe.name=visual_puzzles", "recipe.args.n_train=5", "data.quotas.any=1", "rewards.by_task.a=b"]
    )
    assert config.recipe.args == {"n_train": 5}
    assert config.data.quotas == {"any": 1.0} and config.rewards.by_task == {"a": "b"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr", "override 'optim.lr': write key=value, as in optim.lr=1e-6"),
        ("=3", "override '=3': write key=value"),
        ("optim.betas=[1", "override 'optim.betas=[1': the value is not YAML"),
        ("steps.more=1", "override 'steps.more=1': steps holds 5 and has no keys"),
        ("optim.lr.x=1", "override 'optim.lr.x=1': lr holds 0.001 and has no keys"),
        ("seed.x=1", "seed: Input should be a valid integer (got {'x': 1})"),
        ("optim=3", "optim: Input should be a valid dictionary or instance of OptimConfig (got 3)"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(override, words, tmp_path):
    assert words in refusal(override, path=write(tmp_path, "steps: 5\noptim: {lr: 0.001}"))


# --- mistakes in keys, types and files


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("stepz: 3", "stepz", "steps"),
        ("optm: {lr: 1}", "optm", "optim"),
        ("optim: {lrr: 1}", "optim.lrr", "optim.lr"),
        ("cold_start: {optim: {warmup: 1}}", "cold_start.optim.warmup", "cold_start.optim.warmup_steps"),
        ("model: {lora: {rnk: 4}}", "model.lora.rnk", "model.lora.rank"),
        ("lr: 1", "lr", "optim.lr"),
        ("group_size: 4", "group_size", "rollout.group_size"),
        ("optim: {mini_batches: 4}", "optim.mini_batches", "batch.mini_batches"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_one(text, key, nearest, tmp_path):
    path = write(tmp_path, text)
    assert refusal(path=path) == f"{path}: unknown key {key}; nearest: {nearest}"


@pytest.mark.parametrize(
    ("overrides", "key", "nearest"),
    [
        (["loss.tau_pos=2"], "loss.tau_pos", "loss.params.tau_pos"),
        (["tau_neg=2"], "tau_neg", "loss.params.tau_neg"),
        (["params.tau_neg=2"], "params", "loss.params.tau_neg"),
        (["sapo.tau_neg=2"], "sapo", "loss.params.tau_neg"),
        (["loss.name=grpo", "loss.eps_low=0.1"], "loss.eps_low", "loss.params.eps_low"),
        (["loss.name=gspo", "eps_high=0.1"], "eps_high", "loss.params.eps_high"),
        (["rewards.overlong.buffer=3"], "rewards.overlong", "rewards.params.overlong.buffer"),
        (["rewards.buffer=3"], "rewards.buffer", "rewards.params.overlong.buffer"),
        (["recipe.name=visual_puzzles", "recipe.n_train=5"], "recipe.n_train", "recipe.args.n_train"),
        (["recipe.name=visual_puzzles", "n_train=5"], "n_train", "recipe.args.n_train"),
        (["vllm.tensor_parallel=2"], "vllm", "rollout.vllm.tensor_parallel"),
        (["rollout.tensor_parallel=2"], "rollout.tensor_parallel", "rollout.vllm.tensor_parallel"),
        (["model.rank=2"], "model.rank", "model.lora.rank"),
        (["lora.rank=2"], "lora", "model.lora.rank"),
        (["cold_start.lr=2"], "cold_start.lr", "cold_start.optim.lr"),
        (["trainer.lr=2"], "trainer", "optim.lr"),
        (["eval.max_new_tokens=9"], "eval.max_new_tokens", "eval.sampling.max_new_tokens"),
        (["name=grpo"], "name", "recipe.name or loss.name or optim.name"),
    ],
)
def test_a_key_that_lives_a_level_deeper_is_named_in_full(overrides, key, nearest):
    assert refusal(*overrides).endswith(f": unknown key {key}; nearest: {nearest}")


def test_a_setting_of_another_loss_is_no_hint():
    assert "loss.params" not in refusal("loss.name=grpo", "loss.tau_pos=2")


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    message = refusal("zero.qqqq=1")
    assert message.startswith("defaults with zero.qqqq=1: unknown key zero.qqqq; known here: stage, offload_optimizer")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps=many", "steps: Input should be a valid integer"),
        ("steps=0", "steps: Input should be greater than or equal to 1 (got 0)"),
        ("steps=1.5", "steps: Input should be a valid integer"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim.lr=-1e-6", "optim.lr: Input should be greater than 0 (got -1e-06)"),
        ("optim.betas=[0.9]", "optim.betas.1: Field required"),
        ("model.path=7", "model.path: Input should be a valid string (got 7)"),
        ("model.freeze=[vison]", "model.freeze.0: Input should be 'vision', 'merger', 'language'"),
        ("model.dtype=float16", "model.dtype: Input should be 'float32' or 'bfloat16' (got float16)"),
        ("zero.stage=4", "zero.stage: Input should be 0, 1, 2 or 3 (got 4)"),
        ("cold_start.optim.name=sgd", "cold_start.optim.name: Input should be 'adamw' or 'muon' (got sgd)"),
        ("model.gradient_checkpointing=7", "model.gradient_checkpointing: Input should be a valid boolean"),
        ("data.quotas.count=lots", "data.quotas.count: Input should be a valid number"),
        ("data.quotas.count=-1", "data.quotas.count is -1.0; give a number >= 0"),
        ("eval.modes=[]", "eval.modes: Tuple should have at least 1 item"),
        ("loss.name=sapp", "unknown loss 'sapp'; did you mean 'sapo'?"),
        ("loss.params.tau_poz=1", "loss 'sapo' has no setting 'tau_poz'; did you mean 'tau_pos'?"),
        ("rewards.combine={accuracy: much}", "rewards.combine.accuracy: Input should be a valid number"),
        ("log.trackers=[mlflow]", "log.trackers.0: Input should be 'tensorboard', 'wandb' or 'trackio' (got mlflow)"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_key(override, words):
    message = refusal(override)
    assert message.startswith(f"defaults with {override}: this config cannot be used\n  ")
    assert words in message and "Value error" not in message


def test_all_faults_are_told_at_once():
    assert refusal("steps=x", "seed=-1").count("\n  ") == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "a config is a mapping of sections, this is a list"),
        ("just words", "a config is a mapping of sections, this is a str"),
        ("steps: [1", "cannot be read as YAML: while parsing a flow sequence"),
        ("steps: 1\nsteps: 2", "cannot be read as YAML: the key steps comes twice"),
        ("optim: {lr: 1, clip: 2, lr: 3}", "the key lr comes twice"),
        ("steps: !!python/object/apply:os.getpid []", "cannot be read as YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_config(text, words, tmp_path):
    path = write(tmp_path, text)
    message = refusal(path=path)
    assert message.startswith(str(path)) and words in message


def test_files_that_cannot_be_read(tmp_path):
    assert refusal(path=tmp_path / "no.yaml").endswith("no such config file; the shipped ones are in configs/")
    assert "Is a directory" in refusal(path=tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    assert "image.yaml cannot be read as YAML" in refusal(path=tmp_path / "image.yaml")
    assert load_config(write(tmp_path, "# nothing but a comment\n")) == RunConfig()


# --- settings that contradict each other: (overrides, texts the message must have)

CONTRADICTIONS = {
    "two models": (["model.path=/m", "model.tiny=moe"], ["model.path='/m'", "model.tiny='moe'"]),
    "two data sets": (
        ["recipe.name=visual_puzzles", "data.path=/d"],
        ["recipe.name='visual_puzzles'", "data.path='/d'"],
    ),
    "arguments of no recipe": (["recipe.args.n_train=3"], ["recipe.args", "recipe.name"]),
    "pixels": (["model.min_pixels=9000", "model.max_pixels=8000"], ["model.min_pixels=9000", "model.max_pixels=8000"]),
    "uneven mini-batches": (
        ["rollout.prompts_per_step=30", "batch.mini_batches=4"],
        ["rollout.prompts_per_step=30", "batch.mini_batches=4"],
    ),
    "uneven ranks": (["rollout.prompts_per_step=32", "processes=5"], ["rollout.prompts_per_step=32", "processes=5"]),
    "a group of one": (["rollout.group_size=1"], ["rollout.group_size=1", "use 2 or more"]),
    "muon with ZeRO": (["optim.name=muon", "zero.stage=1"], ["optim.name=muon", "zero.stage=1"]),
    "muon with ZeRO, cold start": (
        ["cold_start.optim.name=muon", "cold_start.zero.stage=2"],
        ["cold_start.optim.name=muon", "cold_start.zero.stage=2"],
    ),
    "offload without shards": (
        ["zero.stage=0", "zero.offload_optimizer=true"],
        ["zero.offload_optimizer=true", "zero.stage >= 1"],
    ),
    "weights offloaded below 3": (
        ["zero.stage=2", "zero.offload_params=true"],
        ["zero.offload_params=true", "zero.stage=3"],
    ),
    "resampled and stale": (
        ["rollout.resample=2", "rollout.staleness=1"],
        ["rollout.resample=2", "rollout.staleness=1", "set one of the two to 0"],
    ),
    "cut law": (["rollout.top_p=0.9"], ["rollout.top_p=0.9", "rollout.old_logprobs=rollout"]),
    "cut law by rank": (["rollout.top_k=5"], ["rollout.top_k=5", "rollout.old_logprobs=rollout"]),
    "nothing to correct": (
        ["mismatch.correction=icepop"],
        ["mismatch.correction=icepop", "rollout.old_logprobs=rollout", "rho is 1"],
    ),
    "a gap made up for twice": (
        ["loss.name=dppo", "mismatch.correction=icepop", "rollout.old_logprobs=trainer"],
        ["loss.name=dppo", "mismatch.correction=icepop", "twice"],
    ),
    "a sum by nothing, the loss's own": (["loss.name=dr_grpo"], ["'dr_grpo'", "token_sum_constant"]),
    "a window of another correction": (
        ["mismatch.icepop=[0.2, 5]"],
        ["mismatch.icepop=[0.2, 5.0]", "mismatch.correction=none"],
    ),
    "a sum by nothing": (["loss.reduction=token_sum"], ["token_sum", "token_sum_constant"]),
    "a divisor of nothing": (["loss.token_sum_constant=3"], ["token_sum_constant = 3", "sequence_mean"]),
    "a cut law and a product over a response": (
        ["rollout.top_p=0.9", "rollout.old_logprobs=trainer", "mismatch.correction=sequence_mask"],
        ["rollout.top_p=0.9", "mismatch.correction=sequence_mask", "token_tis"],
    ),
    "a cut law and a mean over a response": (
        ["rollout.top_k=20", "rollout.old_logprobs=trainer", "mismatch.correction=geometric_mask"],
        ["top_k=20", "mismatch.correction=geometric_mask"],
    ),
    "a cut law and vespo": (
        ["rollout.top_p=0.9", "rollout.old_logprobs=trainer", "loss.name=vespo"],
        ["loss.name=vespo"],
    ),
    "settings of another loss": (["loss.name=grpo", "loss.params.tau_pos=1"], ["'grpo'", "'tau_pos'"]),
    "adapters in the cold start": (["cold_start.steps=3", "model.lora.rank=2"], ["cold_start", "model.lora"]),
    "nothing to learn": (["model.freeze=[vision, merger, language, lm_head]"], ["model.freeze", "leaves nothing"]),
    "trained on the test": (["data.eval_split=train"], ["data.eval_split", "data.train_split", "'train'"]),
    "imitated the test": (["cold_start.split=test"], ["cold_start.split", "data.eval_split", "'test'"]),
    "servers nowhere": (["rollout.engine=vllm_server"], ["rollout.server.urls", "sapo-vl serve"]),
    "a server far away": (["rollout.server.urls=[http://10.0.0.1:8000]"], ["http://10.0.0.1:8000", "allow_remote"]),
    "a server twice": (
        ["rollout.server.urls=[http://localhost:8000, http://localhost:8000/]"],
        ["names http://localhost:8000 twice"],
    ),
    "no address": (["rollout.server.urls=[127.0.0.1:8000]"], ["'127.0.0.1:8000'", "http://127.0.0.1:8000"]),
    "an address with more": (["rollout.server.urls=[http://127.0.0.1:80/v1]"], ["'http://127.0.0.1:80/v1'"]),
    "no question of right or wrong": (["rewards.combine={format: 1.0}"], ["rewards.combine", "'accuracy'"]),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_settings_that_cannot_both_be_meant(name):
    overrides, words = CONTRADICTIONS[name]
    message = refusal(*overrides)
    for word in words:
        assert word in message
    assert len(message.splitlines()) == 2  # one sentence under the head line


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.top_p=0.9", "rollout.old_logprobs=trainer"],
        ["mismatch.correction=icepop", "mismatch.icepop=[0.2, 5]", "rollout.old_logprobs=trainer"],
        ["mismatch.off_policy_delta=0.5"],  # needs no rho
        ["mismatch.off_policy_delta=0.5", "loss.name=vespo"],
        ["loss.name=minirl", "loss.token_sum_constant=100", "advantage.scale=none"],
        ["optim.name=muon", "zero.stage=0"],
        ["loss.reduction=token_sum", "loss.token_sum_constant=100"],
        ["zero.stage=3", "zero.offload_params=true", "zero.offload_optimizer=true"],
        ["model.min_pixels=9000", "model.max_pixels=9000"],
        ["rollout.prompts_per_step=30", "batch.mini_batches=5", "processes=3"],
        ["model.freeze=[vision, merger, language, lm_head]", "model.lora.rank=2"],
        ["rewards.combine={accuracy: 0.0, format: 1.0}"],
        ["rollout.engine=vllm_server", "rollout.server.urls=[http://127.0.0.1:8000]"],
        ["rollout.server.urls=[http://10.0.0.1:8000]", "rollout.server.allow_remote=true"],
    ],
)
def test_what_the_messages_advise_is_accepted(overrides):
    load_config(None, overrides)


@pytest.mark.parametrize(
    ("gpu", "installed", "engine"),
    [(True, True, "vllm"), (True, False, "transformers"), (False, True, "transformers")],
)
def test_who_samples_by_default_is_decided_by_the_machine(gpu, installed, engine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(rollout_base, "is_installed", lambda: installed)
    assert load_config(None).rollout.engine == engine
    assert load_config(None, ["rollout.engine=auto", "rollout.group_size=4"]).rollout.engine == engine
    assert load_config(None, ["rollout.engine=transformers"]).rollout.engine == "transformers"


def test_several_contradictions_are_told_together():
    message = refusal("rollout.group_size=1", "model.path=/m", "model.tiny=dense")
    assert "rollout.group_size=1" in message and "model.tiny='dense'" in message


def test_a_config_cannot_be_changed_after_it_was_checked():
    config = load_config(None)
    with pytest.raises(ValueError, match=re.escape("frozen")):
        config.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ([], 0),
        (["replay=r3", "model.tiny=moe"], 0),
        (["replay=r2", "model.tiny=moe"], 4),
        (["rollout.old_logprobs=trainer"], 3),
        (["rollout.old_logprobs=trainer", "replay=r3", "model.tiny=moe"], 3),
        (["rollout.old_logprobs=trainer", "replay=r2", "model.tiny=moe"], 4),
        (["rollout.old_logprobs=trainer", "model.lora.dropout=0"], 3),
        (["rollout.old_logprobs=trainer", "model.lora.dropout=0.1"], 4),
        (["rollout.old_logprobs=trainer", "batch.shared_prefix=false"], 4),
        (["rollout.old_logprobs=trainer", "batch.mini_batches=1"], 0),
    ],
)
def test_which_mini_batches_take_a_pass_for_pi_old(settings: list[str], passes: int) -> None:
    assert load_config(None, ["batch.mini_batches=4", "rollout.prompts_per_step=16", *settings]).old_passes == passes
