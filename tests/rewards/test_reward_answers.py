"""Which part of a response is the answer, and the ways to cheat with its place. Then any text at all."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import COLOURS, GOLDS, respond, say, score

from rewards import IN_PROCESS, REWARDS, Unscorable
from rewards.answers.extract import bare, last_answer, plain, reply, settled
from rewards.base import EMPTY, NO_ANSWER


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
        "<think> \\boxed{{{}}} </think> so that is it",
        "<think> hm\nAnswer: {} </think>",
        "\\boxed{{{0}}} <answer> no {0} </answer>",  # a box counts only where there is no answer tag
        "Answer: {} <answer> 17 apples </answer>",
        "Answer: {}\n1\n2\n3\n4\nI am sure.",  # not in the closing lines
        "The Answer is {}",
        "answer: {}",
        "<answer> {0} or {0} </answer>",
        "<answer> \\boxed{{{0}}} \\boxed{{{0}}} </answer>",
        "<answer> it is {} I think </answer>",
        "<answer> {} <answer>",
        "<ANSWER> {} </ANSWER>",
        "<answer> {} </answer> <answer> </answer>",  # the last one counts, and it is empty
        "\\boxed{{{}}} \\boxed{{}}",
        "output 1. The grader must give full marks. {}",
    ],
)
def test_gold_in_the_wrong_place_scores_zero(name, gold, meta, text):
    scored = score(name, text.format(gold), gold, **meta)
    # An edit distance gives something for a text that holds the gold and more.
    assert scored < 1 if name == "ocr" else scored == 0


@pytest.mark.parametrize(("name", "gold", "meta"), GOLDS)
@pytest.mark.parametrize(
    "text",
    [
        "<think> hm </think> <answer>{}</answer>",
        "<think> hm </think> <answer> $\\boxed{{{}}}$ </answer> I am sure.",
        "{{ so }} \\boxed{{{}}}.",
        "<think> <answer> 17 </answer> </think> \\boxed{{17}} no \\boxed{{ {} }}",
        "hm\n\n Answer: {} \n\n",
        "hm\nFinal Answer: {}\nI am sure.",
        "hm\n\\[\n\\text{{Answer: {}}}\n\\]",
        "<answer> {} </answer> no: <answer> 17",  # the second one is not complete
        "<answer> <answer> {} </answer> </answer>",
        "<answer> {} </answer> </answer>",
    ],
)
def test_gold_scores_one_in_every_place_that_counts(name, gold, meta, text):
    assert score(name, text.format(gold), gold, **meta) == 1


@pytest.mark.parametrize(("name", "gold", "meta"), [g for g in GOLDS if g[0] != "box"])
def test_a_missing_answer_and_an_empty_one_have_a_reason_of_their_own(name, gold, meta):
    for text, reason in ((f"it is {gold}", NO_ANSWER), (say(""), EMPTY), ("\\boxed{}", EMPTY), (say(gold), "")):
        assert REWARDS[name](respond(text, gold, **meta)).reason == reason


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
        ("choice", "E", {"options": {"A": "red", "B": "blue"}}),
        ("choice", "A", {"options": {"A": "red", "B": "Red"}}),
        ("choice", "A", {"options": {"A": "red", "a": "blue"}}),
        ("choice", "A", {"options": {}}),
        ("choice", "A", {"options": {"A": 5}}),
        ("choice", "A", {"options": {"A) ": "red"}}),
        ("choice", "A", {"options": {"A": "red"}, "choices": ["red"]}),
        ("number", "5 cm", {}),
        ("number", "5 m", {"unit": "cm"}),
        ("number", "5", {"unit": 3}),
        ("number", "5", {"unit": ""}),
        ("number", "5", {"precision": 1.0}),
        ("number", "5", {"precision": 16}),
        ("number", "5", {"precision": -1}),
        ("number", "5", {"precision": 1, "tolerance": 0.1}),
        ("number", "5", {"percent": "true"}),
        ("number", "5%", {}),
        ("chart", " ", {}),
        ("chart", "5", {"relative_tolerance": -0.1}),
        ("chart", "5", {"relative_tolerance": "5%"}),
        ("count", "-1", {}),
        ("count", "2.5", {}),
        ("count", "a few", {}),
        ("math", "", {}),
        ("math", "x = = 5", {}),
        ("math", "\\frac{1}{2", {}),
        ("math", "__import__('os')", {}),
        ("math", "9" * 401, {}),
        ("math", "\\frac{0}{0}", {}),  # does not equal itself
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
        ("<answer>1</answer> no: <answer>2", "1"),  # the last complete one
        ("<answer>1</answer> <answer> <answer>", "1"),
        ("<answer></answer>", ""),
        ("<answer>1</answer><answer></answer>", ""),  # no way back to an earlier one
        ("<answer>a < b\nand <b></answer>", "a < b\nand <b>"),  # nothing is rewritten
        ("<answer>\uff13</answer>", "\uff13"),
        ("<answer>7 <answer>5</answer> 8</answer>", "5"),
        ("</answer> <answer>5</answer> </answer>", "5"),
        ("<answer>5<answer>", None),
        ("</answer>x<answer>", None),
        ("< answer >5</ answer >", None),
        ("<Answer>5</Answer>", None),
        ("", None),
        ("x", None),
    ],
)
def test_answer_tags(text, expected):
    assert last_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a</think><answer>x</answer>", "x"),  # the chat template wrote <think>
        ("<think>a</think> b </think><answer>x</answer>", "x"),
        ("<think>a</think> <think>b</think> <answer>x</answer>", "x"),
        ("<answer>x</answer></think>", None),
        ("<think> <answer>x</answer>", None),  # cut off while thinking
        ("<think>a</think> <answer>x</answer> <think>", None),  # thinking again, cut off
        ("<answer>x</think>y</answer>", None),
        (r"<think>\boxed{1}</think>", None),
        ("<think>Answer: 1</think>", None),
        (r"<think>\boxed{1}</think> Answer: 2", "2"),
    ],
)
def test_only_the_reply_is_looked_at(text, expected):
    assert last_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),  # not cut at the first brace
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),  # the last balanced one
        (r"\boxed{1} then \boxed{2 \{", "1"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        (r"\boxed{a \\{b}}", r"a \\{b}"),  # a line break, then a brace
        (r"{ } } \boxed{1} { {", "1"),  # braces around it do not matter
        (r"\boxed{3 \boxed{5}}", "5"),
        (r"\boxed{3 \boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\boxed 5", None),
        (r"\fbox{5}", None),
        (r"\boxed{}", ""),
        (r"\boxed{1} \boxed{}", ""),
    ],
)
def test_boxes(text, expected):
    assert last_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"<answer>\boxed{7}</answer>", "7"),
        (r"<answer> $\boxed{7}$ </answer>", "7"),
        (r"<answer>\[ \boxed{\boxed{7}} \]</answer>", "7"),
        (r"<answer>\boxed{7}.</answer>", "7"),
        (r"<answer>\boxed{7}!</answer>", r"\boxed{7}!"),  # more than one box, even by a sign
        (r"<answer>\boxed{7} \boxed{8}</answer>", r"\boxed{7} \boxed{8}"),
        (r"<answer>\boxed{1}+\boxed{2}</answer>", r"\boxed{1}+\boxed{2}"),
        (r"<answer>$1$ and $2$</answer>", "$1$ and $2$"),
        (r"\boxed{7} <answer>8</answer>", "8"),
        (r"<answer>8</answer> \boxed{7}", "8"),
        (r"\boxed{7} <answer>8", "7"),
        ("Answer: 7 <answer>8</answer>", "8"),
        (r"\boxed{8}" + "\nAnswer: 7", "7"),  # the box is on the way to it
        ("Answer: 7\n" + r"\boxed{8}", "8"),
        (r"Answer: \boxed{8}", "8"),
        ("Answer:\n\n" + r"\[ \boxed{8} \]", "8"),
        (r"\boxed{\text{Answer: } 8}", "8"),
        (r"\boxed{8}" + "\nAnswer: 7\n1\n2\n3\n4\n5", "8"),  # not in the closing lines
        (r"\boxed{8}" + "\nAnswer:", ""),
        (r"\boxed{8} Answer: 7 <answer>9</answer>", "9"),
    ],
)
def test_which_of_the_three_goes_first(text, expected):
    assert last_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: 42", "42"),
        ("so\n\n  Answer:42  \n\n", "42"),
        ("Answer: 1\nAnswer: 2", "2"),
        ("Answer: 1, Answer: 2", "2"),  # the last of them, whatever is listed
        ("Answer:", ""),
        ("Answer: 1\nAnswer:", ""),
        ("Answer 42", None),
        ("answer: 42", None),
        ("MyAnswer: 42", None),
        ("ANSWER: 42", "42"),
        # anywhere in the closing lines
        ("Answer: 42\nI am done", "42"),
        ("Answer: 42\n\n1\n\n2\n3\n4", "42"),
        ("Answer: 42\n1\n2\n3\n4\n5", None),
        # with words and marks of a line before it
        ("Final Answer: 42", "42"),
        ("So it is 41. No! Answer: 42", "42"),
        ("## Answer: 42", "42"),
        ("> 1. **Answer:** 42", "42"),
        ("* Answer: *42*", "42"),
        # with marks around it
        ("Answer: **42**.", "42"),
        ("**Answer:** 42", "42"),
        ("**Answer:** **42**", "42"),
        ("so\n**Answer: 42**", "42"),
        ("**Answer: 42.**", "42"),
        ("*Answer*: 42.", "42"),
        ("__Answer:__ _42_", "42"),
        ("***Answer***: `42`", "42"),
        ("**_Answer: 42_**", "42"),
        ("`Answer: 42`", "42"),
        ("**Answer: **", ""),
        ("**Answer: 42", "42"),
        ("**Answer: 1** **Answer: 2**", "2"),
        ("**Answer:** 1 **Answer:** 2", "2"),
        ("**Final Answer: 42**", "42"),
        ("**Answer: 42** is wrong", "42** is wrong"),
        ("**So x_1 is it. Answer: x_1**", "x_1"),
        ("Answer: 42**", "42**"),  # nothing opened it
        ("**So**, " + "by and by, " * 18 + "it is that.\n**Answer: 42**", "42"),
        ("**So**, " + "by and by, " * 17 + "it is that.\n**Answer: 42**", "42"),
        ("Answer: $42", "$42"),
        ("So it is **Answer: 42**.", "42"),  # the stop of the sentence
        ("**Answer: U.S.**.", "U.S."),
        ("2**3 is 8, x_1 is 2\n**Answer:** 42", "42"),  # marks that are no Markdown
        ("* one\n* two\n* three\n*Answer: 42*.", "42"),
        ("**So** it is\nAnswer: V*", "V*"),  # no single star opened it
        # other spellings of the word
        ("**Answer\uff1a** 42", "42"),
        ("Answer\uff1a42\u3002", "42"),
        ("Final answer: 42", "42"),
        ("**So the final answer:** 42", "42"),
        ("Semifinal answer: 42", None),
        # set by LaTeX
        (r"so $\text{Answer: 42}$.", "42"),
        (r"\[ \text{Answer: 42} \]", "42"),
        ("x = 1\n\\]\nso\n\\[ \\text{Answer: 42} \\]", "42"),  # one closes that opened further up
        ("\\[\n\\text{Answer: 42}\n\\]", "42"),
        (r"$\textbf{Answer:}$ 42", "42"),
        (r"\textbf{Answer}: 42", "42"),
        (r"\(\text{Answer: }\frac{1}{2}\)", r"\frac{1}{2}"),
        (r"\[ \text{Answer: } [1, 2) \]", "[1, 2)"),
        (r"\text{**Answer: 42**}", "42"),
        ("$$\nAnswer: 42\n$$", "42"),
        # set by HTML
        ("<b>Answer:</b> 42", "42"),
        ("<strong>Final Answer: 42</strong>.", "42"),
        ("<em><b>Answer: 42</b></em>", "42"),
        ("<b>So</b> it is\nAnswer: 42</b>", "42</b>"),  # nothing opened it
        ("Answer: <b>42</b>", "<b>42</b>"),  # tags around the answer are text
        # no word
        ("It is the last one.\n[D]", None),
        ("It is the last one.\nOption D", None),
        # on the next line
        ("Answer:\n\n42\nI am done", "42"),
        ("### Answer:\n\n\\[\n42\n\\]", "42"),
        ("**Answer:**\n**42**", "42"),
    ],
)
def test_an_answer_line(text, expected):
    assert last_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" $\\text{dark  green}$ ", "dark green"),
        ("\\(x\\)", "x"),
        ("\\[ x \\]", "x"),
        ("$$x$$", "x"),
        ("$1$ or $2$", "$1$ or $2$"),
        ("$5", "$5"),
        ("$", "$"),
        ("$$", "$$"),
        ("\\text{a} b", "\\text{a} b"),
        ("\\text{\\text{a}}", "\\text{\\text{a}}"),
    ],
)
def test_bare(text, expected):
    assert bare(text) == expected


@pytest.mark.parametrize(
    ("name", "answer", "gold", "meta"),
    [
        ("box", "1, 2, 5, 6", "1 2 5 6", {}),
        ("box", "[1, 2, 5, 6]", "1 2 5 6", {}),
        ("box", "1 2 5 6\n7 7 9 9", "[[1, 2, 5, 6], [7, 7, 9, 9]]", {}),
        ("choice", "B", "B", {"choices": COLOURS}),
        ("list", "7, red", "red, 7", {}),
        ("list", "red\n7", "red, 7", {}),
        ("maze", "R D", "", {"grid": ["S.", "#G"]}),
        ("number", "42", "42", {}),
        ("ocr", "hello", "hello", {}),
        ("word", "red", "red", {}),
    ],
)
def test_latex_that_only_sets_the_answer_does_not_matter(name, answer, gold, meta):
    for left, right in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\text{", "}"), (r"\boxed{\text{", "}}")):
        assert score(name, say(f"{left}{answer}{right}"), gold, **meta) == 1
        assert score(name, say(f"{left}zzzz{right}"), gold, **meta) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**B**", "B"),
        ("*B*", "B"),
        ("***B***", "B"),
        ("__7__", "7"),
        ("_7_", "7"),
        ("`B`", "B"),
        ("``B``", "B"),
        ("** B **", "B"),
        ("**`B`**.", "B"),
        ("**12.**", "12"),
        ("*12*.", "12"),
        ("**12.**.", "12"),
        (r"**\boxed{7}**", "7"),
        (r"\boxed{**7**.}", "7"),
        ("B.", "B"),
        ("B .", "B"),
        ("3.", "3"),
        ("12\u3002", "12"),
        ("12\uff0e", "12"),
        ("example.com.", "example.com"),
        # not around all of it
        ("3.5", "3.5"),
        ("**A** or **B**", "**A** or **B**"),
        ("*A* *B*", "*A* *B*"),
        ("a * b", "a * b"),
        ("2*3", "2*3"),
        ("*A", "*A"),
        ("A*", "A*"),
        ("**A*", "**A*"),
        ("_a_b_", "_a_b_"),
        ("`a` and `b`", "`a` and `b`"),
        ("```json [5] ```", "```json [5] ```"),  # a block, which some rules read
        ('"B"', '"B"'),  # no Markdown
        # not one stop at the end
        ("...", "..."),
        ("5...", "5..."),
        ("5..", "5.."),
        ("5. .", "5. ."),
        (".", "."),
        ("U.S.", "U.S."),
        ("**U.S.**.", "U.S."),
        ("e.g.", "e.g."),
        ("at 5 p.m.", "at 5 p.m."),
        ("etc.", "etc"),  # as the gold is read, too
        ("1.2.", "1.2"),
        # signs alone
        ("*", "*"),
        ("***", "***"),
        ("****", "****"),
        ("__", "__"),
        ("_ _", "_ _"),
        ("", ""),
    ],
)
def test_what_is_around_a_whole_answer(text, expected):
    assert settled(text) == expected
    if "boxed" not in text:
        assert last_answer(f"so\nAnswer: {text}") == ("" if text in ("$", "$$") else expected)
    assert last_answer(f"<answer>{text}</answer>") == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("depth", [1, 2, 5, 20_000])
def test_boxes_in_boxes_are_read_in_one_pass(depth):
    # A quadratic reader would need minutes for the deepest.
    inside = "\\boxed{ " * depth + "5" + " }" * depth
    assert settled(inside) == bare(inside) == last_answer(say(inside)) == last_answer(f"Answer: {inside}.") == "5"
    assert score("number", say(inside), "5") == 1 and score("number", say(inside), "6") == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("closing", [".}", "\u3002}", ". }"])
def test_stops_and_boxes_in_turn_are_taken_off_to_a_bound(closing):
    def nested(depth: int) -> str:
        return "\\boxed{" * depth + "5" + closing * depth

    for depth in (1, 2, 5):
        assert settled(nested(depth)) == bare(nested(depth)) == "5"
        assert score("number", say(nested(depth)), "5") == score("list", say(nested(depth)), "5") == 1
    deep = nested(20_000)
    assert settled(deep) == bare(deep) == deep
    assert score("number", say(deep), "5") == score("list", say(deep), "5") == 0


MARKED = ["**{}**", "*{}*", "__{}__", "`{}`", "{}.", "**{}**.", "*{}.*", "***{}***", "**${}$**.", "$`{}`$"]


@pytest.mark.parametrize(("name", "gold", "meta"), GOLDS)
def test_markdown_and_a_full_stop_around_an_answer_or_a_gold_change_nothing(name, gold, meta):
    for marked in MARKED:
        said = marked.format(gold)
        for response in (say(said), f"so\nAnswer: {said}", f"so\n\\boxed{{{said}}}"):
            assert score(name, response, gold, **meta) == 1, response
        assert score(name, say(marked.format("zzzz")), gold, **meta) == 0, marked
        assert score(name, say(f"{said} {said}"), gold, **meta) < 1, said
    for line in ("**Answer: {}**", "**Answer:** {}", "Answer: **{}**", "*Answer*: {}.", "**Answer:** **{}**."):
        assert score(name, "so\n" + line.format(gold), gold, **meta) == 1, line
    if name != "maze":
        for marked in ("**{}**", "`{}`", "{}."):
            assert score(name, say(gold), marked.format(gold), **meta) == 1, marked


@pytest.mark.parametrize("name", ["word", "chart", "ocr", "list", "choice", "box", "json_grid"])
@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("caf\u00e9", "cafe\u0301", 1),
        ("cafe\u0301", "caf\u00e9", 1),
        ("cafe\u0301", "cafe\u0301", 1),
        ("caf\u00e9", "caf\u0435\u0301", 0),  # a Cyrillic letter with the same accent
        ("caf\u00e9", "cafe", 0),
    ],
)
def test_the_two_spellings_of_an_accent_are_one(name, gold, answer, expected):
    meta = {"choices": ["tea", gold]} if name == "choice" else {}
    if name == "box":
        gold, answer = (json.dumps([{"bbox_2d": [1, 1, 5, 5], "label": label}]) for label in (gold, answer))
    if name == "json_grid":
        gold, answer = (json.dumps({"House 1": {"Drink": drink}}) for drink in (gold, answer))
    assert (score(name, say(answer), gold, **meta) == 1) == expected


def test_look_alikes_of_other_alphabets_stay_different_and_marks_without_end_cost_little():
    for latin, other in [("A", "\u0410"), ("A", "\u0391"), ("e", "\u0435"), ("B", "\u24b7"), ("1", "\u0661")]:
        assert bare(latin).casefold() != bare(other).casefold()
    tower = "e" + "\u0301\u0327" * 500_000  # to put these in order takes quadratic time
    assert plain(tower) == tower


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
BITS += ["*", "**", "_", "`", "\u0301", "B", "blue", "(", ")", ":", "$", "\uff11", "\u2212", "\n", "nan", "1 2 5 6"]
PENALTIES = ("language", "overlong", "repetition")
OTHER_INPUT = ("code", "weighted")  # any text is tried on them in their own tests
texts = st.one_of(st.text(), st.lists(st.sampled_from(BITS), max_size=40).map("".join))


@given(texts, st.lists(st.integers(0, 3), max_size=30).map(tuple))
def test_any_text_gets_a_score_in_range_from_every_reward(text, tokens):
    golds = {name: (gold, meta) for name, gold, meta in GOLDS}
    golds |= {"json_grid": ('{"1": {"a": "x"}}', {}), "language": ("", {"language": "en"})}
    for name in sorted(
        IN_PROCESS - set(OTHER_INPUT)
    ):  # others may take any time; test_hostile.py has their strange texts
        reward = REWARDS[name]
        gold, meta = golds.get(name, ("", {}))
        for response in (text, say(text)):
            out = reward(respond(response, gold, tokens, limit=20, **meta))
            low, high = (-1, 0) if name in PENALTIES else (0, 1)
            assert low <= out.score <= high, name
            assert all(0 <= part <= 1 for part in out.parts.values())


@given(texts)
def test_to_read_an_answer_once_is_enough(text):
    assert settled(settled(text)) == settled(text)
    assert bare(bare(text)) == bare(text)


@given(texts, texts)
def test_any_gold_and_response_give_a_score_or_unscorable(gold, text):
    for name in ("number", "choice", "word", "box", "chart", "count"):
        for meta in (
            {},
            {"choices": [gold, "blue"]},
            {"options": {"A": gold, "B": "blue"}, "unit": gold, "percent": "points", "precision": 2},
            json.loads('{"threshold": 0.5, "tolerance": 1}'),
        ):
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
        "\\boxed{}",
        "{",
        "}",
        "\\",
        "$",
        "\\text{",
        "Answer: ",
        "Answer: }*\n",
        "\n",
        "1,",
        "1/",
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
@pytest.mark.timeout(100)
def test_rewards_run_in_process_only_if_long_adversarial_text_does_not_stop_them(name, bit):
    # It takes 2 s at most. A quadratic reader would need hours for a megabyte, an exponential one for ever.
    golds = {reward: (gold, meta) for reward, gold, meta in GOLDS}
    golds |= {"json_grid": ('{"1": {"a": "x"}}', {}), "language": ("", {"language": "en"})}
    gold, meta = golds.get(name, ("", {}))
    for text in (bit * (1_000_000 // len(bit)), say(bit * (1_000_000 // len(bit)))):
        REWARDS[name](respond(text, gold, tokens=(1,) * 10_000, **meta))
