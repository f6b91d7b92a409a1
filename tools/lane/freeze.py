#!/usr/bin/env python3
"""Have a running qemu write its state to a file, and end.

Usage: ``freeze.py QMP-SOCKET FILE``.  See QEMU's Machine Protocol reference, "migrate".
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any


def main(path: str, state: str) -> None:
    """Freeze it.

    Raises:
        RuntimeError: qemu refused, or could not write the state.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw", encoding="utf-8") as stream:

            def hear() -> dict[str, Any]:
                heard: dict[str, Any] = json.loads(stream.readline())
                if "error" in heard:
                    raise RuntimeError(str(heard["error"]))
                return heard

            def tell(command: str, **given: Any) -> None:
                stream.write(json.dumps({"execute": command, "arguments": given}) + "\n")
                stream.flush()
                while "return" not in hear():
                    pass  # an event from before

            hear()  # its greeting
            tell("qmp_capabilities")
            tell("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
            tell("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            stream.write(
                json.dumps({"execute": "migrate", "arguments": {"uri": f"exec:cat > {state}"}}) + "\n"
            )
            stream.flush()
            status = ""
            while status != "completed":
                status = hear().get("data", {}).get("status", status)
                if status == "failed":
                    raise RuntimeError("the state could not be written")
            tell("quit")


if __name__ == "__main__":
    main(*sys.argv[1:])
