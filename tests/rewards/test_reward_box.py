"""The reward `box` by hand: one box, several, units, the forms an answer can have, and ways to cheat."""

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from reward_helpers import respond, say, score

from rewards import REWARDS, RewardInput, Unscorable
from rewards.box import _most_pairs, iou, parse_box, parse_boxes


def result(x: RewardInput) -> tuple[float, float]:
    """Score and IoU."""
    out = REWARDS["box"](x)
    return out.score, out.parts["iou"]


# --- one box


# Areas by hand: (answer, gold, IoU as a fraction).
@pytest.mark.parametrize(
    ("answer", "gold", "overlap", "union"),
    [
        ("0 0 4 4", "0 0 4 4", 16, 16),
        ("0 0 2 4", "0 0 4 4", 8, 16),
        ("0 0 4 3", "0 0 4 4", 12, 16),
        ("1 1 3 3", "0 0 4 4", 4, 16),  # inside
        ("0 0 8 8", "2 2 6 6", 16, 64),  # around
        ("2 2 6 6", "0 0 4 4", 4, 28),
        ("3 3 7 7", "0 0 4 4", 1, 31),
        ("4 0 8 4", "0 0 4 4", 0, 32),  # side by side: they share an edge, and no area
        ("4 4 8 8", "0 0 4 4", 0, 32),  # they share a corner
        ("9 9 10 10", "0 0 4 4", 0, 17),
        ("0 0 1 9", "0 0 1 9", 9, 9),  # one pixel wide
        ("5 5 6 6", "5 5 6 6", 1, 1),  # one pixel
        ("0 5 9 6", "0 5 10 6", 9, 10),  # one pixel high
        ("-2 -2 2 2", "0 0 2 2", 4, 16),  # sticks out of the image
        ("0.5 0 2.5 2", "0 0 2 2", 3, 5),
    ],
)
def test_iou_by_hand(answer, gold, overlap, union):
    out = REWARDS["box"](respond(say(answer), gold))
    assert out.parts["iou"] == pytest.approx(overlap / union)
    assert out.score == (overlap / union >= 0.5)
    assert iou(*(parse_box(text) for text in (gold, answer))) == pytest.approx(overlap / union)


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.25, 1), (0.5, 0), (0.75, 0), (1 / 3, 1), (0.34, 0), (0.01, 1), (1, 0)]
)
def test_threshold_includes_its_bound(threshold, expected):
    assert score("box", say("2 0 6 4"), "0 0 4 4", threshold=threshold) == expected  # 8 of 24


# --- the forms of an answer

QWEN = '[{"bbox_2d": [1, 2, 5, 6], "label": "cat"}]'


@pytest.mark.parametrize(
    "answer",
    [
        "1 2 5 6",
        "1, 2, 5, 6",
        "(1, 2), (5, 6)",
        "[1, 2, 5, 6]",
        "[[1, 2, 5, 6]]",
        "[[1, 2], [5, 6]]",
        "1 2\n5 6",
        "1.0 2.0 5.0 6.0",
        "\uff11 2 5 6",
        QWEN,
        QWEN[1:-1],
        f"```json\n{QWEN}\n```",
        f"```json\n{QWEN[1:-1]}\n```",
        f"```\n{QWEN}\n```",
        '[{"bbox_2d": [1.0, 2.0, 5.0, 6.0]}]',
        json.dumps(json.loads(QWEN), indent=4),
    ],
)
def test_forms(answer):
    assert score("box", say(answer), "1 2 5 6", threshold=1) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (QWEN, 1),  # as Qwen3-VL answers when nobody asks for tags
        (f"```json\n{QWEN}\n```", 1),
        (f"Here it is:\n```json\n{QWEN}\n```\nIt is a cat.", 1),
        (f"<think> hm </think>\n```json\n{QWEN}\n```", 1),
        (f"```json\n{QWEN}\n```\n```json\n[]\n```", 0),  # the last block counts
        (f"<think>```json\n{QWEN}\n```</think>", 0),
        (f"<think>```json\n{QWEN}\n```", 0),
        (f"Here it is: {QWEN}", 0),
        (f"```json\n{QWEN}", 0),  # never closed
        ("1 2 5 6", 0),
        ("[1, 2, 5, 6]", 0),
        ("```json\n[1, 2, 5, 6]\n```", 0),
        (f"<answer> 9 9 10 10 </answer> ```json\n{QWEN}\n```", 0),  # tags go first
    ],
)
def test_what_counts_without_answer_tags(text, expected):
    assert score("box", text, "1 2 5 6") == expected


@pytest.mark.parametrize(
    "answer",
    [
        '[{"bbox_2d": [1, 2, 5], "label": "cat"}]',
        '[{"bbox_2d": [1, 2, 5, "6"]}]',
        '[{"bbox_2d": [1, 2, 5, true]}]',
        '[{"bbox_2d": [1, 2, 5, 6], "bbox_2d": [1, 2, 5, 6]}]',  # which one?
        '[{"bbox_2d": [NaN, 2, 5, 6]}]',
        '[{"bbox_2d": [1, 2, 1e999, 6]}]',
        '[{"box": [1, 2, 5, 6]}]',
        '[{"bbox_2d": [1, 2, 5, 6], "label": 3}]',
        '[{"bbox_2d": {"x": 1}}]',
        "[]",
        "{}",
        "[[]]",
        "null",
        "[" * 5000,
        '{"bbox_2d": ' * 1000,
        f"{QWEN} {QWEN}",
        "[1, 2, 5, 6]" + " " * 30_000 + "x",
    ],
)
def test_json_that_is_no_box(answer):
    assert result(respond(say(answer), "1 2 5 6")) == (0.0, 0.0)


# --- no area, swapped, the whole image


@pytest.mark.parametrize("answer", ["5 5 5 5", "5 5 5 9", "5 5 9 5", "9 9 5 5", "9 5 5 9", "5 9 9 5", "0 0 0 0"])
def test_degenerate_and_swapped_boxes_score_zero_in_every_form(answer):
    numbers = [int(n) for n in answer.split()]
    for text in (answer, json.dumps(numbers), json.dumps([{"bbox_2d": numbers}])):
        assert result(respond(say(text), "5 5 9 9")) == (0.0, 0.0)
    with pytest.raises(Unscorable):
        score("box", say("5 5 9 9"), answer)


def test_the_whole_image_hits_only_what_fills_half_of_it():
    whole = say("0 0 1000 1000")
    assert result(respond(whole, "100 100 300 300")) == (0.0, 0.04)
    assert score("box", whole, "0 0 1000 490") == 0
    assert score("box", whole, "0 0 1000 500") == 1


# --- several boxes

TWO = "[[0, 0, 4, 4], [10, 10, 14, 14]]"


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        (TWO, TWO, 1),
        ("[[10, 10, 14, 14], [0, 0, 4, 4]]", TWO, 1),  # in any order
        ("0 0 4 4\n10 10 14 14", TWO, 1),  # a box a line
        ("0 0 4 4", TWO, 2 / 3),  # 1 hit, 1 + 2 boxes
        ("[[0, 0, 4, 4], [0, 0, 4, 4]]", TWO, 2 / 4),  # one gold box is hit once
        ("[[0, 0, 4, 4], [10, 10, 14, 14], [0, 0, 4, 4]]", TWO, 4 / 5),
        ("[[0, 0, 4, 4], [20, 20, 24, 24]]", TWO, 2 / 4),
        ("[[20, 20, 24, 24], [30, 30, 34, 34]]", TWO, 0),
        ("[[0, 0, 20, 20]]", TWO, 0),  # one box around both
        ("[[0, 0, 4, 4], [5, 5, 5, 5]]", TWO, 2 / 4),  # a box without area is a box too many
        ("[[0, 0, 4, 4], [10, 10, 14, 14], [9, 9, 1, 1]]", TWO, 4 / 5),
        ("[]", TWO, 0),
        ("[]", "[]", 1),  # nothing to find, and nothing found
        ("0 0 4 4", "[]", 0),
        ("no", "[]", 0),
        ("", "[]", 0),
        (TWO, "0 0 4 4", 0),  # one gold box: a second one is hedging
        ("[[0, 0, 4, 4], [0, 0, 4, 4]]", "0 0 4 4", 0),
    ],
)
def test_several_boxes(answer, gold, expected):
    assert score("box", say(answer), gold) == pytest.approx(expected)


def test_pairs_are_chosen_for_the_most_hits():
    # Both answers reach 0.5 with the first gold box, only the first of them with the second. Taking the best pair
    # first (an IoU of 1) would leave one gold box without a partner.
    gold = "[[0, 0, 10, 10], [4, 0, 14, 10]]"
    answer = "[[2, 0, 12, 10], [0, 0, 10, 10]]"  # 8/12 with both; 1 with the first, 6/14 with the second
    assert score("box", say(answer), gold, threshold=0.5) == 1
    assert score("box", say("[[0, 0, 10, 10], [2, 0, 12, 10]]"), gold, threshold=0.5) == 1
    assert score("box", say(answer), gold, threshold=0.7) == 2 / 4


def test_box_spam_does_not_pay():
    tiles = [[x, y, x + 100, y + 100] for x in range(0, 1000, 100) for y in range(0, 1000, 100)]
    gold = json.dumps([[100, 100, 200, 200], [500, 300, 600, 400]])
    assert score("box", say(json.dumps(tiles)), gold) == pytest.approx(4 / 102)
    assert score("box", say(json.dumps([*tiles, tiles[0]])), gold) == 0  # more than 100
    assert score("box", say(json.dumps(tiles)), "100 100 200 200") == 0


def test_labels_of_the_gold_have_to_match():
    gold = '[{"bbox_2d": [0, 0, 4, 4], "label": "cat"}, {"bbox_2d": [9, 9, 14, 14], "label": "Grey dog"}]'

    def labelled(*labels):
        boxes = zip(([0, 0, 4, 4], [9, 9, 14, 14]), labels, strict=True)
        return say(json.dumps([{"bbox_2d": box, "label": label} for box, label in boxes]))

    assert score("box", labelled("Cat", "grey  dog"), gold) == 1
    assert score("box", labelled("grey dog", "cat"), gold) == 0
    assert score("box", labelled("cat", "cat"), gold) == 2 / 4
    assert score("box", say("0 0 4 4\n9 9 14 14"), gold) == 0
    assert score("box", labelled("what", "ever"), "[[0, 0, 4, 4], [9, 9, 14, 14]]") == 1  # the gold has no labels


@given(st.lists(st.lists(st.integers(0, 4), max_size=4, unique=True), max_size=5))
def test_the_matching_is_a_largest_one(partners):
    best = max(
        sum(column in partners[row] for row, column in zip(rows, columns, strict=True))
        for rows in [range(len(partners))]
        for columns in itertools.permutations(range(5), len(partners))
    )
    assert _most_pairs(partners) == best


# --- units


@pytest.mark.parametrize(
    ("answer", "gold", "meta", "expected"),
    [
        # Gold in pixels of a 640 x 480 image, the answer in thousandths: 64/640, 48/480, 320/640, 240/480.
        ("100 100 500 500", "64 48 320 240", {"coords": "0-1000", "size": [640, 480]}, 1),
        ("64 48 320 240", "64 48 320 240", {"coords": "0-1000", "size": [640, 480]}, 0),
        # The width goes with x: swapped, it would be off.
        ("500 0 1000 1000", "100 0 200 50", {"coords": "0-1000", "size": [200, 50]}, 1),
        ("500 0 1000 1000", "100 0 200 50", {"coords": "0-1000", "size": [50, 200]}, 0),
        # Gold in thousandths too: nothing to convert, with or without the size of the image.
        ("100 100 500 500", "100 100 500 500", {"coords": "0-1000"}, 1),
        (
            "100 100 500 500",
            "100 100 500 500",
            {"coords": "0-1000", "gold_coords": "0-1000", "size": [640, 480]},
            1,
        ),
        # Pixels asked for, gold in pixels.
        ("64 48 320 240", "64 48 320 240", {"coords": "pixel", "size": [640, 480]}, 1),
        ("64 48 320 240", "64 48 320 240", {"coords": "pixel"}, 1),
        # Pixels asked for, gold in thousandths.
        ("64 48 320 240", "100 100 500 500", {"coords": "pixel", "gold_coords": "0-1000", "size": [640, 480]}, 1),
        # No word about units: those of the gold.
        ("3 3 7 7", "3 3 7 7", {}, 1),
        ("3 3 7 7", "3 3 7 7", {"size": [640, 480]}, 1),
    ],
)
def test_units(answer, gold, meta, expected):
    for text in (answer, json.dumps([{"bbox_2d": [int(n) for n in answer.split()]}])):
        assert score("box", say(text), gold, threshold=0.99, **meta) == expected


@pytest.mark.parametrize(
    "meta",
    [
        {"coords": "percent"},
        {"coords": "0-1000", "gold_coords": "pixel"},
        {"coords": "pixel", "gold_coords": "0-1000", "size": [640]},
        {"coords": "0-1000", "size": [0, 480]},
        {"coords": "0-1000", "size": "640x480"},
        {"coords": "0-1000", "size": [640, 480], "inclusive": True},
        {"gold_coords": "pixel"},
        {"coords": ["pixel"]},
    ],
)
def test_units_that_make_no_sense_are_unscorable(meta):
    with pytest.raises(Unscorable):
        score("box", say("1 2 5 6"), "1 2 5 6", **meta)


@pytest.mark.parametrize(
    "gold", ["", "cat", "1 2 5", TWO[:-1], "[[0, 0, 4, 4], [9, 9, 1, 1]]", '[{"label": "cat"}]', "[NaN, 1, 2, 3]"]
)
def test_a_gold_that_is_no_box_is_unscorable(gold):
    with pytest.raises(Unscorable, match="is not a box"):
        score("box", say("1 2 5 6"), gold)


# --- what earlier versions did, and any box at all


def test_box_values_by_hand():
    # 4x4 against 4x4 moved by 2: overlap 8, union 24
    out = REWARDS["box"](respond(say("[2, 0, 6, 4]"), "0 0 4 4", threshold=1 / 3))
    assert out.parts["iou"] == pytest.approx(8 / 24) and out.score == 1
    assert score("box", say("2 0 6 4"), "0 0 4 4", threshold=0.34) == 0
    # a quarter of the area, and the whole 16x16 picture around it
    assert result(respond(say("0 0 16 16"), "0 0 8 8")) == (0.0, 0.25)
    # exactly on the default threshold
    assert score("box", say("(0,0),(4,2)"), "0 0 4 4") == 1
    # one pixel and itself, in both conventions
    assert score("box", say("5 5 6 6"), "5 5 6 6", threshold=1) == 1
    assert score("box", say("5 5 5 5"), "5 5 5 5", threshold=1, inclusive=True) == 1
    # units are those of the gold: the same box in fractions of the picture does not hit
    assert score("box", say("0.1 0.1 0.5 0.5"), "1 1 5 5") == 0


def test_what_is_no_box():
    wrong = [
        "5 5 5 9",
        "5 9 9 5",
        "9 9 1 1",
        "1 1 9",
        "1 1 9 9 9",
        "1 1 9 9 1 1 9 9",
        "[1,1,9,9],[1,1,9,9]",
        "",
    ]
    wrong += [
        "1 1 9 nan",
        "1 1 9 inf",
        "1 1 9 9e9",
        "1 1 9 9 or so",
        "x1 1 9 9",
        "1-1 9 9",
        "11999",
        "1.2.3 4",
    ]
    for answer in [*wrong, "1 1 9 " + "9" * 999]:
        assert result(respond(say(answer), "1 1 9 9")) == (0.0, 0.0), answer


corners = st.tuples(*[st.integers(0, 12)] * 4)


@given(corners, corners)
@example((5, 5, 6, 6), (5, 5, 6, 6))
def test_iou_counts_pixels(a, b):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    parsed = [parse_box(" ".join(map(str, box))) for box in (a, b)]
    assert [p is not None for p in parsed] == [bool(pixels(a)), bool(pixels(b))]
    if parsed[0] and parsed[1]:
        both, either = pixels(a) & pixels(b), pixels(a) | pixels(b)
        assert iou(parsed[0], parsed[1]) == iou(parsed[1], parsed[0]) == pytest.approx(len(both) / len(either))


@given(st.lists(corners, max_size=6))
def test_lists_of_boxes_are_read_as_written(boxes):
    found = parse_boxes(json.dumps([list(b) for b in boxes]))
    assert found is not None
    assert [f.box for f in found] == [tuple(map(float, b)) if b[0] < b[2] and b[1] < b[3] else None for b in boxes]


@pytest.mark.parametrize(
    ("text", "gold", "reason"),
    [
        (say("1 2 5 6"), "1 2 5 6", ""),
        (say("7 7 9 9"), "1 2 5 6", "wrong"),
        (say("the cat"), "1 2 5 6", "not a box"),
        (say(""), "1 2 5 6", "empty answer"),
        ("1 2 5 6", "1 2 5 6", "no answer"),
        (say("1 2 5 6\n7 7 9 9"), "1 2 5 6", "2 boxes, not one"),
        (say("[]"), "1 2 5 6", "0 boxes, not one"),
        (say("1 2 5 6"), "[[1, 2, 5, 6], [7, 7, 9, 9]]", "wrong"),  # half of what is there
        (say("[]"), "[]", ""),
    ],
)
def test_reasons(text, gold, reason):
    assert REWARDS["box"](respond(text, gold)).reason == reason
