"""Recipes: each builds a data set folder in the schema of `sapo_vl.data`.

A recipe is a function `build(out, *, seed=0, ...)` whose keyword arguments have types and defaults; it
returns the manifest it wrote. To add one, write a module with such a function and name it in RECIPES.
"""

from collections.abc import Callable
from typing import Any

from data_recipes import geometry3k
from data_recipes.visual_puzzles import recipe as visual_puzzles

RECIPES: dict[str, Callable[..., dict[str, Any]]] = {
    "visual_puzzles": visual_puzzles.build,
    "geometry3k": geometry3k.build,
}
