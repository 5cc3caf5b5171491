"""`sapo-vl explain`: what a setting means; and the pages of docs/reference/."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from pathlib import Path

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add


def add_parsers(add: Add) -> None:
    explain = add("explain", _explain, "What a setting of the config means, what it may be, and its default.")
    explain.add_argument("key", nargs="*", metavar="KEY", help="as rollout.engine; a section, as rollout; or a word")
    explain.add_argument("--write", type=Path, metavar="FOLDER", help="write the pages of docs/reference there")


def _explain(args: argparse.Namespace) -> int:
    """Raises UsageError for a key that nothing is like."""
    from sapo_vl.reference.keys import all_keys
    from sapo_vl.reference.pages import write_pages

    if args.write is not None:
        write_pages(args.parser, args.write)
        return 0
    known = all_keys()
    if not args.key:
        raise UsageError(
            f"name a key, a section or a word; sections: {', '.join(k.key for k in known if k.is_section)}"
        )
    for wanted in args.key:
        found = [k for k in known if k.key.split(" ")[0] == wanted or k.key.startswith(f"{wanted}.")]
        found = found or [k for k in known if wanted in k.key.split(" ")[0]]
        if not found:
            near = difflib.get_close_matches(wanted, [k.key for k in known], n=3, cutoff=0.4)
            raise UsageError(f"no setting is like {wanted!r}" + (f"; nearest: {', '.join(near)}" if near else ""))
        for k in found:
            print(k.key if k.is_section else f"{k.key} = {k.default}   ({k.values})")
            if k.meaning:
                print(textwrap.indent(textwrap.fill(k.meaning, 100), "    "))
    return 0
