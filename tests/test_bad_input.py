"""Input that cannot be used: one message with what, where and what to do, before weights are read if possible."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from scoring_helpers import config as scoring_config
from scoring_helpers import group

from data_recipes import RECIPES
from sapo_vl.commands.cli import main
from sapo_vl.config import load_config
from sapo_vl.data.feed import ProblemFeed
from sapo_vl.data.problem_set import FEATURES, ProblemSet, TooManyBadRows, row_from_problem
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.model.batching import trainable
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import load_model
from sapo_vl.pipeline import build_tiny_model
from sapo_vl.rollout.vllm import contract
from sapo_vl.scoring.failure_watch import ScoringStopped
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.stages import preflight
from sapo_vl.types import ScoreStatus

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
TASKS = ("compare", "count", "ground")
MODEL_SETTINGS = ["model.min_pixels=256", "model.max_pixels=16384", "model.max_prompt_tokens=256"]
IN_PROCESS = ["rollout.engine=vllm", "rollout.vllm.tensor_parallel=3", "rollout.prompts_per_step=8"]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bad_input") / "data"
    RECIPES["visual_puzzles"](out, seed=2, n_cold_start=6, n_train=24, n_test=6)
    return out


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    return build_tiny_model("moe", data, data.parent / "model", seed=0)


@pytest.fixture(scope="module")
def chat(model: Path) -> Chat:
    settings = load_config(None, [f"model.path={model}", *MODEL_SETTINGS]).model
    return Chat.load(load_model(settings), settings)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder that a test may spoil."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture
def refused(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Starts a stage that is fine but for `overrides`; returns its message. Nothing may have been made."""
    for name in ("RANK", "OUT_DIR"):
        monkeypatch.delenv(name, raising=False)

    def call(*overrides: str, stage: str = "train") -> str:
        out = tmp_path / "run"
        capsys.readouterr()
        assert main([stage, "--out", str(out), *fine(data, model), *overrides]) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and printed.err.startswith(f"sapo-vl {stage}: ")
        assert not out.exists(), "a stage that cannot run must not have started"
        return printed.err

    return call


def fine(data: Path, model: Path) -> list[str]:
    shape = ["processes=1", "rollout.prompts_per_step=6", "rollout.group_size=2", "rollout.max_new_tokens=8"]
    cold_start = ["cold_start.batch_size=6", "cold_start.target_pass_rate=0.5"]
    return [f"data.path={data}", f"model.path={model}", *MODEL_SETTINGS, *shape, *cold_start]


def save(folder: Path, **splits: list[Row]) -> Path:
    """A data set folder with these rows, whatever is wrong with them."""
    made = {name: datasets.Dataset.from_list(rows, features=FEATURES) for name, rows in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def rows_of(data: Path, split: str = "train") -> list[Row]:
    problems = ProblemSet(data, split)
    return [row_from_problem(problems.get(i)) for i in range(len(problems))]


def test_the_input_the_tests_spoil_is_fine(data, model):
    for stage in ("sft", "train", "eval"):
        preflight(load_config(None, fine(data, model)), stage)


# --- the data set


def test_a_data_folder_that_is_none(refused, tmp_path, data):
    assert "DataError: data.path is empty; give the folder of a data set, `sapo-vl recipe" in refused("data.path=")
    assert f"data.path {tmp_path / 'no'} is not a folder" in refused(f"data.path={tmp_path / 'no'}")
    file = tmp_path / "file"
    file.write_text("x")
    assert f"data.path {file} is not a folder" in refused(f"data.path={file}", stage="eval")
    (tmp_path / "photos").mkdir()
    assert "no dataset_dict.json, so it is no saved data set" in refused(f"data.path={tmp_path / 'photos'}")
    # One split instead of the folder with all of them: an easy mistake.
    assert f"{data / 'train'} has no dataset_dict.json" in refused(f"data.path={data / 'train'}")


@pytest.mark.parametrize(
    ("stage", "override", "split"),
    [
        ("train", "data.train_split=trian", "trian"),
        ("train", "data.eval_split=validation", "validation"),
        ("eval", "data.eval_split=validation", "validation"),
        ("sft", "cold_start.split=sft", "sft"),
        ("sft", "data.train_split=trian", "trian"),
    ],
)
def test_a_missing_split_lists_those_there_are(stage, override, split, refused, data):
    message = refused(override, stage=stage)
    assert f"{data} has no split {split!r}, only ['cold_start', 'train', 'test', 'test_blank', " in message
    assert "name one of these in the data section" in message


def test_a_data_set_in_another_schema(refused, tmp_path, data):
    other = datasets.Dataset.from_dict({"image": ["a.png"], "question": ["?"], "answer": ["3"]})
    datasets.DatasetDict(train=other, test=other).save_to_disk(str(tmp_path / "other"))
    message = refused(f"data.path={tmp_path / 'other'}")
    assert "split 'train' of" in message and "lacks the columns ['id', 'task', 'images', 'messages'" in message
    assert "it has ['image', 'question', 'answer']" in message

    full = datasets.load_from_disk(str(data / "train"))
    paths = full.remove_columns("images").add_column("images", ["a.png"] * len(full))
    datasets.DatasetDict(train=paths, test=paths).save_to_disk(str(tmp_path / "paths"))
    assert "column 'images' is string, it must be a list of images" in refused(f"data.path={tmp_path / 'paths'}")


def test_rows_without_a_task(refused, tmp_path, data):
    rows = rows_of(data)
    rows[4]["task"] = ""
    message = refused(f"data.path={save(tmp_path / 'd', train=rows, test=rows_of(data, 'test'))}")
    assert "split 'train' of" in message and "1 rows have no task (first: row 4)" in message


@pytest.mark.parametrize("stage", ["train", "eval"])
def test_a_task_without_a_reward(stage, refused, tmp_path, data):
    """In the held-out split alone, where a run would meet it first in its last minute."""
    held_out = rows_of(data, "test")
    next(row for row in held_out if row["task"] == "count")["reward"] = ""
    folder = save(tmp_path / "d", train=rows_of(data), test=held_out, cold_start=rows_of(data, "cold_start"))
    message = refused(f"data.path={folder}", stage=stage)
    assert f"ScoringError: {folder}: task 'count' has no reward. Set rewards.by_task.count=NAME" in message
    assert "Known rewards: box, " in message and "choice, code, count" in message


def test_quotas_that_cannot_be_met(refused):
    assert "QuotaError" in refused("data.quotas.chess=1") and "chess" in refused("data.quotas.chess=1")
    message = refused("data.quotas={count: 100, compare: 1, ground: 1}")
    assert "a batch of 6 prompts has no room for ['compare', 'ground']" in message
    message = refused("rollout.prompts_per_step=60", "data.quotas={count: 1, compare: 0, ground: 0}")
    assert "every batch of 60 asks for 60 rows of task 'count' and there are 8" in message


# --- the model folder


def test_a_model_folder_that_is_none(refused, tmp_path):
    assert "ModelError: model.path is empty; give a Hugging Face model folder" in refused("model.path=")
    assert "there is no such folder" in refused(f"model.path={tmp_path / 'no'}")
    (tmp_path / "empty").mkdir()
    assert "has no config.json; give a Hugging Face model folder" in refused(f"model.path={tmp_path / 'empty'}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_type": "llama"}, "is a 'llama' model; supported: qwen3_vl, qwen3_vl_moe"),
        ({"model_type": "qwen9_vl"}, "cannot be read"),
        ({}, "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_a_model_of_another_kind(content, words, refused, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    message = refused(f"model.path={tmp_path / 'm'}")
    assert f"ModelError: model.path='{tmp_path / 'm'}'" in message and words in message


def test_a_model_folder_without_its_processor(refused, model, copy_of):
    folder = copy_of(model)
    for file in folder.iterdir():
        if file.name not in ("config.json", "generation_config.json") and file.suffix != ".safetensors":
            file.unlink()
    message = refused(f"model.path={folder}")
    assert f"ModelError: model.path='{folder}'" in message and "copy " in message and "tokenizer files" in message


def test_a_model_folder_without_its_chat_template(refused, model, copy_of):
    folder = copy_of(model)
    (folder / "chat_template.jinja").unlink()
    for name in ("processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("chat_template", None)
        (folder / name).write_text(json.dumps(content))
    assert f"model.path='{folder}': no chat template; add chat_template.jinja" in refused(f"model.path={folder}")


def test_a_model_folder_without_all_its_weights(refused, model, copy_of):
    folder = copy_of(model)
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors and no model.safetensors.index.json" in refused(f"model.path={folder}")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / names[0]).touch()
    assert f"lacks 2 of its weight files: {names[1]}, {names[2]}" in refused(f"model.path={folder}")


# --- settings that only meet the machine or the data here


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("train", ["processes=2"], "must be a multiple of ranks x mini-batches = 2 x 2"),
        ("sft", ["processes=2", "cold_start.batch_size=3"], "batch_size=3 must be a multiple of the 2 ranks"),
        ("train", [*IN_PROCESS, "processes=4"], "rollout.vllm.tensor_parallel=3 with 4 ranks; use 1 (an engine"),
        ("eval", IN_PROCESS, "rollout.vllm.tensor_parallel=3 with 1 ranks; use 1"),
        ("sft", ["cold_start=null"], "this config has no cold_start section; add one"),
        ("train", ["log.trackers=[wandb]"], "log.trackers asks for wandb, which is not installed: pip install"),
        ("train", ["resume=runs/old"], "resume='runs/old' is no complete checkpoint folder"),
        ("train", ["rewards.path=no.py:f"], "rewards.path names the file"),
        ("train", ["rewards.combine={accuracy: 1, fromat: 1}"], "rewards.combine names the unknown reward 'fromat'"),
        ("eval", ["rewards.by_task.count=cuont"], "rewards.by_task names the unknown reward 'cuont'"),
        ("sft", ["rewards.by_task.count=cuont"], "rewards.by_task names the unknown reward 'cuont'"),
        ("train", ["rewards.params.overlong.bufer=3"], "unexpected keyword argument 'bufer'"),
        ("train", ["optim.lrr=3"], "unknown key optim.lrr; nearest: optim.lr"),
        ("train", ["rollout.group_size=1"], "rollout.group_size=1"),
    ],
)
def test_settings_that_cannot_work_here(stage, overrides, words, refused):
    assert words in refused(*overrides, stage=stage)


def test_vllm_that_is_not_there(refused, monkeypatch):
    monkeypatch.setattr(contract, "DISTRIBUTIONS", ("no-such-vllm",))
    assert "VllmMissing: rollout.engine=vllm needs vLLM, which is not" in refused("rollout.engine=vllm")


def test_a_reward_file_that_cannot_be_imported(refused, tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_module\ndef f(x): pass\n")
    message = refused(f"rewards.path={tmp_path / 'mine.py'}:f", "rewards.by_task.count=custom")
    assert f"importing {tmp_path / 'mine.py'} failed" in message and "no_such_module" in message


def test_adapters_that_the_model_cannot_have(refused):
    words = "ModelError: model.lora.target_modules names 'gate': the router chooses experts"
    assert words in refused("cold_start=null", "model.lora.target_modules=[q_proj, gate]")
    assert "to adapt: down_proj, experts, gate_proj" in refused(
        "cold_start=null", "model.lora.target_modules=[w1]", stage="eval"
    )
    assert "model.lora.dropout=0.1 with adapters on experts" in refused("cold_start=null", "model.lora.dropout=0.1")


# --- rows that turn out bad while they are drawn


def feed_of(folder: Path, chat: Chat, max_bad_share: float, batch: int = 6) -> ProblemFeed:
    problems = ProblemSet(folder, "train")
    return ProblemFeed(problems, QuotaSampler(problems.tasks, {}, batch, seed=0), chat, max_bad_share, ALONE)


def ids_of(batch: list[Any]) -> list[str]:
    return [prompt.problem.id for prompt in batch]


def test_an_unreadable_image_is_replaced_and_counted(tmp_path, data, chat, model):
    rows = rows_of(data)
    broken = [2, 9]
    rows[broken[0]]["images"] = [{"bytes": b"\x89PNG but no picture", "path": None}]
    rows[broken[1]]["images"][0]["bytes"] = rows[broken[1]]["images"][0]["bytes"][:60]  # cut off
    folder = save(tmp_path / "d", train=rows, test=rows_of(data, "test"))
    preflight(load_config(None, [*fine(folder, model)]), "train")  # not known before it is read

    feed = feed_of(folder, chat, max_bad_share=0.1)
    seen: list[str] = []
    for _ in range(4):  # one walk through the 24 rows
        batch = feed.next()
        assert sorted(p.problem.task for p in batch) == sorted(TASKS * 2)  # quotas hold
        assert len(set(ids_of(batch))) == 6
        seen += ids_of(batch)
    assert feed.bad_rows.bad == 2 and feed.bad_rows.seen == 24 + 2
    assert not {rows[i]["id"] for i in broken} & set(seen)
    assert all(any(f"row {i} (id {rows[i]['id']!r}): image 0" in t for t in feed.bad_rows.first) for i in broken)


def test_more_bad_rows_than_allowed_stop_the_run_and_are_named(tmp_path, data, chat):
    rows = rows_of(data)
    for i in range(0, 24, 2):
        rows[i]["images"] = [{"bytes": b"no picture", "path": None}]
    feed = feed_of(save(tmp_path / "d", train=rows), chat, max_bad_share=0.2)
    with pytest.raises(TooManyBadRows) as error:
        for _ in range(4):
            feed.next()
    message = str(error.value)
    assert f"{feed.bad_rows.bad} of {feed.bad_rows.seen} rows are bad, over max_bad_share=0.2" in message
    assert feed.bad_rows.bad / feed.bad_rows.seen > 0.2
    named = [line for line in message.splitlines() if line.startswith("  row ")]
    assert 3 <= len(named) <= 5
    for line in named:
        row = int(line.split()[1])
        assert row % 2 == 0 and f"(id {rows[row]['id']!r}): image 0: " in line


def test_prompts_that_are_too_long_are_replaced_counted_and_named(tmp_path, data, chat):
    rows = rows_of(data)
    too_long = [5, 10, 15, 20]
    for i in too_long:
        (turn,) = json.loads(rows[i]["messages"])
        turn["content"].append({"type": "text", "text": " and" * 300})
        rows[i]["messages"] = json.dumps([turn])
    folder = save(tmp_path / "d", train=rows)
    feed = feed_of(folder, chat, max_bad_share=0.5)
    seen = {id for _ in range(4) for id in ids_of(feed.next())}
    assert feed.bad_rows.bad == 4 and not seen & {rows[i]["id"] for i in too_long}

    with pytest.raises(TooManyBadRows) as error:
        strict = feed_of(folder, chat, max_bad_share=0.0)
        for _ in range(4):
            strict.next()
    message = str(error.value)
    assert "over max_bad_share=0.0" in message
    named = re.search(r"row (\d+) \(id '(.*?)'\): problem '(.*?)': prompt of (\d+) tokens", message)
    assert named is not None and int(named[1]) in too_long
    assert named[2] == named[3] == rows[int(named[1])]["id"] and int(named[4]) > 256
    assert "model.max_prompt_tokens is 256; raise it or lower model.max_pixels" in message


def test_a_world_that_does_not_divide_the_batch(data, chat):
    problems = ProblemSet(data, "train")
    sampler = QuotaSampler(problems.tasks, {}, 6, seed=0)
    with pytest.raises(ValueError, match="6 prompts cannot be shared equally by 4 ranks"):
        ProblemFeed(problems, sampler, chat, 0.1, dataclasses.replace(ALONE, size=4))


# --- a reward that raises


MOODY = """
from rewards import RewardOutput
def moody(x):
    if "bad" in x.text:
        raise KeyError("no such figure")
    return RewardOutput(float(x.text == "right"))
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MOODY)
    return path


def test_a_reward_that_always_raises_stops_the_run(reward_file):
    with Scorer(scoring_config(reward_file)) as scorer:
        scorer.score([group(["bad"] * 8)] * 3, max_tokens=30)  # too few to judge by
        with pytest.raises(ScoringStopped) as error:
            scorer.score([group(["bad"] * 8)], max_tokens=30)
    message = str(error.value)
    assert "32 of the latest 32 responses could not be scored, more than rewards.max_failure_share=0.5" in message
    assert "32 x " in message and "no such figure" in message and "mine.py" in message
    assert "Correct the reward or the data set" in message


def test_responses_whose_scoring_raised_are_left_out_of_the_update(reward_file):
    texts = ["right", "bad", "wrong", "right", "bad", "wrong"]
    with Scorer(scoring_config(reward_file)) as scorer:
        for _ in range(8):  # a third fails, over and over: allowed
            scored = scorer.score([group(texts)], max_tokens=30)
        assert scorer.counts[ScoreStatus.ERROR] == 16 and scorer.counts[ScoreStatus.SCORED] == 32
    assert [r.reward for r in scored[0].rollouts] == [1.0, None, 0.0, 1.0, None, 0.0]
    assert "no such figure" in scored[0].rollouts[1].score_detail
    (assigned,), stats = assign_advantages(scored, AdvantageConfig())
    # Mean 0.5 and std 0.5 of the four that were scored: a failure is not a wrong answer.
    assert [r.advantage for r in assigned.rollouts] == [1.0, None, -1.0, 1.0, None, -1.0]
    assert stats.num_unscored == 2
    kept = trainable(assigned)
    assert kept is not None and [r.text for r in kept.rollouts] == ["right", "wrong", "right", "wrong"]


def test_a_group_that_could_not_be_scored_takes_no_part(reward_file):
    with Scorer(scoring_config(reward_file)) as scorer:
        scored = scorer.score([group(["bad", "bad", "bad", "right"])], max_tokens=30)
    (assigned,), stats = assign_advantages(scored, AdvantageConfig())
    assert stats.num_too_few_scored == 1 and trainable(assigned) is None
