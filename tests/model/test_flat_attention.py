"""Three ways of attending over a flat row: alike in outputs and gradients, and none does much that is not needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from sapo_vl.model import attention_dense, attention_flex, attention_merged
from sapo_vl.model.prefix_attention import PrefixLayout, Way, build_layout, shared_prefix_attention
from sapo_vl.model.segments import Groups, check_groups, needed_scores, segments

HEADS, KV_HEADS, WIDTH = 4, 2, 16


def random_groups(rng: np.random.Generator, longest: int) -> Groups:
    """Up to 4 groups, some of them without responses, some like the one before."""
    groups: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(int(rng.integers(1, 5))):
        responses = tuple(int(n) for n in rng.integers(1, longest + 1, int(rng.integers(0, 5))))
        groups += [(int(rng.integers(1, longest + 1)), responses)] * int(rng.integers(1, 3))
    return check_groups(groups)


def seen(groups: Groups) -> Tensor:
    """[T, T] bool, True = the query (row) may attend to the key: laid out group by group."""
    tokens = segments(groups)[-1].stop
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    start = 0
    for prompt, responses in groups:
        before = slice(start, start + prompt)
        mask[before, before] = torch.ones(prompt, prompt).tril().bool()
        start += prompt
        for n in responses:
            own = slice(start, start + n)
            mask[own, before] = True
            mask[own, own] = torch.ones(n, n).tril().bool()
            start += n
    return mask


def inputs(groups: Groups, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, value as a model hands them over, and a slope of the output."""
    torch.manual_seed(seed)
    tokens = segments(groups)[-1].stop
    made = [torch.randn(1, tokens, h, WIDTH, dtype=dtype) for h in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [x.transpose(1, 2).requires_grad_() for x in made[:3]] + made[3:]


def plain(groups: Groups, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The formula: softmax over the scores of the keys that are seen, in float64. [1, T, heads, d]"""
    query, key, value = query.double(), key.double(), value.double()
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~seen(groups), float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


@pytest.mark.parametrize("way", ["merged", "dense"])
@pytest.mark.parametrize("longest", [3, 40, 300])
def test_outputs_and_gradients_are_the_formulas(way: Way, longest: int, seed: int) -> None:
    groups = random_groups(np.random.default_rng(seed), longest)
    query, key, value, slope = inputs(groups, seed)
    right = plain(groups, query, key, value, 0.3)
    expected = torch.autograd.grad((right * slope).sum(), (query, key, value))
    out = build_layout(groups, way).attend(query, key, value, 0.3)
    found = torch.autograd.grad((out * slope).sum(), (query, key, value))
    for a, b in zip((out, *found), (right, *expected), strict=True):
        assert a.shape == b.shape and a.dtype == torch.float32
        assert apart(a, b) < 1e-6 or (not b.any() and a.abs().max() < 1e-5), groups


@pytest.mark.parametrize(
    "groups",
    [
        [(1, [1])],
        [(5, [])],
        [(3, [2, 2]), (3, [2, 2]), (3, [4])],  # of one shape each, of one length only the first two
        [(257, [256, 1]), (16, [17, 16, 15])],  # at the borders of what runs alone and together
        [(600, [900, 300])],
    ],
)
def test_shapes_at_the_borders(groups: list[tuple[int, list[int]]]) -> None:
    test = check_groups(groups)
    query, key, value, slope = inputs(test, 1, torch.float64)
    right = plain(test, query, key, value, 0.25)
    expected = torch.autograd.grad((right * slope).sum(), (query, key, value))
    out = build_layout(groups, "merged").attend(query, key, value, 0.25)
    found = torch.autograd.grad((out * slope).sum(), (query, key, value))
    for a, b in zip((out, *found), (right, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_large_scores_do_not_overflow(seed: int) -> None:
    """Scores of the prompt far above those of the response, where exp overflows (88), and the other way round.

    They are sixteenths and below 256, so that float32 has them exactly, and the sum of a row, which the gradient is
    taken by, to 8e-6.
    """
    groups = check_groups([(4, [5, 3]), (4, [5, 3])])
    query, key, value, slope = inputs(groups, seed)
    with torch.no_grad():
        query.fill_(4.0)
        key.normal_().mul_(6.4).round_().div_(64)
        key[:, :, :4] += 3.0
        key[:, :, 16:] += 3.0
    right = plain(groups, query, key, value, 1.0)
    expected = torch.autograd.grad((right * slope).sum(), value)[0]
    out = build_layout(groups, "merged").attend(query, key, value, 1.0)
    found = torch.autograd.grad((out * slope).sum(), (query, key, value))
    assert all(g.isfinite().all() for g in found)
    assert apart(out, right) < 1e-5 and apart(found[2], expected) < 1e-5


def test_bfloat16_is_merged_in_float32(seed: int) -> None:
    groups = random_groups(np.random.default_rng(seed), 50)
    query, key, value, slope = inputs(groups, seed, torch.bfloat16)
    right = plain(groups, query, key, value, 0.25)
    out = build_layout(groups, "merged").attend(query, key, value, 0.25)
    assert out.dtype == torch.bfloat16 and apart(out, right) < 0.01
    found = torch.autograd.grad((out * slope).sum(), (query, key, value))
    expected = torch.autograd.grad((right * slope).sum(), (query, key, value))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a - b).norm()) <= 0.02 * float(b.norm()) + 1e-3


@pytest.mark.parametrize("longest", [5, 60, 300])
def test_block_mask_is_the_dense_mask(longest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(6):
        groups = random_groups(rng, longest)
        tokens = segments(groups)[-1].stop
        mask = attention_flex.block_mask(groups, torch.device("cpu"))
        place = torch.arange(tokens)
        zero = torch.zeros(1, dtype=torch.int64)
        assert torch.equal(mask.mask_mod(zero, zero, place[:, None], place[None]), seen(groups)), groups
        # By blocks it is what torch makes of the same rule by looking at every score.
        other = create_block_mask(mask.mask_mod, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=128)
        assert torch.equal(mask.to_dense(), other.to_dense()), groups
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(mask, name), getattr(other, name)), (name, groups)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("longest", [5, 150])
def test_flex_forward_is_the_formula(longest: int, seed: int) -> None:
    """Its backward does not run on a CPU; `bench/gpu.sh` compares it on a GPU."""
    groups = random_groups(np.random.default_rng(seed), longest)
    query, key, value = (x.detach() for x in inputs(groups, seed)[:3])
    out = build_layout(groups, "flex").attend(query, key, value, 0.3)
    assert apart(out, plain(groups, query, key, value, 0.3)) < 1e-6


def test_short_rows_take_the_kernel_that_knows_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel for decoding raises for blocks of 128 and a row shorter than that, with grouped heads."""
    told: list[dict[str, Any]] = []

    def attention(query: torch.Tensor, *_: Any, kernel_options: dict[str, Any], **__: Any) -> torch.Tensor:
        told.append(kernel_options)
        return query

    monkeypatch.setattr("torch.nn.attention.flex_attention.flex_attention", attention)
    groups = check_groups([(20, [3, 4])])
    build_layout(groups, "flex").attend(*inputs(groups, seed)[:3], 0.3)
    assert told == [{"FORCE_USE_FLEX_ATTENTION": True}]


def test_scores_by_hand() -> None:
    """Row p p a b b | q c c: 3 + (2 + 1) + (4 + 3) of the first group, 1 + (2 + 3) of the second."""
    groups = check_groups([(2, [1, 2]), (1, [2])])
    assert needed_scores(groups) == int(seen(groups).sum()) == 19
    # All five run together, padded to 2 tokens: 5 squares of 4; the prompts: 2 x 3 and 1 x 2.
    assert attention_merged.computed_scores(attention_merged.make_plan(groups)) == 5 * 4 + 6 + 2
    assert attention_flex.computed_scores(attention_flex.block_mask(groups, torch.device("cpu"))) == 128 * 128
    # 2 prompts and 3 responses of at most 2 tokens
    assert attention_dense.computed_scores(attention_dense.rectangles(groups)) == 2 * 4 + 3 * 2 * 4


def lognormal(rng: np.random.Generator, groups: int) -> Groups:
    """Prompts of 400 to 1300 tokens, 16 responses each of mean 600, at most 2048."""
    lengths = np.clip(rng.lognormal(np.log(600) - 0.32, 0.8, (groups, 16)), 1, 2048).astype(int)
    return check_groups([(int(rng.integers(400, 1300)), row.tolist()) for row in lengths])


def test_little_is_computed_and_stored_that_is_not_needed(seed: int) -> None:
    """Summed over six rows: a single one of short responses may have 1.4 times the scores in its blocks."""
    rng = np.random.default_rng(seed)
    needed = merged = blocks = dense = 0
    for groups in (lognormal(rng, 2) for _ in range(6)):
        needed += needed_scores(groups)
        plan = attention_merged.make_plan(groups)
        merged += attention_merged.computed_scores(plan)
        mask = attention_flex.block_mask(groups, torch.device("cpu"))
        blocks += attention_flex.computed_scores(mask)
        assert sum(t.nbytes for t in plan.tensors()) < 16 * segments(groups)[-1].stop
        assert sum(t.nbytes for t in attention_flex.mask_tensors(mask)) < 50 * segments(groups)[-1].stop
        longest = max(p for p, _ in groups), max(max(rs) for _, rs in groups)
        dense += 2 * longest[0] ** 2 + 32 * longest[1] * sum(longest)  # as test_scores_by_hand counts rectangles
    assert needed <= merged < 1.1 * needed
    assert needed <= blocks < 1.3 * needed
    assert dense > 3 * needed


def test_every_token_has_one_place(seed: int) -> None:
    """So nothing is added up over an index that repeats, in either direction."""
    for longest in (5, 60, 300):
        groups = random_groups(np.random.default_rng(seed), longest)
        tokens = segments(groups)[-1].stop
        row, counted = torch.arange(tokens)[:, None], torch.zeros(tokens, 1, dtype=torch.int64)
        for run in attention_merged.make_plan(groups).own:
            taken = run.take(row)
            assert taken.shape == (run.rows, 1, run.length)
            assert ((taken.diff(dim=2) == 1) | (taken.diff(dim=2) == 0)).all()
            before = counted.clone()
            run.put(torch.ones_like(taken), counted)
            if run.index is not None:
                real = run.index if run.real is None else run.index[run.real]
                assert len(real.unique()) == len(real)
                assert not before[real].any()
        assert counted.eq(1).all()


def test_way_follows_the_device() -> None:
    layout = build_layout([(2, [1])])
    assert layout.way == "merged" and layout.to("cpu") is layout
    assert layout.to("cuda").way == "flex" and layout.to("xpu").way == "dense"
    assert layout.to("cuda").groups == layout.groups
    assert isinstance(layout, PrefixLayout) and build_layout([(2, [1])], "dense").to("cuda").way == "dense"


def test_dropout_is_refused() -> None:
    query, key, value, _ = inputs(check_groups([(2, [1])]), 0)
    with pytest.raises(ValueError, match=r"attention_dropout is 0\.1"):
        shared_prefix_attention(
            torch.nn.Identity(), query, key, value, None, dropout=0.1, prefix_layout=build_layout([(2, [1])])
        )
