"""Benchmarks. To add one: write a file beside this one, add a row here."""

from sapo_vl.benchmarks.aime25 import AIME25
from sapo_vl.benchmarks.base import Benchmark, ItemScores, LeftOut, Row

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (AIME25,)}

__all__ = ["BENCHMARKS", "Benchmark", "ItemScores", "LeftOut", "Row"]
