"""The command line: ``nsmagic run``, ``images``, ``kernel``, ``doctor``, ``ps``.

Exit status of ``run``: the program's own; 124 time limit, 125 nsmagic itself, 126 and 127 as a shell has
them, 137 out of memory, 128+n killed by signal n.  Wrong options: 2.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nsmagic import options
from nsmagic.errors import NsmagicError, SpecError, StartError
from nsmagic.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsmagic.firewall import Filtered
    from nsmagic.plan import Plan
    from nsmagic.result import Result
    from nsmagic.spec import ContainerSpec, JobSpec

EXIT_USAGE: Final = 2
EXIT_TIMEOUT: Final = 124
EXIT_NSMAGIC: Final = 125
EXIT_OUT_OF_MEMORY: Final = 137
EXIT_STOPPED: Final = 143
EXIT_LIMIT: Final = 1
_SIGNALED: Final = 128
_INTERRUPTED: Final = 130

_HELP: Final = """\
nsmagic runs code in containers: fresh namespaces and cgroups, copy-on-write files, no root needed.

  nsmagic run [options] FILE.py [ARG...]     a Python script
  nsmagic run [options] -c CODE [ARG...]     Python code
  nsmagic run [options] -- PROGRAM ARG...    any program
  nsmagic run --image FILE [options]         the program that an image runs by itself
  nsmagic images [NAME | remove NAME]        images that were unpacked, their layers and sizes
  nsmagic kernel install|wrap|list|remove    whole notebooks in a container; see nsmagic kernel --help
  nsmagic doctor [--json]                    what this host can do, and how to mend what it cannot
  nsmagic ps                                 live containers of this user
  nsmagic --version

Options of run:

{options}

Exit status of run: the program's own; 124 time limit, 125 nsmagic itself, 126 not executable, 127 not found,
137 out of memory, 128+n killed by signal n.
"""


def _help() -> str:
    lines = []
    for option in options.of(options.COMMAND_SCOPES):
        head = ", ".join(option.flags) + (f" {option.metavar}" if option.metavar else "")
        default = f" Default: {option.default}." if option.default else ""
        lines += [f"  {head}", f"      {option.help}{default}"]
    return _HELP.format(options="\n".join(lines))


class TerminalSink:
    """Passes output on as it comes."""

    def __init__(self) -> None:
        from nsmagic.firewall import StreamCleaner  # noqa: PLC0415 - a command that runs nothing needs none

        self._cleaners: dict[str, StreamCleaner] = {}
        for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
            # A terminal obeys control characters, so what reaches one is cleaned; a file gets the very bytes.
            if stream.isatty():
                self._cleaners[name] = StreamCleaner(cursor_up=False)

    def stream(self, name: str, data: bytes) -> None:
        """Write bytes to our own stream of that name."""
        stream = getattr(sys, name)
        if name in self._cleaners:
            data = self._cleaners[name].feed(data).encode(errors="replace")
        stream.buffer.write(data)
        stream.buffer.flush()

    def finish(self) -> None:
        """Write what was held back."""
        for name, cleaner in self._cleaners.items():
            stream = getattr(sys, name)
            stream.buffer.write(cleaner.finish().encode(errors="replace"))
            stream.buffer.flush()

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """A terminal shows the text form."""
        del kind, display_id, update
        self.stream("stdout", (str(output.data.get("text/plain", "")) + "\n").encode(errors="replace"))

    def clear(self, *, wait: bool) -> None:
        """Nothing is cleared in a terminal's scroll-back."""

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """Print the traceback."""
        del ename, evalue
        self.stream("stderr", ("\n".join(traceback) + "\n").encode(errors="replace"))

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """A script reads its standard input itself."""
        del prompt, password
        return None


def _job(given: dict[str, Any], words: list[str], *, separated: bool) -> dict[str, Any]:
    """What to run, from the words behind the options."""
    if "code" in given:
        return {"kind": "script", "code": given["code"], "argv": ("-c", *words)}
    if separated:
        if not words:
            raise SpecError("--", "needs a program behind it: nsmagic run [options] -- PROGRAM ARG...")
        return {"kind": "program", "argv": tuple(words)}
    if not words:
        raise SpecError("nsmagic run", "needs FILE.py, -c CODE or -- PROGRAM; see nsmagic --help")
    path = Path(words[0])
    try:
        code = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SpecError(
            words[0], f"is not UTF-8 text (byte {error.start}); a program goes behind --"
        ) from None
    except OSError as error:
        raise SpecError(words[0], f"cannot be read: {error.strerror}") from None
    if "\0" in code:
        raise SpecError(words[0], "holds a zero byte; a program goes behind --")
    return {"kind": "script", "code": code, "argv": tuple(words)}


def exit_status(result: Result) -> int:
    """The status that ``nsmagic run`` exits with for a result."""
    match result.outcome:
        case "timeout":
            return EXIT_TIMEOUT
        case "out-of-memory":
            return EXIT_OUT_OF_MEMORY
        case "stopped":
            return EXIT_STOPPED
        case "output-limit":
            return EXIT_LIMIT
        case "signaled":
            return _SIGNALED + (result.signal or 0)
        case _:
            return EXIT_LIMIT if result.exit_status is None else result.exit_status


def _run(arguments: list[str]) -> int:
    from nsmagic import intake  # noqa: PLC0415 - bad options need not wait for it

    given, words = options.parse(arguments, options.COMMAND_SCOPES)
    separated = "--" in arguments and arguments[
        len(arguments) - len(words) - 1 : len(arguments) - len(words)
    ] == ["--"]
    own = not words and "code" not in given and given.keys() & {"image", "rootfs"}
    what = {} if own else _job(given, words, separated=separated)
    report = given.get("report")
    if report is not None:
        _check_report(Path(report).resolve())
    with Progress() as progress:
        spec = intake.container_spec(given, progress)
    job = intake.job_spec(given, **(what or {"kind": "program", "argv": intake.command_of(spec)}))
    spec = intake.fit(spec, job)
    plan = _plan(spec)
    if given.get("watch"):
        from nsmagic import watch  # noqa: PLC0415 - most runs watch nothing

        watch.require(spec, plan)
    _start_launcher()
    from nsmagic import api, explain, views  # noqa: PLC0415 - while the launcher imports what it needs

    sink = TerminalSink()
    try:
        if given.get("watch"):
            result = _watched(spec, job, sink, plan)
        else:
            result = api.run_once(spec, job, sink=sink, stdin=_standard_input(), plan=plan)
    except StartError as error:
        if given.get("explain"):
            sys.stderr.write(explain.text(error.journal, error) + "\n")
        raise
    sink.finish()
    for text in (views.isolation_warning(result), *result.isolation.notes):
        if text:
            sys.stderr.write(f"nsmagic: {text}\n")
    if result.dropped and result.outcome != "output-limit":
        sys.stderr.write(
            f"nsmagic: {result.dropped} bytes of output over the limit were dropped (--output-limit)\n"
        )
    plain = result.outcome == "exited" and not result.detail.startswith("the program could not")
    if not plain:
        sys.stderr.write(f"nsmagic: {result.describe()}\n")
    if given.get("explain"):
        sys.stderr.write(explain.text(result.journal) + "\n")
    if report is not None:
        Path(report).write_text(json.dumps(result.report(), indent=2, default=str) + "\n", encoding="utf-8")
    return exit_status(result)


def _watched(spec: ContainerSpec, job: JobSpec, sink: TerminalSink, plan: Plan) -> Result:
    """Run it, and show on standard error what it uses."""
    from nsmagic import api, watch, watch_screens  # noqa: PLC0415 - likewise

    with watch.Watch(watch_screens.TerminalScreen(sys.stderr)) as watching:
        shown = watching.wrap(sink, watch.terminals())
        return api.run_once(spec, job, sink=shown, stdin=_standard_input(), observer=watching, plan=plan)


def _plan(spec: ContainerSpec) -> Plan:
    """How to make it; what this host cannot do is refused here, before anything is started."""
    from nsmagic.launcher import client  # noqa: PLC0415 - as above
    from nsmagic.plan import make_plan  # noqa: PLC0415 - as above

    return make_plan(spec, client.python_path())


def _start_launcher() -> None:
    """As soon as it is clear that there will be something to run."""
    from nsmagic.launcher import client  # noqa: PLC0415 - as above

    client.expect("programs")
    client.start()


def _check_report(path: Path) -> None:
    """Before anything is started: a report that could not be written is of no use afterwards."""
    if path.is_dir():
        raise SpecError("--report", f"{str(path)!r} is a folder")
    if not path.parent.is_dir():
        raise SpecError("--report", f"there is no folder {str(path.parent)!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SpecError("--report", f"{str(path)!r} may not be written")


def _standard_input() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # started without one
        return None


def _doctor(arguments: list[str]) -> int:
    from nsmagic import host  # noqa: PLC0415 - run needs none of it

    if arguments not in ([], ["--json"]):
        raise SpecError("nsmagic doctor", f"takes --json or nothing, not {arguments[0]!r}")
    found = host.examine()
    if arguments:
        sys.stdout.write(json.dumps(host.to_json(found), indent=2) + "\n")
    else:
        sys.stdout.write(host.render_text(found) + "\n")
    return 0


def _ps(arguments: list[str]) -> int:
    from nsmagic import processes, views  # noqa: PLC0415 - run needs none of it

    if arguments:
        raise SpecError("nsmagic ps", f"takes nothing behind it, not {arguments[0]!r}")
    found = processes.containers()
    sys.stdout.write(views.table_text(processes.rows(found)) + "\n" if found else "no containers are live\n")
    return 0


def _images(arguments: list[str]) -> int:
    from nsmagic import views  # noqa: PLC0415 - run needs none of it
    from nsmagic.plan import require_linux  # noqa: PLC0415 - likewise

    require_linux()
    from nsmagic.images import listing  # noqa: PLC0415 - likewise, and it is for Linux only

    sys.stdout.write(views.table_text(listing.command("nsmagic images", arguments)) + "\n")
    return 0


def _kernel(arguments: list[str]) -> int:
    from nsmagic.kernel import commands  # noqa: PLC0415 - run needs none of it

    return commands.main(arguments)


def _end(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end us as Ctrl-C does, so that the container is stopped on the way."""
    del frame
    raise SystemExit(_SIGNALED + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"run": _run, "images": _images, "kernel": _kernel, "doctor": _doctor, "ps": _ps}
    if (
        not words
        or words[0] in {"-h", "--help", "help"}
        or (words[1:2] in (["--help"], ["-h"]) and words[0] != "kernel")
    ):
        sys.stdout.write(_help())
        return 0 if words else EXIT_USAGE
    if words[0] == "--version":
        from nsmagic import __version__  # noqa: PLC0415 - likewise

        sys.stdout.write(f"nsmagic {__version__}\n")
        return 0
    for name in ("SIGTERM", "SIGHUP"):
        if number := getattr(signal, name, None):  # Windows has no SIGHUP
            signal.signal(number, _end)
    try:
        command = commands.get(words[0])
        if command is None:
            near = options.nearest(words[0], commands)
            raise SpecError(words[0], f"there is no such command{near}; see nsmagic --help")
        return command(words[1:])
    except SpecError as error:
        sys.stderr.write(f"nsmagic: {error}\n")
        return EXIT_USAGE
    except NsmagicError as error:
        sys.stderr.write(f"nsmagic: {error}\n")
        return EXIT_NSMAGIC
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone; Python must not complain about it once more at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNALED + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
