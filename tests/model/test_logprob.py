"""Token log-probs, entropies and gradients against a float64 reference, and the memory they may take."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sapo_vl.model import logprob
from sapo_vl.model.logprob import token_logprobs


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "recomputed"], autouse=True)
def keeps(request: pytest.FixtureRequest) -> Any:
    """Every test with the law of each chunk kept for the backward pass, and with logits that are computed again."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setattr(logprob, "KEPT_MAX_LOGITS", -1)
        yield


def example(n: int, h: int, v: int, seed: int, num_banned: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random (hidden [n, h], weight [v, h], targets [n], banned [num_banned] or None)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=generator)
    weight = torch.randn(v, h, generator=generator)
    order = torch.randperm(v, generator=generator)
    banned, allowed = order[:num_banned], order[num_banned:]
    targets = allowed[torch.randint(len(allowed), (n,), generator=generator)]
    return hidden, weight, targets, banned if num_banned else None


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    banned: Tensor | None,
    upstream: Tensor,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(logprobs, entropy, d hidden, d weight) in float64: law by division, gradients in closed form."""
    x, w, g = hidden.double().numpy(), weight.double().numpy(), upstream.double().numpy()
    mass = np.exp(x @ w.T / temperature)
    if banned is not None:
        mass[:, banned.numpy()] = 0
    law = mass / mass.sum(1, keepdims=True)
    rows = np.arange(len(x))
    entropy = -np.sum(law * np.log(np.where(law > 0, law, 1)), axis=1)
    onehot = np.zeros_like(law)
    onehot[rows, targets.numpy()] = 1
    slope = g[:, None] * (onehot - law) / temperature
    return np.log(law[rows, targets.numpy()]), entropy, slope @ w, slope.T @ x


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 23),
    chunk_size=st.integers(1, 9),
    temperature=st.sampled_from([0.6, 1.0, 1.7]),
    num_banned=st.sampled_from([0, 1, 5]),
    chunked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_matches_float64_reference(n, chunk_size, temperature, num_banned, chunked, seed):
    hidden, weight, targets, banned = example(n, 6, 31, seed, num_banned)
    upstream = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1))
    want = reference(hidden, weight, targets, temperature, banned, upstream)
    hidden.requires_grad_(), weight.requires_grad_()
    logprobs, entropy = token_logprobs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        banned_ids=banned,
        chunk_size=chunk_size,
        chunked=chunked,
    )
    assert logprobs.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    (logprobs * upstream).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    for got, expected in zip((logprobs.detach(), entropy, hidden.grad, weight.grad), want, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=3e-5)
    if banned is not None:
        assert (weight.grad[banned] == 0).all()


def test_by_hand():
    # Logits 0, ln 2, ln 5 at temperature 1: law 1/8, 2/8, 5/8. Banning the last leaves 1/3, 2/3.
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    target = torch.tensor([1])
    for chunked in (False, True):
        logprobs, entropy = token_logprobs(hidden, weight, target, temperature=1.0, chunked=chunked)
        assert logprobs.item() == pytest.approx(math.log(1 / 4))
        assert entropy.item() == pytest.approx(math.log(8) - (2 * math.log(2) + 5 * math.log(5)) / 8)
        logprobs, entropy = token_logprobs(
            hidden, weight, target, temperature=1.0, banned_ids=torch.tensor([2]), chunked=chunked
        )
        assert logprobs.item() == pytest.approx(math.log(2 / 3))
        assert entropy.item() == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
        # Temperature 1/2 squares the odds: 1 : 4 : 25.
        logprobs, _ = token_logprobs(hidden, weight, target, temperature=0.5, chunked=chunked)
        assert logprobs.item() == pytest.approx(math.log(4 / 30))


@pytest.mark.parametrize("chunked", [False, True])
def test_only_the_gradients_asked_for(chunked):
    hidden, weight, targets, _ = example(7, 4, 13, 0)
    both = [t.clone().requires_grad_() for t in (hidden, weight)]
    token_logprobs(*both, targets, temperature=1.0, chunk_size=3, chunked=chunked)[0].sum().backward()
    for k in (0, 1):
        one = [hidden.clone(), weight.clone()]
        one[k].requires_grad_()
        token_logprobs(*one, targets, temperature=1.0, chunk_size=3, chunked=chunked)[0].sum().backward()
        assert torch.equal(one[k].grad, both[k].grad)
        assert one[1 - k].grad is None
    assert not token_logprobs(hidden, weight, targets, temperature=1.0, chunked=chunked)[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunked", [None, False, True])
def test_half_precision_input_has_float32_logits(dtype, chunked):
    hidden, weight, targets, banned = example(9, 16, 40, 4, 3)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    want = reference(hidden, weight, targets, 0.8, banned, torch.ones(9))
    hidden.requires_grad_(), weight.requires_grad_()
    logprobs, entropy = token_logprobs(
        hidden, weight, targets, temperature=0.8, banned_ids=banned, chunk_size=4, chunked=chunked
    )
    # Half-precision logits would be off by about 0.02 here.
    np.testing.assert_allclose(logprobs.detach().numpy(), want[0], atol=2e-5)
    np.testing.assert_allclose(entropy.numpy(), want[1], atol=2e-5)
    logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    np.testing.assert_allclose(hidden.grad.float().numpy(), want[2], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(weight.grad.float().numpy(), want[3], rtol=1e-2, atol=1e-2)


def test_weight_gradient_is_summed_in_float32():
    # 4,096 tokens of one state each add the same small slope; bfloat16 sums stop growing after 256 such
    # terms.
    n = 4096
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(n, 1, dtype=torch.bfloat16)
    targets = torch.zeros(n, dtype=torch.int64)
    token_logprobs(hidden, weight, targets, temperature=1.0, chunk_size=1, chunked=True)[0].sum().backward()
    assert weight.grad is not None and weight.grad.flatten().tolist() == [n / 2, -n / 2]


@pytest.mark.parametrize("chunked", [False, True])
def test_autocast_does_not_round_the_logits(chunked):
    hidden, weight, targets, _ = example(9, 16, 40, 4)
    plain, _ = token_logprobs(hidden, weight, targets, temperature=1.0, chunked=chunked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = token_logprobs(hidden, weight, targets, temperature=1.0, chunked=chunked)
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("chunked", [None, False, True])
def test_no_tokens(chunked):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(13, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    logprobs, entropy = token_logprobs(
        hidden, weight, none, temperature=1.0, banned_ids=torch.tensor([3]), chunked=chunked
    )
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()  # every rank must be able to go backward
    assert weight.grad is not None and (weight.grad == 0).all()
    assert hidden.grad is not None and hidden.grad.shape == (0, 4)


def test_extreme_logits_stay_finite():
    weight = torch.tensor([[300.0], [-300.0], [299.0]], requires_grad=True)
    hidden, targets = torch.ones(2, 1), torch.tensor([0, 1])
    for chunked in (False, True):
        weight.grad = None
        logprobs, entropy = token_logprobs(hidden, weight, targets, temperature=1.0, chunked=chunked)
        assert logprobs[1].item() == pytest.approx(-600.3133, rel=1e-5)
        assert entropy[0].item() == pytest.approx(0.582203, rel=1e-4)  # of the law e/(1+e), 1/(1+e)
        logprobs.sum().backward()
        assert weight.grad is not None and weight.grad.isfinite().all()


def test_head_tied_to_the_embedding():
    generator = torch.Generator().manual_seed(8)
    ids, targets = torch.tensor([1, 4, 2, 4]), torch.tensor([4, 2, 0, 3])
    start = torch.randn(6, 5, generator=generator)
    grads = []
    for double in (False, True):
        table = start.clone().double().requires_grad_() if double else start.clone().requires_grad_()
        hidden = torch.tanh(table[ids])
        if double:
            logprobs = (hidden @ table.T).log_softmax(-1)[range(4), targets]
        else:
            logprobs, _ = token_logprobs(hidden, table, targets, temperature=1.0, chunk_size=3, chunked=True)
        logprobs.sum().backward()
        assert table.grad is not None
        grads.append(table.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


def test_weight_may_be_released_between_forward_and_backward():
    """As ZeRO-3 does to a parameter: its data is dropped after forward and gathered before backward."""
    hidden, start, targets, _ = example(7, 4, 13, 2)
    expected = start.clone().requires_grad_()
    token_logprobs(hidden, expected, targets, temperature=1.0, chunked=True)[0].sum().backward()
    weight = torch.nn.Parameter(start.clone())
    logprobs, _ = token_logprobs(hidden, weight, targets, temperature=1.0, chunk_size=3, chunked=True)
    storage = weight.data.untyped_storage()
    weight.data = torch.empty(0)
    storage.resize_(0)  # anything that kept a view of the old storage would read garbage or crash
    weight.data = start.clone()
    logprobs.sum().backward()
    torch.testing.assert_close(weight.grad, expected.grad)


class LargestTensor(TorchDispatchMode):
    """Records the element count of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize(("chunked", "largest"), [(True, 16 * 900), (False, 700 * 900)])
def test_chunked_never_holds_all_logits(chunked, largest):
    hidden, weight, targets, banned = example(700, 8, 900, 3, 4)  # N H = 5,600, V H = 7,200, N V = 630,000
    hidden.requires_grad_(), weight.requires_grad_()
    with LargestTensor() as seen:
        logprobs, _ = token_logprobs(
            hidden, weight, targets, temperature=1.0, banned_ids=banned, chunk_size=16, chunked=chunked
        )
        logprobs.sum().backward()
    assert seen.numel == largest


def test_the_way_is_chosen_by_size(monkeypatch):
    hidden, weight, targets, _ = example(20, 4, 50, 1)
    for threshold, largest in ((1000, 20 * 50), (999, 3 * 50)):
        monkeypatch.setattr(logprob, "PLAIN_MAX_LOGITS", threshold)
        with LargestTensor() as seen:
            token_logprobs(hidden, weight, targets, temperature=1.0, chunk_size=3)
        assert seen.numel == max(largest, weight.numel())


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("limit", "products"), [(20 * 50, 3), (20 * 50 - 1, 4)])
def test_few_logits_are_computed_once(monkeypatch, limit, products):
    """One product forward and one for each gradient, and one more where the logits are made again."""
    monkeypatch.setattr(logprob, "KEPT_MAX_LOGITS", limit)
    hidden, weight, targets, _ = example(20, 4, 50, 1)
    hidden.requires_grad_(), weight.requires_grad_()
    with Products() as seen:
        logprobs, _ = token_logprobs(hidden, weight, targets, temperature=1.0, chunk_size=10, chunked=True)
        logprobs.sum().backward()
    assert seen.count == 2 * products


def test_nothing_is_kept_where_nothing_is_learned():
    """By default few logits are taken all at once, but not for log-probs alone."""
    hidden, weight, targets, _ = example(700, 8, 900, 3)
    weight.requires_grad_()
    with LargestTensor() as seen, torch.no_grad():
        token_logprobs(hidden, weight, targets, temperature=1.0, chunked=True)
    assert seen.numel == 128 * 900


def test_a_second_backward_pass_gives_the_same():
    hidden, weight, targets, banned = example(20, 4, 50, 1, 2)
    hidden.requires_grad_(), weight.requires_grad_()
    logprobs, _ = token_logprobs(
        hidden, weight, targets, temperature=1.3, banned_ids=banned, chunk_size=7, chunked=True
    )
    once, again = (torch.autograd.grad(logprobs.sum(), (hidden, weight), retain_graph=True) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)


def test_bad_input_is_named():
    hidden, weight, targets, _ = example(4, 3, 10, 0)
    cases = [
        ({"targets": torch.tensor([1, 2, 10, 3])}, r"targets\[2\] is 10, outside the vocabulary \[0, 10\)"),
        ({"targets": torch.tensor([1, -1, 2, 3])}, r"targets\[1\] is -1, outside"),
        (
            {"targets": torch.tensor([1, 2, 3, 7]), "banned_ids": torch.tensor([9, 7])},
            r"targets\[3\] is the banned id 7",
        ),
        ({"targets": targets[:3]}, r"targets must be \[4\] int64"),
        ({"targets": targets.int()}, "int64"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"weight": torch.zeros(10, 5)}, r"hidden must be \[N, H\]"),
        ({"banned_ids": torch.tensor([[1]])}, "banned_ids must be"),
    ]
    for change, message in cases:
        call = {"hidden": hidden, "weight": weight, "targets": targets, "temperature": 1.0, **change}
        with pytest.raises(ValueError, match=message):
            token_logprobs(**call)
