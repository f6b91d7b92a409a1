"""The talk with a systemd manager over D-Bus: as much of it as a scope of one's own needs.

Spoken with jeepney: pure Python, synchronous, no threads and no event loop of its own, so that any thread
of a notebook's kernel may use it.  (dbus-fast, the other library that is kept up, works in an asyncio loop
only, and would bring us one of our own.)  A connection lasts for one conversation: nothing is shared between
threads, and a fork inherits nothing.  One deadline bounds all of it, however the other side behaves.

Must not know control groups.  See org.freedesktop.systemd1(5) and the D-Bus specification.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import jeepney
from jeepney.io.blocking import DBusConnection, prep_socket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_BUS_PATH = "/org/freedesktop/DBus"
_INTERFACE = "org.freedesktop.systemd1.Manager"
_TEXT = 300

Properties = dict[str, tuple[str, Any]]
"""A unit's properties: by name, the D-Bus type and the value, such as ``{"TasksMax": ("t", 100)}``."""


class BusError(Exception):
    """systemd could not be asked, or refused; the text is what it or the kernel answered."""


class _Connection(DBusConnection):  # type: ignore[misc]  # jeepney has no types
    """A connection whose every wait ends at one deadline, that for the first greeting too."""

    def __init__(self, path: str, deadline: float) -> None:
        self._deadline = deadline
        try:
            super().__init__(prep_socket(path, timeout=max(deadline - time.monotonic(), 0.001)))
        except BaseException:
            if hasattr(self, "sock"):  # it was the greeting that failed
                self.close()
            raise

    def receive(self, *, timeout: float | None = None) -> jeepney.Message:
        """Return the next message. Raises TimeoutError after the deadline."""
        del timeout
        return super().receive(timeout=max(self._deadline - time.monotonic(), 0))


class Manager:
    """A conversation with one systemd manager; the connection closes at the end of the ``with`` statement.

    Args:
        socket: the bus that the manager is on, a path.
        seconds: how long all of the conversation may take.

    Raises:
        BusError: nobody answers there. So do all methods where the manager refuses or the time is over.
    """

    def __init__(self, socket: str, seconds: float) -> None:
        self._socket = socket
        self._late = f"{socket} does not answer within {seconds:g} s"
        with self._errors():
            self._connection = _Connection(socket, time.monotonic() + seconds)

    def __enter__(self) -> Self:
        """Begin to talk."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._connection.close()

    def pid(self) -> int:
        """Return the manager's process id.

        A user's bus may have been started by our own greeting; then its manager is on its way there.
        """
        came = jeepney.MatchRule(
            type="signal", interface="org.freedesktop.DBus", member="NameOwnerChanged", path=_BUS_PATH
        )
        came.add_arg_condition(0, _NAME)
        changes: deque[jeepney.Message] = deque()
        with self._errors(), self._connection.filter(came, queue=changes):
            self._ask(jeepney.message_bus.AddMatch(came))
            while not self._ask(jeepney.message_bus.NameHasOwner(_NAME))[0]:
                self._connection.recv_until_filtered(changes)
            return int(self._ask(jeepney.message_bus.GetConnectionUnixProcessID(_NAME))[0])

    def start_scope(self, name: str, pid: int, properties: Properties) -> None:
        """Start a transient scope that holds a process, and wait until it is there.

        Args:
            name: the unit's name, with ``.scope``.
            pid: the process.
            properties: further properties of the unit.
        """
        done = jeepney.MatchRule(type="signal", interface=_INTERFACE, member="JobRemoved", path=_PATH)
        removed: deque[jeepney.Message] = deque()
        with self._errors(), self._connection.filter(done, queue=removed):
            # Asked for before the scope is: its job may be over before the answer to that call has come.
            self._ask(jeepney.message_bus.AddMatch(done))
            self._call("Subscribe")
            given = [*properties.items(), ("PIDs", ("au", [pid]))]
            job = self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", given, []))[0]
            path = result = None
            while path != job:
                _, path, _, result = self._connection.recv_until_filtered(removed).body
        if result != "done":
            raise BusError(f"systemd's job to start {name} ended as {str(result)[:_TEXT]!r}")

    def attach(self, unit: str, below: str, pid: int) -> None:
        """Move a process of the same user into a group of a unit.

        Args:
            unit: the unit's name.
            below: the group within the unit's own, such as ``/leaf``; it must exist.
            pid: the process.
        """
        with self._errors():
            self._call("AttachProcessesToUnit", "ssau", (unit, below, [pid]))

    def _call(self, method: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        address = jeepney.DBusAddress(_PATH, _NAME, _INTERFACE)
        return self._ask(jeepney.new_method_call(address, method, signature, body))

    def _ask(self, message: jeepney.Message) -> tuple[Any, ...]:
        """Send a call and return the body of the answer."""
        answer: tuple[Any, ...] = jeepney.wrappers.unwrap_msg(self._connection.send_and_get_reply(message))
        return answer

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn whatever goes wrong into a BusError."""
        try:
            yield
        except TimeoutError:
            raise BusError(self._late) from None
        except jeepney.DBusErrorResponse as error:
            said = error.data[0] if error.data and isinstance(error.data[0], str) else error.name
            raise BusError(f"systemd answered: {said[:_TEXT]}") from error
        except OSError as error:
            raise BusError(f"{self._socket}: {error.strerror or error}") from error
        except Exception as error:  # jeepney's parser has no error of its own for what is not D-Bus
            raise BusError(f"{self._socket} does not speak D-Bus: {error!r:.{_TEXT}}") from error
