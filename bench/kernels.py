"""The second part of ``make bench``: "Isolated Python" beside the stock ipykernel, in one run, as ratios.

Each round starts both, in turn, and does the same with them; medians of the rounds are compared.
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
TRIPS = 50
OUTPUT = "for _ in range(100): print('x' * 99_999)"
ROWS = (
    "start to ready",
    "round trip of `1`",
    "10 MB printed",
    "restart after a death",
    "memory, all processes",
)


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


def measure(name: str) -> list[float]:
    """One round with one kernel: the figures of ``ROWS``."""
    began = time.perf_counter()
    manager, client = start(name)
    ready = time.perf_counter() - began
    client.wait_for_ready(timeout=60)
    trip = statistics.median(run(client, "1") for _ in range(TRIPS))
    printed = run(client, OUTPUT)
    time.sleep(1)  # what is prepared behind a start is there by then, and belongs to the memory in use
    used = memory(manager.provisioner.pid)
    # The stock kernel is started anew by its server, from nothing.
    revived = revive(client) if name == OURS else ready
    client.stop_channels()
    manager.shutdown_kernel()
    return [ready, trip, printed, revived, used]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    os.chdir("/usr/share")
    figures: dict[str, list[list[float]]] = {STOCK: [], OURS: []}
    for number in range(rounds + 1):
        for name, found in figures.items():
            row = measure(name)
            if number:
                found.append(row)
        if sys.stderr.isatty():
            sys.stderr.write(f"\rround {number} of {rounds} ")
    stock, ours = (
        [statistics.median(column) for column in zip(*found, strict=True)] for found in figures.values()
    )
    print("\n| kernel                | ipykernel | Isolated Python | ratio |")
    print("|-----------------------|----------:|----------------:|------:|")
    for row, plain, isolated in zip(ROWS, stock, ours, strict=True):
        texts = [
            f"{value / 2**20:.0f} MiB" if "memory" in row else f"{value * 1000:.1f} ms"
            for value in (plain, isolated)
        ]
        print(f"| {row.ljust(21)} | {texts[0]:>9} | {texts[1]:>15} | {isolated / plain:>5.2f} |")


if __name__ == "__main__":
    main()
