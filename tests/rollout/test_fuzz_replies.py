"""What a rollout server may send: every reply is an answer to the question, or is refused with a reason."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from fuzzing import bounded, changed, damaged, examples
from helpers_models import make_policy, make_prompts
from hypothesis import given
from hypothesis import strategies as st

from sapo_vl.model.chat import Chat
from sapo_vl.model.routing import RouteSpec
from sapo_vl.rollout.vllm import client
from sapo_vl.rollout.vllm.client import BadAnswer, Refusal, ask
from sapo_vl.rollout.vllm.responses import to_group
from sapo_vl.rollout.vllm.v0_32_http import Labelled, _array, _json, read_answer
from sapo_vl.types import Finish, Prompt

V = 300
LAYERS, K, EXPERTS = 2, 2, 4


@pytest.fixture(scope="module")
def case() -> tuple[Prompt, Chat]:
    _, chat = make_policy("dense", 0)
    return make_prompts(chat, np.random.default_rng(0), [[(32, 48)]])[0], chat


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


ROUTES = npy(np.zeros((6, LAYERS, K), np.uint8))


def reply(prompt: Prompt, chat: Chat, samples: int = 2) -> dict[str, Any]:
    """What a server sends that does its work."""
    ids = [90, 91, chat.eos_ids[0]]
    routes = npy(np.broadcast_to(np.arange(K, dtype=np.uint8), (len(prompt.ids) + 2, LAYERS, K)))
    choice = {
        "finish_reason": "stop",
        "token_ids": ids,
        "logprobs": {"content": [{"token_id": i, "logprob": -1.0} for i in ids]},
        "weight_versions": [{"version": "v1"}],
        "routed_experts": base64.b64encode(routes).decode(),
    }
    choices = [{"index": j, **choice} for j in range(samples)]
    return {"request_id": "x-name", "prompt_token_ids": prompt.ids.tolist(), "choices": choices}


def check(found: Labelled, prompt: Prompt, chat: Chat) -> None:
    """Only what a trainer can use gets through."""
    spec = RouteSpec(layers=tuple(range(LAYERS)), top_k=K, experts=EXPERTS)
    for routes in (None, spec):
        group = to_group(prompt, found.answer, 2, 7, chat, V, routes)
        assert len(group.rollouts) == 2
        for r in group.rollouts:
            assert len(r.response_ids) == len(r.logprobs) and np.isfinite(r.logprobs).all()
            assert (r.finish is Finish.FAILED) == (len(r.response_ids) == 0) == bool(r.score_detail)
            assert all(0 <= i < V for i in r.response_ids)


def test_the_reply_that_is_damaged_is_fine(case: tuple[Prompt, Chat]) -> None:
    found = read_answer(json.dumps(reply(*case)).encode(), "name")
    check(found, *case)
    assert found.labels == {"v1"}
    assert {r.finish for r in to_group(case[0], found.answer, 2, 7, case[1], V).rollouts} == {Finish.STOP}


@given(data=st.data())
@examples(150)
def test_a_damaged_reply_is_an_answer_or_refused(case: tuple[Prompt, Chat], data: st.DataObject) -> None:
    whole = reply(*case)
    body = data.draw(
        st.one_of(
            changed(whole).map(lambda tree: json.dumps(tree).encode(errors="surrogatepass")),
            damaged(json.dumps(whole).encode()),
        )
    )
    with bounded():
        try:
            found = read_answer(body, "name")
        except BadAnswer as error:
            assert len(str(error)) < 1000
            return
        check(found, *case)


@given(content=damaged(ROUTES))
@examples(200)
def test_damaged_routes_are_an_array_or_refused(content: bytes) -> None:
    for text in (base64.b64encode(content).decode(), content.decode("latin-1")):
        with bounded():
            try:
                found = _array(text)
            except BadAnswer:
                continue
        assert found.dtype.kind in "iu" and found.nbytes <= len(content)


@given(body=damaged(b'{"success": true, "version": "0.32.0"}'))
@examples(100)
def test_a_damaged_word_of_a_server_is_an_object_or_refused(body: bytes) -> None:
    with bounded():
        try:
            assert isinstance(_json(body), dict)
        except BadAnswer:
            return


def answered(content: bytes, status: int = 200, **headers: str) -> bytes:
    async def exchange() -> bytes:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content, headers=headers))
        async with httpx.AsyncClient(transport=transport) as http:
            return await ask(http, "http://server", "POST", "/x", within=30.0, json={})

    return asyncio.run(exchange())


def test_no_reply_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1000)
    assert answered(b"a" * 1000) == b"a" * 1000
    packed = gzip.compress(b"a" * 10_000_000)
    for content, headers in ((b"a" * 1001, {}), (packed, {"content-encoding": "gzip"})):
        for status in (200, 500):
            with pytest.raises(BadAnswer, match="the answer to /x is of more than 1000 bytes"):
                answered(content, status, **headers)
    with pytest.raises(Refusal, match=r"status 500: no . such") as refused:
        answered(b"no \xff such", 500)
    assert refused.value.status == 500
    with pytest.raises(BadAnswer, match=r"the connection broke during /x"):
        answered(b"no gzip", **{"content-encoding": "gzip"})
