"""The table of requests: what it finds, what it forgets, and that it does not grow."""

from __future__ import annotations

import json
from typing import Any

from nsmagic.kernel import requests, wire
from nsmagic.kernel.requests import Request, Requests

KEY = wire.Key(b"key")


def request(
    name: str = "a", kind: str = "execute_request", channel: Any = "shell", buffers: int = 0, **more: Any
) -> Request:
    content = {"code": more.get("code", "")}
    frames = wire.Writer(KEY).frames(kind, content, buffers=[bytes(buffers)] if buffers else None)
    message = wire.parse([b"client", *frames], KEY)
    return Request(
        name, kind, channel, message.identities, message.parts[0], "session", None, message, **more
    )


def test_an_answered_request_still_finds_its_cell_but_holds_nothing_large() -> None:
    table = Requests()
    made = request(buffers=1 << 20)
    table.add(made)
    made.forwarded = 1.0
    assert table.running() == [made]
    table.finish(made)
    assert (table.running(), made.replied) == ([], True)
    assert table.find("a") is made
    assert table.find("b") is None
    assert made.message.size == len(made.header)
    assert json.loads(made.header)["msg_type"] == "execute_request"


def test_the_same_name_on_two_channels_is_two_requests() -> None:
    table = Requests()
    shell, control = (
        request(kind="kernel_info_request"),
        request(kind="kernel_info_request", channel="control"),
    )
    table.add(control)
    assert table.find("a") is control
    table.add(shell)
    assert table.find("a", "control") is control
    assert table.find("a", "shell") is shell
    assert table.find("a") is shell
    table.finish(shell)
    assert table.find("a", "control") is control
    assert table.find("a") is shell


def test_what_is_answered_is_forgotten_by_number_and_by_bytes() -> None:
    table = Requests()
    for number in range(3 * requests._KEPT):
        made = request(str(number))
        table.add(made)
        table.finish(made)
    assert len(table.answered) == requests._KEPT
    assert table.find("0") is None
    assert table.find(str(3 * requests._KEPT - 1)) is not None
    for number in range(50):
        made = request(f"large {number}", code="x" * (1 << 20))
        table.add(made)
        table.finish(made)
    held = sum(each.weight for each in table.answered.values())
    assert held == table._weight <= requests._KEPT_BYTES
    assert table.find("large 49") is made


def test_one_that_is_larger_than_all_that_is_kept_is_not_kept() -> None:
    table = Requests()
    made = request(code="x" * (requests._KEPT_BYTES + 1))
    table.add(made)
    table.finish(made)
    assert (len(table.answered), table._weight) == (0, 0)


def test_the_same_name_again_counts_once() -> None:
    table = Requests()
    for _ in range(10):
        table.note(request(code="x" * 1000))
    assert len(table.answered) == 1
    assert table._weight == table.answered["shell", "a"].weight


def test_an_answer_lets_its_client_be_asked_again_and_nobody_else() -> None:
    table = Requests()
    mine, other = request("mine", asked=32), request("other", asked=32)
    other.identities = [b"another"]
    table.add(mine)
    table.add(other)
    table.answered_by([b"client"])
    assert (mine.asked, other.asked) == (0, 32)


def test_in_each_shell_one_cell_runs() -> None:
    table = Requests()
    cells = [request(str(number)) for number in range(3)]
    for cell in cells:
        table.add(cell)
    assert table.running() == []
    assert table.shells_are_free()
    cells[0].forwarded, cells[1].forwarded = 1.0, 2.0
    assert table.running() == [cells[0]]
    cells[2].forwarded, cells[2].subshell = 3.0, "sub"
    assert table.running() == [cells[0], cells[2]]
    table.finish(cells[0])
    assert table.running() == [cells[1], cells[2]]
    assert table.began(cells[1]) > 2.0
    assert not table.shells_are_free()
