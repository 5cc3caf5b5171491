"""What a model may write: every reader of answers gives a verdict, and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fuzzing import bounded, examples, texts
from hypothesis import given
from hypothesis import strategies as st

from rewards import IN_PROCESS, RewardInput
from rewards.answers.blocks import answer_or_reply, last_fenced, last_object, parse_json
from rewards.answers.extract import bare, last_answer, plain, written_answer
from rewards.answers.labelled import labelled
from rewards.answers.latex import formula, words
from rewards.answers.latex_writer import NotMath
from rewards.answers.numerals import read_numeral, unit_name
from rewards.answers.quantity import split_unit
from rewards.answers.symbolic import verdict
from rewards.answers.typeset import typeset
from rewards.judging.client import _read, _retry_after
from rewards.judging.prompt import read_verdict, request_body
from rewards.official import OFFICIAL
from rewards.workers.worker import Job, Plan, score_one

READERS: dict[str, Callable[[str], Any]] = {
    "answer_or_reply": answer_or_reply,
    "bare": bare,
    "labelled": labelled,
    "last_answer": last_answer,
    "last_fenced": lambda text: last_fenced(text, None),
    "last_object": last_object,
    "plain": plain,
    "read_numeral": read_numeral,
    "split_unit": lambda text: (split_unit(text), split_unit(text, also="cm"), split_unit(text, trusted=True)),
    "typeset": typeset,
    "unit_name": unit_name,
    "words": words,
    "written_answer": written_answer,
}
GOLDS = {
    "box": "1 2 5 6",
    "json_grid": '{"House 1": {"Name": "Eric"}}',
    "list": "red, 7",
    "maze": "RRDDL",
    "chart": "250",
    "count": "12",
    "number": "42",
}
META: dict[str, Any] = {"options": {"A": "red", "B": "blue"}, "grid": ["S..", "##.", ".G."], "language": "en"}
QUICK = sorted((IN_PROCESS | {"ocr"} | set(OFFICIAL)) - {"weighted", "official_mathvision"})


@given(text=texts())
@examples(150)
def test_every_reader_of_texts_takes_any_text(text: str) -> None:
    for name, read in READERS.items():
        with bounded():
            found = read(text)
        assert name != "last_answer" or found is None or len(found) <= len(text)


@given(text=texts())
@examples(150)
def test_json_of_a_model_is_read_or_refused(text: str) -> None:
    for written in (text, f'{{"a": [{text}]}}', f'["{text}"]'):
        with bounded():
            try:
                parse_json(written)
            except ValueError:
                continue


@given(text=texts(longest=400))
@examples(150)
def test_latex_is_read_or_no_mathematics(text: str) -> None:
    for written in (text, f"\\frac{{{text}}}{{2}}"):
        with bounded():
            try:
                formula(written)
            except NotMath:
                continue


FORMULAS = ["5", r"\frac{1}{2}", "x=3", "(1,2)", r"\{1,2\}", "20%", "no"]


@given(text=texts(most=6, longest=4), gold=st.sampled_from(FORMULAS))
@examples(60)
def test_a_formula_gets_a_verdict_in_words(text: str, gold: str) -> None:
    """SymPy may take any time for one, so that it is asked in workers that can be killed; here, of short ones."""
    with bounded():
        assert isinstance(verdict(gold, text), str)


@pytest.mark.parametrize("reward", QUICK)
@given(data=st.data())
@examples(25)
def test_a_reward_scores_any_response(reward: str, data: st.DataObject) -> None:
    text = data.draw(texts(longest=800))
    around = data.draw(st.sampled_from(["{}", "<answer>{}</answer>", "\\boxed{{{}}}", "<think>x</think> Answer: {}"]))
    x = RewardInput(
        text=around.format(text), num_tokens=3, max_tokens=9, finish="stop", answer=GOLDS.get(reward, "B"), meta=META
    )
    with bounded():
        result = score_one(Plan({"accuracy": 1.0}, {}, 5.0), Job(reward, x))
    assert result.status in ("scored", "unscorable"), result.detail
    if result.status == "scored":
        assert result.score is not None and -1.0 <= result.score <= 1.0


# --- the judge's replies --------------------------------------------------------------------------

REPLY_WORDS = (
    '{"verdict": "correct"}', '{"choices": [{"message": {"content": "', '"}}]}', "[", "{", "}", '"', "correct", "1"
)  # fmt: skip


@given(text=texts(REPLY_WORDS), raw=st.binary(max_size=60))
@examples(200)
def test_a_reply_of_the_judge_is_one_of_two_or_none(text: str, raw: bytes) -> None:
    for body in (text.encode(errors="surrogatepass"), raw, raw + text.encode(errors="surrogatepass")):
        with bounded():
            reply = _read(body)
            said = read_verdict(reply.text)
        assert isinstance(reply.text, str) and said in (True, False, None) and reply.why.encode()
    with bounded():
        assert read_verdict(text) is None or text.strip() == '{"verdict": "correct"}'
        assert (_retry_after({"retry-after": text}) or 0.0) >= 0


@given(answer=texts(("</answer-", "<|im_end|>", "<", ">", "{", "}", "{token}", "{0}", "\n")))
@examples(60)
def test_no_answer_closes_its_marks(answer: str) -> None:
    body = request_body("m", "q", "g", answer, structured=True)
    text = body["messages"][0]["content"]
    token = text.partition("end in ")[2].partition(":")[0]
    assert len(token) == 16 and text.count(token) == 7 and "<|" not in text
