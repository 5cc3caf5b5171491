"""Work of the main rank that takes longer than a collective may: the others meet it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sapo_vl.distributed import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted(World):
    """One of two ranks; what the main rank has in a collective is said by `main`, given what this one has."""

    main: Callable[[Any], Any]

    def gather(self, item: Any) -> list[Any]:
        return [self.main(item), item]


def rank(number: int, main: Callable[[Any], Any]) -> World:
    return Scripted(rank=number, size=2, device=torch.device("cpu"), main=main)


def test_the_main_rank_meets_the_others_until_its_work_is_done() -> None:
    met: list[Any] = []
    enough = threading.Event()

    def meet(item: Any) -> Any:
        met.append(item)
        if len(met) == 3:
            enough.set()
        return item

    def work() -> str:
        assert threading.current_thread() is not threading.main_thread()
        enough.wait()
        return "proof"

    assert rank(0, meet).of_main(work, meet_every_s=0.01) == "proof"
    *waited, last, given = met
    assert len(waited) >= 3 and not any(waited) and last is True and given == "proof"


def test_another_rank_meets_it_and_does_nothing_itself() -> None:
    said = iter([False, False, True, "proof"])
    met: list[Any] = []

    def main(item: Any) -> Any:
        met.append(item)
        return next(said)

    assert rank(1, main).of_main(lambda: pytest.fail("work of the main rank")) == "proof"
    assert met == [False, False, False, None]


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("a bug of ours")

    with pytest.raises(ValueError, match="a bug of ours"):
        rank(0, lambda item: item).of_main(work)
    with pytest.raises(ValueError, match="a bug of ours"):
        World.alone().of_main(work)


def test_alone_it_is_a_call() -> None:
    assert World.alone().of_main(threading.current_thread) is threading.current_thread()
