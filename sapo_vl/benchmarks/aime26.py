"""AIME 2026: 30 competition problems with integer answers, asked and scored as AIME 2025.

Split and columns are those that several public loaders read.
"""

from __future__ import annotations

from sapo_vl.benchmarks.aime25 import aime
from sapo_vl.benchmarks.base import Benchmark

AIME26 = Benchmark(
    name="aime26",
    source="MathArena/aime_2026",
    split="train",
    licence="CC BY-NC-SA 4.0",
    columns=("problem_idx", "problem", "answer"),
    problems=aime("aime26"),
    k=32,
)
