"""Building a data set: recipe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_recipes.arguments import UsageError, build_recipe, recipe_arguments
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_folder


def add_parsers(add: Add) -> None:
    recipe = add("recipe", _recipe, "Build a data set folder, or check one (recipe check DIR).", pairs=True)
    recipe.add_argument("name", help="a recipe, or one of yours: path/to/my_recipe.py:build")
    recipe.add_argument("--out", type=Path, required=True)


def _recipe(args: argparse.Namespace) -> None:
    from data_recipes import find_recipe
    from data_recipes.building import summary

    build = find_recipe(args.name)
    check_folder(args.out, new=True)
    build_recipe(build, args.out, recipe_arguments(build, args.pairs, args.name), args.name)
    manifest = args.out / "manifest.json"
    if not manifest.is_file():
        raise UsageError(f"recipe {args.name} wrote no data set to {args.out}; it must end with write_splits(...)")
    print(summary(json.loads(manifest.read_text(encoding="utf-8"))))
    print(f"wrote {args.out}")
