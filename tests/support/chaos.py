"""Kills runs, starts them again with the same command, and compares them with runs that nothing happened to.

    chaos.py FOLDER [--seeds 0,1] [--minutes 30] [--plan PLAN.json]

A run is a fork of this process for each rank, which has the libraries loaded, so that one takes seconds. Without a plan
settings and kills are drawn at random until the time is over. With one, a list of [SETTING, [KILL, ...]], those are
done. Each line of FOLDER/results.jsonl is what became of one of them; a table is printed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos_points import FILE, POINTS, Kill, arm

# What depends on the machine, and checks of an engine, which are due when it is new.
CLOCK = ("time", "seconds", "tokens_per_s", "wall_s", "peak_memory", "versions", "parity")
LIMIT_S = 300.0
ROWS = {"n_cold_start": 8, "n_train": 24, "n_test": 3, "image_size": 32, "tasks": "count,text_compare"}
RESULTS = "results.jsonl"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    stage: str = "train"
    kind: str = "dense"
    zero: int = 2
    ranks: int = 1
    engine: str = "transformers"
    staleness: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        engine = "" if self.stage == "sft" else f"-{self.engine}-stale{self.staleness}"
        return f"{self.stage}-{self.kind}-zero{self.zero}-{self.ranks}r{engine}-s{self.seed}"

    def config(self, folder: Path) -> list[str]:
        values = {
            "seed": self.seed,
            "steps": 4,
            "processes": self.ranks,
            "model.min_pixels": 256,
            "rewards.by_task": '{"*": by_tokens}',
            "rewards.combine": "{accuracy: 1.0}",
            "rollout.engine": self.engine,
            "rollout.staleness": self.staleness,
            "rollout.prompts_per_step": 4,
            "rollout.group_size": 2,
            "rollout.max_new_tokens": 6,
            "batch.mini_batches": 2,
            "optim.lr": 0.003,
            "zero.stage": self.zero,
            "cold_start.steps": 4,
            "cold_start.batch_size": 4,
            "cold_start.zero.stage": self.zero,
            "cold_start.optim.lr": 0.001,
            "eval.max_per_task": 1,
            "eval.modes": "[greedy]",
            "eval.every": 3,
            "checkpoint.every": 1,
            "checkpoint.keep": 2,
            "log.trackers": "[]",
            "log.save_sequences_every": 1,
        }
        if self.stage == "run":
            made = {"recipe.name": "visual_puzzles", "recipe.args": json.dumps(ROWS), "model.tiny": self.kind}
        else:
            made = {"model.path": folder / f"{self.kind}-{self.seed}", "data.path": folder / f"data-{self.seed}"}
        return [f"{k}={v}" for k, v in {**values, **made}.items()]


def load_libraries() -> None:
    """What every run needs, once; and a reward by which an untrained model earns something, in the ranks themselves."""
    import rewards
    import sapo_vl.stages
    from rewards.base import RewardOutput
    from sapo_vl.scoring import scorer

    rewards.REWARDS["by_tokens"] = lambda x: RewardOutput(sum(x.token_ids) % 7 / 6)
    scorer.IN_PROCESS = scorer.IN_PROCESS | {"by_tokens"}  # type: ignore[misc]
    sapo_vl.stages.logging.captureWarnings(True)


def prepare(folder: Path, seed: int) -> None:
    from data_recipes import RECIPES
    from sapo_vl.pipeline import build_tiny_model

    data = folder / f"data-{seed}"
    RECIPES["visual_puzzles"](data, seed=seed, **ROWS)
    for kind in ("dense", "moe"):
        build_tiny_model(kind, data, folder / f"{kind}-{seed}", seed)


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    statuses: list[int]  # of the ranks; negative: of that signal
    seconds: float
    first_s: float | None  # until the first line of metrics
    died: str  # where it was when it was killed, if a point was hit


def start(setting: Setting, folder: Path, out: Path, kill: Kill | None) -> Ended:
    """One run from its start to its end, which may be its kill. Prints go to FOLDER/logs."""
    began = time.monotonic()
    port = 20_000 + random.SystemRandom().randrange(12_000)
    notes = folder / "notes"
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir()
    pids: list[int] = []
    for rank in range(setting.ranks):
        pid = os.fork()
        if not pid:
            _be_rank(setting, folder, out, rank, port, kill, notes, pids)
        pids.append(pid)
        os.setpgid(pid, pids[0])
    statuses = _wait(pids, kill, began)
    first = notes / "first"
    died = [p.read_text() for p in sorted(notes.glob("died-*"))]
    return Ended(
        statuses, time.monotonic() - began, float(first.read_text()) if first.exists() else None, "; ".join(died)
    )


def _wait(pids: Sequence[int], kill: Kill | None, began: float) -> list[int]:
    """As a launcher does: the first rank that fails is the end of the others."""
    found: dict[int, int] = {}
    group = pids[0]
    while len(found) < len(pids):
        for pid in pids:
            if pid not in found and (done := os.waitpid(pid, os.WNOHANG))[0]:
                found[pid] = os.waitstatus_to_exitcode(done[1])
        left = [pid for pid in pids if pid not in found]
        late = time.monotonic() - began
        if kill and not kill.point and late > kill.at_s and left:
            os.kill(pids[kill.rank], signal.SIGKILL) if kill.alone else os.killpg(group, signal.SIGKILL)
            kill = None
        elif (any(found.values()) or late > LIMIT_S) and left:
            time.sleep(0.2)  # the others may see it, and do something about it
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            for pid in left:
                found[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.01)
    return [found[pid] for pid in pids]


def _be_rank(
    setting: Setting,
    folder: Path,
    out: Path,
    rank: int,
    port: int,
    kill: Kill | None,
    notes: Path,
    others: Sequence[int],
) -> None:
    os.setpgid(0, others[0] if others else 0)
    began = time.monotonic()
    log = os.open(folder / "logs" / f"{out.name}.rank{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        from sapo_vl.config import load_config
        from sapo_vl.lifeline import LAUNCHER, die_with_launcher
        from sapo_vl.record.run_log import RunLog
        from sapo_vl.stages import run_stage

        run = _run_all if setting.stage == "run" else run_stage
        os.environ[LAUNCHER] = str(os.getppid())
        die_with_launcher()
        if setting.ranks > 1:
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": setting.ranks, "LOCAL_WORLD_SIZE": setting.ranks}
            os.environ.update({name: str(n) for name, n in world.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        original = RunLog.metrics

        def metrics(self: Any, *args: Any) -> None:
            original(self, *args)
            if not rank and not (notes / "first").exists():
                (notes / "first").write_text(f"{time.monotonic() - began}")

        RunLog.metrics = metrics  # type: ignore[method-assign]
        died, changed = notes / f"died-{rank}", folder / "changes" / f"{out.name}.rank{rank}"
        if kill is None:
            with changed.open("w") as changes:
                arm(None, out, lambda text: print(text, file=changes, flush=True))
                run(setting.stage, load_config(None, setting.config(folder)), out)
                if rank == 0:
                    (folder / "modules").write_text("\n".join(sys.modules))
        else:
            arm(kill if kill.rank == rank else Kill(point=""), out, lambda text: died.write_text(text) and None)
            run(setting.stage, load_config(None, setting.config(folder)), out)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _run_all(_: str, config: Any, out: Path) -> None:
    """`sapo-vl run`, but that the one rank of its stages is a fork of this process."""
    from sapo_vl import pipeline
    from sapo_vl.lifeline import LAUNCHER, die_with_launcher
    from sapo_vl.stages import run_stage

    def launch(stage: str, config: Any, out: Path) -> None:
        os.environ[LAUNCHER] = str(os.getpid())
        if not (pid := os.fork()):
            status = 1
            try:
                die_with_launcher()
                run_stage(stage, config, out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise RuntimeError(f"stage {stage} ended with {status}")

    pipeline.launch = launch
    pipeline.run(config, out)


def _unclocked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _unclocked(v) for k, v in value.items() if not str(k).startswith(CLOCK)}
    return [_unclocked(v) for v in value] if isinstance(value, list) else value


def _values(held: Any) -> Any:
    """What a shard holds, to the bit, as JSON."""
    import torch

    if isinstance(held, torch.Tensor):
        data = held.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if held.numel() else b""
        return [str(held.dtype), list(held.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(held, Mapping):
        return {str(k): _values(v) for k, v in held.items()}
    return [_values(v) for v in held] if isinstance(held, list | tuple) else repr(held)


def picture(out: Path) -> dict[str, str]:
    """Name -> digest of everything a run has left; what the clock or a process id decides is left out."""
    from sapo_vl.learning.checkpoint import MANIFEST, RestrictedCheckpointEngine

    found: dict[str, str] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        data = path.read_bytes() if path.is_file() else b""
        if path.name in (".lock",) or path.name.startswith(".begun."):
            data = b""
        elif path.suffix == ".jsonl" and path.name == "metrics.jsonl":
            data = json.dumps([_unclocked(json.loads(line)) for line in data.splitlines()]).encode()
        elif (path.suffix == ".png" and path.parent.name == "plots") or path.match("data/*/state.json"):
            data = b""  # drawn of the clock too; a fingerprint of the time of a file
        elif path == out / "page.html":
            data = b""  # of all that is compared here, the clock and where it lies
        elif path.suffix == ".pt":  # pickle writes an object that two places share once; after a load they do not
            data = json.dumps(_values(RestrictedCheckpointEngine().load(str(path)))).encode()
        elif path.name == MANIFEST and path.parent.name.startswith("step_"):
            data = json.dumps({k: v for k, v in json.loads(data)["content"].items() if k != "files"}).encode()
        elif path.name in ("summary.json", "cold_start.json"):
            data = json.dumps(_unclocked(json.loads(data))).encode()
        elif path.suffix == ".yaml" or path.name == "identity.json":
            data = data.replace(str(out).encode(), b"OUT")
        found[name] = hashlib.sha256(data).hexdigest()[:16]
    return found


def steps_on_disk(out: Path, stage: str) -> tuple[int, int]:
    """(last step in the metrics, newest checkpoint's) as a run lies there; 0 for none."""
    from sapo_vl.restarts import newest_step

    stage = "train" if stage == "run" else stage
    path = out / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = [row for row in map(json.loads, lines) if row["phase"] == ("sft" if stage == "sft" else "train")]
    return max((row["step"] for row in rows), default=0), newest_step(out, stage) or 0


def reference(setting: Setting, folder: Path) -> tuple[dict[str, str], Ended]:
    out = folder / "whole" / setting.name
    known = folder / "whole" / f"{setting.name}.json"
    if not known.exists():
        ended = start(setting, folder, out, None)
        assert not any(ended.statuses), f"{setting.name} ends so when it is left alone: {ended}"
        for module in (folder / "modules").read_text().split():  # so that the next one has them loaded
            if not module.startswith(("vllm", "__", "tests")):
                with contextlib.suppress(ImportError, AttributeError):
                    importlib.import_module(module)
        known.write_text(json.dumps({"picture": picture(out), "ended": dataclasses.asdict(ended)}))
        shutil.rmtree(out)
    found = json.loads(known.read_text())
    return found["picture"], Ended(**found["ended"])


def changes(setting: Setting, folder: Path, rank: int) -> int:
    """How many changes to files a rank makes when it is left alone."""
    return len((folder / "changes" / f"{setting.name}.rank{rank}").read_text().splitlines())


def _with_number(kill: Kill, setting: Setting, folder: Path) -> Kill:
    if not kill.share:
        return kill
    return dataclasses.replace(kill, nth=max(1, round(kill.share * changes(setting, folder, kill.rank))), share=0.0)


def try_one(setting: Setting, kills: Sequence[Kill], folder: Path, number: int) -> dict[str, Any]:
    """Kills the run at each of `kills` in turn, a start each; then lets it end."""
    whole, _ = reference(setting, folder)
    kills = [_with_number(kill, setting, folder) for kill in kills]
    out = folder / "cut" / f"{number:05d}-{setting.name}"
    result: dict[str, Any] = {
        "setting": dataclasses.asdict(setting),
        "name": setting.name,
        "kills": [dataclasses.asdict(k) for k in kills],
        "kinds": [k.kind for k in kills],
        "died": [],
        "redone": [],
        "recovered_s": [],
    }
    for kill in [*kills, None]:
        ended = start(setting, folder, out, kill)
        if result["died"] and ended.first_s is not None:
            result["recovered_s"].append(ended.first_s)
        if kill is None:
            result["statuses"] = ended.statuses
        elif any(status == -signal.SIGKILL for status in ended.statuses):
            result["died"].append(ended.died or f"{kill.at_s:.2f} s after its start")
            last, saved = steps_on_disk(out, setting.stage)
            result["redone"].append(max(0, last - saved))
        else:
            result["died"].append("")  # the point was not reached
    have = picture(out) if out.exists() else {}
    result["differ"] = sorted(name for name in whole.keys() | have.keys() if whole.get(name) != have.get(name))
    result["right"] = not any(result["statuses"]) and not result["differ"]
    if result["right"]:
        shutil.rmtree(out)
        for log in (folder / "logs").glob(f"{out.name}.*"):
            log.unlink()
    return result


def draw(setting: Setting, folder: Path, dice: random.Random) -> list[Kill]:
    """One kill, or two: the second one of the start after the first."""
    _, ended = reference(setting, folder)

    def one() -> Kill:
        rank, alone = dice.randrange(setting.ranks), setting.ranks > 1 and dice.random() < 0.3
        turn = dice.random()
        if turn < 0.3:
            return Kill(point=FILE, share=dice.random(), rank=rank, alone=alone)
        if turn < 0.5:
            return Kill(point="", at_s=dice.uniform(0.1, ended.seconds), rank=rank, alone=alone)
        if turn < 0.55:
            return Kill(point="metrics", when="torn", nth=dice.randint(1, 5))
        when, calls = dice.choice(("before", "in", "after")), int(10 ** dice.uniform(0, 4.5))
        point = dice.choice(list(POINTS))
        return Kill(point=point, when=when, nth=dice.randint(1, 4), calls=calls, rank=rank, alone=alone)

    return [one() for _ in range(2 if dice.random() < 0.3 else 1)]


def settings(seed: int, engines: Sequence[str]) -> Iterator[Setting]:
    for kind in ("dense", "moe"):
        for zero in range(4):
            for ranks in (1, 2):
                yield Setting(stage="sft", kind=kind, zero=zero, ranks=ranks, seed=seed)
                if ranks == 1:
                    yield Setting(stage="run", kind=kind, zero=zero, seed=seed)
                for engine in engines:
                    for staleness in (0, 1):
                        yield Setting(kind=kind, zero=zero, ranks=ranks, engine=engine, staleness=staleness, seed=seed)


def plans(args: argparse.Namespace, folder: Path) -> Iterator[tuple[Setting, list[Kill]]]:
    if args.plan:
        for setting, kills in json.loads(args.plan.read_text()):
            yield Setting(**setting), [Kill(**kill) for kill in kills]
        return
    until = time.monotonic() + 60 * args.minutes
    dice = random.Random(json.dumps(args.seeds))
    while True:
        every = [s for seed in args.seeds for s in settings(seed, args.engines)]
        dice.shuffle(every)
        for setting in every:
            for _ in range(args.each):
                if time.monotonic() > until:
                    return
                yield setting, draw(setting, folder, dice)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Injected fault, how often, what was lost, time to recover."""
    lines = [
        "| killed | times | lost | steps done again, most | first step after the start, s (median, most) |",
        "|---" * 5 + "|",
    ]
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        for kind, died in zip(result["kinds"], result["died"], strict=True):
            if died:
                by_kind.setdefault(kind, []).append(result)
    for kind, having in sorted(by_kind.items()):
        wrong = sum(not r["right"] for r in having)
        seconds = [s for r in having for s in r["recovered_s"]]
        times = f"{statistics.median(seconds):.1f}, {max(seconds):.1f}" if seconds else "-"
        lost = f"{wrong} runs differ" if wrong else "nothing"
        lines.append(
            f"| {kind} | {len(having)} | {lost} | {max(max(r['redone'], default=0) for r in having)} | {times} |"
        )
    right = sum(r["right"] for r in results)
    return "\n".join([*lines, "", f"{right} of {len(results)} runs ended as if nothing had been"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["transformers", "vllm"])
    parser.add_argument("--each", type=int, default=3, help="kills of a setting before the next one")
    parser.add_argument("--plan", type=Path)
    args = parser.parse_args()
    folder = args.folder.resolve()
    for name in ("whole", "cut", "logs", "changes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    load_libraries()
    seeds = {s.get("seed", 0) for s, _ in json.loads(args.plan.read_text())} if args.plan else args.seeds
    for seed in seeds:
        if not (folder / f"moe-{seed}").exists():
            if not (pid := os.fork()):
                prepare(folder, seed)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    results = []
    with (folder / RESULTS).open("a") as file:
        for number, (setting, kills) in enumerate(plans(args, folder)):
            results.append(try_one(setting, kills, folder, number))
            print(json.dumps(results[-1]), file=file, flush=True)
            if not results[-1]["right"]:
                print("WRONG", json.dumps(results[-1]), flush=True)
    print(table(results))
    return 0 if all(r["right"] for r in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
