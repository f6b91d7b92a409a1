"""What clients hold of a kernel goes on when a cell dies, or is said to be gone: comms, the debugger, subshells.

The kernel's variables, which ``test_state`` is about, come back by themselves.  A slider's comm, a debugger
and a subshell each have a half outside of the kernel, which knows nothing of the death.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from debugging import Debugger

if TYPE_CHECKING:
    from collections.abc import Callable

# One kernel serves most of the module.
pytestmark = pytest.mark.xdist_group("kernel_state_clients")

SECONDS = 60.0
KEPT = "Variables are as they were before this cell."
GONE = "all variables are gone"
DIE = "import os; os._exit(7)"
WIDGET = "application/vnd.jupyter.widget-view+json"


def ok(kernel: Any, code: str) -> Any:
    cell = kernel.run(code)
    assert cell.reply["status"] == "ok", cell
    return cell


# ---- comms and widgets -------------------------------------------------------------------------


SLIDER = """\
from ipywidgets import IntSlider
seen = []
slider = IntSlider(value=3)
slider.observe(lambda change: seen.append(change['new']), 'value')
slider"""


def slide(kernel: Any, model: str, value: int) -> None:
    """Move a slider as a hand does it in the front end."""
    change = {"method": "update", "state": {"value": value}, "buffer_paths": []}
    kernel.post("shell", "comm_msg", {"comm_id": model, "data": change})


def comms(kernel: Any) -> set[str]:
    return set(kernel.ask("shell", "comm_info_request")["comms"])


def closed(kernel: Any, count: int) -> set[str]:
    """The comms that are said to be closed next."""
    return {kernel.next_published("comm_close")["content"]["comm_id"] for _ in range(count)}


@pytest.fixture
def slider(widgets: Any) -> tuple[Any, str]:
    """The module's kernel, and the model of a slider in it."""
    shown = ok(widgets, SLIDER).of("execute_result")[0]["data"]
    widgets.drain()
    return widgets, shown[WIDGET]["model_id"]


def test_a_slider_goes_on_sliding(slider: tuple[Any, str]) -> None:
    kernel, model = slider
    for number in (1, 2):
        assert KEPT in kernel.run(f"slider.value = 77\n{DIE}").error
        # A hand moves it.
        slide(kernel, model, 10 * number)
        assert (
            ok(kernel, "print(slider.value, seen[-1], 77 in seen)").text
            == f"{10 * number} {10 * number} False\n"
        )
        # The code moves it.
        moved = ok(kernel, f"slider.value = {10 * number + 5}").of("comm_msg")
        assert [each["comm_id"] for each in moved] == [model]
        assert moved[0]["data"]["state"] == {"value": 10 * number + 5}
    assert model in comms(kernel)


def test_new_widgets_can_be_made_and_old_ones_be_closed(slider: tuple[Any, str]) -> None:
    kernel, model = slider
    kernel.run(DIE)
    cell = ok(kernel, "other = IntSlider(value=4)\nother")
    made = cell.of("execute_result")[0]["data"][WIDGET]["model_id"]
    assert made in {content["comm_id"] for content in cell.of("comm_open")}
    slide(kernel, made, 6)
    cell = ok(kernel, "print(other.value)\nslider.close()")
    assert cell.text == "6\n"
    assert [content["comm_id"] for content in cell.of("comm_close")] == [model]


def test_a_slider_of_the_cell_that_died_is_closed(slider: tuple[Any, str]) -> None:
    kernel, model = slider
    # What a kernel publishes is sent by a thread of its own: it is given the time.
    name = kernel.send(f"lost = IntSlider(value=4)\ndisplay(lost)\ninput()\n{DIE}")
    cell = kernel.wait(name, until=lambda cell: bool(cell.of("display_data")))
    kernel.client.get_stdin_msg(timeout=SECONDS)
    kernel.client.input("")
    assert KEPT in kernel.wait(name, cell=cell).error
    opened = {content["comm_id"] for content in cell.of("comm_open")}
    (shown,) = (content["data"][WIDGET]["model_id"] for content in cell.of("display_data"))
    assert shown in opened
    assert closed(kernel, len(opened)) == opened
    # Whoever moves it all the same does no harm.
    slide(kernel, shown, 5)
    assert ok(kernel, "print('lost' in globals())").text == "False\n"
    assert model in comms(kernel)
    assert not comms(kernel) & opened
    assert not [message for message in kernel.drain() if message["header"]["msg_type"] == "comm_close"]


def test_a_slider_of_a_cell_that_is_undone_is_closed(slider: tuple[Any, str]) -> None:
    kernel, model = slider
    opened = {content["comm_id"] for content in ok(kernel, "lost = IntSlider()").of("comm_open")}
    ok(kernel, "%isolation undo")
    assert closed(kernel, len(opened)) == opened
    assert model in comms(kernel)


def test_without_a_snapshot_all_sliders_are_closed(start: Callable[..., Any]) -> None:
    kernel = start("isolated-python-widgets", "--keep-state", "off")
    other = kernel.another()
    for end in (DIE, "%isolation restart"):
        opened = {content["comm_id"] for content in ok(kernel, SLIDER).of("comm_open")}
        kernel.run(end)
        assert closed(other, len(opened)) == opened
        assert comms(kernel) == set()


ECHO = """\
def opened(comm, message):
    comm.on_msg(lambda message: comm.send({'echo': message['content']['data'], 'kept': kept}))
kept = 1
get_ipython().kernel.comm_manager.register_target('echo', opened)"""


def test_a_comm_that_the_front_end_opened_goes_on(widgets: Any) -> None:
    ok(widgets, ECHO)
    widgets.post("shell", "comm_open", {"comm_id": "before", "target_name": "echo", "data": {}})
    widgets.post("shell", "comm_msg", {"comm_id": "before", "data": {"number": 4}})
    assert widgets.next_published("comm_msg")["content"]["data"]["echo"] == {"number": 4}
    assert KEPT in widgets.run(f"kept = 2\n{DIE}").error
    widgets.post("shell", "comm_open", {"comm_id": "behind", "target_name": "echo", "data": {}})
    for name in ("before", "behind"):
        widgets.post("shell", "comm_msg", {"comm_id": name, "data": {"number": 5}})
        answer = widgets.next_published("comm_msg", "comm_close")
        assert answer["header"]["msg_type"] == "comm_msg"
        assert answer["content"] == {"comm_id": name, "data": {"echo": {"number": 5}, "kept": 1}}


# ---- figures -----------------------------------------------------------------------------------


def test_a_figure_is_as_before_and_can_be_drawn(widgets: Any) -> None:
    ok(
        widgets,
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(); _ = ax.plot([1, 2]); plt.close(fig)",
    )
    assert KEPT in widgets.run(f"ax.clear(); fig.set_size_inches(1, 1)\n{DIE}").error
    cell = ok(widgets, "print(len(ax.lines), fig.get_size_inches()[0] > 1)\nfig")
    assert cell.text == "1 True\n"
    assert "image/png" in cell.of("execute_result")[0]["data"]
    # What the dead cell had drawn and not shown is not shown later.
    assert KEPT in widgets.run(f"plt.plot([3])\n{DIE}").error
    assert not ok(widgets, "1").of("display_data")


# ---- the debugger ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "fate"), [("auto", GONE), ("on", KEPT)])
def test_the_debugger_starts_afresh(start: Callable[..., Any], mode: str, fate: str) -> None:
    kernel = start("isolated-python-widgets", "--keep-state", mode)
    ok(kernel, "kept = 1")
    Debugger(kernel).attach()
    error = kernel.run(f"kept = 2\n{DIE}").error
    assert fate in error, error
    debugger = Debugger(kernel)
    assert debugger.ask("debugInfo")["body"]["isStarted"] is False
    debugger.attach()
    debugger.stops("a = 6\nb = a * 7\nprint(b)", 2)
    assert debugger.ask("disconnect", restart=False, terminateDebuggee=True)["success"]
    assert ok(kernel, "print(b)").text == "42\n"


def test_the_debugger_starts_after_a_death(widgets: Any) -> None:
    ok(widgets, "kept = 1")
    assert KEPT in widgets.run(DIE).error
    debugger = Debugger(widgets)
    debugger.attach()
    debugger.stops("a = 6\nb = a * 7\nprint(b)", 2)
    assert debugger.ask("disconnect", restart=False, terminateDebuggee=True)["success"]


# ---- subshells -----------------------------------------------------------------------------------


def in_subshell(kernel: Any, subshell: str, code: str) -> dict[str, Any]:
    """Run code in a subshell; the content of its reply."""
    content = {"code": code, "silent": False, "allow_stdin": False}
    message = kernel.client.session.msg("execute_request", content)
    message["header"]["subshell_id"] = subshell
    kernel.client.shell_channel.send(message)
    reply: dict[str, Any] = kernel.reply(message["header"]["msg_id"])
    return reply


def test_subshells_are_gone_and_new_ones_work(safe: Any) -> None:
    ok(safe, "kept = 1")
    old = safe.ask("control", "create_subshell_request")["subshell_id"]
    assert in_subshell(safe, old, "kept += 1")["status"] == "ok"
    assert KEPT in safe.run(f"kept = 7\n{DIE}").error
    assert safe.ask("control", "list_subshell_request")["subshell_id"] == []
    refused = safe.ask("control", "delete_subshell_request", {"subshell_id": old})
    assert refused["status"] == "error"
    refused = in_subshell(safe, old, "kept = 8")
    assert refused["status"] == "error"
    assert old in refused["evalue"]
    new = safe.ask("control", "create_subshell_request")["subshell_id"]
    assert new != old
    assert in_subshell(safe, new, "kept += 1")["status"] == "ok"
    assert ok(safe, "print(kept)").text == "3\n"
    assert safe.ask("control", "delete_subshell_request", {"subshell_id": new})["status"] == "ok"


def test_a_cell_of_a_subshell_that_dies(safe: Any) -> None:
    ok(safe, "kept = 1")
    old = safe.ask("control", "create_subshell_request")["subshell_id"]
    refused = in_subshell(safe, old, f"kept = 2\n{DIE}")
    assert refused["status"] == "error"
    assert "exit status 7" in refused["evalue"]
    assert "Variables are as they were" in refused["evalue"]
    assert ok(safe, "print(kept)").text == "1\n"
