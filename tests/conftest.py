"""Settings every test runs under: no model hub, no network, one thread, and a seed that can be repeated."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

# Before the imports of torch and transformers below, which read some of these only once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
from hypothesis import core, settings

torch.set_num_threads(1)

# derandomize=False: where CI is set, hypothesis would run the same examples for ever; pytest_configure seeds it.
# deadline=None: first calls compile and load things, and machines are shared.
settings.register_profile("sapo_vl", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("sapo_vl")

LOCAL_HOSTS = ("localhost", "127.", "::1")


def refuse_remote(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: a connection from Python code to another machine is an error. Local servers are fine."""
    if event != "socket.connect":
        return
    address = args[1]  # (host, port, ...) for IP, a path for Unix sockets
    if isinstance(address, tuple) and not str(address[0]).startswith(LOCAL_HOSTS):
        raise RuntimeError(f"a test tried to connect to {address[0]}:{address[1]}; tests use no network")


sys.addaudithook(refuse_remote)


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "seed of the `seed` fixture and of hypothesis (default: from the code; -1: a fresh one)"
    parser.addoption("--seed", type=int, default=None, help=help)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = seed_of_the_code()
    elif config.option.seed < 0:
        config.option.seed = random.SystemRandom().randrange(2**31)
    core.global_force_seed = config.option.seed


def seed_of_the_code() -> int:
    """Committed code is tested on inputs of its own, and the same code on the same ones wherever it is tested."""
    folders = [f"HEAD:{name}" for name in ("sapo_vl", "rewards", "data_recipes", "tests")]
    command = ["git", "-C", str(Path(__file__).parent.parent), "rev-parse", *folders]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return random.SystemRandom().randrange(2**31)
    return int(hashlib.blake2b(found.stdout.encode(), digest_size=4).hexdigest(), 16) >> 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests are slow come first: where files run side by side, none of them is left alone at the end."""
    slow: dict[Path, list[bool]] = {}
    for item in items:
        slow.setdefault(item.path, []).append(item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -sum(slow[item.path]) / len(slow[item.path]))  # stable: files stay whole


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This run's seed, with torch, numpy and random seeded by it. The same in every test of a run."""
    value = int(request.config.option.seed)
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
    return value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and "seed" in getattr(item, "fixturenames", ()):
        report.sections.append(("seed", f"repeat with: pytest --seed {item.config.option.seed} '{item.nodeid}'"))
    return report
