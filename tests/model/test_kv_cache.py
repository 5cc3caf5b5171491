"""The cache of sampling computes what every response alone would compute with keys and values of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sapo_vl.model.kv_cache import FIRST_COLUMNS, KVCache, key_bytes_per_token

HEADS, KEY_HEADS, SIZE, LAYERS = 6, 2, 8, 2
SCALE = 0.3


@dataclass
class Alone:
    """A response with a copy of all it may see: [KEY_HEADS, tokens, SIZE], key and value of each layer."""

    seen: list[list[Tensor]]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[HEADS, 1, SIZE], [KEY_HEADS, 1, SIZE] twice -> [HEADS, SIZE], in float64."""
        pair = self.seen[layer] = [torch.cat(x, 1) for x in zip(self.seen[layer], (key, value), strict=True)]
        k, v = (x.double().repeat_interleave(HEADS // KEY_HEADS, 0) for x in pair)
        return F.scaled_dot_product_attention(query.double(), k, v, scale=SCALE)[:, 0]


class Both:
    """A cache and, beside it, every response alone."""

    def __init__(self, rng: np.random.Generator, groups: list[tuple[int, int]], dtype: torch.dtype) -> None:
        """`groups`: tokens of a prompt, number of responses."""
        self.rng, self.dtype = rng, dtype
        lengths = np.array([p for p, _ in groups])
        self.cache = KVCache(lengths, np.repeat(np.arange(len(groups)), [n for _, n in groups]))
        self.alone = [Alone([[] for _ in range(LAYERS)]) for _ in self.cache.prompt_of]
        for layer in range(LAYERS):
            key, value = self.draw(1, KEY_HEADS, int(lengths.sum())), self.draw(1, KEY_HEADS, int(lengths.sum()))
            self.cache.store_prompts(layer, key, value)
            parts = [x[0].split(lengths.tolist(), 1) for x in (key, value)]
            for alone, prompt in zip(self.alone, self.cache.prompt_of, strict=True):
                alone.seen[layer] = [part[prompt] for part in parts]

    def draw(self, rows: int, heads: int, tokens: int) -> Tensor:
        return torch.from_numpy(self.rng.normal(size=(rows, heads, tokens, SIZE))).to(self.dtype)

    def step(self, most: int) -> float:
        """The largest difference over all layers and responses of one more token."""
        self.cache.advance(most)
        worst, b = 0.0, len(self.alone)
        for layer in range(LAYERS):
            query, key, value = self.draw(b, HEADS, 1), self.draw(b, KEY_HEADS, 1), self.draw(b, KEY_HEADS, 1)
            found = self.cache.attend(layer, query, key, value, SCALE)
            assert found.shape == (b, 1, HEADS, SIZE) and found.dtype == self.dtype
            right = [a.attend(layer, query[i], key[i], value[i]) for i, a in enumerate(self.alone)]
            worst = max(worst, float((found[:, 0].double() - torch.stack(right)).abs().max()))
        return worst

    def keep(self, rows: np.ndarray, most: int) -> None:
        self.cache.keep(rows, most)
        self.alone = [a for a, kept in zip(self.alone, rows, strict=True) if kept]

    def join(self, other: Both) -> None:
        self.cache.join(other.cache)
        self.alone += other.alone


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("same", [True, False])
def test_equals_every_response_alone(dtype: torch.dtype, tolerance: float, same: bool, seed: int) -> None:
    """Through growing buffers, responses that fall away, and others that come in later."""
    rng = np.random.default_rng(seed)

    def groups() -> list[tuple[int, int]]:
        if same:
            return [(11, 4)] * 3
        return [(int(rng.integers(1, 30)), int(rng.integers(1, 6))) for _ in range(int(rng.integers(1, 5)))]

    both, most, worst = Both(rng, groups(), dtype), FIRST_COLUMNS + 8, 0.0
    for at in range(2 * FIRST_COLUMNS):
        worst = max(worst, both.step(most))
        if at % 13 == 5:
            rows = rng.random(len(both.alone)) < 0.6
            rows[rng.integers(len(rows))] = True
            both.keep(rows, most)
        if at % 17 == 9:  # the oldest go, so that the buffers can be laid anew
            rows = both.cache.born > both.cache.born.min()
            if rows.any():
                both.keep(rows, most)
            both.join(Both(rng, groups(), dtype))
        lengths = both.cache.prompt_lengths
        assert {k.shape[2] for k, _ in both.cache.prompt_keys.values()} == {lengths.max()}
        assert {len(k) for k, _ in both.cache.prompt_keys.values()} == {len(lengths)}, "one copy a prompt"
    assert worst < tolerance


def test_buffers_are_bounded(seed: int) -> None:
    """Responses of 20 tokens that come and go for 100 steps never need more than the columns they were promised."""
    rng = np.random.default_rng(seed)
    both, most = Both(rng, [(5, 1)], torch.float32), 25
    for _ in range(100):
        assert both.step(most) < 1e-5
        assert both.cache.capacity <= most
        if both.cache.columns - both.cache.born.min() >= 19:
            rows = both.cache.born > both.cache.born.min()
            assert rows.any()
            both.keep(rows, most)
        if len(both.alone) < 3:
            both.join(Both(rng, [(int(rng.integers(1, 9)), 1)], torch.float32))


def test_forgetting_begins_anew(seed: int) -> None:
    both = Both(np.random.default_rng(seed), [(3, 2), (4, 1)], torch.float32)
    prompts = [[list(pair) for pair in a.seen] for a in both.alone]
    for _ in range(3):
        both.step(8)
    both.cache.forget()
    for alone, seen in zip(both.alone, prompts, strict=True):
        alone.seen = seen
    assert both.step(8) < 1e-5


def test_bytes_by_hand() -> None:
    # Qwen3-VL-4B in bfloat16: keys and values of 36 layers, 8 heads of 128.
    assert key_bytes_per_token(36, 8, 128, 2) == 147_456
