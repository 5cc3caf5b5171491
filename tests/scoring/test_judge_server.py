"""The judge on a real vLLM server on the CPU. Its model has random weights: verdicts are noise, but they are verdicts.

What is shown is all around them: structured output, canaries, a server that stands still, and one that dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import fake_judge as fakes
import httpx
import pytest
from helpers_launch import free_port
from helpers_models import MODEL, make_model, processor

from rewards.judging.pictures import drawn
from sapo_vl.model.export import save_hf_folder
from sapo_vl.rollout import RolloutConfig
from sapo_vl.rollout.vllm.config import VllmConfig
from sapo_vl.rollout.vllm.serve import serve_command
from sapo_vl.scoring.failure_watch import ScoringStopped
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.types import Rollout

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENT: dict[str, Any] = {"timeout_s": 50, "deadline_s": 55, "canary_limit": 1.0, "pause_s": 3600}


class RealServer:
    """In a session of its own, so that all its processes can be stopped and killed at once."""

    def __init__(self, folder: Path, seed: int) -> None:
        save_hf_folder(make_model("dense", seed), processor(), folder / "model")
        port = free_port()
        model = MODEL.model_copy(update={"path": str(folder / "model"), "max_prompt_tokens": 3000})
        rollout = RolloutConfig(max_new_tokens=64, vllm=VllmConfig(max_num_seqs=16))
        command, environment = serve_command(model, rollout, "127.0.0.1", port, on_cpu=True)
        # Random weights love white space, of which JSON allows any amount. "uni": one process less to start.
        outputs = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
        command += ["--structured-outputs-config", outputs, "--distributed-executor-backend", "uni"]
        self.name = str(folder / "model")
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        while self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        pytest.fail(self._log.read_text(errors="replace")[-3000:])

    def send(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path, seed: int) -> Iterator[RealServer]:
    server = RealServer(tmp_path, seed)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def score(scorer: Scorer, *texts: str) -> tuple[Rollout, ...]:
    [scored] = scorer.score(fakes.answers(*texts), max_tokens=9)
    return scored.rollouts


def verdicts(folder: Path) -> int:
    return len(list((folder / "verdicts").rglob("*.json")))


def test_a_run_with_a_real_judge_that_stands_still_and_then_dies(server: RealServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings = fakes.params(f"{server.url}/v1", cache, model=server.name) | PATIENT
    with Scorer(fakes.scoring(settings, timeout_s=60, workers=2)) as scorer:
        scorer.check([("moods", "")], "data")
        assert 0 <= scorer.judge_metrics["judge/canary_false_positive_rate"] <= 1

        # All is well: the rule's verdict for "red", the judge's for the others, and the second time from the cache.
        first = score(scorer, "red", "crimson", "ruby", "x < 3", "green")
        assert [r.score_status for r in first] == ["scored"] * 5 and first[0].reward == 1.0
        assert {r.reward for r in first[1:]} <= {0.0, 1.0}
        figures = scorer.judge_metrics
        assert (figures["judge/asked"], figures["judge/failures"]) == (4, 0)
        assert (figures["judge/canary_asked"], figures["judge/canary_failures"]) == (4, 0)
        assert [r.reward for r in score(scorer, "red", "crimson", "ruby", "x < 3", "green")] == [
            r.reward for r in first
        ]
        assert (scorer.judge_metrics["judge/asked"], scorer.judge_metrics["judge/cache_hits"]) == (0, 4)

        # The same question with a picture is another one, and the server takes it.
        with Scorer(fakes.scoring(settings | {"images": True}, timeout_s=60, workers=1)) as sighted:
            sighted.check([("moods", "")], "data")
            assert sighted.judge_metrics == {"judge/canary_false_positive_rate": ANY}
            [seen] = sighted.score(fakes.answers("red", "crimson", images=(drawn("shapes"),)), max_tokens=9)
            assert [r.score_status for r in seen.rollouts] == ["scored"] * 2
            assert (sighted.judge_metrics["judge/asked"], sighted.judge_metrics["judge/failures"]) == (1, 0)

        # It stands still: whoever has to be asked is left out after a second, the others keep their scores.
        server.send(signal.SIGSTOP)
        hasty = settings | {"timeout_s": 1, "deadline_s": 2, "retries": 0, "pause_s": 0.05}
        with Scorer(fakes.scoring(hasty, max_failure_share=1.0)) as impatient:
            still = score(impatient, "red", "navy", "crimson", "teal")
            assert [r.reward for r in still] == [1.0, None, first[1].reward, None]
            assert still[1].score_detail == "the judge gave no verdict: no answer within 1 s"
            assert impatient.judge_metrics["judge/failures"] == 2
            assert impatient.judge_metrics["judge/canary_failures"] == 4
        server.send(signal.SIGCONT)
        (cache / "outage.json").unlink()  # the pause of the patient one is an hour
        assert [r.score_status for r in score(scorer, "navy", "teal")] == ["scored"] * 2

        # It dies in the middle of a batch: what it has said counts, the rest is left out.
        known = verdicts(cache)

        def kill_after_three() -> None:
            while verdicts(cache) < known + 3:
                time.sleep(0.005)
            server.kill()

        killer = threading.Thread(target=kill_after_three)
        killer.start()
        last = score(scorer, *["red"] * 20, *(f"shade {i}" for i in range(24)))
        killer.join()
        assert all(r.reward == 1.0 for r in last[:20])
        left_out = [r for r in last if r.reward is None]
        assert 0 < len(left_out) <= 21 and {str(r.score_status) for r in left_out} == {"unscorable"}
        assert all(r.score_detail.startswith("the judge gave no verdict: ") for r in left_out)
        assert scorer.judge_metrics["judge/failures"] == len(left_out)
        assert verdicts(cache) == known + 24 - len(left_out)

        # And stays away: the run goes on until too large a share of it cannot be scored.
        assert score(scorer, "red", "crimson")[1].reward == first[1].reward
        with pytest.raises(ScoringStopped, match=r"could not be scored.*\n.*the judge gave no verdict"):
            score(scorer, *(f"tone {i}" for i in range(80)))
