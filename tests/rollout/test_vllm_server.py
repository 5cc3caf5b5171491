"""A real vLLM server, started by `sapo-vl serve`: what it samples, how it takes weights over, its restart.

One launch a case runs everything (server_worker.py) and writes down what it saw; the tests here say what is right.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
from helpers_launch import ask_ranks
from helpers_models import TOLERANCE, make_model, processor

from sapo_vl.model.export import save_hf_folder

# A server starts twice, in three processes; those of one start import vLLM each.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
FAR = 0.01  # no stale weight may come near the tolerance of 1e-5
CASES = {"moe": ("moe", 1, 1), "dense, 2 ranks, ZeRO-3": ("dense", 2, 3)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    seed = int(request.config.option.seed)
    folder = tmp_path_factory.mktemp("server")
    for kind in ("dense", "moe"):
        save_hf_folder(make_model(kind, seed), processor(), folder / kind)

    @functools.cache
    def result(script: str, ranks: int, *arguments: str | int) -> dict[str, Any]:
        seen = ask_ranks(ranks, script, folder, *map(str, arguments), timeout=1200, vllm=True)
        assert not (folder / "run" / "weights_for_servers").exists(), "weights were left on disk"
        return seen

    def case(name: str) -> dict[str, Any]:
        kind, ranks, stage = CASES[name]
        return result("server_worker.py", ranks, kind, stage, seed)

    case.in_process = lambda: result("vllm_worker.py", 1, "moe", 1, 1, seed, "sampling")["sampling"]
    return case


def largest(figures: dict[str, Any]) -> float:
    assert figures["refused"] == []
    return max(figures[kind]["largest"] for kind in ("text", "image"))


@pytest.mark.parametrize("case", CASES)
def test_server_and_trainer_agree_before_and_after_every_sync(run: Any, case: str) -> None:
    seen = run(case)
    assert largest(seen["start"]) < TOLERANCE
    assert [s["version"] for s in seen["synced"]] == [1, 2, 3, 4]
    for sync in seen["synced"][:3]:
        assert min(sync["stale"][kind]["mean"] for kind in ("text", "image")) > FAR, "the weights hardly changed"
        assert largest(sync) < TOLERANCE
    vision = seen["synced"][3]
    assert vision["stale"]["image"]["mean"] > FAR and vision["stale"]["text"]["largest"] < TOLERANCE
    assert largest(vision) < TOLERANCE


def test_the_way_of_syncing_is_found(run: Any) -> None:
    """A plain reload returns without an error and serves wrong experts in vLLM's CPU build."""
    seen = run("moe")
    assert seen["first_method"] == "reload" and largest(seen["plain"]) > FAR
    assert seen["method"] == "repack"


@pytest.mark.parametrize("case", CASES)
def test_rollouts_are_named_by_seed_and_problem(run: Any, case: str) -> None:
    seen = run(case)
    assert seen["first"] == seen["again"]
    assert seen["first"] != seen["other"]
    assert all(a == b for a, b in seen["greedy"])
    assert not {i for group in seen["first"] for ids in group for i in ids} & set(seen["banned"])
    assert largest(seen["hot"]) < TOLERANCE, "log-probs are not those of the law at temperature 1.7"


def test_the_same_seed_gives_the_rollouts_of_the_engine_in_process(run: Any) -> None:
    seen, in_process = run("moe"), run.in_process()
    assert seen["first"] == in_process["first"]
    assert seen["other"] == in_process["other"]


@pytest.mark.parametrize("case", CASES)
def test_a_restarted_server_answers_only_from_the_current_weights(run: Any, case: str) -> None:
    seen = run(case)["restarted"]
    assert seen["after"] == seen["before"]
    assert largest(seen) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_adapters_alone_make_the_trainers_model_of_the_servers_own(run: Any, case: str) -> None:
    """Experts' among them. What the server had before, all weights of another run, is nowhere left."""
    seen = run(case)["adapters"]
    assert seen["method"] == "repack", "what vLLM's CPU build packs is packed anew in this way too"
    assert min(seen["stale"][kind]["mean"] for kind in ("text", "image")) > FAR, "the weights hardly changed"
    assert largest(seen) < TOLERANCE
    assert seen["written"] < 0.5 * seen["whole"]
