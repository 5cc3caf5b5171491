"""Packages in the sandbox: those of the list and no others, read-only, and the walls stand as they did."""

import importlib.util
import json
import socket
from pathlib import Path

import pytest

from rewards.sandbox import launch, probe
from rewards.sandbox.launch import Limits, SandboxError, run
from rewards.sandbox.packages import PACKAGES, package_files
from rewards.workers.preflight import setting_problem

LIMITS = Limits(wall_s=40.0, cpu_s=20)
SITE = Path(package_files()["numpy"]).parent


def inside(program: str, *given: object, unsafe: bool = False) -> object:
    """What the program prints, as JSON; it may import packages."""
    ended = run(program.encode(), json.dumps(given).encode(), LIMITS, unsafe, packages=True)
    assert (ended.how, ended.status) == ("exit", 0), ended
    return json.loads(ended.stdout)


@pytest.mark.parametrize("unsafe", [False, True])
def test_numpy_and_sorted_containers(unsafe: bool) -> None:
    program = """
import numpy as np
from sortedcontainers import SortedList
rows = np.arange(90_000.0).reshape(300, 300) / 1e5 + np.eye(300)
print([int(np.linalg.det(rows) > 0), (rows @ rows).shape[0], SortedList([3, 1, 2])[0]])
"""
    assert inside(program, unsafe=unsafe) == [1, 300, 1]


def test_what_is_installed_of_the_list_is_there() -> None:
    there = [name for name in PACKAGES if importlib.util.find_spec(name)]
    assert {"numpy", "sortedcontainers", "sympy", "networkx"} <= set(there), "the requirements have them"
    found = inside("import json, os; print(json.dumps(sorted(os.listdir('/packages'))))")
    assert found == sorted(package_files()) and set(there) <= set(found)  # type: ignore[call-overload]


@pytest.mark.slow
def test_each_of_them_can_be_imported() -> None:
    for name in (name for name in PACKAGES if name in package_files()):
        assert inside(f"import {name}; print('1')") == 1, name


def test_other_packages_are_out_of_sight() -> None:
    look = """
import importlib, json, os, sys
paths, names = json.loads(sys.stdin.read())
found = [path for path in paths if os.path.exists(path)]
for name in names:
    try:
        importlib.import_module(name)
        found.append(name)
    except ImportError:
        pass
print(json.dumps(found))
"""
    others = [path for path in (SITE / "torch", SITE / "pytest", SITE / "datasets", SITE) if path.exists()]
    assert len(others) >= 3
    names = ["torch", "pytest", "datasets", "pip", "rewards", "sapo_vl"]
    paths = [*map(str, others), "/etc/passwd", __file__, "/packages/torch"]
    assert inside(look, paths, names) == []
    assert str(SITE / "torch") in inside(look, paths, [], unsafe=True)  # type: ignore[operator]


def test_they_are_read_only_and_the_network_stays_away() -> None:
    program = """
import errno, json, os, socket, sys
found = []
for path in ("/packages/numpy/planted.py", "/packages/planted.py", "/packages/numpy/__init__.py"):
    try:
        open(path, "a")
        found.append(path)
    except OSError:
        pass
import numpy
try:
    socket.create_connection(("127.0.0.1", json.loads(sys.stdin.read())[0]), 1)
    found.append("network")
except OSError as error:
    assert error.errno == errno.ECONNREFUSED
print(json.dumps([found, sorted(os.environ)]))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found, variables = inside(program, server.getsockname()[1])  # type: ignore[misc]
    assert found == [] and set(variables) <= {"PWD", "LC_CTYPE", "PYTHONHASHSEED", "OPENBLAS_NUM_THREADS"}
    assert not (SITE / "numpy/planted.py").exists()


def test_without_them_the_sandbox_is_as_it_was() -> None:
    program = b"import os; print(os.path.exists('/packages'), 'OPENBLAS_NUM_THREADS' in os.environ)"
    assert run(program, b"", LIMITS).stdout == b"False False\n"
    ended = run(b"import numpy", b"", LIMITS)
    assert ended.status == 1 and "No module named 'numpy'" in ended.errors


def test_numpy_that_cannot_be_had_is_found_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert setting_problem("code", {"packages": True}, timeout_s=10.0) == ""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy/__init__.py").write_text("raise ImportError('half installed')")
    for module in (probe, launch):
        monkeypatch.setattr(module, "package_files", lambda: {"numpy": str(tmp_path / "numpy")})
    probe.probe_packages.cache_clear()
    with pytest.raises(SandboxError, match=r"numpy cannot be imported in the sandbox .*half installed.*memory_mb of"):
        probe.probe_packages(512)
    monkeypatch.setattr(probe, "package_files", dict)
    probe.probe_packages.cache_clear()
    assert "numpy is not installed" in setting_problem("code", {"packages": True}, timeout_s=10.0)
    probe.probe_packages.cache_clear()
