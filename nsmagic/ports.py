"""Ports of the host that lead to a container: ``--publish``.

Pure; this module knows no other but ``errors``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal

from nsmagic.errors import SpecError

MAX_PORT: Final = 65535
_ADDRESS: Final = r"\d{1,3}(?:\.\d{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]"
_PUBLISH: Final = re.compile(rf"(?:({_ADDRESS}):)?(\d{{1,5}}):(\d{{1,5}})(?:/(tcp|udp))?")


@dataclass(frozen=True)
class Publish:
    """A port of the host that leads to one of the container.

    Attributes:
        host: the host's port.
        box: the container's port.
        protocol: of both.
        address: the host's address that it is bound to.
    """

    host: int
    box: int
    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = "127.0.0.1"

    @property
    def shown(self) -> str:
        """As a person reads it: ``127.0.0.1:8080 -> 80/tcp``."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.host} -> {self.box}/{self.protocol}"


def parse_publish(option: str, value: object) -> Publish:
    """``[ADDRESS:]HOST:BOX[/tcp|/udp]``: ``8080:80``, ``0.0.0.0:5353:53/udp``, ``[::1]:8080:80``.

    Raises:
        SpecError: no such text, an address that is none, or a port out of range.
    """
    if isinstance(value, Publish):
        return value
    match = _PUBLISH.fullmatch(str(value))
    if not match:
        raise SpecError(option, f"{str(value)[:60]!r} is not [ADDRESS:]HOST:BOX[/udp], as in 8080:80")
    address, host, box = (match[1] or "127.0.0.1").strip("[]"), int(match[2]), int(match[3])
    try:
        address = str(ipaddress.ip_address(address))
    except ValueError:
        raise SpecError(option, f"{address!r} is not an address; leave it out for 127.0.0.1") from None
    for port in (host, box):
        if not 1 <= port <= MAX_PORT:
            raise SpecError(option, f"{port} is not a port; give 1 to {MAX_PORT}")
    return Publish(host, box, "udp" if match[4] == "udp" else "tcp", address)
