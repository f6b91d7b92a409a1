"""What the kernel uses, for ``usage_request``: from the container's cgroup, where nobody inside can lie.

The fields are those that ipykernel sends, which front ends show.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsmagic.container import Container


class Meter:
    """Measures processor time between one reading and the next."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def read(self, container: Container | None) -> dict[str, Any]:
        """The content of a ``usage_reply``, without its status.

        Args:
            container: the inner kernel's; None where there is none.
        """
        found: dict[str, Any] = {
            "hostname": container.spec.hostname if container is not None else socket.gethostname(),
            "pid": os.getpid(),
            "cpu_count": _processors(container),
        }
        if container is None:
            return found
        used = container.usage()
        if used.cpu_user is not None and used.cpu_system is not None:
            now, cpu = time.monotonic(), used.cpu_user + used.cpu_system
            if self._last is not None and now > self._last[0]:
                found["kernel_cpu"] = round(100 * max(cpu - self._last[1], 0) / (now - self._last[0]), 1)
            else:
                found["kernel_cpu"] = 0.0
            self._last = now, cpu
        if used.memory is not None:
            found["kernel_memory"] = used.memory
            limit = container.spec.mem
            if limit is not None:
                free = max(limit - used.memory, 0)
                found["host_virtual_memory"] = {
                    "total": limit,
                    "available": free,
                    "used": used.memory,
                    "free": free,
                    "percent": round(100 * used.memory / limit, 1),
                }
        if used.pids is not None:
            found["kernel_pids"] = used.pids
        return found


def _processors(container: Container | None) -> float:
    available = len(os.sched_getaffinity(0))
    cpus = container.spec.cpus if container is not None else None
    return available if cpus is None else min(cpus, available)
