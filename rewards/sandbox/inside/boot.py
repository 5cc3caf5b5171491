"""The first program in the sandbox: takes limits and rights away from itself, says so, and becomes the program.

    boot.py READY UID KEEP LIMITS MAIN ARGUMENTS...

READY is a descriptor: one byte is written to it when all is in place and nothing foreign has run yet. UID: the
user to become, -1 to stay. KEEP: descriptors besides 0, 1, 2 that the program gets. LIMITS: "AS=1000,CPU=2".
Packages in a folder beside MAIN can be imported, after the standard library.
"""

import os
import resource
import sys
from importlib.machinery import SourceFileLoader


def main() -> None:
    ready, uid, keep, limits, program = sys.argv[1:6]
    last = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for limit in limits.split(","):
        name, _, value = limit.partition("=")
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        # A second between the two: at the first the kernel says what it is (SIGXCPU), at the last it kills.
        resource.setrlimit(number, (most, most + 1 if name == "CPU" and most != hard else most))
    if uid != "-1":
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    kept = sorted(int(fd) for fd in keep.split(",") if fd)
    os.write(int(ready), b"1")
    for before, after in zip([2, *kept], [*kept, last], strict=True):
        os.closerange(before + 1, after)  # nothing of the trainer's is left open, READY included
    packages = os.path.join(os.path.dirname(program), "packages")
    if os.path.isdir(packages):
        sys.path.append(packages)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # one for each core would count as processes, of which there are few
    sys.argv = sys.argv[5:]
    module = type(sys)("__main__")
    module.__file__ = program
    sys.modules["__main__"] = module
    SourceFileLoader("__main__", program).exec_module(module)


if __name__ == "__main__":
    main()
