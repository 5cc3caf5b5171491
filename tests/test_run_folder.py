"""A run folder belongs to one model, one data set and the settings that its results are of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers_launch import run_python
from safetensors.torch import load_file, save_file

from data_recipes import RECIPES
from sapo_vl import launching, room, stages
from sapo_vl.commands.cli import main
from sapo_vl.config import RunConfig, load_config, save_config
from sapo_vl.data.problem_set import DataError
from sapo_vl.learning.checkpoint import MANIFEST, seal
from sapo_vl.model.identity import model_digest
from sapo_vl.model.loading import ModelError
from sapo_vl.pipeline import build_tiny_model
from sapo_vl.record.identity import IDENTITY_FILE, changed_settings

SHAPE = ("model.min_pixels=256", "processes=1", "rollout.prompts_per_step=4", "rollout.group_size=2")
QUICK = ("rollout.max_new_tokens=4", "eval.before=false", "eval.max_per_task=1", "eval.modes=[greedy]")
SETTINGS = [*SHAPE, *QUICK, "eval.blank_split=", "log.trackers=[]", "rewards.workers=1"]
COUNTS = {"n_cold_start": 6, "n_train": 12, "n_test": 6, "image_size": 32, "tasks": "count,text_compare"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, other_data (the same sizes), model, other_model (the same shapes)."""
    folder = tmp_path_factory.mktemp("given")
    for name, seed in (("data", 1), ("other_data", 2)):
        RECIPES["visual_puzzles"](folder / name, seed=seed, **COUNTS)
    for name, seed in (("model", 1), ("other_model", 2)):
        build_tiny_model("dense", folder / "data", folder / name, seed)
    return folder


@pytest.fixture
def inputs(given: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(given, tmp_path / "in"))


@pytest.fixture
def start(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a stage in tmp_path/run whose ranks only leave what the stage leaves; gives what it printed as errors."""
    for name in ("RANK", "OUT_DIR"):
        monkeypatch.delenv(name, raising=False)

    def launch(stage: str, config: RunConfig, out: Path) -> None:
        stages._take_run_folder(config, stage, out)
        save_config(config, out / ("config.yaml" if stage == "train" else f"config.{stage}.yaml"))
        for name in {"train": ["final", "rollouts"], "sft": ["cold_start"], "eval": ["benchmarks"]}[stage]:
            (out / name).mkdir(exist_ok=True)
        for name in {"train": ["summary.json"], "sft": ["cold_start.json"], "eval": ["eval.json"]}[stage]:
            (out / name).write_text(f"seed {config.seed}")

    monkeypatch.setattr(launching, "launch", launch)

    def call(*overrides: str, stage: str = "train", out: str = "run") -> str:
        paths = [f"model.path={inputs / 'model'}", f"data.path={inputs / 'data'}"]
        own = ["cold_start.batch_size=4"] if stage == "sft" else []
        status = main([stage, "--out", str(tmp_path / out), *SETTINGS, *own, *paths, *overrides])
        printed = capsys.readouterr()
        assert status == (2 if printed.err else 0)
        folder = tmp_path / out
        lines = printed.out.splitlines()
        if status or stage != "train":
            assert not lines
        else:
            assert lines[0].startswith("plan: ")
            assert lines[1:] == [f"trained; to look at it: sapo-vl report {folder}, or sapo-vl view {folder}"]
        return printed.err

    return call


def one_line(printed: str) -> str:
    (line,) = printed.splitlines()
    return line


CHANGES = {
    "seed=7": "seed=7 here, 0 there",
    "model.dtype=bfloat16": "model.dtype=bfloat16 here, float32 there",
    "model.freeze=[vision]": 'model.freeze=["vision"] here, [] there',
    "model.lora.rank=4": 'model.lora={"rank": 4, "alpha": 32,',
    "data.quotas.count=3 data.quotas.text_compare=1": 'data.quotas={"count": 3.0, "text_compare": 1.0} here, {} there',
    "data.eval_split=cold_start": "data.eval_split=cold_start here, test there",
    "data.train_split=cold_start": "data.train_split=cold_start here, train there",
    "optim.name=muon zero.stage=0": "optim.name=muon here, adamw there",
}


def test_results_of_other_settings_are_not_gone_on_with(start, tmp_path):
    assert start() == "" and start() == ""  # the same again: a resume
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    for change, words in CHANGES.items():
        line = one_line(start(*change.split()))
        assert line.startswith(
            f"sapo-vl train: ConfigError: {tmp_path / 'run'} has results of a stage train with other"
        )
        assert words in line and "give another --out, or resume=no to start anew in this one" in line
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before
    assert start("seed=7", out="another") == ""
    assert start("zero.stage=2") == "", "a checkpoint of another stage can be taken up"


def test_parts_of_the_adapters_are_named(start):
    assert start("model.lora={rank: 4, target_modules: [q_proj, v_proj]}") == ""
    line = one_line(start("model.lora={rank: 8, target_modules: [q_proj]}"))
    assert 'model.lora.rank=8 here, 4 there; model.lora.target_modules=["q_proj"] here, ["q_proj", "v_proj"]' in line
    assert "model.lora=null here" in one_line(start())


def test_what_a_resume_may_change(start):
    assert start() == ""
    free = [
        "steps=3",
        "optim.lr=0.5",
        "optim.schedule=constant",
        "eval.every=2",
        "eval.max_per_task=3",
        "log.project=b",
    ]
    free += ["checkpoint.every=1", "rollout.temperature=0.9", "rollout.max_new_tokens=9", "batch.mini_batches=1"]
    free += ["model.max_pixels=99999", "model.gradient_checkpointing=true", "loss.name=grpo", "rewards.timeout_s=3"]
    assert start(*free) == ""


def test_settings_that_a_run_goes_on_with_are_told():
    was = load_config(None, [*SETTINGS, "loss.params={tau_pos: 2}", "model.lora.rank=2"])
    before = was.model_dump(mode="json")
    assert changed_settings(was, before) == []
    del before["advantage"]["keep_dead_groups"], before["replay"]  # of a version that did not know them
    now = ["advantage.keep_dead_groups=false", "replay=r2", "resume=no", "optim.lr=0.25", "seed=3", "steps=9"]
    told = changed_settings(load_config(None, [*SETTINGS, *now]), before)
    lora = json.dumps(before["model"]["lora"])
    assert sorted(told) == [
        'loss.params={} here, {"tau_pos": 2} there',
        f"model.lora=null here, {lora if len(lora) <= 120 else lora[:117] + '...'} there",
        f"optim.lr=0.25 here, {before['optim']['lr']!r} there",
        "seed=3 here, 0 there",
        f"steps=9 here, {before['steps']} there",
    ]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_says_with_which_settings_it_goes_on(where, start, tmp_path, caplog):
    run = tmp_path / "run"
    assert start() == ""
    was = load_config(run / "config.yaml", [])
    now = was.model_copy(update={"steps": was.steps + 1})
    folder = run / "checkpoints" / "step_00000002"
    stages._say_what_changed(now, "train", run)
    assert not caplog.messages  # nothing to go on from
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(seal({"files": {}}))
    out = run
    if where == "elsewhere":
        out = tmp_path / "another"
        was, now = (config.model_copy(update={"resume": str(folder)}) for config in (was, now))
    stages._say_what_changed(was, "train", out)
    stages._say_what_changed(now.model_copy(update={"resume": "no"}), "train", run)
    assert not caplog.messages
    stages._say_what_changed(now, "train", out)
    changed = f"steps={now.steps} here, {was.steps} there"
    assert caplog.messages == [f"going on with the run of {run} with other settings: {changed}"]
    (run / "config.yaml").write_text("{")
    stages._say_what_changed(now, "train", out)
    assert f"settings are not known: {run / 'config.yaml'} cannot be read" in caplog.messages[1]


def test_a_model_is_known_by_what_is_in_it(start, inputs):
    assert start() == ""
    shutil.copytree(inputs / "model", inputs / "moved")
    assert start(f"model.path={inputs / 'moved'}") == ""  # a copy is the same model
    other = f"model.path={inputs / 'other_model'}"
    assert f"{other} here, {inputs / 'moved'} there" in one_line(start(other))
    shutil.rmtree(inputs / "moved")
    shutil.copytree(inputs / "other_model", inputs / "moved")
    moved = f"model.path={inputs / 'moved'}"
    assert f"{moved} now has other weights or another config.json" in one_line(start(moved))


def test_a_data_set_is_known_by_its_rows(start, inputs):
    assert start() == ""
    shutil.copytree(inputs / "data", inputs / "copy")
    assert start(f"data.path={inputs / 'copy'}") == ""
    other = f"data.path={inputs / 'other_data'}"
    assert f"{other} here, {inputs / 'copy'} there" in one_line(start(other))
    shutil.rmtree(inputs / "copy")
    shutil.copytree(inputs / "other_data", inputs / "copy")
    assert f"data.path={inputs / 'copy'} now has other rows" in one_line(start(f"data.path={inputs / 'copy'}"))


def test_resume_no_starts_anew_and_keeps_what_there_was(start, tmp_path):
    run = tmp_path / "run"
    assert start() == "" and start("seed=7", "resume=no") == ""
    assert (run / "superseded_summary.json").read_text() == "seed 0" and (run / "summary.json").read_text() == "seed 7"
    assert {"superseded_final", "superseded_rollouts", "final"} <= {p.name for p in run.iterdir()}
    assert start("seed=7") == "" and "seed=0 here, 7 there" in one_line(start())
    # The same settings once more replace their own results, as ever.
    assert start("seed=7", "resume=no") == "" and not (run / "superseded_summary.json.2").exists()


def test_what_is_read_is_not_set_aside(start, inputs, tmp_path):
    assert start() == ""
    final = tmp_path / "run" / "final"
    final.rmdir()
    shutil.copytree(inputs / "other_model", final)
    line = one_line(start(f"model.path={final}", "resume=no"))
    assert f"model.path={final} would be set aside by starting anew" in line and "give another --out" in line
    assert final.is_dir()


def test_a_folder_in_which_nothing_came_to_be_is_free(start, tmp_path):
    assert start() == ""
    for name in ("final", "summary.json"):
        path = tmp_path / "run" / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert start("seed=3") == "" and (tmp_path / "run" / "superseded_rollouts").exists()


def test_a_checkpoint_is_a_result(start, tmp_path):
    run = tmp_path / "run"
    assert start() == ""
    shutil.rmtree(run / "final")
    (run / "summary.json").unlink()
    folder = run / "checkpoints" / "step_00000002"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(seal({"files": {}}))
    assert "seed=3 here, 0 there" in one_line(start("seed=3"))
    # Named from another run folder it is no less of its own run.
    line = one_line(start("seed=3", f"resume={folder}", out="another"))
    assert f"resume={folder} is of another run than this one (seed=3 here, 0 there)" in line
    assert start(f"resume={folder}", out="another") == ""


def test_a_folder_from_before_there_was_such_a_file(start, tmp_path, inputs):
    """Its config names paths, if not what lay there."""
    assert start() == ""
    (tmp_path / "run" / IDENTITY_FILE).unlink()
    other = f"model.path={inputs / 'other_model'}"
    assert f"{other} here, {inputs / 'model'} there" in one_line(start(other))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del config["model"]["lora"], config["data"]["quotas"]  # written by a version that did not know them
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert start("model.lora.rank=2") == ""
    (tmp_path / "run" / IDENTITY_FILE).write_text("{")
    assert f"{tmp_path / 'run' / IDENTITY_FILE} cannot be read" in one_line(start())


def test_a_cold_start_and_an_evaluation_have_their_own(start, inputs):
    other = f"model.path={inputs / 'other_model'}"
    assert start(stage="sft") == "" and start(other, stage="train") == ""
    assert "has results of a stage sft with other settings (model.path=" in one_line(start(other, stage="sft"))
    assert start("zero.stage=2", "optim.name=adamw", "cold_start.steps=3", stage="sft") == ""
    assert start(other, stage="eval") == "" and start(other, "seed=8", "rollout.max_new_tokens=5", stage="eval") == ""
    assert "has results of a stage eval with other settings (model.path=" in one_line(start(stage="eval"))
    assert "(data.path=" in one_line(start(other, f"data.path={inputs / 'other_data'}", stage="eval"))
    assert "cold_start.split=train" in one_line(start("cold_start.split=train", stage="sft"))


def test_every_tensor_counts(given, inputs):
    before = model_digest(str(inputs / "model"))
    assert before == model_digest(str(given / "model")) != model_digest(str(given / "other_model"))
    config = inputs / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_version": "6.1"}, indent=3))
    assert model_digest(str(inputs / "model")) == before
    file = inputs / "model" / "model.safetensors"
    state = load_file(file)
    for name in (min(state, key=lambda n: state[n].numel()), max(state, key=lambda n: state[n].numel())):
        save_file(state | {name: state[name] + 1}, file)
        changed = model_digest(str(inputs / "model"))
        assert changed != before
        before = changed
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="is no whole safetensors file"):
        model_digest(str(inputs / "model"))
    assert model_digest("org/m", "a") == model_digest("org/m", "a") != model_digest("org/m", "b")


# --- before anything is loaded: lengths, and parts that do not learn


def test_a_prompt_and_a_response_fit_into_the_model(start, inputs):
    """The tiny models have 4096 positions."""
    line = one_line(start("model.max_prompt_tokens=4000", "rollout.max_new_tokens=97"))
    assert "model.max_prompt_tokens=4000 and rollout.max_new_tokens=97 make 4097 tokens" in line
    assert f"the model at {inputs / 'model'} has positions for 4096 (max_position_embeddings); lower one of" in line
    assert start("model.max_prompt_tokens=4000", "rollout.max_new_tokens=96") == ""
    presets = ["model.max_prompt_tokens=256", "eval.benchmarks=[aime25]", "eval.preset=qwen3_vl_instruct"]
    line = one_line(start(*presets, stage="eval"))
    assert "eval.sampling.max_new_tokens=32768 (or that of eval.preset=qwen3_vl_instruct) make 33024 tokens" in line


@pytest.mark.parametrize("engine", ["transformers", "vllm", "vllm_server"])
def test_lengths_are_known_for_every_engine(engine, start):
    settings = [f"rollout.engine={engine}", "rollout.server.urls=[http://127.0.0.1:9]", "rollout.max_new_tokens=3000"]
    assert "has positions for 4096" in one_line(start(*settings))


@pytest.mark.parametrize("command", [["serve"], ["data", "difficulty", "none", "--out", "none"]])
def test_other_commands_that_sample_know_of_lengths(command, given, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*command, f"model.path={given / 'model'}", "rollout.max_new_tokens=3000"]) == 2
    assert "has positions for 4096" in one_line(capsys.readouterr().err)


def test_a_limit_that_nobody_has_set_gives_way(start, tmp_path):
    """The default of 4096 leaves a tiny model no response; half of its positions stay for prompts."""

    def limit(*overrides: str) -> int:
        assert start(*overrides) == ""
        return yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["max_prompt_tokens"]

    assert limit("rollout.max_new_tokens=96") == 4000
    assert limit("rollout.max_new_tokens=2048") == 2048
    assert "model.max_prompt_tokens=4096" in one_line(start("rollout.max_new_tokens=2049"))
    assert "make 4192 tokens" in one_line(start("model.max_prompt_tokens=4096", "rollout.max_new_tokens=96"))
    # A saved config names every default, this one too.
    saved = tmp_path / "saved.yaml"
    save_config(load_config(None), saved)
    assert limit("--config", str(saved), "rollout.max_new_tokens=96") == 4000


def test_nothing_left_to_learn_is_known_from_the_config(start, inputs):
    everything = "model.freeze=[vision, merger, language]"
    for stage in ("train", "sft"):
        assert "leaves nothing to learn: the head of the model at" in one_line(start(everything, stage=stage))
    assert "but this model has no such parameters; remove it" in one_line(start("model.freeze=[router]"))
    assert start(everything, "model.lora.rank=2") == ""
    assert start(everything, stage="eval") == ""
    config = inputs / "model" / "config.json"
    raw: dict[str, Any] = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"tie_word_embeddings": False}))  # a head of its own is left
    weights = {n: t.clone() for n, t in load_file(inputs / "model" / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    save_file(weights, inputs / "model" / "model.safetensors", metadata={"format": "pt"})
    assert start(everything, out="untied") == ""


# --- with ranks


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_finished_run_is_evaluated_again_and_other_rows_are_refused(inputs, tmp_path):
    """One rank, one step, no setting of checkpoints: the default saves the last step."""
    out = tmp_path / "run"
    paths = (f"model.path={inputs / 'model'}", f"data.path={inputs / 'data'}")

    def train(*more: str, check: bool = True) -> str:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
        command = ("-m", "sapo_vl", "train", "--out", out, *SETTINGS, *paths, "steps=1", *more)
        return run_python(*launcher, *command, check=check).stdout

    def lines(phase: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k != "time"} for row in rows if row["phase"] == phase]

    train()
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step_00000001"]
    steps, evaluations = lines("train"), lines("eval")
    weights = (out / "final" / "model.safetensors").read_bytes()
    printed = train()
    assert "it is of step 1 and steps=1: only the last evaluation is left" in printed
    assert "with other settings" not in printed
    assert lines("train") == steps and lines("eval") == evaluations and len(evaluations) == 1
    assert (out / "final" / "model.safetensors").read_bytes() == weights

    # With the folder's own record gone the checkpoint itself still tells that rows have changed.
    shutil.rmtree(inputs / "data")
    shutil.copytree(inputs / "other_data", inputs / "data")
    (out / IDENTITY_FILE).unlink()
    printed = train("steps=2", "resume=auto", "advantage.keep_dead_groups=false", check=False)
    changed = "advantage.keep_dead_groups=false here, true there"
    assert re.search(rf"going on with the run of {out} with other settings: .*{changed}", printed)
    assert "steps=2 here, 1 there" in printed
    assert f"sapo-vl train: {DataError.__name__}: the checkpoint's sampler was saved over other rows" in printed
    assert lines("train") == steps


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_saved_does_not_cost_the_model(inputs, tmp_path):
    """A file has the name of its folder: the last checkpoint fails, which is told, and the trained model is there."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoints").write_text("in the way")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    paths = (f"model.path={inputs / 'model'}", f"data.path={inputs / 'data'}", "steps=1")
    done = run_python(*launcher, "-m", "sapo_vl", "train", "--out", out, *SETTINGS, *paths)
    assert "the checkpoint of step 1 was not saved" in done.stdout
    assert json.loads((out / "summary.json").read_text())["unwritten"] == {"checkpoints": 1}
    wanted = load_file(inputs / "model" / "model.safetensors")
    assert load_file(out / "final" / "model.safetensors").keys() == wanted.keys()


# --- room on the disk -----------------------------------------------------------------------------


def test_a_disk_without_room_for_the_model_is_refused_and_one_without_room_for_checkpoints_is_told(
    inputs: Path, start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = sum(t.numel() for t in load_file(inputs / "model" / "model.safetensors").values())
    model, checkpoint = 4 * numbers, 16 * numbers  # fp32: the weights; the weights, a copy and two moments
    free = model - 1
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    # A budget that one response fits into: less is told, too.
    settings = ("checkpoint.keep=2", "log.save_rollouts_every=0", "batch.tokens_per_micro_batch=30000")
    assert "the trained model alone takes" in one_line(start(*settings))
    free = model + 3 * checkpoint - 1
    assert start(*settings) == "" and "lower checkpoint.keep" in caplog.text
    caplog.clear()
    free = model + 3 * checkpoint
    assert start(*settings, out="other") == "" and caplog.text == ""
