"""The reward `list` by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import respond, say, score

from rewards import REWARDS, Unscorable

GOLD = "red, dark green, 7"


@pytest.mark.parametrize(
    "answer",
    [
        "red, dark green, 7",
        "7, red, dark green",  # any order
        "red,dark green,7",
        "red; dark green; 7",
        "red\ndark green\n7",
        "- red\n- dark green\n- 7",
        "1. red\n2. dark green\n3. 7",
        "* RED\n\n*  Dark   Green\n* 7.0",
        "red,\ndark green,\n7,",
        "red, dark green; 7",
        "[red, dark green, 7]",
        "(red, dark green, 7)",
        "{red, dark green, 7}",
        '["red", "dark green", 7]',
        '["red", "dark green", "7"]',
        "'red', \"dark green\", 7",
        "red, dark green, 7,",
        "red, dark green, +7.00",
        "\uff52\uff45\uff44, dark green, 7",
        "red\uff0cdark green\uff0c7",
        "red\u3001dark green\u30017\u3001",
        "\uff08red\uff1b dark green\uff1b 7\uff09",
    ],
)
def test_spellings_of_the_same_list(answer):
    assert score("list", say(answer), GOLD) == 1


@pytest.mark.parametrize(
    ("answer", "overlap"),
    [
        ("red, dark green", 2 * 2 / 5),  # one too few
        ("red, dark green, 7, blue", 2 * 3 / 7),  # one too many
        ("red, dark green, 7, 7", 2 * 3 / 7),  # one twice
        ("red, red, 7", 2 * 2 / 6),
        ("red, blue, green, dark green, 1, 2, 3, 4, 5, 6, 7", 2 * 3 / 14),  # everything there is
        ("red dark green 7", 0),
        ("red, dark, green, 7", 2 * 2 / 7),
        ("red, , dark green, 7", 2 * 3 / 7),  # an empty item
        ("red, dark green and 7", 2 * 1 / 5),
        ("red, dark green, seven", 2 * 2 / 6),
        ("not red, dark green, 7", 2 * 2 / 6),
        # No arrays of texts and numbers, so split at the commas, the first without a pair of brackets around all.
        ('["red", "dark green", ["7"]]', 2 * 1 / 6),
        ('["red", "dark green", true]', 2 * 2 / 6),
        ("", 0),
        (",,,", 0),
    ],
)
def test_wrong_lists_and_how_much_of_them_is_right(answer, overlap):
    out = REWARDS["list"](respond(say(answer), GOLD))
    assert out.score == 0
    assert out.parts["overlap"] == pytest.approx(overlap)


def test_order():
    assert score("list", say("a, b, c"), "a, b, c", ordered=True) == 1
    assert score("list", say("a, c, b"), "a, b, c", ordered=True) == 0
    assert score("list", say("a, c, b"), "a, b, c", ordered=False) == 1
    assert score("list", say("a, b, a"), "a, a, b", ordered=True) == 0


def test_numbers_within_a_tolerance():
    near = {"ordered": True, "tolerance": 0.001}
    for answer in ("(5, -2)", "(5.0009, -2.001)", "[5,-2]", r"\left(5,\ -2\right)", r"\left[5, -2\right]", "5, -2"):
        assert score("list", say(answer), "(5.000, -2.000)", **near) == 1, answer
    for answer in ("(5.0011, -2)", "(-2, 5)", "(5, -2, 0)", "5", "(5, minus 2)", "(5, -2) or (5, 2)"):
        assert score("list", say(answer), "(5.000, -2.000)", **near) == 0, answer
    assert score("list", say("1.5, red"), "1.5, red", **near) == 1
    assert score("list", say("1.5, rad"), "1.5, red", **near) == 0
    for meta in ({"tolerance": 0.1}, {"ordered": True, "tolerance": -1}, {"ordered": True, "tolerance": "0.1"}):
        with pytest.raises(Unscorable, match="tolerance"):
            score("list", say("1"), "1", **meta)


def test_repeated_items_count():
    assert score("list", say("a, b, a"), "a, a, b") == 1
    assert score("list", say("a, b"), "a, a, b") == 0
    assert score("list", say("a, b, b"), "a, a, b") == 0


def test_a_separator_inside_a_gold_item_does_not_separate():
    gold = '["Paris, France", "Rome"]'
    assert score("list", say("Paris, France; Rome"), gold) == 1
    assert score("list", say("Paris, France\nRome"), gold) == 1
    assert score("list", say('["Rome", "Paris, France"]'), gold) == 1
    assert score("list", say("Paris, France, Rome"), gold) == 0
    assert score("list", say("Paris; France; Rome"), gold) == 0
    assert score("list", say("a,b;c"), '["a,b;c"]') == 1


def test_one_item():
    assert score("list", say("red"), "red") == 1
    assert score("list", say("red, blue"), "red") == 0
    assert score("list", say("-5"), "-5") == score("list", say("- -5"), "-5") == 1
    assert score("list", say("- 5"), "-5") == 0  # a bullet and a 5
    assert score("list", r"so it is \boxed{red, blue}", "blue, red") == 1


@pytest.mark.parametrize(
    ("gold", "meta"),
    [("", {}), ("[]", {}), (" ", {}), ("a,,b", {}), ("a", {"ordered": "yes"}), (",".join("a" * 1001), {})],
)
def test_a_gold_that_is_no_list_is_unscorable(gold, meta):
    with pytest.raises(Unscorable):
        score("list", say("a"), gold, **meta)


words = st.lists(st.text("abc ", min_size=1).filter(lambda t: t.strip()), min_size=1, max_size=5)


@given(words, st.randoms())
def test_any_order_of_the_items_is_right_and_any_other_number_of_them_wrong(items, random):
    shuffled = random.sample(items, len(items))
    gold = ", ".join(items)
    assert score("list", say("; ".join(shuffled)), gold) == 1
    assert score("list", say("; ".join([*shuffled, items[0]])), gold) == 0
    assert score("list", say("; ".join(shuffled[1:])), gold) == 0
