"""torchrun on one of several machines, which does not outlive its ranks for long.

    python -m sapo_vl.machines.agent --gone-s N TORCHRUN'S ARGUMENTS

torchrun asks a store on the first machine what to do next. When that machine cannot be reached it waits in the middle
of a question for as long as the kernel keeps the connection, a quarter of an hour, deaf to signals: whatever started it
would wait too, and start nothing again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence

from torch.distributed import run as torchrun

from sapo_vl.lifeline import children_of, state_of

LOOK_S = 0.5
log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """torchrun with `argv`; ends with status 1 when its ranks are gone for --gone-s seconds, and it is still there."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="sapo_vl.machines.agent")
    parser.add_argument("--gone-s", type=float, required=True)
    limit_s = parser.parse_args(words[:2]).gone_s
    threading.Thread(target=_watch, args=(limit_s,), name="gone ranks", daemon=True).start()
    torchrun.main(words[2:])


def _watch(limit_s: float) -> None:
    """Before the first rank starts there is no limit but torchrun's own: machines come when they come."""
    had_ranks, gone_s = False, 0.0
    while gone_s < limit_s:
        time.sleep(LOOK_S)
        here = any(state_of(pid) not in ("Z", "") for pid in children_of(os.getpid()))
        had_ranks |= here
        gone_s = gone_s + LOOK_S if had_ranks and not here else 0.0
    log.error("the ranks of this machine are gone for %g s, and were not started again: torchrun ends", limit_s)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
