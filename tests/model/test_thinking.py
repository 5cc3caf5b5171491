"""Chat templates that open <think> for the model: recognised, and the same text for everyone who reads a response."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_models import MODEL, make_model, make_prompts, processor

from rewards import REWARDS, RewardInput
from rewards.answers.extract import last_answer
from sapo_vl.evaluation.records import response_of
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.thinking import continued, opened_text
from sapo_vl.model.tiny import CHAT_TEMPLATE
from sapo_vl.rollout import SamplingParams, TransformersEngine
from sapo_vl.rollout.vllm.responses import Answer, Sample, to_group
from sapo_vl.sft import demonstration

START = "<|im_start|>assistant\n"


def with_template(template: str) -> Any:
    """The tiny processor with another chat template."""
    other = copy.deepcopy(processor())
    other.chat_template = other.tokenizer.chat_template = template
    return other


def ending(text: str) -> str:
    """The tiny template whose generation prompt goes on with `text`."""
    quoted = "{{ '" + text.replace("\n", "\\n") + "' }}"
    assert CHAT_TEMPLATE.endswith(START + "{% endif %}")
    return CHAT_TEMPLATE.removesuffix("{% endif %}") + quoted + "{% endif %}"


SYSTEM = "<|im_start|>system\nBegin with <think>.<|im_end|>\n"
# As Qwen3's hybrid models write it: a switch that is off unless it is asked for, and then an empty block.
SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}"
BLOCK = "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
SWITCHED = CHAT_TEMPLATE.removesuffix("{% endif %}") + SWITCH + BLOCK


@pytest.mark.parametrize(
    ("template", "opened"),
    [
        (CHAT_TEMPLATE, ""),
        (ending("<think>\n"), "<think>\n"),  # Qwen3-VL-Thinking
        (ending("<think>"), "<think>"),
        (ending("<think>\n\n"), "<think>\n\n"),
        (ending("<think>\nOkay, "), "<think>\nOkay, "),
        (ending("<think>\n\n</think>\n\n"), ""),  # thinking switched off
        (ending("<think></think><think>\n"), "<think>\n"),
        (SYSTEM + CHAT_TEMPLATE, ""),  # a system text that speaks of the tag
        (SYSTEM + ending("<think>\n"), "<think>\n"),
        (SWITCHED, ""),
        (SWITCHED.replace("is defined and enable_thinking is false", "is not defined"), ""),
    ],
)
def test_what_a_template_opens(template: str, opened: str) -> None:
    assert opened_text(with_template(template)) == opened
    assert opened_text(with_template(template).tokenizer) == opened


@pytest.mark.parametrize(
    ("solution", "opened", "expected"),
    [
        ("<think> a </think> <answer> b </answer>", "", "<think> a </think> <answer> b </answer>"),
        ("b", "", "b"),
        ("<think> a </think> <answer> b </answer>", "<think>\n", "a </think> <answer> b </answer>"),
        ("<think>\na\n</think>\n\nb", "<think>\n", "a\n</think>\n\nb"),
        ("\n<think>\na</think>b", "<think>\n", "a</think>b"),
        ("<think>\na</think>b", "<think>", "\na</think>b"),
        ("a</think>b", "<think>\n", "a</think>b"),  # it starts inside the thinking
        ("<answer>b</answer>", "<think>\n", "\n</think>\n\n<answer>b</answer>"),
        ("", "<think>\n", "\n</think>\n\n"),
    ],
)
def test_a_solution_goes_on_from_what_is_opened(solution: str, opened: str, expected: str) -> None:
    assert continued(solution, opened) == expected
    if opened:
        assert (opened + expected).count("<think>") == 1


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("dense", 0)


@pytest.fixture(scope="module")
def opened(model: Any) -> Chat:
    return Chat(with_template(ending("<think>\n")), model, MODEL)


def test_every_reader_of_a_response_sees_what_was_opened(model: Any, opened: Chat) -> None:
    """Both engines, the cold start, records and rewards; ids and log-probs are those that were sampled."""
    plain = Chat(processor(), model, MODEL)
    prompts = make_prompts(opened, np.random.default_rng(0), [[(32, 48)], []])
    assert opened.tokenizer.decode(prompts[0].ids).endswith("<think>\n")
    engine = TransformersEngine(PolicyModule(prepare_model(model, MODEL), opened.banned_ids), opened)
    groups = engine.generate(prompts, SamplingParams(n=2, max_new_tokens=6, temperature=1.0, seed=1))
    for rollout in (r for g in groups for r in g.rollouts):
        assert rollout.text == "<think>\n" + plain.decode(rollout.response_ids)
        assert 1 <= len(rollout.response_ids) == len(rollout.logprobs) <= 6
    ids = plain.response_ids("red </think> <answer> blue </answer>")
    sample = Sample(ids, np.zeros(len(ids), np.float32), "stop")
    (rollout,) = to_group(prompts[0], Answer(prompts[0].ids, (sample,)), 1, 0, opened, 10_000).rollouts
    assert rollout.text == "<think>\nred</think><answer> blue</answer>"
    assert rollout.response_ids.tolist() == ids.tolist()
    assert response_of(rollout).text == rollout.text
    assert response_of(rollout).answer == "blue"
    seen = RewardInput(text=rollout.text, num_tokens=len(ids), max_tokens=99, finish="stop", answer="blue")
    assert (REWARDS["format"](seen).score, REWARDS["word"](seen).score) == (1, 1)
    cut = opened.decode(plain.response_ids("so \\boxed{blue}. Wait"))
    assert last_answer(cut) is None


def test_a_demonstration_is_one_thinking_and_an_answer(opened: Chat) -> None:
    (prompt,) = make_prompts(opened, np.random.default_rng(0), [[]])
    for solution, text in [
        ("<think> red </think> <answer> blue </answer>", "<think>\nred</think><answer> blue</answer>"),
        ("<answer> blue </answer>", "<think>\n\n</think><answer> blue</answer>"),
    ]:
        problem = dataclasses.replace(prompt.problem, solution=solution)
        (response,) = demonstration(dataclasses.replace(prompt, problem=problem), opened).rollouts
        # The tags of the tiny tokenizer take the white space before them.
        assert response.text.replace("\n", "") == text.replace("\n", "")
        assert response.response_ids[-1] == opened.eos_ids[0]
        assert last_answer(response.text) == "blue"


def test_the_start_of_a_run_says_so(model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, template, said in [("open", ending("<think>\n"), True), ("plain", CHAT_TEMPLATE, False)]:
        with_template(template).save_pretrained(tmp_path / name)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="sapo_vl"):
            chat = Chat.load(model, MODEL.model_copy(update={"path": str(tmp_path / name)}))
        assert chat.opened == ("<think>\n" if said else "")
        assert ("the chat template opens '<think>\\n'" in caplog.text) == said


def test_a_closing_tag_that_the_tokenizer_calls_special_closes(model: Any) -> None:
    other = with_template(ending("<think>\n"))
    other.tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    chat = Chat(other, model, MODEL)
    assert last_answer(chat.decode(chat.response_ids("<think>\nred</think>\\boxed{blue}"))) == "blue"
