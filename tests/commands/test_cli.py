"""The command line, in process: what each sub-command makes, and one message with status 2 for bad input."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_launch import run_python
from transformers import AutoModelForImageTextToText

from data_recipes import RECIPES
from data_recipes.arguments import UsageError, recipe_arguments
from sapo_vl.commands.cli import BAD_INPUT, main
from sapo_vl.config import ConfigError, RunConfig, load_config, save_config
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.model.chat import load_processor
from sapo_vl.pipeline import run
from sapo_vl.record.run_log import write_json

SMALL = ("n_cold_start=6", "n_train=9", "n_test=6", "tasks=count,compare:1,text_compare")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell: no torchrun around, no run folder named."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OUT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused, and returns the one message it prints."""

    def call(*argv: str) -> str:
        try:
            status: Any = main(argv)
        except SystemExit as stop:  # argparse
            status = stop.code
        printed = capsys.readouterr()
        assert status == 2
        assert "Traceback" not in printed.err and printed.out == ""
        return printed.err

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "data"
    assert main(["recipe", "visual_puzzles", *SMALL, "--out", str(out), "seed=3"]) == 0
    return out


# --- recipe


def test_a_recipe_is_built_with_its_arguments(data):
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["recipe"] == "visual_puzzles"
    assert manifest["arguments"]["seed"] == 3 and manifest["arguments"]["n_train"] == 9
    assert manifest["rows"]["train"] == {"compare": 3, "count": 3, "text_compare": 3}
    problem = ProblemSet(data, "train").get(0)
    assert problem.messages and problem.solution.endswith("</answer>")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["chess"], "UsageError: no recipe 'chess'; there are clevr_count, code_problems,"),
        (["visual_puzzles", "n_tran=3"], "recipe visual_puzzles: 'n_tran=3'; its arguments are seed, tasks, level"),
        (["visual_puzzles", "n_train=lots"], "recipe visual_puzzles: n_train='lots' is not of type int"),
        (["visual_puzzles", "n_train=[3"], "recipe visual_puzzles: n_train='[3' is not of type int"),
        (["visual_puzzles", "n_train=1"], "recipe visual_puzzles: n_train is 1; every one of the 3 tasks needs a row"),
        (["visual_puzzles", "tasks=chess"], "recipe visual_puzzles: "),
        (["geometry3k", "source=nowhere"], "recipe geometry3k: source 'nowhere' is neither a file, nor a folder"),
        (["visual_puzzles", "n_train"], "unexpected n_train"),
        (["visual_puzzles", "--fast"], "unexpected --fast"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(argv, words, refused, tmp_path):
    assert words in refused("recipe", *argv, "--out", str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_a_folder_that_is_there_is_not_written_over(refused, data):
    before = (data / "manifest.json").read_bytes()
    assert f"{data} exists already" in refused("recipe", "visual_puzzles", *SMALL, "--out", str(data))
    assert f"{data} exists already" in refused("init-tiny", "--data", str(data), "--out", str(data))
    assert (data / "manifest.json").read_bytes() == before


def test_recipe_arguments_take_the_types_of_the_signature():
    build = RECIPES["geometry3k"]
    given = ["seed=7", "source=2024", "check_golds=true", "max_bad_share=0", "test_from=a=b"]
    assert recipe_arguments(build, given, "geometry3k") == {
        "seed": 7,
        "source": "2024",  # text stays text, whatever it looks like
        "check_golds": True,
        "max_bad_share": 0,
        "test_from": "a=b",
    }
    for wrong in ("seed=1.5", "seed=true", "check_golds=1", "max_bad_share=much", "max_bad_share=true", "seed="):
        with pytest.raises(UsageError, match="is not of type"):
            recipe_arguments(build, [wrong], "geometry3k")


# --- init-tiny


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_init_tiny_writes_a_model_that_loads(kind, data, tmp_path, capsys):
    assert main(["init-tiny", "--kind", kind, "--data", str(data), "--out", str(tmp_path / "m"), "--seed", "5"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'm'}\n"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    assert model.config.model_type == ("qwen3_vl_moe" if kind == "moe" else "qwen3_vl")
    tokenizer = load_processor(str(tmp_path / "m")).tokenizer
    question = ProblemSet(data, "train").get(0).messages[-1]["content"][-1]["text"]
    assert len(question) > 10 and tokenizer.decode(tokenizer(question).input_ids) == question


def test_init_tiny_wants_a_data_set(refused, tmp_path):
    argv = ("init-tiny", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "m"))
    assert f"{tmp_path / 'none'} is not a folder" in refused(*argv)
    (tmp_path / "none").mkdir()
    assert "has no dataset_dict.json" in refused(*argv)
    (tmp_path / "none" / "dataset_dict.json").write_text("{")
    assert "dataset_dict.json cannot be read as JSON" in refused(*argv)
    assert "invalid choice: 'huge'" in refused(*argv, "--kind", "huge")
    assert not (tmp_path / "m").exists()


# --- configs


@pytest.mark.parametrize("command", ["sft", "train", "eval", "run"])
def test_print_config_prints_a_config_that_can_be_read_back(command, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([command, "--print-config", "optim.lr=2e-6", "cold_start.steps=4"])
    assert stop.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    config = load_config(printed)
    assert config == load_config(None, ["optim.lr=2e-6", "cold_start.steps=4"])
    assert yaml.safe_load(printed.read_text()).keys() == RunConfig.model_fields.keys()


def test_pairs_and_options_may_stand_in_any_order(capsys):
    shipped = str(Path(__file__).parents[2] / "configs" / "tiny_moe.yaml")
    texts = []
    for argv in (["steps=3", "--config", shipped, "seed=4"], ["--config", shipped, "seed=4", "steps=3"]):
        with pytest.raises(SystemExit):
            main(["train", "--print-config", *argv])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "\nsteps: 3\n" in texts[0] and texts[0].startswith("seed: 4\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "optim.lrr=1"], "sapo-vl train: ConfigError: defaults with optim.lrr=1: unknown key optim.lrr"),
        (["run", "steps=x"], "steps: Input should be a valid integer"),
        (["sft", "--config", "no.yaml"], "no.yaml: no such config file"),
        (["train"], "no run folder: pass --out DIR or set OUT_DIR"),
        (["train", "steps"], "unexpected steps"),
        (["reproduce"], "the following arguments are required: --config"),
        (["reproduce", "--config", "x.yaml"], "no folder for the results: pass --out DIR or set OUT_DIR"),
        (["reproduce", "--config", "x.yaml", "--out", "r", "--seeds", "a"], "--seeds a: write whole numbers"),
        (["reproduce", "--config", "x.yaml", "--out", "r"], "x.yaml cannot be read as YAML"),
        (["report"], "the following arguments are required: run_dir"),
        (["trian"], "invalid choice: 'trian'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_a_command_that_makes_no_sense_ends_with_one_message(argv, words, refused):
    assert words in refused(*argv)


def test_errors_of_the_input_are_where_the_table_says() -> None:
    """One that has moved would be shown with a traceback."""
    for module, names in BAD_INPUT.items():
        for name in names.split():
            error = getattr(importlib.import_module(module), name)
            assert issubclass(error, Exception) and error.__module__ == module


def test_a_typing_error_is_refused_without_loading_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def good(x):\n    return 1.0\n")
    code = (
        "import sys; from sapo_vl.commands.cli import main; "
        f"print(main(['reward', 'test', {str(tmp_path / 'own.py:nosuch')!r}]), 'deepspeed' in sys.modules)"
    )
    assert run_python("-c", code, fresh=True).stdout.strip().endswith("2 False")


def test_an_empty_out_dir_is_none(refused, monkeypatch):
    monkeypatch.setenv("OUT_DIR", "")
    assert "no run folder" in refused("train")


# --- run


def test_run_wants_problems_and_a_model(refused, tmp_path):
    out = str(tmp_path / "r")
    assert "neither data.path nor recipe.name" in refused("run", "--out", out, "model.tiny=moe")
    assert "neither model.path nor model.tiny" in refused("run", "--out", out, "recipe.name=visual_puzzles")
    assert "no recipe 'chess'; there are" in refused("run", "--out", out, "recipe.name=chess", "model.tiny=moe")
    wrong = ("recipe.name=visual_puzzles", "recipe.args.n_tran=1", "model.tiny=moe")
    assert "'n_tran=1'; its arguments are seed" in refused("run", "--out", out, *wrong)
    assert not Path(out).exists()


FINISHED = ("cold_start.steps=3", "cold_start.optim.lr=0.5", "batch.tokens_per_micro_batch=5000", "zero.stage=2")


@pytest.fixture
def attempt(tmp_path: Path, data: Path) -> Callable[..., str]:
    """A run in tmp_path/r, and what it says. That there is no such model ends it once the folder was compared."""

    def call(*words: str) -> str:
        with pytest.raises(ValueError) as error:
            run(load_config(None, [f"data.path={data}", "model.path=./none", *words]), tmp_path / "r")
        return str(error.value)

    return call


ABSENT = "model.path='./none': there is no such folder"


def test_what_was_made_in_a_run_folder_is_of_one_configuration(tmp_path, attempt):
    out = tmp_path / "r"
    assert attempt(*FINISHED) == ABSENT
    assert attempt(*FINISHED, "seed=7", "cold_start.steps=9") == ABSENT  # nothing was made yet: the folder is free
    assert attempt(*FINISHED) == ABSENT
    (out / "cold_start.json").write_text("{}")
    before = (out / "run.yaml").read_bytes()
    message = attempt(*FINISHED, "seed=5", "cold_start.optim.lr=0.25", "model.dtype=bfloat16", "steps=9")
    assert message == (
        f"{out} has what was made with other settings (cold_start.json): seed=5 here, 0 there; "
        "model.dtype=bfloat16 here, float32 there; cold_start.optim.lr=0.25 here, 0.5 there. "
        "Give another run folder (OUT_DIR)"
    )
    for other, key in (("model.path=./other", "model.path"), ("data.quotas.count=2", "data.quotas")):
        assert f"(cold_start.json): {key}=" in attempt(*FINISHED, other)
    (out / "config.yaml").write_text("")  # it has come to its training
    assert attempt("zero.stage=1").endswith(f"this one alone: sapo-vl train --config {out}/config.yaml --out {out}")
    assert (out / "run.yaml").read_bytes() == before


def test_what_is_still_to_come_may_be_of_other_settings(tmp_path, attempt):
    """A cold start has ended, and the training runs out of memory or scorers: what its errors say to change."""
    out = tmp_path / "r"
    assert attempt(*FINISHED) == ABSENT
    (out / "cold_start.json").write_text("{}")
    (out / "checkpoints").mkdir()
    changed = (
        *("batch.tokens_per_micro_batch=4000", "zero.stage=3", "zero.offload_optimizer=true"),
        *("rewards.params.overlong.buffer=64", "rewards.max_failure_share=0.75", "rollout.max_new_tokens=100"),
        *("rollout.vllm.gpu_memory_utilization=0.25", "loss.name=grpo", "optim.lr=0.125", "model.max_pixels=9999"),
        *("model.gradient_checkpointing=true", "steps=3", "eval.every=1", "checkpoint.every=2", "resume=no"),
    )
    before = (out / "run.yaml").read_bytes()
    assert attempt(*FINISHED, *changed) == ABSENT
    assert (out / "run.yaml").read_bytes() == before  # what was refused has trained nothing here
    assert attempt(*FINISHED) == ABSENT
    # Without a cold start before it, the training has begun from another model.
    (out / "cold_start.json").unlink()
    assert attempt().startswith(f"{out} has what was made with other settings (checkpoints): cold_start=null here, ")


def test_a_run_of_a_version_with_fewer_settings_goes_on(tmp_path, attempt):
    out = tmp_path / "r"
    assert attempt(*FINISHED) == ABSENT
    (out / "cold_start.json").write_text("{}")
    older = yaml.safe_load((out / "run.yaml").read_text())
    del (
        older["zero"],
        older["model"]["dtype"],
        older["cold_start"]["measure_every"],
        older["cold_start"]["optim"]["name"],
    )
    older["cold_start"]["warmth"] = 3  # a setting that there is no longer
    for words, said in (
        (FINISHED, ABSENT),
        ((*FINISHED, "cold_start.measure_every=7"), "measure_every=7 here, 25 there"),
    ):
        (out / "run.yaml").write_text(yaml.safe_dump(older))
        assert said in attempt(*words)


@pytest.mark.parametrize(
    ("there", "other", "said"),
    [
        ("data/dataset_dict.json", "recipe.args.n_train=8", "recipe.args.n_train=8 here, 9 there"),
        ("data/dataset_dict.json", "recipe.name=geometry3k", "recipe.name=geometry3k here, visual_puzzles there"),
        ("data/dataset_dict.json", "seed=1", "seed=1 here, 0 there"),
        ("init/config.json", "model.tiny=dense", "model.tiny=dense here, moe there"),
        ("init/config.json", "seed=2", "seed=2 here, 0 there"),
    ],
)
def test_data_and_a_tiny_model_are_not_taken_for_those_of_other_settings(there, other, said, tmp_path):
    out, given = tmp_path / "r", ["recipe.name=visual_puzzles", "recipe.args.n_train=9", "model.tiny=moe"]
    (out / there).parent.mkdir(parents=True)
    (out / there).write_text("{}")
    save_config(load_config(None, given), out / "run.yaml")
    if other == "recipe.name=geometry3k":
        given.remove("recipe.args.n_train=9")
    before = (out / "run.yaml").read_bytes(), sorted(path.name for path in out.rglob("[a-z]*"))
    with pytest.raises(ConfigError) as error:
        run(load_config(None, [*given, other]), out)
    assert said in str(error.value) and f"({there.removesuffix('/config.json')})" in str(error.value)
    assert ((out / "run.yaml").read_bytes(), sorted(path.name for path in out.rglob("[a-z]*"))) == before


# --- report


def test_report_prints_the_table_of_a_run_folder(tmp_path, capsys, refused):
    level = {"n": 40, "ci95": [0.1, 0.4], "by_task": {}}
    accuracy = {"cold_start": {"greedy": level | {"mean": 0.25}}, "final": {"greedy": level | {"mean": 0.75}}}
    write_json(tmp_path / "summary.json", {"seed": 3, "steps": 8, "loss": "sapo", "accuracy": accuracy})
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "0.250" in printed and "0.750" in printed and "+0.500" in printed
    assert "has no metrics.jsonl and no summary.json" in refused("report", str(tmp_path / "none"))
    (tmp_path / "metrics.jsonl").write_text("{broken\n")
    assert f"{tmp_path / 'metrics.jsonl'}:1 is not JSON" in refused("report", str(tmp_path))
