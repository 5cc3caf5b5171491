"""Whether the memory of a run grows: the resident size of `sapo-vl train` on one rank over many steps with large
pictures, and how fast it grows in their second half.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stepwise import Side
from vs_trl import ours_command, prepare_ours
from vs_trl_cases import CASES

# Large pictures and little else: what a step keeps of them would show.
CASE = dataclasses.replace(CASES["dense512"], name="growth", tokens=8, prompts=4, group=2)


def slope(sizes: Sequence[float]) -> float:
    """MB a step, of the second half: the least-squares line."""
    late = np.asarray(sizes[len(sizes) // 2 :])
    return float(np.polyfit(np.arange(len(late)), late, 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels")
    parser.add_argument("--limit", type=float, default=0.1, help="MB a step above which this fails")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    case = dataclasses.replace(CASE, sides=(args.side,))
    with tempfile.TemporaryDirectory(prefix="growth_") as name:
        folder = Path(name)
        prepare_ours(case, folder)
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        side = Side("the trainer", ours_command(folder), environment, folder / "log")
        try:
            sizes = [side.step()["rss_mb"] for _ in range(args.steps)]
        finally:
            side.close()
    found = {"steps": args.steps, "first_mb": sizes[0], "last_mb": sizes[-1], "mb_a_step": slope(sizes)}
    told = "{first_mb:.0f} MB after a step, {last_mb:.0f} MB after {steps}; {mb_a_step:+.3f} MB a step at the end"
    print(json.dumps(found | {"rss_mb": sizes}) if args.json else told.format(**found))
    return int(found["mb_a_step"] > args.limit)


if __name__ == "__main__":
    sys.exit(main())
