"""What one sees who enters another process's namespaces: asked of a child of ours, made for the one question.

A notebook's kernel cannot enter them itself: setns(2) into a user namespace wants a single thread, and the
kernel must stay where it is.  So a small Python of ours goes in, looks, answers in JSON and ends.  It runs no
code of the student's; what it reads there may be anything, and is parsed typed and bounded.
See setns(2), uts_namespaces(7), time_namespaces(7), ipc_namespaces(7), network_namespaces(7).
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import Annotated, Final

import msgspec

from nsmagic.namespaces import FILES, inode

_SECONDS: Final = 20.0
_MOST: Final = 1 << 16

_CHILD: Final = r"""
import ctypes, json, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in json.loads(sys.argv[1])]
for descriptor in descriptors:
    if libc.setns(descriptor, 0):
        sys.exit(ctypes.get_errno())
def shm():
    with open("/proc/sysvipc/shm") as file:
        return [[int(each) for each in line.split()[:4]] for line in file.readlines()[1:200]]
def queues():
    with open("/proc/sysvipc/msg") as file:
        return [[int(each) for each in line.split()[:3]] for line in file.readlines()[1:200]]
def addresses():
    with open("/proc/self/net/fib_trie") as file:
        lines = file.read(1 << 18).split("\n")
    own = {above.split()[-1] for above, line in zip(lines, lines[1:]) if "/32 host LOCAL" in line}
    return sorted(own)[:100]
def read(what):
    try:
        return what()
    except OSError:
        return []
print(json.dumps({
    "hostname": os.uname().nodename[:64],
    "monotonic": time.clock_gettime(time.CLOCK_MONOTONIC),
    "boottime": time.clock_gettime(time.CLOCK_BOOTTIME),
    "memories": read(shm), "queues": read(queues),
    "devices": [name for _, name in socket.if_nameindex()][:100], "addresses": read(addresses),
}))
"""

_Text = Annotated[str, msgspec.Meta(max_length=64)]
_Row = Annotated[list[int], msgspec.Meta(max_length=4)]


class Facts(msgspec.Struct, frozen=True):
    """What is seen from inside some namespaces.

    Attributes:
        hostname: of the UTS namespace.
        monotonic: seconds of CLOCK_MONOTONIC in the time namespace.
        boottime: seconds of CLOCK_BOOTTIME: the uptime.
        memories: System V shared memory in the IPC namespace: key, id, mode, bytes each.
        queues: System V message queues: key, id, mode each.
        devices: network devices by name.
        addresses: own IPv4 addresses.
    """

    hostname: _Text
    monotonic: float
    boottime: float
    memories: Annotated[list[_Row], msgspec.Meta(max_length=200)]
    queues: Annotated[list[_Row], msgspec.Meta(max_length=200)]
    devices: Annotated[list[_Text], msgspec.Meta(max_length=100)]
    addresses: Annotated[list[_Text], msgspec.Meta(max_length=100)]


def ask(pid: int, kinds: tuple[str, ...]) -> Facts:
    """Enter some namespaces of a process, and its user namespace before them, and look.

    Args:
        pid: the host's process id.
        kinds: ``uts``, ``net`` and so on; those that we are in anyway are left out.

    Raises:
        OSError: one cannot be entered, or the process has ended.
        TimeoutError: there was no answer.
    """
    wanted = ["user", *(kind for kind in kinds if kind != "user")]
    others = [kind for kind in wanted if inode(pid, kind) != inode("self", kind)]
    paths = [f"/proc/{pid}/ns/{FILES[kind]}" for kind in others]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, json.dumps(paths)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, "no answer from inside", f"/proc/{pid}/ns") from None
    if done.returncode:
        # Python's own 1: a file was not there, so the process has ended meanwhile.
        error = errno.ENOENT if done.returncode == 1 else max(done.returncode, errno.EPERM)
        raise OSError(error, f"its namespaces cannot be entered: {os.strerror(error)}", f"/proc/{pid}/ns")
    try:
        return msgspec.json.decode(done.stdout[:_MOST], type=Facts)
    except msgspec.MsgspecError as wrong:
        raise OSError(errno.EBADMSG, f"what is seen inside makes no sense: {wrong}") from None
