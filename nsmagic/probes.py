"""The doctor's trials: each feature is used for real in a throwaway container, and what came of it is a row.

A row says ``missing`` where asking for the feature is refused, and ``weaker`` where it is granted but is less
than its name says.  Nothing here guesses from versions or settings, and no trial that fails is an exception.

This module must not know why a step fails; ``host.remedy_for`` does, and its words come with the error.
"""

from __future__ import annotations

import html
import os
import socket
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nsmagic import cgroups, intake, options
from nsmagic.cgroups.rlimits import host_has_swap
from nsmagic.container import Container
from nsmagic.errors import HostError, LauncherError, StartError
from nsmagic.host import Finding
from nsmagic.launcher import client
from nsmagic.plan import require_linux
from nsmagic.spec import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsmagic.result import Result

_SECONDS: Final = 5.0
_OUTPUT: Final = "64K:drop"
_TEXT: Final = 300
_WIDTH: Final = 110
_MARKS: Final = {"works": "✓", "weaker": "~", "missing": "✗"}
_COLOURS: Final = {"works": "#2e7d32", "weaker": "#b26a00", "missing": "#c62828"}
_USES: Final = ("--mem", "--cpus", "--pids", "--net none", "--disk")
_KERNEL_NAMES: Final = {"mount": "mnt"}


class _WeakerError(Exception):
    """It was granted, but it is less than it says."""

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.remedy = remedy


def examine() -> tuple[Finding, ...]:
    """Try everything; see ``host.examine``."""
    try:
        require_linux()
    except HostError as error:
        return (Finding(error.feature, "missing", error.reason, error.remedy),)
    kernel = os.uname()
    rows = [Finding("kernel", "works", f"{kernel.sysname} {kernel.release} on {kernel.machine}")]
    rows.append(_tried("launcher", _launcher))
    # Without a launcher no container starts, and each trial would wait for a new one.
    if rows[-1].status != "missing":
        rows += [_tried(feature, trial) for feature, trial in _trials()]
    return tuple(rows)


def _trials() -> list[tuple[str, Callable[[], str]]]:
    each = [(f"{name} namespace", lambda name=name: _namespaces(name)) for name in NAMESPACES]
    root = [("root's folders", _idmapped)] if os.geteuid() == 0 else []
    return [
        *each, ("all namespaces", lambda: _namespaces("all")),
        ("working directory", _workdir), ("copy-on-write", _copy_on_write),
        ("replaced folders", _replaced_folder), ("private /tmp", _private_tmp), *root,
        ("system-call filter", _filter), ("no capabilities", _capabilities),
        ("--mem", _mem), ("--swap", _swap), ("--cpus", _cpus), ("--pids", _pids), ("--disk", _disk),
        ("--net none", lambda: _net("none")), ("--net host", lambda: _net("host")),
        ("accounting", _accounting),
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
        answer = f"{error.call}: {os.strerror(error.errno)}" if error.call else str(error)
        return Finding(feature, "missing", answer, error.remedy)
    except LauncherError as error:
        return Finding(feature, "missing", str(error), "Mend what it printed, and try again.")
    except Exception as error:  # noqa: BLE001 - a doctor that falls ill helps nobody
        return Finding(feature, "missing", f"{type(error).__name__}: {str(error)[:_TEXT]}")


def _run(code: str, **given: Any) -> Result:
    """Run a cell in a container of its own that nobody keeps a standby of."""
    checked = options.convert({"timeout": _SECONDS, "output_limit": _OUTPUT, **given})
    job = intake.job_spec(checked, kind="cell", code=textwrap.dedent(code))
    return Container(intake.container_spec(checked), keep=False).start().run_job(job)


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
    inside = result.stdout.split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in files]  # noqa: PTH115 - no path, a name
    if len(inside) != len(outside) or set(inside) & set(outside):
        raise _WeakerError(f"inside is {' '.join(inside)[:_TEXT]}, outside {' '.join(outside)}")
    added = ", with the user namespace that it needs" if result.isolation.added else ""
    return f"all {len(inside)} are its own" if wanted == "all" else f"{inside[0]}{added}"


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
            raise _WeakerError(f"a file cannot be changed inside: {result.describe()[:_TEXT]}")
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
            raise _WeakerError(f"a folder deleted and made again: {why}", "Use Linux 6.6 or newer.")
    return "a folder deleted and made again inside is empty"


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


def _idmapped() -> str:
    """Root's own files as the payload's, on a file system that can do that; see mount_setattr(2)."""
    with tempfile.TemporaryDirectory(prefix="nsmagic-doctor-") as folder:
        result = _run(f"open({folder + '/new'!r}, 'x').close()", bind=f"{folder}:rw", workdir="/")
        notes = [note for note in result.isolation.notes if folder in note]
        if notes or not result.ok:
            remedy = "Use a file system with idmapped mounts, such as ext4 or xfs, or chown the folder."
            raise _WeakerError((*notes, result.describe())[0][:_TEXT], remedy)
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
    code = "print(*[line.split()[1] for line in open('/proc/self/status') if line[:3] in ('Cap', 'NoN')])"
    words = _words(code, workdir="/")
    if {*words[:-1]} != {"0" * 16} or words[-1] != "1":
        raise _WeakerError(f"the sets are {' '.join(words)[:_TEXT]}")
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


# ---- How it looks ---------------------------------------------------------------------------------------


def uses(findings: Sequence[Finding]) -> dict[str, str]:
    """What the options that limit will use here, by option."""
    rows = {finding.feature: finding for finding in findings}
    found = dict.fromkeys((option.split()[0] for option in _USES), "nothing: it cannot be enforced here")
    for option in _USES:
        if option in rows and rows[option].status != "missing":
            found[option.split()[0]] = rows[option].detail.partition(":")[0]
    return found


def _remedies(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """The features by remedy: one cause has often many rows."""
    grouped: dict[str, list[str]] = {}
    for finding in findings:
        if finding.remedy:
            grouped.setdefault(finding.remedy, []).append(finding.feature)
    return grouped


def render_text(findings: Sequence[Finding]) -> str:
    """A table for a terminal, what to do below it, and what the options will use."""
    column = max((len(finding.feature) for finding in findings), default=0)
    lines = []
    for row in findings:
        head = f"{_MARKS[row.status]} {row.feature:<{column}}  {row.status:<7}  "
        lines += textwrap.wrap(head + " ".join(row.detail.split()), _WIDTH, subsequent_indent=" " * len(head))
    for remedy, features in _remedies(findings).items():
        lines += ["", f"To mend {', '.join(features)}:", textwrap.indent(remedy, "    ")]
    return "\n".join([*lines, "", *(f"{option} uses {what}" for option, what in uses(findings).items())])


def render_html(findings: Sequence[Finding]) -> str:
    """The same as a table for a notebook: inline styles only, every text escaped."""
    cell = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"
    rows = "".join(
        f'<tr><td style="{cell};color:{_COLOURS[row.status]}">{_MARKS[row.status]}&nbsp;{row.status}</td>'
        f'<td style="{cell};white-space:nowrap">{html.escape(row.feature)}</td>'
        f'<td style="{cell}">{html.escape(row.detail)}</td></tr>'
        for row in findings
    )
    remedies = [f"To mend {', '.join(features)}: {text}" for text, features in _remedies(findings).items()]
    used = [f"{option} uses {what}" for option, what in uses(findings).items()]
    below = "".join(f'<div style="margin:4px 0">{html.escape(line)}</div>' for line in (*remedies, *used))
    return f'<div><table style="border-collapse:collapse"><tbody>{rows}</tbody></table>{below}</div>'


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as data: ``{"findings": [...], "uses": {"--mem": ...}}``."""
    return {"findings": [finding._asdict() for finding in findings], "uses": uses(findings)}
