"""The installed script, as its workers meet it."""

from __future__ import annotations

import json
import sysconfig
import tomllib
from pathlib import Path

from helpers_launch import run_python

ROOT = Path(__file__).parents[2]
WORKER = """
import json, runpy, sys
runpy.run_path(sys.argv[1], run_name="__mp_main__")  # what multiprocessing does in a process that it spawns
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_a_worker_of_the_installed_script_loads_no_library_for_its_sake(tmp_path: Path) -> None:
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["sapo-vl"]
    module, _, function = target.partition(":")
    script = tmp_path / "sapo-vl"
    script.write_text(
        f"import sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
    )
    ended = run_python("-c", WORKER, script, fresh=True)
    loaded = set(json.loads(ended.stdout.splitlines()[-1]))
    assert "sapo_vl" in loaded and not loaded & {"torch", "transformers", "datasets", "pandas", "numpy"}


def test_the_script_that_is_installed_is_the_one_of_this_tree() -> None:
    installed = Path(sysconfig.get_path("scripts"), "sapo-vl").read_text()
    assert "from sapo_vl.commands.entry import main" in installed, "bash scripts/setup.sh"
    ended = run_python(
        "-c", "from sapo_vl.commands.entry import main; import sys; sys.exit(main())", "--help", fresh=True
    )
    assert "reward" in ended.stdout
