"""The files that start one training on several machines: `sapo-vl launch`.

Every target runs the same script on each machine, node.sh, and gives it the same four variables (NODE_RANK,
MASTER_ADDR, MASTER_PORT, RUN_ID); what differs is who starts it and who starts it again. Values reach a shell quoted
for a shell and YAML quoted for YAML.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2

from sapo_vl.config import RunConfig
from sapo_vl.rollout.vllm.config import is_loopback

END_S = 60  # that a machine has to end in, beyond checkpoint.grace_s
IN_JOB = "/launch"  # where kubernetes and skypilot put node.sh and config.yaml
NAME = re.compile(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?")  # of a job, a service, a host: a label of DNS
WORD = re.compile(r"[\w.,:/@+-]+")  # what stands in a directive of SLURM, or names an image, a volume, a GPU


class LaunchError(ValueError):
    """Files that would start nothing that can run. Says what to give instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What a run is started on."""

    nodes: int  # machines
    gpus: int  # of each, and ranks on each
    name: str  # of the job
    port: int = 29500  # of the rendezvous, on the first machine
    restarts: int = 3  # torchrun's --max-restarts
    source: str = ""  # a file that each machine sources first, such as an environment's activate
    hf_home: str = ""  # "" = hf beside the run folder
    time: str = "24:00:00"  # SLURM's limit
    partition: str = ""
    account: str = ""
    image: str = ""  # of the containers
    volume: str = ""  # the shared disk: a claim of kubernetes, a volume of SkyPilot
    mount: str = "/mnt/shared"  # where it is mounted
    accelerator: str = "H200"  # SkyPilot's name of a GPU


@dataclass(frozen=True, slots=True)
class Server:
    """Where a vLLM server of the run listens."""

    index: int
    host: str
    port: int


def launch_files(to: str, config: RunConfig, config_text: str, out: str, folder: Path, m: Machines) -> dict[str, str]:
    """File name -> text. `config_text` is the config as a file; `folder` is where the files will lie.

    Raises LaunchError for what cannot run.
    """
    folder = folder.resolve()
    _check(to, config, out, folder, m)
    in_job = to in ("kubernetes", "skypilot")
    grace = math.ceil(config.checkpoint.grace_s)
    values: dict[str, Any] = {
        "m": m,
        "out": out,
        "config": f"{IN_JOB}/config.yaml" if in_job else str(folder / "config.yaml"),
        "node": f"{IN_JOB}/node.sh" if in_job else str(folder / "node.sh"),
        "folder": str(folder),
        "run_id": f"{m.name}-{uuid.uuid4().hex[:8]}",
        "hf_home": m.hf_home or str(Path(out).parent / "hf"),
        "shutdown_s": grace + END_S // 2,
        "end_s": grace + END_S,
        "gone_s": math.ceil(2 * config.checkpoint.silent_s) + 10,
        "tensor_parallel": config.rollout.vllm.tensor_parallel,
        "servers": (servers := _servers(config)),
        "config_text": config_text,
    }
    node = _render("node.sh.j2", values)
    if to == "kubernetes":
        return {"job.yaml": _render("job.yaml.j2", values | {"node_text": node})}
    files = {"node.sh": node, "config.yaml": config_text}
    if to == "slurm":
        files["train.sbatch"] = _render("train.sbatch.j2", values)
    if to == "skypilot":
        files["train.yaml"] = _render("train.yaml.j2", values)
    template, ending = {"slurm": ("serve.sbatch.j2", "sbatch"), "skypilot": ("serve.yaml.j2", "yaml")}.get(
        to, ("serve.sh.j2", "sh")
    )
    for server in servers:
        alone = [other.host for other in servers].count(server.host) == 1
        files[f"serve_{server.index}.{ending}"] = _render(template, values | {"server": server, "alone": alone})
    return files


def how_to_start(to: str, folder: Path, files: dict[str, str], m: Machines) -> str:
    """What to type, for a person."""
    lines = [f"wrote {folder}: {', '.join(files)}"]
    start: Callable[[str], str] = {
        "shell": lambda file: f"bash {shlex.quote(str(folder / file))}",
        "slurm": lambda file: f"sbatch {shlex.quote(str(folder / file))}",
        "kubernetes": lambda file: f"kubectl apply -f {shlex.quote(str(folder / file))}",
        "skypilot": lambda file: f"sky jobs launch {shlex.quote(str(folder / file))}",
    }[to]
    lines += [f"start first: {start(file)}" for file in files if file.startswith("serve_")]
    if to == "shell":
        lines.append(f"on machine i of 0..{m.nodes - 1}: NODE_RANK=i MASTER_ADDR=FIRST_MACHINE {start('node.sh')}")
    else:
        first = {"slurm": "train.sbatch", "kubernetes": "job.yaml", "skypilot": "train.yaml"}[to]
        lines.append(start(first))
    return "\n".join(lines)


def _servers(config: RunConfig) -> list[Server]:
    if config.rollout.engine != "vllm_server":
        return []
    parts = map(urlsplit, config.rollout.server.urls)
    return [Server(i, url.hostname or "", url.port or 0) for i, url in enumerate(parts)]


def _check(to: str, config: RunConfig, out: str, folder: Path, m: Machines) -> None:
    faults = [text for wrong, text in _faults(to, config, out, folder, m) if wrong]
    if faults:
        raise LaunchError("; ".join(faults))


def _faults(to: str, config: RunConfig, out: str, folder: Path, m: Machines) -> list[tuple[bool, str]]:
    """(whether it holds, what to say)."""
    per_step, minis, ranks = config.rollout.prompts_per_step, config.batch.mini_batches, m.nodes * m.gpus
    on_all = "; every machine must see it under one absolute path"
    shared = to in ("kubernetes", "skypilot")
    found = [
        (m.nodes < 1 or m.gpus < 1, f"--nodes {m.nodes} --gpus {m.gpus}: both must be at least 1"),
        (not NAME.fullmatch(m.name), f"--name {m.name!r}: small letters, digits and -, at most 42, a letter first"),
        (not 1 <= m.port <= 65535, f"--port {m.port} is no port"),
        (m.restarts < 0, f"--max-restarts {m.restarts} is below 0"),
        (not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", m.time), f"--time {m.time!r}: write it like 24:00:00 or 2-00"),
        (not config.model.path, "model.path is empty; `sapo-vl run --prepare` makes a config that names what it made"),
        (not config.data.path, "data.path is empty; build a data set, or take the config of `sapo-vl run --prepare`"),
        (
            ranks > 0 and per_step % (ranks * minis) != 0,
            f"rollout.prompts_per_step={per_step} must be a multiple of machines x ranks x mini-batches = {m.nodes} x "
            f"{m.gpus} x {minis}",
        ),
        (
            config.rollout.engine == "vllm" and not _fits(config.rollout.vllm.tensor_parallel, m),
            f"rollout.vllm.tensor_parallel={config.rollout.vllm.tensor_parallel}: engines must be whole parts of "
            f"a machine's {m.gpus} GPUs, or whole machines of the {m.nodes}",
        ),
        (
            shared and not (m.image or to == "skypilot"),
            "--image is empty: name one in which `sapo-vl` is installed",
        ),
        (shared and not m.volume, "--volume is empty: name the shared disk that has model, data and run folder"),
        (
            shared and not Path(out).is_relative_to(m.mount),
            f"--out {out} is not under --mount {m.mount}, where the shared disk will be",
        ),
    ]
    for key, path in (
        ("--out", out), ("data.path", config.data.path), ("--source", m.source), ("--hf-home", m.hf_home),
        ("--mount", m.mount), ("rollout.server.sync_dir", config.rollout.server.sync_dir),
    ):  # fmt: skip
        found.append((bool(path) and not Path(path).is_absolute(), f"{key} {path} is not absolute{on_all}"))
    local = config.model.path and not Path(config.model.path).is_absolute() and Path(config.model.path).exists()
    found.append((bool(local), f"model.path {config.model.path} is not absolute{on_all}"))
    for key, text in (("--out", out), ("--write", str(folder)), ("--source", m.source), ("--hf-home", m.hf_home)):
        found.append((not text.isprintable(), f"{key} {text!r} has characters that cannot be printed"))
    for key in ("partition", "account", "image", "volume", "accelerator"):
        value = getattr(m, key)
        found.append((bool(value) and not WORD.fullmatch(value), f"--{key} {value!r} has characters that none has"))
    if config.rollout.engine == "vllm_server":
        found += _server_faults(to, config, m)
    return found


def _fits(tensor_parallel: int, m: Machines) -> bool:
    """Whether engines of so many ranks are whole parts of a machine, or made of whole machines."""
    if m.gpus < 1 or m.nodes < 1:
        return True  # which is told of by itself
    return m.gpus % tensor_parallel == 0 or (tensor_parallel % m.gpus == 0 and m.nodes * m.gpus % tensor_parallel == 0)


def _server_faults(to: str, config: RunConfig, m: Machines) -> list[tuple[bool, str]]:
    found: list[tuple[bool, str]] = []
    for server in _servers(config):
        here = is_loopback(server.host)
        found += [
            (
                here and (m.nodes > 1 or to != "shell"),
                f"rollout.server.urls: {server.host} is another machine on each of them; name the server's host",
            ),
            (
                to == "kubernetes" and not here and not NAME.fullmatch(server.host),
                f"rollout.server.urls: {server.host} will be the name of a Service; small letters, digits and -",
            ),
        ]
    return found


def _render(template: str, values: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sapo_vl.machines"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["yaml"] = lambda value: json.dumps(str(value))  # JSON is YAML
    return environment.get_template(template).render(values)
