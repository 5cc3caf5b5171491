"""Statistics of the gap between trainer and engine: values by hand, and no dependence on the split."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers_mismatch import BLANK, Sample, make_group, make_samples, micro_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.mismatch import LossWeights, MismatchConfig
from sapo_vl.learning.mismatch_stats import MismatchStats
from sapo_vl.learning.objectives import Mismatch, global_denominators, policy_objective
from sapo_vl.losses import LossConfig
from sapo_vl.model.batching import pack

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
CONFIG = MismatchConfig(correction="token_tis", off_policy_delta=0.05)


def test_gap_by_hand():
    """An image response with rho = (2, 1/2), a text response of 20 tokens with rho = 1 but for one 4."""
    group, other = make_group("a", True, [np.zeros(2)], [1.0]), make_group("b", False, [np.zeros(20)], [-1.0])
    stats = MismatchStats()
    stats.add_gap(pack([group, other], BLANK), torch.tensor([2.0, 0.5, 4.0] + [1.0] * 19).log())
    out = stats.reduce(ALONE)
    ln2 = math.log(2)
    image = {
        "tokens": 2,
        "nonfinite": 0,
        "gap_mean": ln2,
        "gap_max": ln2,
        "k1": 0,
        "k3": (2 + 0.5 - 2) / 2,  # the logarithms cancel
        "chi2": (4 + 0.25) / 2 - 1,
        "ess": 2.5**2 / (2 * 4.25),
        "ess_sequence": 1,
    }
    text = {
        "tokens": 20,
        "nonfinite": 0,
        "gap_mean": 2 * ln2 / 20,
        "gap_max": 2 * ln2,
        "k1": -2 * ln2 / 20,
        "k3": (4 - 1 - 2 * ln2) / 20,
        "chi2": (16 + 19) / 20 - 1,
        "ess": 23**2 / (20 * 35),
        "ess_sequence": 1,
    }
    whole = {
        "tokens": 22,
        "nonfinite": 0,
        "gap_mean": 4 * ln2 / 22,
        "gap_max": 2 * ln2,
        "k1": -2 * ln2 / 22,
        "k3": (25.5 - 22 - 2 * ln2) / 22,
        "chi2": (4.25 + 35) / 22 - 1,
        "ess": 25.5**2 / (22 * 39.25),
        "ess_sequence": 5**2 / (2 * 17),  # products 1 and 4
    }
    classes = {"": whole, "image/": image, "text/": text, "len_1_16/": image, "len_17_128/": text}
    expected = {f"mismatch/{c}{name}": v for c, values in classes.items() for name, v in values.items()}
    assert out.keys() == expected.keys()
    assert out == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_ends_of_the_length_classes():
    lengths = (1, 16, 17, 128, 129, 1024, 1025, 8192, 8193)
    stats = MismatchStats()
    group = make_group("a", False, [np.zeros(n) for n in lengths], [1.0] * len(lengths))
    stats.add_gap(pack([group], BLANK), torch.zeros(sum(lengths)))
    out = stats.reduce(ALONE)
    tokens = {name.split("/")[1]: int(n) for name, n in out.items() if "/len_" in name and name.endswith("/tokens")}
    assert tokens == {
        "len_1_16": 17,
        "len_17_128": 145,
        "len_129_1024": 1153,
        "len_1025_8192": 9217,
        "len_8193_up": 8193,
    }
    assert out["mismatch/chi2"] == out["mismatch/gap_max"] == 0 and out["mismatch/ess"] == 1


def test_nonfinite_tokens_are_counted_and_left_out():
    group = make_group("a", False, [np.zeros(3), np.zeros(2), np.zeros(1)], [1.0] * 3)
    stats = MismatchStats()
    d = torch.tensor([math.nan, 0.5, math.inf, 1.0, -1.0, -math.inf], requires_grad=True)
    stats.add_gap(pack([group], BLANK), d)
    out = stats.reduce(ALONE)
    assert (out["mismatch/tokens"], out["mismatch/nonfinite"]) == (3, 3)
    assert out["mismatch/gap_mean"] == pytest.approx(2.5 / 3) and out["mismatch/gap_max"] == 1.0
    assert out["mismatch/ess_sequence"] == 1.0, "of the one response that is known as a whole"
    assert all(math.isfinite(v) for v in out.values())


def test_nothing_known_and_nothing_added():
    assert MismatchStats().reduce(ALONE) == {}
    stats = MismatchStats()
    stats.add_gap(pack([make_group("a", False, [np.zeros(1)], [1.0])], BLANK), torch.tensor([math.nan]))
    classes = ("", "text/", "len_1_16/")
    assert stats.reduce(ALONE) == {f"mismatch/{c}{n}": v for c in classes for n, v in (("tokens", 0), ("nonfinite", 1))}


def test_a_huge_gap_and_a_tiny_one_stay_readable():
    group = make_group("a", False, [np.zeros(2)], [1.0])
    stats = MismatchStats()
    stats.add_gap(pack([group], BLANK), torch.tensor([300.0, -300.0]))
    out = stats.reduce(ALONE)
    assert out["mismatch/gap_max"] == 300 and out["mismatch/ess"] == pytest.approx(0.5)
    assert out["mismatch/k3"] == pytest.approx((math.exp(20) - 21 + 299) / 2)
    stats = MismatchStats()
    stats.add_gap(pack([group], BLANK), torch.tensor([1e-6, -1e-6], dtype=torch.float64))
    out = stats.reduce(ALONE)
    assert out["mismatch/k3"] == pytest.approx(0.5e-12, rel=1e-3)
    assert out["mismatch/chi2"] == pytest.approx(2e-12, rel=1e-3)


def test_weights_by_hand():
    image = make_group("a", True, [np.zeros(3), np.zeros(1)], [1.0, 1.0])
    text = make_group("b", False, [np.zeros(2)], [-1.0])
    stats = MismatchStats()
    weights = LossWeights(
        values=torch.tensor([[2.0, 0.0, 1.0], [0.0, 9.0, 9.0], [0.0, 0.0, 9.0]]),  # 9: padding
        truncated=torch.tensor([[True, False, False], [False, True, True], [False, False, True]]),
        off_policy=torch.tensor([False, False, True]),
    )
    stats.add_weights(pack([image, text], BLANK), weights)
    stats.add_weights(pack([image, text], BLANK), weights)  # the second update of the step
    out = stats.reduce(ALONE)
    names = ("weight_mean", "dropped_tokens", "truncated_tokens", "dropped_sequences", "off_policy_sequences")
    expected = {
        "": (3 / 6, 4 / 6, 1 / 6, 2 / 3, 1 / 3),
        "image/": (3 / 4, 2 / 4, 1 / 4, 1 / 2, 0),
        "text/": (0, 1, 0, 1, 1),
    }
    expected["len_1_16/"] = expected[""]
    flat = {f"mismatch/{c}{n}": v for c, vs in expected.items() for n, v in zip(names, vs, strict=True)}
    assert out == pytest.approx(flat)


def learn(parts: Sequence[Sequence[Sample]], world: World) -> dict[str, Any]:
    """This rank's share of an update, without a model: loss and d loss / d log-prob by problem, statistics over all."""
    batches = [micro_batch(part) for part in parts]
    denominators = global_denominators([mb for mb, _ in batches], world)
    stats = MismatchStats()
    mismatch = Mismatch(config=CONFIG, stats=stats, measured="old")
    objective = policy_objective(LossConfig(), denominators, UpdateStats(), None, mismatch)
    loss, slopes = 0.0, {}
    for part, (mb, new) in zip(parts, batches, strict=True):
        new.requires_grad_()
        out = objective(mb, new, torch.zeros_like(new))
        out.loss.backward()
        loss += float(out.loss.detach())
        assert new.grad is not None
        sizes = [len(s.new) for s in part]
        slopes |= {s.group.prompt.problem.id: g.tolist() for s, g in zip(part, new.grad.split(sizes), strict=True)}
    return {"loss": loss, "slopes": slopes, "stats": stats.reduce(world)}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)  # a signed sum
    assert found["slopes"].keys() == expected["slopes"].keys()
    for name, slope in expected["slopes"].items():
        assert found["slopes"][name] == pytest.approx(slope, rel=1e-5, abs=1e-9), name
    assert found["stats"].keys() == expected["stats"].keys()
    for name, value in expected["stats"].items():
        assert found["stats"][name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.data())
def test_split_over_micro_batches_does_not_matter(seed: int, data: st.DataObject):
    samples = make_samples(seed)
    order = data.draw(st.permutations(samples))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(samples) - 1))))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    assert_same(learn(parts, ALONE), learn([samples], ALONE))


def test_statistics_equal_plain_numpy(seed: int):
    samples = make_samples(seed, count=30)
    stats = learn([samples], ALONE)["stats"]
    d = np.concatenate([s.old - np.concatenate([r.logprobs for r in s.group.rollouts]) for s in samples])
    bad = ~np.isfinite(d)
    d = d[~bad].astype(np.float64)
    rho = np.exp(d)
    assert bad.sum() > 0
    assert (stats["mismatch/tokens"], stats["mismatch/nonfinite"]) == (len(d), bad.sum())
    assert stats["mismatch/gap_mean"] == pytest.approx(np.abs(d).mean())
    assert stats["mismatch/gap_max"] == pytest.approx(np.abs(d).max())
    assert stats["mismatch/k1"] == pytest.approx(-d.mean())
    assert stats["mismatch/k3"] == pytest.approx((rho - 1 - d).mean())
    assert stats["mismatch/chi2"] == pytest.approx((rho**2).mean() - 1)
    assert stats["mismatch/ess"] == pytest.approx(rho.sum() ** 2 / (len(rho) * (rho**2).sum()))
    assert stats["mismatch/text/tokens"] + stats["mismatch/image/tokens"] == len(d)
    assert 0 < stats["mismatch/off_policy_sequences"] < 1 and 0 < stats["mismatch/truncated_tokens"] < 0.5
    assert stats["mismatch/dropped_sequences"] == pytest.approx(stats["mismatch/off_policy_sequences"], abs=0.1)


def run_rank(rank: int, folder: str) -> None:
    """One of two gloo ranks. Rank 0 has two micro-batches and all the images, rank 1 one micro-batch of text."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    samples = make_samples(seed=3)
    image, text = samples[1::2], samples[::2]
    result = learn([image[:2], [*image[2:], text[0]]] if rank == 0 else [text[1:]], world)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.mark.slow
def test_split_over_ranks_does_not_matter(tmp_path: Path):
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["stats"] == second["stats"], "the same bits on every rank"
    both = {
        "loss": first["loss"] + second["loss"],
        "slopes": first["slopes"] | second["slopes"],
        "stats": first["stats"],
    }
    assert_same(both, learn([make_samples(seed=3)], ALONE))
