"""What every benchmark keeps: ids, rules, groups and prompts, on the local set of each."""

import json
from pathlib import Path

import pytest
from benchmark_helpers import opened, said, scored
from benchmark_sets import SETS

from sapo_vl.benchmarks import BENCHMARKS
from sapo_vl.benchmarks.base import GROUPS


def test_names() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert name == benchmark.name and benchmark.k >= 1 and benchmark.columns and benchmark.licence
    assert SETS.keys() - {"refcoco"} <= BENCHMARKS.keys()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_local_set(name: str, tmp_path: Path) -> None:
    """Its problems can be written down and grouped, and the gold is worth 1 and nothing else 0."""
    problems = opened(name, tmp_path / "a").problems
    assert problems
    for problem in problems.values():
        assert problem.id.startswith((problem.task, name)) or name == "visual_puzzles"
        assert json.loads(json.dumps(problem.meta)) == problem.meta
        groups = problem.meta.get(GROUPS, {})
        assert all(isinstance(value, str) and value for value in groups.values())
        assert name == "visual_puzzles" or len(said(problem).splitlines()[-1]) > 40, "the instruction is last"
        assert scored(problem, "") == 0
        if problem.reward not in ("code", "box"):
            assert scored(problem, f"<answer>{problem.answer}</answer>") == 1
    again = opened(name, tmp_path / "b", only_good=True)
    assert not again.bad and not again.left_out and len(again.problems) == len(problems)
