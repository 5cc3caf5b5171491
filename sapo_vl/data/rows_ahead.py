"""Rows that are read before they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class RowsAhead(Generic[T]):
    """Reads rows in a thread while others work. `read` is a function of the row alone, so it does not matter when, and
    whether a row that was expected is asked for."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows_ahead")
        self._coming: dict[int, Future[T]] = {}

    def expect(self, rows: Iterable[int]) -> None:
        """Begins with these, in order. What was expected before and never asked for is dropped."""
        wanted = list(dict.fromkeys(rows))
        for row in self._coming.keys() - set(wanted):
            self._coming.pop(row).cancel()
        for row in wanted:
            if row not in self._coming:
                self._coming[row] = self._thread.submit(self._read, row)

    def take(self, row: int) -> T | None:
        """The row, waited for if it is on its way; None if it was not expected. Raises what `read` raised."""
        coming = self._coming.pop(row, None)
        return None if coming is None else coming.result()

    def close(self) -> None:
        """Drops what has not begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)
