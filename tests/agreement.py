"""What then happens: for every row of the doctor a run that uses the feature, in another way than the doctor did.

``test_agreement`` compares the two on the host that it runs on; as a script this prints the comparison as JSON,
for hosts that are made by a command put before it.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import socket
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nsmagic
import nsmagic.spec
from nsmagic import host
from nsmagic.launcher import client
from nsmagic.plan import require_linux

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 30
"""For one run: an emulated machine is slow."""


def namespace(name: str) -> bool:
    kind = {"mount": "mnt"}.get(name, name)
    result = nsmagic.run(f"import os; print(os.stat('/proc/self/ns/{kind}').st_ino)", ns=name, workdir="/")
    return result.check().stdout.strip() != str(os.stat(f"/proc/self/ns/{kind}").st_ino)


def answers(net: str) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; print(socket.socket().connect_ex(('127.0.0.1', {server.getsockname()[1]})))"
        return (nsmagic.run(code, net=net).check().stdout.strip() == "0") == (net == "host")


def printed(code: str, expected: str, **options: Any) -> bool:
    return nsmagic.run(code, timeout=SECONDS, **options).check().stdout.strip() == expected


def folder(code: str, expected: str, left: list[str], **options: str) -> bool:
    """Whether a run with a folder prints that, and the folder holds this afterwards."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "old").mkdir()
        (Path(place) / "old" / "a").touch()
        given = {key: value.format(place) for key, value in options.items()}
        same = printed(code.format(place), expected, **given)
        return same and sorted(str(path.relative_to(place)) for path in Path(place).rglob("*")) == left


def hidden() -> bool:
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        name = os.path.basename(file.name)
        return printed(f"import os; print({name!r} in os.listdir('/tmp'))", "False", workdir="/")


def swap() -> bool:
    """Whether swap is bounded, or the host has none."""
    result = nsmagic.run("print(1)", mem="48M", swap="48M", timeout=SECONDS).check()
    return "swap" in result.isolation.limits or len(Path("/proc/swaps").read_text().splitlines()) < 2


def landlock() -> bool:
    """Whether the kernel can keep a process from files, ports and signals: landlock_create_ruleset(2), VERSION."""
    abi = ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1)
    if abi <= 0:
        raise nsmagic.HostError("Landlock", os.strerror(ctypes.get_errno()), "Use another kernel.")
    return int(abi) >= 6


def lab() -> bool:
    """Whether a container on a lab is reached there by its name, on a port that is root's elsewhere."""
    code = """
import socket
server = socket.create_server(("", 80))
print(socket.create_connection(("me", 80), 9).getpeername()[1])
"""
    with nsmagic.Network("trial"):
        return printed(code, "80", net="trial", hostname="me", workdir="/")


def image() -> bool:
    """Whether a file of an archive is what the container sees, and stays as it was for the next one."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as place, io.BytesIO(b"kept") as text:
        os.environ["XDG_CACHE_HOME"] = place  # where layers are unpacked
        try:
            with tarfile.open(f"{place}/root.tar", "w") as archive:
                member = tarfile.TarInfo("marker")
                member.size = 4
                archive.addfile(member, text)
            code = "print(open('/marker').read()); open('/marker', 'w').close()"
            given = {"rootfs": f"{place}/root.tar", "workdir": "/"}
            return printed(code, "kept", **given) and printed(code, "kept", **given)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


DEVICES = """
import os
assert os.write(os.open("/dev/null", os.O_WRONLY), b"x") == 1
assert os.read(os.open("/dev/zero", os.O_RDONLY), 2) == bytes(2)
assert len(os.read(os.open("/dev/urandom", os.O_RDONLY), 8)) == 8
ours, theirs = os.openpty()
os.write(ours, b"line\\n")
print(os.read(theirs, 9).decode().strip())
"""
FORKS = """
import subprocess
started = []
try:
    for _ in range(20):
        started.append(subprocess.Popen(["sleep", "60"]))
except OSError as error:
    print(error.errno)
for each in started:
    each.kill()
"""
FULL = """
import errno, os
try:
    os.posix_fallocate(os.open("/dev/shm/big", os.O_RDWR | os.O_CREAT), 0, 16 << 20)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
SLOW = """
import time
begin, used = time.monotonic(), time.process_time()
while time.process_time() - used < 0.06: pass
print(time.monotonic() - begin > 0.12)
"""
ASKED: dict[str, Callable[[], bool]] = {
    "kernel": lambda: require_linux() is None,  # type: ignore[func-returns-value]
    "launcher": lambda: not client.start().wait_ready().failed,
    **{f"{name} namespace": lambda name=name: namespace(name) for name in nsmagic.spec.NAMESPACES},  # type: ignore[misc]
    "all namespaces": lambda: printed("import os; print(os.getppid())", "1"),
    "--hostname": lambda: printed("import socket; print(socket.gethostname())", "here", hostname="here"),
    "working directory": lambda: printed("import os; print(os.getcwd())", os.path.realpath(".")),
    "copy-on-write": lambda: folder(
        "open('{}/new', 'w').close(); print(1)", "1", ["old", "old/a"], workdir="{}"
    ),
    "replaced folders": lambda: folder(
        "import os; os.remove('old/a'); os.rmdir('old'); os.mkdir('old'); print(os.listdir('old'))",
        "[]",
        ["old", "old/a"],
        bind="{0}:{0}:cow",
        workdir="{}",
    ),
    "private /tmp": hidden,
    "root's folders": lambda: folder(
        "import os; os.remove('{0}/old/a'); print(os.listdir('{0}/old'))", "[]", ["old"], bind="{}:rw"
    ),
    "system-call filter": lambda: printed("import ctypes; print(ctypes.CDLL(None).unshare(0))", "-1"),
    "no capabilities": lambda: printed(
        "import ctypes; print(*(ctypes.CDLL(None).prctl(23, cap, 0, 0, 0) for cap in (0, 7, 21)))", "0 0 0"
    ),
    "clone3, pivot_root": lambda: printed("print(6 * 7)", "42", workdir="/"),  # or what stands in
    "fresh /proc": lambda: printed("import os; print(os.path.isdir(f'/proc/{os.getpid()}'))", "True"),
    "devices": lambda: printed(DEVICES, "line", workdir="/"),
    "Landlock": landlock,
    "--best-effort": lambda: bool(
        nsmagic.run("pass", best_effort=True, timeout=SECONDS).check().isolation.namespaces
    ),
    "--mem": lambda: nsmagic.run("bytearray(200 << 20)[::4096]", mem="48M").outcome == "out-of-memory",
    "--swap": swap,
    "--cpus": lambda: printed(SLOW, "True", cpus=0.1),
    "--pids": lambda: printed(FORKS, "11", pids=6),
    "--disk": lambda: printed(FULL, "ENOSPC", disk="3M"),
    "--net none": lambda: answers("none"),
    "--net host": lambda: answers("host"),
    "lab networks": lab,
    "--net outbound": lambda: printed(
        # Not /proc/net/route: where /proc is a synthetic one there is none.  Nothing is sent.
        "import socket; print(socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9)) is None)",
        "True",
        net="outbound",
        workdir="/",
    ),
    "--image": image,
    "accounting": lambda: nsmagic.run("pass").usage.pids_peak is not None,
}
"""By feature: use it; whether it does what its name says."""


def then(feature: str) -> tuple[str, str]:
    """What becomes of a run with this feature: the doctor's word for that, and what was said.

    ``missing``: the run was refused, and nothing was started; ``weaker``: it was not, but does not hold.
    """
    try:
        return ("works", "") if ASKED[feature]() else ("weaker", "it was granted and does not hold")
    except (nsmagic.HostError, nsmagic.NetworkError, nsmagic.StartError) as error:
        return "missing", f"{type(error).__name__}: {error}"
    except nsmagic.RunError as error:
        return "weaker", str(error)


def compare() -> list[list[str]]:
    """Every row of the doctor, and the word for what then happens."""
    return [[*row, then(row.feature)[0]] for row in host.examine() if row.feature in ASKED]


if __name__ == "__main__":
    print(json.dumps(compare()))
