"""Which rows make up a batch: exact task quotas, every task walking through its own rows."""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from sapo_vl.data.problem_set import DataError


class QuotaError(ValueError):
    """Quotas that cannot be met. The message names the tasks, the numbers, and the fix."""


def quota_counts(quotas: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """How many of `batch_size` prompts each task gets: largest remainder (Hamilton's method).

    With exact share e_t = batch_size * quota_t / sum(quotas), a task first gets floor(e_t); the prompts left
    over go one each to the largest remainders e_t - floor(e_t), equal remainders in alphabetical order of the
    task. So the counts sum to batch_size and each is less than 1 away from e_t. Quotas are ratios, read as
    the decimal numbers they are written as (0.1 is one tenth).

    Raises QuotaError for a quota that is negative or not finite, quotas that are all 0, a batch size below 1,
    or a positive quota that would get no prompt.
    """
    if batch_size < 1:
        raise QuotaError(f"batch size is {batch_size}; it must be at least 1")
    weights = _integer_weights(quotas)
    counts = _largest_remainder(weights, batch_size)
    starved = [task for task, weight in weights.items() if weight and not counts[task]]
    if starved:
        raise QuotaError(
            f"a batch of {batch_size} prompts has no room for {starved} under the quotas {dict(quotas)}; "
            f"the smallest batch with room for all is {_smallest_batch(weights)}; take that, "
            "raise these quotas, or set them to 0"
        )
    return counts


class QuotaSampler:
    """Batches of row indices with exactly the same number of rows of every task in each.

    Every task walks through its own rows in a shuffled order, epoch after epoch: a row comes again only when
    all rows of its task have been used, and a batch in which an epoch ends goes on with other rows: one that came
    twice would have the same responses twice. (A row that stands in for a bad one may be of the batch already.) A
    batch that is trained in several parts is laid out so that each has its share of every task. The orders depend on
    (seed, task, epoch), the order within a batch on (seed, step), so the state is a few integers and a restored
    sampler goes on exactly where the saved one was. Iterating never ends.

    counts: rows per task in every batch; 0 for a task with quota 0.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        quotas: Mapping[str, float],
        batch_size: int,
        seed: int,
        content: str = "",
        *,
        parts: int = 1,
    ) -> None:
        """tasks: the task of every row, in row order. quotas: ratio per task; empty = the same for every
        task. content: a digest of the rows themselves (ProblemSet.digest), so that a state is not taken up over
        changed ones; "" = not looked at. parts: how many updates a batch is dealt to, row by row (row i to the one of
        number i % parts); the rows that a task has in two of them differ by one at most.

        Raises QuotaError if quotas and data do not name the same tasks, for what `quota_counts` rejects, for a task
        with fewer rows than a batch asks of it, and for a batch that has no equal parts.
        """
        number = {task: i for i, task in enumerate(sorted(set(tasks)))}
        numbers = np.fromiter(map(number.__getitem__, tasks), np.int32, len(tasks))
        self._rows = {task: np.flatnonzero(numbers == i) for task, i in number.items()}
        quotas = dict(quotas) or dict.fromkeys(self._rows, 1.0)
        _check_tasks(self._rows, quotas)
        self.batch_size = batch_size
        self.seed = seed
        self.counts = quota_counts(quotas, batch_size)
        if batch_size % parts:
            raise QuotaError(
                f"a batch of {batch_size} prompts has no {parts} equal parts; give it a multiple of {parts}"
            )
        self._parts = parts
        for task, count in self.counts.items():
            if count > len(self._rows[task]):
                raise QuotaError(
                    f"every batch of {batch_size} asks for {count} rows of task {task!r} and there are "
                    f"{len(self._rows[task])}; lower its quota or the batch size, or add rows"
                )
        self.content = content
        self._fingerprint = hashlib.blake2b("\n".join(tasks).encode(), digest_size=8).hexdigest()
        self._task_of = list(tasks)
        self._step = 0
        self._epoch = dict.fromkeys(self._rows, 0)
        self._position = dict.fromkeys(self._rows, 0)  # rows of the epoch already given out
        self._late: dict[str, list[int]] = {task: [] for task in self._rows}  # rows that come last in the epoch
        self._order = {task: self._permutation(task) for task in self._rows}
        self._latest: dict[str, list[int]] = {}  # rows of the latest batch, and those drawn beyond it

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        """The row indices of the next batch."""
        self._latest = {task: [] for task in self._rows}
        rng = np.random.default_rng([self.seed, _number("batch"), self._step])
        # Tasks of which an update has one row more than another must not be the same ones in every batch.
        tasks = rng.permutation(list(self.counts)) if self._parts > 1 else self.counts
        batch = [row for task in tasks for row in self._take(task, self.counts[task])]
        self._step += 1
        # A column is an update. The batch is still sorted by task, so that dealing it shares every task out.
        order = np.arange(len(batch)).reshape(-1, self._parts)
        order = rng.permuted(order, axis=0)[:, rng.permutation(self._parts)]
        return [batch[i] for i in order.flat]

    def peek(self) -> list[int]:
        """What the next batch is as things stand. It does not move the walk."""
        twin = copy.copy(self)
        twin._epoch, twin._position = dict(self._epoch), dict(self._position)
        twin._late, twin._order = dict(self._late), dict(self._order)  # and its own _latest, which is made anew
        return next(twin)

    def further(self, tasks: Sequence[str]) -> list[int]:
        """The next row of each task, in order, none of the latest batch while there are others: the walk of that task
        moves on, beyond what its batches take."""
        walks = {task: iter(self._take(task, count)) for task, count in Counter(tasks).items()}
        return [next(walks[task]) for task in tasks]

    def spare(self, bad: int, attempt: int, exclude: Collection[int] = ()) -> int:
        """A row of the same task to stand in for row `bad` of the latest batch.

        A pure function of (seed, step, bad, attempt): it does not move the walk, so ranks that each look at
        their own part of a batch stay in step. attempt: 0 for the first try, 1 if that row was bad as well,
        and so on. exclude: rows that are chosen only if there is no other, usually the batch. Raises QuotaError if
        no row is left.
        """
        task = self._task_of[bad]
        others = self._rows[task][self._rows[task] != bad]
        taken = np.isin(others, list(exclude))
        rows = others[~taken]
        if attempt >= len(rows):  # a small task: rather a row twice in the batch than the end of the run
            rows, attempt = others[taken], attempt - len(rows)
        if attempt >= len(rows):
            raise QuotaError(
                f"row {bad} is bad and after {len(others)} tries no other row of task {task!r} is left "
                "to replace it; repair or rebuild the data"
            )
        rng = np.random.default_rng([self.seed, _number("spare"), self._step, bad])
        return int(rows[rng.permutation(len(rows))[attempt]])

    def state_dict(self) -> dict[str, Any]:
        """Where every task is. JSON-serialisable."""
        return {
            "seed": self.seed,
            "rows": self._fingerprint,
            "content": self.content,
            "step": self._step,
            "epoch": dict(self._epoch),
            "position": dict(self._position),
            "late": dict(self._late),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken. Quotas and batch size may differ since.

        Raises DataError if seed or rows differ: the saved positions would mean other rows.
        """
        if state["seed"] != self.seed:
            raise DataError(
                f"the checkpoint's sampler was saved with seed {state['seed']}, this run has {self.seed}; resume "
                "with the same, or start anew with resume=no"
            )
        # States from before there was a digest have none.
        other_rows = bool(self.content and state.get("content")) and state["content"] != self.content
        if other_rows or state["rows"] != self._fingerprint:
            raise DataError(
                "the checkpoint's sampler was saved over other rows than the training split has now; resume with the "
                "data set it came from, or start anew with resume=no"
            )
        self._step = int(state["step"])
        self._epoch = {task: int(state["epoch"][task]) for task in self._rows}
        self._position = {task: int(state["position"][task]) for task in self._rows}
        late = state.get("late", {})  # states from before a batch had no row twice have none
        self._late = {task: [int(row) for row in late.get(task, ())] for task in self._rows}
        self._order = {task: self._permutation(task) for task in self._rows}

    def _take(self, task: str, count: int) -> list[int]:
        """The next rows of a task's walk. Where its epoch ends, the next one leaves for its end, the oldest first, what
        was drawn since the latest batch began."""
        latest = self._latest.setdefault(task, [])
        for _ in range(count):
            if self._position[task] == len(self._order[task]):
                self._epoch[task] += 1
                self._position[task] = 0
                self._late[task] = list(dict.fromkeys(reversed(latest)))[::-1]
                self._order[task] = self._permutation(task)
            latest.append(int(self._order[task][self._position[task]]))
            self._position[task] += 1
        return latest[len(latest) - count :]

    def _permutation(self, task: str) -> np.ndarray:
        """[rows of the task] int64: their order in its epoch."""
        rng = np.random.default_rng([self.seed, _number(task), self._epoch[task]])
        order, late = rng.permutation(self._rows[task]), np.asarray(self._late[task], np.int64)
        return np.concatenate([order[~np.isin(order, late)], late])


def _number(name: str) -> int:
    """A number for `name` that is the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _check_tasks(rows: Mapping[str, np.ndarray], quotas: Mapping[str, float]) -> None:
    if not rows:
        raise QuotaError("there are no rows to draw from; check the data split")
    absent = sorted(set(quotas) - set(rows))
    if absent:
        raise QuotaError(f"quotas name {absent}, but the data has only the tasks {list(rows)}; correct or remove them")
    unnamed = sorted(set(rows) - set(quotas))
    if unnamed:
        raise QuotaError(
            f"the data has the tasks {unnamed} without a quota (quotas: {quotas}); give each one, 0 to leave it out"
        )


def _integer_weights(quotas: Mapping[str, float]) -> dict[str, int]:
    """The quotas over one common denominator, in alphabetical order: shares without rounding errors."""
    for task, quota in quotas.items():
        if not math.isfinite(quota) or quota < 0:
            raise QuotaError(f"the quota of {task!r} is {quota}; give a finite number >= 0")
    exact = {task: Fraction(str(quotas[task])) for task in sorted(quotas)}
    if not any(exact.values()):
        raise QuotaError(f"all quotas are 0 ({dict(quotas)}); give at least one task a positive quota")
    denominator = math.lcm(*(share.denominator for share in exact.values()))
    return {task: int(share * denominator) for task, share in exact.items()}


def _largest_remainder(weights: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """Counts per task for integer weights in alphabetical order of the tasks."""
    total = sum(weights.values())
    counts = {task: batch_size * weight // total for task, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda task: -(batch_size * weights[task] % total))  # stable: ties stay
    for task in by_remainder[: batch_size - sum(counts.values())]:
        counts[task] += 1
    return counts


def _smallest_batch(weights: Mapping[str, int]) -> int:
    """The smallest batch in which every task of positive weight gets a prompt.

    Found by trying: with the largest-remainder method a larger batch can give a task less (Alabama paradox).
    A seat is never won with a share below 1 / number of tasks, and a share of 1 is always enough.
    """
    positive = [weight for weight in weights.values() if weight]
    total, least = sum(positive), min(positive)
    size = max(len(positive), -(-total // (least * len(positive))))
    while not all(count for task, count in _largest_remainder(weights, size).items() if weights[task]):
        size += 1
    return size
