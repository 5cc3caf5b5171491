"""A real vLLM engine in the trainer's processes: what it samples, how it takes weights over, planted faults.

One launch a case runs everything (vllm_worker.py) and writes down what it saw; the tests here say what is right.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_launch import ask_ranks
from helpers_models import TOLERANCE, make_model, processor

from sapo_vl.model.export import save_hf_folder

pytestmark = pytest.mark.slow
FAR = 0.01  # no planted fault may come near the tolerance of 1e-5


@pytest.fixture(scope="module")
def left_behind() -> Iterator[None]:
    """Shared memory under the names that vLLM would take, as a run that was killed leaves it."""
    files = [Path("/dev/shm", f"-tp:0-[{ranks}]-cpushm_{i}") for ranks in ("0-1", "2-3") for i in (0, 1)]
    before = set(Path("/dev/shm").glob("*cpushm*"))
    made = {file: secrets.token_hex(8) for file in files if file not in before}
    for file, content in made.items():
        file.write_text(content)
    yield
    for file, content in made.items():
        assert file.read_text() == content, "somebody else's memory was written to"
        file.unlink()
    for _ in range(300):  # other tests' engines take theirs away once they are open
        if set(Path("/dev/shm").glob("*cpushm*")) <= before:
            break
        time.sleep(0.2)
    else:
        pytest.fail("memory outlasts its processes")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, left_behind: None) -> Any:
    seed = int(request.config.option.seed)
    folder = tmp_path_factory.mktemp("vllm")
    for kind in ("dense", "moe"):
        save_hf_folder(make_model(kind, seed), processor(), folder / kind)
        # Heads that two ranks can share.
        wide = make_model(kind, seed, text={"num_attention_heads": 4, "num_key_value_heads": 2})
        save_hf_folder(wide, processor(), folder / f"{kind}-wide")

    @functools.cache
    def result(model: str, ranks: int, stage: int, tensor_parallel: int, *checks: str) -> dict[str, Any]:
        arguments = (folder, model, stage, tensor_parallel, seed, *checks)
        return ask_ranks(ranks, "vllm_worker.py", *map(str, arguments), timeout=800, vllm=True)

    return result


ONE_RANK = ("syncs", "sampling", "faults")
CASES = {
    "dense": ("dense", 1, 1, 1, *ONE_RANK),
    "moe": ("moe", 1, 1, 1, *ONE_RANK),
    "moe with adapters, 2 ranks, ZeRO-3": ("moe+lora", 2, 3, 1, "syncs"),
    "moe, one engine over 2 ranks": ("moe-wide", 2, 1, 2, "syncs", "sampling", "shared", "parts"),
    "moe, 2 engines over 2 ranks each, ZeRO-3": ("moe-wide", 4, 3, 2, "syncs"),
}


def largest(figures: dict[str, Any]) -> float:
    assert figures["refused"] == []
    return max(figures[kind]["largest"] for kind in ("text", "image"))


@pytest.mark.parametrize("case", CASES)
def test_engine_and_trainer_agree_before_and_after_three_syncs(run: Any, case: str) -> None:
    seen = run(*CASES[case])["syncs"]
    assert largest(seen["start"]) < TOLERANCE
    assert [s["version"] for s in seen["synced"]] == [2, 3, 4]
    for sync in seen["synced"]:
        assert min(sync["stale"][kind]["mean"] for kind in ("text", "image")) > FAR, "the weights hardly changed"
        assert largest(sync) < TOLERANCE
        assert sync["random_state_kept"]


@pytest.mark.parametrize("case", CASES)
def test_a_reload_that_serves_wrong_weights_is_noticed_and_mended(run: Any, case: str) -> None:
    """vLLM's CPU build returns from a reload without an error. The gate must find the way that is right by itself."""
    seen = run(*CASES[case])["syncs"]
    assert seen["plain_reload"]["method"] == "reload"
    assert largest(seen["plain_reload"]["new_weights"]) > FAR
    if "moe" in case:
        assert largest(seen["plain_reload"]["same_weights"]) > FAR
    assert seen["method"] == "repack"


@pytest.mark.parametrize("case", ["dense", "moe", "moe, one engine over 2 ranks"])
def test_rollouts_are_named_by_seed_and_problem(run: Any, case: str) -> None:
    seen = run(*CASES[case])["sampling"]
    assert seen["first"] == seen["again"]
    assert seen["first"] == seen["reversed"], "a response depends on the order of the prompts"
    assert seen["first"] != seen["other"]
    for group in seen["first"]:
        assert len({tuple(ids) for ids in group}) > 1, "responses of a group are copies"
    assert all(a == b for a, b in seen["greedy"])
    assert not {i for group in seen["first"] for ids in group for i in ids} & set(seen["banned"])
    assert seen["random_state_kept"] == [True] * 4, "what training draws next depends on the engine"
    assert largest(seen["hot"]) < TOLERANCE, "log-probs are not those of the law at temperature 1.7"


def test_images_are_processed_by_one_rank_of_an_engine(run: Any) -> None:
    seen = run(*CASES["moe, one engine over 2 ranks"])["shared"]
    images = seen["images"]
    once, each, again = seen["batches"]
    assert min(images) > 0 and once["processed"] == again["processed"] == images
    assert each["processed"] == [sum(images)] * 2
    assert once["responses"] == each["responses"] == again["responses"]


def test_a_worker_copies_only_its_part_of_a_folder(run: Any) -> None:
    """Norms and routers are in both parts. The folder is gone when the first token is sampled."""
    seen = run(*CASES["moe, one engine over 2 ranks"])["parts"]
    assert seen["said"] == [""]
    assert len(seen["shares"]) == 2 and all(0.5 < share < 0.6 for share in seen["shares"]), seen["shares"]
    assert largest(seen) < TOLERANCE


@pytest.mark.parametrize("case", ["dense", "moe"])
def test_every_planted_fault_is_found_and_named(run: Any, case: str) -> None:
    seen = run(*CASES[case])["faults"]
    for fault in ("swapped_image", "wrong_positions", "stale_encoder_cache"):
        assert "text-only prompts agree, so it is the images" in seen[fault], fault
    for fault in ("stale_weights", "raw_logprobs"):
        assert "text-only prompts differ too" in seen[fault], fault
    assert "Encoder cache miss" in seen["unaware_scheduler"]
    assert seen["double_expanded"]
    assert all("prompt ids differ: the engine read" in reason for reason in seen["double_expanded"])
    lost = seen["missing_weight"]
    assert f"the trainer does not send {lost['name']}" in lost["said"]
    assert "(1, 2) in the trainer" in seen["wrong_shape"]


@pytest.mark.parametrize("case", ["dense", "moe"])
def test_a_fresh_engine_is_the_last_resort(run: Any, case: str) -> None:
    fresh = run(*CASES[case])["faults"]["fresh"]
    assert largest(fresh) < TOLERANCE and fresh["random_state_kept"]
