"""Attacks on the sandbox. Each of them fails in it, and succeeds without it wherever that is safe to show."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_helpers import heard, result, running

from rewards.sandbox.launch import Limits, run

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_planted_token"


# --- reading and writing

READ = """
import json, os, sys
read = []
for path in json.loads(sys.stdin.read()):
    try:
        read.append(open(path).read() if os.path.isfile(path) else "".join(os.listdir(path)))
    except OSError:
        read.append(None)
print(json.dumps(read))
"""


def test_files_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text(SECRET)
    paths = ["/etc/passwd", str(token), f"~/../..{token}", __file__, str(ROOT), str(tmp_path), "/proc", "/sys", "/run"]
    assert result(READ, *paths, "/etc/shadow") == [None] * 10
    found = result(READ, *paths, unsafe=True)
    assert isinstance(found, list) and "root" in found[0] and found[1] == SECRET and found[3] and found[4]


def test_only_the_interpreter_is_there():
    top = result("import json, os; print(json.dumps(sorted(os.listdir('/'))))")
    homes = {Path(sys.base_prefix).parts[1]}
    assert set(top) <= {"boot.py", "main.py", "dev", "etc", "lib", "lib64", "tmp", "usr"} | homes  # type: ignore[call-overload]
    listing = "import json, os; print(json.dumps([os.listdir(p) for p in ('/dev', '/etc', '/tmp')]))"
    assert result(listing) == [["null"], ["ld.so.cache"], []]
    if Path(sys.base_prefix).is_relative_to(Path.home()):  # as with pyenv: the way to it, and nothing beside it
        way = Path(sys.base_prefix).relative_to(Path.home()).parts[0]
        assert result(f"import json, os; print(json.dumps(os.listdir({str(Path.home())!r})))") == [way]


def test_nothing_outside_can_be_written(tmp_path):
    write = """
import json, os, sys
written = []
for folder in json.loads(sys.stdin.read()):
    try:
        open(f"{folder}/planted-by-a-program", "w").write("x")
        written.append(folder)
    except OSError:
        pass
print(json.dumps(written))
"""
    folders = [str(tmp_path), "/", "/usr/lib", "/dev", "/etc", os.path.dirname(sys.executable)]
    assert result(write, *folders) == []
    assert list(tmp_path.iterdir()) == []
    assert result(write, "/tmp", ".") == ["/tmp", "."]  # its own /tmp
    assert not Path("/tmp/planted-by-a-program").exists()
    assert result(write, str(tmp_path), unsafe=True) == [str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["planted-by-a-program"]


def test_no_descriptor_of_the_trainer_is_inherited(tmp_path):
    stat = """
import json, os
found = []
for number in range(3, 1024):
    try:
        os.fstat(number)
        found.append(number)
    except OSError:
        pass
print(json.dumps(found))
"""
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        assert result(stat) == result(stat, unsafe=True) == []


def test_links_in_place_of_results_lead_nowhere(tmp_path):
    # Where a grader reads a file that the program was to write, a link makes it read, or delete, something else.
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "secret").write_text(SECRET)
    link = f"""
import os
for name in ("stdout", "stderr", "result.json", "output.txt", "folder"):
    os.symlink({str(kept)!r}, name)
os.symlink({str(kept / "secret")!r}, "secret")
print("done")
"""
    for unsafe in (False, True):
        ended = run(link.encode(), b"", Limits(), unsafe)
        assert ended.stdout == b"done\n" and SECRET not in ended.errors
        assert (kept / "secret").read_text() == SECRET  # neither moved nor deleted with the program's folder
    read = link + "print(open('secret').read())"
    assert SECRET.encode() not in run(read.encode(), b"", Limits()).stdout
    assert SECRET.encode() in run(read.encode(), b"", Limits(), unsafe=True).stdout


# --- other processes

OUTSIDE = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
from rewards.sandbox.launch import Limits, run
program = '''
import json, os, signal, sys
found = [" ".join(os.environ)]
for pid in [os.getppid(), int(sys.stdin.read())]:
    try:
        found.append(open(f"/proc/{{pid}}/environ").read())
    except OSError:
        found.append("")
    try:
        os.kill(pid, 0)
        found.append("reached")
    except OSError:
        found.append("")
print(json.dumps(found))
'''
print(json.dumps([json.loads(run(program.encode(), str(os.getpid()).encode(), Limits(), u).stdout) for u in (0, 1)]))
"""


def test_the_environment_and_the_processes_of_the_trainer_are_out_of_reach():
    environment = os.environ | {"HF_TOKEN": SECRET}
    done = subprocess.run([sys.executable, "-c", OUTSIDE], env=environment, capture_output=True, text=True, check=True)
    inside, without = json.loads(done.stdout)
    # The only process that it may name is the one above it, process 1 of the sandbox, which is root's for root.
    assert set(inside[0].split()) <= {"PWD", "LC_CTYPE", "PYTHONHASHSEED"}
    assert inside[1] == inside[3] == inside[4] == ""
    assert SECRET in without[1] and SECRET in without[3] and without[4] == "reached"


DOUBLE_FORK = """
import os, sys, time
pipe = int(sys.argv[1])
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(pipe, str(os.getpid()).encode())
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(0.2)
"""


def test_a_process_that_detaches_itself_dies_with_the_program():
    with running(DOUBLE_FORK, Limits()) as (child, pipe):
        assert heard(pipe)  # the grandchild is there
        child.end()
        assert heard(pipe, 0) == b""  # and already gone when `end` returns
    with running(DOUBLE_FORK, Limits(), unsafe=True) as (child, pipe):
        survivor = int(heard(pipe) or b"")
        child.end()
        assert heard(pipe, 0.2) is None
        os.kill(survivor, signal.SIGKILL)


def test_a_process_that_detaches_itself_dies_when_the_program_ends_by_itself():
    with running(DOUBLE_FORK, Limits()) as (_, pipe):
        assert heard(pipe)
        assert heard(pipe) == b""  # nobody has called `end`


STARTS_ONE = f"""
import os, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "support")!r}]
from rewards.sandbox.launch import Limits, memory_file, start
pipe, unsafe = int(sys.argv[1]), sys.argv[2] == "unsafe"
program = "import os, sys, time; os.write(int(sys.argv[1]), str(os.getpid()).encode()); time.sleep(60)"
with memory_file() as stdin, memory_file() as stdout:
    child = start({{"main.py": program.encode()}}, "main.py", Limits(), stdin=stdin, stdout=stdout,
                  arguments=[str(pipe)], keep=[pipe], unsafe=unsafe)
    os.close(pipe)
    time.sleep(60)
"""


@pytest.mark.parametrize("unsafe", [False, True])
def test_the_program_dies_with_a_trainer_that_is_killed(unsafe):
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE, str(write), "unsafe" if unsafe else "safe"], pass_fds=[write]
    ) as trainer:
        os.close(write)
        program = int(heard(read, 30) or b"")
        trainer.kill()
        trainer.wait()
    if unsafe:
        assert heard(read, 0.2) is None
        os.kill(program, signal.SIGKILL)
    assert heard(read) == b""
    os.close(read)


# --- network

CONNECT = """
import json, socket, sys
family, address = json.loads(sys.stdin.read())
try:
    with socket.socket(family) as s:
        s.settimeout(3)
        s.connect(tuple(address) if isinstance(address, list) else address)
        s.sendall(b"leak")
    print(0)
except OSError as error:
    print(error.errno)
"""


def test_a_server_on_this_machine_is_out_of_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = ["127.0.0.1", server.getsockname()[1]]
        assert result(CONNECT, socket.AF_INET, address) == errno.ECONNREFUSED  # its own loopback, with nobody there
        with pytest.raises(TimeoutError):
            server.accept()
        assert result(CONNECT, socket.AF_INET, address, unsafe=True) == 0
        with server.accept()[0] as connection:
            assert connection.recv(9) == b"leak"


def test_a_socket_without_a_file_is_out_of_reach():
    name = f"\0sapo-vl-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        assert result(CONNECT, socket.AF_UNIX, name) == errno.ECONNREFUSED
        assert result(CONNECT, socket.AF_UNIX, name, unsafe=True) == 0


@pytest.mark.parametrize("address", [["169.254.169.254", 80], ["192.0.2.1", 443], ["8.8.8.8", 53]])
def test_other_machines_are_out_of_reach(address):
    start = time.monotonic()
    assert result(CONNECT, socket.AF_INET, address) == errno.ENETUNREACH
    assert time.monotonic() - start < 3  # refused, not merely unanswered


@pytest.mark.parametrize("family", [socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK, socket.AF_ALG])
def test_other_kinds_of_sockets_are_refused(family):
    assert result(CONNECT, family, [1, 1]) == errno.EAFNOSUPPORT
