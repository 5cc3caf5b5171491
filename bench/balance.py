"""How long ranks wait for each other in an update: groups trained where they were sampled, or dealt by work.

    python bench/balance.py [--ranks 8,64] [--updates 10] [--seed 0]

A simulation with the dealing code of a run: Qwen3-VL-30B-A3B, 8 groups of 16 responses a rank and update, a budget of
32768 tokens and patches. Prompts of 400 to 1300 tokens, up to 1024 of them a picture; responses lognormal, of mean 600
and cut at 2048; lengths within a group independent, or with half of the variance the prompt's. Efficiency: the work of
the groups over the time of the update, in which every rank takes as long as the largest micro-batch of each round;
prompts that a split repeats are no work of the groups.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from sapo_vl.learning.dealing import Deal, Sized, at_home, deal
from sapo_vl.model.work import Work

# Operations of a forward pass: 3.0 billion active weights and a head; 48 layers of 32 heads of 128 channels; a frozen
# tower of 0.54 billion weights, 27 layers of 1152 channels, a third of whose work there is (no backward).
WORK = Work(token=5.4e9, target=0.62e9, score=786e3, patch=0.36e9, patch_score=41e3)
BUDGET, GROUPS, SIZE = 32768, 8, 16
SIGMA = 0.8  # of the log of a length


def load(rng: np.random.Generator, ranks: int, shared: float, dead: float) -> list[Sized]:
    """The live groups of one update. `shared`: the part of the variance of log lengths that is the prompt's."""
    groups = []
    for i in range(ranks * GROUPS):
        prompt = int(rng.integers(400, 1301))
        picture = 4 * min(int(rng.integers(256, 1025)), prompt - 64)
        noise = math.sqrt(shared) * rng.normal() + math.sqrt(1 - shared) * rng.normal(size=SIZE)
        lengths = np.clip(np.exp(math.log(600) - SIGMA**2 / 2 + SIGMA * noise), 1, 2048).astype(int)
        if rng.random() >= dead:
            groups.append(
                Sized(home=i // GROUPS, index=i % GROUPS, prompt=prompt, patches=(picture,),
                      responses=tuple(range(SIZE)), lengths=tuple(lengths.tolist()))
            )  # fmt: skip
    return groups


def efficiency(deals: list[Deal]) -> float:
    return sum(d.needed for d in deals) / sum(d.taken for d in deals)


def moved(found: Deal) -> float:
    """Share of the groups that another rank trains, at least in part."""
    pieces = [(rank, p) for rank, rows in enumerate(found.rows) for row in rows for p in row]
    return len({(p.home, p.index) for rank, p in pieces if rank != p.home}) / len(
        {(p.home, p.index) for _, p in pieces}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,64")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("ranks  lengths      dead   efficiency at home -> dealt   rounds at home -> dealt   moved   ms to deal")
    for ranks in map(int, args.ranks.split(",")):
        for shared in (0.0, 0.5):
            for dead in (0.0, 0.5):
                rng = np.random.default_rng([args.seed, ranks])
                loads = [load(rng, ranks, shared, dead) for _ in range(args.updates)]
                home = [at_home(groups, ranks, BUDGET, WORK) for groups in loads]
                started = time.process_time()
                dealt = [deal(groups, ranks, BUDGET, WORK) for groups in loads]
                ms = (time.process_time() - started) / len(loads) * 1000
                rounds = [sum(d.rounds for d in deals) / len(deals) for deals in (home, dealt)]
                print(
                    f"{ranks:5d}  {'by prompt' if shared else 'independent':11}  {dead:4.0%}   "
                    f"{efficiency(home):18.3f} -> {efficiency(dealt):.3f}   {rounds[0]:14.1f} -> {rounds[1]:5.1f}   "
                    f"{sum(map(moved, dealt)) / len(dealt):5.0%}   {ms:10.1f}"
                )


if __name__ == "__main__":
    main()
