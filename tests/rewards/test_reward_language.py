"""The reward `language` by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_helpers import respond

from rewards import REWARDS, Unscorable
from rewards.language import LANGUAGES

ZH = "\u7b54\u6848\u662f"  # "the answer is", three letters
RU = "\u043e\u0442\u0432\u0435\u0442 \u0440\u0430\u0432\u0435\u043d"  # "the answer equals", two words
JA = "\u7b54\u3048\u306f"  # one Han letter and two Hiragana


def foreign(text: str, language: str) -> float:
    return -REWARDS["language"](respond(text, language=language)).score


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("the answer is seven", "en", 0),
        ("la r\u00e9ponse est sept", "fr", 0),
        ("la re\u0301ponse", "fr", 0),  # the accent as a character of its own
        ("the answer is seven", "de", 0),  # same script: not seen
        (f"the answer {ZH} seven", "en", 3 / 6),
        (f"the answer {RU}", "en", 2 / 4),
        (ZH, "zh", 0),
        (ZH, "en", 1),
        (f"{ZH} seven", "zh", 1 / 4),
        (f"{ZH} x = 2y, AB \u22a5 CD, \u03b1", "zh", 0),  # formulas
        (rf"{ZH} \frac{{1}}{{2}} \alpha", "zh", 0),
        (f"<think> {ZH} </think> <answer> 7 </answer>", "zh", 0),
        (f"{ZH} \U0001d465\U0001d466\U0001d467", "zh", 0),  # mathematical letters
        (JA, "ja", 0),
        (JA, "zh", 2 / 3),
        (JA, "ko", 2 / 3),
        (ZH, "ja", 0),  # Chinese passes for Japanese: not seen
        (RU, "ru", 0),
        (f"{RU} seven", "ru", 1 / 3),
        (f"{RU} x", "ru", 0),
        (f"x {RU[0]}", "en", 1 / 2),  # where Latin is expected a single x counts as a word
        ("\ud55c\uad6d\uc5b4 \ub2f5", "ko", 0),
        ("\u0627\u0644\u062c\u0648\u0627\u0628", "ar", 0),
        ("\u0627\u0644\u062c\u0648\u0627\u0628", "fa", 0),
        ("\u0909\u0924\u094d\u0924\u0930 \u0939\u0948", "hi", 0),  # vowel signs belong to their letters
        ("\u0e04\u0e33\u0e15\u0e2d\u0e1a", "th", 0),
        ("\u10de\u10d0\u10e1\u10e3\u10ee\u10d8", "en", 1),
        ("\u0570\u0561\u0575\u0565\u0580\u0565\u0576", "en", 1),  # a script that no language here has
        ("12 + 30 = 42 !?", "en", 0),
        ("", "zh", 0),
        ("\uff41\uff42\uff43", "en", 0),  # full-width letters
    ],
)
def test_share_of_foreign_words(text, language, share):
    assert foreign(text, language) == pytest.approx(share)


def test_the_problem_goes_before_the_parameter():
    reward = REWARDS["language"]
    assert reward(respond(ZH), language="zh").score == 0
    assert reward(respond(ZH), language="en").score == -1
    assert reward(respond(ZH, language="zh"), language="en").score == 0


@pytest.mark.parametrize("language", [None, "", "tlh", "EN", 3, ["en"]])
def test_an_unknown_language_is_unscorable(language):
    with pytest.raises(Unscorable, match=r"set meta\['language'\].*rewards\.params\.language\.language"):
        REWARDS["language"](respond("x", language=language))


def test_no_language_at_all_is_unscorable():
    with pytest.raises(Unscorable):
        REWARDS["language"](respond("x"))


@given(st.text(), st.sampled_from(sorted(LANGUAGES)))
def test_any_text_scores_between_minus_one_and_zero(text, language):
    assert 0 <= foreign(text, language) <= 1
