"""Checks of the machine and of what is installed on it."""

from __future__ import annotations

import shutil
from importlib import metadata

import psutil
from packaging.requirements import Requirement

from rewards.base import RewardInput
from rewards.workers.custom import CustomSource
from rewards.workers.pool import RewardPool
from rewards.workers.worker import Job, Plan
from sapo_vl.doctor.base import Subject, Unfit
from sapo_vl.rollout.vllm.contract import VllmMissing, installed_version, load_contract

MIN_DISK_GIB = 5.0
MIN_MEMORY_GIB = 2.0
SETUP = "run `bash scripts/setup.sh` (add --gpu on a machine with NVIDIA GPUs)"
HANG = "def reward(x):\n    while x.text == 'hang':\n        pass\n    return RewardOutput(1.0)\n"


def versions(subject: Subject) -> str:
    """Every requirement of the package is installed in a version it allows; vLLM in one that is known."""
    wrong = []
    for line in metadata.requires("sapo-vl") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} is not {wanted.specifier}")
    if wrong:
        raise Unfit("; ".join(wrong), SETUP)
    try:
        load_contract()
        vllm = f"vLLM {installed_version()}"
    except VllmMissing as missing:
        vllm = f"no usable vLLM ({missing})"
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "deepspeed"))
    return f"{packages}, {vllm}"


def resources(subject: Subject) -> str:
    """Room for checkpoints and for the models of the checks."""
    disk = shutil.disk_usage(subject.scratch).free / 2**30
    memory = psutil.virtual_memory().available / 2**30
    if disk < MIN_DISK_GIB:
        raise Unfit(f"{disk:.1f} GiB free under {subject.scratch}", "free disk space, or set TMPDIR to a larger disk")
    if memory < MIN_MEMORY_GIB:
        raise Unfit(f"{memory:.1f} GiB of memory available", "close other programs; a tiny run needs about 2 GiB")
    return f"{disk:.0f} GiB of disk and {memory:.1f} GiB of memory free"


def rewards(subject: Subject) -> str:
    """A reward that never returns is killed at its time limit, and the next response is scored."""
    code = "from rewards import RewardOutput\n\n\n" + HANG
    plan = Plan({"probe": 1.0}, {}, 1.0, CustomSource("probe", str(subject.scratch / "hang.py"), "reward", code))
    jobs = [Job("probe", RewardInput(text=text, num_tokens=1, max_tokens=1, finish="stop")) for text in ("hang", "ok")]
    with RewardPool(plan, workers=1) as pool:
        hung, scored = pool.run(jobs)
    if (hung.status, scored.status) != ("timeout", "scored"):
        raise Unfit(
            f"a reward that hangs ended as {hung.status!r} and the next response as {scored.status!r}",
            "see whether this machine lets a process start and kill its children",
        )
    return "a hanging reward was killed, the next response scored"
