"""The reward `json_grid` by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import respond, say, score

from rewards import REWARDS, Unscorable

GRID = {"House 1": {"Name": "Eric", "Drink": "tea"}, "House 2": {"Name": "Arnold", "Drink": "Green Tea"}}
GOLD = json.dumps(GRID)


def grid(**changed: object) -> str:
    """The gold with one cell of the first house changed."""
    return json.dumps(GRID | {"House 1": GRID["House 1"] | changed})


def cells(text: str, gold: str = GOLD) -> float:
    out = REWARDS["json_grid"](respond(text, gold))
    assert out.score == (out.parts["cells"] == 1)
    return out.parts["cells"]


@pytest.mark.parametrize(
    "text",
    [
        say(GOLD),
        GOLD,  # ZebraLogic's own prompt asks for nothing but JSON
        f"<think> hm {{ </think> The solution is:\n```json\n{json.dumps(GRID, indent=2)}\n```\nDone.",
        say(json.dumps({"reasoning": "so { so", "solution": GRID})),
        say(f"first {grid(Name='Peter')} but then {GOLD}"),  # the last one counts
        say(GOLD.upper()),
        say(GOLD.replace("Green Tea", " green   tea ")),
        say(json.dumps(GRID | {"House 3": {"Name": "Bob"}})),  # more than was asked for
        say(grid(Pet="cat")),
        say("{ an open brace, then " + GOLD),
        say(GOLD + ' and "quotes {'),
        f"So \\boxed{{{GOLD}}}.",
        f"So $\\boxed{{\\text{{{GOLD}}}}}$",
        say(f"\\boxed{{{GOLD}}}."),
    ],
)
def test_solved(text):
    assert cells(text) == 1


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (say(grid(Name="Arnold")), 3 / 4),
        (say(grid(Name="Arnold", Drink="milk")), 2 / 4),
        (say(grid(Name=["Eric"])), 1),  # a list of one value
        (say(grid(Name=["Eric", "Arnold"])), 3 / 4),  # a list of candidates is no cell
        (say(grid(Name=[["Eric"]])), 3 / 4),
        (say(grid(Name=[])), 3 / 4),
        (say(grid(Name="Eric or Arnold")), 3 / 4),
        (say(grid(Name=None)), 3 / 4),
        (say(grid(Name="")), 3 / 4),
        (say(json.dumps({"House 1": GRID["House 1"]})), 2 / 4),
        (say(json.dumps({"1": GRID["House 1"], "2": GRID["House 2"]})), 0),
        (say(json.dumps({"House 1": GRID["House 2"], "House 2": GRID["House 1"]})), 0),
        (say(f"{GOLD} or {grid(Name='Peter')}"), 3 / 4),  # the last one counts
        (say(GOLD[:-1]), 0),  # the last complete object is the second house: its columns are no rows
        (say("{}"), 0),
        (say(f"[{GOLD}"), 1),
        (say("{'House 1': {'Name': 'Eric'}}"), 0),  # no JSON
        (say(GOLD.replace('"Eric"', '"Eric", "Name": "Arnold"')), 0),  # a key twice
        (say(GOLD.replace('"Eric"', '"Eric", "name": "Arnold"')), 0),  # and once more in other letters
        (say(GOLD.replace("House 2", "house  1")), 0),
        (say('{"header": ["House", "Name", "Name"], "rows": [["1", "Bob", "Eric"], ["2", "Bob", "Arnold"]]}'), 0),
        (f"{GOLD} is no \\boxed{{{grid(Name='Peter')}}}", 3 / 4),
        (say(GOLD.replace('"Eric"', "NaN")), 0),
        (say('{"a":' * 40 + "1" + "}" * 40), 0),
        (say('{"solution": 3}'), 0),
        (f"<think>{GOLD}</think>", 0),
        (f"<think>{GOLD}", 0),
        (f"{GOLD} <answer> {{}} </answer>", 0),  # tags go first
        (f"<answer> {GOLD}", 0),
        ("", 0),
        (say("I do not know"), 0),
    ],
)
def test_share_of_right_cells(text, share):
    assert cells(text) == pytest.approx(share)


def test_zebralogic_table():
    table = {"header": ["House", "Name", "Drink"], "rows": [["1", "Eric", "tea"], ["2", "Arnold", "green tea"]]}
    assert cells(say(GOLD), json.dumps(table)) == 1
    assert cells(say(json.dumps(table))) == 1
    assert cells(say(grid(Drink="milk")), json.dumps(table)) == 3 / 4


def test_numbers_are_read_as_text():
    assert score("json_grid", say('{"1": {"age": 7}}'), '{"1": {"age": "7"}}') == 1
    assert score("json_grid", say('{"1": {"age": true}}'), '{"1": {"age": "true"}}') == 0


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "Eric",
        "[]",
        "{}",
        '{"House 1": {}}',
        '{"House 1": "Eric"}',
        grid(Name="___"),  # the public copy of ZebraLogic has no solutions
        grid(Name=""),
        grid(Name=["Eric", "Arnold"]),
        '{"header": ["House", "Name"], "rows": [["1"]]}',
        '{"a": {"b": "c"}, "A": {"b": "c"}}',
        json.dumps({str(i): {str(j): "x" for j in range(40)} for i in range(40)}),
    ],
)
def test_a_gold_that_is_no_grid_is_unscorable(gold):
    with pytest.raises(Unscorable):
        score("json_grid", say(GOLD), gold)


@given(st.text('{}[]":,a1\\ \n', max_size=60))
def test_any_text_is_scored(text):
    for response in (text, say(text), say(text + GOLD)):
        assert 0 <= cells(response) <= 1


names = st.text("abcdef", min_size=1, max_size=3)


@given(st.dictionaries(names, st.dictionaries(names, names, min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_one_wrong_cell_costs_its_share(rows, data):
    assert cells(say(json.dumps(rows)), json.dumps(rows)) == 1
    row = data.draw(st.sampled_from(sorted(rows)))
    column = data.draw(st.sampled_from(sorted(rows[row])))
    total = sum(map(len, rows.values()))
    wrong = rows | {row: rows[row] | {column: rows[row][column] + "x"}}
    assert cells(say(json.dumps(wrong)), json.dumps(rows)) == pytest.approx((total - 1) / total)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (say(GOLD), ""),
        (say(grid(Name="Peter")), "wrong"),
        (say("{}"), "not a grid"),
        (say("Eric drinks tea"), "not a grid"),
        (say(""), "empty answer"),
        ("<answer> never closed", "no answer"),
    ],
)
def test_reasons(text, reason):
    assert REWARDS["json_grid"](respond(text, GOLD)).reason == reason
