"""Which arms there are, and that those of one table differ in nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sapo_vl.config import ConfigError, load_config
from sapo_vl.experiments import plan
from sapo_vl.experiments.arms import Arm, arms_of, family, replayed, sapo_tau_neg
from sapo_vl.experiments.config import FIGURES, ExperimentConfig, load_experiment, run_pairs, start_pairs
from sapo_vl.experiments.plan import make_plan

CONFIGS = Path(__file__).parents[2] / "configs" / "experiments"
SEVEN = ["SAPO", "GSPO", "GRPO", "GRPO-R2", "GRPO-R3", "SAPO-R2", "SAPO-R3"]


@pytest.fixture(scope="module")
def tiny() -> ExperimentConfig:
    return load_experiment(CONFIGS / "tiny.yaml", {})


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield from leaves(below, f"{path}.{key}" if path else key)
    yield path, tree


def test_the_seven_differ_in_loss_and_replay_alone(tiny):
    """Of their resolved configs, not of what is passed for them."""
    arms = list(replayed(Arm(model="moe")))
    assert [arm.method for arm in arms] == SEVEN
    model = tiny.models["moe"]
    common = [*start_pairs(model, False, [], 0), *run_pairs(model, [])]
    base = load_config(model.config, common)
    resolved = [
        dict(leaves(load_config(model.config, [*common, *arm.overrides(base, 10)]).model_dump(mode="json")))
        for arm in arms
    ]
    # A section differs where a setting in it does.
    differing = {key for key in resolved[0] if len({str(config.get(key)) for config in resolved}) > 1} - {"", "loss"}
    assert differing <= {"loss.name", "loss.params", "replay"} and "loss.name" in differing
    assert len({str((config["loss.name"], config.get("replay"))) for config in resolved}) == len(arms)


def test_every_loss_has_its_own_reduction(tiny):
    """Also on top of a saved config, which names that of its own loss: dr_grpo's divides by a constant, here 2 prompts
    x 8 responses x 14 tokens."""
    model = tiny.models["moe"]
    base = load_config(model.config, start_pairs(model, False, [], 0))
    for loss, reduction, constant in (
        ("grpo", "sequence_mean", None),
        ("dapo", "token_mean", None),
        ("dr_grpo", "token_sum", 2 * 8 * 14),
    ):
        own = Arm(model="moe", loss=loss, mini_batches=16).overrides(base, 10)
        config = load_config(model.config, ["loss.reduction=sequence_mean", *own])
        assert (config.loss.reduction, config.loss.token_sum_constant) == (reduction, constant)


def test_the_paper_s_figures(tiny):
    arms = arms_of(tiny)
    assert set(arms) == set(FIGURES) and arms["1"] == []
    assert [arm.method for arm in arms["4"]] == ["SAPO", "GSPO", "GRPO", "GRPO-R2"]
    assert all((arm.model, arm.mini_batches) == ("moe", 4) for arm in (*arms["4"], *arms["5"]))
    assert [dict(arm.params).get("tau_neg", 1.05) for arm in arms["5"]] == [0.95, 1.0, 1.05, 0.5, 4.0]
    assert {(arm.model, arm.method) for arm in arms["6"]} == {
        ("moe", "SAPO"),
        ("moe", "GSPO"),
        ("moe", "GRPO-R2"),
        ("dense", "SAPO"),
        ("dense", "GSPO"),
        ("dense", "GRPO"),
    }
    assert all(arm.mixed and arm.mini_batches == 2 for arm in arms["6"])
    assert {(arm.model, arm.sequences) for arm in arms["2"]} == {("moe", True), ("dense", True)}


def test_the_stress_holds_what_it_says(tiny):
    arms = arms_of(tiny)["stress"]
    assert len(arms) == len(set(arms)), "an arm is run once"
    for loss in ("sapo", "gspo", "grpo"):
        of_loss = [arm for arm in arms if arm.loss == loss and arm.replay == "none"]
        fresh = [arm for arm in of_loss if arm.lr_factor == 1 and not arm.staleness]
        assert {arm.mini_batches for arm in fresh} == {1, 2, 4, 8, 16}
        assert {arm.lr_factor for arm in of_loss if arm.mini_batches == 16} == {1, 2, 4}
        assert {arm.mini_batches for arm in of_loss if arm.staleness} == {4, 16}
    assert {(arm.loss, arm.replay) for arm in arms} >= {
        (loss, replay) for loss in ("sapo", "grpo") for replay in ("r2", "r3")
    }


def test_a_label_names_one_arm(tiny):
    arms = {arm for arms in arms_of(tiny).values() for arm in arms} | set(replayed(Arm(model="dense", mixed=True)))
    labels = [arm.label for arm in arms]
    assert len(set(labels)) == len(labels)
    assert not any("/" in label or " " in label for label in labels), "it is the name of a folder"
    assert Arm(model="moe", loss="grpo", replay="r2", mini_batches=16, lr_factor=2.0, staleness=1).label == (
        "moe.grpo-r2.n16.lrx2.stale1"
    )
    assert sapo_tau_neg("moe", 1.05) == Arm(model="moe"), "the default temperature is plain SAPO"
    assert [arm.method for arm in family(Arm(model="dense"), moe=False)] == ["SAPO", "GSPO", "GRPO"]


def test_a_refused_arm_is_told_and_the_others_go_on(tiny, tmp_path):
    arms = [Arm(model="moe"), Arm(model="moe", params=(("tau_up", 3.0),)), Arm(model="moe", mini_batches=7)]
    one_seed = tiny.model_copy(update={"seeds": (0,)})
    good, unknown, uneven = make_plan(one_seed, arms, tmp_path, []).runs
    assert good.job is not None and not good.refused
    assert unknown.job is None and "loss 'sapo' has no setting 'tau_up'" in unknown.refused
    assert (
        uneven.job is None and "rollout.prompts_per_step=32 cannot be dealt into batch.mini_batches=7" in uneven.refused
    )
    assert str(CONFIGS) not in unknown.refused, "the fault alone, not the list of all overrides"
    with pytest.raises(ConfigError, match="unknown key nonsense"):
        make_plan(one_seed, arms, tmp_path, ["nonsense=1"])


def test_what_a_run_is_a_result_of(tiny, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Its hash changes with what changes its numbers, and only then; the start's does not with a run's settings."""

    def hashes(arm: Arm, pairs: list[str], **changes: Any) -> tuple[str, str]:
        experiment = tiny.model_copy(update={"seeds": (0,), **changes})
        planned = make_plan(experiment, [arm], tmp_path, pairs)
        job = planned.runs[0].job
        assert job is not None
        return planned.starts[0].hash, job.hash

    sapo = Arm(model="moe")
    start, run = hashes(sapo, [])
    assert hashes(sapo, ["log.save_rollouts_every=3"]) == (start, run)
    assert hashes(sapo, [], jobs=7) == (start, run)
    assert hashes(sapo, [], steps=299) == (start, hashes(sapo, [], steps=299)[1]) != (start, run)
    assert hashes(Arm(model="moe", loss="grpo"), [])[0] == start
    assert hashes(Arm(model="moe", loss="grpo"), [])[1] != run
    assert hashes(sapo, ["eval.max_per_task=5"])[0] == start and hashes(sapo, ["eval.max_per_task=5"])[1] != run
    other_start, other_run = hashes(sapo, ["cold_start.steps=17"])
    assert other_start != start and other_run != run
    monkeypatch.setattr(plan, "CHANGED_DEFAULTS", ())  # as it was before one changed
    assert hashes(sapo, [])[0] == start and hashes(sapo, [])[1] != run


def test_runs_of_one_seed_begin_alike(tiny, tmp_path):
    arms = [Arm(model="moe"), Arm(model="moe", loss="grpo")]
    plan = make_plan(tiny, arms, tmp_path, [])
    assert [job.name for job in plan.starts] == ["start moe.seed0"]
    for planned in plan.runs:
        assert planned.job is not None and planned.job.after == "start moe.seed0"
        (command,) = planned.job.commands
        assert f"seed={planned.seed}" in command and str(tmp_path / "starts/moe.seed0/prepared.yaml") in command
        assert any(f"'{tmp_path / 'starts/moe.seed0/data'}'" in word for word in command), "the placeholder is filled"
    fewer = make_plan(tiny.model_copy(update={"seeds": (2,)}), arms, tmp_path, [])
    assert fewer.starts == plan.starts and fewer.runs[0] == plan.runs[2], "more seeds may follow, or fewer be looked at"
    own = make_plan(tiny.model_copy(update={"cold_start_per_seed": True}), arms, tmp_path, [])
    assert [job.name for job in own.starts] == ["start moe.seed0", "start moe.seed1", "start moe.seed2"]
    assert [planned.job.after for planned in own.runs if planned.job][:3] == [job.name for job in own.starts]


def test_an_experiment_s_file(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("models: {moe: {config: sub/run.yaml}}\nseeds: [3]\n")
    experiment = load_experiment(path, {"steps": 5})
    assert experiment.models["moe"].config == str(tmp_path / "sub" / "run.yaml")
    assert (experiment.seeds, experiment.steps) == ((3,), 5)
    path.write_text("models: {moe: {config: run.yaml}}\nsede: [3]\n")
    with pytest.raises(ConfigError, match="sede"):
        load_experiment(path, {})
    path.write_text("seed: 0\nsteps: 700\n")
    with pytest.raises(ConfigError, match="no experiment but perhaps a run's config"):
        load_experiment(path, {})
    with pytest.raises(ConfigError, match="figures"):
        load_experiment(CONFIGS / "tiny.yaml", {"figures": ["9"]})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_no_arm_of_a_shipped_experiment_is_refused(path, tmp_path):
    experiment = load_experiment(path, {"seeds": [0]})
    arms = list(dict.fromkeys(arm for arms in arms_of(experiment).values() for arm in arms))
    plan = make_plan(experiment, arms, tmp_path, [])
    assert len(plan.runs) == len(arms) > 25
    assert [(planned.arm.label, planned.refused) for planned in plan.runs if planned.refused] == []


def test_further_settings_meet_in_the_stress(tiny):
    also = {"also": [{"params": {"sides": "outward", "tau_pos": 10.0}}, {"loss": "grpo", "params": {"eps_high": 0.4}}]}
    experiment = tiny.model_copy(update={"stress": tiny.stress.model_validate(also)})
    labels = [arm.label for arm in arms_of(experiment)["stress"]]
    assert "moe.sapo.sides=outward.tau_pos=10.n16.lrx2" in labels and "moe.grpo.eps_high=0.4.n16.lrx2" in labels
    # And plain SAPO stays one arm.
    assert labels.count("moe.sapo.n16.lrx2") == 1
