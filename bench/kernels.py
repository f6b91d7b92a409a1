"""The second part of ``make bench``: "Isolated Python" beside the stock ipykernel, in one run, as ratios.

Each round starts them in turn and does the same with each; medians of the rounds are compared.  Ours is there
twice: with ``--keep-state off`` it does what ipykernel does, by default it also keeps variables through a
death.  Then what a snapshot before each cell costs, with more and more memory to share.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING

from jupyter_client.manager import KernelManager

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

STOCK, OURS = "python3", "isolated-python"
KINDS = ("", "off", "auto")
"""What is compared: the stock kernel, and ours by its ``--keep-state``."""
TRIPS = 50
OUTPUT = "for _ in range(100): print('x' * 99_999)"
ROWS = (
    "start to ready",
    "round trip of `1`",
    "the same, after a pause",
    "10 MB printed",
    "restart after a death",
    "memory, all processes",
)
PAUSE = 0.05
"""Seconds, as between the cells of somebody very quick."""


def start(name: str) -> tuple[KernelManager, BlockingKernelClient]:
    """Start a kernel; returns when it has answered."""
    manager = KernelManager(kernel_name=name)
    with Path(os.devnull).open("w") as nowhere:
        manager.start_kernel(stderr=nowhere)
    client = manager.client()
    client.start_channels()
    answered = False
    while not answered:
        client.kernel_info()
        try:
            answered = client.shell_channel.get_msg(timeout=1)["msg_type"] == "kernel_info_reply"
        except Empty:
            continue
    return manager, client


def run(client: BlockingKernelClient, code: str) -> float:
    """Seconds until a cell's reply and its last output are here."""
    began = time.perf_counter()
    client.execute_interactive(code, output_hook=lambda _: None, timeout=60)
    return time.perf_counter() - began


def revive(client: BlockingKernelClient) -> float:
    """Seconds from the news of a death until the next cell is answered."""
    reply = client.execute_interactive("import os; os._exit(1)", output_hook=lambda _: None, timeout=60)
    assert reply["content"]["status"] == "error"
    return run(client, "1")


def memory(root: int) -> int:
    """Bytes of a process and all below it; a page that several share is counted once, see PSS in proc(5)."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        waiting += [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return total


def measure(kind: str) -> list[float]:
    """One round with one kernel of ``KINDS``: the figures of ``ROWS``."""
    name = OURS if kind else STOCK
    os.environ["NSMAGIC_KEEP_STATE"] = kind or "auto"
    began = time.perf_counter()
    manager, client = start(name)
    ready = time.perf_counter() - began
    client.wait_for_ready(timeout=60)
    trip, quiet = trips(client, 0), trips(client, PAUSE)
    printed = run(client, OUTPUT)
    time.sleep(1)  # what is prepared behind a start is there by then, and belongs to the memory in use
    used = memory(manager.provisioner.pid)
    # The stock kernel is started anew by its server, from nothing.
    revived = revive(client) if name == OURS else ready
    client.stop_channels()
    manager.shutdown_kernel()
    return [ready, trip, quiet, printed, revived, used]


def trips(client: BlockingKernelClient, pause: float) -> float:
    """Median seconds of a cell, with a pause behind each."""
    found = []
    for _ in range(TRIPS):
        found.append(run(client, "1"))
        time.sleep(pause)
    return statistics.median(found)


def with_snapshots(heap: int, mode: str) -> list[float]:
    """With so many MiB of data: a cell right behind another, one after a pause, and from a death to ready."""
    os.environ.update(NSMAGIC_KEEP_STATE=mode, NSMAGIC_MEM=f"{4 * heap + 512}M")
    manager, client = start(OURS)
    client.wait_for_ready(timeout=60)
    run(client, f"data = b'x' * ({heap} << 20)")
    trips(client, PAUSE)  # which pages each cell writes to is learned
    found = [trips(client, 0), trips(client, PAUSE)]
    if mode != "off":
        deaths = []
        for _ in range(3):
            run(client, "1")
            deaths.append(run(client, "import os; os._exit(1)") + run(client, "1"))
            assert run(client, "assert len(data)") > 0
        found.append(statistics.median(deaths))
    client.stop_channels()
    manager.shutdown_kernel()
    return found


def snapshots(heaps: list[int]) -> None:
    """Measure and print what snapshots cost."""
    print("\n| `1`, --keep-state | off | on | off, after a pause | on, after a pause | death to ready |")
    print("|---|---:|---:|---:|---:|---:|")
    for heap in heaps:
        off, on = with_snapshots(heap, "off"), with_snapshots(heap, "on")
        row = [off[0], on[0], off[1], on[1], on[2]]
        print(f"| {heap} MiB of data | " + " | ".join(f"{1000 * each:.1f} ms" for each in row) + " |")
    for name in ("NSMAGIC_KEEP_STATE", "NSMAGIC_MEM"):
        os.environ.pop(name, None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--heaps", default="50,500,2048", help="MiB of data, such as 50,500; empty for none")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    os.chdir("/usr/share")
    if rounds:
        beside_stock(rounds)
    if heaps := [int(word) for word in arguments.heaps.split(",") if word]:
        snapshots(heaps)


def beside_stock(rounds: int) -> None:
    """Measure and print the comparison with the stock kernel."""
    figures: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind, found in figures.items():
            row = measure(kind)
            if number:
                found.append(row)
        if sys.stderr.isatty():
            sys.stderr.write(f"\rround {number} of {rounds} ")
    stock, *ours = (
        [statistics.median(column) for column in zip(*found, strict=True)] for found in figures.values()
    )
    heads = [f"--keep-state {kind} | ratio" for kind in KINDS[1:]]
    print(f"\n| kernel | ipykernel | {' | '.join(heads)} |")
    print("|---|" + "---:|" * 5)
    for row, plain, *isolated in zip(ROWS, stock, *ours, strict=True):
        cells = [text(row, plain)]
        for value in isolated:
            cells += [text(row, value), f"{value / plain:.2f}"]
        print(f"| {row} | {' | '.join(cells)} |")


def text(row: str, value: float) -> str:
    """A figure with its unit."""
    return f"{value / 2**20:.0f} MiB" if "memory" in row else f"{value * 1000:.1f} ms"


if __name__ == "__main__":
    main()
