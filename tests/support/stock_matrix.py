"""Which folders of stock_models.py are tried.

    python tests/support/stock_matrix.py OUT        builds them, for a look

`PAIRWISE` is a small set in which every two values of every two axes meet in some folder; `RELEASED` are the released
models at tiny widths: key for key the config.json, the generation config, the processor files and the layout of the
hub.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from stock_models import Folder, Sizes, build

AXES: dict[str, tuple[Any, ...]] = {
    "experts": ("none", "hub", "runtime"),
    "tied": (True, False),
    "inner_tie": ("absent", "true", "false"),
    "rope": ("hub", "new"),
    "shards": (True, False),
    "dtype": ("float32", "bfloat16"),
    "processor": ("hub_json", "hub_jinja", "one"),
    "eos": ("one", "list", "pad"),
    "padded_vocabulary": (True, False),
    "attention_bias": (False, True),
}


Pair = tuple[tuple[str, Any], tuple[str, Any]]  # two (axis, value), in the order of the axes


def pairs(row: Mapping[str, Any]) -> set[Pair]:
    return set(itertools.combinations([(axis, row[axis]) for axis in AXES if axis in row], 2))


def pairwise(seed: int = 2, tries: int = 3) -> Iterator[Folder]:
    """Greedy: of some random rows, the one with most pairs that no row has yet. Deterministic.

    Each random row begins with such a pair, and takes for each other axis, in random order, the best value.
    """
    dice = random.Random(seed)  # 2 gives 12 rows; nine is the least that two axes of three values allow
    axes = itertools.combinations(AXES, 2)
    missing = [((a, x), (b, y)) for a, b in axes for x in AXES[a] for y in AXES[b]]

    def new(row: Mapping[str, Any]) -> int:
        return len(pairs(row).intersection(missing))

    def random_row() -> dict[str, Any]:
        row = dict(dice.choice(missing))
        for axis in dice.sample([a for a in AXES if a not in row], len(AXES) - 2):
            values = dice.sample(AXES[axis], len(AXES[axis]))
            row[axis] = max(values, key=lambda value: new({**row, axis: value}))
        return row

    while missing:
        best = max((random_row() for _ in range(tries)), key=new)
        missing = [pair for pair in missing if pair not in pairs(best)]
        yield Folder(**best)


PAIRWISE: dict[str, Folder] = {f"pair{i:02d}": folder for i, folder in enumerate(pairwise())}


def _released(hidden: int, inner: int, heads: int, kv_heads: int, **choices: Any) -> Folder:
    """As Qwen3-VL is on the hub. Tied models say so in both places, the others at the top only."""
    tied = choices["tied"]
    sizes = {k: choices.pop(k) for k in [f.name for f in fields(Sizes)] if k in choices}
    return Folder(
        **choices,
        inner_tie="true" if tied else "absent",
        rope="hub",
        dtype="bfloat16",
        processor="hub_json",
        eos="list",
        padded_vocabulary=True,
        sizes=Sizes(hidden=hidden, inner=inner, heads=heads, kv_heads=kv_heads, **sizes),
    )


# Widths are cut to about 1/32, layers to 4; what is kept are the ratios: heads to key-value heads, heads x head size to
# hidden size, experts to hidden size, and three deep-stack levels below the last layer of the tower.
TOWER: dict[str, Any] = {"layers": 4, "vision_depth": 4, "deepstack": (0, 1, 2)}
RELEASED: dict[str, Folder] = {
    "2B": _released(64, 192, 2, 1, tied=True, **TOWER),
    "4B": _released(80, 304, 4, 1, tied=True, shards=True, **TOWER),
    "8B": _released(128, 384, 4, 1, tied=False, shards=True, **TOWER),
    "32B": _released(160, 800, 8, 1, tied=False, shards=True, **TOWER),
    "30B-A3B": _released(
        *(160, 480, 8, 1), tied=False, shards=True, experts="hub", num_experts=8, **TOWER,
    ),
    "235B-A22B": _released(
        *(192, 576, 12, 1), tied=False, shards=True, experts="hub", num_experts=8, **TOWER,
    ),
}  # fmt: skip


if __name__ == "__main__":
    for name, folder in (RELEASED | PAIRWISE).items():
        print(f"{name:10} {folder}", build(folder, Path(sys.argv[1]) / name, 0))
