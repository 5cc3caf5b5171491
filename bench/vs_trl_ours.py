"""Our side of bench/vs_trl.py and bench/vs_trl_learning.py: `sapo-vl train` on one rank, step by step.

The workers of rewards import this file again, as Python starts them: it imports nothing before `main`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="what load_config reads")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=Path, help="write the first step there, by TRL's law")
    parser.add_argument("told", type=int, help="the pipe to the other process")
    args = parser.parse_args()

    from stepwise import Over, Stepper
    from vs_trl_hooks import FirstStep, watch

    from sapo_vl.config import load_config
    from sapo_vl.stages import run_stage

    stepper = Stepper(args.told)
    watch(stepper, FirstStep(args.first) if args.first else None)
    try:
        stepper.wait()
        run_stage("train", load_config(args.config), args.out)
    except Over:
        return


if __name__ == "__main__":
    main()
