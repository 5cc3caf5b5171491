"""The reward `maze` by hand, and against paths that were walked in another way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import respond, say, score

from rewards import REWARDS, Unscorable

# One way leads to G: right, right, down, down, left.
GRID = ["S..", "##.", ".G."]
OPEN = ["S...", "....", "...G"]


def out(answer: str, grid: object = GRID, **meta: object):
    return REWARDS["maze"](respond(say(answer), grid=grid, **meta))


@pytest.mark.parametrize(
    "answer",
    [
        "R R D D L",
        "RRDDL",
        "rrddl",
        "R, R, D, D, L",
        "R,R,D,D,L.",
        "['R', 'R', 'D', 'D', 'L']",
        '["right", "right", "down", "down", "left"]',
        "right right down down left",
        "Right, Right, Down, Down, Left",
        "\u2192\u2192\u2193\u2193\u2190",
        "\u2192 \u2192 \u2193 \u2193 \u2190",
        "\u27a1\ufe0f\u27a1\ufe0f\u2b07\ufe0f\u2b07\ufe0f\u2b05\ufe0f",
        "(0,0) (0,1) (0,2) (1,2) (2,2) (2,1)",
        "(0, 0) -> (0, 1) -> (0, 2) -> (1, 2) -> (2, 2) -> (2, 1)",
        "(0,0)\u2192(0,1)\u2192(0,2)\u2192(1,2)\u2192(2,2)\u2192(2,1)",
        "[[0,0],[0,1],[0,2],[1,2],[2,2],[2,1]]",
        "R L R R D D L",  # a detour is no fault
    ],
)
def test_paths_that_arrive(answer):
    assert out(answer).score == 1


@pytest.mark.parametrize(
    ("answer", "legal"),
    [
        ("R R D D", 1),  # stops before G
        ("R R D D L L", 1),  # and walks past it
        ("R R D D L R", 1),
        ("D D R", 0),  # into the wall at once
        ("R D D", 1 / 3),  # into the wall
        ("R R R D D L", 2 / 6),  # off the grid
        ("L R R R D D L", 0),
        ("U", 0),
        ("R R D D D L", 4 / 6),
        ("(0,0) (0,1) (0,2) (2,2) (2,1)", 2 / 4),  # jumps
        ("(0,0) (0,1) (1,2) (2,2) (2,1)", 1 / 4),  # steps aslant
        ("(0,0) (0,0) (0,1) (0,2) (1,2) (2,2) (2,1)", 0),  # stands still
        ("(0,1) (0,2) (1,2) (2,2) (2,1)", 0),  # does not start at S
        ("(0,0) (0,1) (1,1) (2,1)", 1 / 3),  # through the wall
        ("(0,0) (2,1)", 0),
        ("(2,1)", 0),
        ("(0,0)", 0),
        ("0 0 0 1 0", 0),
        ("(0,0) (0,-1) (0,-2) (-1,-2) (-2,-2) (-2,-1)", 0),  # off the grid: a minus is no dash
        ("0000 0 1 0 2 1 2 2 2 2 1", 0),  # 11 numbers, not 12
        ("R R D D L or D D R", 0),
        ("I go R R D D L", 0),
        ("R3", 0),
        ("north", 0),
        ("", 0),
        ("RRDDL" + "RL" * 500, 0),  # more steps than four for each open cell
    ],
)
def test_paths_that_do_not(answer, legal):
    result = out(answer)
    assert result.score == 0
    assert result.parts["legal"] == pytest.approx(legal)


def test_any_path_will_do_unless_the_shortest_is_asked_for():
    for path, steps in (("RRRDD", 5), ("DDRRR", 5), ("DRDRR", 5), ("RDRDLRR", 7), ("RLRRRDD", 7)):
        assert out(path, OPEN).score == 1
        assert out(path, OPEN, shortest=True).score == (steps == 5)


def test_cells_in_a_wide_grid():
    assert out("(0,999) (0,1000)", ["." * 999 + "SG"]).score == 1
    assert out("0-999, 0-1000", ["." * 999 + "SG"]).score == 1
    assert out("(0,999) (0,0100)", ["." * 999 + "SG"]).score == 0


def test_cells_as_x_and_y():
    path = "(0,0) (1,0) (2,0) (2,1) (2,2) (1,2)"
    assert out(path, cells="xy").score == 1
    assert out(path, cells="rc").score == 0


@pytest.mark.parametrize(
    ("grid", "meta"),
    [
        (None, {}),
        ([], {}),
        ([""], {}),
        ("S.G", {}),
        (["S.", "G"], {}),
        (["S.", 3], {}),
        (["S.."], {}),
        (["..G"], {}),
        (["SSG"], {}),
        (["SGG"], {}),
        (["S#G"], {}),  # no way
        (["S" + "." * 10_000 + "G"], {}),
        (GRID, {"shortest": 1}),
        (GRID, {"cells": "yx"}),
    ],
)
def test_a_grid_that_is_none_is_unscorable(grid, meta):
    with pytest.raises(Unscorable):
        out("R", grid, **meta)


def walk(rows: list[str], moves: str) -> bool:
    """Whether the path arrives, by moving a mark in the picture."""
    width = len(rows[0])
    picture, place = "".join(rows), "".join(rows).index("S")
    for move in moves:
        column = place % width
        if (move == "L" and column == 0) or (move == "R" and column == width - 1):
            return False
        place += {"L": -1, "R": 1, "U": -width, "D": width}[move]
        if not 0 <= place < len(picture) or picture[place] == "#":
            return False
    return picture[place] == "G"


@given(st.lists(st.text(".#", min_size=4, max_size=4), min_size=2, max_size=4), st.text("UDLR", max_size=12), st.data())
def test_any_path_against_a_second_way_of_walking(rows, moves, data):
    places = [(r, c) for r in range(len(rows)) for c in range(4)]
    start, goal = data.draw(st.lists(st.sampled_from(places), min_size=2, max_size=2, unique=True))
    marked = [
        "".join("S" if (r, c) == start else "G" if (r, c) == goal else rows[r][c] for c in range(4))
        for r in range(len(rows))
    ]
    try:
        assert score("maze", say(moves), "", grid=marked) == walk(marked, moves)
    except Unscorable:
        assert not walk(marked, moves)  # no path leads to G, then neither does this one
