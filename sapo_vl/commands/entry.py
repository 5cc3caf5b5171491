"""The installed `sapo-vl` script's way in.

Worker processes import the script that started them again (multiprocessing's "spawn"), so what it names loads nothing.
"""

from __future__ import annotations


def main() -> int:
    """Returns the exit status."""
    from sapo_vl.commands import cli

    return cli.main()
