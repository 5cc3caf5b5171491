"""A rank that waits for others that never come does not wait for ever."""

from __future__ import annotations

import json
import socket

import pytest
from helpers_launch import run_python

from sapo_vl.lifeline import CUT_OFF

ALONE = """
import json, os, sys
import deepspeed  # which takes longer than the limit
import sapo_vl.lifeline as lifeline
from sapo_vl.distributed import init_world
os.environ.update(json.loads(sys.argv[1]))
lifeline.JOIN_LIMIT_S = 2.0
with lifeline.joined_in_time():
    init_world()
print("it met somebody")
"""


@pytest.mark.parametrize("start", ["0", "1"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_peer_never_comes_ends_and_says_whom_it_waited_for(rank: int, start: str) -> None:
    """Rank 0 keeps the store in which the others are to meet; to rank 1 something listens that never answers. Of the
    second start of a torchrun, ranks meet in another way."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if rank == 0:
            silent.close()
        told = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told["TORCHELASTIC_RESTART_COUNT"] = start
        ended = run_python("-c", ALONE, json.dumps({k: str(v) for k, v in told.items()}), fresh=True, check=False)
    assert ended.returncode == CUT_OFF, ended.stdout
    expected = f"rank {rank} of 2 has waited 2 s for the others at 127.0.0.1:{port}: one of them has not started"
    assert expected in ended.stdout and "it met somebody" not in ended.stdout
