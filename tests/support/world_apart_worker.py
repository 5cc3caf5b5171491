"""Runs on two ranks for test_world_apart.py: collectives of two threads at once, each on a group of its own."""

from __future__ import annotations

import threading

from sapo_vl.distributed import init_world, shutdown_world

ROUNDS = 300


def main() -> None:
    world = init_world()
    apart = world.apart()
    seen: list[list[tuple[int, int]]] = []

    def aside() -> None:
        seen.extend(apart.gather((world.rank, i)) for i in range(ROUNDS))

    thread = threading.Thread(target=aside)
    thread.start()
    sums = [int(world.sum([world.rank + i])[0]) for i in range(ROUNDS)]
    thread.join()
    assert sums == [2 * i + 1 for i in range(ROUNDS)]
    assert seen == [[(0, i), (1, i)] for i in range(ROUNDS)]
    assert apart.any(world.rank == 1)
    apart.barrier()
    if world.is_main:
        print("RIGHT", flush=True)
    shutdown_world()


if __name__ == "__main__":
    main()
