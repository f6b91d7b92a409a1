"""The talk with systemd, as far as it can be tried without one: whoever answers wrongly is not waited for."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from nsmagic.cgroups.bus import BusError, Manager

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.hosts

SECONDS = 0.5


def ask(path: pathlib.Path, answers: list[bytes], *, hang_up: bool) -> str:
    """Talk to a bus that says these things, one after each thing it is told; return the error's text."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    done = threading.Event()

    def serve() -> None:
        ours, _ = server.accept()
        with ours:
            for answer in answers:
                ours.recv(4096)
                with contextlib.suppress(BrokenPipeError):  # who has read enough may hang up first
                    ours.sendall(answer)
            if not hang_up:
                done.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(BusError) as caught, Manager(str(path), SECONDS) as manager:
            manager.pid()
    finally:
        done.set()
        thread.join()
        server.close()
    assert time.monotonic() - began < SECONDS + 5
    return str(caught.value)


AUTHENTICATED = [b"", b"OK 0123456789abcdef0123456789abcdef\r\n"]


def test_nobody_there_is_said_with_the_path(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BusError, match="bus: No such file or directory"):
        Manager(str(tmp_path / "bus"), SECONDS)


@pytest.mark.parametrize("answers", [[], AUTHENTICATED], ids=["from the start", "after the greeting"])
def test_a_bus_that_is_silent_is_not_waited_for(tmp_path: pathlib.Path, answers: list[bytes]) -> None:
    assert "within 0.5 s" in ask(tmp_path / "bus", answers, hang_up=False)


@pytest.mark.parametrize(
    "answers",
    [[b""], AUTHENTICATED, [b"", b"REJECTED EXTERNAL\r\n"], [*AUTHENTICATED, b"x" * 64]],
    ids=["at once", "after the greeting", "refused", "nonsense"],
)
def test_a_bus_that_hangs_up_or_talks_nonsense_is_an_error(
    tmp_path: pathlib.Path, answers: list[bytes]
) -> None:
    assert str(tmp_path) in ask(tmp_path / "bus", answers, hang_up=True)


def test_no_descriptor_is_left(tmp_path: pathlib.Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    ask(tmp_path / "bus", AUTHENTICATED, hang_up=False)
    ask(tmp_path / "again", [b"", b"REJECTED EXTERNAL\r\n"], hang_up=True)
    assert set(os.listdir("/proc/self/fd")) == before
