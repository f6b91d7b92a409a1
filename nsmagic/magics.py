"""``%%contain`` and its companions: options in, output out; the work is done elsewhere."""

from __future__ import annotations

import contextlib
import contextvars
import re
import shlex
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.display import display

from nsmagic import api, explain, host, intake, options, standbys, views
from nsmagic.completion import matcher
from nsmagic.errors import SpecError, StartError
from nsmagic.firewall import StreamCleaner
from nsmagic.image_magics import ImageMagics
from nsmagic.instruments import InstrumentMagics
from nsmagic.launcher import client
from nsmagic.lifetimes import LifetimeMagics
from nsmagic.progress import Progress

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from nsmagic.container import Container
    from nsmagic.firewall import Filtered
    from nsmagic.result import Result
    from nsmagic.sinks import Sink
    from nsmagic.spec import ContainerSpec, JobSpec
    from nsmagic.watch import Watch

_PROGRESS_AFTER: Final = 0.4
_WORD: Final = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[^\s"']|["'])+""")
"""A word of a line, with the quotes in it."""


class NotebookSink:
    """Shows output as it comes, below the cell that asked for it.

    Args:
        shell: whose cell it is.
        out: keep standard output instead of showing it.
        err: keep standard error instead of showing it.
    """

    def __init__(self, shell: InteractiveShell, *, out: bool = False, err: bool = False) -> None:
        self._shell = shell
        self._cleaners = {"stdout": StreamCleaner(), "stderr": StreamCleaner()}
        self.kept: dict[str, list[bytes]] = {
            name: [] for name, wanted in (("stdout", out), ("stderr", err)) if wanted
        }
        self._last = "stdout"

    def stream(self, name: str, data: bytes) -> None:
        """Show bytes as text, or keep them."""
        if name in self.kept:
            self.kept[name].append(data)
        else:
            self._write(name, self._cleaners[name].feed(data))

    def _write(self, name: str, text: str) -> None:
        if not text:
            return
        if name != self._last:  # or the front end might show the second before the first
            getattr(sys, self._last).flush()
            self._last = name
        stream = getattr(sys, name)
        stream.write(text)
        stream.flush()

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """Show rich output, and say what was withheld."""
        del kind
        self._flush()
        transient = {"display_id": display_id} if display_id else {}
        self._shell.display_pub.publish(
            dict(output.data), dict(output.metadata), transient=transient, update=update
        )
        if output.withheld:
            self._write(
                "stderr", f"nsmagic: withheld {', '.join(output.withheld)}; show it with --rich trusted\n"
            )

    def clear(self, *, wait: bool) -> None:
        """Clear the cell's output."""
        self._flush()
        self._shell.display_pub.clear_output(wait=wait)

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """It is shown when the magic raises."""

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """Ask through the front end; None where there is none that can."""
        self._flush()
        kernel = getattr(self._shell, "kernel", None)
        try:
            if kernel is None:
                import getpass  # noqa: PLC0415 - terminals only

                return getpass.getpass(prompt) if password else input(prompt)
            answer = kernel.getpass(prompt) if password else kernel.raw_input(prompt)
            return str(answer)
        except (EOFError, NotImplementedError):
            return None
        except Exception as error:
            if type(error).__name__ == "StdinNotImplementedError":
                return None
            raise

    def _flush(self) -> None:
        getattr(sys, self._last).flush()

    def finish(self) -> None:
        """Show what was held back: half a character, half an escape sequence."""
        for name, cleaner in self._cleaners.items():
            self._write(name, cleaner.finish())

    def kept_text(self, name: str) -> str:
        """What was kept of a stream."""
        return b"".join(self.kept.get(name, [])).decode(errors="replace")


class BackgroundRun:
    """A contained cell that runs in the background.

    Attributes:
        result: how it went, once ``done``.
        error: what prevented it, if something did.
    """

    def __init__(self) -> None:
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.container: Container | None = None
        self.watching: Watch | None = None
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> Result | None:
        """Wait for its end, so many seconds at most; its result, or None where it is not over.

        Raises:
            NsmagicError: what prevented it.
        """
        self._done.wait(timeout)
        if self.done and self.watching is not None:
            self.watching.show_again()
        if self.error is not None:
            raise self.error
        return self.result

    def stop(self) -> None:
        """End it, with its container; of a container that is kept, end this cell alone."""
        if self.container is not None:
            self.container.stop()

    def finish(self) -> None:
        """It is over."""
        self._done.set()

    def __repr__(self) -> str:
        """Its state, on one line."""
        if not self.done:
            return "<contained cell: running>"
        return f"<contained cell: {self.result.describe() if self.result else self.error}>"


def document(text: str, scopes: tuple[str, ...]) -> str:
    """What ``%%magic?`` shows: a text, and the options from the table."""
    lines = [text, "", "Options:", ""]
    for option in options.of(scopes):
        head = ", ".join(option.flags) + (f" {option.metavar}" if option.metavar else "")
        default = f" Default: {option.default}." if option.default else ""
        lines += [f"  {head}", f"      {option.help}{default}"]
    return "\n".join(lines)


@magics_class
class ContainMagics(Magics):  # type: ignore[misc]
    """The magics; ``defaults`` are what ``%contain_config`` has set."""

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self.defaults: dict[str, Any] = {}

    # ---- %%contain and %contain ------------------------------------------------

    @cell_magic  # type: ignore[untyped-decorator]
    def contain(self, line: str, cell: str) -> None:  # noqa: D102 - made from the table of options, below
        given, words = options.parse(_split(line), options.MAGIC_SCOPES)
        # Nothing behind the two hyphens: the program that an image runs by itself.
        if words or line.split()[-1:] == ["--"]:
            self._run(given, {"kind": "program", "argv": tuple(words)}, stdin=cell.encode())
        else:
            self._run(given, {"kind": "cell", "code": cell})

    contain.__doc__ = document(
        "Run this cell in a fresh container.\n\n"
        "    %%contain [options]                 the cell is Python\n"
        "    %%contain [options] PROGRAM ARG...  the cell is the program's standard input\n"
        "    %%contain --image FILE --           likewise, for the program that an image runs by itself\n\n"
        "What it prints and displays appears below as it comes; files that it writes in the working\n"
        "directory stay inside.  A cell that fails raises, and the reason is always said.",
        options.MAGIC_SCOPES,
    )

    @no_var_expand  # type: ignore[untyped-decorator]
    @line_magic("contain")  # type: ignore[untyped-decorator]
    def contain_line(self, line: str) -> None:  # noqa: D102 - likewise
        found = list(_WORD.finditer(line))
        words = ["".join(_split(each[0])) for each in found]
        given, rest = options.parse(words, options.MAGIC_SCOPES)
        # The code itself is taken as it was typed, not word by word.
        code = line[found[len(words) - len(rest)].start() :] if rest else ""
        if not code:
            raise SpecError("%contain", "needs code: %contain [options] CODE; see %contain?")
        self._run(given, {"kind": "cell", "code": code})

    contain_line.__doc__ = document(
        "Run one line of Python in a fresh container.\n\n    %contain [options] CODE", options.MAGIC_SCOPES
    )

    def _run(self, given: dict[str, Any], what: dict[str, Any], stdin: bytes | None = None) -> None:
        wanted = options.merge(self._defaults_for(given), given)
        outputs = tuple(wanted.get("outputs", ())) if what["kind"] == "cell" else ()
        if what["kind"] == "program" and (wanted.get("outputs") or wanted.get("inputs")):
            raise SpecError(
                "-i" if wanted.get("inputs") else "-o", "goes with Python cells; a program has no variables"
            )
        if wanted.get("proc") and not wanted.get("bg"):
            raise SpecError("--proc", "goes with --bg")
        with Progress() as progress:
            spec = intake.container_spec(wanted, progress)
        if what["kind"] == "program" and not what["argv"]:
            what = {**what, "argv": intake.command_of(spec)}
        job = intake.job_spec(wanted, **what, outputs=outputs, execution_count=self.shell.execution_count)
        spec = intake.fit(spec, job)
        variables = {name: self._variable(name) for name in wanted.get("inputs", ())}
        if wanted.get("bg"):
            self._run_behind(spec, job, wanted, variables, stdin)
        else:
            self._run_here(spec, job, wanted, variables, stdin)

    def _defaults_for(self, given: dict[str, Any]) -> dict[str, Any]:
        """What %contain_config has set, as far as it is about this run."""
        join = given.get("join")
        as_it_is = join is not None and join.kinds is None
        return {
            name: value
            for name, value in self.defaults.items()
            if name != "preload" and not (as_it_is and options.BY_NAME[name].scope == "container")
        }

    def _variable(self, name: str) -> object:
        if name not in self.shell.user_ns:
            raise SpecError("-i", f"there is no variable {name!r} in this notebook")
        return self.shell.user_ns[name]

    def _run_here(
        self,
        spec: ContainerSpec,
        job: JobSpec,
        wanted: dict[str, Any],
        variables: dict[str, object],
        stdin: bytes | None,
    ) -> None:
        watching = self._watch(spec, wanted)
        _show_start()
        sink = NotebookSink(self.shell, out="out" in wanted, err="err" in wanted)
        try:
            with watching or contextlib.nullcontext():
                result = api.run_job(
                    spec,
                    job,
                    sink=self._shown(sink, watching),
                    stdin=stdin,
                    variables=variables,
                    can_ask=stdin is None,
                    observer=watching,
                )
        except StartError as error:
            if wanted.get("explain"):
                display(explain.bundle(error.journal, error), raw=True)
            raise
        finally:
            sink.finish()
            self._keep(sink, wanted)
        self._conclude(result, wanted)
        if not wanted.get("no_raise_error"):
            result.check()

    def _run_behind(
        self,
        spec: ContainerSpec,
        job: JobSpec,
        wanted: dict[str, Any],
        variables: dict[str, object],
        stdin: bytes | None,
    ) -> None:
        behind = BackgroundRun()
        watching = behind.watching = self._watch(spec, wanted)
        sink = NotebookSink(self.shell, out="out" in wanted, err="err" in wanted)
        behind.container = api.take(spec)
        try:
            behind.container.wait_built()  # what prevents it is said here, and its processes can be looked at
        except BaseException:
            behind.container.stop()
            raise
        if watching is not None:
            watching.announce()  # in this cell, which will be over before long

        def work() -> None:
            try:
                assert behind.container is not None  # noqa: S101 - set above
                with watching or contextlib.nullcontext():
                    behind.result = behind.container.run_job(
                        job,
                        sink=self._shown(sink, watching),
                        stdin=stdin,
                        variables=variables,
                        observer=watching,
                    )
                sink.finish()
                self._keep(sink, wanted)
                self._conclude(behind.result, wanted)
                if not behind.result.ok:
                    sys.stderr.write(_failure_text(behind.result))
            except BaseException as error:  # noqa: BLE001 - whatever it was, wait() raises it
                behind.error = error
                if isinstance(error, StartError) and wanted.get("explain"):
                    display(explain.bundle(error.journal, error), raw=True)
            finally:
                behind.finish()
                api.prepare(spec)

        # The context carries which cell the output belongs to.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name="nsmagic-background", daemon=True).start()
        if "proc" in wanted:
            self.shell.user_ns[wanted["proc"]] = behind

    def _watch(self, spec: ContainerSpec, wanted: dict[str, Any]) -> Watch | None:
        """Who shows what the run uses, if somebody wants to see it."""
        if not wanted.get("watch"):
            return None
        from nsmagic import watch, watch_screens  # noqa: PLC0415 - most cells watch nothing

        watch.require(spec)
        if getattr(self.shell, "kernel", None) is None:
            return watch.Watch(watch_screens.TerminalScreen(sys.stderr, live=not wanted.get("bg")))
        return watch.Watch(watch_screens.NotebookScreen(self.shell.display_pub))

    def _shown(self, sink: NotebookSink, watching: Watch | None) -> Sink:
        """The sink that the job writes to."""
        if watching is None:
            return sink
        from nsmagic import watch  # noqa: PLC0415 - likewise

        return watching.wrap(sink, set(watch.terminals()) - set(sink.kept))

    def _keep(self, sink: NotebookSink, wanted: dict[str, Any]) -> None:
        for option, stream in (("out", "stdout"), ("err", "stderr")):
            if option in wanted:
                self.shell.user_ns[wanted[option]] = sink.kept_text(stream)

    def _conclude(self, result: Result, wanted: dict[str, Any]) -> None:
        self.shell.user_ns.update(result.values)
        self.shell.user_ns["_contained"] = result
        said = [views.isolation_warning(result), *result.isolation.notes]
        if result.dropped and result.outcome != "output-limit":
            said.append(f"{result.dropped} bytes of output over the limit were dropped (--output-limit)")
        for text in said:
            if text:
                sys.stderr.write(f"nsmagic: {text}\n")
        if wanted.get("no_raise_error") and not result.ok:
            sys.stderr.write(_failure_text(result))
        if wanted.get("stats"):
            display(views.bundle(views.stats_rows(result)), raw=True)
        if wanted.get("explain"):
            display(explain.bundle(result.journal), raw=True)

    # ---- its companions -----------------------------------------------------------

    @line_magic  # type: ignore[untyped-decorator]
    def contain_config(self, line: str) -> None:  # noqa: D102 - likewise
        given, words = options.parse(_split(line), options.CONFIG_SCOPES)
        if words:
            raise SpecError("%contain_config", f"takes options only, not {words[0]!r}; see %contain_config?")
        if given.pop("reset", False):
            self.defaults = {}
            client.set_preload(())
        merged = options.merge(self.defaults, given)
        with Progress() as progress:
            intake.container_spec({k: v for k, v in merged.items() if k != "preload"}, progress)
        self.defaults = merged
        if "preload" in given:
            standbys.current().drop()
            client.set_preload(given["preload"])
            _show_start()
        self._prepare()
        if not line.strip():
            rows = [(options.BY_NAME[name].flag, str(value)) for name, value in self.defaults.items()]
            display(views.bundle(rows or [("defaults", "as installed")]), raw=True)

    contain_config.__doc__ = document(
        "Set the session's defaults for %%contain; without options, show them.", options.CONFIG_SCOPES
    )

    @line_magic  # type: ignore[untyped-decorator]
    def contain_doctor(self, line: str) -> None:
        """Say what this host can isolate and limit, found by doing it, and how to mend what it cannot."""
        _no_words("%contain_doctor", line)
        found = host.examine()
        display({"text/plain": host.render_text(found), "text/html": host.render_html(found)}, raw=True)

    def _prepare(self) -> None:
        standbys.current().prepare(
            intake.container_spec({k: v for k, v in self.defaults.items() if k != "preload"})
        )


def _failure_text(result: Result) -> str:
    """What a failed cell shows that does not raise: its traceback, and how it ended."""
    lines = list(result.failure.traceback) if result.failure else []
    return "\n".join([*lines, f"nsmagic: {result.describe()}\n"])


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise SpecError("%%contain", f"the line cannot be read: {error}") from None


def _no_words(magic: str, line: str) -> None:
    if line.strip():
        raise SpecError(magic, f"takes nothing behind it, not {line.strip()[:40]!r}")


def _show_start() -> None:
    """Where the launcher is not warm yet: wait for it, and say so if it takes time."""
    launcher = client.start()
    if launcher.ready():
        return
    said = False

    def progress(waited: float) -> None:
        nonlocal said
        if waited > _PROGRESS_AFTER and not said:
            said = True
            what = f" and importing {', '.join(launcher.preload)}" if launcher.preload else ""
            sys.stderr.write(f"nsmagic: starting the launcher{what} …")
            sys.stderr.flush()

    hello = launcher.wait_ready(progress)
    if said:
        sys.stderr.write(" ready\n")
        sys.stderr.flush()  # before anything that the cell prints
    for module, reason in hello.failed:
        text = f"{module} could not be preloaded: {reason}" if module else reason
        sys.stderr.write(f"nsmagic: {text}\n")


def load(shell: InteractiveShell) -> None:
    """Add the magics, start the launcher in the background, and return at once."""
    magics = ContainMagics(shell)
    shell.register_magics(magics)
    shell.register_magics(InstrumentMagics(shell))
    shell.register_magics(LifetimeMagics(shell))
    shell.register_magics(ImageMagics(shell))
    completer = getattr(shell, "Completer", None)
    if completer is not None and hasattr(completer, "custom_matchers"):
        completer.custom_matchers.append(matcher)
    if sys.platform == "linux":
        client.start()
        magics._prepare()  # noqa: SLF001 - same room


def unload(shell: InteractiveShell) -> None:
    """End the launcher and its containers, and take the completion away."""
    completer = getattr(shell, "Completer", None)
    if completer is not None and matcher in getattr(completer, "custom_matchers", []):
        completer.custom_matchers.remove(matcher)
    standbys.current().drop()
    client.stop()
