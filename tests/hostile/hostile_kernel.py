"""A kernel that attacks whoever runs it: ``python hostile_kernel.py START CONNECTION_FILE``.

It speaks ZMTP by hand, so that it can say anything.  ``START`` names what it does in place of a start, or is
``well`` for a kernel that starts as it should; then the code of each cell names an attack.
It is copied into a container and run there: it imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import uuid
from typing import Any

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
PORTS = {"shell": 1, "control": 2, "stdin": 3, "iopub": 4}
DELIMITER = b"<IDS|MSG>"
MORE, LONG, COMMAND = 1, 2, 4

start, path = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    connection = json.load(file)
FOLDER = os.path.dirname(connection["ip"])
KEY = connection["key"].encode()


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + struct.pack("!Q", len(body)) + body


def frames(parts: list[bytes]) -> bytes:
    return b"".join(frame(part, MORE) for part in parts[:-1]) + frame(parts[-1])


def ready(kind: bytes) -> bytes:
    return frame(b"\x05READY\x0bSocket-Type" + struct.pack("!I", len(kind)) + kind, COMMAND)


def pack(kind: str, content: Any, parent: dict[str, Any], *, metadata: Any = None, key: bytes = KEY) -> bytes:
    """One message, signed; ``content`` may be bytes that are no JSON."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "session": "hostile",
        "username": "x",
        "version": "5.3",
    }
    raw = [json.dumps(part).encode() for part in (header, parent, metadata or {})]
    raw.append(content if isinstance(content, bytes) else json.dumps(content).encode())
    signature = hmac.new(key, b"".join(raw), hashlib.sha256).hexdigest().encode()
    return frames([DELIMITER, signature, *raw])


def listen(channel: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{FOLDER}/kernel-{PORTS[channel]}")
    listening.listen()
    return listening


class Channel:
    """One connection of the supervisor's."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self.name = name
        self.socket = connection
        self.came = b""
        self.send(GREETING + ready(b"PUB" if name == "iopub" else b"ROUTER"))
        self.read(64)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, count: int) -> bytes:
        while len(self.came) < count:
            self.receive()
        data, self.came = self.came[:count], self.came[count:]
        return data

    def receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            os._exit(0)
        self.came += data

    def message(self) -> list[bytes] | None:
        """The next message of what came, if it is complete; commands are passed over."""
        parts, rest = [], self.came
        while len(rest) >= 2:
            flags, length, begin = rest[0], rest[1], 2
            if flags & LONG:
                if len(rest) < 9:
                    return None
                (length,), begin = struct.unpack("!Q", rest[1:9]), 9
            if len(rest) < begin + length:
                return None
            body, rest = rest[begin : begin + length], rest[begin + length :]
            if flags & COMMAND:
                self.came = rest
                continue
            parts.append(body)
            if not flags & MORE:
                self.came = rest
                return parts
        return None


channels: dict[str, Channel] = {}


def publish(kind: str, content: Any, parent: dict[str, Any], **given: Any) -> None:
    channels["iopub"].send(pack(kind, content, parent, **given))


def status(state: str, parent: dict[str, Any]) -> None:
    publish("status", {"execution_state": state}, parent)


def reply(channel: str, kind: str, parent: dict[str, Any], content: Any) -> None:
    channels[channel].send(pack(kind, content, parent))


def done(parent: dict[str, Any], count: int = 1, **more: Any) -> None:
    content = {"status": "ok", "execution_count": count, "user_expressions": {}, "payload": []}
    reply("shell", "execute_reply", parent, {**content, **more})


def say(text: str, parent: dict[str, Any]) -> None:
    publish("stream", {"name": "stdout", "text": text}, parent)


def serve() -> None:
    """Be a kernel; an interrupt ends the cell that runs."""
    while True:
        for channel in channels.values():
            while (parts := channel.message()) is not None:
                take(channel, parts)
        readable = select.select([channel.socket for channel in channels.values()], [], [])[0]
        for channel in channels.values():
            if channel.socket in readable:
                channel.receive()


def wait_for_request() -> tuple[Channel, dict[str, Any]]:
    while True:
        for channel in channels.values():
            while (parts := channel.message()) is not None:
                if DELIMITER in parts:
                    return channel, json.loads(parts[parts.index(DELIMITER) + 2])
            if select.select([channel.socket], [], [], 0.01)[0]:
                channel.receive()


def take(channel: Channel, parts: list[bytes]) -> None:
    if DELIMITER not in parts:
        return  # a subscription
    header, _, _, content = (json.loads(part) for part in parts[parts.index(DELIMITER) + 2 :][:4])
    kind = header["msg_type"]
    status("busy", header)
    if kind == "execute_request":
        # Half a message would be the end of a channel, so some ignore that their output limit interrupts them.
        whole = content["code"] in {"giant_json", "giant_message", "giant_reply"}
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN if whole else signal.default_int_handler)
            ATTACKS[content["code"]](header)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            done(header)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif kind == "shutdown_request":
        os._exit(0)
    elif kind.endswith("_request"):
        info = {"status": "ok", "protocol_version": "5.3", "implementation": "hostile", "banner": "hostile"}
        reply(channel.name, kind.replace("_request", "_reply"), header, info)
    status("idle", header)


# ---- attacks of a kernel that runs: each ends by itself, or at an interrupt ---------------------------------


def without_end(channel: str, data: bytes, parent: dict[str, Any], *, broken: bool = False) -> None:
    """Send the same again and again; what the channel is good for afterwards."""
    say("begun", parent)
    try:
        while True:
            channels[channel].send(data)
    except KeyboardInterrupt:
        if broken:
            os._exit(3)
        channels[channel].socket.setblocking(True)  # noqa: FBT003 - the library's signature
        raise


def pieces(channel: str, data: bytes, parent: dict[str, Any]) -> None:
    """Send whole messages without end, so that an interrupt leaves no half of one."""
    say("begun", parent)
    last = time.monotonic()
    stop = False

    def note(*_: object) -> None:
        nonlocal stop
        stop = True

    before = signal.signal(signal.SIGINT, note)
    while not stop and time.monotonic() < last + 30:
        channels[channel].send(data)
    signal.signal(signal.SIGINT, before)
    done(parent)


def hello(parent: dict[str, Any]) -> None:
    say("hello", parent)
    done(parent)


def giant_json(parent: dict[str, Any]) -> None:
    many = b'{"data":{"application/json":[' + b'{"":0},' * 560_000 + b"0]}}"
    deep = b'{"data":{"application/json":' + b"[" * 10_000 + b"]" * 10_000 + b"}}"
    for content in (
        deep,
        b'{"data":{"text/plain":"\\ud800 \xff"}}',
        b'{"data":' + b"9" * 5000 + b"}",
        b"[]",
        b"null",
        b"\0",
    ):
        publish("display_data", content, parent)
        publish("update_display_data", content, parent, metadata={"a": 1e999})
    publish("display_data", many, parent)
    done(parent)


def giant_message(parent: dict[str, Any]) -> None:
    say("x" * (40 << 20), parent)
    done(parent)


def giant_reply(parent: dict[str, Any]) -> None:
    reply("shell", "execute_reply", parent, {"status": "ok", "x": "x" * (40 << 20)})


def wrong_forms(parent: dict[str, Any]) -> None:
    """Every type with contents of every wrong form, on every channel."""
    kinds = [
        "status",
        "stream",
        "execute_input",
        "display_data",
        "execute_result",
        "update_display_data",
        "error",
        "clear_output",
        "comm_open",
        "comm_msg",
        "comm_close",
        "debug_event",
        "input_request",
        "comm_info_reply",
        "complete_reply",
        "debug_reply",
        "history_reply",
        "inspect_reply",
        "kernel_info_reply",
        "shutdown_reply",
        "interrupt_reply",
        "usage_reply",
        "execute_request",
        "shutdown_request",
        "iopub_welcome",
        "x",
    ]
    bad: list[Any] = [None, 0, -1, 1 << 80, 1e308, "\ud800", "x" * 300, [], [[]], {}, {"a": None}, True]
    for kind in kinds:
        for value in bad:
            names = (
                "execution_state",
                "name",
                "text",
                "code",
                "execution_count",
                "data",
                "metadata",
                "transient",
                "status",
            )
            for content in (value, dict.fromkeys(names, value)):
                for channel in channels.values():
                    channel.send(pack(kind, content, parent))
                    channel.send(pack(kind, content, {"msg_id": "nobody"}))
    done(parent)


def wrong_headers(parent: dict[str, Any]) -> None:
    for raw in (
        b"",
        b"{}",
        b"[]",
        b"null",
        b"{" * 5000,
        b'{"msg_id":1,"msg_type":2}',
        b"\xff",
        b'{"msg_id":"' + b"x" * 1000 + b'"}',
    ):
        parts = [raw, json.dumps(parent).encode(), b"{}", b"{}"]
        signature = hmac.new(KEY, b"".join(parts), hashlib.sha256).hexdigest().encode()
        for channel in channels.values():
            channel.send(frames([DELIMITER, signature, *parts]))
            channel.send(frames([DELIMITER, signature]))
            channel.send(frames([b"x"] * 40))
    done(parent)


def forged(parent: dict[str, Any]) -> None:
    key = b"another key"
    for _ in range(2000):
        publish("stream", {"name": "stdout", "text": "FORGED"}, parent, key=key)
        channels["shell"].send(pack("execute_reply", {"status": "ok", "FORGED": 1}, parent, key=key))
    done(parent)


def twice(parent: dict[str, Any]) -> None:
    """Answers again and again, on each channel, in the wrong order, and as another type."""
    status("idle", parent)
    status("busy", parent)
    for channel in ("control", "stdin", "iopub", "shell"):
        reply(channel, "shutdown_reply", parent, {"status": "ok", "restart": False})
        reply(channel, "kernel_info_reply", parent, {"status": "ok"})
        for count in (1 << 70, -1, 7):
            reply(channel, "execute_reply", parent, {"status": "ok", "execution_count": count})
        status("idle", parent)
        status("busy", parent)


def questions(parent: dict[str, Any]) -> None:
    for number in range(3000):
        reply("stdin", "input_request", parent, {"prompt": f"password {number}?", "password": True})
    say("asked", parent)
    done(parent)


def many_notes(parent: dict[str, Any]) -> None:
    """Small messages that make large ones: each says what was withheld."""
    for _ in range(6_000):
        publish(
            "display_data", {"data": {"text/html": "<script>1</script>", "image/svg+xml": "<svg/>"}}, parent
        )
    done(parent)


def many_outputs(parent: dict[str, Any]) -> None:
    for number in range(6_000):
        publish(
            "update_display_data",
            {"data": {"text/plain": "x"}, "transient": {"display_id": f"{number}"}},
            parent,
        )
        publish("clear_output", {"wait": False}, {"msg_id": f"{number}"})
    done(parent)


def guess(parent: dict[str, Any]) -> None:
    """Speak under a cell that it will never be told of, before and after it is answered."""
    other = {**parent, "msg_id": "the-isolation-cell"}
    say("begun", parent)
    try:
        while True:
            say("SPOOFED", other)
            done(other, SPOOFED=1)
            publish("display_data", {"data": {"text/plain": "SPOOFED"}}, other)
            reply("stdin", "input_request", other, {"prompt": "SPOOFED", "password": True})
            status("idle", other)
            select.select([], [], [], 0.005)
    except KeyboardInterrupt:
        done(parent)
        for _ in range(200):
            say("SPOOFED", other)
            select.select([], [], [], 0.005)


def own_streams(parent: dict[str, Any]) -> None:
    say("begun", parent)
    while True:
        os.write(1, b"a\n" * 50_000)


def no_reading(parent: dict[str, Any]) -> None:
    say("begun", parent)
    while True:
        select.select([], [], [], 1)


def die(parent: dict[str, Any]) -> None:
    say("last word", parent)
    os._exit(7)


def close_shell(parent: dict[str, Any]) -> None:
    channels["shell"].socket.close()
    select.select([], [], [], 30)


TINY = frame(b"") * 100_000
PING = frame(b"\x04PING\0\0", COMMAND) * 20_000
ATTACKS: dict[str, Any] = {
    "hello": hello, "giant_json": giant_json, "giant_message": giant_message, "giant_reply": giant_reply,
    "wrong_forms": wrong_forms, "wrong_headers": wrong_headers, "forged": forged, "twice": twice,
    "questions": questions, "many_notes": many_notes, "many_outputs": many_outputs, "guess": guess,
    "own_streams": own_streams, "no_reading": no_reading, "die": die, "close_shell": close_shell,
    "endless_message": lambda parent: without_end("iopub", frame(b"x" * 1000, MORE) * 100, parent, broken=True),
    "giant_frame": lambda parent: without_end("iopub", bytes((LONG,)) + struct.pack("!Q", 1 << 39) + bytes(1 << 16), parent, broken=True),
    "impossible_frame": lambda parent: without_end("shell", bytes((LONG,)) + b"\xff" * 8, parent, broken=True),
    "unknown_flags": lambda parent: without_end("iopub", b"\xf0\0", parent, broken=True),
    "giant_command": lambda parent: without_end("control", bytes((LONG | COMMAND,)) + struct.pack("!Q", 1 << 30), parent, broken=True),
    **{f"tiny_{name}": lambda parent, name=name: pieces(name, TINY, parent) for name in PORTS},
    "pings": lambda parent: pieces("iopub", PING, parent),
    "strays": lambda parent: pieces("iopub", pack("stream", {"name": "stdout", "text": "x"}, {}) * 200, parent),
    "statuses": lambda parent: pieces("iopub", pack("status", {"execution_state": "busy"}, parent) * 200, parent),
    "large_statuses": lambda parent: pieces("iopub", pack("status", {"execution_state": "x" * (1 << 20)}, parent), parent),
    "streams": lambda parent: pieces("iopub", pack("stream", {"name": "stdout", "text": "x" * 100}, parent) * 200, parent),
    "replies": lambda parent: pieces("control", pack("kernel_info_reply", {"status": "ok"}, parent) * 200, parent),
}  # fmt: skip


# ---- attacks in place of a start ---------------------------------------------------------------------------


def forever() -> None:
    while True:
        select.select([], [], [], 60)


def all_listen() -> dict[str, socket.socket]:
    return {name: listen(name) for name in PORTS}


def silent() -> None:
    kept = all_listen()
    forever()
    del kept


def nothing() -> None:
    forever()


def drop() -> None:
    listening = all_listen()
    while True:
        for each in listening.values():
            each.accept()[0].close()


def trickle() -> None:
    opened = [each.accept()[0] for each in all_listen().values()]
    for byte in GREETING:
        for each in opened:
            each.sendall(bytes((byte,)))
        select.select([], [], [], 0.02)
    forever()


def flood(data: bytes, first: bytes = b"") -> None:
    opened = [each.accept()[0] for each in all_listen().values()]
    for each in opened:
        each.sendall(first)
    while True:
        for each in opened:
            each.sendall(data)


def handshake() -> None:
    for name, each in all_listen().items():
        channels[name] = Channel(name, each.accept()[0])


def half_answer() -> None:
    """Answers, publishes nothing, and closes the channel: the supervisor is about to ask again."""
    handshake()
    reply("shell", "kernel_info_reply", wait_for_request()[1], {"status": "ok"})
    select.select([], [], [], 0.05)
    channels["shell"].socket.close()
    forever()


def answer_then_die() -> None:
    handshake()
    header = wait_for_request()[1]
    status("busy", header)
    reply("shell", "kernel_info_reply", header, {"status": "ok"})
    select.select([], [], [], 0.2)
    os._exit(5)


def instead(kind: str) -> None:
    """Something else lies where the sockets should."""
    for number in PORTS.values():
        place = f"{FOLDER}/kernel-{number}"
        if kind == "link":
            os.symlink("/proc/1/root/run/docker.sock", place)
        elif kind == "loop":
            os.symlink(place, place)
        elif kind == "fifo":
            os.mkfifo(place)
        elif kind == "directory":
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
    forever()


def closed_folder() -> None:
    os.chmod(FOLDER, 0)
    forever()


def swapped() -> None:
    """The sockets come and go, and are links now and then."""
    listening = all_listen()
    while True:
        for number in PORTS.values():
            place = f"{FOLDER}/kernel-{number}"
            os.rename(place, place + "-away")
            os.symlink(place + "-away", place)
            os.unlink(place)
            os.rename(place + "-away", place)
        del listening["shell"]
        os.unlink(f"{FOLDER}/kernel-{PORTS['shell']}")
        listening["shell"] = listen("shell")


STARTS: dict[str, Any] = {
    "silent": silent, "nothing": nothing, "drop": drop, "trickle": trickle, "half_answer": half_answer,
    "answer_then_die": answer_then_die, "closed_folder": closed_folder, "swapped": swapped,
    "exit": lambda: os._exit(9),
    "no_zmtp": lambda: flood(b"HTTP/1.1 200 OK\r\n\r\n" * 1000),
    "early_message": lambda: flood(frame(b"too early"), GREETING),
    "early_commands": lambda: flood(PING, GREETING),
    "early_giant": lambda: flood(bytes((LONG | COMMAND,)) + struct.pack("!Q", 1 << 40), GREETING),
    **{f"a_{kind}": lambda kind=kind: instead(kind) for kind in ("link", "loop", "fifo", "directory", "file")},
}  # fmt: skip

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if start == "well":
        handshake()
        serve()
    else:
        STARTS[start]()
