"""Comms and the debugger: what passes only where the reader chose a kernel that may use widgets.

A comm is a channel between code in the container and JavaScript in the front end; with the widget libraries
that are installed there it can build any page, so it is as good as script. The debugger's replies are
rendered by the front end's own panels, with names and values that the container chose. Where neither is
allowed, comms are dropped, for nobody waits for them, and each request to the debugger is refused.

What passes is still typed and bounded, and made anew from plain JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nsmagic.firewall import fields
from nsmagic.firewall.charts import copy_json
from nsmagic.firewall.text import RefusedError

if TYPE_CHECKING:
    from nsmagic.firewall.outputs import Rules

_MAX_COMMS = 10_000
_MAX_NAME = 200
_MAX_MESSAGE = 10_000


def comm(content: dict[str, Any], *, opens: bool) -> dict[str, Any] | None:
    """Rebuild a comm_open, comm_msg or comm_close message; None where it names no comm or is too large."""
    comm_id = fields.identifier(content.get("comm_id"))
    data = _copied(content.get("data", {}))
    if not comm_id or data is None:
        return None
    if not opens:
        return {"comm_id": comm_id, "data": data}
    target = fields.line(content.get("target_name"), _MAX_NAME)
    module = fields.line(content.get("target_module"), _MAX_NAME)
    opened: dict[str, Any] = {"comm_id": comm_id, "target_name": target, "data": data}
    return opened | ({"target_module": module} if module else {})


def comm_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a comm's message: widgets put the version of their protocol there."""
    return _copied(metadata) or {}


def comm_list(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Rebuild the content of a comm_info_reply, without its status."""
    if not rules.trusted:
        return {"comms": {}}
    comms = list(fields.mapping(content.get("comms")).items())[:_MAX_COMMS]
    return {
        "comms": {
            comm_id: {"target_name": fields.line(fields.mapping(entry).get("target_name"), _MAX_NAME)}
            for comm_id, entry in comms
            if fields.identifier(comm_id)
        }
    }


def debug_reply(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Rebuild a debug_reply, or refuse in its place; either answers the same request.

    See the Debug Adapter Protocol for the fields of a response.
    """
    reply = {
        "type": "response",
        "seq": fields.whole(content.get("seq")),
        "request_seq": fields.whole(content.get("request_seq")),
        "command": fields.line(content.get("command"), _MAX_NAME),
    }
    if not rules.trusted:
        message = f"Withheld: the debugger shows what the code says of itself.\n{rules.remedy}"
        return reply | {"success": False, "message": message, "body": {}}
    body = _copied(content.get("body", {}))
    if body is None:
        return reply | {"success": False, "message": "The debugger's reply is too large.", "body": {}}
    message = fields.text(content.get("message"), _MAX_MESSAGE)
    return reply | {"success": content.get("success") is True, "message": message, "body": body}


def debug_event(content: dict[str, Any]) -> dict[str, Any] | None:
    """Rebuild a debug_event; None where it is too large."""
    body = _copied(content.get("body", {}))
    if body is None:
        return None
    event = fields.line(content.get("event"), _MAX_NAME)
    return {"type": "event", "seq": fields.whole(content.get("seq")), "event": event, "body": body}


def _copied(value: object) -> dict[str, Any] | None:
    """Return a bounded copy of a JSON object; None for anything else."""
    try:
        copied = copy_json(value)
    except RefusedError:
        return None
    return copied if isinstance(copied, dict) else None
