"""The doctor's trials: each feature is used for real in a throwaway container, and what came of it is a row.

A row says ``missing`` where asking for the feature is refused, and ``weaker`` where it is granted but is less
than its name says.  Nothing here guesses from versions or settings, and no trial that fails is an exception.

This module must not know why a step fails; ``host.remedy_for`` does, and its words come with the error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nsmagic import cgroups, confinement, intake, labs, options, outbound
from nsmagic.cgroups.rlimits import host_has_swap
from nsmagic.container import Container
from nsmagic.errors import HostError, LauncherError, StartError
from nsmagic.filesystem import DEVICES
from nsmagic.host import Finding, remedy_for
from nsmagic.launcher import client
from nsmagic.plan import layers_owner, require_linux
from nsmagic.spec import NAMESPACES, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from nsmagic.result import Result, Step

_IDMAP: Final = (
    "Root's containers run under another uid: use a file system with idmapped mounts, such as ext4 or xfs "
    "(an image's own layers have none), chown the folder, or do not be root (docker run --user 1000)."
)
_ROUNDABOUT: Final = {"clone3": "clone", "pivot_root": "a moved mount and chroot"}
_SECONDS: Final = 20.0
_OUTPUT: Final = "64K:drop"
_TEXT: Final = 300
_KERNEL_NAMES: Final = {"mount": "mnt"}


class _WeakerError(Exception):
    """It was granted, but it is less than it says."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.remedy = remedy


def examine(only: Collection[str] | None = None) -> tuple[Finding, ...]:
    """Try everything, or only some features; see ``host.examine``."""
    try:
        require_linux()
    except HostError as error:
        return (Finding(error.feature, "missing", error.reason, error.remedy),)
    kernel = os.uname()
    rows = [Finding("kernel", "works", f"{kernel.sysname} {kernel.release} on {kernel.machine}")]
    rows.append(_tried("launcher", _launcher))
    # Without a launcher no container starts, and each trial would wait for a new one.
    if rows[-1].status != "missing":
        wanted = [pair for pair in _trials() if only is None or pair[0] in only]
        rows += [_tried(feature, trial) for feature, trial in wanted]
    return tuple(rows)


def _trials() -> list[tuple[str, Callable[[], str]]]:
    each = [(f"{name} namespace", lambda name=name: _namespaces(name)) for name in NAMESPACES]
    root = [("root's folders", _idmapped)] if os.geteuid() == 0 else []
    return [
        *each, ("all namespaces", lambda: _namespaces("all")),
        ("clone3, pivot_root", _ways), ("fresh /proc", _fresh_proc), ("devices", _devices),
        ("working directory", _workdir), ("copy-on-write", _copy_on_write),
        ("replaced folders", _replaced_folder), ("--image", _image), ("private /tmp", _private_tmp), *root,
        ("system-call filter", _filter), ("no capabilities", _capabilities),
        ("--mem", _mem), ("--swap", _swap), ("--cpus", _cpus), ("--pids", _pids), ("--disk", _disk),
        ("--hostname", _hostname), ("--net none", lambda: _net("none")), ("--net host", lambda: _net("host")),
        ("lab networks", _lab), ("--net outbound", _outbound),
        ("accounting", _accounting), ("Landlock", _landlock), ("--best-effort", _best_effort),
    ]  # fmt: skip


def _tried(feature: str, trial: Callable[[], str]) -> Finding:
    """Make a row of a trial, whatever becomes of it."""
    try:
        return Finding(feature, "works", trial())
    except _WeakerError as weaker:
        return Finding(feature, "weaker", str(weaker), weaker.remedy)
    except HostError as error:
        return Finding(feature, "missing", f"{error.feature} is not enforced: {error.reason}", error.remedy)
    except StartError as error:
        answer = f"{_short(error.call)}: {os.strerror(error.errno)}" if error.call else str(error)
        return Finding(feature, "missing", answer, error.remedy)
    except LauncherError as error:
        return Finding(feature, "missing", str(error), "Mend what it printed, and try again.")
    except Exception as error:  # noqa: BLE001 - a doctor that falls ill helps nobody
        return Finding(feature, "missing", f"{type(error).__name__}: {str(error)[:_TEXT]}")


def _short(call: str) -> str:
    """A call with the first of its flags only, where they are many."""
    return re.sub(r"(\w+\|\w+)\|[\w|]+", r"\1|…", call)


def _run(code: str, **given: Any) -> Result:
    """Run a cell in a container of its own that nobody keeps a standby of."""
    checked = options.convert({"timeout": _SECONDS, "output_limit": _OUTPUT, **given})
    job = intake.job_spec(checked, kind="cell", code=textwrap.dedent(code))
    result = Container(intake.container_spec(checked), keep=False).start().run_job(job)
    if result.outcome == "timeout":
        result.close()
        raise _WeakerError(f"tried for {_SECONDS:.0f} s in vain", "Try again when the machine is less busy.")
    return result


def _words(code: str, **given: Any) -> list[str]:
    """What a cell printed, as words; a cell that failed found less than it should."""
    result = _run(code, **given)
    if not result.ok:
        raise _WeakerError(f"in a container of its own: {result.describe()[:_TEXT]}")
    result.close()
    return result.stdout.split()


def _by(result: Result, what: str) -> str:
    """What enforced a limit in that run, without its value: ``cgroup v2 memory.max``."""
    return result.isolation.limits.get(what, "nothing").partition(" = ")[0]


# ---- The launcher and the namespaces --------------------------------------------------------------------


def _launcher() -> str:
    began = time.monotonic()
    there = client.running()
    hello = client.start().wait_ready()
    if hello.failed:
        problems = "; ".join(f"{name}: {why}" for name, why in hello.failed)
        raise _WeakerError(problems[:_TEXT], "Leave these modules out of --preload.")
    return "was warm already" if there is not None else f"warm after {time.monotonic() - began:.2f} s"


def _namespaces(wanted: str) -> str:
    """Compare what /proc/self/ns says inside with what it says here; see namespaces(7)."""
    names = NAMESPACES if wanted == "all" else (wanted,)
    files = [_KERNEL_NAMES.get(name, name) for name in names]
    code = f"import os\nfor name in {files!r}:\n    print(os.readlink('/proc/self/ns/' + name))"
    result = _run(code, ns=wanted, workdir="/")
    if wanted == "all" and _small_proc(result) is not None:
        return _namespaces_by_effect()
    inside = result.stdout.split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in files]  # noqa: PTH115 - no path, a name
    if len(inside) != len(outside) or set(inside) & set(outside):
        raise _WeakerError(f"inside is {' '.join(inside)[:_TEXT]}, outside {' '.join(outside)}")
    added = ", with the user namespace that it needs" if result.isolation.added else ""
    return f"all {len(inside)} are its own" if wanted == "all" else f"{inside[0]}{added}"


def _namespaces_by_effect() -> str:
    """Where a container has no /proc/self/ns to compare: what it sees of itself."""
    code = "import os, socket\nprint(os.getpid(), *dict(socket.if_nameindex()).values())"
    words = _words(code, ns="all", workdir="/")
    if words != ["2", "lo"]:
        raise _WeakerError(f"its process id and interfaces are {' '.join(words)[:_TEXT]}")
    return "process id and interfaces are its own; it has no /proc to compare the others in"


def _hostname() -> str:
    words = _words("import os\nprint(os.uname().nodename)", hostname="nsmagic-doctor", workdir="/")
    if words != ["nsmagic-doctor"]:
        raise _WeakerError(f"inside it is {' '.join(words)[:_TEXT]}")
    return "a name of its own"


# ---- How it is built ------------------------------------------------------------------------------------


def _ways() -> str:
    """Which calls were refused that have another way round; the journal tells."""
    found = []
    for step in _run("pass", workdir="/").journal:
        call = step.call.partition("(")[0]
        if step.errno and call in _ROUNDABOUT:
            found.append(f"{_ROUNDABOUT[call]} for {call} ({step.failure})")
    return "; ".join(found) or "both are allowed"


def _small_proc(result: Result) -> Step | None:
    """The refusal of a fresh procfs, if there was one."""
    refused = (step for step in result.journal if step.errno and step.call.startswith('fsmount("proc"'))
    return next(refused, None)


def _fresh_proc() -> str:
    result = _run("import os\nprint(os.path.exists('/proc/self/status'))", workdir="/")
    refused = _small_proc(result)
    if refused is not None:
        what = "a few files about the machine and no processes"
        raise _WeakerError(f"{what}: {refused.call}: {refused.failure}", remedy_for(refused))
    if result.stdout.strip() != "True":
        raise _WeakerError(f"it does not show the container's own processes: {result.describe()[:_TEXT]}")
    return "its own processes and no others"


def _devices() -> str:
    code = f"""
        for name in {DEVICES!r}:
            try:
                open("/dev/" + name, "rb").close()
            except OSError as error:
                if error.errno != 6:  # ENXIO: /dev/tty without a terminal
                    print(name, error.strerror, sep=": ", end="; ")
        """
    lacking = _run(code, workdir="/").stdout.strip("; \n")
    if lacking:
        remedy = "Start what surrounds this process with a /dev that has them."
        raise _WeakerError(lacking[:_TEXT], remedy)
    return "/dev/null, zero, full, random, urandom, tty, and terminals of its own"


# ---- Files ----------------------------------------------------------------------------------------------


def _workdir() -> str:
    """The current folder, as a cell would find it."""
    folder = os.getcwd()  # noqa: PTH109 - as text
    result = _run("import os\nprint(os.access('.', os.W_OK))\nprint(os.getcwd())")
    writable, _, inside = result.stdout.strip().partition("\n")
    if inside != os.path.realpath(folder):
        raise _WeakerError((*result.isolation.notes, f"inside it is {inside[:_TEXT]!r}")[0])
    return f"{folder} is shown copy-on-write" + ("" if writable == "True" else "; you may not write there")


def _copy_on_write() -> str:
    with tempfile.TemporaryDirectory(prefix="nsmagic-doctor-") as folder:
        file = Path(folder, "kept")
        file.write_text("before")
        result = _run("open('kept', 'w').write('after')\nprint(open('kept').read())", workdir=folder)
        if not result.ok:
            why = f"a file cannot be changed inside: {result.describe()[:_TEXT]}"
            raise _WeakerError(why, _IDMAP if _unmapped(result) else "")
        listed = any(str(change.path).endswith("/kept") for change in result.changes)
        if file.read_text() != "before" or result.stdout.strip() != "after" or not listed:
            raise _WeakerError("a file changed inside is not listed as such, or has changed on the host too")
    return "a file changed inside is listed, and on the host it is as it was"


def _replaced_folder() -> str:
    """A folder deleted and made again hides what it held by a user.* attribute; tmpfs has them since 6.6."""
    code = """
        import os, shutil
        shutil.rmtree("old")
        os.mkdir("old")
        print(len(os.listdir("old")))
        """
    with tempfile.TemporaryDirectory(prefix="nsmagic-doctor-") as folder:
        Path(folder, "old").mkdir()
        Path(folder, "old", "file").touch()
        result = _run(code, workdir=folder)
        if result.stdout.strip() != "0":
            why = "what it held shows again" if result.ok else result.describe()[:_TEXT]
            remedy = _IDMAP if _unmapped(result) else "Use Linux 6.6 or newer."
            raise _WeakerError(f"a folder deleted and made again: {why}", remedy)
    return "a folder deleted and made again inside is empty"


def _image() -> str:
    """Two layers, made where layers are kept; the upper one hides a file and all of a folder."""
    from nsmagic import images  # noqa: PLC0415 - most runs need none of it
    from nsmagic.images.unpack import make_whiteout, mark  # noqa: PLC0415 - likewise

    images.current_store().make()
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=images.current_store().path) as folder:
        for name in ("lower/d/gone", "lower/d/kept", "lower/hidden/old", "upper/d", "upper/hidden"):
            Path(folder, name).mkdir(parents=True)
        for name in ("d", "hidden"):
            descriptor = os.open(Path(folder, "upper", name), os.O_RDONLY)
            try:
                if name == "d":
                    make_whiteout(descriptor, b"gone")
                else:
                    mark(descriptor, "opaque", b"y")
            finally:
                os.close(descriptor)
        owner = layers_owner()
        if owner is not None:
            for path in [*Path(folder).rglob("*")]:
                os.chown(path, owner, owner, follow_symlinks=False)
        image = Image("doctor", (f"{folder}/upper", f"{folder}/lower"))
        spec = replace(intake.container_spec({}), image=image)
        code = "import os; print(*os.listdir('/d'), *os.listdir('/hidden'))"
        job = intake.job_spec({"timeout": _SECONDS}, kind="cell", code=code)
        result = Container(spec, keep=False).start().run_job(job)
        result.close()
        if result.stdout.split() != ["kept"]:
            why = "what a layer hides shows all the same" if result.ok else result.describe()[:_TEXT]
            raise _WeakerError(why, _IDMAP if _unmapped(result) else "")
    return "layers are stacked, and what one hides is not to be seen"


def _private_tmp() -> str:
    code = """
        import os
        for folder in ("/tmp", "/dev/shm"):
            open(folder + "/nsmagic-doctor", "x").close()
        print(os.path.exists({name!r}))
        """
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="nsmagic-doctor-") as file:
        if _words(code.format(name=file.name), workdir="/") != ["False"]:
            raise _WeakerError("a file in the host's /tmp shows inside")
    return "/tmp and /dev/shm are its own"  # noqa: S108 - a sentence


def _unmapped(result: Result) -> bool:
    """Whether root's own files could not be shown as the payload's."""
    return any(step.errno and "MOUNT_ATTR_IDMAP" in step.call for step in result.journal)


def _idmapped() -> str:
    """Root's own files as the payload's, on a file system that can do that; see mount_setattr(2)."""
    with tempfile.TemporaryDirectory(prefix="nsmagic-doctor-") as folder:
        result = _run(f"open({folder + '/new'!r}, 'x').close()", bind=f"{folder}:rw", workdir="/")
        notes = [note for note in result.isolation.notes if folder in note]
        if notes or not result.ok:
            raise _WeakerError((*notes, result.describe())[0][:_TEXT], _IDMAP)
        if Path(folder, "new").stat().st_uid != os.geteuid():
            raise _WeakerError("a file made in a writable bind does not belong to the folder's owner")
    return "files of a folder's owner are the container user's (idmapped mounts)"


# ---- Rights ---------------------------------------------------------------------------------------------


def _filter() -> str:
    """PTRACE_TRACEME succeeds for anybody whom no filter stops."""
    code = """
        import ctypes
        library = ctypes.CDLL(None, use_errno=True)
        print(library.ptrace(0, 0, None, None), ctypes.get_errno())
        """
    if _words(code, workdir="/") != ["-1", "1"]:
        raise _WeakerError("ptrace, which is on the list of denied calls, was not denied")
    return "a denied call fails with EPERM"


def _capabilities() -> str:
    """Ask the kernel itself, not /proc, which may be a small one; see capget(2) and prctl(2)."""
    code = """
        import ctypes
        library = ctypes.CDLL(None)
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        library.capget(header, sets)
        bounding = sum(library.prctl(23, number, 0, 0, 0) > 0 for number in range(64))
        print(sum(sets), bounding, library.prctl(39, 0, 0, 0, 0))
        """
    words = _words(code, workdir="/")
    if words != ["0", "0", "1"]:
        raise _WeakerError(f"sets, bounding set and no_new_privs are {' '.join(words)[:_TEXT]}, not 0 0 1")
    return "every set is empty, and no_new_privs is on"


# ---- Limits ---------------------------------------------------------------------------------------------


def _mem() -> str:
    result = _run("held = b'x' * (96 << 20)", mem="32M", workdir="/")
    if result.outcome != "out-of-memory":
        raise _WeakerError(f"{_by(result, 'mem')}: 96 MiB in 32 MiB ended with: {result.describe()[:_TEXT]}")
    return f"{_by(result, 'mem')}: 96 MiB in a container of 32 MiB were stopped"


def _swap() -> str:
    result = _run("pass", mem="32M", swap="16M", workdir="/")
    if "swap" in result.isolation.limits:
        return f"{_by(result, 'swap')}: taken by the kernel and read back"
    if not host_has_swap():
        return "no swap on this host: there is nothing to limit"
    raise _WeakerError("nothing: this host has swap, and no limit is in force")


def _cpus() -> str:
    """A fifth of a processor: 50 ms of work fill two periods of 100 ms and begin a third."""
    code = """
        import time
        began, used = time.monotonic(), time.process_time()
        while time.process_time() - used < 0.05:
            pass
        print(time.monotonic() - began)
        """
    result = _run(code, cpus=0.2, workdir="/")
    took = float(result.stdout or "nan")
    if not took >= 0.1:  # noqa: PLR2004 - twice the work; not a number counts as too short
        raise _WeakerError(f"{_by(result, 'cpus')}: 50 ms of work at 0.2 CPUs took only {took * 1000:.0f} ms")
    return f"{_by(result, 'cpus')}: 50 ms of work at 0.2 CPUs took {took * 1000:.0f} ms"


def _pids() -> str:
    code = """
        import os
        end, mine = os.pipe()
        count = 1
        try:
            while count < 64:
                if os.fork() == 0:
                    os.close(mine)
                    os._exit(len(os.read(end, 1)))
                count += 1
        except BlockingIOError:
            pass
        print(count)
        """
    result = _run(code, pids=8, workdir="/")
    count = int(result.stdout or "64")
    if count > 8:  # noqa: PLR2004 - the limit that was asked for
        raise _WeakerError(f"{_by(result, 'pids')}: {count} processes lived in a container of 8")
    return f"{_by(result, 'pids')}: in a container of 8 process {count + 1} was refused"


def _disk() -> str:
    code = """
        try:
            open("/tmp/big", "wb").write(bytes(8 << 20))
            print(0)
        except OSError as error:
            print(error.errno)
        """
    result = _run(code, disk="2M", workdir="/")
    if result.stdout.strip() != "28":
        raise _WeakerError(f"{_by(result, 'disk')}: 8 MiB in a container of 2 MiB were not refused")
    return f"{_by(result, 'disk')}: 8 MiB in a container of 2 MiB were refused"


def _accounting() -> str:
    usage = _run("pass", workdir="/").usage
    name = cgroups.mechanisms()[0].name
    if name == "rlimits":
        why = cgroups.unavailable()
        said = "CPU time is exact, peak memory is the largest process' own, processes at once are unknown"
        raise _WeakerError(f"no control group: {said}", f"{why[0].remedy}." if why else "")
    if None in (usage.cpu_user, usage.memory_peak, usage.pids_peak):
        raise _WeakerError(f"{name}: a peak of memory or processes is unknown", "Use Linux 6.1 or newer.")
    return f"{name}: CPU time, peak memory and processes at once"


# ---- The network ----------------------------------------------------------------------------------------


def _net(kind: str) -> str:
    """Whether the host's 127.0.0.1 answers inside, and the container's own."""
    code = """
        import socket
        def connects(port):
            with socket.socket() as ours:
                return ours.connect_ex(("127.0.0.1", port)) == 0
        with socket.create_server(("127.0.0.1", 0)) as own:
            print(connects({port}), connects(own.getsockname()[1]))
        """
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = _words(code.format(port=server.getsockname()[1]), net=kind, workdir="/")
    means = "a network namespace" if kind == "none" else "the host's own network"
    if words != [str(kind == "host"), "True"]:
        raise _WeakerError(f"{means}: the host's 127.0.0.1 and its own answer: {' '.join(words)[:_TEXT]}")
    return f"{means}: {'only its own' if kind == 'none' else 'its'} 127.0.0.1 answers"


def _lab() -> str:
    """Two containers on a lab: one finds the other by its name, and is told that nobody serves there."""
    code = """
        import socket
        with socket.socket() as ours:
            ours.settimeout(2)
            print(ours.connect_ex(("one", 80)), *dict(socket.if_nameindex()).values())
        """
    lab = labs.create(f"doctor-{os.getpid()}")
    try:
        with Container(intake.container_spec({"net": lab.name, "hostname": "one", "workdir": "/"})) as one:
            served = one.run("import socket\nsocket.create_server(('', 80)).close()")
            words = _words(code, net=lab.name, workdir="/")
        if not served.ok:
            raise _WeakerError(f"nobody may serve on port 80 inside: {served.describe()[:_TEXT]}")
        if words != [str(errno.ECONNREFUSED), "lo", "eth0"]:
            raise _WeakerError(f"one container does not reach the other: {' '.join(words)[:_TEXT]}")
        lab.remove()
    finally:
        lab.close()
    return "two containers reach each other by name, and may serve on port 80"


def _outbound() -> str:
    """A way out, and none to the host's 127.0.0.1, however one tries."""
    code = """
        import socket
        with socket.socket() as plain, socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            for ours in (plain, bound):
                ours.settimeout(1)
                ours.connect_ex(("127.0.0.1", {port}))
        print(*dict(socket.if_nameindex()).values())
        """
    outbound.program()
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = _words(code.format(port=server.getsockname()[1]), net="outbound", workdir="/")
        server.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            server.accept()[0].close()
            raise _WeakerError("the host's 127.0.0.1 is reached from inside")
    if words != ["lo", "eth0"]:
        raise _WeakerError(f"its interfaces are {' '.join(words)[:_TEXT]}")
    return f"{outbound.version()}: a way out, and the host's 127.0.0.1 is not reached"


# ---- Without a container ----------------------------------------------------------------------------------


def _landlock() -> str:
    abi = confinement.landlock_abi()
    newer = "Use Linux 6.12 or newer; only --best-effort uses it."
    if abi <= 0:
        switched_off = abi == -errno.EOPNOTSUPP
        remedy = "Add landlock to the kernel's lsm= parameter; only --best-effort uses it."
        raise HostError("Landlock", os.strerror(-abi), remedy if switched_off else newer)
    if abi < confinement.NETWORK_ABI:
        raise _WeakerError(f"ABI {abi}: files, but neither TCP nor signals", newer)
    if abi < confinement.SCOPE_ABI:
        raise _WeakerError(f"ABI {abi}: files and TCP, but not signals", newer)
    return f"ABI {abi}: files, TCP, signals and abstract sockets"


def _best_effort() -> str:
    """What is left of a container where not all of it can be had."""
    result = _run("print('ran')", workdir="/", best_effort=True)
    if result.stdout.strip() != "ran":
        raise _WeakerError(f"a run ended with: {result.describe()[:_TEXT]}")
    lost = result.isolation.missing
    if result.isolation.namespaces:
        return "a container" + (f" without {', '.join(lost)}" if lost else ", of which nothing is missing")
    held = "; ".join(f"{what}: {how}" for what, how in result.isolation.limits.items())
    raise _WeakerError(f"no container; {held}; not enforced: {', '.join(lost)}")
