"""What a cell forks ends with the cell, as a program's child would; and an interrupt in a fork is not lost."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

INTERRUPTED = """
import os, signal, threading, time
from nsmagic.launcher import forks

done = []
def slowly():
    if {when!r} in done:
        return
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # wherever Python looks for signals
        pass
    done.append({when!r})

os.register_at_fork(**{{{when!r}: slowly}})
if {held}:
    forks.hold_interrupts()
try:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("lost", done)
except KeyboardInterrupt:
    print("interrupted", done)
"""


@pytest.mark.parametrize("when", ["before", "after_in_parent"])
@pytest.mark.parametrize("held", [True, False])
def test_an_interrupt_in_the_middle_of_a_fork_is_not_lost(when: str, held: bool) -> None:  # noqa: FBT001
    """Without our hooks it is, and so is the rest of the hook."""
    code = INTERRUPTED.format(when=when, held=held)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert lines == ([f"interrupted ['{when}']"] if held else ["lost []"])
    assert ("Exception ignored" in done.stderr) == (not held)


def test_an_interrupt_that_comes_before_a_child_is_there_is_not_the_childs() -> None:
    code = """
import os, signal
from nsmagic.launcher import forks
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
forks.hold_interrupts()
ours, theirs = os.pipe()
parent = os.getpid()
try:
    os.fork()
except KeyboardInterrupt:
    assert os.getpid() == parent
if os.getpid() != parent:
    os.write(theirs, signal.getsignal(signal.SIGINT).__name__.encode())
    os._exit(7)
print(os.read(ours, 100).decode(), os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "default_int_handler 7\n"


def test_threads_that_fork_at_once_leave_the_handler_as_it_was() -> None:
    code = """
import os, signal, threading
from nsmagic.launcher import forks
forks.hold_interrupts()
def many():
    for _ in range(50):
        child = os.fork()
        if child == 0: os._exit(0)
        os.waitpid(child, 0)
threads = [threading.Thread(target=many) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "interrupted\n"


ENDS = [
    ("pass", 0),
    ("raise ValueError('in the child')", 1),
    ("raise SystemExit(3)", 3),
    ("raise SystemExit", 0),
    ("raise SystemExit('no more')", 1),
    ("import os; os._exit(9)", 9),
]


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_child_ends_with_the_cell_that_forked_it(start: Any, mode: str) -> None:
    kernel = start("isolated-python", "--keep-state", mode)
    kernel.run("import os\nseen = 0")
    for code, status in ENDS:
        cell = kernel.run(
            f"child = os.fork()\nif child == 0:\n    {code}\nelse:\n    ended = os.waitpid(child, 0)[1]"
        )
        assert cell.reply["status"] == "ok"
        for number in range(3):  # all that comes is the kernel's
            assert kernel.run(f"seen += 1\nprint({number}, seen)").text.startswith(f"{number} ")
        assert kernel.run("print(os.waitstatus_to_exitcode(ended))").text == f"{status}\n"
    assert kernel.run("print(seen)").text == f"{3 * len(ENDS)}\n"


@pytest.mark.parametrize(("code", "stream"), [("print('of the child')", "stdout"), ("1 / 0", "stderr")])
def test_what_a_child_prints_is_shown(safe: Any, code: str, stream: str) -> None:
    name = safe.send(f"import os, time\nif os.fork() == 0:\n    {code}\nelse:\n    time.sleep(1000)")
    words = {"stdout": "of the child", "stderr": "division by zero"}
    cell = safe.wait(name, until=lambda cell: words[stream] in cell.stream(stream))
    safe.interrupt()
    assert safe.wait(name, cell=cell).error.startswith("KeyboardInterrupt")


def test_a_child_ends_after_a_revival_too(safe: Any) -> None:
    safe.run("import os\nkept = 1")
    assert safe.run("os._exit(7)").reply["status"] == "error"
    assert safe.run("print(kept)\nchild = os.fork()").text == "1\n"
    assert safe.run("print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))").text == "0\n"
    assert [safe.run(f"print({number})").text for number in range(5)] == [
        f"{number}\n" for number in range(5)
    ]
