"""The magics that make isolation visible: ``%namespaces``, ``%changes``, ``%%both``.  Thin.

They look from outside, at files of /proc and at what containers wrote: nothing inside can forge what they
show.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.display import display

from nsmagic import api, both, container, intake, namespaces, options, standbys, views
from nsmagic.errors import SpecError
from nsmagic.firewall import StreamCleaner
from nsmagic.progress import Progress

if TYPE_CHECKING:
    from nsmagic.container import Container
    from nsmagic.firewall import Filtered

_BOTH_SECONDS: Final = 30.0


class _Recorder:
    """A sink that keeps what is printed, both streams in order, as text."""

    def __init__(self) -> None:
        self._cleaners = {name: StreamCleaner(cursor_up=False) for name in ("stdout", "stderr")}
        self.text = ""

    def stream(self, name: str, data: bytes) -> None:
        """Keep it."""
        self.text += self._cleaners[name].feed(data)

    def display(self, output: Filtered, kind: str, display_id: str | None, *, update: bool) -> None:
        """Keep the text form."""
        del kind, display_id, update
        self.text += f"{output.data.get('text/plain', '')}\n"

    def clear(self, *, wait: bool) -> None:
        """Nothing is cleared."""

    def failure(self, ename: str, evalue: str, traceback: list[str]) -> None:
        """Keep the last line of it."""
        del traceback
        self.text += f"{ename}: {evalue}\n"

    def ask(self, prompt: str, *, password: bool) -> str | None:
        """Both sides run without a person."""
        del prompt, password
        return None


def _named(word: str) -> list[Container]:
    """The live containers of this notebook that a word means: all, or the one of that name or number."""
    live = dict(container.live)
    if not word:
        return list(live.values())
    known = {each.spec.name or str(number): each for number, each in live.items()}
    found = known.get(word) or (live.get(int(word)) if word.isdecimal() else None)
    if found is None:
        text = ", ".join(known) or "none"
        raise SpecError(word[:40], f"is no live container of this notebook; live: {text}; see %containers")
    return [found]


@magics_class
class InstrumentMagics(Magics):  # type: ignore[misc]
    """The instruments."""

    @line_magic  # type: ignore[untyped-decorator]
    def namespaces(self, line: str) -> None:
        """Show which namespaces the live containers have of their own, beside the host's.

            %namespaces                all live containers; without one, a standby
            %namespaces web 3 ...      these, by name or by number in %containers

        Two processes are in the same namespace just when the inodes are equal.  See namespaces(7).
        """
        words = line.split()
        found = [each for word in words for each in _named(word)] if words else _named("")
        columns = [namespaces.column("this notebook"), *namespaces.of(found)]
        if not found:
            pids = standbys.current().payload_pids()[:1]
            columns += [namespaces.column("a standby", pid) for pid in pids]
        text = views.table_text(namespaces.rows(columns))
        display({"text/plain": text, "text/html": namespaces.table_html(columns)}, raw=True)

    @line_magic  # type: ignore[untyped-decorator]
    def changes(self, line: str) -> None:
        """Show what a container wrote: files added, modified and deleted, against the host's folders.

        %changes         the last contained cell
        %changes web     a live container, by its name or its number in %containers
        """
        word = line.strip()
        if word:
            written = _named(word)[0].written()
            try:
                found = written.changes()
            finally:
                written.close()
        else:
            result = self.shell.user_ns.get("_contained")
            if result is None:
                raise SpecError("%changes", "no cell of this notebook has run in a container yet")
            found = result.changes
        rows = views.change_rows(found, most=1000)
        display(views.bundle(rows or [("nothing", "no file was added, modified or deleted")]), raw=True)

    @cell_magic  # type: ignore[untyped-decorator]
    def both(self, line: str, cell: str) -> None:
        """Run a cell twice, on the host and in a fresh container, and show both outputs side by side.

            %%both [--harmless] [options of %%contain]

        On the host the cell runs in a new Python with all your rights, so you are asked first; --harmless
        says that there is no need to ask.
        """
        words = shlex.split(line)
        harmless = "--harmless" in words
        given, rest = options.parse([word for word in words if word != "--harmless"], options.API_SCOPES)
        if rest:
            raise SpecError(rest[0][:40], "stands where an option is expected; see %%both?")
        try:
            code = both.shown_last(cell)
        except SyntaxError as error:
            raise SpecError("%%both", f"the cell is not Python: {error}") from None
        with Progress() as progress:
            spec = intake.container_spec(given, progress)
        job = intake.job_spec(given, kind="script", code=code, argv=("-c",))
        spec = intake.fit(spec, job)
        if not harmless and not self._may_run_outside():
            raise SpecError("%%both", "the cell was not run: it would run on the host, too")
        recorder = _Recorder()
        left = both.outside(code, job.timeout or _BOTH_SECONDS)
        result = api.run_job(spec, job, sink=recorder)
        ended = "" if result.ok else result.describe()
        display(both.bundle(left, both.Side("inside", recorder.text, ended)), raw=True)

    def _may_run_outside(self) -> bool:
        """Ask.  Where nobody can answer, the answer is no."""
        question = "This cell runs on your own system too, with all your rights. Run it? [y/N] "
        kernel = getattr(self.shell, "kernel", None)
        try:
            answer: Any = input(question) if kernel is None else kernel.raw_input(question)
        except Exception as error:  # front ends that cannot ask say so in their own ways
            text = "there is nobody to ask; if the cell is harmless, say %%both --harmless"
            raise SpecError("%%both", text) from error
        return str(answer).strip().lower() in {"y", "yes"}
