"""Runs tests/model/test_stock_folders.py and prints what passed as a table, with the CPU seconds of each run.

python tests/support/stock_table.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from helpers_launch import ROOT, environment
from stock_odd import BROKEN

os.environ["STOCK_RUNS"] = "all"  # before the plan is made, here and in the tests
from stock_runs import FOLDERS, PLAN

TESTS = ROOT / "tests" / "model" / "test_stock_folders.py"


def outcomes(report: Path) -> dict[str, bool]:
    """Test, as "name[parameter]" -> whether it passed."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {case.attrib["name"]: not (case.findall("failure") + case.findall("error")) for case in cases}


def cell(name: str, passed: Mapping[str, bool], out: Path) -> str:
    run = PLAN[name]
    test = f"test_it_is_sampled_by_vllm[{run.folder}]" if run.vllm else f"test_it_trains_and_exports[{name}]"
    record = json.loads((out / name / "record.json").read_text())
    return f"{run.kind} {record['cpu_s']:.1f} s" if passed[test] else f"{run.kind} **failed**"


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        report, base = Path(scratch) / "report.xml", Path(scratch) / "base"
        command = ["-m", "pytest", "-q", str(TESTS), f"--junitxml={report}", f"--basetemp={base}"]
        command += ["-o", "tmp_path_retention_policy=all"]
        subprocess.run([sys.executable, *command], env=environment(), stdout=sys.stderr, check=False)
        passed = outcomes(report)
        (out,) = base.glob("stock0/out")
        print("| folder | what it is | preflight | two steps, export, read back |\n|---|---|---|---|")
        for name, folder in FOLDERS.items():
            cells = [cell(run, passed, out) for run in PLAN if PLAN[run].folder == name]
            known = "passed" if passed[f"test_preflight_lets_it_pass[{name}]"] else "**failed**"
            print(f"| {name} | {folder} | {known} | {', '.join(cells)} |")
        refused = sum(passed[f"test_preflight_refuses[{name}]"] for name in BROKEN)
        seconds = sum(json.loads(p.read_text()).get("cpu_s", 0.0) for p in out.glob("*/record.json"))
    right = sum(ok for name, ok in passed.items() if re.match(r"test_it_", name))
    print(
        f"\n{len(FOLDERS)} folders, {right} of {len(PLAN)} runs right ({seconds:.0f} CPU seconds); {refused} of "
        f"{len(BROKEN)} broken folders refused by name; {sum(passed.values())} of {len(passed)} tests passed"
    )
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
