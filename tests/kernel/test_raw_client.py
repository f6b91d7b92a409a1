"""A front end that starts the kernel by the words of its spec, and speaks to its sockets, without Jupyter's own client.

VS Code does so: it reads ``kernel.json``, writes the connection file, starts ``argv``, opens bare ZeroMQ sockets, and
ends the process by a signal when it has asked for the shutdown.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic.kernel import specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 60.0
CHANNELS = ("shell", "control", "stdin", "iopub")


class Raw:
    """Bare sockets, one identity for all of them."""

    def __init__(self, connection: dict[str, Any]) -> None:
        import zmq
        from jupyter_client.session import Session

        self.session = Session(key=connection["key"].encode())
        self.context = zmq.Context()
        self.sockets = {}
        identity = secrets.token_hex(8).encode()
        for channel in CHANNELS:
            made = self.context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
            if channel == "iopub":
                made.subscribe(b"")
            else:
                made.setsockopt(zmq.IDENTITY, identity)
            made.connect(f"tcp://{connection['ip']}:{connection[channel + '_port']}")
            self.sockets[channel] = made

    def send(self, channel: str, kind: str, **content: Any) -> str:
        message = self.session.send(self.sockets[channel], kind, content)
        return str(message["header"]["msg_id"])

    def receive(self, channel: str, seconds: float = SECONDS) -> dict[str, Any]:
        assert self.sockets[channel].poll(int(seconds * 1000)), f"nothing comes on {channel}"
        _, frames = self.session.feed_identities(self.sockets[channel].recv_multipart())
        found: dict[str, Any] = self.session.deserialize(frames)
        return found

    def reply(self, name: str, channel: str = "shell") -> dict[str, Any]:
        while True:
            message = self.receive(channel)
            if message["parent_header"].get("msg_id") == name:
                content: dict[str, Any] = message["content"]
                return content

    def until(self, name: str, kind: str) -> dict[str, Any]:
        """The first message of a kind that a request has led to."""
        while True:
            message = self.receive("iopub")
            if message["parent_header"].get("msg_id") == name and message["header"]["msg_type"] == kind:
                content: dict[str, Any] = message["content"]
                return content

    def execute(self, code: str) -> str:
        return self.send("shell", "execute_request", code=code, silent=False, store_history=True,
                         user_expressions={}, allow_stdin=True, stop_on_error=False)  # fmt: skip

    def close(self) -> None:
        self.context.destroy(linger=0)


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@pytest.fixture
def started(
    spec_name: Callable[..., str], jupyter_home: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Raw]]:
    """The kernel's process, and somebody who is connected to it."""
    name = spec_name()
    spec = json.loads((Path(specs.jupyter().get_kernel_spec(name).resource_dir) / "kernel.json").read_text())
    ports = free_ports(5)
    connection = {
        "key": secrets.token_hex(), "signature_scheme": "hmac-sha256", "transport": "tcp", "ip": "127.0.0.1",
        "hb_port": ports.pop(), "kernel_name": name, **{f"{c}_port": ports.pop() for c in CHANNELS},
    }  # fmt: skip
    file = tmp_path / "kernel-v2.json"
    file.write_text(json.dumps(connection))
    argv = [word.replace("{connection_file}", str(file)) for word in spec["argv"]]
    argv[0] = sys.executable if argv[0] == "python" else argv[0]
    process = subprocess.Popen(
        argv, cwd=tmp_path, env={**os.environ, **spec.get("env", {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    raw = Raw(connection)
    try:
        yield process, raw
    finally:
        raw.close()
        process.kill()
        process.communicate()


def test_a_front_end_of_its_own_kind(
    started: tuple[subprocess.Popen[bytes], Raw],
    tree_of: Callable[[int], Any],
    nothing_left: Callable[..., float],
) -> None:
    process, raw = started
    # It asks until somebody is there; what was asked before the kernel listened is answered too.
    assert raw.reply(raw.send("shell", "kernel_info_request"))["language_info"]["name"] == "python"
    name = raw.execute("print('hello'); 6 * 7")
    assert raw.until(name, "stream")["text"] == "hello\n"
    assert raw.until(name, "execute_result")["data"]["text/plain"] == "42"
    assert raw.reply(name)["status"] == "ok"

    name = raw.execute("print('begun', flush=True)\nwhile True: pass")
    assert raw.until(name, "stream")["text"] == "begun\n"
    assert raw.reply(raw.send("control", "interrupt_request"), "control")["status"] == "ok"
    assert raw.reply(name)["ename"] == "KeyboardInterrupt"

    name = raw.execute("input('who? ')")
    asked = raw.receive("stdin")
    assert asked["content"]["prompt"] == "who? "
    raw.session.send(raw.sockets["stdin"], "input_reply", {"value": "you"}, parent=asked)
    assert raw.until(name, "execute_result")["data"]["text/plain"] == "'you'"

    raw.execute("kept = 1")
    reply = raw.reply(raw.execute("import os; os.abort()"))
    assert reply["ename"] == "Crashed"
    assert raw.reply(raw.execute("assert kept"))["status"] == "ok"

    tree = tree_of(process.pid)
    raw.send("control", "shutdown_request", restart=False)
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    nothing_left(tree)
