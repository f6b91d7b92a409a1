"""The messages of a Jupyter kernel in a container: what may go on to front ends.

Every message that comes from inside passes ``MessageFilter.outgoing``. What goes on is built here from typed,
bounded fields and never is the message as it came: a type that is not known is dropped, and so is one on a
channel that it does not belong to, a field that is not known, and all metadata but the time at which a cell
started. Two policies: "safe" shows what is inert; "widgets" also lets comms, JavaScript and the debugger
pass, for readers who chose the kernel that says so. Text is cleaned under both, for terminals show it too.

The state is a cleaner for each stream that is being written, for a control sequence can be cut in two by the
end of a message. No I/O, nothing of sockets, signatures or containers; nothing here raises.

``outputs`` displays · ``replies`` answers · ``introduction`` kernel_info · ``widgets`` comms, debugger ·
``fields`` types and bounds.

See "Messaging in Jupyter", versions 5.0 to 5.5 of the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nsmagic.firewall import fields, outputs, replies, widgets
from nsmagic.firewall.outputs import Rules
from nsmagic.firewall.text import StreamCleaner

Policy = Literal["safe", "widgets"]
Channel = Literal["shell", "control", "stdin", "iopub"]

REMEDY = 'Choose the kernel "Isolated Python (widgets)" to allow it: only for code that you trust.'

MAX_STREAM = 16 << 20
"""Longest text of one stream message, in characters."""

_MAX_STREAMS = 64
_MAX_PARENT = 200
_STATES = ("busy", "idle", "starting")


@dataclass(frozen=True)
class Outgoing:
    """What goes on instead of a message.

    Attributes:
        msg_type: its type.
        content: its content, made anew.
        metadata: its metadata, made anew.
        buffers: whether the binary buffers of the original may go along.
        note: what was withheld, where the content has no place to say it (a picture was left, but not all of
            the display): a line or two for a reader, fit for a stream message behind this one. Else "".
    """

    msg_type: str
    content: dict[str, Any]
    metadata: dict[str, Any]
    buffers: bool
    note: str = ""


class MessageFilter:
    """The filter for one kernel in a container.

    Args:
        policy: "safe", or "widgets" to let comms, JavaScript and the debugger pass.
        language: the kernel's language, for where its introduction does not say it properly.
        remedy: a sentence on how to allow what is withheld.
    """

    def __init__(self, policy: Policy, *, language: str = "python", remedy: str = REMEDY) -> None:
        self._rules = Rules(policy == "widgets", fields.line(language, 40) or "unknown", remedy)
        self._cleaners: dict[tuple[str, str], StreamCleaner] = {}

    def outgoing(
        self, channel: Channel, msg_type: str, parent_id: str, content: object, metadata: object
    ) -> Outgoing | None:
        """Say what may go on instead of a message.

        Args:
            channel: the channel that it came on.
            msg_type: the type that its header has.
            parent_id: the id of the request that it belongs to, "" for none.
            content: its content, any JSON value.
            metadata: its metadata, any JSON value.

        Returns:
            The message to send; None to send nothing. Replies of known types always go on.
        """
        if not isinstance(msg_type, str):
            return None
        if channel == "iopub":
            return self._published(msg_type, parent_id, fields.mapping(content), fields.mapping(metadata))
        if channel == "stdin":
            if msg_type != "input_request":
                return None
            return Outgoing(msg_type, outputs.question(fields.mapping(content)), {}, buffers=False)
        if channel == "control" or (channel == "shell" and msg_type not in replies.CONTROL_ONLY):
            reply = replies.rebuild(msg_type, content, self._rules)
            if reply is None:
                return None
            started = fields.time(fields.mapping(metadata).get("started"))
            timed = {"started": started} if started and msg_type == "execute_reply" else {}
            return Outgoing(msg_type, reply, timed, buffers=False)
        return None

    def _published(
        self, msg_type: str, parent_id: str, content: dict[str, Any], metadata: dict[str, Any]
    ) -> Outgoing | None:
        """Rebuild a message of the iopub channel."""
        note = ""
        found: dict[str, Any] | None
        match msg_type:
            case "status":
                found = self._status(content, parent_id)
            case "stream":
                found = self._stream(content, parent_id)
            case "execute_input":
                found = outputs.executed(content)
            case "display_data":
                found, note = outputs.display(content, self._rules)
            case "execute_result":
                found, note = outputs.result(content, self._rules)
            case "update_display_data":
                found = outputs.update(content, self._rules)
            case "error":
                found = outputs.error(content)
            case "clear_output":
                found = {"wait": content.get("wait") is True}
            case _:
                return self._extension(msg_type, content, metadata)
        return None if found is None else Outgoing(msg_type, found, {}, buffers=False, note=note)

    def _extension(self, msg_type: str, content: dict[str, Any], metadata: dict[str, Any]) -> Outgoing | None:
        """Rebuild a message that only a trusted kernel may send."""
        if not self._rules.trusted:
            return None
        if msg_type == "debug_event":
            event = widgets.debug_event(content)
            return Outgoing(msg_type, event, {}, buffers=False) if event else None
        if msg_type in {"comm_open", "comm_msg", "comm_close"}:
            found = widgets.comm(content, opens=msg_type == "comm_open")
            return Outgoing(msg_type, found, widgets.comm_metadata(metadata), buffers=True) if found else None
        return None

    def _status(self, content: dict[str, Any], parent_id: str) -> dict[str, Any] | None:
        state = fields.chosen(content.get("execution_state"), _STATES)
        if state == "idle":
            for name in ("stdout", "stderr"):
                self._cleaners.pop((_key(parent_id), name), None)
        return {"execution_state": state} if state else None

    def _stream(self, content: dict[str, Any], parent_id: str) -> dict[str, Any] | None:
        name = fields.chosen(content.get("name"), ("stdout", "stderr"))
        text = content.get("text")
        if not name or not isinstance(text, str):
            return None
        key = (_key(parent_id), name)
        # Taken out and put back, so that the first is the one that was silent longest. To forget one is safe:
        # what it holds back was never sent, and the rest of a sequence without its beginning is mere text.
        cleaner = self._cleaners.pop(key, None) or StreamCleaner()
        self._cleaners[key] = cleaner
        if len(self._cleaners) > _MAX_STREAMS:
            del self._cleaners[next(iter(self._cleaners))]
        cleaned = cleaner.feed_text(text[:MAX_STREAM])
        if len(text) > MAX_STREAM:
            cleaned += f"\n… ({len(text) - MAX_STREAM} more characters)\n"
        return {"name": name, "text": cleaned} if cleaned else None


def _key(parent_id: object) -> str:
    return parent_id[:_MAX_PARENT] if isinstance(parent_id, str) else ""
