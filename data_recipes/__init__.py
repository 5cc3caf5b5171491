"""Recipes: each builds a data set folder in the schema of `sapo_vl.data.problem_set`.

A recipe is a function `build(out, *, seed=0, ...)` whose keyword arguments have types and defaults; it
returns the manifest it wrote. To add one, write a module with such a function and name it in RECIPES.
"""

from collections.abc import Callable
from typing import Any

from data_recipes import (
    clevr_count,
    code_problems,
    columns,
    dapo_math,
    deepmath,
    geometry3k,
    geoqa,
    mixture,
    mmk12,
    open_r1_multimodal,
    reasoning_gym,
    refcoco,
    virl39k,
)
from data_recipes.arguments import UsageError
from data_recipes.building import HubSet
from data_recipes.custom import is_custom, load_recipe
from data_recipes.visual_puzzles import recipe as visual_puzzles

RECIPES: dict[str, Callable[..., dict[str, Any]]] = {
    "visual_puzzles": visual_puzzles.build,
    "geometry3k": geometry3k.build,
    "clevr_count": clevr_count.build,
    "geoqa": geoqa.build,
    "virl39k": virl39k.build,
    "mmk12": mmk12.build,
    "open_r1_multimodal": open_r1_multimodal.build,
    "refcoco": refcoco.build,
    "dapo_math": dapo_math.build,
    "deepmath": deepmath.build,
    "code_problems": code_problems.build,
    "reasoning_gym": reasoning_gym.build,
    "columns": columns.build,
    "mixture": mixture.build,
}

# Of the recipes that read a set of others, and nothing but it.
SETS: dict[str, HubSet] = {
    module.SET.name: module.SET
    for module in (
        geometry3k,
        clevr_count,
        geoqa,
        virl39k,
        mmk12,
        open_r1_multimodal,
        refcoco,
        dapo_math,
        deepmath,
        code_problems,
    )
}


def find_recipe(name: str) -> Callable[..., dict[str, Any]]:
    """The recipe of that name, or the function of a file of yours ("path/to/my_recipe.py:build").

    Raises UsageError if there is none.
    """
    if is_custom(name):
        return load_recipe(name)
    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}; there are {', '.join(sorted(RECIPES))}, or path/to/yours.py:build")
    return RECIPES[name]
