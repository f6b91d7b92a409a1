"""The ends of a kernel: whichever way it goes, nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60.0
SLEEPER = (
    "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True); import os; os.getpid()"
)


@pytest.fixture
def grown(start: Callable[..., Any], tree_of: Callable[[int], Any]) -> tuple[Any, Any]:
    """A kernel that has started a program of its own, and all that there is of it."""
    kernel = start()
    assert kernel.run(SLEEPER).reply["status"] == "ok"
    # The standby is a container too.
    kernel.run("import time; time.sleep(0.6)")
    tree = tree_of(kernel.pid)
    names = [_command(process.pid) for process in tree.processes]
    assert any(name.startswith("sleep 1000") for name in names), names
    return kernel, tree


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:  # it has ended meanwhile
        return ""


# ---- interrupts ---------------------------------------------------------------------------------


def test_python_code_is_interrupted(safe: Any) -> None:
    name = safe.send("print('begun', flush=True)\nwhile True: pass")
    cell = safe.wait(name, until=lambda cell: "begun" in cell.text)
    safe.interrupt()
    assert safe.wait(name, cell=cell).error.startswith("KeyboardInterrupt")
    assert safe.run("print('on')").text == "on\n"


def test_c_code_and_programs_are_interrupted(safe: Any) -> None:
    for code in (
        "import time; time.sleep(1000)",
        "!sleep 1000",
        "import subprocess; subprocess.run(['sleep', '1000'])",
    ):
        name = safe.send(
            f"print('begun', flush=True)\n{code}\nprint('not reached')"
            if code[0] != "!"
            else f"print('begun', flush=True)\n{code}"
        )
        cell = safe.wait(name, until=lambda cell: "begun" in cell.text)
        safe.interrupt()
        cell = safe.wait(name, cell=cell)
        assert "not reached" not in cell.text
        assert safe.run("print('on')").text == "on\n"


def test_an_interrupt_of_an_idle_kernel_does_nothing(safe: Any) -> None:
    safe.run("kept = 1")
    assert safe.ask("control", "interrupt_request")["status"] == "ok"
    # The signal is on its way; a cell that it meets is interrupted, and answered.
    while safe.run("pass").reply["status"] != "ok":
        pass
    assert safe.run("print(kept)").text == "1\n"


def test_a_cell_is_answered_whenever_it_is_interrupted(safe: Any) -> None:
    """Also where the signal comes between the request's arrival and its code."""
    safe.run("kept = 1")
    for number in range(40):
        safe.interrupt()
        assert safe.run(f"{number}").reply["status"] in {"ok", "error"}
    while safe.run("pass").reply["status"] != "ok":
        pass
    assert safe.run("print(kept)").text == "1\n"


def test_input_is_interrupted(safe: Any) -> None:
    name = safe.send("input('never answered: ')")
    assert safe.client.get_stdin_msg(timeout=SECONDS)["content"]["prompt"] == "never answered: "
    safe.interrupt()
    assert safe.wait(name).error.startswith("KeyboardInterrupt")


def test_ctrl_c_in_the_servers_terminal_harms_no_kernel(safe: Any) -> None:
    safe.run("kept = 1")
    os.killpg(os.getpgid(safe.pid), signal.SIGINT)
    assert safe.run("print(kept)").text == "1\n"
    assert safe.manager.is_alive()


# ---- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["end", "restart"])
def test_a_shutdown_request_ends_it(
    grown: tuple[Any, Any], nothing_left: Callable[..., float], why: str
) -> None:
    kernel, tree = grown
    restart = why == "restart"
    reply = kernel.ask("control", "shutdown_request", {"restart": restart})
    assert reply == {"status": "ok", "restart": restart}
    nothing_left(tree)
    # All clients are told.
    assert kernel.next_published("shutdown_reply")["content"]["restart"] is restart


def test_a_shutdown_is_not_held_up_by_a_cell(
    grown: tuple[Any, Any], nothing_left: Callable[..., float]
) -> None:
    kernel, tree = grown
    stubborn = (
        "print('begun', flush=True)\nwhile True:\n  try:\n    while True: pass\n  except BaseException: pass"
    )
    kernel.wait(kernel.send(stubborn), until=lambda cell: "begun" in cell.text)
    assert kernel.ask("control", "shutdown_request", {"restart": False})["status"] == "ok"
    nothing_left(tree)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_it(
    grown: tuple[Any, Any], nothing_left: Callable[..., float], number: signal.Signals
) -> None:
    kernel, tree = grown
    os.kill(kernel.pid, number)
    kernel.manager.provisioner.process.wait(SECONDS)
    nothing_left(tree)


SERVER = """
import sys, time
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name=sys.argv[1], startup_timeout=60)
print(manager.provisioner.pid, flush=True)
time.sleep(1000)
"""


def test_it_ends_with_the_server_that_started_it(
    spec_name: Callable[..., str],
    tree_of: Callable[[int], Any],
    nothing_left: Callable[..., float],
    tmp_path: Path,
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, spec_name()], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with server:
        tree = tree_of(int(server.stdout.readline()))
        assert tree.processes
        server.kill()
    nothing_left(tree)


@pytest.mark.serial
def test_after_sigkill_of_its_group_nothing_is_left_within_a_second(
    grown: tuple[Any, Any], nothing_left: Callable[..., float]
) -> None:
    kernel, tree = grown
    os.killpg(os.getpgid(kernel.pid), signal.SIGKILL)
    kernel.manager.provisioner.process.wait(SECONDS)
    # A second on a machine of its own; this one may have others to serve.
    assert nothing_left(tree) < 1.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_jupyters_own_shutdown_comes_down_the_ladder(
    grown: tuple[Any, Any], nothing_left: Callable[..., float]
) -> None:
    kernel, tree = grown
    began = time.monotonic()
    kernel.manager.shutdown_kernel(now=False)
    # Asked, it ends: Jupyter need not come to its signals, which is after five seconds.
    assert time.monotonic() - began < kernel.manager.shutdown_wait_time / 2
    assert kernel.manager.provisioner.process is None
    nothing_left(tree)


# ---- restarts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_a_restart_keeps_the_ports(
    start: Callable[..., Any], tree_of: Callable[[int], Any], nothing_left: Callable[..., float], how: str
) -> None:
    kernel = start()
    kernel.run("kept = 1")
    for _ in range(3):
        ports, pid, tree = kernel.manager.ports, kernel.pid, tree_of(kernel.pid)
        kernel.manager.restart_kernel(now=how == "killed")
        assert kernel.manager.ports == ports
        assert kernel.pid != pid
        kernel.client.wait_for_ready(timeout=SECONDS)  # the same client: it finds the new one by itself
        kernel.drain()
        assert kernel.run("print('kept' in globals())").text == "False\n"
        nothing_left(tree)


@pytest.mark.serial
@pytest.mark.timeout(400)
def test_after_fifty_starts_and_kills_nothing_is_left(
    spec_name: Callable[..., str],
    tmp_path: Path,
    tree_of: Callable[[int], Any],
    nothing_left: Callable[..., float],
) -> None:
    """Killed at a different moment each time, from before its first container until it has run a cell."""
    from jupyter_client.manager import AsyncKernelManager

    name = spec_name()
    trees: list[Any] = []

    async def live(number: int, turn: asyncio.Semaphore) -> None:
        async with turn:
            manager = AsyncKernelManager(kernel_name=name)
            await manager.start_kernel(cwd=str(tmp_path))
            pid = manager.provisioner.pid
            client = manager.client()
            client.start_channels()
            try:
                if number % 2:
                    await client.wait_for_ready(timeout=SECONDS)
                    await client.execute(SLEEPER, reply=True, timeout=SECONDS)
                else:
                    await asyncio.sleep(number / 50)  # no event: any moment of a start will do
                trees.append(tree_of(pid))
                os.killpg(os.getpgid(pid), signal.SIGKILL)
                await manager.provisioner.wait()
            finally:
                client.stop_channels()
                await manager.shutdown_kernel(now=True)
                manager.context.destroy()

    async def live_all() -> None:
        turn = asyncio.Semaphore(4)
        await asyncio.gather(*(live(number, turn) for number in range(50)))

    asyncio.run(live_all())
    assert len(trees) == 50
    assert sum(len(tree.processes) for tree in trees) > 100
    nothing_left(*trees)
