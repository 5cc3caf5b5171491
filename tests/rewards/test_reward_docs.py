"""docs/rewards.md: every block of code in it is run."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from scoring_helpers import group

from data_recipes import RECIPES
from rewards import REWARDS
from rewards.judging.settings import JudgeSettings
from rewards.workers.preflight import setting_problem
from sapo_vl.config import load_config
from sapo_vl.data.folder import split_names
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.scoring.scorer import Scorer, ScoringConfig

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "rewards.md").read_text()
START = (ROOT / "docs" / "start.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
FILES = {m[1]: code for kind, code in BLOCKS if kind == "python" and (m := re.match(r"# (\S+\.py)\n", code))}
CONFIGS = [yaml.safe_load(code)["rewards"] for kind, code in BLOCKS if kind == "yaml"]
[PRINTED] = [code for kind, code in BLOCKS if kind == "text"]


def run(code: str, folder: Path, *path: Path) -> str:
    """Output of a Python program, run in `folder` with `path` as its only additional import path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_every_block_is_covered_here():
    assert list(FILES) == ["my_reward.py", "try_reward.py", "rewards/parity.py", "rewards/__init__.py"]
    assert len(CONFIGS) == 3 and len(BLOCKS) == len(FILES) + len(CONFIGS) + 1
    assert all(f"| `{name}` |" in DOC for name in REWARDS), "a built-in reward is missing from the tables"


def test_the_routing_example():
    with Scorer(ScoringConfig.model_validate(CONFIGS[0])) as scorer:
        scorer.check([("count", ""), ("grid", "")], "puzzles")
        [scored] = scorer.score([group(["<answer>3</answer>"], task="count", answer="3")], max_tokens=100)
    assert scored.rollouts[0].parts == {"accuracy": 1.0, "format": 0.0, "overlong": 0.0}


def test_the_judge_can_run_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = ScoringConfig.model_validate(CONFIGS[1])
    assert setting_problem("judge", config.params["judge"], config.timeout_s) == ""
    defaults = {f.name: f.default for f in fields(JudgeSettings) if f.default is not MISSING}
    [table] = re.findall(r"^\| argument \| default .*\n\|---.*\n((?:\|.*\n)+)", DOC, re.MULTILINE)
    shown: dict[str, object] = {}
    for line in table.splitlines():
        names, values = (cell.split(",") for cell in line.split("|")[1:3])
        shown |= {n.strip("` "): yaml.safe_load(v) for n, v in zip(names, values, strict=True)}
    assert shown == defaults


def test_a_reward_outside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("my_reward.py", "try_reward.py"):
        (tmp_path / name).write_text(FILES[name])
    assert run(FILES["try_reward.py"], tmp_path, tmp_path, ROOT) == PRINTED
    monkeypatch.chdir(tmp_path)
    text = "<think> hm </think> <answer> 3 </answer>"
    with Scorer(ScoringConfig.model_validate(CONFIGS[2])) as scorer:
        scorer.check([("count", "number")], "puzzles")
        [scored] = scorer.score([group([text, "x"], task="count", reward="number", answer="4")], max_tokens=100)
    # scale 4: one off leaves 0.75 of 0.9, and the format is right
    assert [r.reward for r in scored.rollouts] == pytest.approx([0.9 * 0.75 + 0.1, 0.0])
    assert scored.rollouts[0].parts["accuracy/distance"] == 1.0


@pytest.mark.parametrize("text", [DOC, START], ids=["docs/rewards.md", "docs/start.md"])
def test_the_command_works_with_the_reward_beside_it(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On the data its own arguments build: every problem can be scored, and the reference answer is worth 1."""
    [arguments] = re.findall(
        r"^(?: {4})?OUT_DIR=\S+ bash scripts/train_vl_moe.sh (.*my_reward.py.*)$", text, re.MULTILINE
    )
    [code] = re.findall(r"^```python\n(# (?:mine/)?my_reward.py\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    path = tmp_path / re.findall(r"rewards.path=(\S+):", arguments)[0]
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs" / "tiny_moe.yaml", arguments.split())
    sizes = {"n_cold_start": 6, "n_train": 12, "n_test": 6}
    RECIPES[config.recipe.name](tmp_path / "data", **config.recipe.args | sizes)
    problems = [ProblemSet(tmp_path / "data", s).get(i) for s in split_names(tmp_path / "data") for i in range(6)]
    golds = [group([f"<answer> {p.answer} </answer>"], task=p.task, reward=p.reward, answer=p.answer) for p in problems]
    with Scorer(config.rewards) as scorer:
        scorer.check([(p.task, p.reward) for p in problems], "puzzles")
        scored = scorer.score(golds, max_tokens=100)
    assert [g.rollouts[0].parts["accuracy"] for g in scored] == [1.0] * len(problems)


def test_a_reward_in_the_repository(tmp_path: Path):
    shutil.copytree(ROOT / "rewards", tmp_path / "rewards")
    (tmp_path / "rewards" / "parity.py").write_text(FILES["rewards/parity.py"])
    with (tmp_path / "rewards" / "__init__.py").open("a") as registry:
        registry.write(FILES["rewards/__init__.py"])
    code = """
from rewards import REWARDS, RewardInput
from rewards.workers.pool import RewardPool
from rewards.workers.worker import Job, Plan
fields = {"num_tokens": 1, "max_tokens": 9, "finish": "stop", "answer": "3"}
texts = ["<answer>5</answer>", "<answer>6</answer>", "", "asdf"]
jobs = [Job("parity", RewardInput(text=text, **fields)) for text in texts]
with RewardPool(Plan({"accuracy": 1.0}, {}, 10.0), workers=1) as pool:
    print([result.score for result in pool.run(jobs)])
"""
    assert run(code, tmp_path, tmp_path) == "[1.0, 0.0, 0.0, 0.0]\n"
