"""Groups dealt to ranks by work: nothing is lost, ranks wait little, and an update computes what it computed."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from helpers_launch import run_ranks
from helpers_models import make_model
from hypothesis import given
from hypothesis import strategies as st

from sapo_vl.learning.dealing import Deal, Piece, Sized, deal
from sapo_vl.model.work import Work, work_of

# Of 30B-A3B, in thousands of operations a token: its 3.0 billion active weights, 48 layers of 32 heads of 128.
WORK = Work(token=5.4e6, target=0.6e6, score=786.0, patch=0.27e6, patch_score=42.0)


def test_work_by_hand() -> None:
    work = Work(token=10.0, target=3.0, score=1.0, patch=5.0, patch_score=0.5)
    # 4 + 3 tokens, 3 of them predicted; the prompt's pairs 4 + 3 + 2 + 1, prompt x responses 12, own pairs 3 + 1
    assert work.of(4, [2, 1], [2, 1]) == 10 * 7 + 3 * 3 + (10 + 12 + 4) + 5 * 3 + 0.5 * 5


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_work_of_a_model_counts_the_weights_that_a_token_meets(kind: str) -> None:
    model = make_model(kind, 0)  # type: ignore[arg-type]
    text = model.config.get_text_config()
    h, d, layers = text.hidden_size, text.head_dim, text.num_hidden_layers
    attention = h * d * (2 * text.num_attention_heads + 2 * text.num_key_value_heads) + 2 * d
    inner = text.moe_intermediate_size * text.num_experts_per_tok if kind == "moe" else text.intermediate_size
    router = h * text.num_experts if kind == "moe" else 0
    work = work_of(model)
    assert work.token == pytest.approx(2 * (layers * (attention + 3 * h * inner + router + 2 * h) + h))
    assert work.target == 2 * h * text.vocab_size
    assert work.score == 4 * layers * text.num_attention_heads * d
    learning = work.patch
    for p in model.model.visual.parameters():
        p.requires_grad_(False)
    assert work_of(model).patch == pytest.approx(learning / 3)


def sized(rng: np.random.Generator, home: int, index: int) -> Sized:
    lengths = tuple(int(n) for n in rng.integers(1, 60, int(rng.integers(1, 9))))
    pictures = tuple(int(n) for n in rng.integers(1, 20, int(rng.integers(0, 3))))
    places = tuple(sorted(rng.choice(12, len(lengths), replace=False).tolist()))
    return Sized(home=home, index=index, prompt=int(rng.integers(1, 30)), patches=pictures, responses=places,
                 lengths=lengths)  # fmt: skip


def pieces_of(found: Deal) -> list[Piece]:
    return [piece for rank in found.rows for row in rank for piece in row]


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 20), st.integers(20, 400))
def test_every_response_is_trained_once_within_the_budget(seed: int, ranks: int, count: int, budget: int) -> None:
    rng = np.random.default_rng(seed)
    homes = np.sort(rng.integers(0, ranks, count))
    groups = [sized(rng, int(home), i) for i, home in enumerate(homes)]
    found = deal(groups, ranks, budget, WORK)
    assert len(found.rows) == ranks
    trained = sorted((p.home, p.index, j) for p in pieces_of(found) for j in p.responses)
    assert trained == sorted((g.home, g.index, j) for g in groups for j in g.responses)
    by_index = {g.index: g for g in groups}
    for row in (row for rank in found.rows for row in rank):
        assert row, "an empty micro-batch"
        size = 0
        for p in row:
            g = by_index[p.index]
            length = dict(zip(g.responses, g.lengths, strict=True))
            size += g.prompt + sum(g.patches) + sum(length[j] for j in p.responses)
        assert size == sum(p.size for p in row)
        assert size <= budget or (len(row) == 1 and len(row[0].responses) == 1)
    assert found.taken >= found.needed * (1 - 1e-9)
    assert found == deal(groups, ranks, budget, WORK)


def test_one_rank_keeps_its_order_and_equal_ranks_keep_their_groups() -> None:
    def group(home: int, index: int, length: int) -> Sized:
        return Sized(home=home, index=index, prompt=10, patches=(), responses=(0, 1), lengths=(length, length))

    alone = deal([group(0, i, n) for i, n in enumerate((20, 5, 30, 1))], 1, 80, WORK)
    # sizes 50, 20, 70 and 12
    assert [[p.index for p in row] for row in alone.rows[0]] == [[0, 1], [2], [3]]
    same = deal([group(home, i, 20) for home in (0, 1) for i in range(3)], 2, 1000, WORK)
    assert all(p.home == rank for rank, rows in enumerate(same.rows) for row in rows for p in row)


def test_a_deal_by_hand() -> None:
    """Work is the tokens alone. Rank 0 has 40, 30 and 20, rank 1 has 10: they meet at 50 and 50, and the row of rank 1
    stays with it."""
    plain = Work(token=1.0, target=0.0, score=0.0, patch=0.0, patch_score=0.0)

    def group(home: int, index: int, tokens: int) -> Sized:
        return Sized(home=home, index=index, prompt=tokens - 5, patches=(), responses=(0,), lengths=(5,))

    found = deal([group(0, 0, 40), group(0, 1, 30), group(0, 2, 20), group(1, 0, 10)], 2, 100, plain)
    assert [[(p.home, p.index) for p in row] for row in found.rows[1]] == [[(0, 0), (1, 0)]]
    assert [[(p.home, p.index) for p in row] for row in found.rows[0]] == [[(0, 1), (0, 2)]]
    assert (found.needed, found.taken, found.rounds) == (100.0, 100.0, 1)


@pytest.mark.parametrize(("dead", "least"), [(0.0, 0.92), (0.5, 0.88)])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_ranks_wait_little_for_each_other(dead: float, least: float, shared: float, seed: int) -> None:
    """8 ranks of 8 groups an update, G = 16, prompts of 400 to 1300 tokens with a picture, lognormal responses of mean
    600 cut at 2048; `shared`: the part of the variance of log lengths that is the prompt's."""
    rng = np.random.default_rng(seed)
    needed = taken = 0.0
    for _ in range(4):
        groups = []
        for i in (i for i in range(64) if rng.random() >= dead):
            noise = math.sqrt(shared) * rng.normal() + math.sqrt(1 - shared) * rng.normal(size=16)
            lengths = np.clip(np.exp(math.log(600) - 0.32 + 0.8 * noise), 1, 2048).astype(int)
            picture = (4 * int(rng.integers(256, 361)),)
            groups.append(
                Sized(home=i // 8, index=i % 8, prompt=int(rng.integers(400, 1301)), patches=picture,
                      responses=tuple(range(16)), lengths=tuple(lengths.tolist()))
            )  # fmt: skip
        found = deal(groups, 8, 32768, WORK)
        needed, taken = needed + found.needed, taken + found.taken
    assert needed / taken >= least


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("dealt")
    run_ranks(2, "dealing_worker.py", folder, str(request.config.option.seed))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_an_update_is_the_same_whoever_trains_what(ranks: list[dict[str, Any]]) -> None:
    """On two real ranks: MoE with images, replayed routes, split groups; gradients, denominators and metrics."""
    first = ranks[0]
    assert first["values"] == ranks[1]["values"]
    assert first["values"]["deal/moved"] > 0 and first["values"]["deal/split"] > 0
    assert first["values"]["deal/over_budget"] == 0
    assert ranks[1]["visitors"] > 0
    assert len(first["gradient errors"]) == 2
    for errors in first["gradient errors"]:
        assert len(errors) > 40
        for name, (error, norm) in errors.items():
            assert error <= 1e-5 * norm + 1e-12, name
        assert max(norm for _, norm in errors.values()) > 1e-3
    for at_home, dealt in zip(first["at home"]["metrics"], first["dealt"]["metrics"], strict=True):
        assert at_home.keys() == dealt.keys() and at_home["sequences"] > 0
        for name, expected in at_home.items():
            # Sums of squares of nothing but rounding are rounding.
            assert dealt[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_what_has_no_gradient_is_counted_over_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """Responses of 2 and 2 tokens in the first update; of 9, 14 and, on the other rank, 5 in the second."""
    assert [found["still"] for found in ranks] == [[[2, 4], [3, 28]]] * 2


def test_the_record_of_tokens_comes_home(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        at_home, dealt = rank["at home"]["tokens"], rank["dealt"]["tokens"]
        for name in ("offsets", "update", "token_ids", "mask"):
            assert dealt[name] == at_home[name], name
        assert set(at_home["update"]) >= {1, 2}
        for name in at_home.keys() - {"offsets", "update", "token_ids", "mask"}:
            np.testing.assert_allclose(dealt[name], at_home[name], rtol=2e-3, atol=2e-3, err_msg=name)
