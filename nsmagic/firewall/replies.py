"""A kernel's replies to requests on the shell and control channels, rebuilt field by field.

A client waits for its reply, so a reply of a known type is never dropped: one that cannot be read becomes an
error. Replies carry more than answers. Payloads make the front end act (write a cell, open a file, close the
session), user expressions and inspections are displays, and connect_reply would name ports to go to.

Pure functions; they take any JSON and never raise.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nsmagic.firewall import fields, outputs, widgets
from nsmagic.firewall.introduction import kernel_info
from nsmagic.firewall.text import bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsmagic.firewall.outputs import Rules

_MAX_EXPRESSIONS = 100
_MAX_NAME = 200
_MAX_PAYLOADS = 10
_MAX_PAGE = 1 << 20
_MAX_MATCHES = 5000
_MAX_MATCH = 500
_MAX_ENTRIES = 10_000
_MAX_CHARS = 4 << 20
_MAX_SUBSHELLS = 1000
_TYPES = "_jupyter_types_experimental"

_SOURCES = ("page", "set_next_input", "ask_exit", "edit", "edit_magic")
_COMPLETE = ("complete", "incomplete", "invalid", "unknown")
_INDENT = re.compile(r"[ \t]{1,256}")
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}|<unknown>")
_UNREADABLE = {"ename": "UnreadableReply", "evalue": "the kernel's reply could not be read", "traceback": []}


def rebuild(msg_type: str, content: object, rules: Rules) -> dict[str, Any] | None:
    """Rebuild the content of a reply.

    Args:
        msg_type: the reply's type.
        content: any JSON value.
        rules: what the kernel may do.

    Returns:
        The new content; None for a type that is not known here.
    """
    build = _REPLIES.get(msg_type)
    if build is None:
        return None
    theirs = fields.mapping(content)
    if msg_type == "debug_reply":
        return widgets.debug_reply(theirs, rules)
    # Some replies had no status before protocol 5.1; that a cell went well is never assumed.
    unsaid = "" if msg_type == "execute_reply" or type(content) is not dict else "ok"
    status = theirs.get("status", unsaid)
    if status in ("aborted", "abort"):
        return {"status": status}
    if status == "error":
        reply = {"status": "error", **outputs.error(theirs)}
    elif status == "ok" or msg_type == "is_complete_reply":
        return {"status": "ok", **build(theirs, rules)}
    else:
        reply = {"status": "error", **_UNREADABLE}
    if msg_type == "execute_reply":
        reply |= _counted(theirs, rules)
    return reply


def _counted(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Return what execute_reply holds whether the cell went well or not."""
    return {
        "execution_count": fields.count(content.get("execution_count")),
        "user_expressions": {},
        "payload": _payloads(content.get("payload"), rules),
    }


def _executed(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    expressions = list(fields.mapping(content.get("user_expressions")).items())[:_MAX_EXPRESSIONS]
    found = {
        fields.line(name, _MAX_NAME): _expression(fields.mapping(value), rules) for name, value in expressions
    }
    return _counted(content, rules) | {"user_expressions": found}


def _expression(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    if content.get("status") == "ok":
        return {"status": "ok", **outputs.bundle(content, rules)[0]}
    return {"status": "error", **outputs.error(content)}


def _payloads(theirs: object, rules: Rules) -> list[dict[str, Any]]:
    payloads = (_payload(fields.mapping(each), rules) for each in fields.items(theirs)[:_MAX_PAYLOADS])
    return [payload for payload in payloads if payload is not None]


def _payload(content: dict[str, Any], rules: Rules) -> dict[str, Any] | None:
    """Rebuild what asks the front end to act; None for what is unknown.

    The pager (``obj?``) shows text. Anything else acts on the notebook or the session, and becomes a page
    that says so, unless the kernel is trusted with JavaScript, which could do as much. That a front end opens
    a file passes for nobody: the path is one of the container's.
    """
    source = fields.chosen(content.get("source"), _SOURCES)
    if source == "page":
        plain = fields.mapping(content.get("data")).get("text/plain")
        start = fields.whole(content.get("start"))
        return _page(bounded(plain, _MAX_PAGE), start) if isinstance(plain, str) else None
    if source == "set_next_input":
        code = fields.code(content.get("text"))
        if rules.trusted:
            return {"source": source, "text": code, "replace": content.get("replace") is True}
        return _page(f"Withheld: the code wants to write a cell.\n{rules.remedy}\n\n{code}")
    if source == "ask_exit":
        if rules.trusted:
            return {"source": source, "keepkernel": content.get("keepkernel") is True}
        return _page(f"Withheld: the code wants to end the session.\n{rules.remedy}")
    return _page("Withheld: the code wants to open a file in an editor.") if source else None


def _page(plain: str, start: int = 0) -> dict[str, Any]:
    return {"source": "page", "data": {"text/plain": plain}, "start": start}


def _inspected(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    found = content.get("found") is True
    return {"found": found, **outputs.bundle(content if found else {}, rules)[0]}


def _completed(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    del rules
    matches = (fields.line(each, _MAX_MATCH) for each in fields.items(content.get("matches"))[:_MAX_MATCHES])
    described = fields.items(fields.mapping(content.get("metadata")).get(_TYPES))[:_MAX_MATCHES]
    start = fields.whole(content.get("cursor_start"))
    return {
        "matches": [match for match in matches if match],
        "cursor_start": start,
        "cursor_end": max(start, fields.whole(content.get("cursor_end"))),
        "metadata": {_TYPES: [_described(fields.mapping(each)) for each in described]} if described else {},
    }


def _described(content: dict[str, Any]) -> dict[str, Any]:
    """Rebuild what IPython says of one completion."""
    start = fields.whole(content.get("start"))
    return {
        "start": start,
        "end": max(start, fields.whole(content.get("end"))),
        "text": fields.line(content.get("text"), _MAX_MATCH),
        "type": fields.shaped(content.get("type"), _KIND, "<unknown>"),
        "signature": fields.line(content.get("signature"), _MAX_MATCH),
    }


def _remembered(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Rebuild a list of earlier cells: (session, line, code) or (session, line, (code, output))."""
    del rules
    room = _MAX_CHARS
    history: list[list[Any]] = []
    # The last ones are what a console offers first.
    for entry in reversed(fields.items(content.get("history"))[-_MAX_ENTRIES:]):
        session, number, code = [*fields.items(entry)[:3], None, None, None][:3]
        both = [fields.code(part) for part in fields.items(code)[:2]]
        source = both if len(both) > 1 else fields.code(code)
        room -= sum(map(len, source))
        if room < 0:
            break
        if source:
            history.append([fields.whole(session), fields.whole(number), source])
    return {"history": history[::-1]}


def _complete(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Rebuild the answer to whether code is complete; it is its own status."""
    del rules
    status = fields.chosen(content.get("status"), _COMPLETE, "unknown")
    indent = {"indent": fields.shaped(content.get("indent"), _INDENT)} if status == "incomplete" else {}
    return {"status": status, **indent}


def _shut_down(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    del rules
    return {"restart": content.get("restart") is True}


def _subshell(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    del rules
    name = fields.identifier(content.get("subshell_id"))
    return {"subshell_id": name} if name else {"status": "error", **_UNREADABLE}


def _subshells(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    del rules
    found = map(fields.identifier, fields.items(content.get("subshell_id"))[:_MAX_SUBSHELLS])
    return {"subshell_id": [name for name in found if name]}


def _nothing(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Return no more than the status. connect_reply's ports are not those of the outside."""
    del content, rules
    return {}


_REPLIES: dict[str, Callable[[dict[str, Any], Rules], dict[str, Any]]] = {
    "comm_info_reply": widgets.comm_list,
    "complete_reply": _completed,
    "connect_reply": _nothing,
    "create_subshell_reply": _subshell,
    "debug_reply": widgets.debug_reply,
    "delete_subshell_reply": _nothing,
    "execute_reply": _executed,
    "history_reply": _remembered,
    "inspect_reply": _inspected,
    "interrupt_reply": _nothing,
    "is_complete_reply": _complete,
    "kernel_info_reply": kernel_info,
    "list_subshell_reply": _subshells,
    "shutdown_reply": _shut_down,
}

CONTROL_ONLY = frozenset(
    {"create_subshell_reply", "debug_reply", "delete_subshell_reply", "list_subshell_reply"}
)
"""Replies that only the control channel carries; it may carry all the others too."""
