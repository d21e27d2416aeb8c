"""What the Linux kernel can take away from a process: its sight of others, the network, files to write, new processes.

Constants are the kernel's; their names stand beside them. Everything here is for `child`, in a process of its
own, and fails softly: a kernel that refuses leaves a wall out.

Source: man pages unshare(2), user_namespaces(7), pid_namespaces(7), mount_setattr(2), capset(2), seccomp(2).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing's own costs a tenth of a program's start.
if TYPE_CHECKING:
    import ctypes

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x20000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
SYSCALLS = {
    # fork, vfork, execve, execveat, socket, kill, ptrace, io_uring_setup; then clone.
    "x86_64": (0xC000003E, (57, 58, 59, 322, 41, 62, 101, 425), 56),
    "aarch64": (0xC00000B7, (221, 281, 198, 129, 117, 425), 220),
}
"""Of a machine: its audit architecture, the numbers of the calls to refuse, and clone's."""


def enter_namespaces() -> bool:
    """Gives this process' future children namespaces of their own: processes, network, mounts, users.

    The next child is the first process of its namespace: when it dies, so does whatever it started.

    Returns:
        Whether the kernel allowed it. Without a user namespace of its own only root may.
    """
    libc = _libc()
    user, group = os.getuid(), os.getgid()
    rest = NEW_PIDS | NEW_NETWORK | NEW_MOUNTS | NEW_IPC
    if libc.unshare(NEW_USER | rest):
        return not libc.unshare(rest)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError:  # Without names for its ids it can do less, which is no harm.
            return True
    return True


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, however that ends."""
    _libc().prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG


def close_files(folder: str, limit_bytes: int) -> bool:
    """Makes every file read-only but those in `folder`, which becomes a small file system in memory.

    Args:
        folder: an existing folder; becomes empty, and the working directory.
        limit_bytes: what fits into it.

    Returns:
        Whether the kernel allowed it; it needs a mount namespace of this process' own.
    """
    libc = _libc()
    place = folder.encode()
    if libc.mount(None, b"/", None, 0x4000 | 0x40000, None):  # MS_REC | MS_PRIVATE
        return False
    if libc.mount(b"tmpfs", place, b"tmpfs", 2 | 4, b"mode=700,nr_inodes=1000,size=%d" % limit_bytes):  # NOSUID, NODEV
        return False
    os.chdir(folder)
    closed = _set_mount(libc, b"/", READ_ONLY, 0, AT_RECURSIVE)
    return closed and _set_mount(libc, place, 0, READ_ONLY, 0)


def _set_mount(libc: ctypes.CDLL, place: bytes, on: int, off: int, flags: int) -> bool:
    import ctypes

    attributes = (ctypes.c_uint64 * 4)(on, off, 0, 0)
    return not libc.syscall(MOUNT_SETATTR, AT_FDCWD, place, flags, ctypes.byref(attributes), ctypes.sizeof(attributes))


def drop_capabilities() -> None:
    """Gives up all special rights for good, root's among them."""
    import ctypes

    libc = _libc()
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc.capset(ctypes.byref(version), ctypes.byref((ctypes.c_uint32 * 6)()))


def refuse_calls() -> bool:
    """Has the kernel refuse new processes (threads may start), programs, sockets, signals and tracing from now on.

    Returns:
        Whether the filter stands; it is written for 64-bit x86 and ARM.
    """
    import ctypes
    import struct

    if os.uname().machine not in SYSCALLS:
        return False
    architecture, refused, clone = SYSCALLS[os.uname().machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    not_permitted, not_there, allowed = (answer, 0, 0, 0x50001), (answer, 0, 0, 0x50026), (answer, 0, 0, 0x7FFF0000)
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), not_permitted, (load, 0, 0, 0)]
    for call in refused:
        lines += [(equal, 0, 1, call), not_permitted]
    lines += [(at_least, 0, 1, 0x40000000), not_permitted]  # x86's second table of calls.
    lines += [(equal, 0, 1, 435), not_there]  # clone3 hides its flags; the C library then takes clone.
    lines += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 1, 0, 0x10000), not_permitted, allowed]  # CLONE_THREAD
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(filters))
    libc = _libc()
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which only root may set a filter.
    return not libc.prctl(22, 2, program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
