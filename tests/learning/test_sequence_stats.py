"""Var_i, D_i and the bound between them: by hand, in 80-bit floats, at the edge of rounding, and in a run."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_run import short_run
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats, gate_temperatures
from sapo_vl.learning.sequence_stats import FINE_LOG_RATIO_EDGES, VAR_EDGES, Responses, measure
from sapo_vl.losses import LossConfig
from sapo_vl.losses.sapo import SapoConfig
from sapo_vl.record.rollout_log import read_rollouts
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def update_stats(
    responses: list[list[float]], advantages: list[float], image: list[bool], temperatures: SapoConfig
) -> UpdateStats:
    """One micro-batch of these log-ratios, a response a row, with gates of 0.5, right-padded with NaN."""
    lengths = torch.tensor([len(r) for r in responses])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    z = torch.full(mask.shape, math.nan).masked_scatter(mask, torch.tensor([v for r in responses for v in r]))
    gate = torch.full_like(z, 0.5)
    stats = UpdateStats(temperatures)
    stats.add(z, gate, gate, torch.tensor(advantages)[:, None].expand_as(z), mask, torch.tensor(image))
    return stats


def one(z: np.ndarray, tau: float) -> Responses:
    ones = np.ones(1)
    return measure(z, np.array([len(z)]), ones, ones > 0, SapoConfig(tau_pos=tau))


def test_by_hand() -> None:
    """z = +-ln 2 at tau 2: g(z) = sech^2(ln 2) = (2 / (2 + 1/2))^2 = 0.64, g(0) = 1, so D = 0.36 <= 1 * Var."""
    ln2 = math.log(2)
    stats = update_stats(
        [[ln2, -ln2], [ln2, -ln2, ln2, -ln2], [0.1], [3 * ln2, -ln2]],
        [1.0, -0.5, 0.0, -2.0],
        [True, False, False, True],
        SapoConfig(tau_pos=2.0, tau_neg=4.0),
    )
    out = stats.reduce(ALONE)
    # tau 4: sech^2(2 ln 2) = (2 / (4 + 1/4))^2 = (8 / 17)^2, D = 1 - 64/289 = 225/289, bound 4 Var.
    d_neg = 225 / 289
    # z = 3 ln 2, -ln 2: mu = ln 2, Var = (2 ln 2)^2, g(mu) = g(-ln 2) = 64/289, g(3 ln 2) = (2 / (64 + 1/64))^2.
    d_wide = abs((64 / 289 + (128 / 4097) ** 2) / 2 - 64 / 289)
    var = ln2**2
    expected = {
        "sequence/responses": 4,
        "sequence/pos/responses": 1,
        "sequence/neg/responses": 2,
        "sequence/image/responses": 2,
        "sequence/text/responses": 2,
        "sequence/var/mean": 6 * var / 4,
        "sequence/var/max": 4 * var,
        "sequence/pos/var/mean": var,
        "sequence/neg/var/mean": 5 * var / 2,
        "sequence/image/var/mean": 5 * var / 2,
        "sequence/text/var/max": var,
        "sequence/text/var/mean": var / 2,
        "sequence/d/mean": (0.36 + d_neg + 0 + d_wide) / 4,
        "sequence/pos/d/mean": 0.36,
        "sequence/neg/d/mean": (d_neg + d_wide) / 2,
        "sequence/text/d/mean": d_neg / 2,
        "sequence/d_over_bound/max": 0.36 / var,
        "sequence/var/small_share": 1 / 4,
        "sequence/bound_violations": 0,
        "sequence/nonfinite": 0,
    }
    assert {name: out[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    # ln 2 squared is 0.48, in [0.3, 1); four times that in [1, 3); the one token has a variance of 0.
    hist = dict(enumerate(out["sequence/var/hist"]))
    assert {VAR_EDGES[i - 1] if i else 0.0: n for i, n in hist.items() if n} == {0.0: 1, 0.3: 2, 1.0: 1}


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(0, 2**31), st.floats(1e-5, 3.0))
def test_equals_the_formulas_in_80_bit_floats(lengths: list[int], seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    count, temperatures = len(lengths), SapoConfig(tau_pos=rng.uniform(0.3, 12), tau_neg=rng.uniform(0.3, 12))
    z = (rng.normal(size=sum(lengths)) * scale + rng.normal()).astype(np.float32)
    advantage = rng.normal(size=count)
    r = measure(z, np.array(lengths), advantage, np.ones(count, bool), temperatures)
    for i, part in enumerate(np.split(z, np.cumsum(lengths)[:-1])):
        x = part.astype(np.longdouble)
        tau = np.longdouble(temperatures.tau_pos if advantage[i] > 0 else temperatures.tau_neg)
        mean = x.sum() / len(x)
        var = ((x - mean) ** 2).sum() / len(x)
        d = abs((1 / np.cosh(tau * x / 2) ** 2).sum() / len(x) - 1 / np.cosh(tau * mean / 2) ** 2)
        assert r.mu[i] == pytest.approx(float(mean), rel=1e-13, abs=1e-15)
        assert r.var[i] == pytest.approx(float(var), rel=1e-12, abs=1e-30)
        # Far out both tanh are near 1, and 1 minus their product is right to the rounding of 1.
        assert r.d[i] == pytest.approx(float(d), rel=1e-9, abs=3e-16)
        assert r.bound[i] == pytest.approx(float(tau**2 / 4 * var), rel=1e-12, abs=1e-30)
    assert not r.violates.any()


@settings(max_examples=150)
@given(
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=30),
    st.sampled_from([1.0, 1e-3, 1e-6, 1e-9, 1e-20]),
    st.floats(-80, 80, width=32),
    st.floats(0.05, 200),
)
def test_no_rounding_looks_like_a_violation(values: list[float], scale: float, shift: float, tau: float) -> None:
    r = one((np.array(values) * scale + shift).astype(np.float32), tau)
    assert np.isfinite([r.mu, r.var, r.d, r.bound]).all()
    assert not r.violates.any()


def test_the_bound_is_tight_where_ratios_are_near_1_and_a_wrong_one_would_be_seen() -> None:
    """Symmetric z around 0: D = 1 - sech^2(tau z / 2) = (tau / 2)^2 z^2 (1 - 2/3 (tau z / 2)^2 + ...)."""
    for size in (1e-2, 1e-4, 1e-7, 1e-12):
        for n in (2, 1000):
            r = one(np.array([size, -size] * (n // 2), np.float32), tau=1.3)
            share = (r.d / r.bound).item()
            assert share == pytest.approx(1 - 2 / 3 * (0.65 * size) ** 2, rel=1e-9)
            assert not r.violates.any()
    # The same D against the variance of ratios that scatter a millionth less is too large.
    shrunk = one(np.array([1e-4, -1e-4], np.float32) * np.float32(1 - 1e-6), tau=1.3)
    assert (one(np.array([1e-4, -1e-4], np.float32), tau=1.3).d > shrunk.bound).all()


def test_a_violation_is_counted_and_nonfinite_responses_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    responses = [[0.2, -0.2], [0.1, math.nan], [math.inf, 0.0], [0.3, -0.3]]
    stats = update_stats(responses, [1.0, 1.0, -1.0, -1.0], [True] * 4, SapoConfig())
    out = stats.reduce(ALONE)
    assert (out["sequence/nonfinite"], out["sequence/responses"]) == (2, 2)
    assert out["sequence/var/mean"] == pytest.approx((0.04 + 0.09) / 2, rel=1e-6)
    assert all(np.isfinite(v).all() for v in out.values())
    # A variance that is too small, as a mistake would give: only then is a violation possible.
    monkeypatch.setattr("sapo_vl.learning.sequence_stats._means", means_with_half_the_squares)
    assert stats.reduce(ALONE)["sequence/bound_violations"] == 2


def means_with_half_the_squares(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    means = np.add.reduceat(values, np.cumsum(lengths) - lengths) / lengths
    return means / 2 if (values >= 0).all() and (values > 0).any() else means


def test_temperatures_are_those_of_the_run() -> None:
    assert gate_temperatures(LossConfig(params={"tau_neg": 7.0})) == SapoConfig(tau_pos=1.0, tau_neg=7.0)
    assert gate_temperatures(LossConfig(name="grpo")) == SapoConfig(tau_pos=1.0, tau_neg=1.05)


def group(name: str, lengths: list[int], image: bool) -> RolloutGroup:
    ids = np.arange(2)
    pixels = torch.zeros(4, 3) if image else None
    prompt = Prompt(
        problem=Problem(id=name, task="count", messages=()),
        ids=ids,
        compact_ids=ids,
        positions=np.tile(ids, (3, 1)),
        pixel_values=pixels,
        image_grid_thw=None,
    )
    rollouts = [
        Rollout(response_ids=np.arange(n), logprobs=np.zeros(n), finish=Finish.STOP, weight_version=0) for n in lengths
    ]
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


def test_lines_by_hand() -> None:
    ln2 = math.log(2)
    stats = update_stats([[ln2, -ln2], [0.0, math.nan], [0.0]], [1.0, -2.0, -0.5], [True, True, False], SapoConfig())
    groups = [group("a", [2, 2], image=True), group("b", [1], image=False)]
    first, broken, last = stats.lines(groups, step=4, update=2)
    assert first.pop("log_ratio_bins") == {bin_of(-ln2): 1, bin_of(ln2): 1}
    known = {"step": 4, "update": 2, "id": "a", "task": "count", "image": True, "tokens": 2}
    assert {name: first.pop(name) for name in known} == known
    assert first == pytest.approx(
        {
            **{"advantage": 1.0, "tau": 1.0, "mu": 0.0, "var": ln2**2, "bound": ln2**2 / 4},
            "d": 1 - (2 / (2**0.5 + 0.5**0.5)) ** 2,
            "gate_mean": 0.5,
            "ratio_mean": 1.25,
            "max_abs_log_ratio": ln2,
        },
        rel=1e-6,
    )
    measured = ("mu", "var", "d", "bound", "gate_mean", "ratio_mean", "max_abs_log_ratio")
    assert [broken[name] for name in measured] == [None] * 7
    assert (broken["advantage"], broken["tau"], broken["log_ratio_bins"]) == (-2.0, 1.05, {bin_of(0.0): 1})
    assert (last["id"], last["image"], last["tokens"], last["ratio_mean"]) == ("b", False, 1, 1.0)
    with pytest.raises(ValueError, match="is longer"):
        stats.lines(groups[:1])
    assert UpdateStats().lines([]) == []


def bin_of(log_ratio: float) -> str:
    return str(sum(edge <= log_ratio for edge in FINE_LOG_RATIO_EDGES))


def undocumented(row: Mapping[str, Any]) -> list[str]:
    """The metrics of updates that no table of docs/metrics.md has. There, `b` after `a/x` in a cell means `a/b`."""
    places = {"sign": ("pos", "neg"), "of": ("pos", "neg", "image", "text")}
    known: set[str] = set()
    for line in (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().splitlines():
        before = ""
        for name in re.findall("`([^`]+)`", line.split("|")[1]) if line.startswith("| `") else ():
            full = name if "/" in name or "/" not in before else f"{before.rpartition('/')[0]}/{name}"
            before = full
            which = re.search("{(sign|of)}", full)
            known |= {full.replace(which[0], p) for p in places[which[1]]} if which else {full}
    groups = ("tokens", "gate/", "ratio/", "log_ratio/", "kl/", "sequence/", "negative_tokens/", "updates/", "entropy/")
    return [name for name in row if name.startswith(groups) and "per_s" not in name and name not in known]


def test_what_is_not_in_the_docs_is_noticed() -> None:
    documented = ("sequence/neg/var/max", "log_ratio/pos/q95", "negative_tokens/neg/mass_formula", "tokens/text")
    assert undocumented(dict.fromkeys(documented, 0.0)) == []
    assert undocumented({"sequence/other": 0.0, "log_ratio/image/q95": 0.0}) == [
        "sequence/other",
        "log_ratio/image/q95",
    ]


@pytest.mark.slow
def test_a_run_writes_its_responses(tmp_path: Path, seed: int) -> None:
    """Every second step, both updates; the last update of a step adds up to the metrics of that step.

    Weights are sharded, and the vocabulary is looked at in the same steps.
    """
    reward = "from rewards.base import RewardOutput\n\n\ndef f(x):\n    return RewardOutput(sum(x.token_ids) % 7 / 6)\n"
    (tmp_path / "reward.py").write_text(reward)
    settings = {
        "rewards.path": f"{tmp_path / 'reward.py'}:f",
        "rewards.by_task": '{"*": custom}',
        "log.save_sequences_every": 2,
        "log.negative_tokens_every": 2,
        "zero.stage": 3,
        "optim.lr": 3e-4,
        "loss.params": '{"tau_neg": 3.0}',
    }
    first, row = short_run(tmp_path, seed, settings)
    folder = tmp_path / "out" / "sequences"
    assert [p.name for p in folder.iterdir()] == ["step_000002.rank0.jsonl"]
    lines = list(read_rollouts(folder))
    assert {(line["step"], line["update"]) for line in lines} == {(2, 1), (2, 2)}
    assert all(line["d"] <= line["bound"] + 1e-12 for line in lines)
    assert {line["tau"] for line in lines if line["advantage"] < 0} == {3.0}
    assert max(line["var"] for line in lines if line["update"] == 1) < 1e-8  # r = 1 in the first update
    for prefix, keep in {
        "sequence/": lambda line: True,
        "sequence/neg/": lambda line: line["advantage"] < 0,
        "sequence/text/": lambda line: not line["image"],
    }.items():
        kept = [line for line in lines if line["update"] == 2 and keep(line)]
        assert row[f"{prefix}responses"] == len(kept) > 0
        assert row[f"{prefix}var/mean"] == pytest.approx(np.mean([line["var"] for line in kept]))
        assert row[f"{prefix}var/max"] == max(line["var"] for line in kept) > 1e-7
        assert row[f"{prefix}d/mean"] == pytest.approx(np.mean([line["d"] for line in kept]))
    assert row["sequence/bound_violations"] == 0
    assert sum(line["tokens"] for line in lines if line["update"] == 2) == row["tokens"]
    assert sum(n for line in lines if line["update"] == 2 for n in line["log_ratio_bins"].values()) == row["tokens"]
    rollouts = {r["id"]: r for r in read_rollouts(tmp_path / "out" / "rollouts" / "step_000002.rank0.jsonl")}
    assert all(line["image"] == bool(rollouts[line["id"]]["images"]) for line in lines)

    assert not any(name.startswith("negative_tokens/") for name in first)
    assert not undocumented(row)
    looked_at = {s: row[f"negative_tokens/{s}/tokens"] for s in ("pos", "neg")}
    for sign, keep in (("pos", lambda line: line["advantage"] > 0), ("neg", lambda line: line["advantage"] < 0)):
        # One micro-batch holds an update here, and 64 tokens of each sign in it are looked at.
        by_update = [sum(line["tokens"] for line in lines if line["update"] == u and keep(line)) for u in (1, 2)]
        assert looked_at[sign] == sum(min(64, n) for n in by_update) > 0
        assert 0 < row[f"negative_tokens/{sign}/formula_share"] <= 1
        assert 0 <= row[f"negative_tokens/{sign}/logits_rose"] <= 1
    assert row["negative_tokens/pos/logprob"] > row["negative_tokens/neg/logprob"]
