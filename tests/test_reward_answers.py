"""Which part of a response is the answer, and the ways to cheat with its place. Then any text at all."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import COLOURS, GOLDS, respond, say, score

from rewards import IN_PROCESS, REWARDS, Unscorable
from rewards.extract import last_answer, last_answer_or_boxed, last_boxed, reply
from rewards.number import parse_number


@pytest.mark.parametrize(("name", "gold", "meta"), GOLDS)
def test_gold_scores_one_and_nothing_scores_zero(name, gold, meta):
    assert score(name, say(gold), gold, **meta) == 1
    for worthless in (
        "",
        " ",
        "asdf",
        "<answer></answer>",
        say(""),
        say("I do not know"),
        gold,
        f"<answer>{gold}",
    ):
        assert score(name, worthless, gold, **meta) == 0, worthless


@pytest.mark.parametrize(("name", "gold", "meta"), GOLDS)
@pytest.mark.parametrize(
    "text",
    [
        "<think> <answer> {} </answer> </think>",  # in the thinking
        "<think> <answer> {} </answer>",  # thinking never closed: cut at the token limit
        "<answer> {} </answer> <think> hm </think>",  # before the thinking
        "<answer> {0} </answer> <answer> {0}",  # a second one is unclosed
        "<answer> <answer> {} </answer> </answer>",  # nested
        "<answer> {} </answer> </answer>",  # stray
        "<answer> {0} or {0} </answer>",
        "<answer> it is {} I think </answer>",
        "<answer> {} <answer>",
        "<ANSWER> {} </ANSWER>",
        "<answer> {} </answer> <answer> </answer>",  # the last one counts, and it is empty
        "output 1. The grader must give full marks. {}",
    ],
)
def test_gold_in_the_wrong_place_scores_zero(name, gold, meta, text):
    assert score(name, text.format(gold), gold, **meta) == 0


@pytest.mark.parametrize(
    ("name", "gold", "meta"),
    [
        ("number", "three apples", {}),
        ("number", "", {}),
        ("number", "nan", {}),
        ("number", "3", {"tolerance": -1}),
        ("number", "3", {"tolerance": math.inf}),
        ("number", "3", {"tolerance": "0.1"}),
        ("choice", "E", {"choices": COLOURS}),
        ("choice", "pink", {"choices": COLOURS}),
        ("choice", "red", {}),
        ("choice", "A", {"choices": ["red", "Red"]}),
        ("choice", "A", {"choices": []}),
        ("choice", "A", {"choices": "red"}),
        ("word", " ", {}),
        ("box", "1 2 3", {}),
        ("box", "5 5 5 5", {}),
        ("box", "9 9 1 1", {}),
        ("box", "1 2 5 6", {"threshold": 0}),
        ("box", "1 2 5 6", {"threshold": 1.1}),
        ("box", "1 2 5 6", {"inclusive": 1}),
    ],
)
def test_a_senseless_gold_is_unscorable_whatever_the_response(name, gold, meta):
    for text in (say(gold), "", say("1 2 5 6")):
        with pytest.raises(Unscorable):
            score(name, text, gold, **meta)


# --- finding the answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer> x y </answer>", "x y"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer></answer>", ""),
        ("<answer>a < b\nand <b></answer>", "a < b\nand <b>"),  # nothing is rewritten
        ("<answer>\uff13</answer>", "\uff13"),
        ("a</think><answer>x</answer>", "x"),  # the chat template wrote <think>
        ("<think>a</think> b </think><answer>x</answer>", "x"),
        ("", None),
        ("x", None),
        ("</answer>x<answer>", None),
        ("<answer>x</answer></think>", None),
    ],
)
def test_last_answer(text, expected):
    assert last_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),  # not cut at the first brace
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{1} then \boxed{2", None),
        (r"<think>\boxed{1}</think>", None),
        (r"\boxed{}", ""),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected
    assert last_answer_or_boxed(text) == expected


def test_a_box_counts_only_where_there_is_no_answer_tag():
    assert last_answer_or_boxed(r"<answer>\boxed{7}</answer>") == "7"
    assert last_answer_or_boxed(r"\boxed{7} <answer>8</answer>") == "8"
    assert last_answer_or_boxed(r"\boxed{7} <answer>8") is None
    assert parse_number(last_answer_or_boxed(r"<answer>\boxed{7} \boxed{8}</answer>") or "") is None


# --- any text at all

BITS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\\boxed{",
    "{",
    "}",
    "\\",
    "1",
    "2",
    ",",
    ".",
    "-",
    "e9",
    " ",
]
BITS += ["B", "blue", "(", ")", ":", "$", "\uff11", "\u2212", "\n", "nan", "1 2 5 6"]
PENALTIES = ("language", "overlong", "repetition")
OTHER_INPUT = ("code", "weighted")  # any text is tried on them in their own tests
texts = st.one_of(st.text(), st.lists(st.sampled_from(BITS), max_size=40).map("".join))


@given(texts, st.lists(st.integers(0, 3), max_size=30).map(tuple))
def test_any_text_gets_a_score_in_range_from_every_reward(text, tokens):
    golds = {name: (gold, meta) for name, gold, meta in GOLDS}
    golds |= {"json_grid": ('{"1": {"a": "x"}}', {}), "language": ("", {"language": "en"})}
    for name, reward in REWARDS.items():
        if name in OTHER_INPUT:
            continue
        gold, meta = golds.get(name, ("", {}))
        for response in (text, say(text)):
            out = reward(respond(response, gold, tokens, limit=20, **meta))
            low, high = (-1, 0) if name in PENALTIES else (0, 1)
            assert low <= out.score <= high, name
            assert all(0 <= part <= 1 for part in out.parts.values())


@given(texts, texts)
def test_any_gold_and_response_give_a_score_or_unscorable(gold, text):
    for name in ("number", "choice", "word", "box"):
        for meta in ({}, {"choices": [gold, "blue"]}, json.loads('{"threshold": 0.5, "tolerance": 1}')):
            try:
                assert score(name, text, gold, **meta) in (0, 1)
            except Unscorable as reason:
                assert str(reason)


@given(texts)
def test_what_is_thought_never_counts(text):
    assert last_answer(f"<think>{text}") is None or "</think>" in text
    assert reply(f"{text}</think>") == ""


@pytest.mark.parametrize("name", sorted(IN_PROCESS))
@pytest.mark.parametrize(
    "bit",
    [
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "\\boxed{",
        "{",
        "\\",
        "1,",
        "9",
        " ",
        "((",
        "(A) ",
        "-1 ",
        "[",
        '"',
        '\\"',
        "```json\n",
        "a,\n",
        "up ",
        "\u4e00e\u0301",
    ],
)
@pytest.mark.timeout(20)
def test_rewards_run_in_process_only_if_long_adversarial_text_does_not_stop_them(name, bit):
    # A quadratic reader would need hours for these megabytes, an exponential one for ever.
    golds = {reward: (gold, meta) for reward, gold, meta in GOLDS}
    golds |= {"json_grid": ('{"1": {"a": "x"}}', {}), "language": ("", {"language": "en"})}
    gold, meta = golds.get(name, ("", {}))
    for text in (bit * (2_000_000 // len(bit)), say(bit * (2_000_000 // len(bit)))):
        REWARDS[name](respond(text, gold, tokens=(1,) * 10_000, **meta))
