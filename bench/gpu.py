"""Runs the parts of `gpu_parts.py` one by one and writes report.json. See gpu.sh."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Seconds that a part may take; together they are under 8 minutes.
PARTS = {"versions": 30, "doctor": 90, "layer_4b": 60, "layer_30b": 75, "head": 45, "memory": 75, "run": 95}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        _run_part(args.part, args.device, args.out)
        return 0
    started = time.monotonic()
    report: dict[str, Any] = {"device": args.device, "parts": {}}
    for name in args.only:
        report["parts"][name] = _alone(name, args.device, args.out)
        print(_line(name, report["parts"][name]), flush=True)
    report["seconds"] = round(time.monotonic() - started, 1)
    report["ok"] = all(part["ok"] for part in report["parts"].values())
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{args.out / 'report.json'}: {report['seconds']} s, {'all parts' if report['ok'] else 'NOT all parts'} ran")
    return 0 if report["ok"] else 1


def _alone(name: str, device: str, out: Path) -> dict[str, Any]:
    """The part in a process of its own: {"ok", "seconds", "values"}, or "error" with the end of what it printed."""
    log, result = out / f"{name}.log", out / f"{name}.json"
    result.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("wb") as said:
        # On a CPU the libraries are loaded once; a process that has touched CUDA must not be forked.
        status = (_forked if device == "cpu" else _spawned)(name, device, out, said.fileno())
    part: dict[str, Any] = {"ok": status == "" and result.exists(), "seconds": round(time.monotonic() - started, 1)}
    if result.exists():
        part["values"] = json.loads(result.read_text(encoding="utf-8"))
    if not part["ok"]:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
        part["error"] = "\n".join(filter(None, [status or "it wrote no result", *tail]))
    return part


def _spawned(name: str, device: str, out: Path, said: int) -> str:
    command = [sys.executable, str(HERE / "gpu.py"), "--part", name, "--device", device, "--out", str(out)]
    with subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True) as process:
        try:
            status = process.wait(PARTS[name])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"not done after {PARTS[name]} s"
    return f"exit status {status}" if status else ""


def _forked(name: str, device: str, out: Path, said: int) -> str:
    import gpu_parts  # noqa: F401 - loaded here, for all of them

    if (pid := os.fork()) == 0:
        status = 1
        try:
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)  # whatever takes those of the parent
            signal.alarm(PARTS[name])
            _run_part(name, device, out)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "", -signal.SIGALRM: f"not done after {PARTS[name]} s"}.get(status, f"exit status {status}")


def _run_part(name: str, device: str, out: Path) -> None:
    sys.path.insert(0, str(HERE))
    import gpu_parts

    values = gpu_parts.PARTS[name](device, out)
    (out / f"{name}.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


def _line(name: str, part: dict[str, Any]) -> str:
    said = part.get("values", {}).get("said", "") if part["ok"] else f"FAILED: {part['error'].splitlines()[0]}"
    return f"{name:10} {part['seconds']:6.1f} s  {said}"


if __name__ == "__main__":
    raise SystemExit(main())
