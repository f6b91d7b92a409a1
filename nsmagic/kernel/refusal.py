"""What is answered to requests while no inner kernel can: it cannot be built here, or it died over them.

Front ends wait for every request's reply, so each kind has one: honest, empty, and of the right form.
Pure.
"""

from __future__ import annotations

from typing import Any, Final

from nsmagic.kernel.wire import PROTOCOL_VERSION

_EMPTY: Final[dict[str, dict[str, Any]]] = {
    "complete_request": {"matches": [], "cursor_start": 0, "cursor_end": 0, "metadata": {}},
    "inspect_request": {"found": False, "data": {}, "metadata": {}},
    "history_request": {"history": []},
    "is_complete_request": {"status": "unknown"},
    "comm_info_request": {"comms": {}},
    "list_subshell_request": {"subshell_id": []},
}


def failure(ename: str, evalue: str) -> dict[str, Any]:
    """The content of an ``error`` message: our own words, so they may be coloured."""
    return {"ename": ename, "evalue": evalue, "traceback": [f"\x1b[31m{ename}\x1b[39m: {evalue}"]}


def reply(kind: str, ename: str, evalue: str, *, execution_count: int = 0) -> dict[str, Any]:
    """The content of the reply to a request that cannot be served.

    Args:
        kind: the request's type.
        ename: what is wrong, as an exception's class.
        evalue: and why.
        execution_count: of a cell that ran.
    """
    if kind == "execute_request":
        return {
            "status": "error",
            **failure(ename, evalue),
            "execution_count": execution_count,
            "user_expressions": {},
            "payload": [],
        }
    if kind == "debug_request":
        return {
            "type": "response",
            "seq": 0,
            "request_seq": 0,
            "success": False,
            "command": "",
            "message": evalue,
        }
    if kind in _EMPTY:
        return {"status": "ok", **_EMPTY[kind]}
    return {"status": "error", "ename": ename, "evalue": evalue, "traceback": []}


def kernel_info(language: str, banner: str) -> dict[str, Any]:
    """The content of a ``kernel_info_reply`` where there is no inner kernel to ask."""
    extension = {"python": ".py"}.get(language, ".txt")
    mimetype = {"python": "text/x-python"}.get(language, "text/plain")
    return {
        "status": "ok",
        "protocol_version": PROTOCOL_VERSION,
        "implementation": "nsmagic",
        "implementation_version": "",
        "language_info": {
            "name": language,
            "version": "",
            "mimetype": mimetype,
            "file_extension": extension,
        },
        "banner": banner,
        "help_links": [],
        "supported_features": [],
    }
