"""From folders of runs to a report, on runs whose numbers are set by the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiment_folders import finish, finish_run, finish_start, sequence_line, write_sequences
from PIL import Image

from sapo_vl.experiments.arms import Arm, arms_of
from sapo_vl.experiments.claims import Claim, collapse_verdict, fisher, judge, summarise
from sapo_vl.experiments.collect import Results, collect
from sapo_vl.experiments.config import ExperimentConfig, load_experiment, start_config
from sapo_vl.experiments.plan import Plan, make_plan
from sapo_vl.experiments.report import write_report
from sapo_vl.experiments.stats import Verdict

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "tiny.yaml"
SAPO, GSPO, GRPO = Arm(model="moe"), Arm(model="moe", loss="gspo"), Arm(model="moe", loss="grpo")
SEQUENCES = Arm(model="moe", sequences=True)


@pytest.fixture(scope="module")
def tiny() -> ExperimentConfig:
    return load_experiment(CONFIG, {"figures": ["1", "4"], "steps": 10})


def rewards(first: float, end: float) -> list[float]:
    """Ten steps: the last fifth, two of them, have mean `end`; the best step before is 0.7."""
    return [first, 0.5, 0.5, 0.5, 0.7, 0.5, 0.5, 0.5, end - 0.01, end + 0.01]


# Reward at the end of each seed. SAPO minus GSPO: .10 .11 .12, minus GRPO: .0 .2 -.2.
ENDS = {SAPO: (0.60, 0.61, 0.62), GSPO: (0.50, 0.50, 0.50), GRPO: (0.60, 0.41, 0.82)}


@pytest.fixture
def plan(tiny: ExperimentConfig, tmp_path: Path) -> Plan:
    """SAPO and GSPO finished with three seeds, GRPO with two and one failure."""
    plan = make_plan(tiny, [SAPO, GSPO, GRPO], tmp_path, [])
    finish_start(plan.starts[0])
    for planned in plan.runs:
        assert planned.job is not None
        if planned.arm == GRPO and planned.seed == 2:
            finish(planned.job, "failed", "exit status 1: out of memory")
            continue
        # SAPO solves both items half the time, the others one item always and one never.
        scores = [[1, 0], [0, 1]] if planned.arm == SAPO else [[1, 1], [0, 0]]
        end = ENDS[planned.arm][planned.seed]
        finish_run(planned.job, rewards(0.4, end), scores, held_out={0: 0.35, 5: 0.4}, **{"scored/task/count": 88})
    return plan


def test_a_run_s_numbers(plan):
    results = collect(plan)
    assert len(results.rows) == 8
    (row, *_) = results.of(SAPO)
    assert row.end_mean("reward") == pytest.approx(0.60), "the mean of the last two of ten steps"
    assert row.pass_at_1 == 0.5 and row.held_out == {0: 0.35, 5: 0.4, 10: 0.5} and row.k == 2
    assert row.items == {"b/i0": 0.5, "b/i1": 0.5} and row.greedy == 0.75
    assert row.tasks == {"count": (88, 88)} and row.versions["commit"] == "c0ffee"
    assert results.start_reward("start moe.seed0") == pytest.approx(0.4)
    assert results.starts[0].pass_at_1 == pytest.approx(0.35) and results.starts[0].cold_start_steps == 90
    (absent,) = results.absent
    assert (absent.label, absent.seed, absent.status) == ("moe.grpo.n4", 2, "failed")
    assert absent.reason == "exit status 1: out of memory"


def test_verdicts_of_known_differences(plan):
    results = collect(plan)
    claims = [Claim(figure="4", question="q", first=SAPO, second=other) for other in (GSPO, GRPO)]
    by = {(j.claim.second.loss, j.measure): j for j in judge(claims, results)}
    gspo = by["gspo", "reward"]
    # .10 .11 .12: t = .11 / (.01 / sqrt 3), two degrees of freedom: p = 1 - t / sqrt(t^2 + 2) = .0027435
    assert gspo.difference is not None and gspo.difference.mean == pytest.approx(0.11)
    assert gspo.difference.p == pytest.approx(0.0027435, abs=1e-6)
    # Two tests in the family: those of the other measure are another.
    assert gspo.adjusted_p == pytest.approx(2 * 0.0027435, abs=1e-5) and gspo.verdict is Verdict.SEEN
    grpo = by["grpo", "reward"]
    assert grpo.difference is not None and grpo.difference.n == 2, "the seeds that both have"
    assert grpo.verdict is Verdict.NOT_APART
    turned = judge([Claim(figure="4", question="q", first=GSPO, second=SAPO)], results)[0]
    assert turned.verdict is Verdict.CONTRADICTED
    items = by["gspo", "pass@1"].items
    assert items is not None and items[0].mean == 0 and items[0].n == 2, "-.5 and +.5"
    nobody = judge([Claim(figure="4", question="q", first=SAPO, second=Arm(model="moe", replay="r2"))], results)[0]
    assert nobody.verdict is Verdict.MISSING


def test_what_an_arm_s_row_says(plan):
    summary = summarise(SAPO, collect(plan), drop=0.05)
    assert summary is not None and summary.n == 3 and summary.collapsed == 0
    # The best tenth of ten steps is the one step of 0.7: .10, .09 and .08 below it they end.
    assert summary.fell == pytest.approx(0.09)
    assert summary.reward.mean == pytest.approx(0.61) and summary.gate == pytest.approx(0.9)
    deep = summarise(GSPO, collect(plan), drop=-0.15)  # "collapsed" if below 0.55
    assert deep is not None and deep.collapsed == 3
    assert collapse_verdict(summary, deep) == (Verdict.NOT_APART, pytest.approx(0.1)), "three seeds cannot tell"


def test_fisher_by_hand():
    """None of 3 against 3 of 3: 1 of the 20 tables on either side. 1 of 4 against 3 of 4: 16 + 1 + 16 + 1 of 70."""
    assert fisher(0, 3, 3, 3) == pytest.approx(2 / 20)
    assert fisher(1, 4, 3, 4) == pytest.approx(34 / 70)
    assert fisher(0, 5, 5, 5) == pytest.approx(2 / 252)
    assert fisher(0, 3, 0, 3) == 1.0


def report(experiment: ExperimentConfig, results: Results, out: Path) -> tuple[str, list[str]]:
    configs = {name: start_config(model, False, [], 0) for name, model in experiment.models.items()}
    path, errors = write_report(experiment, arms_of(experiment), results, configs, out)
    return path.read_text(), errors


def test_the_report(tiny, plan, tmp_path):
    text, errors = report(tiny, collect(plan), tmp_path / "out")
    assert errors == []
    rows = [line for line in text.splitlines() if line.startswith("| 4 |")]
    (reward,) = [row for row in rows if "SAPO above GSPO" in row and "training reward" in row]
    assert "| seen |" in reward and "n = 3 seeds, difference +0.110 [+0.085, +0.135]" in reward
    assert "paired t-test" in reward
    assert any("SAPO above GRPO (moe" in row and "cannot be told apart" in row for row in rows)
    assert not any("GRPO-R2" in row and "seen" in row for row in rows), "it was not run"
    assert "| moe.grpo.n4 | 2 | failed | exit status 1: out of memory |" in text
    assert "8 runs are finished, seeds 0, 1, 2, 10 steps each" in text
    assert "moe.seed0: 0.350" in text and "c0ffee (8 runs)" in text
    assert "not where\ntraining begins" in text, "that seeds share a start is told"
    for name in ("figure_1", "figure_4"):
        assert f"figures/{name}.png" in text
        assert Image.open(tmp_path / "out" / "figures" / f"{name}.png").size[0] > 500
        assert "<svg" in (tmp_path / "out" / "figures" / f"{name}.svg").read_text()[:2000]
    data = {p.name: [json.loads(line) for line in p.open()] for p in (tmp_path / "out" / "data").iterdir()}
    assert len(data["runs.jsonl"]) == 8 and data["runs.jsonl"][0]["end_reward"] == pytest.approx(0.6)
    assert data["curves.jsonl"][0] | {"last_step": 10, "reward": 0.53} == data["curves.jsonl"][0]
    assert data["items.jsonl"][0]["scores"] == [0.5, 0.5]
    assert {line["loss"] for line in data["losses.jsonl"]} >= {"sapo", "grpo", "gspo"}


def test_records_of_sequences(tiny, tmp_path):
    """Three responses in later updates; the first update, where r = 1, does not count."""
    experiment = tiny.model_copy(update={"figures": ("2",), "seeds": (0,)})
    plan = make_plan(experiment, [Arm(model="moe")], tmp_path, [])
    assert plan.runs[0].job is not None
    job = plan.runs[0].job
    finish_run(job, [0.4], [[1.0]])
    good = [
        sequence_line(1, 0.0, 0.0, 0.0, {15: 9}),
        # 15 is [-0.001, 0.001), 23 ends at 0.1.
        sequence_line(2, 0.010, 0.0020, 0.0025, {15: 6, 24: 1}),
        sequence_line(2, 0.030, 0.0075, 0.0075, {23: 2, 29: 1}),
        sequence_line(3, None, 0.0, 0.0, {15: 1}),
    ]
    write_sequences(job.folder, good)
    # As if the run had been one of the arm that writes records.
    rows = [row.__class__(**{**vars_of(row), "arm": SEQUENCES}) for row in collect(plan).rows]
    results = Results(rows=tuple(rows), absent=(), starts=())
    text, errors = report(experiment, results, tmp_path / "out")
    assert errors == []
    (row,) = [line for line in text.splitlines() if line.startswith("| moe | 1 |")]
    assert row == "| moe | 1 | 2 | 10 | 80.0% | 50.0% | 2.00e-02 | 3.00e-02 | 4.75e-03 | 0 |"
    assert "| 2-3 | D_i <= tau^2/4 Var_i (moe) | seen | 0 violations; 2 responses of 1 seeds" in text

    write_sequences(job.folder, [*good, sequence_line(2, 0.01, 0.00251, 0.0025, {15: 1})])
    text, errors = report(experiment, results, tmp_path / "out")
    assert errors == ["1 responses violate D_i <= tau^2/4 Var_i, which is a theorem"]
    assert text.splitlines()[2] == f"**ERROR: {errors[0]}**"


def vars_of(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__slots__}  # type: ignore[attr-defined]


def test_violations_that_a_run_has_counted_are_errors_too(tiny, tmp_path):
    experiment = tiny.model_copy(update={"figures": ("2",), "seeds": (0,)})
    plan = make_plan(experiment, [Arm(model="moe")], tmp_path, [])
    assert plan.runs[0].job is not None
    finish_run(plan.runs[0].job, [0.4], [[1.0]], **{"sequence/bound_violations": 3})
    write_sequences(plan.runs[0].job.folder, [sequence_line(2, 0.01, 0.002, 0.0025, {15: 1})])
    rows = [row.__class__(**{**vars_of(row), "arm": SEQUENCES}) for row in collect(plan).rows]
    assert rows[0].violations == 3
    _, errors = report(experiment, Results(rows=tuple(rows), absent=(), starts=()), tmp_path / "out")
    assert errors == ["3 responses violate D_i <= tau^2/4 Var_i, which is a theorem"]
