"""One job on its way through a container's channels, as the owner sees it: feed, stream, wait.

A loop around poll(2) in the caller's own thread moves bytes and frames until the job is over.  What comes
from the runner is believed only where no harm lies in believing; how a process ended is told by init, what
it used by the kernel.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nsmagic import firewall
from nsmagic.launcher import frames
from nsmagic.sinks import KeepingSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsmagic.channels import Channels
    from nsmagic.report import Report
    from nsmagic.sinks import Sink
    from nsmagic.spec import JobSpec

_READ_BYTES: Final = 1 << 20
_DRAIN_BYTES: Final = 4 << 20
_MAX_DISPLAYS: Final = 10_000
_LEAST_FRAME: Final = 64
_FRAME_BYTES: Final = 1 << 20
_MOST_STATUS: Final = 0xFFFF
_MOST_OWED: Final = 1 << 16
_DEADLINE_GRACE: Final = 1.0
_BUILD_SECONDS: Final = 90.0
_BUILDING_MS: Final = 5
"""While it is built the report is looked at so often: another thread may have read its last word."""
_STOP_SECONDS: Final = 1.0
_WATCH_SECONDS: Final = 0.05


@dataclass
class Ending:
    """How the loop ended.

    Attributes:
        why: ``done`` (the runner said so), ``exited`` (init said so, or is gone), ``kept`` (one job of
            several), ``output-limit``, ``deadline``, ``memory`` (the watchdog), ``bad-frame`` or ``failed``
            (never built).
        wall: seconds.
        done: the runner's last word.
        status: of a kept job's process, as waitpid(2) gives it.
        failure: the exception that a cell ended with.
        no_program: errno of an exec that failed.
        dropped: bytes over the output limit.
        printed: bytes of each stream that were passed on.
        bad_frame: what it sent that makes no sense.
    """

    why: str
    wall: float
    done: frames.Done | None = None
    status: int | None = None
    failure: tuple[str, str, list[str]] | None = None
    no_program: int | None = None
    dropped: int = 0
    printed: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    bad_frame: str = ""


class Run:
    """One job.

    Args:
        channels: of its container.
        report: what has been said about the container so far.
        reader: of the control channel, which may hold a part of a frame.
        job: what is run.
        message: the frame that tells the runner.
        sink: where output goes.
        stdin: bytes for its standard input, or a descriptor to copy from, or None for none.
        memory: called now and then where a watchdog enforces the limit; True when it is passed.
    """

    def __init__(
        self,
        channels: Channels,
        report: Report,
        reader: frames.FrameReader,
        job: JobSpec,
        message: frames.Job,
        sink: Sink,
        stdin: bytes | int | None,
        memory: Callable[[], bool] | None,
    ) -> None:
        self._channels, self._report, self._reader, self._job = channels, report, reader, job
        self._keep, self._sink, self._memory = message.keep, sink, memory
        self._can_ask = message.ask
        reader.limit = frames.MAX_FRAME if job.outputs else frames.MAX_SMALL_FRAME
        self._to_runner = bytearray(frames.encode_frame(message))
        self._source = stdin if isinstance(stdin, int) else -1
        self._to_stdin = memoryview(stdin) if isinstance(stdin, bytes) else memoryview(b"")
        self._poll = select.poll()
        self._streams = {channels.stdout: "stdout", channels.stderr: "stderr"}
        self._ended: str | None = None
        self._began = time.monotonic()
        self._room = job.output_limit
        self._frame_room = max(job.output_limit, _FRAME_BYTES)
        self._displays = 0
        self._display_ids: dict[str, str] = {}
        self._control_open = True
        self._secured = False
        self.started = False
        self.ending = Ending("exited", 0.0)

    def run(self, *, ready: bool) -> Ending:
        """Move bytes until the job is over.

        Args:
            ready: whether the runner has said that it waits.
        """
        poll, channels = self._poll, self._channels
        for descriptor in self._streams:
            poll.register(descriptor, select.POLLIN)
        poll.register(channels.report.fileno(), select.POLLIN)
        if self._source >= 0:
            poll.register(self._source, select.POLLIN)
        elif self._keep:
            pass  # each job's input goes with its frame
        elif not self._to_stdin:
            channels.close_stdin()
        else:
            poll.register(channels.stdin, select.POLLOUT)
        self._want_control()
        self._read_report()  # of a standby all is there already
        if ready:
            self._start()
        while self._ended is None:
            for descriptor, event in self._sorted(poll.poll(self._timeout_ms())):
                if self._ended is None:
                    self._handle(descriptor, event)
            if self._ended is None:
                self._check_init()
                self._check_clocks()
        if self._ended == "kept":
            channels.set_deadline(0)  # it was this job's, and the container goes on
        self.ending.why = self._ended
        self.ending.wall = time.monotonic() - self._began
        return self.ending

    # ---- clocks --------------------------------------------------------------

    def _start(self) -> None:
        """The runner waits for its job: from here on, time counts."""
        self.started = True
        self._began = time.monotonic()
        if self._job.timeout is not None:
            self._channels.set_deadline(self._job.timeout)

    def _timeout_ms(self) -> int | None:
        if self._memory is not None:
            return int(_WATCH_SECONDS * 1000)
        if not self._secured:
            return _BUILDING_MS
        if not self.started:
            return int(_BUILD_SECONDS * 1000)
        if self._job.timeout is not None:
            left = self._began + self._job.timeout + _DEADLINE_GRACE - time.monotonic()
            return max(0, int(left * 1000) + 1)
        return None

    def _check_clocks(self) -> None:
        # Init enforces the deadline; this is for an init that cannot, such as a frozen one.
        if not self.started and time.monotonic() > self._began + _BUILD_SECONDS:
            self._ended = "failed"
        timeout = self._job.timeout
        if (
            self.started
            and timeout is not None
            and time.monotonic() > self._began + timeout + _DEADLINE_GRACE
        ):
            self._ended = "deadline"
        if self._memory is not None and self._memory():
            self._ended = "memory"

    # ---- descriptors -----------------------------------------------------------

    def _sorted(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Streams before frames before the report: what was printed first is shown first."""
        order = {self._channels.control.fileno(): 1, self._channels.report.fileno(): 2}
        return sorted(events, key=lambda event: order.get(event[0], 0))

    def _handle(self, descriptor: int, event: int) -> None:
        if descriptor in self._streams:
            self._read_stream(descriptor, _READ_BYTES)
        elif descriptor == self._channels.control.fileno():
            if event & select.POLLOUT:
                self._write_control()
            if event & ~select.POLLOUT:
                self._read_control()
        elif descriptor == self._channels.report.fileno():
            self._read_report()
        elif descriptor == self._source:
            self._read_source()
        else:
            self._write_stdin()

    def _read_stream(self, descriptor: int, most: int) -> int:
        """Read once; how many bytes there were, 0 at the end or where none are waiting."""
        try:
            data = os.read(descriptor, most)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(descriptor)
            del self._streams[descriptor]
            return 0
        self._take_output(self._streams[descriptor], data)
        return len(data)

    def _take_output(self, name: str, data: bytes) -> None:
        room = max(self._room, 0)
        if len(data) > room:
            self.ending.dropped += len(data) - room
            if self._job.at_output_limit == "stop":
                self._ended = "output-limit"
            data = data[:room]
        if data:
            self._room -= len(data)
            self.ending.printed[name] += len(data)
            self._sink.stream(name, data)

    def _drain(self, most: int = _DRAIN_BYTES) -> None:
        """Show what has been printed so far; bounded, since a flood has no end."""
        for descriptor in list(self._streams):
            left = most
            while left > 0 and descriptor in self._streams and self._ended != "output-limit":
                count = self._read_stream(descriptor, min(left, _READ_BYTES))
                if not count:
                    break
                left -= count

    def _drain_to_end(self) -> None:
        """All processes are dead, so the streams end; if not all are, not for long."""
        deadline = time.monotonic() + _STOP_SECONDS
        while self._streams and self._ended != "output-limit":
            self._drain()
            wait = deadline - time.monotonic()
            if not self._streams or wait <= 0:
                return
            waiting = select.poll()
            for descriptor in self._streams:
                waiting.register(descriptor, select.POLLIN)
            waiting.poll(int(wait * 1000) + 1)

    # ---- the report --------------------------------------------------------------

    def _read_report(self) -> None:
        report = self._report
        report.take(self._channels.report)
        self._check_init()
        if self._ended is None and (report.exit is not None or report.closed):
            self._drain_last()

    def _check_init(self) -> None:
        """Whether init has built all and is secured; another thread may have read that in the report."""
        if self._report.failed:
            self._ended = "failed"
        elif self._report.built and not self._secured:
            self._secured = True
            if self._control_open:
                self._want_control()

    def _drain_last(self) -> None:
        """Init is gone.  Frames that were sent before the end are still there: an error, values."""
        self._drain_to_end()
        while self._control_open and self._ended is None and self._read_control():
            pass
        # Whoever is gone cannot be "done" any more than it is "exited": init's word stands.
        if self._ended is None or self._ended == "done":
            self._ended = "exited" if self._ended is None else "done"

    # ---- the control channel ---------------------------------------------------------

    def _want_control(self) -> None:
        # Nothing is given to a runner whose init could not be secured: it may be quicker than that is known.
        give = self._to_runner and self._secured
        wanted = select.POLLIN | (select.POLLOUT if give else 0)
        self._poll.register(self._channels.control.fileno(), wanted)

    def _write_control(self) -> None:
        if not self._secured:
            return
        try:
            sent = self._channels.control.send(self._to_runner[: 1 << 20])
        except BlockingIOError:
            return
        except OSError:
            self._to_runner.clear()
        else:
            del self._to_runner[:sent]
        self._want_control()

    def _tell(self, message: frames.Answer | frames.Go) -> None:
        self._to_runner += frames.encode_frame(message)
        if len(self._to_runner) > _MOST_OWED and self.started:
            raise frames.FrameError("frames that want answers which it does not read")
        self._write_control()

    def _read_control(self) -> bool:
        """Read once; whether more may be there."""
        try:
            data = self._channels.control.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close_control()
            return False
        try:
            for message in self._reader.feed(data):
                self._count_frame(message, self._reader.length)
                self._take_frame(message)
                if self._ended is not None:
                    return False
        except frames.FrameError as error:
            # Nothing that follows can be believed either.
            self._end_badly(str(error))
        return self._control_open

    def _end_badly(self, problem: str) -> None:
        """A frame that makes no sense ends the channel; of several jobs none could be told from the next."""
        self.ending.bad_frame = problem
        self._close_control()
        if self._keep and self._ended is None:
            self._ended = "bad-frame"

    def _count_frame(self, message: frames.FromRunner, length: int) -> None:
        """Rich output is output; and of the other frames there may be many, but not without end."""
        match message:
            case frames.Display():
                self._room -= length
            case frames.Ready() | frames.Done():
                return
            case _:
                self._frame_room -= max(length, _LEAST_FRAME)
        full = self._room < 0 and self._job.at_output_limit == "stop"
        if (full or self._frame_room < 0) and self._ended is None:
            self._ended = "output-limit"

    def _close_control(self) -> None:
        if self._control_open:
            self._control_open = False
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._channels.control.fileno())

    def _take_frame(self, message: frames.FromRunner) -> None:
        match message:
            case frames.Ready():
                if not self.started:
                    self._start()
            case frames.Display():
                self._drain()
                self._show(message)
                self._tell(frames.Go())
            case frames.Clear(wait=wait):
                self._drain()
                self._sink.clear(wait=wait)
                self._tell(frames.Go())
            case frames.Failure(ename=ename, evalue=evalue, traceback=traceback):
                self._drain()
                self.ending.failure = firewall.clean_traceback(ename, evalue, traceback)
                self._sink.failure(*self.ending.failure)
            case frames.Ask(prompt=prompt, password=password):
                self._drain()
                shown = firewall.clean_stream(prompt[:10_000])
                # Whether one may ask is for us to say, not for what may be a forgery.
                answer = self._sink.ask(shown, password=password) if self._can_ask else None
                self._tell(frames.Answer(answer))
            case frames.NoProgram(errno=errno):
                self.ending.no_program = errno
            case frames.Done():
                self._drain()
                self.ending.done = message
                if not self._keep and self._ended is None:
                    self._ended = "done"
            case frames.Exited(status=status):
                self._drain()
                self._take_exited(status)
            case _:
                self._take_keeping(message)

    def _take_keeping(self, message: frames.Keeping | frames.Revived) -> None:
        if isinstance(self._sink, KeepingSink):
            self._sink.keeping(message)

    def _take_exited(self, status: int) -> None:
        if not 0 <= status <= _MOST_STATUS or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            self._end_badly(f"{status}, which is no way for a process to end")
        elif self._keep and self._ended is None:
            self.ending.status = status
            self._ended = "kept"

    def _show(self, message: frames.Display) -> None:
        self._displays += 1
        if self._room < 0 or self._displays > _MAX_DISPLAYS:
            self.ending.dropped += self._reader.length
            return
        data = {mime: frames.loads(raw) for mime, raw in message.data.items()}
        metadata = frames.loads(message.metadata)
        if not isinstance(metadata, dict):
            raise frames.FrameError("metadata of no known form")
        output = firewall.filter_bundle(data, metadata, trusted=self._job.rich == "trusted")
        kind = "result" if message.kind == "result" else "display"
        display_id = self._own_id(message.display_id)
        self._sink.display(output, kind, display_id, update=message.update and display_id is not None)

    def _own_id(self, theirs: str | None) -> str | None:
        """Their name for an output, under one that cannot be anybody else's."""
        if theirs is None:
            return None
        if theirs not in self._display_ids and len(self._display_ids) < _MAX_DISPLAYS:
            self._display_ids[theirs] = f"nsmagic-{uuid.uuid4().hex}"
        return self._display_ids.get(theirs)

    # ---- standard input ------------------------------------------------------------------

    def _read_source(self) -> None:
        """Copy from the owner's descriptor, one piece at a time, as fast as it is taken."""
        try:
            data = os.read(self._source, 1 << 16)
        except OSError:  # a folder, a terminal that hung up: nothing to read
            data = b""
        self._poll.unregister(self._source)
        if data:
            self._to_stdin = memoryview(data)
            self._poll.register(self._channels.stdin, select.POLLOUT)
        else:
            self._source = -1
            self._channels.close_stdin()

    def _write_stdin(self) -> None:
        try:
            written = os.write(self._channels.stdin, self._to_stdin)
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            written = len(self._to_stdin)
            self._source = -1
        self._to_stdin = self._to_stdin[written:]
        if not self._to_stdin:
            self._poll.unregister(self._channels.stdin)
            if self._source >= 0:
                self._poll.register(self._source, select.POLLIN)
            else:
                self._channels.close_stdin()
