"""From the name of a benchmark to the benchmark: one of ours, or one in a file of the user's."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from sapo_vl.benchmarks import BENCHMARKS, RENAMED, Benchmark
from sapo_vl.evaluation.errors import EvaluationError

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a benchmark, whose results get a folder of that name


def find_benchmark(spec: str) -> Benchmark:
    """The benchmark `spec`: a key of BENCHMARKS, or "path/to/my_bench.py:NAME", a file whose top level is run here.

    Modules beside the file can be imported from it. Raises EvaluationError if there is no such benchmark; what the
    file itself raises is named with it.
    """
    if ".py:" not in spec:
        if spec in RENAMED:
            raise EvaluationError(f"no benchmark {spec!r} any more: {RENAMED[spec]}")
        if spec not in BENCHMARKS:
            raise EvaluationError(
                f"no benchmark {spec!r}; there are {', '.join(sorted(BENCHMARKS))}, and yours: path/to/my_bench.py:NAME"
            )
        return BENCHMARKS[spec]
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text).expanduser().absolute()
    found = vars(_load(path)).get(name)
    if not isinstance(found, Benchmark):
        raise EvaluationError(
            f"{path} has no benchmark {name!r}; write NAME = Benchmark(...) there (from sapo_vl.benchmarks import "
            "Benchmark) and give its name after the colon"
        )
    if not _FILE_NAME.fullmatch(found.name) or found.name in BENCHMARKS:
        raise EvaluationError(
            f"{path}: the benchmark's name {found.name!r} must be letters, digits, '_', '-' or '.', and not one of ours"
        )
    return found


def _load(path: Path) -> object:
    if not path.is_file():
        raise EvaluationError(f"there is no file {path}; a relative path starts at {Path.cwd()}")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    name = f"user_benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise EvaluationError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
