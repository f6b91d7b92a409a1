"""What those have in common who build a container's network from outside: the holder of a lab, pasta's guard.

Both wait at a socket for init's word that its network namespace is there, do their work, and answer with the
journal lines of what they did; see native/net.c for init's side.  Both have one thread, so that they may go
into a namespace and come back.

This module must not import pyroute2: it takes a fifth of a second, and pasta's guard needs none of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, TypeVar

from nsmagic.linux import setns

if TYPE_CHECKING:
    from collections.abc import Callable, Container

_SCM_CREDENTIALS: Final = 2
_CREDENTIALS: Final = struct.Struct("=iII")
_MOST_LINES: Final = 16_000
_MOST_CALL: Final = 400
_DONE: Final = b"+"
_FAILED: Final = b"-"

NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES})
"""What the kernel answers about IPv6 where it, or the device, has none: then nothing is reached by it."""

T = TypeVar("T")


class StepError(Exception):
    """A step failed; it stands in the journal.

    Attributes:
        errno: the kernel's answer.
    """

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.errno = number


class Journal:
    """The calls made for one container, in the form of journal.c: seven fields between tabs."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def attempt(self, call: str, function: Callable[[], T]) -> T:
        """Make a call and write it down.

        Args:
            call: what is done, with its arguments by name.
            function: does it; whatever it raises is a failure.

        Raises:
            StepError: it failed.
        """
        began = time.time_ns()
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must hear of it
            number = _errno(error)
            self._write(f"{call}{_words_of(error, number)}", -1, number, began)
            raise StepError(number) from None
        self._write(call, 0, 0, began)
        return result

    def guard(self, work: Callable[[], object]) -> bool:
        """Do all of it; whether it went well.  What is raised outside of any call is written down, too."""
        try:
            work()
        except StepError:
            return False
        except Exception as error:  # noqa: BLE001 - likewise
            began = time.time_ns()
            number = _errno(error)
            self._write(f"{type(error).__name__}{_words_of(error, number)}", -1, number, began)
            return False
        return True

    def attempt_or_not(self, call: str, function: Callable[[], object], bearable: Container[int]) -> None:
        """Likewise, but nothing is lost by a failure with one of these errno.

        Raises:
            StepError: it failed in another way.
        """
        try:
            self.attempt(call, function)
        except StepError as error:
            if error.errno not in bearable:
                raise

    def _write(self, call: str, result: int, number: int, began: int) -> None:
        took = time.time_ns() - began
        call = "".join(c if c.isprintable() else "?" for c in call[:_MOST_CALL])
        self._lines.append(f"network\t{call}\t{result}\t{number}\t{began}\t{took}\tnetwork\n")

    def add(self, text: str) -> None:
        """Add lines that another process of ours has written."""
        self._lines.append(text)

    @property
    def text(self) -> str:
        """All lines."""
        return "".join(self._lines)

    def answer(self, init: socket.socket, *, done: bool) -> None:
        """Tell init how it went."""
        text = self.text.encode(errors="replace")
        while len(text) > _MOST_LINES:  # the last one is what counts
            text = text.partition(b"\n")[2]
        with contextlib.suppress(OSError):  # it is dead: nobody is left to be told
            init.send((_DONE if done else _FAILED) + text)


def _errno(error: Exception) -> int:
    """The number of an error: of the kernel's answer, or EPROTO for what has none."""
    for name in ("errno", "code"):
        number = getattr(error, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return errno.EPROTO


def _words_of(error: Exception, number: int) -> str:
    """What an error says beyond its number, if that is all that there is to know."""
    plain = isinstance(error, OSError) and number != errno.EPROTO
    text = "" if plain or type(error).__name__ == "NetlinkError" else " ".join(str(error).split())
    return f": {text}" if text else ""


def prepare(end: socket.socket) -> None:
    """Have the kernel say who sends, from now on; see SO_PASSCRED in unix(7)."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def take_call(end: socket.socket) -> int:
    """Init's process id, as the kernel says it; 0 where it is gone before it said a word."""
    try:
        data, control, _, _ = end.recvmsg(16, socket.CMSG_SPACE(_CREDENTIALS.size))
    except OSError:
        return 0
    for level, kind, value in control:
        if data and (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(value[: _CREDENTIALS.size])[0])
    return 0


def open_namespace(pid: int, kind: str) -> int:
    """A descriptor of a process's namespace, ``net`` or ``user``."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def in_namespace(namespace: int, function: Callable[[], T]) -> T:
    """Call a function in another network namespace, and come back; see setns(2).

    Raises:
        OSError: the kernel's answer.
    """
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace)
        try:
            return function()
        finally:
            setns(own)
    finally:
        os.close(own)
