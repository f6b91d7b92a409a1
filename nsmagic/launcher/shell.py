"""IPython's shell as a cell in a container has it: rich output goes out as frames.

Made once in the launcher, without history (whose thread could not be cloned), and warmed by running what
every cell will run.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from IPython.utils.text import SList
from traitlets.config import Config

from nsmagic.launcher import frames

if TYPE_CHECKING:
    from nsmagic.launcher.runner import Channel


def _raw(value: dict[str, Any]) -> Any:
    """A value that the receiver takes undecoded; the sender encodes it like any other."""
    return value


class _Nowhere:
    """Takes what the launcher itself displays while it warms up."""

    def show(self, message: frames.Display | frames.Clear) -> None:
        """Drop it."""

    def send(self, message: frames.FromRunner) -> None:
        """Drop it."""


class FramePublisher(DisplayPublisher):  # type: ignore[misc]
    """``display()`` and ``clear_output()``, as frames."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **rest: object,
    ) -> None:
        """Send one rich output."""
        del source, rest
        display_id = (transient or {}).get("display_id")
        message = frames.Display(
            "display", _raw(data), _raw(metadata or {}), display_id and str(display_id), update
        )
        self.shell.channel.show(message)

    def clear_output(self, wait: bool = False) -> None:  # noqa: FBT001, FBT002 - IPython's signature
        """Clear what was shown."""
        self.shell.channel.show(frames.Clear(bool(wait)))


class FrameDisplayHook(DisplayHook):  # type: ignore[misc]
    """A cell's last expression, as a frame."""

    def write_output_prompt(self) -> None:
        """The front end writes it."""

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        """Send the value in all its formats."""
        self.shell.channel.show(frames.Display("result", _raw(format_dict), _raw(md_dict or {})))

    def quiet(self) -> bool:
        """Whether the cell ends with a semicolon, which asks for no display."""
        return bool(self.semicolon_at_end_of_expression(self.shell.source))

    def finish_displayhook(self) -> None:
        """No newline: the front end has its own."""


class RunnerShell(InteractiveShell):  # type: ignore[misc]
    """The shell that runs a contained cell."""

    channel: Channel | _Nowhere = _Nowhere()
    source = ""

    def run_source(self, source: str) -> ExecutionResult:
        """Run a cell, out of history."""
        self.source = source
        return self.run_cell(source, store_history=False)

    def attach(self, channel: Channel) -> None:
        """From now on, frames go to the owner."""
        self.channel = channel

    def enable_gui(self, gui: str | None = None) -> None:
        """``%matplotlib inline``: there is no window system in here, and no event loop to join."""

    def ask_exit(self) -> None:
        """``exit`` and ``quit``."""
        raise SystemExit(0)

    def init_virtualenv(self) -> None:
        """The launcher's ``sys.path`` is the owner's already."""

    def _showtraceback(self, etype: type, evalue: BaseException, stb: list[str]) -> None:
        # An exit is told by its status, as python(1) does it.
        if etype is not SystemExit:
            lines = "\n".join(stb).split("\n")
            self.channel.send(frames.Failure(etype.__name__, str(evalue), lines))

    def system(self, command: str) -> None:
        """``!command``: on plain pipes; IPython's default goes through a terminal and costs 40 ms."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        status = subprocess.call(["/bin/sh", "-c", self.var_expand(command, depth=1)])
        self.user_ns["_exit_code"] = status

    def getoutput(self, command: str, split: bool = True, depth: int = 0) -> SList | str:  # noqa: FBT001, FBT002 - IPython's
        """``lines = !command``."""
        sys.stderr.flush()
        text = subprocess.run(
            ["/bin/sh", "-c", self.var_expand(command, depth=depth + 1)],
            stdout=subprocess.PIPE,
            check=False,
        ).stdout.decode(errors="replace")
        return SList(text.splitlines()) if split else text


def _show_in_pager(shell: InteractiveShell, data: object, *rest: object) -> None:
    """``?name`` in a cell: there is no pager in here, so it is printed."""
    del shell, rest
    text = data.get("text/plain", "") if isinstance(data, dict) else data
    print(text)  # noqa: T201 - that is its place


def warm_shell() -> RunnerShell:
    """A shell that has already done once what a cell does, so that its clones need import nothing more."""
    config = Config()
    # The history manager starts a thread unless it is off before the shell is made.
    config.HistoryManager.enabled = False
    config.HistoryAccessor.enabled = False
    config.InteractiveShell.display_page = False
    shell: RunnerShell = RunnerShell.instance(
        config=config, displayhook_class=FrameDisplayHook, display_pub_class=FramePublisher
    )
    shell.colors = "neutral" if _has_neutral() else "Neutral"
    shell.set_hook("show_in_pager", _show_in_pager, 99)
    for code in (
        "1 + 1",
        "display({'a': 1})" if "display" in shell.user_ns else "None",
        "1 / 0",
        "import asyncio",
    ):
        shell.run_source(code)
    shell.reset(new_session=False)
    shell.execution_count = 1
    return shell


def _has_neutral() -> bool:
    """IPython 9 writes its colour names small."""
    import IPython  # noqa: PLC0415 - for its version only

    return bool(IPython.version_info[0] >= 9)  # noqa: PLR2004 - the version that changed it
