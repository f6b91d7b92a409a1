"""``make bench``: nsmagic beside its peers, in one run, as ratios.

Each round runs every contender once, in turn, so that a machine whose speed drifts does so for all; medians
of the rounds are compared.  The absolute times say something about this machine only.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import nsmagic
from nsmagic import standbys
from nsmagic.container import Container
from nsmagic.intake import container_spec, job_spec

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO = "print('hi')"
OUTPUT_BYTES = 100_000_000
FLOOD = f"import os\nfor _ in range({OUTPUT_BYTES} // 50_000): os.write(1, b'x' * 49_999 + b'\\n')"
PAUSE = 0.1
"""Seconds between two runs, as between two cells; long enough for what is prepared behind a run."""
_numbers = itertools.count()


def plain_python() -> None:
    """A new interpreter, no isolation at all."""
    subprocess.run([sys.executable, "-c", HELLO], check=True, stdout=subprocess.PIPE)


def warm() -> None:
    """A contained cell, options as in the run before: a standby is there."""
    nsmagic.run(HELLO).check()


def cold() -> None:
    """A contained cell in a folder that no container has shown before: nothing was built for it."""
    folder = Path(_folders(), str(next(_numbers)))
    folder.mkdir()
    nsmagic.run(HELLO, workdir=folder).check()


@functools.cache
def _folders() -> str:
    folders = tempfile.mkdtemp(prefix="nsmagic-bench-")
    atexit.register(shutil.rmtree, folders)
    return folders


def other_limits() -> None:
    """A contained cell with a limit that no container had before."""
    nsmagic.run(HELLO, pids=100 + next(_numbers)).check()


def unprepared() -> None:
    """A contained cell where not even a blank waits, as in the second of two runs at once."""
    Container(container_spec({}), keep=False).start().run_job(job_spec({}, kind="cell", code=HELLO)).check()


def bubblewrap() -> None:
    """Bubblewrap with the same namespaces, the same folders, and a new interpreter; no limits."""
    prefixes = {sys.prefix, sys.base_prefix}
    binds = [word for prefix in prefixes for word in ("--ro-bind", prefix, prefix)]
    subprocess.run(
        [
            "bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr",
            "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
            "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev",
            *binds, sys.executable, "-c", HELLO,
        ],
        check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip


def command_line() -> None:
    """``nsmagic run -c``: starts owner, launcher and container for one job."""
    subprocess.run(
        [sys.executable, "-m", "nsmagic.cli", "run", "-c", HELLO], check=True, stdout=subprocess.PIPE
    )


def bare_pipe() -> None:
    """100 MB through a pipe from a plain Python."""
    subprocess.run([sys.executable, "-c", FLOOD], check=True, stdout=subprocess.PIPE)


def contained_pipe() -> None:
    """100 MB from a contained cell."""
    result = nsmagic.run(FLOOD, output_limit=2 * OUTPUT_BYTES).check()
    assert len(result.stdout_bytes) == OUTPUT_BYTES


def measure(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each, all run in turn in every round; a first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
        if sys.stderr.isatty():
            sys.stderr.write(f"\rround {number} of {rounds} ")
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 30 + "\r")
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, medians: dict[str, float], base: str) -> None:
    """Print one table, in Markdown."""
    width = max(map(len, medians))
    print(f"\n| {title.ljust(width)} | median | against {base} |")
    print(f"|{'-' * (width + 2)}|-------:|{'-' * (10 + len(base))}:|")
    for name, seconds in medians.items():
        print(f"| {name.ljust(width)} | {seconds * 1000:.1f} ms | {seconds / medians[base]:.2f} |")


def back_to_back(seconds: float) -> float:
    """Containers a second, one behind the other without a pause."""
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        warm()
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    os.chdir("/usr/share")  # a working directory that every contender can have
    nsmagic.run(HELLO).check()
    contenders = {
        "python -c": plain_python,
        "nsmagic.run, warm": warm,
        "nsmagic.run, other limits": other_limits,
        "nsmagic.run, cold": cold,
        "nsmagic.run, unprepared": unprepared,
        "nsmagic run -c": command_line,
    }
    if shutil.which("bwrap"):
        contenders["bubblewrap + python"] = bubblewrap
    show('`print("hi")`', measure(contenders, rounds), "python -c")
    show(
        "100 MB of output",
        measure({"bare pipe": bare_pipe, "nsmagic.run": contained_pipe}, max(rounds // 4, 3)),
        "bare pipe",
    )
    print(f"\nback to back: {back_to_back(3.0):.0f} containers a second")
    standbys.current().stop()


if __name__ == "__main__":
    main()
