"""A process that has the libraries loaded, and forks itself for each program that a test starts.

Loading them takes about ten seconds of a core for each launcher and each rank, more than what most of these runs do. A
fork of a process that has loaded them, and has done nothing else, is the same program in the same state. Programs that
a test starts in another way (the scripts, servers, workers of rewards) load them as ever.

Client: `start(...)`, in a program that is such a fork, too. The server is this file as a program, with a socket as its
standard input. Programs that use vLLM are forks of a fork of it that has loaded vLLM as well.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import fcntl
import functools
import importlib
import json
import multiprocessing.util
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
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
# What each process of a vLLM server has loaded beside those.
VLLM = (
    "vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.qwen3_vl_moe",
)  # fmt: skip
ADDRESS = "ZYGOTE"  # variable that tells a program which server it is a fork of
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


def start(
    arguments: Sequence[str],
    env: dict[str, str],
    forked_ranks: int = RANKS_AHEAD,
    host: str = "",
    vllm: bool = False,
    log: IO[bytes] | None = None,
) -> Forked:
    """`python *arguments` in a session of its own. `forked_ranks`: so many that torchrun starts are forks, too. `host`:
    in the network namespace of that name, on a machine that is called so. `vllm`: has it loaded, and if it makes itself
    a vLLM server, that one and its processes have. What it prints goes to `log`, or can be read from what this returns.
    """
    output, output_there = os.pipe()
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        written = log.fileno() if log else output_there
        more = {"ranks": forked_ranks, "host": host, "vllm": vllm}
        pid, status = _ask(arguments, env, [nothing, written, written], more)
        os.close(nothing)
    finally:
        os.close(output_there)
    return Forked(arguments, pid, output, status)


def address(env: dict[str, str]) -> str:
    """What `run_in_place` finds in the variable ADDRESS: the server for programs with such an environment, which is
    there by then."""
    start(["-c", ""], env).wait()
    return _server(tuple(env.get(name) for name in ONCE))[1]


def run_in_place(arguments: Sequence[str]) -> int:
    """`python *arguments` on this process's own streams, to its end. Returns the exit status as a shell gives it."""
    _, status = _ask(arguments, dict(os.environ), [0, 1, 2], {"ranks": RANKS_AHEAD, "host": "", "vllm": False})
    ended = int(os.read(status, 100))
    return ended if ended >= 0 else 128 - ended


def _ask(arguments: Sequence[str], env: dict[str, str], streams: list[int], more: dict[str, Any]) -> tuple[int, int]:
    """(process id, where its exit status can be read)."""
    if ADDRESS in os.environ:
        control = _connect(os.environ[ADDRESS])
    else:
        control = _server(tuple(env.get(name) for name in ONCE))[0]
    status, status_there = os.pipe()
    try:
        request = {"arguments": list(arguments), "env": env, "cwd": os.getcwd(), **more}
        _send(control, json.dumps(request).encode(), [*streams, status_there])
    finally:
        os.close(status_there)
    return int(control.recv(100)), status


@functools.cache
def _connect(name: str) -> socket.socket:
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    control.connect("\0" + name)
    return control


@functools.cache
def _server(once: tuple[str | None, ...]) -> tuple[socket.socket, str]:
    """A connection to the server for a combination of what is read while the libraries are loaded, and its address.
    It ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    env = {k: v for k, v in os.environ.items() if k not in ONCE} | {k: v for k, v in zip(ONCE, once, strict=True) if v}
    root = Path(__file__).resolve().parents[2]
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests" / "support")])
    env |= {"ROOM": _ROOM[1], ADDRESS: f"sapo-vl tests {os.getpid()} {time.monotonic_ns()}"}
    process = subprocess.Popen([sys.executable, __file__, _ROOM[0]], stdin=theirs, env=env)
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours, env[ADDRESS]


def _send(control: socket.socket, data: bytes, fds: list[int]) -> None:
    control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def _serve(control: socket.socket, listener: socket.socket | None) -> None:
    """Until the other end of `control` is closed. One that has vLLM has no listener: the other asks it."""
    has_vllm = listener is None
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    statuses: dict[int, int] = {}
    clients = [control]
    with_vllm, vllm_pid = None, 0
    while True:
        ready, _, _ = select.select([*clients, woken, *filter(None, [listener])], [], [])
        if woken in ready:
            os.read(woken, 1000)
            _reap(statuses)
        if listener is not None and listener in ready:
            clients.append(listener.accept()[0])
        for client in [c for c in clients if c in ready]:
            data, fds, _, _ = socket.recv_fds(client, 1 << 20, 4)
            if not data and client is control:
                if with_vllm is not None:
                    with_vllm.close()
                    os.waitpid(vllm_pid, 0)
                return
            if not data:
                clients.remove(client)
                client.close()
                continue
            request, (*streams, status) = json.loads(data), fds
            held = [*fds, woken, wake, *(c.fileno() for c in clients), *statuses.values()]
            held += [end.fileno() for end in (listener, with_vllm) if end is not None]
            if request["vllm"] and not has_vllm:
                if with_vllm is None:
                    with_vllm, vllm_pid = _fork_with_vllm(held)
                _send(with_vllm, data, fds)
                client.send(with_vllm.recv(100))
                for fd in fds:
                    os.close(fd)
                continue
            if not (pid := os.fork()):
                for to, fd in enumerate(streams):
                    os.dup2(fd, to)
                _leave(held)
                os.setsid()
                if request["host"]:
                    _move(request["host"])
                if has_vllm:
                    _fork_as_a_server_does()
                if request["ranks"]:
                    _fork_ranks(request["ranks"])
                _become(request["arguments"], request["env"], request["cwd"])
            for fd in streams:
                os.close(fd)
            statuses[pid] = status
            client.send(str(pid).encode())


def _leave(held: list[int]) -> None:
    """In a fork of the server: what only the server needs is closed."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd in held:
        os.close(fd)


def _fork_with_vllm(held: list[int]) -> tuple[socket.socket, int]:
    """A connection to a fork of this server that has vLLM loaded, and its process id."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if not (pid := os.fork()):
        _leave([*held, ours.fileno()])
        os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
        # As `sapo-vl serve` has it. Read when torch is loaded.
        importlib.import_module("torch._dynamo").config.disable = True
        for module in VLLM:
            importlib.import_module(module)
        _serve(theirs, None)
        os._exit(0)
    theirs.close()
    return ours, pid


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
    spare = _spares(count)

    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    original = subprocess_handler.Popen

    def popen(args: Sequence[str], env: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
        if args[0] != sys.executable or options.get("stdout") or options.get("stderr") or not spare:
            return original(args, env=env, **options)
        return _child(_tell(spare.pop(0), args[1:], env, []), args)

    subprocess_handler.Popen = popen  # type: ignore[assignment]


def _fork_as_a_server_does(processes: int = 2) -> None:
    """A vLLM server replaces `sapo-vl serve`; it starts its engine with multiprocessing's "spawn", and that its worker.
    Here they are this process, its child and the child of that."""
    replace, spawn = os.execve, multiprocessing.util.spawnv_passfds
    spare = _spares(1, lambda: _fork_as_a_server_does(processes - 1)) if processes else []

    def execve(path: str, args: Sequence[str], env: dict[str, str]) -> NoReturn:
        if path != sys.executable:
            replace(path, args, env)
        _become(args[1:], env, os.getcwd())

    def spawnv_passfds(path: Any, args: Sequence[Any], passed: Sequence[int]) -> int:
        if "--multiprocessing-fork" not in args or not spare:
            return spawn(path, args, passed)
        return _tell(spare.pop(0), args[args.index("-c") :], dict(os.environ), list(passed))

    os.execve, multiprocessing.util.spawnv_passfds = execve, spawnv_passfds  # type: ignore[assignment]


Spare = tuple[int, socket.socket]  # a process, and the connection by which it is told what it shall be


def _spares(count: int, first: Callable[[], None] = lambda: None) -> list[Spare]:
    """Children of this process, forked while it has no threads. What is to be done `first` each does at once."""
    spare: list[Spare] = []
    for _ in range(count):
        told, tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        tell.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if not (pid := os.fork()):
            for end in (tell, *(end for _, end in spare)):
                end.close()
            first()
            data, fds, _, _ = socket.recv_fds(told, 1 << 20, 100)
            told.close()
            if not data:  # the process that forked this one is gone, or has ended
                os._exit(0)
            request = json.loads(data)
            if request["fds"]:
                _place(fds, request["fds"])
            else:
                os.setsid()
            _become(request["arguments"], request["env"], request["cwd"])
        told.close()
        spare.append((pid, tell))
    return spare


def _tell(spare: Spare, arguments: Sequence[str], env: dict[str, str], fds: list[int]) -> int:
    pid, tell = spare
    with tell:
        request = {"arguments": list(arguments), "env": env, "cwd": os.getcwd(), "fds": fds}
        _send(tell, json.dumps(request).encode(), fds)
    return pid


def _place(fds: Sequence[int], numbers: Sequence[int]) -> None:
    """Gives descriptors the numbers that they have in the process they come from."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 1 + max([*fds, *numbers])) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(high, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)


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
    env = {ADDRESS: os.environ[ADDRESS]} | env
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
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1], {"__name__": "__main__"})
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
    for library in LIBRARIES:
        importlib.import_module(library)
    importlib.import_module("sapo_vl.learning.engine").import_muon_as_it_is()
    getattr(importlib.import_module("deepspeed.ops"), "__compatible_ops__")  # noqa: B009  (asks a C compiler: a second)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind("\0" + os.environ[ADDRESS])
    listening.listen()
    _serve(socket.socket(fileno=os.dup(0)), listening)
