"""Update and rollout statistics: values by hand, exact quantiles, and no dependence on the split."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.learning.diagnostics import LOG_RATIO_EDGES, UpdateStats, advantage_shares, rollout_stats
from sapo_vl.record.stats import global_quantiles, wilson_interval
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup, ScoreStatus

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def flags(*values: bool) -> torch.Tensor:
    return torch.tensor(values)


def tokens(n: int, seed: int) -> list[torch.Tensor]:
    """(log-ratio, gate, entropy, advantage) of n tokens, [n] each, with ties and a few non-finite ones."""
    g = torch.Generator().manual_seed(seed)
    log_ratio = torch.randn(n, generator=g) * 0.3
    log_ratio[torch.rand(n, generator=g) < 0.3] = 0.0
    log_ratio[torch.rand(n, generator=g) < 0.05] = math.nan
    log_ratio[torch.rand(n, generator=g) < 0.05] = math.inf
    advantages = torch.randint(-1, 2, (n,), generator=g) * torch.rand(n, generator=g)
    return [log_ratio, torch.rand(n, generator=g), torch.rand(n, generator=g) * 3, advantages]


def add_padded(stats: UpdateStats, columns: list[torch.Tensor], lengths: list[int]) -> None:
    """The tokens cut into responses of these lengths, right-padded with NaN, as one micro-batch.

    Every second length is that of a response to an image.
    """
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    padded = (torch.full(mask.shape, math.nan).masked_scatter(mask, c) for c in columns)
    stats.add(*padded, mask, torch.tensor(lengths) % 2 == 0)


def test_update_stats_by_hand():
    stats = UpdateStats()
    # The last token is masked out; the one before has A = 0.
    stats.add(
        log_ratio=row(math.log(2), 0.0, math.log(0.5), 0.0005, 9.0),
        gate=row(0.5, 1.0, 0.25, 0.75, 100.0),
        entropy=row(1.0, 2.0, 3.0, 6.0, 100.0),
        advantages=row(1.5, 0.1, -2.0, 0.0, 1.0),
        mask=torch.tensor([[True, True, True, True, False]]),
        image=flags(True),
    )
    out = stats.reduce(ALONE)
    assert (out["tokens"], out["tokens/pos"], out["tokens/neg"]) == (4, 2, 1)
    assert out["log_ratio/nonfinite"] == 0
    assert out["gate/mean"] == pytest.approx(2.5 / 4)
    assert out["gate/pos/mean"] == pytest.approx(0.75)
    assert out["gate/neg/mean"] == pytest.approx(0.25)
    assert out["ratio/pos/mean_abs_dev"] == pytest.approx(1 / 2)
    assert out["ratio/neg/mean_abs_dev"] == pytest.approx(1 / 2)
    assert (out["tokens/image"], out["gate/image/mean"]) == (4, out["gate/mean"])
    assert out["tokens/text"] == 0 and "gate/text/mean" not in out
    assert out["entropy/mean"] == pytest.approx(3.0)
    # |2 - 1| + 0 + |1/2 - 1| + (e^0.0005 - 1)
    assert out["ratio/mean_abs_dev"] == pytest.approx((1.5 + 0.000500125) / 4, rel=1e-6)
    assert out["ratio/max"] == pytest.approx(2.0)
    # the two logarithms of 2 cancel
    assert out["kl/old_new_k1"] == pytest.approx(-0.0005 / 4, rel=1e-4)
    # (2 - 1 - ln 2) + (1/2 - 1 + ln 2) + about 0.0005^2 / 2
    assert out["kl/old_new_k3"] == pytest.approx((0.5 + 1.25e-7) / 4, rel=1e-6)
    assert out["log_ratio/pos/mean"] == pytest.approx(math.log(2) / 2)
    assert out["log_ratio/pos/q50"] == pytest.approx(math.log(2) / 2)
    assert out["log_ratio/pos/q05"] == pytest.approx(0.05 * math.log(2))
    assert out["log_ratio/pos/max_abs"] == pytest.approx(math.log(2))
    assert out["log_ratio/neg/max_abs"] == pytest.approx(math.log(2))
    assert out["log_ratio/neg/q01"] == out["log_ratio/neg/q99"] == pytest.approx(-math.log(2))


def test_histogram_bins():
    stats = UpdateStats()
    values = (-50.0, -0.7, -0.0005, 0.0, 0.2, 1.0, 2.0, 3.0, 1e6)
    n = len(values)
    stats.add(row(*values), *[torch.ones(1, n)] * 3, torch.ones(1, n).bool(), flags(True))
    hist = stats.reduce(ALONE)["log_ratio/pos/hist"]
    assert isinstance(hist, list) and len(hist) == len(LOG_RATIO_EDGES) + 1 == 17
    # bins: below -3; [-1, -0.3); the middle one around 0; [0.1, 0.3); [1, 3); from 3. A bin owns its left edge.
    assert {i: c for i, c in enumerate(hist) if c} == {0: 1, 2: 1, 8: 2, 13: 1, 15: 2, 16: 2}


def test_nonfinite_log_ratios_are_counted_and_left_out():
    stats = UpdateStats()
    bad = (math.nan, math.inf, -math.inf)
    mask = torch.ones(1, 4).bool()
    stats.add(row(*bad, 0.5), row(9, 9, 9, 0.5), row(9, 9, 9, 2), row(1, -1, 1, 1), mask, flags(True))
    out = stats.reduce(ALONE)
    assert out["log_ratio/nonfinite"] == 3
    assert (out["tokens"], out["tokens/pos"], out["tokens/neg"]) == (1, 1, 0)
    assert (out["gate/mean"], out["entropy/mean"]) == (0.5, 2.0)
    assert out["log_ratio/pos/q01"] == out["log_ratio/pos/max_abs"] == 0.5
    assert "gate/neg/mean" not in out and sum(out["log_ratio/neg/hist"]) == 0
    assert (out["sequence/nonfinite"], out["sequence/responses"]) == (1, 0)
    assert all(np.isfinite(v).all() for v in out.values())


def test_huge_ratios_stay_finite_and_no_tokens_give_no_means():
    stats = UpdateStats()
    stats.add(row(300.0), row(0.0), row(0.0), row(1.0), torch.ones(1, 1).bool(), flags(True))
    out = stats.reduce(ALONE)
    assert out["ratio/max"] == pytest.approx(math.exp(20))
    assert np.isfinite(out["kl/old_new_k3"])
    counts = {f"tokens{part}": 0.0 for part in ("", "/pos", "/neg", "/image", "/text")}
    classes = ("sequence", "sequence/pos", "sequence/neg", "sequence/image", "sequence/text")
    assert UpdateStats().reduce(ALONE) == {
        **counts,
        "log_ratio/nonfinite": 0.0,
        "log_ratio/pos/hist": [0] * 17,
        "log_ratio/neg/hist": [0] * 17,
        "sequence/nonfinite": 0.0,
        "sequence/bound_violations": 0.0,
        **{f"{name}/responses": 0.0 for name in classes},
        **{f"{name}/var/hist": [0] * 14 for name in classes},
    }


def test_tensors_may_carry_gradients_and_low_precision():
    stats = UpdateStats()
    log_ratio = torch.tensor([[0.25]], requires_grad=True)
    half = torch.ones(1, 1, dtype=torch.bfloat16)
    stats.add(log_ratio, half, half, half, torch.ones(1, 1).bool(), flags(True))
    assert stats.reduce(ALONE)["log_ratio/pos/mean"] == 0.25


def test_wrong_shape_and_mask_are_named():
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"entropy is \(2,\), log_ratio is \(1, 2\)"):
        UpdateStats().add(one, one, torch.ones(2), one, one.bool(), flags(True))
    with pytest.raises(TypeError, match="mask must be bool"):
        UpdateStats().add(one, one, one, one, one, flags(True))
    with pytest.raises(ValueError, match=r"image is \(2,\), log_ratio is \(1, 2\)"):
        UpdateStats().add(one, one, one, one, one.bool(), flags(True, True))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 2**31), st.data())
def test_split_over_micro_batches_does_not_matter(lengths: list[int], seed: int, data: st.DataObject):
    columns = tokens(sum(lengths), seed)
    whole, split = UpdateStats(), UpdateStats()
    add_padded(whole, columns, lengths)
    rows = list(zip(*(c.split(lengths) for c in columns), lengths, strict=True))
    while rows:
        size = data.draw(st.integers(1, len(rows)))
        picked, rows = rows[:size], rows[size:]
        add_padded(split, [torch.cat([r[i] for r in picked]) for i in range(4)], [r[4] for r in picked])
    expected, got = whole.reduce(ALONE), split.reduce(ALONE)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name

    log_ratio, gate, _, advantages = (c.double().numpy() for c in columns)
    pos = np.isfinite(log_ratio) & (advantages > 0)
    if pos.any():
        quantiles = np.quantile(log_ratio[pos], [0.01, 0.05, 0.5, 0.95, 0.99])
        names = [f"log_ratio/pos/q{q}" for q in ("01", "05", "50", "95", "99")]
        np.testing.assert_allclose([got[n] for n in names], quantiles, rtol=1e-6, atol=1e-12)
        assert got["log_ratio/pos/max_abs"] == np.abs(log_ratio[pos]).max()
        assert got["gate/pos/mean"] == pytest.approx(gate[pos].mean(), rel=1e-6)
    image = np.isfinite(log_ratio) & np.repeat([n % 2 == 0 for n in lengths], lengths)
    for name, here in (("image", image), ("text", np.isfinite(log_ratio) & ~image), ("pos", pos)):
        assert got[f"tokens/{name}"] == here.sum()
        if here.any():
            assert got[f"gate/{name}/mean"] == pytest.approx(gate[here].mean(), rel=1e-6)
            away = np.abs(np.exp(log_ratio[here]) - 1).mean()
            assert got[f"ratio/{name}/mean_abs_dev"] == pytest.approx(away, rel=1e-6)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_quantiles_equal_numpy(values: list[float]):
    sample = np.array(values, np.float32)
    probabilities = [0.0, 0.01, 0.3, 0.5, 1.0]
    got, empty = global_quantiles([sample, sample[:0]], probabilities, ALONE)
    assert empty is None
    span = float(sample.max()) - float(sample.min())
    np.testing.assert_allclose(
        got, np.quantile(sample.astype(np.float64), probabilities), rtol=1e-12, atol=1e-12 * span
    )


def test_wilson_interval_by_hand():
    # z = 2, n = 12, p = 1/2: z^2/n = 1/3; centre (1/2 + 1/6) / (4/3) = 1/2;
    # half = sqrt(1/4 * 1/3 + 1/36) / (4/3) = (1/3) / (4/3) = 1/4.
    assert wilson_interval(6, 12, z=2.0) == pytest.approx((0.25, 0.75))
    # No success: low 0, high z^2 / (n + z^2) = 4/16.
    assert wilson_interval(0, 12, z=2.0) == pytest.approx((0.0, 0.25))
    assert wilson_interval(12, 12, z=2.0) == pytest.approx((0.75, 1.0))
    # 95%: the ends solve (p - q)^2 = z^2 q (1 - q) / n.
    low, high = wilson_interval(40, 128)
    for q in (low, high):
        assert (40 / 128 - q) ** 2 == pytest.approx(1.959964**2 * q * (1 - q) / 128)
    assert low < 40 / 128 < high
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0.5, 1)[0] > 0
    with pytest.raises(ValueError, match="between 0 and n=3, got 4"):
        wilson_interval(4, 3)


def group(task: str, *rollouts: Rollout) -> RolloutGroup:
    ids = np.arange(3)
    prompt = Prompt(
        problem=Problem(id=f"{task}-1", task=task, messages=()),
        ids=ids,
        compact_ids=ids,
        positions=np.tile(ids, (3, 1)),
        pixel_values=None,
        image_grid_thw=None,
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


def rollout(
    length: int,
    reward: float | None,
    accuracy: float | None = None,
    status: ScoreStatus = ScoreStatus.SCORED,
    finish: Finish = Finish.STOP,
) -> Rollout:
    return Rollout(
        response_ids=np.arange(length),
        logprobs=np.zeros(length),
        finish=finish,
        weight_version=0,
        reward=reward,
        parts={} if accuracy is None else {"accuracy": accuracy, "format": 1.0},
        score_status=status,
    )


def example_groups() -> list[RolloutGroup]:
    return [
        group("count", rollout(2, 1.0, 1.0), rollout(4, 0.0, 0.0)),
        group("count", rollout(6, 0.1, 0.0), rollout(8, 0.1, 0.0)),  # dead: equal rewards
        group(
            "ground",
            rollout(10, 0.8, 1.0),
            rollout(30, None, None, ScoreStatus.TIMEOUT, Finish.LENGTH),
        ),  # dead: one scored reward
        group("never", rollout(0, None, None, ScoreStatus.UNSCORABLE, Finish.FAILED)),
    ]


# Worked out by hand from example_groups().
EXAMPLE_STATS = {
    "rollouts": 7.0,
    "groups/total": 4.0,
    "groups/dead_share": 3 / 4,
    "reward/mean": 2.0 / 5,
    "reward/std": math.sqrt((0.6**2 + 0.4**2 + 0.3**2 + 0.3**2 + 0.4**2) / 5),
    "reward/task/count": 1.2 / 4,
    "reward/task/ground": 0.8,
    "reward/part/accuracy": 2 / 5,
    "reward/part/format": 1.0,
    "scored/task/count": 4.0,
    "scored/task/ground": 1.0,
    "accuracy/mean": 2 / 5,
    "accuracy/count": 1 / 4,
    "accuracy/ground": 1.0,
    "unscorable/share": 2 / 7,
    "score/scored": 5.0,
    "score/unscorable": 1.0,
    "score/error": 0.0,
    "score/timeout": 1.0,
    "score/crash": 0.0,
    "finish/stop": 5.0,
    "finish/length": 1.0,
    "finish/failed": 1.0,
    "length/mean": 60 / 7,
    "length/min": 0.0,
    "length/max": 30.0,
    "length/q50": 6.0,
    "length/q95": 10 + 0.7 * 20,  # position 0.95 * 6 = 5.7 of 0 2 4 6 8 10 30
    "length/truncated_share": 1 / 7,
}


def assigned_stats(groups: list[RolloutGroup], world: World) -> dict[str, float]:
    """As the training loop calls it."""
    return rollout_stats(*assign_advantages(groups, AdvantageConfig()), world)


def test_rollout_stats_by_hand():
    assert assigned_stats(example_groups(), ALONE) == pytest.approx(EXAMPLE_STATS)


@pytest.mark.parametrize("keep", [False, True])
def test_a_group_is_dead_where_the_advantages_say_so(keep: bool):
    """The same rewards, a std of 0.5 in the first group: dead or alive by the setting, and so in the metrics."""
    for floor, dead in ((0.49, 3), (0.51, 4)):
        config = AdvantageConfig(std_floor=floor, keep_dead_groups=keep)
        groups, counted = assign_advantages(example_groups(), config)
        without = sum(not any(r.advantage for r in g.rollouts) for g in groups)
        assert rollout_stats(groups, counted, ALONE)["groups/dead_share"] == dead / 4 == without / 4


def test_rollout_stats_of_nothing():
    out = assigned_stats([], ALONE)
    assert out["groups/total"] == out["rollouts"] == out["score/scored"] == 0
    assert not any(name.startswith(("reward/", "length/", "accuracy/")) for name in out)


def shared_groups() -> list[RolloutGroup]:
    """|A| of 1.5, 3, 0 and 1.5, by task 4.5 of 6, 0 of 6, and 1.5 of 6."""
    given = [("count", [1.0, -0.5]), ("count", [-3.0, None]), ("dead", [None, 0.0]), ("ground", [-0.75, 0.75])]
    return [group(task, *(replace(rollout(2, 1.0), advantage=a) for a in advantages)) for task, advantages in given]


SHARES = {"advantage/share/count": 0.75, "advantage/share/dead": 0.0, "advantage/share/ground": 0.25}


def test_a_task_has_its_part_of_the_advantage():
    assert advantage_shares(shared_groups(), ALONE) == pytest.approx(SHARES)
    assert advantage_shares(shared_groups()[2:3], ALONE) == advantage_shares([], ALONE) == {}


LENGTHS = [*(1 + i % 8 for i in range(100)), 58]  # of responses with 500 tokens in all


def run_rank(rank: int, folder: str) -> None:
    """One of two gloo ranks, with unequal parts: other tokens, other groups, other tasks."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    columns = tokens(500, seed=5)
    rows = list(zip(*(c.split(LENGTHS) for c in columns), strict=True))
    # Rank 1 gets none of the responses that begin with a positive advantage.
    mine = [r for r in rows if bool(r[3][0] > 0) == (rank == 0)]
    stats = UpdateStats()
    add_padded(stats, [torch.cat(c) for c in zip(*mine, strict=True)], [len(r[0]) for r in mine])
    groups = example_groups()
    result = [stats.reduce(world), assigned_stats(groups[:1] if rank == 0 else groups[1:], world)]
    result += [advantage_shares(shared_groups()[:1] if rank == 0 else shared_groups()[1:], world)]
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.mark.slow
def test_split_over_ranks_does_not_matter(tmp_path: Path):
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    alone = UpdateStats()
    add_padded(alone, tokens(500, seed=5), LENGTHS)
    expected = alone.reduce(ALONE)
    assert first[0].keys() == expected.keys()
    for name, value in expected.items():
        assert first[0][name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    assert first[1] == pytest.approx(EXAMPLE_STATS)
    assert first[2] == pytest.approx(SHARES)
