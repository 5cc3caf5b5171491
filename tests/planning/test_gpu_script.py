"""bench/gpu.sh, tried on the CPU with tiny sizes: every part runs, and one that fails hides no other."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "bench/gpu.sh", "--device", "cpu", "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    parts = report["parts"]
    assert list(parts) == ["versions", "doctor", "layer_4b", "layer_30b", "head", "memory", "run"]
    assert report["ok"] and all(part["ok"] for part in parts.values())
    assert parts["versions"]["values"]["torch"]
    assert parts["doctor"]["values"]["failed"] == []
    for name in ("layer_4b", "layer_30b"):
        assert parts[name]["values"]["apart"]["gradient"] < 1e-4
        assert parts[name]["values"]["useful_flops"] > 0
    assert parts["memory"]["values"]["update"]["ratio"] > 0  # of a tiny model it says nothing
    assert (tmp_path / "run" / "final" / "config.json").exists()


def test_a_part_that_fails_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    gpu = importlib.import_module("gpu")

    def broken(device: str, out: Path) -> dict[str, object]:
        raise ValueError("no such kernel")

    def killed(device: str, out: Path) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    parts = {"versions": broken, "doctor": killed, "head": lambda device, out: {"said": f"on {device}"}}
    monkeypatch.setitem(sys.modules, "gpu_parts", types.SimpleNamespace(PARTS=parts))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(tmp_path), "--only", *parts])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert [found[name]["ok"] for name in parts] == [False, False, True]
    assert "ValueError: no such kernel" in found["versions"]["error"] and "exit status -9" in found["doctor"]["error"]
    assert found["head"]["values"] == {"said": "on cpu"}
    assert "FAILED" in capsys.readouterr().out
