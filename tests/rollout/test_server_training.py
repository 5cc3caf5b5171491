"""The real training loop on two ranks whose rollouts come from servers, of which one dies and all refuse something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_vllm_server as fakes
import pytest
from fake_vllm_server import FakeServer
from helpers_launch import run_python
from helpers_runs import write_config, write_inputs
from safetensors.torch import load_file

from sapo_vl.model.chat import load_processor
from sapo_vl.record.run_log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, PROMPTS, GROUP = 4, 8, 3


@pytest.fixture(scope="module")
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings that name data, model and reward, which lie in one folder."""
    return write_inputs(tmp_path_factory.mktemp("served"), int(request.config.option.seed), "moe")


def refuses_some(e: fakes.Exchange) -> fakes.Reply | None:
    """One prompt in three, whichever server is asked."""
    return (400, b"refused") if e.body["sampling_params"]["seed"] % 3 == 0 else None


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_trains_on_what_came_and_hands_over_every_version(inputs: dict[str, Any], staleness: int) -> None:
    setup = Path(inputs["model.path"]).parent
    tokenizer = load_processor(inputs["model.path"]).tokenizer
    servers = [FakeServer(tokenizer.convert_tokens_to_ids("<|image_pad|>"), mark) for mark in (0, 1)]
    for server in servers:
        server.settings["vocab_size"] = len(tokenizer)
        server.fault = refuses_some
    servers[0].fault = lambda e: fakes.die(e) if e.number > 20 else refuses_some(e)
    out = setup / f"run-{staleness}"
    settings = inputs | {
        "steps": STEPS,
        "processes": 2,
        "rollout.engine": "vllm_server",
        "rollout.server.urls": f"[{', '.join(s.url for s in servers)}]",
        "rollout.server.timeout_s": 60,
        "rollout.staleness": staleness,
        "rollout.parity.limit": 1000,  # the servers have no model
        "rollout.max_failed_share": 0.9,
        "rollout.prompts_per_step": PROMPTS,
        "rollout.group_size": GROUP,
        "rollout.max_new_tokens": 8,
        "batch.tokens_per_micro_batch": 200,
        "optim.lr": 0.003,
        "zero.stage": 3,
        "eval.max_per_task": 1,
        "eval.modes": "[greedy]",
        "log.trackers": "[]",
    }
    write_config(settings, setup / "config.yaml")
    try:
        printed = run_python(
            "-m", "sapo_vl", "train", "--config", setup / "config.yaml", "--out", out, timeout=800
        ).stdout
    finally:
        for server in servers:
            server.close()

    rows = [row for row in read_metrics(out / "metrics.jsonl") if row["phase"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["rollouts"] == PROMPTS * GROUP, "a response was lost or counted twice"
        assert row["finish/failed"] % GROUP == 0
        assert row["finish/failed"] + row["finish/length"] == PROMPTS * GROUP
    assert 0 < sum(row["finish/failed"] for row in rows) < STEPS * PROMPTS * GROUP
    lost = ("is out of use", "did not take the weights")  # found by a prompt, or by the sync after the last one
    assert any(f"rollout server {servers[0].url} {how}" in printed for how in lost)
    assert servers[1].url not in printed
    assert len(servers[0].asked) >= 20

    versions = [int(label.rsplit("-v", 1)[1]) for label in servers[1].labels]
    assert versions == list(range(STEPS + 1))
    first, last = servers[1].loaded[0], servers[1].loaded[-1]
    final = load_file(out / "final" / "model.safetensors")
    assert last.keys() == final.keys()
    assert all((last[name] == final[name]).all() for name in final), "the servers ended with other weights"
    assert any((last[name] != first[name]).any() for name in final), "nothing was learned"
    assert not (out / "weights_for_servers").exists()
