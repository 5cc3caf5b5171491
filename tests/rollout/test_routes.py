"""Experts of tokens from vLLM (replay=r3): in the shapes its version 0.32 returns them, refused where they do not fit.

vLLM's CPU build returns none, so what is here was read off its code: `CompletionOutput.routed_experts`, and the same
as a .npy file in base64 from a server.
"""

import base64
import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_models import MODEL, make_policy, make_prompts

from sapo_vl.model.chat import Chat
from sapo_vl.model.routing import RouteSpec
from sapo_vl.rollout.base import RolloutConfig
from sapo_vl.rollout.vllm import v0_32
from sapo_vl.rollout.vllm.client import BadAnswer
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.contract import RoutesMissing, check_route_source
from sapo_vl.rollout.vllm.responses import Answer, Sample, repeat_greedy, to_group
from sapo_vl.rollout.vllm.serve import serve_command
from sapo_vl.rollout.vllm.v0_32_http import Wanted, _differences, _Settings, read_answer
from sapo_vl.types import Finish, Prompt, RolloutGroup

V = 300
SPEC = RouteSpec(layers=(1, 3), experts=8, top_k=2)  # of four decoder layers, two are dense
LAYERS = 4


@pytest.fixture(scope="module")
def case() -> tuple[Prompt, Chat]:
    _, chat = make_policy("dense", 0)
    return make_prompts(chat, np.random.default_rng(0), [[(32, 48)]])[0], chat


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def routes(rng: np.random.Generator, rows: int) -> np.ndarray:
    """As vLLM returns them: all decoder layers, the dense ones zeros."""
    ids = rng.random((rows, LAYERS, SPEC.experts)).argsort(axis=-1)[..., : SPEC.top_k].astype(np.uint8)
    ids[:, [0, 2]] = 0
    return ids


def sample(chat: Chat, given: np.ndarray | None) -> Sample:
    """Three tokens, the last of which is never fed."""
    ids = np.array([90, 91, chat.eos_ids[0]])
    return Sample(ids, np.array([-1.0, -2.0, -0.5], np.float32), "stop", given)


def group_of(case: tuple[Prompt, Chat], given: list[np.ndarray | None]) -> RolloutGroup:
    prompt, chat = case
    answer = Answer(prompt.ids, tuple(sample(chat, rows) for rows in given))
    return to_group(prompt, answer, len(given), 0, chat, V, SPEC)


def test_rows_are_split_into_the_prompts_and_the_responses(case: tuple[Prompt, Chat], rng: np.random.Generator) -> None:
    size = len(case[0].ids)
    one, two = routes(rng, size + 2), routes(rng, size + 2)
    two[:size] = one[:size]
    group = group_of(case, [one, two])
    assert group.prompt_routes is not None
    assert np.array_equal(group.prompt_routes, one[:size, [1, 3]])
    assert group.prompt_routes.dtype == np.uint8
    for rollout, rows in zip(group.rollouts, (one, two), strict=True):
        assert rollout.finish is Finish.STOP
        assert rollout.routes is not None
        assert np.array_equal(rollout.routes, rows[size:, [1, 3]])


def test_a_layer_axis_of_moe_layers_alone_is_taken_as_it_is(
    case: tuple[Prompt, Chat], rng: np.random.Generator
) -> None:
    rows = routes(rng, len(case[0].ids) + 2)[:, [1, 3]]
    group = group_of(case, [rows])
    assert np.array_equal(group.prompt_routes, rows[: len(case[0].ids)])  # type: ignore[arg-type]


def test_routes_that_do_not_fit_cost_their_response(case: tuple[Prompt, Chat], rng: np.random.Generator) -> None:
    size = len(case[0].ids)
    good = routes(rng, size + 2)
    far, twice, cached = (good.copy() for _ in range(3))
    far[size, 1, 0] = 8
    twice[0, 3] = 5
    cached = cached.astype(np.int16)
    cached[:4] = -1  # an older vLLM marks positions from its prefix cache so
    faults = {
        "none were returned": None,
        f"shape [{size + 1}, 2, 2] instead of [{size + 2}, 2, 2]": good[:-1],
        "outside [0, 8)": far,
        "one expert twice": twice,
        "an expert id is outside": cached,
        "they are of 3 layers; the last that routes is number 3": good[:, :3],
        "routes have shape": good[0],
    }
    group = group_of(case, [good, *faults.values(), good])
    assert group.prompt_routes is not None
    for rollout, reason in zip(group.rollouts[1:-1], faults, strict=True):
        assert rollout.finish is Finish.FAILED
        assert rollout.score_detail.startswith("routes: ")
        assert reason in rollout.score_detail
    assert [r.finish for r in (group.rollouts[0], group.rollouts[-1])] == [Finish.STOP] * 2


def test_the_prompt_has_the_routes_of_the_first_usable_response(
    case: tuple[Prompt, Chat], rng: np.random.Generator
) -> None:
    """vLLM may compute the end of a prompt anew for each response; the trainer's row has the prompt once."""
    size = len(case[0].ids)
    first, second = routes(rng, size + 2), routes(rng, size + 2)
    group = group_of(case, [None, first, second])
    assert [r.finish for r in group.rollouts] == [Finish.FAILED, Finish.STOP, Finish.STOP]
    assert np.array_equal(group.prompt_routes, first[:size, [1, 3]])  # type: ignore[arg-type]
    assert np.array_equal(group.rollouts[2].routes, second[size:, [1, 3]])  # type: ignore[arg-type]


def test_a_greedy_response_keeps_its_routes(case: tuple[Prompt, Chat], rng: np.random.Generator) -> None:
    prompt, chat = case
    rows = routes(rng, len(prompt.ids) + 2)
    answer = repeat_greedy(Answer(prompt.ids, (sample(chat, rows),)), 2)
    group = to_group(prompt, answer, 2, 0, chat, V, SPEC)
    assert [r.finish for r in group.rollouts] == [Finish.STOP] * 2


def test_a_group_without_a_usable_response_has_no_routes(case: tuple[Prompt, Chat]) -> None:
    group = group_of(case, [None, None])
    assert group.prompt_routes is None
    assert {r.finish for r in group.rollouts} == {Finish.FAILED}


def test_nothing_is_asked_of_routes_without_replay(case: tuple[Prompt, Chat], rng: np.random.Generator) -> None:
    prompt, chat = case
    answer = Answer(prompt.ids, (sample(chat, None), sample(chat, routes(rng, 1))))
    group = to_group(prompt, answer, 2, 0, chat, V)
    assert [r.finish for r in group.rollouts] == [Finish.STOP] * 2
    assert group.prompt_routes is None


def test_in_process_they_come_with_each_completion(case: tuple[Prompt, Chat], rng: np.random.Generator) -> None:
    rows = routes(rng, len(case[0].ids) + 1)
    step = {90: SimpleNamespace(logprob=-1.0)}
    completion = SimpleNamespace(token_ids=[90], logprobs=[step], finish_reason="length", routed_experts=rows)
    ids = case[0].ids.tolist()
    left = [SimpleNamespace(outputs=[completion], prompt_token_ids=ids, finished=True, request_id="7")]
    core = SimpleNamespace(engine_core=SimpleNamespace(batch_queue=None))
    engine = SimpleNamespace(has_unfinished_requests=lambda: bool(left), step=lambda: [left.pop()], engine_core=core)
    llm = SimpleNamespace(request_counter=SimpleNamespace(counter=7), enqueue=lambda *_, **__: None, llm_engine=engine)
    ((only,),) = (answer.samples for answer in v0_32.generate(llm, [case[0]], [None]))
    assert only.routes is rows


def npy(array: Any, **kwargs: Any) -> str:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return base64.b64encode(file.getvalue()).decode()


def body(text: str | None) -> bytes:
    choice = {
        "index": 0, "token_ids": [90], "finish_reason": "stop", "routed_experts": text,
        "logprobs": {"content": [{"token_id": 90, "logprob": -1.0}]},
    }  # fmt: skip
    return json.dumps({"request_id": "generate-tokens-r", "prompt_token_ids": [1], "choices": [choice]}).encode()


def test_from_a_server_they_are_a_file_in_base64(rng: np.random.Generator) -> None:
    for rows in (routes(rng, 5), rng.integers(0, 999, (3, 4, 2), dtype=np.uint16), np.asfortranarray(routes(rng, 2))):
        (found,) = read_answer(body(npy(rows)), "r").answer.samples
        assert found.routes is not None
        assert found.routes.dtype == rows.dtype
        assert np.array_equal(found.routes, rows)
    assert read_answer(body(None), "r").answer.samples[0].routes is None


def test_a_file_that_is_none_costs_the_answer(rng: np.random.Generator) -> None:
    whole = base64.b64decode(npy(routes(rng, 4)))
    huge = whole.replace(b"(4, 4, 2)", b"(9999999999999, 4, 2)")
    negative = whole.replace(b"(4, 4, 2), }", b"(-4,-4,2), }")
    unclosed = whole.replace(b"(4, 4, 2), }", b"(4, 4, 2,   ")
    deep = np.lib.format.magic(1, 0) + (3000).to_bytes(2, "little") + b"(" * 3000
    assert len({len(raw) for raw in (whole, negative, unclosed)}) == 1
    for raw in (b"", b"not an array", whole[:-1], whole[:40], huge, negative, unclosed, deep):
        with pytest.raises(BadAnswer, match="routed_experts"):
            read_answer(body(base64.b64encode(raw).decode()), "r")
    with pytest.raises(BadAnswer, match="routed_experts are float64"):
        read_answer(body(npy(np.zeros((2, 2, 2)))), "r")
    with pytest.raises(BadAnswer, match="routed_experts are object"):
        read_answer(body(npy(np.array([{}], object), allow_pickle=True)), "r")
    with pytest.raises(BadAnswer, match="routed_experts are no array"):
        read_answer(body("%%%"), "r")


# --- at the start ---


@pytest.mark.parametrize("engine", ["vllm", "vllm_server"])
def test_a_build_without_them_is_refused(engine: str) -> None:
    with pytest.raises(RoutesMissing, match=r"Model Runner V2 only, which needs Triton .* replay=r2"):
        check_route_source(engine, on_cpu=True)
    check_route_source(engine, on_cpu=False)
    check_route_source("transformers", on_cpu=True)


def test_an_engine_over_several_ranks_of_the_trainer_keeps_them_on_the_first() -> None:
    check_route_source("vllm", on_cpu=False, tensor_parallel=1)
    with pytest.raises(RoutesMissing, match=r"tensor_parallel=2.*rollout\.engine=vllm_server"):
        check_route_source("vllm", on_cpu=False, tensor_parallel=2)


def test_an_engine_is_set_to_return_them() -> None:
    config = VllmConfig(max_num_seqs=64)
    plain = v0_32.engine_settings("/m", MODEL, config, 100, on_cpu=False)
    told = v0_32.engine_settings("/m", MODEL, config, 100, on_cpu=False, routes=True)
    assert {k: v for k, v in told.items() if k not in plain} == {
        "enable_return_routed_experts": True,
        "enable_prefix_caching": True,
    }
    rollout = RolloutConfig(vllm=config)
    command, environment = serve_command(MODEL, rollout, "127.0.0.1", 8000, on_cpu=False, routes=True)
    assert "--enable-return-routed-experts" in command
    assert environment["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    with pytest.raises(RoutesMissing):
        serve_command(MODEL, rollout, "127.0.0.1", 8000, on_cpu=True, routes=True)


def test_vllm_knows_these_settings() -> None:
    """The names, and the classes that hold what we read: they are the contract."""
    from vllm.config.aux_output import AuxOutputConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.outputs import CompletionOutput

    assert "enable_return_routed_experts" in EngineArgs.__dataclass_fields__
    assert "routed_experts" in CompletionOutput.__dataclass_fields__
    assert AuxOutputConfig().enable_return_routed_experts is False


def test_a_server_that_does_not_return_them_is_refused() -> None:
    found = _Settings(
        dtype="float32", logprobs_mode="processed_logprobs", max_model_len=99, vocab_size=9, image_size={}
    )
    for wanted, given, wrong in ((True, False, True), (True, True, False), (False, False, False), (False, True, False)):
        settings = found.model_copy(update={"routes": given})
        wants = Wanted(dtype="float32", max_model_len=9, min_pixels=1, max_pixels=2, routes=wanted)
        said = [text for fault, text in _differences(settings, wants) if fault]
        assert any("--enable-return-routed-experts" in text for text in said) == wrong
