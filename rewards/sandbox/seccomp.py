"""A filter for system calls, as the bytes that bubblewrap hands to the kernel (seccomp in filter mode).

Namespaces and limits do the isolation. The filter takes away what works around them (memory that no limit
counts, sockets that the network namespace does not cover, debugging other processes of the sandbox) and kernel
interfaces that have often had holes and that no program under test needs. The list follows Docker's default.
"""

from __future__ import annotations

import errno
import struct

# Names of the calls, and their numbers on x86_64 and aarch64 (the kernel's system call tables).
_DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "personality": (135, 92),
    "memfd_create": (319, 279),  # memory outside RLIMIT_AS
    "memfd_secret": (447, 447),
    "shmget": (29, 194),  # memory outside RLIMIT_AS
    "msgget": (68, 186),
}
_ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the numbers above, AUDIT_ARCH_*
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_X32 = 0x40000000  # numbers of the x32 calls of x86_64 start here
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; AF_VSOCK, say, reaches the host of a virtual machine

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF opcodes
_NUMBER, _ARCHITECTURE, _ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def machines() -> list[str]:
    """Machines (as in os.uname) that there is a filter for."""
    return sorted(_ARCH)


def seccomp_filter(machine: str) -> bytes:
    """The filter for `machine`, one of `machines()`."""
    column, arch = _ARCH[machine]
    code = [
        _op(_LOAD, _ARCHITECTURE),
        _op(_EQUAL, arch, 1, 0),
        _op(_RETURN, _KILL),  # a call of another architecture has other numbers
        _op(_LOAD, _NUMBER),
        _op(_AT_LEAST, _X32, 0, 1),
        _op(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    for numbers in _DENIED.values():
        code += [_op(_EQUAL, numbers[column], 0, 1), _op(_RETURN, _ERRNO | errno.EPERM)]
    # The flags of clone3 lie in memory, where a filter cannot look; after ENOSYS the C library takes clone.
    code += [_op(_EQUAL, _CLONE3[column], 0, 1), _op(_RETURN, _ERRNO | errno.ENOSYS)]
    code += [
        _op(_EQUAL, _CLONE[column], 0, 3),
        _op(_LOAD, _ARGUMENT_0),
        _op(_ANY_BIT, _NEW_NAMESPACES, 0, 1 + 1 + 1 + len(_FAMILIES) + 1),
        _op(_RETURN, _ERRNO | errno.EPERM),
        _op(_EQUAL, _SOCKET[column], 0, 1 + len(_FAMILIES) + 1),
        _op(_LOAD, _ARGUMENT_0),
        *(_op(_EQUAL, family, len(_FAMILIES) - i, 0) for i, family in enumerate(_FAMILIES)),
        _op(_RETURN, _ERRNO | errno.EAFNOSUPPORT),
        _op(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the jumps count instructions to skip."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
