"""On whatever host this is: the doctor's word for a feature is what then happens when somebody asks for it.

What is said to work is used, and must hold; what is said to be missing must be refused, with a remedy.  And
what the doctor says of limits is tried with programs that want all they can get.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import agreement
import pytest

import nsmagic
from nsmagic import host

if TYPE_CHECKING:
    from nsmagic.host import Finding

pytestmark = [pytest.mark.hosts, pytest.mark.usefixtures("quiet")]


@functools.cache
def rows() -> dict[str, Finding]:
    """What the doctor says, asked once."""
    return {row.feature: row for row in host.examine()}


def test_every_row_has_a_trial_of_its_own() -> None:
    """A row without one would never be compared."""
    assert rows().keys() <= agreement.ASKED.keys()
    assert len(rows()) >= len(agreement.ASKED) - 1  # an ordinary user has no row for root's folders


@pytest.mark.parametrize("feature", agreement.ASKED)
def test_the_word_for_it_is_what_then_happens(feature: str) -> None:
    if feature not in rows():
        pytest.skip(f"host: the doctor has no row for {feature} here")
    row = rows()[feature]
    word, said = agreement.then(feature)
    assert word == row.status, f"the doctor says {row.status} ({row.detail}), and then: {word} {said}"
    if word == "missing":
        assert row.remedy, "there is something to be done about everything"


# ---- Programs that want all they can get -----------------------------------------------------------

MEMORY_HOG = """
import os
hogs = [os.fork() for _ in range(3)]
held = []
while True:
    held.append(bytearray(b"x") * (1 << 20))
"""
FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
CPU_HOG = """
import os, time
os.fork(), os.fork()
end = time.monotonic() + 2
while time.monotonic() < end:
    pass
"""


def refused(feature: str, code: str, **options: Any) -> bool:
    """Whether the doctor says that this limit is missing; then the run must be refused."""
    row = rows()[feature]
    if row.status == "weaker":
        pytest.skip(f"host: the doctor says that {feature} does not hold here: {row.detail}")
    if row.status == "works":
        return False
    with pytest.raises((nsmagic.HostError, nsmagic.StartError)) as caught:
        nsmagic.run(code, **options)
    # Where there is no container at all it is that which is told.
    assert isinstance(caught.value, nsmagic.StartError) or feature in caught.value.feature
    assert caught.value.remedy
    return True


def test_a_memory_hog_is_held() -> None:
    if not refused("--mem", MEMORY_HOG, mem="64M", timeout=60):
        result = nsmagic.run(MEMORY_HOG, mem="64M", timeout=60)
        assert result.outcome == "out-of-memory", result.describe()
        assert result.usage.memory_peak is None or result.usage.memory_peak <= 64 << 20
        assert nsmagic.run("print(1)", mem="64M").stdout == "1\n"


def test_a_fork_bomb_is_held() -> None:
    if not refused("--pids", FORK_BOMB, pids=24, timeout=2):
        result = nsmagic.run(FORK_BOMB, pids=24, timeout=2)
        assert result.outcome == "timeout", result.describe()
        # Of the bomb's processes and init: some kernels count the one that was refused too.
        assert result.usage.pids_peak is None or result.usage.pids_peak <= 24 + 2
        assert nsmagic.run("print(1)", pids=24).stdout == "1\n"


def test_a_cpu_hog_is_held() -> None:
    if not refused("--cpus", CPU_HOG, cpus=0.3):
        result = nsmagic.run(CPU_HOG, cpus=0.3, timeout=60)
        # Four processes want two seconds each. A period or two more may be used before the first throttling.
        assert cpu_used(result) <= 0.3 * result.usage.wall + 0.2 + cpu_used(nsmagic.run("pass")), result.usage


def cpu_used(result: nsmagic.Result) -> float:
    """Seconds of CPU time, both kinds."""
    assert result.usage.cpu_user is not None
    assert result.usage.cpu_system is not None
    return result.usage.cpu_user + result.usage.cpu_system
