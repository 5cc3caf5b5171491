"""Hostile responses through the worker processes that training uses: no crash, no hang, no file, no forged score."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hostile_corpus import CANARIES, FOLDER, Case, cases, job
from reward_helpers import worker_processes

from rewards import REWARDS, Unscorable
from rewards.workers.pool import RewardPool
from rewards.workers.worker import Job, Plan, Result

PLAN = Plan({"accuracy": 1.0}, {"code": {"cpu_s": 1}}, timeout_s=30.0)  # a second is all that an endless loop costs


def with_canaries(hostile: list[Case]) -> list[tuple[str, Job, float]]:
    """(what it is, the job, the right score): after hostile responses their reward's two canaries."""
    jobs, seen = [], Counter()
    for case in hostile:
        canary = CANARIES[case.reward]
        jobs.append((str(case), job(case.reward, case.text, case.gold, case.meta), case.score))
        seen[case.reward] += 1
        if seen[case.reward] % canary.every:
            continue
        for answer, score in ((canary.right, 1.0), (canary.wrong, 0.0)):
            text = f"<answer>{answer}</answer>"
            jobs.append((f"{text} after {case}", job(case.reward, text, canary.gold, canary.meta), score))
    return jobs


def workers() -> set[int]:
    return {process.pid for process in worker_processes()}


def test_the_corpus_covers_every_reward_that_compares_answers(tmp_path: Path):
    corpus = list(cases(tmp_path / "marker"))
    counts = Counter(case.reward for case in corpus)
    assert counts.keys() == CANARIES.keys() <= REWARDS.keys()
    assert min(counts.values()) >= 95 and counts["math"] >= 200 and counts.total() >= 1900
    for name in CANARIES:
        lines = (FOLDER / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
        assert len(lines) >= 35 and all(json.loads(line)["reward"] == name for line in lines)
        assert {0, 1} <= {case.score for case in corpus if case.reward == name}
    assert sum(len(case.text) >= 1_000_000 for case in corpus) >= 60
    assert sum(str(tmp_path) in case.text for case in corpus) >= 60


@pytest.mark.slow
def test_every_hostile_response_gets_its_score_and_changes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)  # relative paths of the workers end here too
    jobs = with_canaries(list(cases(tmp_path / "marker")))
    with RewardPool(PLAN, workers=2) as pool:
        pool.run([job("math", "", "5", {})])  # from here on the workers have all they need
        before = workers()
        results = []
        for start in range(0, len(jobs), 300):  # some texts have a megabyte
            results += pool.run([job for _, job, _ in jobs[start : start + 300]])
        assert workers() == before, "a worker died"
    wrong = [
        f"{what}: {result}"
        for (what, _, score), result in zip(jobs, results, strict=True)
        if result.status != "scored" or result.score != pytest.approx(score, rel=1e-12, abs=0)
    ]
    assert not wrong, f"{len(wrong)} of {len(jobs)}:\n" + "\n".join(wrong[:20])
    assert list(tmp_path.iterdir()) == [here] and not list(here.iterdir()), "a response wrote a file"


@pytest.mark.slow
def test_a_response_on_which_sympy_runs_out_of_time_costs_itself_only():
    sums = r"\sum_{k=1}^{n} k"
    endless = job("math", r"<answer>\sum_{k=1}^{10^{9}} \sin(k)</answer>", sums, {})
    right, wrong = (job("math", f"<answer>{a}</answer>", r"\frac{1}{2}", {}) for a in ("0.5", "0.4"))
    with RewardPool(Plan({"accuracy": 1.0}, {}, timeout_s=5.0), workers=2) as pool:
        results = pool.run([right, wrong, endless, right, wrong])
    assert [(r.status, r.score) for r in results] == [
        *(("scored", 1.0), ("scored", 0.0), ("timeout", None), ("scored", 1.0), ("scored", 0.0))
    ]


def test_importing_sympy_is_not_on_the_time_of_a_response():
    with RewardPool(Plan({"accuracy": 1.0}, {}, timeout_s=1.0), workers=1) as pool:
        assert pool.run([job("number", "<answer>5</answer>", "5", {})]) == [Result("scored", 1.0, {"accuracy": 1.0})]
        assert pool.run([job("math", "<answer>5</answer>", "5", {})]) == [Result("scored", 1.0, {"accuracy": 1.0})]


LIVE = """
import sympy
n, x = sympy.Symbol("n"), sympy.Symbol({name!r}, real=True)
try:
    {code}
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    "code", ["sympy.sympify(str(x))", "sympy.Sum(x**n / sympy.factorial(n), (n, 0, sympy.oo)).evalf()"]
)
def test_the_payloads_are_live(tmp_path: Path, code: str):
    """Handed to SymPy as they are they write the file: as text, and as the name of a symbol in a sum."""
    marker = tmp_path / "marker"
    name = f"__import__('pathlib').Path('{marker}').touch() or 5"
    subprocess.run([sys.executable, "-c", LIVE.format(name=name, code=code)], check=True, cwd=tmp_path)
    assert marker.exists()
    marker.unlink()
    series = r"\sum_{n=0}^{\infty} \frac{x^n}{n!}"
    for answer in (name, f"\\text{{{name}}}", series.replace("x", f"\\text{{{name}}}"), f"x_{{{name}}}"):
        for gold in ("5", series):
            with pytest.raises(Unscorable, match="cannot be compared"):
                REWARDS["math"](job("math", "<answer>5</answer>", answer, {}).input)
            assert REWARDS["math"](job("math", f"<answer>{answer}</answer>", gold, {}).input).score == 0
    assert not marker.exists()
