"""A process that has the libraries loaded, and forks itself for each program that a test starts.

Loading them takes about ten seconds of a core for each launcher and each rank, more than what most of these runs do. A
fork of a process that has loaded them, and has done nothing else, is the same program in the same state. Programs that
a test starts in another way (the scripts, servers, workers of rewards) load them as ever.

Client: `start(...)`. The server is this file as a program, with a socket as its standard input.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

# What a training run has loaded at its end; `python zygote.py` fails where one is gone.
LIBRARIES = (
    "accelerate", "datasets", "deepspeed.ops.adam", "deepspeed.runtime.zero.stage3", "torch.distributed.run",
    "torchvision.transforms.v2", "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe", "transformers.models.qwen3_vl.processing_qwen3_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl", "sapo_vl.commands.cli", "sapo_vl.pipeline",
    "sapo_vl.launching", "sapo_vl.stages", "sapo_vl.sft", "sapo_vl.train", "sapo_vl.evaluation.run",
)  # fmt: skip
ONCE = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")  # read when loading
_NEW_NET, _NEW_UTS = 0x40000000, 0x04000000  # linux/sched.h
RANKS_AHEAD = 8  # ranks forked before a launcher has threads: those of two ranks, four times started
_ROOM = ("x" * 8000, "x" * 60_000)  # bytes that the server has for the arguments and the environment of a fork


class Forked:
    """As much of subprocess.Popen as tests use, of a process that is another one's child. Stdout has stderr in it."""

    def __init__(self, args: Sequence[str], pid: int, output: int, status: int) -> None:
        self.args, self.pid, self.returncode = list(args), pid, None
        self.stdout: IO[str] = os.fdopen(output, "r")
        self._status = status

    returncode: int | None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(os.read(self._status, 100))
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if not read:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return read[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], env: dict[str, str], forked_ranks: int = RANKS_AHEAD, host: str = "") -> Forked:
    """`python *arguments` in a session of its own. `forked_ranks`: so many that torchrun starts are forks, too. `host`:
    in the network namespace of that name, on a machine that is called so."""
    control = _server(tuple(env.get(name) for name in ONCE))
    output, output_there = os.pipe()
    status, status_there = os.pipe()
    request = {"arguments": list(arguments), "env": env, "cwd": os.getcwd(), "ranks": forked_ranks, "host": host}
    with contextlib.ExitStack() as stack:
        for fd in (output_there, status_there):
            stack.callback(os.close, fd)
        _send(control, json.dumps(request).encode(), [output_there, status_there])
    return Forked(arguments, int(control.recv(100)), output, status)


@functools.cache
def _server(once: tuple[str | None, ...]) -> socket.socket:
    """One for each combination of what is read while the libraries are loaded. It ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    env = {k: v for k, v in os.environ.items() if k not in ONCE} | {k: v for k, v in zip(ONCE, once, strict=True) if v}
    root = Path(__file__).resolve().parents[2]
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests" / "support")])
    process = subprocess.Popen([sys.executable, __file__, _ROOM[0]], stdin=theirs, env=env | {"ROOM": _ROOM[1]})
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _send(control: socket.socket, data: bytes, fds: list[int]) -> None:
    control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def _serve(control: socket.socket) -> None:
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
            _reap(statuses)
        if control in ready:
            data, fds, _, _ = socket.recv_fds(control, 1 << 20, 2)
            if not data:
                return
            request, (output, status) = json.loads(data), fds
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()
                nothing = os.open(os.devnull, os.O_RDONLY)
                for fd, to in ((nothing, 0), (output, 1), (output, 2)):
                    os.dup2(fd, to)
                for fd in (nothing, *fds, woken, wake, control.fileno(), *statuses.values()):
                    os.close(fd)
                if request["host"]:
                    _move(request["host"])
                if request["ranks"]:
                    _fork_ranks(request["ranks"])
                _become(request["arguments"], request["env"], request["cwd"])
            os.close(output)
            statuses[pid] = status
            control.send(str(pid).encode())


def _move(host: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{host}", "rb") as there:
        if libc.setns(there.fileno(), _NEW_NET) or libc.unshare(_NEW_UTS):
            raise OSError(ctypes.get_errno(), f"cannot move to {host}")
    socket.sethostname(host)


def _reap(statuses: dict[int, int]) -> None:
    for pid, fd in list(statuses.items()):
        if (done := os.waitpid(pid, os.WNOHANG))[0]:
            with contextlib.suppress(BrokenPipeError):
                os.write(fd, str(os.waitstatus_to_exitcode(done[1])).encode())
            os.close(statuses.pop(pid))


def _fork_ranks(count: int) -> None:
    """Children of this process, forked while it has no threads, wait to be a rank that torchrun starts."""
    spare: list[tuple[int, int]] = []  # (process, where to write what it shall be)
    for _ in range(count):
        told, tell = os.pipe()
        if not (pid := os.fork()):
            for fd in (tell, *(fd for _, fd in spare)):
                os.close(fd)
            with os.fdopen(told, "rb") as file:
                data = file.read()
            if not data:  # the launcher is gone, or has ended
                os._exit(0)
            os.setsid()
            request = json.loads(data)
            _become(request["arguments"], request["env"], os.getcwd())
        os.close(told)
        spare.append((pid, tell))

    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    original = subprocess_handler.Popen

    def popen(args: Sequence[str], env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
        if args[0] != sys.executable or options.get("stdout") or options.get("stderr") or not spare:
            return original(args, env=env, **options)
        pid, tell = spare.pop(0)
        with os.fdopen(tell, "w") as file:
            json.dump({"arguments": args[1:], "env": env}, file)
        return _child(pid, args)

    subprocess_handler.Popen = popen  # type: ignore[assignment]


def _child(pid: int, args: Sequence[str]) -> subprocess.Popen[bytes]:
    """A child of this process as what subprocess would have made of it."""
    held: Any = subprocess.Popen.__new__(subprocess.Popen)
    held.args, held.pid, held.returncode = args, pid, None
    held.stdin = held.stdout = held.stderr = None
    held._child_created, held._waitpid_lock = True, threading.Lock()
    return held


def _become(arguments: Sequence[str], env: dict[str, str], cwd: str) -> NoReturn:
    """`python *arguments`, from here to its end. What Python does then is left out but for what a program asked for."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    _look_like([sys.executable, *arguments], env)
    words = [word for word in arguments if word != "-u"]
    added = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    status: Any = 1
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path[:] = [cwd, *added, *sys.path[1:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[:] = [str(Path(words[0]).parent), *added, *sys.path[1:]]
            runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    if status is None or isinstance(status, str):
        if status:
            print(status, file=sys.stderr)
        status = int(bool(status))
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _look_like(arguments: Sequence[str], env: dict[str, str]) -> None:
    """/proc says of this process what it says of one that was started so. Ranks are told apart by it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    given = (arguments, [f"{name}={value}" for name, value in env.items()])
    for (begin, end), words in zip((fields[45:47], fields[47:49]), given, strict=True):  # as proc(5) numbers them, - 3
        room, data = int(end) - int(begin), b"".join(word.encode() + b"\0" for word in words)
        if len(data) > room:
            raise ValueError(f"a program's arguments or environment take {len(data)} bytes; there is room for {room}")
        ctypes.memmove(int(begin), data.ljust(room, b"\0"), room)


if __name__ == "__main__":
    import importlib

    for library in LIBRARIES:
        importlib.import_module(library)
    importlib.import_module("sapo_vl.learning.engine").import_muon_as_it_is()
    getattr(importlib.import_module("deepspeed.ops"), "__compatible_ops__")  # noqa: B009  (asks a C compiler: a second)
    _serve(socket.socket(fileno=os.dup(0)))
