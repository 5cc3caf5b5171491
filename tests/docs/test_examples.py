"""docs/examples.md: each data set is built from a few rows of the real form, each run makes a step on a tiny model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from benchmark_sets import write_set
from doc_blocks import ROOT, blocks
from fake_judge import FakeJudge, fake_judge
from fake_vllm_server import FakeServer
from helpers_launch import run_python
from helpers_runs import REWARD
from recipe_helpers import IMAGE, cell, encoded, lines, parquet, picture

from data_recipes import RECIPES
from sapo_vl.commands.cli import main
from sapo_vl.config import load_config
from sapo_vl.model.chat import load_processor
from sapo_vl.pipeline import build_tiny_model
from sapo_vl.record.run_log import read_metrics

EXAMPLES = ROOT / "docs" / "examples.md"
LINES = [line for block in blocks(EXAMPLES) if block.kind == "bash" for line in block.code.splitlines()]
RUNS = [line for line in LINES if "OUT_DIR=" in line]
TINY = [
    "processes=1",
    "steps=1",
    "model.dtype=float32",
    "model.min_pixels=256",
    "model.max_pixels=4096",
    "model.max_prompt_tokens=300",
    "rollout.prompts_per_step=4",
    "rollout.group_size=2",
    "rollout.max_new_tokens=6",
    "batch.mini_batches=2",
    "rewards.workers=1",
    "eval.before=false",
    "eval.modes=[greedy]",
    "eval.max_per_task=1",
    "eval.every=0",
    "checkpoint.every=0",
    "log.trackers=[]",
    "zero.stage=1",
    "model.lora.rank=2",
]


def rows_of_charts(folder: Path) -> str:
    schema = {"image": IMAGE, "question": pa.string(), "answer": pa.string()}
    rows = [{"image": cell(i), "question": f"How high is bar {i}?", "answer": f"{i}.5"} for i in range(10)]
    return parquet(folder, schema, train=rows)


def rows_of_geometry(folder: Path) -> str:
    schema = {"images": pa.list_(IMAGE), "problem": pa.string(), "answer": pa.string()}
    rows = [{"images": [cell(i)], "problem": f"<image>Find x, {i}.", "answer": str(i)} for i in range(12)]
    return parquet(folder, schema, train=rows[:8], test=rows[8:])


def rows_of_regions(folder: Path) -> str:
    (folder / "train2014").mkdir(parents=True)
    asked = "<image>Please provide the bounding box of the region this sentence describes: the red one {}."
    rows = []
    for i in range(10):
        (folder / f"train2014/{i}.png").write_bytes(encoded(picture(i)))
        talk = [{"from": "human", "value": asked.format(i)}, {"from": "gpt", "value": "[0, 0, 20, 15]"}]
        rows.append({"id": i, "image": f"train2014/{i}.png", "conversations": talk})
    return lines(folder / "refcoco_train.jsonl", rows)


def rows_of_mathematics(folder: Path) -> str:
    prompt = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
    schema = {
        "prompt": prompt,
        "reward_model": pa.struct([("ground_truth", pa.string()), ("style", pa.string())]),
        "extra_info": pa.struct([("index", pa.string())]),
    }
    rows = [
        {"prompt": [{"content": f"What is {i} squared?", "role": "user"}],
         "reward_model": {"ground_truth": str(i * i), "style": "rule"}, "extra_info": {"index": str(i)}}
        for i in range(2, 14)
    ]  # fmt: skip
    return parquet(folder, schema, train=rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that /data stands for, filled by the commands of the page, and tiny models beside it."""
    folder = tmp_path_factory.mktemp("examples")
    source = {
        "geometry3k": rows_of_geometry(folder / "hub/geometry"),
        "refcoco": rows_of_regions(folder / "hub/rec"),
        "columns": rows_of_charts(folder / "hub/charts"),
        "dapo_math": rows_of_mathematics(folder / "hub/dapo"),
    }
    for line in LINES:
        words = shlex.split(line.replace("/data/", f"{folder}/data/"))
        if words[:2] == ["sapo-vl", "recipe"]:
            ours = [] if words[2] == "mixture" else [f"source={source[words[2]]}", "max_bad_share=0.5"]
            sizes = ["test_rows=2"] if words[2] in ("refcoco", "columns", "dapo_math") else []
            kept = [w for w in words[1:] if not w.startswith(("source=", "test_rows="))]
            assert main([*kept, *ours, *sizes]) == 0, line
    RECIPES["visual_puzzles"](folder / "words", n_cold_start=6, n_train=12, n_test=6)
    for kind in ("dense", "moe"):
        build_tiny_model(kind, folder / "words", folder / kind, 0)
    (folder / "reward.py").write_text(REWARD)
    write_set("chartqa", folder, only_good=True)
    return folder


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    with fake_judge() as server:
        yield server


def settings(line: str, data: Path, judge: FakeJudge, servers: list[FakeServer]) -> list[str]:
    """The words behind `train` for one line of the page, made small and told where things are here."""
    _, kind, rest = re.split(r"scripts/train_vl_(moe|dense)\.sh ", line)
    rest = rest.replace("/data/", f"{data}/data/").replace("http://127.0.0.1:8001/v1", judge.url)
    rest = rest.replace("runs/judge_cache", f"{data}/judge_cache")
    words = shlex.split(rest)
    assert words[0] == "--config"
    words[1] = str(ROOT / words[1])
    own = [w for w in TINY if not w.startswith("model.lora") or "model.lora" in line]
    served = "vllm_server" in line
    if "judge" not in line:
        own += [f"rewards.path={data / 'reward.py'}:by_tokens", 'rewards.by_task={"*": custom}']
    if served:  # the servers have no model, so there is nothing to compare
        own += [f"rollout.server.urls=[{', '.join(s.url for s in servers)}]", "rollout.parity.limit=1000"]
    if "chartqa" in line:
        own += [f"eval.benchmarks={{chartqa: {{source: {data / 'chartqa.parquet'}, k: 1}}}}", "eval.limit=1"]
    engine = "vllm_server" if served else "transformers"
    return [*words, f"model.path={data / kind}", f"rollout.engine={engine}", *own]


@pytest.mark.slow
@pytest.mark.parametrize("line", RUNS, ids=[re.findall(r"runs/(\w+)", line)[0] for line in RUNS])
def test_it_makes_a_step(
    line: str, data: Path, judge: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    tokenizer = load_processor(str(data / "dense")).tokenizer
    servers = [FakeServer(tokenizer.convert_tokens_to_ids("<|image_pad|>"), mark) for mark in (0, 1)]
    for server in servers:
        server.settings["vocab_size"] = len(tokenizer)
    try:
        run_python("-m", "sapo_vl", "train", *settings(line, data, judge, servers), "--out", tmp_path / "run")
    finally:
        for server in servers:
            server.close()
    [step] = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["phase"] == "train"]
    assert step["rollouts"] == 4 * 2 and (tmp_path / "run" / "final" / "config.json").is_file()
    check(line, step, load_config(tmp_path / "run" / "config.yaml"), servers)


def check(line: str, step: dict[str, Any], config: Any, servers: list[FakeServer]) -> None:
    """What the example is about happened in that step."""
    if "judged" in line:
        assert step["judge/canary_asked"] > 0
        return
    assert step["updates/dropped"] == 0 and step["grad_norm"] > 0, step
    if "mixed" in line:  # 4 prompts as .4 and .6, by largest remainders
        assert (step["scored/task/math"], step["scored/task/geometry"]) == (2 * 2, 2 * 2)
    if "grpo_r2" in line:
        assert config.loss.name == "grpo" and step["routing/flip"] == 0
    if "lora" in line:
        assert config.model.lora.rank == 2
    if "servers" in line:
        assert all(server.answered for server in servers) and config.rollout.staleness == 1
