"""The files of `sapo-vl launch`: what their real readers make of them, with names that have to be quoted."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sapo_vl.commands.cli import main
from sapo_vl.config import load_config

ODD = """a b's "c" $HOME `d` \\e"""  # for a shell, for YAML, for both
ENGINE = ("rollout.engine=vllm",)
SHIPPED = Path(__file__).parents[2] / "configs"
SERVERS = ("rollout.engine=vllm_server", "rollout.server.allow_remote=true")
AGENT = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$SEEN/argv"
env >"$SEEN/env"
if [[ -n ${STOPS-} ]]; then printf '{\\n  "status": %s\\n}\\n' "$STOPS" >"$RUN/.stopped.json"; exit 1; fi
if [[ -n ${WAITS-} ]]; then
    trap 'printf "{\\n  \\"status\\": 75\\n}\\n" >"$RUN/.stopped.json"; exit 1' TERM
    touch "$SEEN/ready"
    while :; do sleep 0.05; done
fi
exit "${ENDS-0}"
"""


@pytest.fixture(autouse=True)
def no_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUT_DIR", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "Our Run_7.yaml"
    settings = {
        "model": {"path": f"/models/{ODD}"},
        "data": {"path": f"/data/{ODD}"},
        "rollout": {"prompts_per_step": 48},
        "checkpoint": {"grace_s": 100.5},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def launch(config: Path, to: str, out: Path | str, *more: str) -> dict[str, str]:
    folder = config.parent / ODD.replace("/", "") / to
    words = ["--to", to, "--config", str(config), "--out", str(out), "--write", str(folder), "--nodes", "3"]
    assert main(["launch", *words, "--gpus", "4", *more]) == 0
    return {p.name: p.read_text() for p in folder.iterdir()}


def run_node(config: Path, out: Path, **env: str) -> tuple[int, list[str], dict[str, str]]:
    """node.sh with a Python that writes down what it was given: (status, arguments, environment)."""
    seen = config.parent / "seen"
    seen.mkdir(exist_ok=True)
    fake = seen / "python3"
    fake.write_text(AGENT)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    script = config.parent / ODD / "shell" / "node.sh"
    around = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "HF_HOME", "MASTER_PORT", "RUN_ID")}
    around |= {"PATH": f"{seen}:{os.environ['PATH']}", "SEEN": str(seen), "RUN": str(out), "MASTER_ADDR": "first"}
    process = subprocess.Popen(["bash", str(script)], env=around | env)
    if "WAITS" in env:
        while not (seen / "ready").exists():
            assert process.poll() is None
            os.sched_yield()
        process.terminate()
    status = process.wait(60)
    lines = (seen / "env").read_text().splitlines()
    return status, (seen / "argv").read_text().splitlines(), dict(x.split("=", 1) for x in lines if "=" in x)


def test_the_shell_starts_what_was_asked_for(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "disk" / ODD
    (tmp_path / "activate it's").write_text("export SOURCED=yes\n")
    files = launch(config, "shell", out, "--source", str(tmp_path / "activate it's"), "--max-restarts", "5")
    assert files.keys() == {"node.sh", "config.yaml"}
    (run_id,) = re.findall(r"RUN_ID:-(our-run-7-[0-9a-f]{8})", files["node.sh"])
    for rank, is_host in (("0", "true"), ("2", "false")):
        status, argv, env = run_node(config, out, NODE_RANK=rank)
        assert status == 0
        written = tmp_path / ODD / "shell" / "config.yaml"
        wanted = [
            *("-m", "sapo_vl.machines.agent", "--gone-s", "130"),
            *("--nnodes", "3", "--nproc_per_node", "4", "--rdzv_backend", "c10d", "--rdzv_endpoint", "first:29500"),
            *("--rdzv_id", run_id, "--rdzv_conf", f"is_host={is_host}", "--max-restarts", "5"),
            *("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT", "--shutdown-timeout", "131"),
            *("-m", "sapo_vl", "train", "--config", str(written), "--out", str(out)),
        ]
        assert argv == wanted
        assert load_config(written) == load_config(config), "the config as it was resolved"
        assert env["SOURCED"] == "yes" and env["HF_HOME"] == str(tmp_path / "disk" / "hf")
        assert env["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 4))
    _, argv, env = run_node(config, out, NODE_RANK="1", MASTER_PORT="7", RUN_ID="mine", OMP_NUM_THREADS="9")
    assert "first:7" in argv and "mine" in argv and env["OMP_NUM_THREADS"] == "9"


def test_the_exit_status_says_what_a_scheduler_has_to_know(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch(config, "shell", out)
    assert run_node(config, out, NODE_RANK="0", STOPS="75")[0] == 75
    assert run_node(config, out, NODE_RANK="0", STOPS="76")[0] == 76
    assert run_node(config, out, NODE_RANK="0", ENDS="1")[0] == 1, "what an earlier run has left says nothing"
    assert run_node(config, out, NODE_RANK="0", WAITS="1")[0] == 75, "SIGTERM is passed on, and its end waited for"
    without = {k: v for k, v in os.environ.items() if k not in ("NODE_RANK", "MASTER_ADDR")}
    script = tmp_path / ODD / "shell" / "node.sh"
    asked = subprocess.run(["bash", str(script)], env=without, capture_output=True, text=True, check=False)
    assert asked.returncode != 0 and "0 on the first machine" in asked.stderr


def directives(text: str) -> dict[str, str]:
    """Those of sbatch: the lines before the first command."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line.removeprefix("#SBATCH "))
            name, _, value = word.partition("=")
            assert name.startswith("--") and name not in found
            found[name] = value
        elif line and not line.startswith("#"):
            break
    assert len(found) == text.count("#SBATCH ")
    return found


def test_slurm(config: Path, tmp_path: Path) -> None:
    urls = ("rollout.server.urls=[http://node-9:8000, http://node-8:8001]", "rollout.vllm.tensor_parallel=2")
    limits = ("--time", "1-12", "--partition", "big", "--account", "us")
    files = launch(config, "slurm", f"/disk/{ODD}", *SERVERS, *urls, *limits)
    assert files.keys() == {"node.sh", "config.yaml", "train.sbatch", "serve_0.sbatch", "serve_1.sbatch"}
    for name in files.keys() - {"config.yaml"}:
        subprocess.run(["bash", "-n"], input=files[name], text=True, check=True)
    assert directives(files["train.sbatch"]) == {
        "--job-name": "our-run-7", "--nodes": "3", "--ntasks-per-node": "1", "--gpus-per-node": "4", "--exclusive": "",
        "--mem": "0",
        "--time": "1-12", "--requeue": "", "--open-mode": "append", "--output": "our-run-7-%j.log",
        "--signal": "USR1@161", "--partition": "big", "--account": "us",
    }  # fmt: skip
    server = directives(files["serve_1.sbatch"])
    assert (server["--nodelist"], server["--gpus-per-node"], server["--nodes"]) == ("node-8", "2", "1")
    assert (server["--exclusive"], server["--mem"]) == ("", "0"), "one CPU and a site's default memory are too little"
    assert "--host node-8 --port 8001" in files["serve_1.sbatch"]
    shared = ("rollout.server.urls=[http://node-9:8000, http://node-9:8001]", "rollout.vllm.tensor_parallel=2")
    server = directives(launch(config, "slurm", f"/disk/{ODD}", *SERVERS, *shared, *limits)["serve_1.sbatch"])
    assert server["--cpus-per-task"] == "8" and "--exclusive" not in server
    launch(config, "slurm", f"/disk/{ODD}", *SERVERS, *urls, *limits)

    # With what SLURM has played by a shell: two tasks, the second of which was told to stop.
    fake = tmp_path / "slurm"
    fake.mkdir()
    (fake / "scontrol").write_text('#!/bin/sh\n[ "$1" = show ] && printf "n1\\nn2\\n"; echo "$@" >>"$SEEN/scontrol"\n')
    (fake / "srun").write_text('#!/bin/sh\nshift\nexport SLURM_NODEID=1\n"$@"\n')
    for program in fake.iterdir():
        program.chmod(0o755)
    node = tmp_path / ODD / "slurm" / "node.sh"
    node.write_text('echo "$NODE_RANK $MASTER_ADDR $MASTER_PORT $RUN_ID" >"$SEEN/node"; exit 75\n')
    env = os.environ | {"PATH": f"{fake}:{os.environ['PATH']}", "SEEN": str(tmp_path)}
    env |= {"SLURM_JOB_ID": "12034", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert subprocess.run(["bash"], input=files["train.sbatch"], text=True, env=env, check=False).returncode == 75
    assert (tmp_path / "node").read_text() == "1 n1 29534 our-run-7-12034\n"
    assert "requeue 12034" in (tmp_path / "scontrol").read_text()


DISK = ("--image", "ghcr.io/us/sapo:1", "--volume", "disk", "--mount", f"/mnt/{ODD}")


def test_kubernetes(config: Path, tmp_path: Path) -> None:
    urls = ("rollout.server.urls=[http://rollouts:8000]",)
    out = f"/mnt/{ODD}/run"
    files = launch(config, "kubernetes", out, *SERVERS, *urls, *DISK)
    assert files.keys() == {"job.yaml"}
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(files["job.yaml"]))
    kinds = [d["kind"] for d in documents]
    assert kinds == ["ConfigMap", "Service", "Job", "Service", "Deployment"]
    data, names, job, server_name, server = documents

    texts = data["data"]
    subprocess.run(["bash", "-n"], input=texts["node.sh"], text=True, check=True)
    assert "config=/launch/config.yaml" in texts["node.sh"] and f"out={shlex.quote(out)}" in texts["node.sh"]
    written = tmp_path / "written.yaml"
    written.write_text(texts["config.yaml"])
    assert load_config(written) == load_config(config, [*SERVERS, *urls])

    assert names["spec"]["clusterIP"] == "None" and names["spec"]["publishNotReadyAddresses"] is True
    assert names["spec"]["selector"] == {"job-name": "our-run-7"}
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == names["metadata"]["name"] and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 161
    (container,) = pod["containers"]
    assert container["name"] == spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    assert container["env"][0] == {"name": "MASTER_ADDR", "value": "our-run-7-0.our-run-7"}
    assert all(isinstance(entry["value"], str) for entry in container["env"])
    assert container["command"][2] == "NODE_RANK=$JOB_COMPLETION_INDEX exec bash /launch/node.sh"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert {v["name"] for v in pod["volumes"]} == {v["name"] for v in container["volumeMounts"]}
    assert pod["volumes"][0]["configMap"]["name"] == data["metadata"]["name"]
    assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == "disk"
    assert container["volumeMounts"][1]["mountPath"] == f"/mnt/{ODD}"

    assert server_name["metadata"]["name"] == "rollouts" and server_name["spec"]["ports"] == [{"port": 8000}]
    labels = server["spec"]["template"]["metadata"]["labels"]
    assert labels == server_name["spec"]["selector"] == server["spec"]["selector"]["matchLabels"]
    # Else a server named vllm would put VLLM_PORT=tcp://IP:8000 into every pod.
    for pods in (d["spec"]["template"]["spec"] for d in (job, server)):
        assert pods["enableServiceLinks"] is False
    (serving,) = server["spec"]["template"]["spec"]["containers"]
    wanted = ["sapo-vl", "serve", "--config", "/launch/config.yaml", "--host", "0.0.0.0", "--port", "8000"]
    assert serving["command"] == wanted


def test_skypilot(config: Path, tmp_path: Path) -> None:
    urls = ("rollout.server.urls=[http://10.0.0.9:8000]",)
    files = launch(config, "skypilot", f"/mnt/{ODD}/run", *SERVERS, *urls, *DISK, "--accelerator", "B200")
    assert files.keys() == {"node.sh", "config.yaml", "train.yaml", "serve_0.yaml"}
    task, server = yaml.safe_load(files["train.yaml"]), yaml.safe_load(files["serve_0.yaml"])
    documented = {"name", "num_nodes", "resources", "volumes", "file_mounts", "run", "setup", "envs", "workdir"}
    assert task.keys() <= documented and server.keys() <= documented
    assert task["num_nodes"] == 3 and server["num_nodes"] == 1
    assert task["resources"] == {
        "accelerators": "B200:4", "image_id": "docker:ghcr.io/us/sapo:1", "network_tier": "best",
        "job_recovery": {"max_restarts_on_errors": 3, "recover_on_exit_codes": [75]},
    }  # fmt: skip
    assert task["volumes"] == server["volumes"] == {f"/mnt/{ODD}": "disk"}
    for mounted in (task["file_mounts"], server["file_mounts"]):
        assert all(Path(local).read_text() == files[Path(there).name] for there, local in mounted.items())
    (tmp_path / "node.sh").write_text('echo "$NODE_RANK $MASTER_ADDR $MASTER_PORT $RUN_ID"\n')
    run = task["run"].replace("/launch/node.sh", str(tmp_path / "node.sh"))
    env = {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_TASK_ID": "t-7", "SKYPILOT_NODE_IPS": "10.0.0.3\n10.0.0.4"}
    ran = subprocess.run(["bash", "-c", run], env=os.environ | env, capture_output=True, text=True, check=True)
    assert ran.stdout == "2 10.0.0.3 29500 t-7\n"
    subprocess.run(["bash", "-n"], input=server["run"], text=True, check=True)
    assert shlex.split(server["run"].splitlines()[-1])[-4:] == ["--host", "10.0.0.9", "--port", "8000"]


@pytest.mark.parametrize("tensor_parallel", [1, 4, 8, 16, 32])
def test_an_engine_may_span_whole_machines(tmp_path: Path, tensor_parallel: int) -> None:
    """The shipped config for the largest model has one on every two machines."""
    config = tmp_path / "large.yaml"
    config.write_text((SHIPPED / "qwen3_vl_235b_a22b.yaml").read_text())
    assert yaml.safe_load(config.read_text())["rollout"]["vllm"]["tensor_parallel"] == 16
    paths = ("model.path=/m", "data.path=/d", f"rollout.vllm.tensor_parallel={tensor_parallel}")
    assert "node.sh" in launch(config, "shell", "/run", "--nodes", "4", "--gpus", "8", *ENGINE, *paths)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("shell", "run"), "--out run is not absolute"),
        (("shell", "/run", "data.path=sets/a"), "data.path sets/a is not absolute"),
        (("shell", "/run", "model.path="), "model.path is empty"),
        (("shell", "/r\nun"), "cannot be printed"),
        (("shell", "/run", "rollout.prompts_per_step=40"), "must be a multiple of machines x ranks x mini-batches"),
        (("shell", "/run", "--nodes", "0"), "must be at least 1"),
        (("shell", "/run", "--name", "Our Run"), "small letters"),
        (("slurm", "/run", "--partition", "a b"), "--partition 'a b' has characters"),
        (("slurm", "/run", "--time", "soon"), "write it like 24:00:00"),
        (("slurm", "/run", *SERVERS, "rollout.server.urls=[http://127.0.0.1:8000]"), "another machine on each"),
        (("shell", "/run", *ENGINE, "rollout.vllm.tensor_parallel=3"), "=3: engines must be whole parts"),
        (("shell", "/run", *ENGINE, "rollout.vllm.tensor_parallel=8", "--nodes", "3"), "or whole machines of the 3"),
        (("shell", "/run", *ENGINE, "rollout.vllm.tensor_parallel=6"), "engines must be whole parts"),
        (("kubernetes", "/run", "--volume", "disk"), "--image is empty"),
        (("kubernetes", "/run", "--image", "i", "--volume", "d"), "is not under --mount /mnt/shared"),
        (("skypilot", "/mnt/shared/run"), "--volume is empty"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    to, out, *more = words
    folder = config.parent / "files"
    given = ["launch", "--to", to, "--config", str(config), "--out", out, "--write", str(folder), "--gpus", "4"]
    assert main([*given, *more]) == 2
    assert said in capsys.readouterr().err
    assert not folder.exists()
