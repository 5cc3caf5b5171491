"""What every benchmark keeps: ids, rules and prompts that exist."""

from rewards import REWARDS
from sapo_vl.benchmarks import BENCHMARKS, Row
from sapo_vl.images import read_image


def test_names() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert name == benchmark.name and benchmark.k >= 1 and benchmark.columns and benchmark.licence


def test_aime25() -> None:
    cells = {"problem_idx": 7, "problem": "How many?", "answer": "042"}
    (problem,) = BENCHMARKS["aime25"].problems(Row(index=0, cells=cells, image=read_image))
    assert (problem.id, problem.answer) == ("aime25-7", "42") and problem.reward in REWARDS
