"""bench/vs_trl.py without TRL: its arguments, its checks, our side of it, and what TRL made of the same responses.

trl_mini_dense.json is of `python bench/vs_trl.py --record tests/bench`: the responses of our first step, and the
losses and gradient norms of the two updates that TRL 1.16 made of them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_launch import environment

from sapo_vl.config import load_config
from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.objectives import global_denominators, policy_objective
from sapo_vl.losses import LossConfig
from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig, prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.types import Finish, Rollout, RolloutGroup

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import vs_trl_cases

    return vs_trl_cases


@pytest.fixture
def vs_trl(cases: Any) -> Any:
    import vs_trl

    return vs_trl


def test_both_sides_are_asked_for_the_same(vs_trl: Any, cases: Any, tmp_path: Path) -> None:
    for case in cases.CASES.values():
        ours = load_config(None, vs_trl.overrides(case, tmp_path, tmp_path))
        theirs = vs_trl.peer_arguments(case, [5, 6], tmp_path)
        updates = theirs["steps_per_generation"] * theirs["num_iterations"]
        responses = theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"] * updates
        assert responses == ours.rollout.prompts_per_step * ours.rollout.group_size
        assert updates == ours.batch.mini_batches == 2
        assert theirs["max_completion_length"] == ours.rollout.max_new_tokens
        assert theirs["num_generations"] == ours.rollout.group_size
        assert (theirs["adam_beta1"], theirs["adam_beta2"]) == ours.optim.betas
        pairs = {"learning_rate": "lr", "adam_epsilon": "eps", "max_grad_norm": "clip", "weight_decay": "weight_decay"}
        assert all(theirs[a] == getattr(ours.optim, b) for a, b in pairs.items())
        assert theirs["generation_kwargs"] == {"suppress_tokens": [5, 6]}
        assert ("router_aux_loss_coef" in theirs) == (case.kind == "moe")


def test_updates_that_differ_are_not_the_same(vs_trl: Any) -> None:
    recorded = json.loads((Path(__file__).parent / "trl_mini_dense.json").read_text())
    ours, trl = recorded["ours"], recorded["trl"]
    assert vs_trl.same_updates(ours, trl)["ok"]

    def spoilt(**change: Any) -> bool:
        other = copy.deepcopy(trl)
        other["done"][1] |= change
        return vs_trl.same_updates(ours, other)["ok"]

    assert not spoilt(grad_norm=trl["done"][1]["grad_norm"] * 1.01)
    assert not spoilt(loss=trl["done"][1]["loss"] + 0.01)
    assert not vs_trl.same_updates(ours, trl | {"same_prompts": False})["ok"]
    ours[0]["groups"][0]["rewards"][0] += 0.01
    assert not vs_trl.same_updates(ours, trl)["ok"]


def test_work_that_differs_is_not_the_same(vs_trl: Any, cases: Any) -> None:
    case = cases.CASES["dense64"]
    step = {"tokens": 2000, "updates": 2, "live": case.prompts}
    assert vs_trl.same_work(case, [step], [step])["ok"]
    for other in ({"tokens": 1600}, {"updates": 1}, {"live": case.prompts - 1}):
        assert not vs_trl.same_work(case, [step], [step | other])["ok"]


def test_ratios_are_of_pairs(vs_trl: Any) -> None:
    assert vs_trl.ratios([1.0, 2.0, 1.0], [3.0, 4.0, 5.0]) == {"median": 3.0, "min": 2.0, "max": 5.0}


def micro_batches(recorded: dict[str, Any], cases: Any, case: Any, chat: Chat) -> list[MicroBatch]:
    """Those of the recorded updates, with rewards less their mean as advantages."""
    from vs_trl_reward import share_of

    problems = {p.id: p for p in cases.problems(case, 8 * case.prompts)}
    out = []
    for update in recorded["ours"]:
        groups = []
        for group in update["groups"]:
            prompt = chat.prompt(problems[group["id"]])
            assert prompt.ids.tolist() == group["prompt_ids"]
            rewards = np.array([share_of(ids) for ids in group["responses"]])
            rollouts = tuple(
                Rollout(
                    response_ids=np.array(ids), logprobs=np.zeros(len(ids), np.float32), finish=Finish.STOP,
                    weight_version=0, advantage=float(a),
                )
                for ids, a in zip(group["responses"], rewards - rewards.mean(), strict=True)
            )  # fmt: skip
            groups.append(RolloutGroup(prompt=prompt, rollouts=rollouts))
        out.append(pack(groups, chat.blank_pixels()))
    return out


@pytest.mark.parametrize("kind", ["dense"])
def test_our_updates_are_those_that_trl_made(kind: str, cases: Any) -> None:
    """The same responses, from the same weights: two updates, the second one with ratios that are not 1."""
    case = cases.MINI[kind]
    recorded = json.loads((Path(__file__).parent / f"trl_{case.name}.json").read_text())
    model, processor = cases.build_model(case)
    config = ModelConfig(min_pixels=1024, max_pixels=1024 * 1024)
    model = prepare_model(model, config)
    chat = Chat(processor, model, config)
    policy = PolicyModule(model, ())
    batches = micro_batches(recorded, cases, case, chat)
    with torch.no_grad():
        batches = [dataclasses.replace(mb, old_logprobs=policy(mb)[0]) for mb in batches]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for mb, trl in zip(batches, recorded["trl"]["done"], strict=True):
        denominators = global_denominators([mb], World.alone())
        optimizer.zero_grad()
        loss = policy_objective(LossConfig(), denominators, UpdateStats())(mb, *policy(mb)).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(trl["loss"], abs=2e-5)
        assert norm.item() == pytest.approx(trl["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_our_side_runs_at_a_word(vs_trl: Any, cases: Any, tmp_path: Path) -> None:
    case = cases.MINI["dense"]
    vs_trl.prepare_ours(case, tmp_path)
    side = vs_trl.Side("our side", vs_trl.ours_command(tmp_path), environment(), tmp_path / "log")
    try:
        steps = [side.step() for _ in range(2)]
    finally:
        status = side.close()
    assert status == 0, (tmp_path / "log").read_text()
    for step in steps:
        assert (step["updates"], step["live"]) == (2, case.prompts)
        assert step["cpu"] > 0 and step["peak_mb"] >= step["rss_mb"] > 0
        assert step["phases"]["rollout"] > 0 and step["phases"]["train"] > 0
    first = json.loads((tmp_path / "first.json").read_text())
    assert [len(update["groups"]) for update in first] == [2, 2]
    for group in (group for update in first for group in update["groups"]):
        assert group["rewards"] == pytest.approx([vs_trl.share_of(ids) for ids in group["responses"]])
    # Of the first update every ratio is 1: what a token adds is -A * 2 / tau, whichever token it is.
    advantages = [reward - np.mean(group["rewards"]) for group in first[0]["groups"] for reward in group["rewards"]]
    expected = -np.mean([2 * a / (1.0 if a > 0 else 1.05) for a in advantages])
    assert first[0]["loss"] == pytest.approx(expected, abs=1e-5)
    assert all(update["grad_norm"] > 0 for update in first)
    tokens = sum(len(ids) for update in first for group in update["groups"] for ids in group["responses"])
    assert tokens == steps[0]["tokens"]
