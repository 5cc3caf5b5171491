"""A second group of the same ranks works beside the first, from another thread."""

import pytest
from helpers_launch import run_ranks

from sapo_vl.distributed import World


def test_a_world_of_one_needs_no_group() -> None:
    assert World.alone().apart().gather("x") == ["x"]


@pytest.mark.slow
def test_two_threads_of_two_ranks_do_not_mix_their_collectives() -> None:
    assert "RIGHT" in run_ranks(2, "world_apart_worker.py", timeout=120)
