"""The vLLM server engine against servers that fail in every way we could think of (fake_vllm_server.py).

Time is bounded by limits given to the engine, not measured: each test would hang or hit its own limit otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_vllm_server as fakes
import numpy as np
import pytest
import torch
from fake_vllm_server import FakeServer, Fault
from helpers_launch import ask_ranks
from helpers_models import MODEL, make_policy, make_prompts

from sapo_vl.distributed import World
from sapo_vl.learning.weights import ManifestError
from sapo_vl.model.chat import Chat
from sapo_vl.model.routing import RouteSpec
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.failures import RolloutStopped
from sapo_vl.rollout.vllm import dispatch, handover
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.handover import reading_s, stored_bytes
from sapo_vl.rollout.vllm.pool import STRIKES, Pool
from sapo_vl.rollout.vllm.server import ServersUnusable, VllmServerEngine
from sapo_vl.types import UNANSWERED, Finish, Prompt, RolloutGroup

pytestmark = pytest.mark.timeout(120)  # nothing here may hang
N = 3
RETRIES = 2
SAMPLING = SamplingParams(n=N, max_new_tokens=12, temperature=1.0, seed=3)
IMAGES: list[list[tuple[int, int]]] = [[(48, 32)], [], [(32, 64), (32, 32)], [(64, 64)], [], [(16, 16)], [], []]
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}
LIMITS: dict[str, Any] = {"timeout_s": 30.0, "startup_s": 10.0, "retries": RETRIES}
SOON = {"timeout_s": 1.5}  # for servers that keep silent; the others must answer within it on a busy machine


@functools.cache
def inputs(seed: int) -> tuple[Chat, list[Prompt]]:
    _, chat = make_policy("dense", seed)
    return chat, make_prompts(chat, np.random.default_rng(seed), IMAGES)


class Setup:
    """Servers, an engine on them, and prompts; what the trainer's weights are now."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chat, self.prompts = inputs(seed)
        self.folder = folder
        self.servers: list[FakeServer] = []
        self.weights = dict(WEIGHTS)

    def add(self, count: int) -> list[FakeServer]:
        token = self.chat.image_token_id
        self.servers += [FakeServer(token, mark=len(self.servers) + i) for i in range(count)]
        return self.servers

    def engine(self, routes: RouteSpec | None = None, **changes: Any) -> VllmServerEngine:
        config = ServerConfig(urls=tuple(s.url for s in self.servers), **(LIMITS | changes))
        world = World(rank=0, size=1, device=torch.device("cpu"))
        shapes = {k: tuple(v.shape) for k, v in WEIGHTS.items()}
        return VllmServerEngine(
            MODEL, config, self.chat, lambda: iter(self.weights.items()), shapes, world, self.folder,
            max_new_tokens=32, max_failed_share=1.0, routes=routes,
        )  # fmt: skip


@pytest.fixture
def setup(tmp_path: Path, seed: int) -> Iterator[Setup]:
    made = Setup(tmp_path, seed)
    yield made
    for server in made.servers:
        server.close()


def who(groups: Sequence[RolloutGroup]) -> Counter[int]:
    """Responses by the mark of the server that gave them."""
    return Counter(int(r.response_ids[0]) - 100 for g in groups for r in g.rollouts if r.finish is not Finish.FAILED)


def failures(groups: Sequence[RolloutGroup]) -> list[str]:
    return [r.score_detail for g in groups for r in g.rollouts if r.finish is Finish.FAILED]


def check_counts(groups: Sequence[RolloutGroup], prompts: Sequence[Prompt], servers: Sequence[FakeServer]) -> None:
    """One group per prompt in order, n responses each, and no prompt asked for more often than allowed."""
    assert [g.prompt.problem.id for g in groups] == [p.problem.id for p in prompts]
    assert all(len(g.rollouts) == N for g in groups)
    seeds = Counter(b["sampling_params"]["seed"] for s in servers for b in s.asked)
    assert max(seeds.values()) <= 1 + RETRIES
    names = [b["request_id"] for s in servers for b in s.asked]
    assert len(names) == len(set(names))


def named(caplog: pytest.LogCaptureFixture, server: FakeServer) -> list[str]:
    """Warnings that say that this server is out of use."""
    return [m for m in caplog.messages if f"rollout server {server.url} is out of use" in m]


def test_prompts_are_spread_and_answered_once(setup: Setup) -> None:
    servers = setup.add(3)
    engine = setup.engine()
    engine.sync(4)
    told: list[tuple[int, RolloutGroup]] = []
    groups = engine.generate(setup.prompts, SAMPLING, lambda i, group: told.append((i, group)))
    assert len(told) == len(groups) and all(group is groups[i] for i, group in told)
    check_counts(groups, setup.prompts, servers)
    assert sum(len(s.answered) for s in servers) == len(setup.prompts)
    assert {len(s.answered) for s in servers} <= {2, 3}
    assert all(r.weight_version == 4 and r.logprobs.tolist() == [-1.5, -1.5] for g in groups for r in g.rollouts)
    assert who(groups) == {s.mark: N * len(s.answered) for s in servers}


def test_a_request_says_everything_that_sampling_depends_on(setup: Setup) -> None:
    (server,) = setup.add(1)
    setup.engine().generate(setup.prompts, SAMPLING)
    by_seed = {b["sampling_params"]["seed"]: b for b in server.asked}
    assert len(by_seed) == len(setup.prompts), "two prompts share a seed"
    for body in server.asked:
        sampling = body["sampling_params"]
        assert sampling["logit_bias"] == {str(i): -100.0 for i in setup.chat.banned_ids}
        assert (sampling["n"], sampling["max_tokens"], sampling["temperature"], sampling["logprobs"]) == (N, 12, 1.0, 0)
        assert sampling["stop_token_ids"] == list(setup.chat.eos_ids)
        assert body["return_token_ids"] is True
    sent = {tuple(b["token_ids"]): fakes.images(b) for b in server.asked}
    for prompt in setup.prompts:
        arrived = sent[tuple(prompt.compact_ids.tolist())]
        assert [i.tobytes() for i in arrived] == [i.tobytes() for i in prompt.images], "pixels were lost on the way"


def test_greedy_asks_once_and_repeats(setup: Setup) -> None:
    (server,) = setup.add(1)
    params = SamplingParams(n=N, max_new_tokens=12, temperature=0.0)
    groups = setup.engine().generate(setup.prompts, params)
    assert {b["sampling_params"]["n"] for b in server.asked} == {1}
    assert failures(groups) == []
    assert all(len(g.rollouts) == N and not r.logprobs.any() for g in groups for r in g.rollouts)


# What one of two servers does to every request -> what is said about it when it is put out of use.
BAD_SERVERS: dict[str, tuple[Fault, str]] = {
    "dies": (fakes.die, "the connection broke|cannot be reached"),
    "wedged": (fakes.hang, "no answer within 1.5 s"),
    "status 500": (fakes.always((500, b"EngineCore died")), "status 500: EngineCore died"),
    "status 503": (fakes.always((503, b"no")), "status 503"),
    "status 429": (fakes.always((429, b"busy")), "status 429: busy"),
    "status 404": (fakes.always((404, b"Not Found")), "status 404"),
    "status 401": (fakes.always((401, b"key")), "status 401"),
    "closes the connection": (fakes.always((0, b"")), "the connection broke"),
    "garbage": (fakes.garbage(0), "the answer cannot be read"),
    "old weights": (fakes.label("00000000-1-v1"), "it answered from weights '00000000-1-v1'"),
    "restarted behind our back": (fakes.label("default"), "it answered from weights 'default'"),
    "weights without a name": (fakes.label(None), "it answered from weights ''"),
    "answers of other requests": (fakes.another_request, "the answer is for request"),
    "log-probs of other tokens": (fakes.other_logprobs, "of other tokens"),
    "a sample twice": (fakes.same_sample_twice, "numbers its samples"),
}


@pytest.mark.parametrize("fault", BAD_SERVERS)
def test_a_bad_server_is_named_and_the_others_take_over(
    setup: Setup, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = setup.add(2)
    bad.fault, said = BAD_SERVERS[fault]
    engine = setup.engine(**(SOON if fault == "wedged" else {}))
    engine.sync(1)
    groups = engine.generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [bad, good])
    assert failures(groups) == []
    assert who(groups) == {good.mark: N * len(setup.prompts)}
    assert bad.asked, "nothing was sent to the bad server"
    assert named(caplog, bad) and not named(caplog, good)
    assert any(part in named(caplog, bad)[0] for part in said.split("|")), named(caplog, bad)
    assert len(named(caplog, bad)) == 1
    assert len(bad.answered) * N + sum(who(groups).values()) >= N * len(setup.prompts)


def test_a_server_that_dies_in_the_middle_keeps_what_it_answered(setup: Setup) -> None:
    bad, good = setup.add(2)
    bad.fault = lambda e: fakes.die(e) if e.number > 2 else None
    engine = setup.engine(max_in_flight=1)
    groups = engine.generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [bad, good])
    assert failures(groups) == []
    assert who(groups) == {bad.mark: 2 * N, good.mark: (len(setup.prompts) - 2) * N}


@pytest.mark.parametrize("status", [500, 429, 0])
def test_errors_that_pass_cost_nothing(setup: Setup, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer in a row than it takes to put a server out of use, with no other server to go to."""
    (server,) = setup.add(1)
    server.fault = fakes.at_first(STRIKES - 1, fakes.always((status, b"hiccup")))
    groups = setup.engine().generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [server])
    assert failures(groups) == []
    assert not named(caplog, server)
    assert len(server.asked) == len(setup.prompts) + STRIKES - 1


def test_strikes_count_in_a_row_only(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    (server,) = setup.add(1)
    server.fault = lambda e: (500, b"hiccup") if e.number % 2 == 0 else None
    groups = setup.engine(max_in_flight=1).generate(setup.prompts, SAMPLING)
    assert failures(groups) == []
    assert len(server.asked) == 2 * len(setup.prompts) - 1 > 2 * STRIKES
    assert not named(caplog, server)


def test_requests_at_a_server_that_is_out_are_given_up_at_once(setup: Setup) -> None:
    """One hangs, another shows that the server is none: the first would take an hour to run out."""
    bad, good = setup.add(2)
    bad.fault = lambda e: fakes.hang(e) if e.number == 1 else (404, b"Not Found")
    groups = setup.engine(timeout_s=3600.0).generate(setup.prompts, SAMPLING)
    assert who(groups) == {good.mark: N * len(setup.prompts)}


def test_a_prompt_that_is_refused_is_not_sent_again_and_costs_no_server(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    servers = setup.add(2)
    refused = setup.prompts[1].compact_ids.tolist()

    def fault(e: fakes.Exchange) -> fakes.Reply | None:
        return (400, b'{"error": {"message": "too long"}}') if e.body["token_ids"] == refused else None

    for server in servers:
        server.fault = fault
    groups = setup.engine().generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, servers)
    assert sum(len(s.asked) for s in servers) == len(setup.prompts)
    assert len(failures(groups)) == N and all("too long" in reason for reason in failures(groups))
    assert [r.finish for r in groups[1].rollouts] == [Finish.FAILED] * N
    assert not any(named(caplog, s) for s in servers)


def test_a_long_response_may_take_long(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """timeout_s is a limit for short ones: an answer comes when the longest response of its group has ended."""
    (server,) = setup.add(1)
    monkeypatch.setattr(dispatch, "SLOWEST_TOKENS_PER_S", SAMPLING.max_new_tokens / 300)
    server.fault = lambda e: time.sleep(3) if e.number == 1 else None  # twice the limit
    groups = setup.engine(**SOON).generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [server])
    assert failures(groups) == [] and len(server.asked) == len(setup.prompts)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_slow_prompt_does_not_cost_a_server_that_answers_others(
    setup: Setup, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    (server,) = setup.add(1)
    late = setup.prompts[0].compact_ids.tolist()
    asked = threading.Event()

    def fault(e: fakes.Exchange) -> fakes.Reply | None:
        if e.body["token_ids"] == late:
            asked.set()
            return fakes.hang(e)
        asked.wait(30)
        return None

    server.fault = fault
    groups = setup.engine(timeout_s=3.0, retries=retries).generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [server])
    # Others were answered while its first try waited. Alone in its last tries it cannot be told from a wedged server.
    assert retries or not named(caplog, server)
    assert [r.finish for r in groups[0].rollouts] == [Finish.FAILED] * N
    assert len(failures(groups)) == N and all("no answer within 3 s" in reason for reason in failures(groups))
    assert sum(b["token_ids"] == late for b in server.asked) == 1 + retries


# What every server does -> the reason that each response carries. The answer can be read, so it is not asked for again.
USELESS: dict[str, tuple[Fault, str]] = {
    "wrong prompt ids": (fakes.wrong_prompt, "prompt ids differ: at token"),
    "no log-probs": (fakes.no_logprobs, "0 log-probs for 2 tokens"),
    "a sample short": (fakes.one_sample_short, "2 samples instead of 3"),
}


@pytest.mark.parametrize("fault", USELESS)
def test_answers_that_cannot_be_used_fail_with_a_reason(setup: Setup, fault: str) -> None:
    servers = setup.add(2)
    for server in servers:
        server.fault = USELESS[fault][0]
    groups = setup.engine().generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, servers)
    assert sum(len(s.asked) for s in servers) == len(setup.prompts)
    assert len(failures(groups)) == N * len(setup.prompts)
    assert all(USELESS[fault][1] in reason for reason in failures(groups))
    assert not any(reason.startswith(UNANSWERED) for reason in failures(groups)), "it would be the same another time"


def test_routes_are_asked_of_training_rollouts_alone(setup: Setup) -> None:
    """With replay=r3 a response without them cannot be replayed; an evaluation, greedy or not, needs none."""
    (server,) = setup.add(1)
    spec = RouteSpec(layers=(0,), experts=8, top_k=2)
    with pytest.raises(ServersUnusable, match="without --enable-return-routed-experts"):
        setup.engine(routes=spec, startup_s=0.0)
    server.settings["routes"] = True
    engine = setup.engine(routes=spec)
    asked = engine.generate(setup.prompts, dataclasses.replace(SAMPLING, routes=True))
    assert set(failures(asked)) == {"routes: none were returned"}
    assert len(failures(asked)) == N * len(setup.prompts)
    for temperature in (1.0, 0.0):
        assert not failures(engine.generate(setup.prompts, dataclasses.replace(SAMPLING, temperature=temperature)))


def test_a_missing_logprob_fails_its_response_alone(setup: Setup) -> None:
    """vLLM writes -9999 for it, which is finite and below 0."""
    (server,) = setup.add(1)
    server.fault = fakes.missing_logprob
    groups = setup.engine().generate(setup.prompts, SAMPLING)
    assert [[r.finish for r in g.rollouts] for g in groups] == [[Finish.FAILED, Finish.LENGTH, Finish.LENGTH]] * 8
    assert set(failures(groups)) == {"a log-prob is not finite, or above 0"}


@pytest.mark.parametrize("fault", [f for f in BAD_SERVERS if f != "dies"])
def test_when_all_servers_are_bad_the_step_ends_with_failed_responses(setup: Setup, fault: str) -> None:
    servers = setup.add(2)
    for server in servers:
        server.fault = BAD_SERVERS[fault][0]
    groups = setup.engine(**(SOON if fault == "wedged" else {})).generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, servers)
    assert len(failures(groups)) == N * len(setup.prompts)
    assert all("http://127.0.0.1:" in reason for reason in failures(groups)), "no server is named"


def test_when_no_server_is_left_the_step_ends_with_those_that_came(setup: Setup) -> None:
    bad, worse = setup.add(2)
    bad.fault = lambda e: fakes.die(e) if e.number > 1 else None
    worse.fault = fakes.die
    engine = setup.engine(max_in_flight=1, startup_s=0.0)
    groups = engine.generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [bad, worse])
    assert who(groups) == {bad.mark: N}
    assert len(failures(groups)) == N * (len(setup.prompts) - 1)
    assert any("no server is left" in reason for reason in failures(groups))
    assert all(reason.startswith(UNANSWERED) for reason in failures(groups)), "another try may have them"
    with pytest.raises(ServersUnusable, match="no server took the weights of version 2") as error:
        engine.sync(2)
    assert bad.url in str(error.value) and worse.url in str(error.value)


def test_too_many_failures_stop_the_run(setup: Setup) -> None:
    (server,) = setup.add(1)
    server.fault = fakes.no_logprobs
    engine = setup.engine()
    engine._watch._max_share = 0.5
    with pytest.raises(RolloutStopped, match="0 log-probs for 2 tokens"):
        for _ in range(3):
            engine.generate(setup.prompts, SAMPLING)


def test_a_lost_server_comes_back_within_the_step(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """It dies, is started again by somebody, gets the weights, and only then prompts."""
    caplog.set_level(logging.INFO, "sapo_vl")
    (server,) = setup.add(1)

    def die_once(e: fakes.Exchange) -> fakes.Reply | None:
        if e.number > 1:
            return None
        server.restart_later()
        return fakes.die(e)

    server.fault = die_once
    engine = setup.engine()
    engine.sync(1)
    groups = engine.generate(setup.prompts, SAMPLING)
    check_counts(groups, setup.prompts, [server])
    assert failures(groups) == []
    assert len(server.loaded) == 2, "the weights were not handed over again"
    assert len(named(caplog, server)) == 1
    assert any(f"rollout server {server.url} is in use again" in m for m in caplog.messages)


def test_a_restarted_server_gets_prompts_only_after_the_weights(setup: Setup) -> None:
    restarted, other = setup.add(2)
    engine = setup.engine()
    engine.sync(1)
    restarted.restart()  # nobody noticed yet
    groups = engine.generate(setup.prompts, SAMPLING)
    assert who(groups) == {other.mark: N * len(setup.prompts)}
    setup.weights = {k: v + 1 for k, v in WEIGHTS.items()}
    engine.sync(2)
    assert torch.equal(restarted.loaded[-1]["b.weight"], setup.weights["b.weight"])
    groups = engine.generate(setup.prompts, SAMPLING)
    assert set(who(groups)) == {restarted.mark, other.mark}
    assert {r.weight_version for g in groups for r in g.rollouts} == {2}


def test_weights_arrive_whole_and_old_ones_are_deleted(setup: Setup) -> None:
    servers = setup.add(2)
    folder = setup.folder / "weights_for_servers"
    (folder / "weights-of-a-killed-run.part").mkdir(parents=True)
    engine = setup.engine()
    for version in (1, 2, 3):
        setup.weights = {k: v + version for k, v in WEIGHTS.items()}
        engine.sync(version)
        (on_disk,) = folder.iterdir()
        assert on_disk.name.endswith(f"-v{version}")
        for server in servers:
            assert server.loaded[-1].keys() == WEIGHTS.keys()
            assert all(torch.equal(server.loaded[-1][k], v) for k, v in setup.weights.items())
            assert not server.paused
    order = [c for c in servers[0].calls if c.startswith(("/pause", "/res", "/update", "sapo_l"))]
    resets = ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]
    assert order == ["/pause", "sapo_load_weights", *resets, "/update_weight_version", "/resume"] * 3
    engine.close()
    assert not folder.exists()


def test_the_surer_way_of_syncing_repacks_and_is_the_last(setup: Setup) -> None:
    (server,) = setup.add(1)
    engine = setup.engine()
    engine.sync(1)
    assert "sapo_repack_cpu" not in server.calls
    first = server.label
    assert (engine.sync_method, engine.surer_sync(), engine.surer_sync()) == ("reload", "repack", None)
    engine.sync(1)
    assert server.calls.count("sapo_repack_cpu") == 1
    assert server.label != first, "weights handed over in two ways go by one name"


# Route that fails at a sync -> what is said.
STUCK: dict[str, str] = {
    "/pause": "no answer to /pause",
    "sapo_load_weights": "sapo_load_weights|/collective_rpc",
    "/reset_prefix_cache": "/reset_prefix_cache",
    "/update_weight_version": "/update_weight_version",
    "/weight_info": "/weight_info",
    "sapo_has": "sapo_has",
}


@pytest.mark.parametrize("route", STUCK)
@pytest.mark.parametrize("way", ["error", "refused", "odd"])
def test_a_server_that_does_not_take_the_weights_is_out_until_it_does(
    setup: Setup, route: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = setup.add(2)
    engine = setup.engine()
    engine.sync(1)
    odd = b'{"results": ["it has 0 of 2 tensors"], "success": false, "weight_version": "x"}'
    bad.broken[route] = {"error": (500, b"Worker failed"), "refused": (0, b""), "odd": (200, odd)}[way]
    if way == "odd" and route in ("/pause", "/update_weight_version"):
        bad.broken[route] = (418, b"teapot")
    engine.sync(2)
    assert any(bad.url in m and "did not take the weights" in m for m in caplog.messages)
    assert set(who(engine.generate(setup.prompts, SAMPLING))) == {good.mark}
    bad.broken.clear()
    assert set(who(engine.generate(setup.prompts, SAMPLING))) == {good.mark}, "it has not got the weights yet"
    engine.sync(3)
    assert set(who(engine.generate(setup.prompts, SAMPLING))) == {good.mark, bad.mark}


def test_a_label_is_not_enough_where_another_process_took_the_weights(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is started again between the two: the label is right, the weights are those of its start."""
    bad, good = setup.add(2)
    control = bad.control

    def back_in_between(path: str, name: str, body: dict[str, Any]) -> Any:
        if path == "/update_weight_version":
            bad.folder = ""
        return control(path, name, body)

    monkeypatch.setattr(bad, "control", back_in_between)
    engine = setup.engine()
    engine.sync(1)
    assert bad.label == good.label
    assert any(bad.url in m and "did not take the weights" in m and "given were" in m for m in caplog.messages)
    assert set(who(engine.generate(setup.prompts, SAMPLING))) == {good.mark}


def test_a_server_that_hangs_while_it_loads_is_given_up(setup: Setup) -> None:
    bad, good = setup.add(2)
    bad.hung = {"sapo_load_weights"}
    engine = setup.engine(**SOON)
    engine.sync(1)
    assert set(who(engine.generate(setup.prompts, SAMPLING))) == {good.mark}


def test_weights_that_no_server_takes_stop_the_run_at_once(setup: Setup) -> None:
    """They are there and refuse: waiting would not help."""
    for server in setup.add(2):
        server.broken["sapo_load_weights"] = (500, b"shape mismatch")
    with pytest.raises(ServersUnusable, match="shape mismatch"):
        setup.engine(startup_s=3600.0).sync(1)


def test_weights_that_are_not_the_served_models_are_not_sent(setup: Setup) -> None:
    (server,) = setup.add(1)
    setup.weights["c.weight"] = torch.ones(1)
    with pytest.raises(ManifestError, match=r"the engine never had c\.weight"):
        setup.engine().sync(1)
    assert not server.loaded


def test_a_disk_that_takes_no_weights_is_named(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.add(1)
    engine = setup.engine()
    read: list[str] = []

    def noted() -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in WEIGHTS.items():
            read.append(name)
            yield name, value

    def full(weights: Iterator[Any], folder: Path) -> None:
        next(weights)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sapo_vl.rollout.vllm.transfer.write_weights", full)
    engine._transfer._weights = noted
    with pytest.raises(ServersUnusable, match="No space left on device"):
        engine.sync(1)
    assert read == list(WEIGHTS), "the other ranks would wait for the rest"
    assert not list((setup.folder / "weights_for_servers").iterdir())


def test_servers_have_longer_for_large_weights(tmp_path: Path) -> None:
    """470 GB, as a bfloat16 of 235 billion, at 50 MB a second."""
    for part in range(2):
        with (tmp_path / f"part_{part}").open("wb") as file:
            file.truncate(235_000_000_000)  # sparse: it takes no room
    size = stored_bytes(tmp_path)
    assert reading_s(size, 600.0) == 9400.0 and reading_s(size, 20_000.0) == 20_000.0


def test_a_server_is_given_that_time(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    async def hand_over(*_: Any, timeout_s: float, **__: Any) -> None:
        given.append(timeout_s)

    setup.add(1)
    engine = setup.engine()
    monkeypatch.setattr(handover, "hand_over", hand_over)
    monkeypatch.setattr(handover, "SLOW_DISK", 1.0)
    engine.sync(1)
    [folder] = (setup.folder / "weights_for_servers").iterdir()
    assert given == [sum(p.stat().st_size for p in folder.iterdir())] and given[0] > LIMITS["timeout_s"]


# How a server is set up -> what the engine says about it at the start.
WRONG: dict[str, tuple[Callable[[FakeServer], object], str]] = {
    "not there": (lambda s: s.stop(), r"not ready after 0 s .*cannot be reached"),
    "engine dead": (lambda s: s.broken.update({"/health": (503, b"")}), "status 503"),
    "another program": (lambda s: s.absent.add("/health"), "/health gave status 404"),
    "another vLLM": (lambda s: setattr(s, "version", "0.33.1"), r"runs vLLM 0\.33\.1; known here: 0\.32\.x"),
    "no development mode": (lambda s: s.absent.add("/collective_rpc"), "development mode is off"),
    "no extension": (lambda s: s.broken.update(sapo_settings=(500, b"no attribute")), "worker-extension-cls"),
    "no scale-out": (lambda s: s.absent.add("/inference/v1/generate"), "--enable-scale-out"),
    "raw log-probs": (lambda s: s.settings.update(logprobs_mode="raw_logprobs"), "--logprobs-mode is raw_logprobs"),
    "other dtype": (lambda s: s.settings.update(dtype="bfloat16"), "computes in bfloat16, model.dtype is float32"),
    "short": (lambda s: s.settings.update(max_model_len=431), "--max-model-len is 431, .* make 432"),
    "small images": (lambda s: s.settings.update(image_size={"longest_edge": 99}), "shrinks images to 99 pixels"),
    "large images": (lambda s: s.settings.update(image_size={"shortest_edge": 999}), "enlarges images to 999 pixels"),
    "odd settings": (lambda s: s.settings.pop("vocab_size"), "it describes itself as"),
    "another model": (lambda s: s.settings.update(vocab_size=9), "serve different models"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_server_is_refused_at_the_start(setup: Setup, fault: str) -> None:
    wrong, right = setup.add(2)
    WRONG[fault][0](wrong)
    with pytest.raises(ServersUnusable, match=WRONG[fault][1]) as error:
        setup.engine(startup_s=0.0)
    assert wrong.url in str(error.value)
    assert "sapo-vl serve" in str(error.value)
    assert right.url not in str(error.value) or fault == "another model"


def test_a_server_that_is_still_starting_is_waited_for(setup: Setup) -> None:
    (server,) = setup.add(1)
    server.stop()
    server.restart_later()
    groups = setup.engine().generate(setup.prompts, SAMPLING)
    assert failures(groups) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_agree_on_the_servers_and_finish_together(seed: int) -> None:
    seen = ask_ranks(2, "server_ranks_worker.py", str(seed), timeout=300)
    every = [[0, 1], [0, 1]]  # marks of the servers that answered, by rank
    assert seen["both"] == {"by": every, "failed": [0, 0], "out": [[], []], "label": True}
    assert seen["one dies"] == {"by": [[1], [1]], "failed": [0, 0], "out": [[0], [0]], "label": True}
    assert seen["it returns"] == {"by": every, "failed": [0, 0], "out": [[], []], "label": True}
    # Server 0 hangs up on rank 1 alone. It is given the weights anew, is asked again, and is out for both in the end.
    assert seen["rank 1 loses it"]["failed"] == [0, 0]
    assert seen["rank 1 loses it"]["by"][1] == [1]
    assert seen["rank 1 loses it"]["out"] == [[0], [0]]
    assert seen["none answers"]["failed"] == [2 * N, 2 * N]
    assert all(url in text for text in seen["start"] for url in seen["absent"]), "not every rank raised"


def test_pool_takes_turns_and_keeps_away_from_what_failed() -> None:
    pool = Pool(["a", "b", "c"], rank=1, reason="new")
    assert pool.pick(()) is None
    pool.settle({"a": "", "b": "", "c": ""})
    picked = []
    for _ in range(6):
        server = pool.pick(())
        assert server is not None
        server.sent += 1
        picked.append(server.url)
    assert picked == ["b", "c", "a"] * 2
    assert pool.pick({"b"}).url == "c"  # type: ignore[union-attr]
    pool.servers[0].in_flight = 5
    assert pool.pick({"a", "c"}).url == "b"  # type: ignore[union-attr]
    pool.drop("b", "gone")
    assert pool.pick({"a", "c"}).url in ("a", "c")  # type: ignore[union-attr]
    pool.expect("sync")
    assert pool.out == {"b": "gone", "a": "sync", "c": "sync"}
