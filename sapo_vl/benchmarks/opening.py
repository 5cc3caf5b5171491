"""The rows of a benchmark, from the hub or from a local copy."""

from __future__ import annotations

from pathlib import Path

from sapo_vl.benchmarks.base import Benchmark
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import Layout, Source, open_source


def open_benchmark(benchmark: Benchmark, source: str = "", split: str = "", config: str = "") -> Source:
    """Opens the data of `benchmark`; "" = what the benchmark says.

    Raises DataError: there is no such source, split, config or column. The message says what there is.
    """
    where, wanted = source or benchmark.source, config or benchmark.config
    layout = None
    if benchmark.files and wanted:
        if wanted in benchmark.files:
            layout = Layout(repo=benchmark.source, files=benchmark.files[wanted])
            wanted = None if Path(where).exists() else wanted  # a folder with other files has no such config
        elif where == benchmark.source:
            known = ", ".join(benchmark.files)
            raise DataError(f"benchmark {benchmark.name} has no config {wanted!r}; there are {known}")
    return open_source(
        where, split or benchmark.split, config=wanted, columns=benchmark.columns, layout=layout
    )  # fmt: skip
