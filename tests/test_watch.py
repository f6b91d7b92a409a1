"""``--watch``: the curves reach the limits that the kernel enforced, wherever they are shown."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic import api, cgroups, curve, curve_views, intake, svg, watch, watch_screens
from nsmagic.cgroups import Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
LIMITS = curve.Limits(128 * MIB, 0.5, 40, 2)
HOG = "data = bytearray(10**9)"
TICK = 0.002


def usage(memory: int = 0, cpu: float = 0.0, pids: int = 2, **rest: Any) -> Usage:
    return Usage(cpu, 0.0, memory, rest.pop("memory_peak", memory), pids, rest.pop("pids_peak", pids), **rest)


def drawn(shown: dict[str, str]) -> ET.Element:
    """The picture of a display: it must be an image of well-formed SVG."""
    (data,) = re.findall(r'<img [^>]*src="data:image/svg\+xml;base64,([^"]+)"', shown["text/html"])
    return ET.fromstring(base64.b64decode(data))


class TestCurve:
    def test_a_peak_between_two_readings_is_not_missed(self) -> None:
        it = curve.Curve(LIMITS)
        it.add(0.0, usage(1 * MIB))
        it.add(TICK, usage(2 * MIB, memory_peak=100 * MIB, pids=3, pids_peak=31))
        it.add(2 * TICK, usage(2 * MIB, memory_peak=100 * MIB, pids=3, pids_peak=31))
        assert [point.memory for point in it.points] == [1 * MIB, 100 * MIB, 2 * MIB]
        assert [point.pids for point in it.points] == [1, 30, 2]

    def test_the_peak_of_an_earlier_job_is_not_this_ones(self) -> None:
        it = curve.Curve(LIMITS)
        it.add(0.0, usage(1 * MIB, memory_peak=100 * MIB))
        it.add(TICK, usage(2 * MIB, memory_peak=100 * MIB))
        assert it.memory_peak == 2 * MIB

    def test_points_are_bounded_and_the_highest_stay(self) -> None:
        it = curve.Curve(LIMITS)
        for number in range(100_000):
            it.add(number * TICK, usage(64 * MIB if number == 31_234 else MIB, cpu=number * TICK / 2))
        assert len(it.points) <= curve.MOST_POINTS
        assert it.memory_peak == 64 * MIB
        assert [point.at for point in it.points] == sorted({point.at for point in it.points})
        gaps = [b.at - a.at for a, b in zip(it.points[1:-1], it.points[2:-1], strict=False)]
        assert max(gaps) < 5 * min(gaps), "the points lie about evenly"
        assert it.points[0].at == 0.0
        assert it.points[-1].at == pytest.approx(99_999 * TICK)

    def test_who_was_killed_for_memory_had_reached_the_peak(self) -> None:
        it = curve.Curve(LIMITS)
        it.add(0.0, usage(1 * MIB, oom_kills=0))
        it.add(TICK, usage(60 * MIB, oom_kills=0))
        it.end(2 * TICK, usage(0, memory_peak=128 * MIB, oom_kills=1), "out of memory")
        assert it.killed == (2 * TICK, "out of memory")
        assert it.points[-1].memory == 128 * MIB

    def test_a_kernel_that_knows_no_peak_has_killed_at_the_limit(self) -> None:
        it = curve.Curve(LIMITS)
        it.add(0.0, usage(1 * MIB, memory_peak=None, pids_peak=None, oom_kills=0))
        it.end(TICK, usage(0, memory_peak=None, pids_peak=None, oom_kills=1), "out of memory")
        assert it.points[-1].memory == LIMITS.mem

    def test_a_share_of_one_half_that_is_used_up_is_at_its_limit(self) -> None:
        """Half of each period at full speed, then nothing: as the kernel gives out a share of time."""
        it = curve.Curve(LIMITS)
        used = 0.0
        for number in range(500):
            used += TICK if number % 50 < 25 else 0
            it.add(number * TICK, usage(cpu=used))
        shares = it.cpu_shares()
        assert max(share for _, share in shares) == pytest.approx(0.5, rel=0.1)
        assert all(share == pytest.approx(0.5, rel=0.1) for at, share in shares if at > 0.2)

    def test_what_nobody_counts_is_said_and_not_zero(self) -> None:
        it = curve.Curve(LIMITS)
        it.add(0.0, Usage(memory=MIB, memory_peak=MIB))
        it.add(TICK, Usage())
        assert len(it.points) == 1
        words = curve_views.text(it)
        assert words.count("not counted here") == 2
        assert curve_views.drawing(it)

    def test_without_any_reading_it_can_be_drawn(self) -> None:
        it = curve.Curve(curve.Limits(None, None, None, 2))
        it.end(1.0, Usage(), "gone")
        assert "gone" in curve_views.text(it)
        drawn(curve_views.bundle(it))

    def test_hostile_words_stay_words(self) -> None:
        it = curve.Curve(LIMITS)
        it.add(0.0, usage())
        it.notes = ("<b>note</b>",)
        it.end(TICK, usage(), 'E: </svg><script>alert("x")</script>\x1b[2J\n\x07')
        shown = curve_views.bundle(it)
        assert "<script" not in shown["text/html"]
        assert "<b>note" not in shown["text/html"]
        assert "\x1b" not in shown["text/plain"]
        assert len(shown["text/plain"].splitlines()) == 5

    def test_the_blocks_are_full_only_at_the_limit(self) -> None:
        for memory, block in ((127 * MIB, "▇"), (128 * MIB, "█")):
            it = curve.Curve(LIMITS)
            it.add(0.0, usage(0))
            it.add(TICK, usage(memory))
            assert curve_views.text(it).splitlines()[1].partition("|")[2][39] == block
        assert curve_views.text(it, plain=True).isascii()


@pytest.mark.limits
def test_a_notebook_is_not_flooded(quiet: Path) -> None:
    class Publisher:
        def __init__(self) -> None:
            self.updates: list[bool] = []

        def publish(self, data: dict[str, str], metadata: object, *, transient: object, update: bool) -> None:
            self.updates.append(update)

    publisher = Publisher()
    with watch.Watch(watch_screens.NotebookScreen(publisher)) as watching:
        spec, job = (
            intake.container_from({}),
            intake.job_from("import time; time.sleep(1)", (), {}, variables=False),
        )
        assert api.run_job(spec, job, observer=watching).ok
    assert publisher.updates[0] is False
    assert all(publisher.updates[1:]), "one display, updated"
    assert 3 <= len(publisher.updates) <= 2 + watching.curve.lasted / 0.2


def test_what_is_not_counted_is_known_beforehand(limits_lack: str) -> None:
    lost = {each.what for each in cgroups.mechanisms()[-1].uncounted()}
    assert lost == {"mem", "cpus", "pids"}
    if not limits_lack:
        assert not {"mem", "pids"} & {each.what for each in cgroups.mechanisms()[0].uncounted()}


def test_ticks_are_round_and_few() -> None:
    for total in (0.0013, 0.09, 1.0, 2.28, 7.0, 3600.0):
        found = svg.ticks(total)
        assert 2 <= len(found) <= 7
        assert found[-1] <= total * 1.001
    assert svg.ticks(0.0) == [0.0]


class Recorder:
    """A screen that keeps how many points there were, and in the end the curve."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.curve: curve.Curve | None = None

    def every(self, lasted: float) -> float | None:
        return 0.01

    def show(self, shown: curve.Curve) -> None:
        self.seen.append(len(shown.points))
        self.curve = shown

    def wrap(self, sink: Any, terminals: frozenset[str]) -> Any:
        return sink


def watched(code: str, **options: Any) -> tuple[curve.Curve, Recorder, Any]:
    """Run code and look on."""
    screen = Recorder()
    spec = intake.container_from(options)
    with watch.Watch(screen) as watching:
        result = api.run_job(spec, intake.job_from(code, (), {}, variables=False), observer=watching)
    assert screen.curve is not None
    return screen.curve, screen, result


def no_thread_is_left() -> bool:
    return all(thread.name != "nsmagic-watch" for thread in threading.enumerate())


@pytest.mark.limits
@pytest.mark.hosts
class TestReal:
    def test_a_hog_that_dies_at_once_has_a_curve_into_its_limit(self, quiet: Path) -> None:
        found, _, result = watched(HOG, mem="128M")
        assert result.outcome == "out-of-memory"
        assert found.killed is not None
        assert found.memory_peak == result.usage.memory_peak
        assert found.memory_peak >= 0.98 * 128 * MIB
        at = [point for point in found.points if point.at >= found.killed.at]
        assert at[0].memory == found.memory_peak, "the death is marked at the line"
        assert found.points[0].memory < 64 * MIB
        assert "out of memory" in curve_views.headline(found)
        assert no_thread_is_left()

    def test_what_is_shown_is_what_the_kernel_counts(self, quiet: Path) -> None:
        code = (
            "import threading, time\nkept = bytearray(50 << 20)\n"
            "threads = [threading.Thread(target=time.sleep, args=(0.5,)) for _ in range(9)]\n"
            "for each in threads: each.start()\nend = time.process_time() + 0.2\n"
            "while time.process_time() < end: pass\nfor each in threads: each.join()\nkept[-1]"
        )
        found, screen, result = watched(code, mem="200M", pids=30)
        assert result.ok, result.describe()
        assert 50 * MIB <= found.memory_peak <= 200 * MIB
        assert 10 <= found.pids_peak <= 30
        assert found.cpu_used == pytest.approx(result.usage.cpu_user + result.usage.cpu_system, abs=0.1)
        assert screen.seen == sorted(screen.seen), "the picture grew while it ran"
        assert len(screen.seen) > 3

    def test_a_refused_process_is_marked(self, quiet: Path) -> None:
        code = (
            "import threading, time\nfor _ in range(30):\n"
            "    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()"
        )
        found, _, result = watched(code, pids=12)
        assert result.outcome == "pids-limit"
        assert found.refused is not None
        assert found.pids_peak == 12

    def test_the_second_job_of_a_container_begins_anew(self, keep: Callable[..., Any]) -> None:
        box, curves = keep(mem="200M"), []
        for code in ("kept = bytearray(100 << 20); kept[-1]", "import time; time.sleep(0.05)"):
            with watch.Watch(Recorder()) as watching:
                job = intake.job_from(code, (), {}, variables=False)
                assert box.run_job(job, observer=watching).ok
            curves.append(watching.curve)
        assert curves[0].memory_peak > 100 * MIB > curves[1].memory_peak


@pytest.mark.container
def test_where_nobody_counts_it_is_refused_with_the_remedy(
    quiet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsmagic import HostError

    reason, remedy = "a group cannot be made", "Be root"
    monkeypatch.setattr(cgroups, "mechanisms", lambda: [cgroups.rlimits.Rlimits()])
    monkeypatch.setattr(cgroups, "unavailable", lambda: [cgroups.Unavailable("cgroup v1", reason, remedy)])
    with pytest.raises(HostError, match=f"--watch .*{reason}. {remedy}; .*--best-effort"):
        watch.require(intake.container_from({}))
    watch.require(intake.container_from({"best_effort": True}))
    found, _, result = watched("import time; time.sleep(0.5)", best_effort=True)
    assert result.ok
    assert any(reason in note and remedy in note for note in found.notes)
    assert found.memory_peak, "what /proc shows is better than nothing"
    assert reason in curve_views.text(found)


@pytest.mark.container
def test_a_run_that_comes_to_nothing_does_not_look_as_if_it_went_on(quiet: Path) -> None:
    from nsmagic import StartError

    screen = Recorder()
    spec = intake.container_from({"bind": "/usr/share:/usr/no-such/x"})
    job = intake.job_from("1", (), {}, variables=False)
    watching = watch.Watch(screen)
    with pytest.raises(StartError), watching:
        api.run_job(spec, job, observer=watching)
    assert screen.curve is not None
    assert screen.curve.ended is not None
    assert "could not be built" in screen.curve.ended.words
    assert no_thread_is_left()


@pytest.mark.limits
def test_an_interrupt_ends_the_picture_too(quiet: Path) -> None:
    class Impatient(Recorder):
        def show(self, shown: curve.Curve) -> None:
            super().show(shown)
            if len(self.seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    screen = Impatient()
    watching = watch.Watch(screen)
    spec, job = intake.container_from({}), intake.job_from("while True: pass", (), {}, variables=False)
    with pytest.raises(KeyboardInterrupt), watching:
        api.run_job(spec, job, observer=watching)
    assert screen.curve is not None
    assert screen.curve.ended is not None
    assert screen.curve.ended.words == "interrupted"
    assert no_thread_is_left()


class TestTerminal:
    def test_what_is_drawn_goes_away_for_output_and_waits_for_the_end_of_a_line(self) -> None:
        class Terminal(io.StringIO):
            encoding = "utf-8"

            def isatty(self) -> bool:
                return True

        class Out:
            def stream(self, name: str, data: bytes) -> None:
                stream.write(data.decode())

        stream, it = Terminal(), curve.Curve(LIMITS)
        screen = watch_screens.TerminalScreen(stream)
        sink = screen.wrap(Out(), frozenset({"stdout"}))  # type: ignore[arg-type]
        it.add(0.0, usage())
        screen.show(it)
        up = "\x1b[4A\r\x1b[J"
        assert up not in stream.getvalue()
        screen.show(it)
        assert stream.getvalue().count(up) == 1
        sink.stream("stdout", b"half")
        assert stream.getvalue().endswith(up + "half")
        screen.show(it)
        assert stream.getvalue().endswith("half"), "nothing is drawn behind half a line"
        sink.stream("stdout", b" whole\n")
        screen.show(it)
        it.end(TICK, usage(), "exit status 0")
        screen.show(it)
        assert stream.getvalue().count("half whole\n") == 1
        assert stream.getvalue().count(up) == 3
        assert stream.getvalue().endswith("1 of 40\n")

    def test_a_file_gets_the_last_picture_only(self) -> None:
        stream, it = io.StringIO(), curve.Curve(LIMITS)
        screen = watch_screens.TerminalScreen(stream)
        assert screen.every(1.0) is None
        it.add(0.0, usage())
        screen.show(it)
        assert not stream.getvalue()
        it.end(TICK, usage(), "exit status 0")
        screen.show(it)
        assert len(stream.getvalue().splitlines()) == 4
        assert "\x1b" not in stream.getvalue()

    @pytest.mark.limits
    def test_the_command_line_draws_in_place_on_a_terminal(self, quiet: Path) -> None:
        ours, theirs = pty.openpty()
        code = "import time; print('seen', flush=True); time.sleep(1)"
        command = [sys.executable, "-I", "-m", "nsmagic.cli", "run", "--watch", "--mem", "100M", "-c", code]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:  # the terminal hangs up
            pass
        assert process.wait(60) == 0
        os.close(ours)
        assert b"\x1b[4A" in shown
        assert shown.count(b"ended after") == 1
        assert shown.count(b"seen") == 1

    @pytest.mark.limits
    def test_ipython_draws_in_place_on_a_terminal(self, quiet: Path) -> None:
        ours, theirs = pty.openpty()
        line = "%contain --watch --mem 100M import time; print('seen', flush=True); time.sleep(1)"
        command = [
            sys.executable,
            "-I",
            "-m",
            "IPython",
            "--no-banner",
            "--simple-prompt",
            "--colors=NoColor",
        ]
        environment = {**os.environ, "IPYTHONDIR": str(quiet / "ipython")}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        os.write(ours, f"%load_ext nsmagic\n{line}\nexit()\n".encode())
        shown = b""
        try:
            while data := os.read(ours, 1 << 16):
                shown += data
        except OSError:
            pass
        assert process.wait(60) == 0
        os.close(ours)
        assert b"\x1b[4A" in shown
        assert shown.count(b"ended after") == 1
        assert b"exit status 0" in shown

    @pytest.mark.limits
    def test_the_command_line_tells_a_file_once(self, quiet: Path) -> None:
        command = [sys.executable, "-I", "-m", "nsmagic.cli", "run", "--watch", "--mem", "64M", "-c", HOG]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 137
        words = done.stderr.decode()
        assert "\x1b" not in words
        (line,) = [line for line in words.splitlines() if line.startswith("memory")]
        assert "█" in line
        assert "out of memory" in line


@pytest.mark.limits
def test_a_notebook_keeps_the_last_picture(quiet: Path) -> None:
    import nbformat
    from instrument_cells import run

    cells = [
        "%load_ext nsmagic",
        f"%%contain --watch --mem 128M --no-raise-error\nprint('begun')\n{HOG}",
        "%%contain --watch --mem 128M bash\nsleep 1; echo done",
        "%%contain --watch --mem 128M --bg --proc job\nprint('behind')",
        "job.wait(30);",  # and nbclient takes an update from the cell that is running only
    ]
    book = run(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), str(quiet)
    )
    pictures = [
        [output.data for output in cell.outputs if output.output_type == "display_data"]
        for cell in book.cells
    ]
    assert [len(found) for found in pictures] == [0, 1, 1, 1, 0]
    assert "out of memory" in pictures[1][0]["text/plain"]
    assert "out of memory" in "".join(drawn(pictures[1][0]).itertext())
    assert "exit status 0" in pictures[2][0]["text/plain"]
    assert "ended" in pictures[3][0]["text/plain"]
    assert "begun" in json.dumps(book.cells[1].outputs)
