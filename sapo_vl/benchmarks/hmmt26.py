"""HMMT February 2026: 33 competition problems with answers in LaTeX, asked and scored as HMMT February 2025.

Split and columns are those that several public loaders read. Its golds under the reward "math" were not checked.
"""

from __future__ import annotations

from sapo_vl.benchmarks.base import Benchmark
from sapo_vl.benchmarks.hmmt25 import hmmt

HMMT26 = Benchmark(
    name="hmmt26",
    source="MathArena/hmmt_feb_2026",
    split="train",
    licence="CC BY-NC-SA 4.0",
    columns=("problem_idx", "problem", "answer"),
    problems=hmmt("hmmt26"),
    k=16,
)
