"""What all tests share: what a host must have for them, a folder to run in, and a look for leaks.

The suite runs as whoever starts it.  To try everything, start it twice: as root and as an ordinary user.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from polling import poll_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsmagic import Container, Result

# A shared machine is slow now and then, and the tree may belong to somebody else.
settings.register_profile("nsmagic", database=None, deadline=None)
settings.load_profile("nsmagic")

AT_LEAST = {"cgroup_v1": "cgroup v1", "cgroup_v2": "cgroup v2"}


def _no_limits() -> str:
    """Why the limits that a kernel has by default cannot be enforced here; empty where they can."""
    from nsmagic import cgroups
    from nsmagic.kernel import specs

    limits = cgroups.Limits(mem=specs.DEFAULTS["mem"], pids=specs.DEFAULTS["pids"])
    lacking = [each.missing(limits) for each in cgroups.mechanisms()]
    return (
        "" if not all(lacking) else "; ".join(f"{each.what}: {each.reason}" for each in min(lacking, key=len))
    )


@functools.cache
def _no_container() -> str:
    """Why no container can be built here; empty where one can."""
    import nsmagic

    try:
        nsmagic.run("pass").check()
    except (nsmagic.HostError, nsmagic.StartError) as error:
        return f"host: no container can be built: {error}"
    return ""


@functools.cache
def _doctor() -> dict[str, Any]:
    """What the doctor says, by feature."""
    from nsmagic import host

    return {row.feature: row for row in host.examine()}


def _does_not_work(features: tuple[str, ...]) -> str:
    """The doctor's own reason why one of these features cannot be relied on here; empty where all can."""
    for feature in features:
        row = _doctor().get(feature)
        if row is not None and row.status != "works":
            return f"host: {feature} is {row.status}: {row.detail}"
    return ""


@pytest.fixture(scope="session")
def added() -> set[str]:
    """The namespace that every other one takes along here.

    An ordinary user makes none without a user namespace.  Root does, but has its processes counted in one
    where no control group counts them.
    """
    counted = _doctor()["--pids"].detail.startswith("RLIMIT_NPROC")
    return {"user"} if os.geteuid() != 0 or counted else set()


def lacks(marker: str) -> str:
    """Why a test with this marker cannot run here; empty where it can."""
    if marker == "root" and os.geteuid() != 0:
        return "host: not root"
    if marker == "ordinary_user" and os.geteuid() == 0:
        return "host: runs as root"
    if marker == "container":
        return _no_container()
    if marker == "limits" and (reason := _no_limits()):
        return f"host: no cgroup that limits memory and processes: {reason}"
    if marker in AT_LEAST:
        from nsmagic import cgroups

        if AT_LEAST[marker] not in [mechanism.name for mechanism in cgroups.mechanisms()]:
            reasons = [each.reason for each in cgroups.unavailable() if each.mechanism == AT_LEAST[marker]]
            return (
                f"host: no {AT_LEAST[marker]} that may be written to: {'; '.join(reasons) or 'not mounted'}"
            )
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not sys.platform.startswith("linux"):
        return
    for marker in item.iter_markers():
        if reason := lacks(marker.name) or (marker.name == "works" and _does_not_work(marker.args)):
            pytest.skip(reason)


def children(pid: int) -> set[int]:
    """The child processes of one process, of all its threads."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found |= {int(child) for child in (thread / "children").read_text().split()}
        except OSError:  # the thread has ended meanwhile
            continue
    return found


@pytest.fixture(scope="session")
def limits_lack() -> str:
    """Why the limits that a kernel has by default cannot be enforced here; empty where they can."""
    return lacks("limits")


@pytest.fixture(scope="session")
def until() -> Callable[..., bool]:
    """Give ``poll_until``."""
    return poll_until


@pytest.fixture(scope="session")
def pace(quiet_folder: Path) -> float:
    """How much slower containers are here than on a usual machine, at least 1: an emulated one takes its time."""
    from nsmagic import run

    walls = sorted(run("print(1)", workdir=str(quiet_folder)).check().usage.wall for _ in range(5))
    return max(1.0, walls[2] / 0.04)


@pytest.fixture(scope="session")
def children_of() -> Callable[[int], set[int]]:
    """Give ``children``."""
    return children


@pytest.fixture(scope="session")
def quiet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One empty folder for all runs that need no files: their containers are alike, so standbys serve them."""
    return tmp_path_factory.mktemp("quiet")


@pytest.fixture
def quiet(quiet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the quiet folder."""
    monkeypatch.chdir(quiet_folder)
    return quiet_folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own, with files of each kind in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "keep.txt").write_text("keep")
    (folder / "edit.txt").write_text("before")
    (folder / "gone.txt").write_text("gone")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.txt").write_text("deep")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def look(quiet: Path) -> Callable[..., Any]:
    """Give a function that takes a look from inside: the value of an expression in a fresh container.

    ``look("os.getpid()", "import os", ns="pid")``
    """

    def look_inside(expression: str, setup: str = "import os", **options: Any) -> Any:
        from nsmagic import run

        result: Result = run(f"{setup}\nanswer = {expression}", outputs=["answer"], **options)
        assert result.ok, (result.describe(), result.stderr)
        return result.values["answer"]

    return look_inside


@pytest.fixture
def keep(quiet: Path) -> Iterator[Callable[..., Container]]:
    """Give a function that builds a container for several jobs; it is stopped at the end."""
    from nsmagic import Container

    built: list[Container] = []

    def build(**options: Any) -> Container:
        built.append(Container(**options).start())
        return built[-1]

    yield build
    for container in built:
        container.stop()


@pytest.fixture(autouse=True)
def no_container_is_left() -> Iterator[None]:
    """After each test no container has a job, and the launcher is the only child that we may have."""
    yield
    container = sys.modules.get("nsmagic.container")
    client = sys.modules.get("nsmagic.launcher.client")
    if container is None or client is None:
        return
    left = dict(container.live)
    container.live.clear()
    assert not left, f"containers that still have a job: {left}"


def group_directories() -> set[str]:
    """The groups of this process in every hierarchy."""
    cgroups = sys.modules.get("nsmagic.cgroups")
    if cgroups is None:
        return set()
    bases = [
        Path(tree.base)
        for mechanism in cgroups.mechanisms()
        for tree in getattr(mechanism, "trees", {}).values()
    ]
    return {str(group) for base in bases if base.exists() for group in [base, *base.glob("c[0-9]*")]}


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left() -> Iterator[None]:
    """At the end of all tests: no process, no mount and no cgroup directory that was not there before."""
    if not sys.platform.startswith("linux"):
        yield
        return
    processes, before = children(os.getpid()), mounts()
    yield
    client = sys.modules.get("nsmagic.launcher.client")
    if client is None:
        return
    from nsmagic import standbys

    launcher = client.running()
    standbys.end()  # as a process does at its own end
    assert launcher is None or not launcher.alive()
    assert poll_until(lambda: children(os.getpid()) <= processes), "processes are left"
    assert poll_until(lambda: not group_directories()), f"cgroup directories are left: {group_directories()}"
    assert mounts() == before, "mounts are left"
