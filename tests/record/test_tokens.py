"""The file of per-token numbers: what is written comes back, and a damaged one is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from sapo_vl.record.rollout_log import RolloutLog, drop_ranks
from sapo_vl.record.tokens import (
    ABOUT,
    BYTES_PER_TOKEN,
    DTYPES,
    FORMAT,
    LEFT_OUT,
    Tokens,
    bytes_of_rank,
    choose,
    read_tokens,
    tokens_path,
    write_tokens,
)


def made_up(lengths: list[int], seed: int) -> Tokens:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    floats = {name: rng.normal(size=total).astype(dtype) for name, dtype in DTYPES.items() if "float" in dtype}
    floats["gap"][::3] = np.nan
    return Tokens(
        offsets=np.cumsum([0, *lengths], dtype=np.int32),
        update=rng.integers(0, 5, len(lengths), dtype=np.int32),
        token_ids=rng.integers(0, 150_000, total, dtype=np.int32),
        mask=rng.integers(0, 2, total, dtype=np.uint8),
        **floats,
    )


@pytest.mark.parametrize("lengths", [[3, 0, 5], [0], [], [1] * 40])
def test_what_is_written_comes_back(tmp_path: Path, seed: int, lengths: list[int]):
    given, lines = made_up(lengths, seed), tmp_path / "step_000012.rank3.jsonl"
    path = write_tokens(lines, given)
    assert path.name == "step_000012.rank3.tokens.safetensors"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    responses = [given.token_ids[given.span(i)].tolist() for i in range(len(given))]
    assert [len(ids) for ids in responses] == lengths
    for place in (path, lines):
        found = read_tokens(place, responses)
        for name, dtype in DTYPES.items():
            assert getattr(found, name).dtype == dtype
            np.testing.assert_array_equal(getattr(found, name), getattr(given, name), err_msg=name)
    assert (
        sum(getattr(given, n)[:1].nbytes for n in DTYPES if n not in ("offsets", "update")) in (0, BYTES_PER_TOKEN)
        and BYTES_PER_TOKEN == 19
    )


def test_numbers_beyond_half_precision_are_held_at_its_largest(tmp_path: Path):
    given = replace(made_up([3], 0), gate=np.array([1e9, -1e9, np.nan], np.float64))
    assert read_tokens(write_tokens(tmp_path / "step_000001.rank0.jsonl", given)).gate.tolist()[:2] == [65504, -65504]


def test_a_damaged_file_is_refused(tmp_path: Path, seed: int):
    lines = tmp_path / "step_000001.rank0.jsonl"
    with pytest.raises(FileNotFoundError, match="the run did not save"):
        read_tokens(lines)
    path = write_tokens(lines, made_up([3, 4], seed))
    whole = path.read_bytes()
    for cut in (0, 7, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be used"):
            read_tokens(path)
    # One flipped bit, wherever it is.
    for place in np.random.default_rng(seed).integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="cannot be used"):
            read_tokens(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"offsets": np.array([0, 5, 3, 7], np.int32)}, "climb"),
        ({"offsets": np.array([0, 3, 6], np.int32)}, "end at 6"),
        ({"offsets": np.array([], np.int32)}, "climb"),
        ({"update": np.array([1], np.int32)}, "1 updates"),
        ({"update": np.array([1, -2], np.int32)}, "below -1"),
        ({"update": np.array([1, LEFT_OUT], np.int32)}, "left out has tokens"),
        ({"mask": np.full(7, 2, np.uint8)}, "0 and 1"),
        ({"gate": np.zeros((7, 1), np.float16)}, "dimension"),
        ({"ratio": np.zeros(6, np.float32)}, "ratio are of another length"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: dict, why: str):
    path = write_tokens(tmp_path / "step_000001.rank0.jsonl", replace(made_up([3, 4], 0), **change))
    with pytest.raises(ValueError, match=why):
        read_tokens(path)


def test_the_same_tokens_are_the_same_bytes(tmp_path: Path):
    """A run that was killed and goes on must leave what one leaves that nothing happened to."""
    written = {write_tokens(tmp_path / f"step_{i:06d}.rank0.jsonl", made_up([3, 4], 0)).read_bytes() for i in range(20)}
    assert len(written) == 1


def test_files_of_others_are_refused(tmp_path: Path):
    path = write_tokens(tmp_path / "step_000001.rank0.jsonl", made_up([3, 4], 0))
    arrays = load(path.read_bytes())
    path.write_bytes(save(arrays, {ABOUT: FORMAT + "0 00000000"}))
    with pytest.raises(ValueError, match="its format is"):
        read_tokens(path)
    path.write_bytes(save(arrays | {"gate": arrays["gate"].astype(np.float32)}, {ABOUT: FORMAT + " 00000000"}))
    with pytest.raises(ValueError, match="'gate': 'float32'"):
        read_tokens(path)


def test_tokens_of_other_lines_are_refused(tmp_path: Path):
    given = made_up([3, 4], 0)
    path = write_tokens(tmp_path / "step_000001.rank0.jsonl", given)
    ids = given.token_ids.tolist()
    assert path == tokens_path(tmp_path / "step_000001.rank0.jsonl")
    with pytest.raises(ValueError, match="the lines 1"):
        read_tokens(path, [ids[:3]])
    with pytest.raises(ValueError, match="response 1 has other tokens than line 2"):
        read_tokens(path, [ids[:3], [*ids[3:6], ids[6] + 1]])


def test_a_response_that_was_left_out_has_no_tokens_in_the_file(tmp_path: Path):
    given = replace(made_up([3, 0, 4], 0), update=np.array([1, LEFT_OUT, 0], np.int32))
    path = write_tokens(tmp_path / "step_000001.rank0.jsonl", given)
    ids = given.token_ids.tolist()
    found = read_tokens(path, [ids[:3], [5, 6, 7, 8], ids[3:]])
    assert found.update.tolist() == [1, -1, 0] and found.span(2) == slice(3, 7)
    with pytest.raises(ValueError, match="response 0 has other tokens than line 1"):
        read_tokens(path, [ids[1:3], [5], ids[3:]])


@pytest.mark.parametrize(
    ("limit", "ranks", "group", "writers"),
    [(8_000_000, 2, 2_128, 2), (8_000_000, 64, 622_592, 12), (8_000_000, 64, 5_000_000, 1), (1000, 4, 5000, 1)],
)
def test_ranks_share_the_bound_and_take_turns(limit: int, ranks: int, group: int, writers: int):
    turns = np.array(
        [[bytes_of_rank(limit, rank, ranks, step, group) for rank in range(ranks)] for step in range(ranks)]
    )
    assert ((turns > 0).sum(axis=1) == writers).all() and set(turns.flat) <= {0, limit // writers}
    assert (turns.sum(axis=1) <= limit).all()
    assert ((turns > 0).sum(axis=0) == writers).all(), "in as many steps as there are ranks, each writes equally often"


def test_the_bound_of_a_step_holds_whatever_is_chosen(seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        lengths = [rng.integers(0, 30, rng.integers(1, 5)).tolist() for _ in range(rng.integers(1, 9))]
        taught, limit = (rng.random(len(lengths)) < 0.6).tolist(), int(rng.integers(0, 3000))
        kept = choose(lengths, taught, limit)
        taken = [n for group, k in zip(lengths, kept, strict=True) for n in np.array(group)[k]]
        assert BYTES_PER_TOKEN * sum(taken) <= limit
        if BYTES_PER_TOKEN * sum(map(sum, lengths)) <= limit:
            assert all(map(all, kept))


def test_lines_never_stand_beside_tokens_of_others(tmp_path: Path):
    """A step that is done again without them, or by fewer ranks, leaves none behind."""
    log, tokens = RolloutLog(tmp_path), made_up([], 0)
    paths = [tokens_path(log.write(step, [], rank, tokens)) for step in (1, 2) for rank in (0, 1)]
    assert all(path.exists() for path in paths)
    log.write(1, [], 0)
    assert [path.exists() for path in paths] == [False, True, True, True]
    drop_ranks(tmp_path, step=1, ranks=1)
    assert [path.exists() for path in paths] == [False, True, True, False]
