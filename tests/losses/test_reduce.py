"""However a batch is split over micro-batches and ranks, the shares add up to one loss and one gradient."""

import functools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sapo_vl.losses.reduce import Denominators, count, reduce

HOW = ["sequence_mean", "token_mean", "token_sum"]


def test_three_reductions_by_hand():
    per_token = torch.tensor([[1.0, 2.0, 3.0, 50.0], [4.0, 50.0, 50.0, 50.0], [50.0] * 4], requires_grad=True)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    counts = count(mask, constant=8.0)
    assert counts == Denominators(num_sequences=2, num_tokens=4, constant=8.0)
    assert reduce(per_token, mask, "sequence_mean", counts).item() == pytest.approx((6 / 3 + 4) / 2)
    assert reduce(per_token, mask, "token_mean", counts).item() == pytest.approx(10 / 4)
    assert reduce(per_token, mask, "token_sum", counts).item() == pytest.approx(10 / 8)
    reduce(per_token, mask, "sequence_mean", counts).backward()
    assert per_token.grad is not None
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(per_token.grad, expected)


def expected_loss(rows: list[list[float]], how: str, constant: float) -> float:
    """The loss of the whole batch from its unpadded rows, in plain Python."""
    rows = [row for row in rows if row]
    tokens = [value for row in rows for value in row]
    if how == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    return sum(tokens) / (len(tokens) if how == "token_mean" else constant)


def pack(rows: list[Tensor], extra: int, on_the_left: bool) -> tuple[Tensor, Tensor]:
    """(per_token, mask) [B, T] padded with NaN to the longest row plus `extra`."""
    width = max(len(row) for row in rows) + extra
    pads = [torch.full((width - len(row),), float("nan")) for row in rows]
    masks = [torch.cat([torch.zeros(len(p)), torch.ones(len(r))]).bool() for p, r in zip(pads, rows, strict=True)]
    if on_the_left:
        return torch.stack([torch.cat([p, r]) for p, r in zip(pads, rows, strict=True)]), torch.stack(masks)
    return torch.stack([torch.cat([r, p]) for p, r in zip(pads, rows, strict=True)]), torch.stack(masks).flip(1)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), how=st.sampled_from(HOW), seed=st.integers(0, 2**31))
def test_any_split_gives_the_same_value_and_gradient(data, how, seed):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
    piece_of = data.draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, generator=generator, requires_grad=True) for n in lengths]
    constant = 17.0

    pieces = []
    for piece in sorted(set(piece_of)):
        members = [row for row, p in zip(rows, piece_of, strict=True) if p == piece]
        pieces.append(pack(members, data.draw(st.integers(0, 3)), data.draw(st.booleans())))
    counts = functools.reduce(operator.add, [count(mask, constant) for _, mask in pieces])
    assert counts == Denominators(sum(n > 0 for n in lengths), sum(lengths), constant)

    total = torch.zeros(())
    for per_token, mask in pieces:
        share = reduce(per_token, mask, how, counts)
        assert share.requires_grad and share.shape == ()
        share.backward()
        total += share.detach()
    assert total.item() == pytest.approx(expected_loss([row.tolist() for row in rows], how, constant), abs=1e-5)
    for row in rows:
        n = len(row)
        weight = {
            "sequence_mean": 1 / (max(n, 1) * counts.num_sequences),
            "token_mean": 1 / counts.num_tokens,
            "token_sum": 1 / constant,
        }[how]
        torch.testing.assert_close(row.grad, torch.full((n,), weight))


@pytest.mark.parametrize("how", HOW)
def test_a_piece_without_tokens_gives_zero_and_can_still_go_backward(how):
    leaf = torch.full((2, 3), float("nan"), requires_grad=True)
    share = reduce(leaf, torch.zeros(2, 3, dtype=torch.bool), how, Denominators(4, 10, 5.0))
    share.backward()
    assert share.item() == 0.0
    assert leaf.grad is not None and (leaf.grad == 0).all()


def test_bad_requests_are_named():
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="num_sequences, which is 0"):
        reduce(values, mask, "sequence_mean", Denominators(0, 0))
    with pytest.raises(ValueError, match="constant, which is None"):
        reduce(values, mask, "token_sum", Denominators(2, 6))
    with pytest.raises(ValueError, match="unknown reduction 'mean'"):
        reduce(values, mask, "mean", Denominators(2, 6))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        reduce(values, mask[:1], "token_mean", Denominators(2, 6))
    with pytest.raises(TypeError, match="mask must be bool"):
        reduce(values, mask.float(), "token_mean", Denominators(2, 6))
    with pytest.raises(ValueError, match="constants"):
        Denominators(1, 1, 2.0) + Denominators(1, 1, 3.0)
