"""bench/vs_trl_learning.py without TRL: its figures on made-up results, what it runs again, what TRL is asked for, and
our side in its mini form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data_recipes import RECIPES
from sapo_vl.config import RunConfig, load_config, save_config
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.evaluation.presets import PRESETS
from sapo_vl.model.folder import examine
from sapo_vl.pipeline import build_tiny_model
from sapo_vl.record.stats import wilson_interval

ROOT = Path(__file__).parents[2]


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import vs_trl_learning

    return vs_trl_learning


@pytest.fixture
def report(learning: Any) -> Any:
    import vs_trl_learning_report

    return vs_trl_learning_report


def share(right: int, n: int = 100) -> dict[str, Any]:
    return {"mean": right / n, "n": n, "ci95": list(wilson_interval(right, n))}


def made_up(side: str, seed: int, seconds: float, right: int) -> dict[str, Any]:
    curve = [{"step": 50, "reward": 0.4}, {"step": 100, "reward": 0.6}]
    figures = {"seconds": seconds, "cpu": seconds / 2, "peak_mb": 900.0, "curve": curve}
    return {"side": side, "seed": seed, "steps": 100} | figures | {"sampled": share(right), "greedy": share(right + 10)}


RESULTS = [
    made_up("ours", 0, 10.0, 60),
    made_up("trl", 0, 20.0, 58),
    made_up("trl", 1, 33.0, 60),
    made_up("ours", 1, 11.0, 64),
    made_up("ours", 2, 10.0, 61),
    made_up("trl", 2, 25.0, 61),
    made_up("ours", 3, 1.0, 90),  # its pair is not finished
]


def test_ratios_are_of_seeds_that_both_have_finished(report: Any) -> None:
    found = report.comparison(RESULTS)
    assert found["seeds"] == [0, 1, 2]
    assert found["ratio"] == {"median": 2.5, "min": 2.0, "max": 3.0} == found["ratio_cpu"]
    assert report.comparison(RESULTS[:1]) is None


def test_the_difference_over_seeds_by_hand(report: Any) -> None:
    """0.02, 0.04 and 0: mean 0.02, s 0.02, and t(2) = 4.3027."""
    found = report.comparison(RESULTS)["accuracy"]["sampled"]
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert found["difference"] == pytest.approx(0.02)
    assert found["ci95"] == pytest.approx([0.02 - half, 0.02 + half], abs=1e-5)
    assert (found["interval_of"], found["within"]) == ("seeds", True)
    assert (found["ours"], found["trl"]) == (pytest.approx(185 / 300), pytest.approx(179 / 300))
    # 0.21 and 0.20: t(1) = 12.7062 times 0.005.
    apart = [made_up("ours", 0, 1.0, 51), made_up("ours", 1, 1.0, 50)]
    apart += [made_up("trl", seed, 1.0, 30) for seed in (0, 1)]
    found = report.comparison(apart)["accuracy"]["sampled"]
    assert found["ci95"] == pytest.approx([0.205 - 0.063531, 0.205 + 0.063531], abs=1e-5)
    assert not found["within"]


def test_the_difference_of_one_seed_by_hand(report: Any) -> None:
    """Newcombe 1998, table II (a), method 10: 56/70 - 48/80 = 0.2 [0.0524, 0.3339]."""
    found = report.difference(share(56, 70), share(48, 80))
    assert found["difference"] == pytest.approx(0.2)
    assert found["ci95"] == pytest.approx([0.0524, 0.3339], abs=1e-4)
    assert not report.within(found["ci95"]) and report.within([-0.01, 0.2])
    alone = report.comparison(RESULTS[:2])["accuracy"]["sampled"]
    assert alone["interval_of"] == "items"
    assert alone["ci95"] == report.difference(share(60), share(58))["ci95"] and alone["within"]


def test_curves_are_of_whole_windows(report: Any) -> None:
    assert report.curve([0.0, 1.0, 2.0, 3.0, 7.0], 2) == [
        {"step": 2, "reward": 0.5}, {"step": 4, "reward": 2.5}, {"step": 5, "reward": 7.0},
    ]  # fmt: skip
    assert [p["step"] for p in report.curve([0.0] * 300, 50)] == [50, 100, 150, 200, 250, 300]


def test_table_and_plot(report: Any, tmp_path: Path) -> None:
    text = report.table(RESULTS)
    assert "TRL takes 2.50 times our seconds (median of 3 seeds; min 2.00, max 3.00)" in text
    assert "sampled: ours 0.617, TRL 0.597, difference +0.020 [-0.030, +0.070] over seeds: within the interval" in text
    report.draw(RESULTS, {"sampled": share(40), "greedy": share(45)}, tmp_path)
    assert (tmp_path / "learning.png").stat().st_size > 5000
    assert "</svg>" in (tmp_path / "learning.svg").read_text()


def test_seconds_leave_out_the_first_rollout_batch(learning: Any) -> None:
    told = ((90.0, 1), (2.0, 7), (3.0, 5))
    steps = [{"seconds": s, "cpu": s, "peak_mb": m, "live": 3, "reward": 0.1} for s, m in told]
    made = learning.record("ours", 0, steps, {})
    assert (made["seconds"], made["cpu"], made["peak_mb"], made["steps"]) == (5.0, 5.0, 7, 3)


def test_what_is_finished_is_not_run_again(learning: Any, tmp_path: Path) -> None:
    """And the sides take turns at being first."""
    everything = [("ours", 0), ("trl", 0), ("trl", 1), ("ours", 1), ("ours", 2), ("trl", 2)]
    assert learning.to_do([], 3) == everything
    assert learning.to_do(RESULTS[:3], 3) == everything[3:]
    assert learning.to_do(RESULTS, 3) == []
    settings = {"steps": 100, "mini": False}
    assert learning.read_results(tmp_path, settings) == []
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RESULTS))
    assert learning.read_results(tmp_path, settings) == RESULTS
    with pytest.raises(ValueError, match="was begun with"):
        learning.read_results(tmp_path, settings | {"steps": 50})


def test_a_finished_folder_only_reports(learning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(learning.JOB)
    save_config(config, tmp_path / "start" / "prepared.yaml")
    (tmp_path / "start_accuracy.json").write_text(json.dumps({"sampled": share(40), "greedy": share(45)}))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RESULTS[:2]))
    learned: list[str] = []

    def learn(name: str, config: RunConfig, folder: Path, _: Any) -> Any:
        learned.append(f"{name} {config.seed} {config.steps}")
        return [{"seconds": 1.0, "cpu": 1.0, "peak_mb": 1.0, "live": 1, "reward": 0.5}] * 2, folder

    monkeypatch.setattr(learning, "learn", learn)
    monkeypatch.setattr(learning, "measured", lambda *_: {"sampled": share(50), "greedy": share(50)})
    found = [learning.run(tmp_path, tmp_path, 100, seeds, False) for seeds in (1, 2, 2)]
    assert learned == ["trl 1 100", "ours 1 100"]
    assert [f["seeds"] for f in found] == [[0], [0, 1], [0, 1]]
    assert json.loads((tmp_path / "comparison.json").read_text()) == found[-1]


def test_trl_is_asked_for_the_settings_of_the_job(learning: Any, tmp_path: Path) -> None:
    save_config(load_config(learning.JOB), tmp_path / "prepared.yaml")
    job = learning.train_config(tmp_path / "prepared.yaml", 2, 300)
    theirs = learning.learning_arguments(job, True, [5, 6], tmp_path)
    assert (theirs["learning_rate"], theirs["max_completion_length"]) == (1.5e-4, 14)
    assert (theirs["num_generations"], theirs["per_device_train_batch_size"]) == (8, 128)
    assert (theirs["steps_per_generation"], theirs["num_iterations"], theirs["max_steps"]) == (2, 1, 600)
    assert (theirs["adam_beta1"], theirs["adam_beta2"], theirs["adam_epsilon"]) == (*job.optim.betas, job.optim.eps)
    assert (theirs["max_grad_norm"], theirs["weight_decay"]) == (job.optim.clip, job.optim.weight_decay)
    assert (theirs["loss_type"], theirs["sapo_temperature_pos"], theirs["sapo_temperature_neg"]) == ("sapo", 1.0, 1.05)
    assert (theirs["scale_rewards"], theirs["beta"], theirs["seed"]) == ("group", 0.0, 2)
    assert theirs["lr_scheduler_type"] == "constant" and not theirs["shuffle_dataset"]
    assert theirs["generation_kwargs"] == {"suppress_tokens": [5, 6]} and theirs["router_aux_loss_coef"] == 0.0
    assert (job.processes, job.seed, job.steps) == (1, 2, 300)
    same = ("model", "data", "rewards", "advantage", "loss", "batch", "optim", "rollout", "replay", "mismatch")
    default = load_config(learning.JOB, ["rollout.engine=transformers"])
    assert all(getattr(job, section) == getattr(default, section) for section in same)


@pytest.mark.parametrize(
    "setting", ["loss.name=grpo", "loss.params={target_gate: 0.9}", "optim.schedule=linear", "advantage.scale=mean"]
)
def test_a_setting_that_trl_would_not_follow_is_refused(learning: Any, setting: str, tmp_path: Path) -> None:
    config = load_config(learning.JOB, [setting])
    with pytest.raises(ValueError, match=setting.split("=")[0].replace("params", "name")):
        learning.learning_arguments(config, True, [], tmp_path)


def mini_job(learning: Any, folder: Path) -> RunConfig:
    """The mini form's training on a model that knows nothing: no cold start, which takes its time."""
    RECIPES["visual_puzzles"](folder / "data", n_cold_start=6, n_train=24, n_test=3, image_size=32, tasks="count")
    build_tiny_model("moe", folder / "data", folder / "start", 0)
    paths = ["recipe.name=", f"model.path={folder / 'start'}", "model.tiny=", f"data.path={folder / 'data'}"]
    kept = [pair for pair in learning.MINI if not pair.startswith(("recipe", "cold_start"))]
    save_config(load_config(learning.JOB, [*kept, *paths]), folder / "prepared.yaml")
    return learning.train_config(folder / "prepared.yaml", 1, 2)


def test_trl_gets_the_rows_that_our_side_draws(learning: Any, tmp_path: Path) -> None:
    import datasets

    config = mini_job(learning, tmp_path)
    spec = json.loads(json.dumps(learning.peer_spec(config, tmp_path)))
    written = datasets.load_from_disk(spec["rows"])
    problems = ProblemSet(config.data.path, "train")
    assert len(written) == 2 * 4 and len({*written["row"]}) == 8
    for row in written:
        problem = problems.get(row["row"])
        assert row["prompt"][0]["content"] == problem.messages[0]["content"][-1]["text"]
        assert row["images"][0].tobytes() == problem.images[0].tobytes()
    assert len(spec["first"]) == 4 and spec["rewards"]["combine"] == {"accuracy": 0.9, "format": 0.1}
    assert spec["config"]["max_steps"] == 4 and spec["config"]["router_aux_loss_coef"] == 0 and spec["eos"]


def test_models_are_measured_by_the_job_itself(learning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All items, greedily and with 16 responses each, whatever the training's own evaluation was cut down to."""
    save_config(load_config(learning.JOB, ["data.path=d", "recipe.name=", "model.tiny="]), tmp_path / "prepared.yaml")

    def eval_stage(words: list[str], log: Path) -> None:
        stage, _, path, _, out, *pairs = words
        asked = load_config(path, pairs)
        assert (stage, asked.model.path) == ("eval", str(tmp_path / "model"))
        assert (asked.eval.max_per_task, asked.eval.limit, asked.seed) == (0, 0, 0)
        told: dict[str, Any]
        if benchmarks := asked.eval.benchmarks:
            assert {name: (b.source, b.k) for name, b in benchmarks.items()} == {"visual_puzzles": ("d", 16)}
            assert asked.eval.preset == "sapo" and PRESETS["sapo"].temperature == 1 and not asked.eval.blank
            told = {"benchmarks": {"visual_puzzles": {"pass@1": share(40) | {"method": "t"}}}}
        else:
            assert asked.eval.modes == ("greedy",)
            told = {"greedy": share(50) | {"left_out": 0}}
        Path(out).mkdir()
        (Path(out) / "eval.json").write_text(json.dumps(told))

    monkeypatch.setattr(learning, "run_ours", eval_stage)
    found = learning.measured(tmp_path / "prepared.yaml", tmp_path / "model", tmp_path / "eval")
    assert found == {"sampled": share(40), "greedy": share(50)}


@pytest.mark.slow
def test_our_side_learns(learning: Any, tmp_path: Path) -> None:
    """Its rows are those that TRL gets, and its model is one that the evaluation takes."""
    config = mini_job(learning, tmp_path)
    folder = tmp_path / "ours"
    folder.mkdir()
    steps, model = learning.learn("ours", config.model_copy(update={"log": rollouts_kept(config)}), folder, None)
    assert [step["updates"] for step in steps] == [2, 2] or all(step["live"] < 4 for step in steps)
    assert all(0 <= step["reward"] <= 1 and step["peak_mb"] > 0 for step in steps)
    problems = ProblemSet(config.data.path, "train")
    drawn = [problems.get(row).id for row in learning.drawn_rows(config)]
    for number in (1, 2):
        lines = (folder / "run" / "rollouts" / f"step_{number:06d}.rank0.jsonl").read_text().splitlines()
        assert {json.loads(line)["id"] for line in lines} == {*drawn[4 * (number - 1) : 4 * number]}
    assert examine(model).shapes.keys() == examine(config.model.path).shapes.keys()


def rollouts_kept(config: RunConfig) -> Any:
    return config.log.model_copy(update={"save_rollouts_every": 1})
