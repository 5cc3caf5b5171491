"""Rows that no benchmark has published: each is asked, left out or broken, and never the end of an evaluation."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.benchmarks import BENCHMARKS, LeftOut, Row
from sapo_vl.benchmarks.cells import gold
from sapo_vl.data.images import read_image

WORDS = st.sampled_from(["['a', 'b']", "<image 1>", "A", "[1, 2]", "{}", "how many", "<image>"])
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | WORDS
ANY = st.recursive(
    LEAF, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=5
)


def row(cells: dict[str, Any]) -> Row:
    return Row(index=0, cells=cells, image=lambda cell: read_image(cell, None))


@pytest.mark.parametrize("name", BENCHMARKS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_cells_are_asked_left_out_or_broken(name: str, data: st.DataObject) -> None:
    cells = data.draw(st.fixed_dictionaries(dict.fromkeys(BENCHMARKS[name].columns, ANY)))
    with contextlib.suppress(ValueError):  # of which LeftOut and ImageRefused are two
        list(BENCHMARKS[name].problems(row(cells)))


@pytest.mark.parametrize("cell", [None, "", "?", float("nan"), float("inf")])
def test_no_gold(cell: Any) -> None:
    with pytest.raises(LeftOut, match="no gold"):
        gold(row({"answer": cell}), "answer")
    assert gold(row({"answer": 0}), "answer") == "0" and gold(row({"answer": "nan"}), "answer") == "nan"
