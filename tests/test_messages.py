"""The filter for a kernel's messages: whatever is sent in, only messages of known shapes come out.

The shapes and the channels are written down here anew, not taken from the code under test.
"""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsmagic.firewall import clean_stream
from nsmagic.firewall.messages import MessageFilter, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REMEDY = 'Choose the kernel "Isolated Python (widgets)" to allow it: only for code that you trust.'
SVG = "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAAC0lEQVR42mNgQAYAAA4AATpm7Y8AAAAASUVORK5CYII="
WIDGET = "application/vnd.jupyter.widget-view+json"


# What may come out. A dict is an object with these keys ("?" marks one that may be missing), a list an array
# of such items, a tuple a choice, a pattern text that fits as a whole, a function decides itself.


def is_text(value: object) -> bool:
    """Say whether text can be sent, and moves nothing and links nothing in a terminal."""
    return (
        isinstance(value, str)
        and re.search(
            "[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", value
        )
        is None
        and re.search(r"\x1b(?!\[[0-9;:]*m|\[[0-2]?K|\[[0-9]{0,3}A)", value) is None
    )


def is_plain(value: object) -> bool:
    """Say whether text has no control at all, not even a colour."""
    return is_text(value) and re.search("[\b\r\x1b]", str(value)) is None


def is_line(value: object) -> bool:
    return is_plain(value) and re.search("[\n\t\u2028\u2029]", str(value)) is None


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def is_json(value: object) -> bool:
    return isinstance(value, dict)  # all that comes out is looked at as JSON in any case


class Inspector(HTMLParser):
    """Notes what ought not to be in HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "iframe", "object", "embed", "svg", "math", "style", "link", "meta", "form", "base",
                   "input", "button", "video", "audio", "template"}:  # fmt: skip
            self.faults.append(tag)
        for name, value in attrs:
            safe = {"href": "(?:https?|mailto):.*", "src": "data:image/(?:png|jpeg|gif|webp);base64,.*"}
            known = name in safe or name in {"alt", "title", "style", "width", "height", "border", "align",
                                             "valign", "colspan", "rowspan", "scope", "rel", "target", "start",
                                             "open"}  # fmt: skip
            if not known or not re.fullmatch(safe.get(name, ".*"), value or "", re.DOTALL):
                self.faults.append(f"{tag} {name}={value}")


def is_safe_html(value: object) -> bool:
    inspector = Inspector()
    inspector.feed(str(value))
    inspector.close()
    return isinstance(value, str) and not inspector.faults


SAFE_TYPES: dict[str, Callable[[Any], bool]] = {
    "text/plain": is_text,
    "text/html": is_safe_html,
    "text/latex": is_text,
    "application/json": lambda _: True,
    "image/png": lambda value: re.fullmatch("[A-Za-z0-9+/]+=*", value) is not None,
}


def is_safe_bundle(value: dict[str, Any]) -> bool:
    """Say whether data holds nothing active; the corpus has charts that must not pass, and no others."""
    return value.keys() <= SAFE_TYPES.keys() and all(SAFE_TYPES[mime](part) for mime, part in value.items())


def is_trusted_bundle(value: dict[str, Any]) -> bool:
    return all(re.fullmatch("[A-Za-z0-9.+/_-]+", mime) for mime in value) and is_text(
        value.get("text/plain", "")
    )


ID = re.compile("[A-Za-z0-9_.:-]{1,128}")
TRANSIENT = {"display_id?": ID}
ERROR = {"ename": is_text, "evalue": is_text, "traceback": [is_text]}
ABORTED = {"status": {"aborted", "abort"}}
PAGE = {"source": {"page"}, "data": {"text/plain": is_text}, "start": is_count}
DEBUG = {
    "type": {"response"},
    "seq": is_count,
    "request_seq": is_count,
    "success": bool,
    "command": is_line,
    "message": is_text,
    "body": is_json,
}
MATCH = {
    "start": is_count,
    "end": is_count,
    "text": is_line,
    "type": re.compile("[A-Za-z0-9 _<>-]{1,40}"),
    "signature": is_line,
}
WORD = re.compile(r"[A-Za-z0-9 .+#_()-]{1,60}")
LANGUAGE = {
    "name": WORD,
    "version": WORD,
    "mimetype": re.compile("[a-z]+/[A-Za-z0-9.+_-]+"),
    "file_extension": re.compile(r"\.[A-Za-z0-9_+-]{1,16}"),
    "pygments_lexer?": WORD,
    "codemirror_mode?": (WORD, {"name": WORD, "version?": is_count}),
    "nbconvert_exporter?": {"python", "script"},
}


def shapes(*, trusted: bool) -> dict[str, Any]:
    """Return the shape of each type's content."""
    bundle: dict[str, Any] = {"data": is_trusted_bundle if trusted else is_safe_bundle, "metadata": is_json}
    count = (is_count, type(None))
    payloads: tuple[Any, ...] = (PAGE,)
    if trusted:
        payloads += ({"source": {"set_next_input"}, "text": is_plain, "replace": bool},)
        payloads += ({"source": {"ask_exit"}, "keepkernel": bool},)
    executed = {
        "execution_count": count,
        "payload": [payloads],
        "user_expressions": lambda found: all(
            is_line(name) and fits(value, ({"status": {"ok"}, **bundle}, {"status": {"error"}, **ERROR}))
            for name, value in found.items()
        ),
    }
    features = {"debugger", "kernel subshells"} if trusted else {"kernel subshells"}
    link = {"text": is_line, "url": re.compile("https://[A-Za-z0-9.-]+(?:/[A-Za-z0-9/._~%+-]*)?")}
    good: dict[str, dict[str, Any]] = {
        "execute_reply": executed,
        "inspect_reply": {"found": bool, **bundle},
        "complete_reply": {
            "matches": [is_line],
            "cursor_start": is_count,
            "cursor_end": is_count,
            "metadata": {"_jupyter_types_experimental?": [MATCH]},
        },
        "history_reply": {
            "history": [
                lambda entry: (
                    fits(entry[0], is_count)
                    and fits(entry[1], is_count)
                    and fits(entry[2], (is_plain, [is_plain]))
                    and len(entry) == 3
                )
            ]
        },
        "comm_info_reply": {
            "comms": lambda comms: (
                (trusted or not comms)
                and all(fits(id_, ID) and fits(each, {"target_name": is_line}) for id_, each in comms.items())
            )
        },
        "kernel_info_reply": {
            "protocol_version": re.compile(r"5\.[0-9]{1,2}(\.[0-9]{1,2})?"),
            "implementation": WORD,
            "implementation_version": WORD,
            "language_info": LANGUAGE,
            "banner": is_text,
            "help_links": [link],
            "supported_features": [features],
            "debugger": bool if trusted else {False},
        },
        "connect_reply": {},
        "interrupt_reply": {},
        "shutdown_reply": {"restart": bool},
        "create_subshell_reply": {"subshell_id": ID},
        "delete_subshell_reply": {},
        "list_subshell_reply": {"subshell_id": [ID]},
    }
    failed = {"status": {"error"}, **ERROR}
    replies = {name: ({"status": {"ok"}, **rest}, failed, ABORTED) for name, rest in good.items()}
    replies["execute_reply"] = (*replies["execute_reply"], {**failed, **executed})
    comm = {"comm_id": ID, "data": is_json}
    extensions = {
        "comm_open": {**comm, "target_name": is_line, "target_module?": is_line},
        "comm_msg": comm,
        "comm_close": comm,
        "debug_event": {"type": {"event"}, "seq": is_count, "event": is_line, "body": is_json},
    }
    return {
        **replies,
        **(extensions if trusted else {}),
        "debug_reply": DEBUG if trusted else {**DEBUG, "success": {False}, "body": {}},
        "is_complete_reply": (
            {
                "status": {"complete", "incomplete", "invalid", "unknown"},
                "indent?": re.compile("[ \t]{0,256}"),
            },
            failed,
            ABORTED,
        ),
        "status": {"execution_state": {"busy", "idle", "starting"}},
        "stream": {"name": {"stdout", "stderr"}, "text": is_text},
        "execute_input": {"code": is_plain, "execution_count": is_count},
        "display_data": {**bundle, "transient": TRANSIENT},
        "update_display_data": {**bundle, "transient": {"display_id": ID}},
        "execute_result": {**bundle, "execution_count": count, "transient?": TRANSIENT},
        "error": ERROR,
        "clear_output": {"wait": bool},
        "input_request": {"prompt": is_text, "password": bool},
    }


def fits(value: Any, shape: Any) -> bool:
    """Say whether a value has a shape."""
    if isinstance(shape, tuple):
        return any(fits(value, choice) for choice in shape)
    if isinstance(shape, dict):
        required = {key for key in shape if not key.endswith("?")}
        known = {key.rstrip("?"): each for key, each in shape.items()}
        return (
            type(value) is dict
            and required <= value.keys() <= known.keys()
            and all(fits(each, known[key]) for key, each in value.items())
        )
    if isinstance(shape, list):
        return type(value) is list and all(fits(each, shape[0]) for each in value)
    if isinstance(shape, (set, frozenset)):
        return isinstance(value, (str, bool)) and value in shape
    if isinstance(shape, re.Pattern):
        return isinstance(value, str) and shape.fullmatch(value) is not None
    return type(value) is shape if isinstance(shape, type) else bool(shape(value))


SHAPES = {"safe": shapes(trusted=False), "widgets": shapes(trusted=True)}
POLICIES: list[Any] = ["safe", "widgets"]

# Where each type belongs.
IOPUB = {"status", "stream", "execute_input", "display_data", "update_display_data", "execute_result", "error",
         "clear_output", "comm_open", "comm_msg", "comm_close", "debug_event"}  # fmt: skip
CONTROL_ONLY = {"debug_reply", "create_subshell_reply", "delete_subshell_reply", "list_subshell_reply"}
SHELL = {"execute_reply", "inspect_reply", "complete_reply", "history_reply", "is_complete_reply",
         "comm_info_reply", "kernel_info_reply", "connect_reply", "interrupt_reply", "shutdown_reply"}  # fmt: skip
CHANNELS = {"iopub": IOPUB, "shell": SHELL, "control": SHELL | CONTROL_ONLY, "stdin": {"input_request"}}
ACTIVE = {"comm_open", "comm_msg", "comm_close", "debug_event"}
"""What only a trusted kernel may send."""
DROPPED = {"iopub_welcome", "usage_reply", "apply_reply", "execute_request", "input_reply", "shutdown_request",
           "", "status\n", "STATUS", "__class__"}  # fmt: skip
CHANNEL_OF: dict[str, Any] = {
    **dict.fromkeys(IOPUB, "iopub"),
    **dict.fromkeys(SHELL, "shell"),
    **dict.fromkeys(CONTROL_ONLY, "control"),
    "input_request": "stdin",
}

BUNDLE: dict[str, Any] = {
    "data": {"text/plain": "x", "text/html": "<b>x</b>", "image/png": PNG, "application/json": {"a": [1]}},
    "metadata": {"image/png": {"width": 3, "height": 4, "needs_background": "light"}},
}
SAMPLES: dict[str, dict[str, Any]] = {
    "status": {"execution_state": "idle"},
    "stream": {"name": "stdout", "text": "x\n"},
    "execute_input": {"code": "x", "execution_count": 3},
    "display_data": {**BUNDLE, "transient": {"display_id": "d"}},
    "update_display_data": {**BUNDLE, "transient": {"display_id": "d"}},
    "execute_result": {**BUNDLE, "execution_count": 3, "transient": {"display_id": "d"}},
    "error": {"ename": "E", "evalue": "v", "traceback": ["a", "b"]},
    "clear_output": {"wait": True},
    "comm_open": {"comm_id": "c", "target_name": "t", "target_module": "m", "data": {"a": 1}},
    "comm_msg": {"comm_id": "c", "data": {"a": 1}},
    "comm_close": {"comm_id": "c", "data": {}},
    "debug_event": {"type": "event", "seq": 1, "event": "stopped", "body": {"threadId": 1}},
    "input_request": {"prompt": "? ", "password": True},
    "execute_reply": {
        "status": "ok",
        "execution_count": 3,
        "user_expressions": {"a": {"status": "ok", **BUNDLE}, "b": {"status": "error", "ename": "E"}},
        "payload": [
            {"source": "page", "data": {"text/plain": "x", "text/html": SVG}, "start": 1},
            {"source": "set_next_input", "text": "x", "replace": True},
            {"source": "ask_exit", "keepkernel": True},
        ],
    },
    "inspect_reply": {"status": "ok", "found": True, **BUNDLE},
    "complete_reply": {
        "status": "ok",
        "matches": ["aa", "ab"],
        "cursor_start": 0,
        "cursor_end": 1,
        "metadata": {
            "_jupyter_types_experimental": [
                {"start": 0, "end": 1, "text": "aa", "type": "function", "signature": "(x)"}
            ]
        },
    },
    "history_reply": {"status": "ok", "history": [[1, 2, "x"], [1, 3, ["x", "y"]]]},
    "is_complete_reply": {"status": "incomplete", "indent": "  "},
    "comm_info_reply": {"status": "ok", "comms": {"c": {"target_name": "t"}}},
    "kernel_info_reply": {
        "status": "ok",
        "protocol_version": "5.4",
        "implementation": "ipython",
        "implementation_version": "9.0",
        "language_info": {
            "name": "python",
            "version": "3.11.7",
            "mimetype": "text/x-python",
            "file_extension": ".py",
            "pygments_lexer": "ipython3",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "nbconvert_exporter": "python",
        },
        "banner": "Python",
        "help_links": [{"text": "Python", "url": "https://docs.python.org/3.11"}],
        "supported_features": ["debugger", "kernel subshells"],
        "debugger": True,
    },
    "connect_reply": {"shell_port": 1, "iopub_port": 2},
    "interrupt_reply": {"status": "ok"},
    "shutdown_reply": {"status": "ok", "restart": True},
    "create_subshell_reply": {"status": "ok", "subshell_id": "s"},
    "delete_subshell_reply": {"status": "ok"},
    "list_subshell_reply": {"status": "ok", "subshell_id": ["s", "t"]},
    "debug_reply": {
        "type": "response",
        "seq": 4,
        "request_seq": 3,
        "success": True,
        "command": "attach",
        "message": "m",
        "body": {"a": 1},
    },
}


def judge(policy: str, msg_type: str, outgoing: Outgoing | None) -> Outgoing | None:
    """Check all that one answer of the filter must be."""
    if outgoing is None:
        return None
    assert outgoing.msg_type == msg_type
    assert fits(outgoing.content, SHAPES[policy][msg_type]), (msg_type, str(outgoing.content)[:3000])
    assert outgoing.buffers == (msg_type in {"comm_open", "comm_msg", "comm_close"})
    if msg_type not in ACTIVE:
        assert fits(outgoing.metadata, {"started?": re.compile("[0-9TZ:.+-]{19,40}")})
    assert is_text(outgoing.note)
    for each in (outgoing.content, outgoing.metadata):
        encoded = json.dumps(each, ensure_ascii=False, allow_nan=False).encode()
        assert len(encoded) < 50 << 20
    return outgoing


def sent(
    policy: Any,
    msg_type: str,
    content: Any,
    metadata: Any = None,
    *,
    filter_: MessageFilter | None = None,
    parent: str = "p",
) -> Outgoing | None:
    """Pass one message through a filter, and judge what comes out."""
    filter_ = filter_ or MessageFilter(policy)
    return judge(
        policy, msg_type, filter_.outgoing(CHANNEL_OF[msg_type], msg_type, parent, content, metadata or {})
    )


def content_of(policy: Any, msg_type: str, content: Any) -> dict[str, Any]:
    """Pass one message that must go on; return its new content."""
    outgoing = sent(policy, msg_type, content)
    assert outgoing is not None
    return outgoing.content


# Which types pass


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channel", CHANNELS)
def test_each_channel_takes_the_types_that_belong_to_it(policy: Any, channel: Any) -> None:
    for msg_type, content in SAMPLES.items():
        outgoing = MessageFilter(policy).outgoing(channel, msg_type, "p", content, {})
        passes = msg_type in CHANNELS[channel] and (policy == "widgets" or msg_type not in ACTIVE)
        assert (outgoing is not None) == passes, (channel, msg_type)
        judge(policy, msg_type, outgoing)
    for msg_type in DROPPED:
        assert MessageFilter(policy).outgoing(channel, msg_type, "p", {}, {}) is None


def test_a_channel_or_a_type_that_is_none_passes_nothing() -> None:
    hostile: list[Any] = [None, 1, [], {}, ["status"], "heartbeat", "IOPUB"]
    for value in hostile:
        assert MessageFilter("widgets").outgoing(value, "status", "p", SAMPLES["status"], {}) is None
        assert MessageFilter("widgets").outgoing("iopub", value, "p", SAMPLES["status"], {}) is None
        assert MessageFilter("widgets").outgoing("shell", value, "p", SAMPLES["execute_reply"], {}) is None


def test_a_well_formed_message_keeps_what_users_need() -> None:
    """Where a sample has nothing to withhold, it comes out as it is, but is another object."""
    same = {"status", "stream", "execute_input", "display_data", "update_display_data", "execute_result", "error",
            "clear_output", "input_request", "inspect_reply", "complete_reply", "history_reply", "shutdown_reply",
            "is_complete_reply", "interrupt_reply", "create_subshell_reply", "delete_subshell_reply",
            "list_subshell_reply"}  # fmt: skip
    for msg_type in same:
        assert content_of("safe", msg_type, SAMPLES[msg_type]) == SAMPLES[msg_type]
        assert content_of("safe", msg_type, SAMPLES[msg_type]) is not SAMPLES[msg_type]
    for msg_type in same | ACTIVE | {"debug_reply", "comm_info_reply", "kernel_info_reply"}:
        assert content_of("widgets", msg_type, SAMPLES[msg_type]) == SAMPLES[msg_type]


# Anything instead of anything


def nested(levels: int) -> object:
    """Make a list in a list in a list …"""
    value: object = []
    for _ in range(levels):
        value = [value]
    return value


NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("nan"), float("inf"), 1 << 31, 1 << 5000),
    *(
        "",
        "x" * 100_000,
        "\ud800",
        "\u202eevil",
        "a\nb",
        "\x00",
        "é" * 5000,
        "../../etc",
        "<script>alert(1)</script>",
    ),
    *(
        "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07",
        "\x1b]52;c;eA==\x07",
        "\x9d0;title\x9c",
        "\x1b[2J\x1b[H",
    ),
    *([], {}, [[]], [None] * 10_000, [{}] * 10_000, ["x"] * 10_000, nested(5000), {"a": nested(5000)}),
    {f"k{n}": n for n in range(100_000)},
    {"__proto__": {"x": 1}, "constructor": 2, "": 3, "\ud800": 4},
    *({"text/html": "<img src=x onerror=alert(1)>"}, {"image/svg+xml": SVG}, {WIDGET: {"model_id": "m"}}),
    *({"text/html": ["<script>"]}, {"text/plain": {"a": 1}}, {"image/png": "AAAA"}, {"bad type": "x"}),
    # Not even JSON.
    *({1: 2}, {"x"}, b"x", object()),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a sample, the whole first."""
    yield path
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(part, (*path, key))


def replaced(sample: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a sample with one part of it replaced."""
    if not path:
        return value
    changed = copy.deepcopy(sample)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return changed


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("msg_type", SAMPLES)
def test_any_field_may_be_anything(policy: Any, msg_type: str) -> None:
    for path in places(SAMPLES[msg_type]):
        for value in NASTY:
            outgoing = sent(policy, msg_type, replaced(SAMPLES[msg_type], path, value))
            if msg_type.endswith("_reply"):
                assert outgoing is not None, "somebody waits for it"


@pytest.mark.parametrize("policy", POLICIES)
def test_metadata_and_parents_may_be_anything(policy: Any) -> None:
    for value in NASTY:
        for msg_type, sample in SAMPLES.items():
            outgoing = MessageFilter(policy).outgoing(CHANNEL_OF[msg_type], msg_type, value, sample, value)
            judge(policy, msg_type, outgoing)
        sent(policy, "execute_reply", SAMPLES["execute_reply"], {"started": value, "engine": value})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.sampled_from("\x1b[]8;\x07m<>\ud800 a")),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
    max_leaves=20,
)


@given(
    policy=st.sampled_from(POLICIES),
    msg_type=st.sampled_from(sorted(SAMPLES)),
    data=st.data(),
)
def test_a_message_with_changed_parts_still_comes_out_in_shape(
    policy: Any, msg_type: str, data: st.DataObject
) -> None:
    message = SAMPLES[msg_type]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(message))))
        message = replaced(message, path, data.draw(JSON))
    sent(policy, msg_type, message, data.draw(JSON))


@given(
    channel=st.sampled_from(list(CHANNELS)),
    msg_type=st.text() | st.sampled_from(sorted(SAMPLES)),
    content=JSON,
)
def test_any_json_as_a_message(channel: Any, msg_type: str, content: Any) -> None:
    for policy in POLICIES:
        outgoing = MessageFilter(policy).outgoing(channel, msg_type, "p", content, content)
        assert outgoing is None or msg_type in CHANNELS[channel]
        judge(policy, msg_type, outgoing)


# Displays

ACTIVE_TYPES: dict[str, Any] = {
    "image/svg+xml": SVG,
    "text/markdown": "# x <img src=x onerror=alert(1)>",
    "application/javascript": "alert(1)",
    "text/javascript": "alert(1)",
    "application/pdf": "JVBERi0=",
    WIDGET: {"model_id": "m", "version_major": 2, "version_minor": 0},
    "application/vnd.jupyter.widget-state+json": {"state": {}},
    "application/vnd.vegalite.v5+json": {"mark": "bar", "transform": [{"calculate": "alert(1)", "as": "x"}]},
    "application/vnd.bokehjs_exec.v0+json": "",
    "text/x-unknown": "x",
}


@pytest.mark.parametrize("mime", ACTIVE_TYPES)
@pytest.mark.parametrize(
    "msg_type", ["display_data", "update_display_data", "execute_result", "inspect_reply"]
)
def test_what_is_active_is_withheld_and_that_is_said_in_place(msg_type: str, mime: str) -> None:
    data = {"text/plain": "a slider", mime: ACTIVE_TYPES[mime]}
    content = content_of("safe", msg_type, {**SAMPLES[msg_type], "data": data})
    assert content["data"].keys() == {"text/plain"}
    assert re.fullmatch(
        rf"a slider\nWithheld: {re.escape(mime)} \([^\n]+\)\.\n{re.escape(REMEDY)}",
        content["data"]["text/plain"],
    )
    trusted = content_of("widgets", msg_type, {**SAMPLES[msg_type], "data": data})
    assert trusted["data"] == data


def test_a_script_in_html_is_removed_and_that_is_said_in_both_forms() -> None:
    data = {"text/plain": "<x>", "text/html": "<p>kept<script>alert(1)</script><b onclick=alert(2)>too</b>"}
    shown = content_of("safe", "display_data", {"data": data})["data"]
    for form in shown.values():
        assert "alert" not in form
        assert "Withheld: text/html: " in form
        assert "Isolated Python (widgets)" in form
    assert "<p>kept<b>too</b></p>" in shown["text/html"]
    assert content_of("widgets", "display_data", {"data": data})["data"] == data


def test_where_a_picture_is_left_the_note_stands_beside_the_message() -> None:
    outgoing = sent("safe", "display_data", {"data": {"image/png": PNG, "image/svg+xml": SVG}})
    assert outgoing is not None
    assert outgoing.content["data"] == {"image/png": PNG}
    assert outgoing.note == f"Withheld: image/svg+xml (can run scripts).\n{REMEDY}"
    whole = sent("safe", "display_data", {"data": {"image/png": PNG, "text/plain": "x"}})
    assert whole is not None
    assert whole.note == ""


def test_where_nothing_is_left_the_text_says_so() -> None:
    shown = content_of("safe", "display_data", {"data": {"image/svg+xml": SVG}})["data"]
    assert shown == {"text/plain": f"Withheld: image/svg+xml (can run scripts).\n{REMEDY}"}
    other = MessageFilter("safe", remedy="Ask the teacher.").outgoing(
        "iopub", "display_data", "p", {"data": {"image/svg+xml": SVG}}, {}
    )
    assert other is not None
    assert other.content["data"]["text/plain"].endswith("\nAsk the teacher.")


def test_the_source_of_markdown_is_shown() -> None:
    data = {"text/plain": "<IPython.core.display.Markdown object>", "text/markdown": "# x"}
    shown = content_of("safe", "execute_result", {"data": data})["data"]["text/plain"]
    assert shown.startswith("# x\nWithheld: text/markdown")


def test_an_id_of_a_display_is_the_same_each_time_and_safe_anywhere() -> None:
    def shown(id_: object, msg_type: str = "display_data") -> Any:
        outgoing = sent("safe", msg_type, {"data": {}, "transient": {"display_id": id_}})
        return outgoing and outgoing.content["transient"].get("display_id")

    for plain in ("d", "0f" * 16, "a.b:c-d_e"):
        assert shown(plain) == plain
    strange = ['"><img src=x>', "my table", "é", "\ud800", "x" * 5000, "a\n", " a"]
    assert len({shown(id_) for id_ in strange}) == len(strange)
    for id_ in strange:
        assert shown(id_) == shown(id_, "update_display_data")
    for id_ in ("", 5, True, None, [], "x" * 100_000):
        assert shown(id_) is None
        assert sent("safe", "update_display_data", {"data": {}, "transient": {"display_id": id_}}) is None


# Streams

LINK = "a\x1b]8;;https://evil.example\x1b\\bank\x1b]8;;\x1b\\ \x1b[31mred\x1b[0m\r50%\x1b[2J\x1b[A\x1b]52;c;eA==\x07z"


def test_a_sequence_that_is_cut_by_the_end_of_a_message_is_still_dropped() -> None:
    whole = clean_stream(LINK)
    assert whole == "abank \x1b[31mred\x1b[0m\r50%\x1b[Az"
    for cut in range(len(LINK) + 1):
        filter_ = MessageFilter("safe")
        found = {"stdout": "", "stderr": ""}
        for part in (LINK[:cut], LINK[cut:]):
            for name in found:  # the streams do not disturb each other, nor do two cells
                for parent in ("p", "q"):
                    content = {"name": name, "text": part}
                    outgoing = sent("safe", "stream", content, filter_=filter_, parent=parent)
                    found[name] += outgoing.content["text"] if outgoing and parent == "p" else ""
        assert found == {"stdout": whole, "stderr": whole}


def test_a_sequence_sent_one_character_at_a_time_is_still_dropped() -> None:
    filter_ = MessageFilter("widgets")
    found = (sent("widgets", "stream", {"name": "stdout", "text": each}, filter_=filter_) for each in LINK)
    assert "".join(each.content["text"] for each in found if each) == clean_stream(LINK)


def test_the_state_is_bounded_and_forgetting_it_lets_nothing_through() -> None:
    filter_ = MessageFilter("safe")
    for number in range(10_000):
        sent(
            "safe",
            "stream",
            {"name": "stdout", "text": "\x1b]8;;https://evil"},
            filter_=filter_,
            parent=str(number),
        )
        assert len(filter_._cleaners) <= 64
    rest = sent("safe", "stream", {"name": "stdout", "text": ".example\x07x"}, filter_=filter_, parent="0")
    assert rest is not None
    assert rest.content["text"] == ".examplex"


def test_a_cell_that_has_ended_leaves_no_state() -> None:
    filter_ = MessageFilter("safe")
    for name in ("stdout", "stderr"):
        sent("safe", "stream", {"name": name, "text": "x\x1b"}, filter_=filter_)
    assert filter_._cleaners
    sent("safe", "status", {"execution_state": "idle"}, filter_=filter_)
    assert not filter_._cleaners


def test_a_giant_text_is_cut_and_that_is_said() -> None:
    content = content_of("safe", "stream", {"name": "stdout", "text": "x" * (17 << 20)})
    assert len(content["text"]) < (16 << 20) + 100
    assert content["text"].endswith(f"\n… ({1 << 20} more characters)\n")


# Replies


def payloads(policy: Any, *theirs: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content_of(
        policy, "execute_reply", {"status": "ok", "payload": list(theirs)}
    )["payload"]
    return found


def test_the_pager_shows_text_only() -> None:
    page = {
        "source": "page",
        "data": {"text/plain": "\x1b[31mx\x1b[0m\x1b[2J", "text/html": "<b>"},
        "start": 2,
    }
    for policy in POLICIES:
        assert payloads(policy, page) == [
            {"source": "page", "data": {"text/plain": "\x1b[31mx\x1b[0m"}, "start": 2}
        ]
        assert payloads(policy, {"source": "page", "data": {"text/html": "<b>"}}) == []


def test_what_would_act_on_the_notebook_becomes_a_page_that_says_so() -> None:
    cell = {"source": "set_next_input", "text": "rm\x1b[2J -rf", "replace": True}
    leave = {"source": "ask_exit", "keepkernel": False}
    edit = {"source": "edit_magic", "filename": "/etc/passwd", "line_number": 1}
    shown = payloads("safe", cell, leave, edit)
    assert [page["source"] for page in shown] == ["page"] * 3
    texts = [page["data"]["text/plain"] for page in shown]
    assert all(text.startswith("Withheld: ") for text in texts)
    assert REMEDY in texts[0]
    assert texts[0].endswith("\n\nrm[2J -rf")
    assert "passwd" not in texts[2]
    trusted = payloads("widgets", cell, leave, edit)
    assert trusted[:2] == [{**cell, "text": "rm[2J -rf"}, leave]
    assert trusted[2]["source"] == "page"


def test_no_reply_claims_success_that_was_not_said() -> None:
    for content in ({}, {"status": "fine"}, {"status": None}, {"status": ["ok"]}, None, [], "ok"):
        reply = content_of("safe", "execute_reply", content)
        assert (reply["status"], reply["ename"]) == ("error", "UnreadableReply")
    assert content_of("safe", "execute_reply", {"status": "aborted"}) == {"status": "aborted"}


def test_an_execution_count_is_a_number() -> None:
    for value in (True, "3", 3.0, -1, 1 << 40, None):
        assert (
            content_of("safe", "execute_reply", {"status": "ok", "execution_count": value})["execution_count"]
            is None
        )
        assert sent("safe", "execute_input", {"code": "x", "execution_count": value}) is None


def test_only_the_time_of_a_start_is_left_of_metadata() -> None:
    theirs = {
        "started": "2026-11-24T05:31:54.128795Z",
        "engine": "x",
        "status": "ok",
        "dependencies_met": True,
    }
    outgoing = sent("safe", "execute_reply", {"status": "ok"}, theirs)
    assert outgoing is not None
    assert outgoing.metadata == {"started": theirs["started"]}
    for other in ("now", "2026-11-24T05:31:54<b>", "٢٠٢٦-11-24T05:31:54", 5, ["x"]):
        assert (
            getattr(sent("safe", "execute_reply", {"status": "ok"}, {"started": other}), "metadata", None)
            == {}
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_of_an_introduction_can_be_imported_or_leads_elsewhere(policy: Any) -> None:
    def introduced(**changes: Any) -> dict[str, Any]:
        return content_of(policy, "kernel_info_reply", {**SAMPLES["kernel_info_reply"], **changes})

    def language(**changes: Any) -> dict[str, Any]:
        theirs = {**SAMPLES["kernel_info_reply"]["language_info"], **changes}
        found: dict[str, Any] = introduced(language_info=theirs)["language_info"]
        return found

    for exporter in ("os.system", "evil.Exporter", "html", "pdf", "/tmp/x.py", 3):
        assert "nbconvert_exporter" not in language(nbconvert_exporter=exporter)
    for extension in ("/../../x", ".py/x", "", ".", ".a\n", ".." * 30):
        assert language(file_extension=extension)["file_extension"] == ".txt"
    for url in ("javascript:alert(1)", "https://a@docs.python.org", 'https://x"onclick=1', "//docs.python.org",
                "https://docs.python.org:80", "data:text/html,x", "http://docs.python.org/\n"):  # fmt: skip
        assert introduced(help_links=[{"text": "x", "url": url}])["help_links"] == []
    evil = introduced(help_links=[{"text": "Python Reference", "url": "https://evil.example/login"}])
    assert bool(evil["help_links"]) == (policy == "widgets")
    older = introduced(help_links=[{"text": "SymPy", "url": "http://docs.sympy.org/latest/index.html"}])
    assert older["help_links"] == [{"text": "SymPy", "url": "https://docs.sympy.org/latest/index.html"}]
    for version in ("4.1", "6.0", "5", "5.x", "5.3\n", "٥.٣", 5.3):
        assert introduced(protocol_version=version)["protocol_version"] == "5.0"
    assert ("debugger" in introduced()["supported_features"]) == (policy == "widgets")
    assert introduced()["debugger"] == (policy == "widgets")
    assert (
        introduced(supported_features=["x", "kernel subshells", "x"])["supported_features"][-1]
        == "kernel subshells"
    )


def test_the_language_is_known_even_if_the_kernel_does_not_say_it() -> None:
    outgoing = MessageFilter("safe", language="bash").outgoing("shell", "kernel_info_reply", "p", {}, {})
    assert outgoing is not None
    assert outgoing.content["language_info"]["name"] == outgoing.content["implementation"] == "bash"


def test_the_debugger_is_refused_by_an_answer_to_the_same_request() -> None:
    reply = content_of("safe", "debug_reply", SAMPLES["debug_reply"])
    assert (reply["success"], reply["request_seq"], reply["command"]) == (False, 3, "attach")
    assert reply["message"].endswith(REMEDY)
    assert reply["body"] == {}


def test_a_list_of_completions_or_of_earlier_cells_is_bounded() -> None:
    many = content_of("safe", "complete_reply", {"status": "ok", "matches": ["x" * 2000] * 100_000})[
        "matches"
    ]
    assert len(many) == 5000
    assert {len(match) for match in many} == {500}
    entries = [[1, number, "x" * 1000] for number in range(100_000)]
    history = content_of("safe", "history_reply", {"status": "ok", "history": entries})["history"]
    assert sum(len(code) for _, _, code in history) <= 4 << 20
    assert history == entries[-len(history) :]
    assert len(history) > 1000


def test_comms_pass_with_their_buffers_and_their_version_where_they_are_allowed() -> None:
    metadata = {"version": "2.1.0"}
    for msg_type in ("comm_open", "comm_msg", "comm_close"):
        assert sent("safe", msg_type, SAMPLES[msg_type], metadata) is None
        outgoing = sent("widgets", msg_type, SAMPLES[msg_type], metadata)
        assert outgoing is not None
        assert outgoing.buffers
        assert outgoing.metadata == metadata
        assert sent("widgets", msg_type, {**SAMPLES[msg_type], "comm_id": "a b"}) is None
        assert sent("widgets", msg_type, {**SAMPLES[msg_type], "data": {"a": nested(100)}}) is None
    assert content_of("safe", "comm_info_reply", SAMPLES["comm_info_reply"])["comms"] == {}


def test_text_is_cleaned_under_both_policies() -> None:
    for policy in POLICIES:
        assert content_of(policy, "display_data", {"data": {"text/plain": LINK}})["data"] == {
            "text/plain": clean_stream(LINK)
        }
        assert content_of(policy, "error", {"ename": LINK, "evalue": LINK, "traceback": [LINK]})
        assert content_of(policy, "input_request", {"prompt": LINK})["prompt"] == clean_stream(
            LINK, cursor_up=False
        )


@pytest.mark.parametrize("crowd", ["\x1b[", "\x07", "\x9b", "é\x1b]8;;", "\x1b[31m"])
def test_a_crowd_of_controls_is_taken_out_as_a_whole(crowd: str) -> None:
    content = {"name": "stdout", "text": crowd * 300_000 + "end"}
    out = MessageFilter("safe").outgoing("iopub", "stream", "cell", content, {})
    assert out is not None
    assert out.content["text"].endswith("end")
    assert not re.search("[\x00-\x07\x0e-\x1f\x7f-\x9f]", out.content["text"])


def test_coloured_output_is_no_crowd() -> None:
    content = {"name": "stdout", "text": "\x1b[31mred\x1b[0m\n" * 50_000}
    out = MessageFilter("safe").outgoing("iopub", "stream", "cell", content, {})
    assert out is not None
    assert out.content["text"] == content["text"]
