"""What an engine returns is checked before a trainer sees it; too many refusals stop the run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers_models import make_policy, make_prompts

from sapo_vl.model.chat import Chat
from sapo_vl.rollout.failures import MINIMUM, FailureWatch, RolloutStopped
from sapo_vl.rollout.vllm.engine import request_seed
from sapo_vl.rollout.vllm.responses import Answer, Sample, failed, repeat_greedy, to_group
from sapo_vl.types import Finish, Prompt, RolloutGroup

V = 300


@pytest.fixture(scope="module")
def case() -> tuple[Prompt, Chat]:
    _, chat = make_policy("dense", 0)
    return make_prompts(chat, np.random.default_rng(0), [[(32, 48)]])[0], chat


def good(chat: Chat) -> Sample:
    return Sample(np.array([90, 91, chat.eos_ids[0]]), np.array([-1.0, -2.0, -0.5], np.float32), "stop")


def refusal(case: tuple[Prompt, Chat], answer: Answer | str, n: int = 1) -> str:
    prompt, chat = case
    group = to_group(prompt, answer, n, 7, chat, V)
    assert len(group.rollouts) == n
    (reason,) = {r.score_detail for r in group.rollouts}
    for r in group.rollouts:
        assert (r.finish is Finish.FAILED) == bool(reason)
        assert r.weight_version == 7
        assert len(r.response_ids) == len(r.logprobs)
    return reason


def test_a_good_answer_is_taken_as_it_is(case: tuple[Prompt, Chat]) -> None:
    prompt, chat = case
    cut = Sample(np.array([90, 91]), np.array([-1.0, -2.0], np.float32), "length")
    group = to_group(prompt, Answer(prompt.ids, (good(chat), cut)), 2, 3, chat, V)
    stop, length = group.rollouts
    assert (stop.finish, length.finish) == (Finish.STOP, Finish.LENGTH)
    assert stop.response_ids.tolist() == [90, 91, chat.eos_ids[0]]
    assert stop.logprobs.tolist() == [-1.0, -2.0, -0.5]
    assert stop.text == chat.decode([90, 91])
    assert stop.score_detail == ""


def test_every_kind_of_nonsense_is_refused_with_its_reason(case: tuple[Prompt, Chat]) -> None:
    prompt, chat = case
    whole = good(chat)
    shifted = prompt.ids.copy()
    shifted[4] += 1
    faults: dict[str, Answer | str] = {
        "the server is gone": "the server is gone",
        "0 samples instead of 1": Answer(prompt.ids, ()),
        f"the engine read {len(prompt.ids) - 1} tokens, the trainer {len(prompt.ids)}": Answer(
            prompt.ids[1:], (whole,)
        ),
        f"at token 4 the engine read {shifted[4]}, the trainer {prompt.ids[4]}": Answer(shifted, (whole,)),
    }
    samples = {
        "ended it with 'abort'": dataclasses.replace(whole, finish="abort"),
        "no tokens": Sample(np.array([], int), np.array([], np.float32), "stop"),
        "2 log-probs for 3 tokens": dataclasses.replace(whole, logprobs=whole.logprobs[:2]),
        "token 300 is outside": dataclasses.replace(whole, ids=np.array([90, 300, chat.eos_ids[0]])),
        "token -1 is outside": dataclasses.replace(whole, ids=np.array([90, -1, chat.eos_ids[0]])),
        f"vision token {chat.image_token_id}": dataclasses.replace(
            whole, ids=np.array([90, chat.image_token_id, chat.eos_ids[0]])
        ),
        "not finite, or above 0": dataclasses.replace(whole, logprobs=np.array([-1, np.nan, -1], np.float32)),
        "above 0": dataclasses.replace(whole, logprobs=np.array([-1, 0.5, -1], np.float32)),
        "stopped at token 91": dataclasses.replace(whole, ids=whole.ids[:2], logprobs=whole.logprobs[:2]),
    }
    faults |= {reason: Answer(prompt.ids, (sample,)) for reason, sample in samples.items()}
    for reason, answer in faults.items():
        assert reason in refusal(case, answer)
    assert refusal(case, Answer(prompt.ids, (whole,))) == ""


def test_a_refused_sample_does_not_take_the_others_with_it(case: tuple[Prompt, Chat]) -> None:
    prompt, chat = case
    bad = dataclasses.replace(good(chat), finish="abort")
    group = to_group(prompt, Answer(prompt.ids, (good(chat), bad, good(chat))), 3, 0, chat, V)
    assert [r.finish for r in group.rollouts] == [Finish.STOP, Finish.FAILED, Finish.STOP]


def test_greedy_is_repeated_with_a_sure_law(case: tuple[Prompt, Chat]) -> None:
    prompt, chat = case
    answer = repeat_greedy(Answer(prompt.ids, (good(chat),)), 3)
    assert len(answer.samples) == 3
    assert all(s.logprobs.tolist() == [0, 0, 0] for s in answer.samples)


def group_of(prompt: Prompt, chat: Chat, bad: int, total: int) -> RolloutGroup:
    fine = to_group(prompt, Answer(prompt.ids, (good(chat),)), 1, 0, chat, V).rollouts[0]
    return RolloutGroup(prompt=prompt, rollouts=tuple(failed("no luck", 0) if i < bad else fine for i in range(total)))


def test_the_run_stops_past_the_allowed_share_and_not_before(case: tuple[Prompt, Chat]) -> None:
    watch = FailureWatch(0.25)
    watch.record([group_of(*case, bad=MINIMUM - 1, total=MINIMUM - 1)])  # too few to tell
    watch = FailureWatch(0.25)
    watch.record([group_of(*case, bad=MINIMUM // 4, total=MINIMUM)])
    with pytest.raises(RolloutStopped, match=r"9 of the latest 33 .* 9 x no luck"):
        watch.record([group_of(*case, bad=1, total=1)])


def test_request_seeds_leave_room_for_the_responses_of_a_group() -> None:
    seeds = {request_seed(str(i), s) for i in range(50) for s in range(4)}
    assert len(seeds) == 200
    assert all(0 <= s < 2**31 for s in seeds)
    assert request_seed("a", 1) == request_seed("a", 1)
