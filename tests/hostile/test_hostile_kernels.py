"""What a hostile kernel tries against its supervisor, and what must come of it: an error or the truth.

A real supervisor runs ``hostile_kernel.py`` as a wrapped program.  While each attack goes on, a front end's
questions to the supervisor are answered, its memory and descriptors stay bounded; afterwards a cell runs.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from nsmagic.kernel import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTILE = Path(__file__).with_name("hostile_kernel.py")
KEY = "the outer key"
LIMIT = 4 << 20
SECONDS = 30.0
SOON = 5.0
"""Within which an answer of the supervisor's own must come, on a machine that does other things as well."""
GROWTH = 200 << 20
"""Bytes by which the supervisor may grow at most: what four channels and JSON's objects can take up."""


class FrontEnd:
    """A client that says and hears everything, and the supervisor that it talks to."""

    def __init__(self, folder: Path, *start: str, before: str = "") -> None:
        self.folder = folder
        shutil.copy(HOSTILE, folder / HOSTILE.name)
        (folder / HOSTILE.name).chmod(0o644)
        ports = {
            f"{name}_port": number
            for number, name in enumerate(("shell", "control", "stdin", "iopub", "hb"), 1)
        }
        sockets = folder.parent / f"s{uuid.uuid4().hex[:8]}"
        connection = {
            "transport": "ipc",
            "ip": str(sockets),
            "key": KEY,
            "signature_scheme": "hmac-sha256",
            **ports,
        }
        file = folder.parent / f"{sockets.name}.json"
        file.write_text(json.dumps(connection))
        code = f"import sys, os; {before}\nfrom nsmagic.kernel.__main__ import main\nsys.exit(main(sys.argv[1:]))"
        words = ["-f", str(file), "--best-effort", "--output-limit", str(LIMIT)]
        self.log = (folder.parent / f"{sockets.name}.log").open("wb+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words, "--", sys.executable, HOSTILE.name, *start, str(file)],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.context = zmq.Context()
        identity = uuid.uuid4().hex.encode()
        self.sockets: dict[str, zmq.Socket[bytes]] = {}
        for name, kind in (
            ("shell", zmq.DEALER),
            ("control", zmq.DEALER),
            ("stdin", zmq.DEALER),
            ("iopub", zmq.SUB),
        ):
            socket = self.sockets[name] = self.context.socket(kind)
            socket.linger = 0
            socket.rcvhwm = 0
            if kind == zmq.SUB:
                socket.subscribe(b"")
            else:
                socket.setsockopt(zmq.IDENTITY, identity)
            socket.connect(f"ipc://{sockets}-{ports[f'{name}_port']}")
        self.key = wire.Key(KEY.encode())
        self.writer = wire.Writer(self.key)
        self.seen: list[tuple[str, wire.Message]] = []
        self.wait(lambda: any(message.header.msg_type == "iopub_welcome" for _, message in self.seen))

    # ---- messages ----------------------------------------------------------------------

    def take(self, seconds: float) -> None:
        """Take what comes within so many seconds, until something has come."""
        poller = zmq.Poller()
        for socket in self.sockets.values():
            poller.register(socket, zmq.POLLIN)
        for socket, _ in poller.poll(int(seconds * 1000)):
            name = next(name for name, each in self.sockets.items() if each is socket)
            for _ in range(100):
                try:
                    self.seen.append((name, wire.parse(socket.recv_multipart(zmq.NOBLOCK), self.key)))
                except zmq.Again:
                    break

    def wait(self, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """Wait until what was heard makes this true."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came in {seconds} s; {self.told()}"
            assert self.process.poll() is None, f"the supervisor has ended; {self.told()}"
            self.take(min(left, 0.2))
        return found

    def told(self) -> str:
        """What there is to say when something went wrong."""
        self.log.flush()
        kinds = [f"{name}:{message.header.msg_type}" for name, message in self.seen[-10:]]
        return (
            f"last heard {kinds}, logged {Path(self.log.name).read_bytes()[-3000:].decode(errors='replace')}"
        )

    def send(self, kind: str, content: Any, channel: str = "shell", msg_id: str = "") -> str:
        """Send a request; gives its name."""
        frames = self.writer.frames(kind, content)
        if msg_id:
            header = {**json.loads(frames[2]), "msg_id": msg_id}
            parts = [json.dumps(header).encode(), *frames[3:]]
            frames = [frames[0], self.key.sign(parts), *parts]
        self.sockets[channel].send_multipart(frames)
        return str(json.loads(frames[2])["msg_id"])

    def about(self, name: str, kind: str = "") -> list[dict[str, Any]]:
        """The contents of what came about a request."""
        return [
            json.loads(message.parts[3])
            for _, message in self.seen
            if message.parent_id == name and kind in {"", message.header.msg_type}
        ]

    def reply(self, name: str, kind: str, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for the reply to a request."""
        found: list[dict[str, Any]] = self.wait(lambda: self.about(name, kind), seconds)
        return found[0]

    def ask(
        self, kind: str, content: Any = None, channel: str = "control", seconds: float = SOON
    ) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        return self.reply(self.send(f"{kind}_request", content or {}, channel), f"{kind}_reply", seconds)

    def execute(self, code: str, **given: Any) -> str:
        return self.send("execute_request", {"code": code, "silent": False, "allow_stdin": True}, **given)

    def run(self, code: str) -> tuple[dict[str, Any], str]:
        """Run a cell; its reply, and what was printed under it."""
        name = self.execute(code)
        reply = self.reply(name, "execute_reply")
        self.wait(lambda: {"execution_state": "idle"} in self.about(name, "status"))
        return reply, "".join(each["text"] for each in self.about(name, "stream"))

    # ---- the supervisor ---------------------------------------------------------------------

    def status(self, name: str) -> int:
        """A size in bytes from /proc/PID/status."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(name)

    def forget_peak(self) -> int:
        """From now on ``VmHWM`` is that of what follows; what it is now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.status("VmHWM")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def is_attentive(self) -> None:
        """The supervisor answers what is its own to answer, soon."""
        for _ in range(3):
            assert self.ask("usage")["status"] == "ok"
        assert self.ask("connect", channel="shell")["shell_port"] == 1
        with self.context.socket(zmq.REQ) as heart:
            heart.linger = 0
            heart.connect(f"ipc://{self.folder.parent}/{Path(self.log.name).stem}-5")
            heart.send(b"beat")
            assert heart.poll(SOON * 1000), "no heartbeat"

    def processes(self) -> set[int]:
        """Everything that descends from the supervisor."""
        found, new = set(), {self.process.pid}
        while new:
            found |= new
            new = {child for pid in new for child in children(pid)} - found
        return found - {self.process.pid}

    def shut_down(self) -> None:
        """Tell it to end; nothing is left."""
        left = self.processes()
        assert self.ask("shutdown", {"restart": False}, seconds=SOON + 3)["status"] == "ok"
        assert self.process.wait(SOON) == 0
        assert gone(left, SOON)

    def close(self) -> None:
        for socket in self.sockets.values():
            socket.close()
        self.context.term()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()


def children(pid: int) -> set[int]:
    found = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found |= {int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()}
    except OSError:  # it has ended meanwhile
        pass
    return found


def gone(pids: set[int], seconds: float) -> bool:
    """Whether all of them end within so many seconds."""
    deadline = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") and "State:\tZ" not in state(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.01)
    return True


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Give folders to work in; their names are short, for sockets lie beside them."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("k") / "w"
        folder.mkdir()
        return folder

    return make


@pytest.fixture(scope="module")
def running(folders: Callable[[], Path]) -> Iterator[FrontEnd]:
    """One supervisor that all attacks of a running kernel go against, one after the other."""
    front = FrontEnd(folders(), "well")
    try:
        assert front.ask("kernel_info", channel="shell", seconds=SECONDS)["status"] == "ok"
        yield front
        front.shut_down()
    finally:
        front.close()


@pytest.fixture
def front(running: FrontEnd) -> Iterator[FrontEnd]:
    """That supervisor; after each attack it is as it was, and a cell runs."""
    assert running.run("hello")[1] == "hello"
    peak, descriptors = running.forget_peak(), running.descriptors()
    yield running
    running.is_attentive()
    reply, said = running.run("hello")
    assert (reply["status"], said) == ("ok", "hello")
    grown = running.status("VmHWM") - peak
    assert grown < GROWTH, f"it has grown by {grown >> 20} MiB"
    # A standby may be there or not: it has a handful of descriptors.
    running.wait(lambda: abs(running.descriptors() - descriptors) <= 8)
    running.seen.clear()


FLOODS = (
    "tiny_shell",
    "tiny_control",
    "tiny_stdin",
    "tiny_iopub",
    "pings",
    "strays",
    "statuses",
    "large_statuses",
    "streams",
    "replies",
    "own_streams",
    "no_reading",
)
BREAKS = ("endless_message", "giant_frame")
AT_ONCE = ("impossible_frame", "unknown_flags", "giant_command")


@pytest.mark.parametrize("attack", [*FLOODS, *BREAKS])
def test_a_flood_delays_nobody_and_fills_nothing(front: FrontEnd, attack: str) -> None:
    name = front.execute(attack)
    front.wait(lambda: front.about(name, "stream"))
    front.is_attentive()
    assert front.ask("interrupt")["status"] == "ok"
    reply = front.reply(name, "execute_reply")
    assert reply["status"] == ("error" if attack in BREAKS else "ok")


@pytest.mark.parametrize("attack", AT_ONCE)
def test_what_is_no_protocol_ends_the_kernel_and_is_said(front: FrontEnd, attack: str) -> None:
    reply, _ = front.run(attack)
    assert reply["status"] == "error"
    assert "stopped, because it sent" in reply["evalue"]
    assert "all variables are gone" in reply["evalue"]


def test_a_closed_channel_and_a_death_are_said(front: FrontEnd) -> None:
    reply, _ = front.run("close_shell")
    assert "it closed a channel" in reply["evalue"]
    reply, said = front.run("die")
    assert "exit status 7" in reply["evalue"]
    assert said == "last word"


@pytest.mark.parametrize("attack", ["wrong_forms", "wrong_headers", "many_outputs", "many_notes"])
def test_messages_of_wrong_forms_harm_nobody(front: FrontEnd, attack: str) -> None:
    reply, _ = front.run(attack)
    assert reply["status"] in {"ok", "error"}


def test_giants_are_withheld_and_the_kernel_goes_on(front: FrontEnd) -> None:
    reply, said = front.run("giant_message")
    assert reply["status"] == "ok"
    assert "output limit: more than 4 MiB" in said
    reply, _ = front.run("giant_reply")
    assert reply["ename"] == "UnreadableReply"
    reply, said = front.run("giant_json")
    assert reply["status"] == "ok"
    assert "too many values" in said


def test_forged_messages_are_dropped(front: FrontEnd) -> None:
    reply, said = front.run("forged")
    assert "FORGED" not in reply
    assert "FORGED" not in said


def test_a_request_is_answered_once_and_busy_once(front: FrontEnd) -> None:
    name = front.execute("twice")
    front.reply(name, "execute_reply")
    front.run("hello")
    assert len(front.about(name, "execute_reply")) == 1
    assert front.about(name, "execute_reply")[0]["execution_count"] is None
    states = [each["execution_state"] for each in front.about(name, "status")]
    assert states == ["busy", "idle"]
    assert not front.about(name, "shutdown_reply")
    assert not front.about(name, "kernel_info_reply")


def test_questions_without_end_are_cut_off(front: FrontEnd) -> None:
    front.run("questions")
    asked = [message for name, message in front.seen if name == "stdin"]
    assert 1 <= len(asked) <= 32


def test_it_cannot_speak_under_a_cell_that_it_was_not_told_of(front: FrontEnd) -> None:
    name = front.execute("guess")
    front.wait(lambda: front.about(name, "stream"))
    other = front.execute("%isolation", msg_id="the-isolation-cell")
    front.is_attentive()
    front.ask("interrupt")
    reply = front.reply(other, "execute_reply")
    front.run("hello")
    assert reply["status"] == "ok"
    assert "SPOOFED" not in json.dumps(front.about(other))
    assert len(front.about(other, "display_data")) == 1


def test_deaths_again_and_again_leave_nothing_behind(front: FrontEnd) -> None:
    front.run("die")
    front.run("hello")
    descriptors, size = front.descriptors(), front.status("VmRSS")
    for _ in range(20):
        assert "exit status 7" in front.run("die")[0]["evalue"]
    assert front.run("hello")[1] == "hello"
    front.wait(lambda: abs(front.descriptors() - descriptors) <= 8)
    assert front.status("VmRSS") - size < 30 << 20


# ---- instead of a start ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    ["drop", "half_answer", "exit", "no_zmtp", "early_message", "early_giant"],
)
def test_a_kernel_that_cannot_start_is_given_up_with_a_reason(
    folders: Callable[[], Path], start: str
) -> None:
    front = FrontEnd(folders(), start)
    try:
        reply, _ = front.run("1")
        assert reply["status"] == "error"
        assert "no code runs here: the inner kernel could not start" in reply["evalue"]
        front.is_attentive()
        assert front.ask("kernel_info", channel="shell")["implementation"] == "nsmagic"
        front.shut_down()
    finally:
        front.close()


def test_a_kernel_that_dies_without_a_cell_is_not_started_for_ever(folders: Callable[[], Path]) -> None:
    front = FrontEnd(folders(), "answer_then_die")
    try:
        assert front.ask("kernel_info", channel="shell", seconds=SECONDS)["implementation"] == "nsmagic"
        reply, _ = front.run("1")
        assert "died 3 times without a cell: exit status 5" in reply["evalue"]
        front.shut_down()
    finally:
        front.close()


@pytest.mark.parametrize("start", ["silent", "early_commands", "closed_folder", "a_link"])
def test_a_kernel_that_never_answers_is_given_up(folders: Callable[[], Path], start: str) -> None:
    front = FrontEnd(folders(), start, before="import nsmagic.kernel.inner as i; i._START_SECONDS = 0.5")
    try:
        reply, _ = front.run("1")
        assert "did not answer within" in reply["evalue"]
        assert front.status("VmHWM") < GROWTH
        front.shut_down()
    finally:
        front.close()


@pytest.mark.parametrize(
    "start", ["nothing", "trickle", "swapped", "a_loop", "a_fifo", "a_directory", "a_file"]
)
def test_while_a_kernel_does_not_start_the_supervisor_answers(
    folders: Callable[[], Path], start: str
) -> None:
    front = FrontEnd(folders(), start)
    try:
        front.send("kernel_info_request", {})
        front.is_attentive()
        assert front.ask("interrupt")["status"] == "ok"
        front.shut_down()
    finally:
        front.close()


def test_nothing_is_left_within_a_second_of_the_supervisors_end_by_force(folders: Callable[[], Path]) -> None:
    front = FrontEnd(folders(), "well")
    try:
        name = front.execute("no_reading")
        front.wait(lambda: front.about(name, "stream"))
        left = front.processes()
        assert len(left) > 1
        front.process.send_signal(signal.SIGKILL)
        front.process.wait()
        # A second is what is promised; the rest is for a machine that others use as well.
        assert gone(left, SOON)
    finally:
        front.close()
