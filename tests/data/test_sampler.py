"""Task quotas are exact in every batch, and a restored sampler goes on where the saved one was."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.data.sampler import QuotaError, QuotaSampler, quota_counts
from sapo_vl.model.batching import split_mini_batches

tenths = st.integers(1, 60)  # quotas as typed by hand: 0.1 .. 6.0
quota_sets = st.dictionaries(st.sampled_from("abcdef"), tenths.map(lambda n: n / 10), min_size=1, max_size=6)


def exact_shares(quotas: dict[str, float], batch_size: int) -> dict[str, Fraction]:
    parts = {task: round(quota * 10) for task, quota in quotas.items()}
    return {task: Fraction(batch_size * part, sum(parts.values())) for task, part in parts.items()}


# --- quota_counts
# ---------------------------------------------------------------------------------------------------


def test_counts_worked_out_by_hand():
    # Shares 2.8, 0.7, 3.5: floors 2, 0, 3 leave two prompts, for the remainders .8 and .7.
    assert quota_counts({"a": 4, "b": 1, "c": 5}, 7) == {"a": 3, "b": 1, "c": 3}
    assert quota_counts({"a": 0.1, "b": 0.2, "c": 0.7}, 10) == {"a": 1, "b": 2, "c": 7}
    assert quota_counts({"z": 1, "y": 1, "x": 1}, 5) == {"x": 2, "y": 2, "z": 1}  # a tie goes by name
    assert quota_counts({"a": 1, "off": 0}, 3) == {"a": 3, "off": 0}


def test_decimal_quotas_are_not_rounded_in_binary():
    # Shares of 15 are 4.5, 1.5 and 9: a tie, which goes to "a". As binary fractions 0.3 is a little too small
    # and 0.1 a little too large, and "b" would win.
    assert quota_counts({"a": 0.3, "b": 0.1, "c": 0.6}, 15) == {"a": 5, "b": 1, "c": 9}


@settings(max_examples=400, deadline=None)
@given(quota_sets, st.integers(1, 300))
def test_counts_sum_up_stay_within_one_and_follow_the_remainders(quotas, batch_size):
    exact = exact_shares(quotas, batch_size)
    try:
        counts = quota_counts(quotas, batch_size)
    except QuotaError:
        assert min(exact.values()) < 1  # a share of 1 or more always gets a prompt
        return
    assert sum(counts.values()) == batch_size
    assert all(abs(counts[t] - exact[t]) < 1 for t in quotas)
    assert all(counts[t] >= 1 for t in quotas)
    for up, down in itertools.permutations(quotas, 2):
        if counts[up] > exact[up] and counts[down] < exact[down]:  # one got a left-over prompt, the other not
            assert (-(exact[up] % 1), up) < (-(exact[down] % 1), down)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), tenths.map(lambda n: n / 10), min_size=1), st.integers(1, 12))
def test_no_other_split_of_the_batch_is_closer_to_the_quotas(quotas, batch_size):
    exact = exact_shares(quotas, batch_size)
    tasks = sorted(quotas)

    def distance(split):
        return sum((count - exact[task]) ** 2 for task, count in zip(tasks, split, strict=True))

    every = itertools.product(range(batch_size + 1), repeat=len(tasks))
    least = min(distance(split) for split in every if sum(split) == batch_size)
    try:
        counts = quota_counts(quotas, batch_size)
    except QuotaError:
        return
    assert distance([counts[task] for task in tasks]) == least


@settings(max_examples=100, deadline=None)
@given(quota_sets.filter(lambda q: len(q) > 1), st.integers(1, 12))
def test_the_batch_size_an_error_names_is_the_smallest_that_works(quotas, batch_size):
    try:
        quota_counts(quotas, batch_size)
    except QuotaError as error:
        named = int(str(error).split("room for all is ")[1].split(";")[0])
    else:
        return
    assert min(quota_counts(quotas, named).values()) >= 1
    for smaller in range(1, named):
        with pytest.raises(QuotaError):
            quota_counts(quotas, smaller)


@pytest.mark.parametrize(
    ("quotas", "batch_size", "words"),
    [
        ({"a": -0.5, "b": 1}, 4, ["'a'", "-0.5"]),
        ({"a": float("nan")}, 4, ["'a'", "nan"]),
        ({"a": 0, "b": 0}, 4, ["all quotas are 0"]),
        ({"a": 1}, 0, ["batch size is 0"]),
        ({"a": 9, "b": 1}, 4, ["['b']", "with room for all is 6;", "set them to 0"]),
    ],
)
def test_quotas_that_cannot_be_met_are_refused(quotas, batch_size, words):
    with pytest.raises(QuotaError) as caught:
        quota_counts(quotas, batch_size)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- QuotaSampler
# ---------------------------------------------------------------------------------------------------


def random_tasks(rng: np.random.Generator, names: str, least: int, most: int) -> list[str]:
    """A task per row: least..most rows of every name, mixed."""
    tasks = [name for name in names for _ in range(int(rng.integers(least, most + 1)))]
    return [tasks[i] for i in rng.permutation(len(tasks))]


@settings(max_examples=200, deadline=None)
@given(quota_sets, st.integers(1, 40), st.integers(0, 2**31))
def test_every_batch_has_exactly_the_quota_of_every_task(quotas, batch_size, seed):
    tasks = random_tasks(np.random.default_rng(seed), "".join(quotas), 40, 60)
    try:
        wanted = quota_counts(quotas, batch_size)
    except QuotaError:
        return
    sampler = QuotaSampler(tasks, quotas, batch_size, seed)
    for batch in itertools.islice(sampler, 6):
        assert Counter(tasks[row] for row in batch) == Counter(wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_no_row_comes_again_before_all_rows_of_its_task(seed):
    rng = np.random.default_rng(seed)
    tasks = random_tasks(rng, "abc", 4, 17)
    sampler = QuotaSampler(tasks, {"a": 2, "b": 1, "c": 1}, 8, seed)
    used = Counter()
    for batch in itertools.islice(sampler, 40):
        used.update(batch)
        for name in "abc":
            times = [used[row] for row, task in enumerate(tasks) if task == name]
            assert max(times) - min(times) <= 1
    assert min(used[row] for row in range(len(tasks))) >= 40 * 2 // 17  # the walk really wraps around


@settings(max_examples=150, deadline=None)
@given(quota_sets, st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_every_update_has_its_share_of_every_task_over_all_ranks(quotas, updates, ranks, per_update, seed):
    batch_size = updates * ranks * per_update
    tasks = random_tasks(np.random.default_rng(seed), "".join(quotas), batch_size, batch_size + 9)
    try:
        counts = quota_counts(quotas, batch_size)
    except QuotaError:
        return
    for batch in itertools.islice(QuotaSampler(tasks, quotas, batch_size, seed, parts=updates), 3):
        assert Counter(tasks[row] for row in batch) == Counter(counts)
        shares = [batch[i : i + batch_size // ranks] for i in range(0, batch_size, batch_size // ranks)]
        dealt = [split_mini_batches(share, updates) for share in shares]
        for update in range(updates):
            rows = [row for rank in dealt for row in rank[update]]
            assert len(rows) == ranks * per_update
            has = Counter(tasks[row] for row in rows)
            for task, count in counts.items():
                assert count // updates <= has[task] <= -(-count // updates), (task, count, has)


def test_no_update_is_the_one_that_a_task_prefers():
    # 3 rows of "a" among 4 updates: each lacks one in a quarter of the batches.
    tasks = ["a"] * 30 + ["b"] * 50
    without, seconds = Counter(), Counter()
    for batch in itertools.islice(QuotaSampler(tasks, {"a": 3, "b": 5}, 8, 0, parts=4), 400):
        updates = [[tasks[row] for row in batch[i::4]] for i in range(4)]
        (lacks,) = [i for i, update in enumerate(updates) if "a" not in update]
        without[lacks] += 1
        seconds.update(i for i, update in enumerate(updates) if update[1] == "a")
    assert all(60 <= without[i] <= 140 for i in range(4)), without  # 100 expected, standard deviation 8.7
    assert all(100 <= seconds[i] <= 200 for i in range(4)), seconds  # half of 300: "a" comes first as often as last


def test_no_two_tasks_always_meet_in_an_update():
    tasks = list("abcd") * 10
    beside = Counter()
    for batch in itertools.islice(QuotaSampler(tasks, {}, 4, 0, parts=2), 400):
        updates = [{tasks[row] for row in batch[i::2]} for i in range(2)]
        beside.update(next(update for update in updates if "a" in update) - {"a"})
    assert all(90 <= beside[task] <= 180 for task in "bcd"), beside  # 133 expected, standard deviation 9.4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_a_batch_in_which_an_epoch_ends_has_no_row_twice(seed, parts):
    rng = np.random.default_rng(seed)
    tasks = random_tasks(rng, "ab", 4, 11)
    sampler = QuotaSampler(tasks, {"a": 2, "b": 1}, 6, seed, parts=parts)
    for _ in range(25):
        drawn = [tasks[int(row)] for row in rng.integers(len(tasks), size=3)]
        batch = next(sampler)
        assert len(set(batch)) == 6
        further = sampler.further(drawn)
        assert len(set(further)) == len(further)
        for name in "ab":  # one of the batch again only where all others have come
            rows = [row for row in further if tasks[row] == name]
            free = {row for row, task in enumerate(tasks) if task == name} - set(batch)
            assert set(rows[: len(free)]) <= free and (len(rows) < len(free) or free <= set(rows))


def test_the_rows_left_for_the_end_of_an_epoch_are_the_only_ones_that_move():
    tasks = ["a"] * 7
    walk = QuotaSampler(tasks, {}, 1, 3)  # row by row: no batch holds two epochs
    first, second = ([next(walk)[0] for _ in range(7)] for _ in range(2))
    sampler = QuotaSampler(tasks, {}, 5, 3)
    assert sorted(next(sampler)) == sorted(first[:5])
    late = first[5:]
    assert sorted(next(sampler)) == sorted(late + [row for row in second if row not in late][:3])
    assert sampler.further(["a"] * 4) == [row for row in second if row not in late][3:] + late


def test_orders_change_with_the_epoch_the_task_and_the_seed():
    sampler = QuotaSampler(["a"] * 30 + ["b"] * 30, {}, 60, 5)
    epochs = [next(sampler) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    order = [[row for row in epoch if row < 30] for epoch in epochs]
    other = [row - 30 for row in epochs[0] if row >= 30]
    assert order[0] != order[1] and order[0] != other and order[0] != sorted(order[0])
    assert next(QuotaSampler(["a"] * 30 + ["b"] * 30, {}, 60, 6)) != epochs[0]
    assert next(QuotaSampler(["a"] * 30 + ["b"] * 30, {}, 60, 5)) == epochs[0]


def test_tasks_are_mixed_within_a_batch():
    tasks = ["a"] * 100 + ["b"] * 100
    firsts = Counter(tasks[batch[0]] for batch in itertools.islice(QuotaSampler(tasks, {}, 10, 0), 100))
    assert 25 <= firsts["a"] <= 75  # 50 expected, standard deviation 5


def test_the_order_is_the_same_in_another_process():
    code = "from sapo_vl.data.sampler import QuotaSampler; print(next(QuotaSampler(list('abcd') * 9, {}, 16, 3)))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert printed == {f"{next(QuotaSampler(list('abcd') * 9, {}, 16, 3))}\n"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 30), st.sampled_from([1, 5]))
def test_a_restored_sampler_goes_on_where_the_saved_one_was(seed, steps, parts):
    tasks = random_tasks(np.random.default_rng(seed), "abc", 5, 13)
    quotas = {"a": 3, "b": 1, "c": 0}
    sampler = QuotaSampler(tasks, quotas, 5, seed, parts=parts)
    for _ in range(steps):
        next(sampler)
    saved = json.loads(json.dumps(sampler.state_dict()))
    expected = [next(sampler) for _ in range(20)]
    restored = QuotaSampler(tasks, quotas, 5, seed, parts=parts)
    restored.load_state_dict(saved)
    assert [next(restored) for _ in range(20)] == expected


def test_further_rows_are_the_next_of_their_tasks():
    tasks = list("ab" * 6)
    walk = {t: [next(alone)[0] for _ in range(12)] for t in "ab" if (alone := QuotaSampler(tasks, only(t), 1, 4))}
    sampler = QuotaSampler(tasks, {"a": 2, "b": 1}, 3, 4)
    assert sorted(next(sampler)) == sorted([*walk["a"][:2], walk["b"][0]])
    assert sampler.further(["a", "b", "a", "a"]) == [walk["a"][2], walk["b"][1], walk["a"][3], walk["a"][4]]
    saved = json.loads(json.dumps(sampler.state_dict()))
    after = [*walk["a"][5:7], walk["b"][2]]  # one row of an epoch's end, one of the next one
    assert sorted(next(sampler)) == sorted(after)
    restored = QuotaSampler(tasks, {"a": 2, "b": 1}, 3, 4)
    restored.load_state_dict(saved)
    assert sorted(next(restored)) == sorted(after)
    assert restored.further(["a"]) == [walk["a"][7]]


def only(task):
    """Quotas for batches of one task of two."""
    return {"a": 0, "b": 0, task: 1}


def test_quotas_may_change_on_resume_but_seed_and_rows_may_not():
    tasks = ["a"] * 10 + ["b"] * 10
    sampler = QuotaSampler(tasks, {}, 4, 1)
    seen = [row for _ in range(3) for row in next(sampler)]
    state = sampler.state_dict()
    resumed = QuotaSampler(tasks, {"a": 1, "b": 0}, 4, 1)
    resumed.load_state_dict(state)
    assert sorted(next(resumed) + [row for row in seen if row < 10]) == list(range(10))  # a's epoch is completed
    with pytest.raises(ValueError, match="seed 1, this run has 2"):
        QuotaSampler(tasks, {}, 4, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="other rows"):
        QuotaSampler(tasks[::-1], {}, 4, 1).load_state_dict(state)


def test_quotas_and_tasks_must_name_each_other():
    with pytest.raises(QuotaError, match=r"\['chess'\].*only the tasks \['a', 'b'\]"):
        QuotaSampler(["a", "b"], {"a": 1, "b": 1, "chess": 1}, 2, 0)
    with pytest.raises(QuotaError, match=r"\['b'\] without a quota.*0 to leave it out"):
        QuotaSampler(["a", "b"], {"a": 1}, 2, 0)
    with pytest.raises(QuotaError, match="no rows"):
        QuotaSampler([], {}, 2, 0)
    with pytest.raises(QuotaError, match="3 rows of task 'b' and there are 2"):
        QuotaSampler(["a"] * 9 + ["b"] * 2, {}, 6, 0)
    with pytest.raises(QuotaError, match="6 prompts has no 4 equal parts; give it a multiple of 4"):
        QuotaSampler(["a"] * 9 + ["b"] * 9, {}, 6, 0, parts=4)


def test_a_state_from_before_there_were_late_rows_is_taken_up():
    tasks = ["a"] * 10
    sampler = QuotaSampler(tasks, {}, 4, 1)
    next(sampler)
    old = {name: value for name, value in sampler.state_dict().items() if name != "late"}
    restored = QuotaSampler(tasks, {}, 4, 1)
    restored.load_state_dict(old)
    assert [next(restored) for _ in range(9)] == [next(sampler) for _ in range(9)]


def test_a_spare_is_another_row_of_the_task_and_does_not_move_the_walk():
    tasks = list("aabbbbbb") * 2
    sampler, twin = QuotaSampler(tasks, {"a": 1, "b": 2}, 3, 7), QuotaSampler(tasks, {"a": 1, "b": 2}, 3, 7)
    batch = next(sampler)
    next(twin)
    bad = next(row for row in batch if tasks[row] == "b")
    others = {row for row, task in enumerate(tasks) if task == "b"} - set(batch)
    spares = [sampler.spare(bad, attempt, exclude=batch) for attempt in range(len(others))]
    assert len(spares) == len(others) and set(spares) == others
    assert spares == [twin.spare(bad, attempt, exclude=batch) for attempt in range(len(others))]
    # After those the other row of the batch, rather than none; then the task has no row left.
    (beside,) = {row for row in batch if tasks[row] == "b"} - {bad}
    assert sampler.spare(bad, len(others), exclude=batch) == beside
    with pytest.raises(QuotaError, match=f"row {bad} is bad and after {len(others) + 1} tries"):
        sampler.spare(bad, len(others) + 1, exclude=batch)
    assert [next(sampler) for _ in range(5)] == [next(twin) for _ in range(5)]
