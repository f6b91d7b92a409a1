"""A scope of one's own: who is in it, what bounds it, and that nothing of it is left, whoever is killed."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from polling import poll_until

from nsmagic import cgroups
from nsmagic.cgroups import Limits, Unavailable, systemd
from nsmagic.cgroups.bus import BusError
from nsmagic.cgroups.rlimits import pids_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.hosts

USER = [] if os.geteuid() == 0 else ["--user"]
RUNTIME = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"} if USER else {}
TELL = {**RUNTIME, **os.environ}
"""For systemctl and systemd-run: a lingering user without a session has the bus, but not the variable."""


@pytest.fixture
def mechanism() -> Iterator[systemd.Systemd]:
    """Give a mechanism in a scope, also where the own group would do; or skip."""
    found = systemd.find(cgroups.own_groups())
    if found is None:
        pytest.skip("host: no systemd with cgroup v2")
    if isinstance(found, Unavailable):
        pytest.skip(f"host: no scope from systemd: {found.reason}")
    yield found
    place = pathlib.Path(directory(found))
    found.close()
    assert poll(lambda: not place.exists()), f"the scope is left: {place}"


@pytest.fixture
def chosen() -> None:
    """Skip where containers' groups are not in a scope."""
    if cgroups.mechanisms()[0].name != "systemd scope":
        pytest.skip(f"host: containers' groups are made by another mechanism: {cgroups.mechanisms()[0].name}")


def directory(mechanism: systemd.Systemd) -> str:
    mechanism.make(Limits()).remove()  # ``close`` may have ended it
    assert mechanism._scope is not None
    return mechanism._scope.directory


def poll(condition: Callable[[], bool]) -> bool:
    return poll_until(condition, 20)


def show(unit: str, *names: str) -> dict[str, str]:
    """What systemd says about a unit."""
    asked = [word for name in names for word in ("-p", name)]
    told = subprocess.run(
        ["systemctl", *USER, "show", unit, *asked],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=TELL,
    )
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


def group_of(pid: int) -> str:
    return systemd._v2_path(pid)


# ---- What it is -----------------------------------------------------------------------------------


def test_it_is_delegated_and_the_owner_stays_where_it_was(mechanism: systemd.Systemd) -> None:
    before = group_of(os.getpid())
    place = directory(mechanism)
    name = place.rpartition("/")[2]
    assert name.startswith(f"nsmagic-{os.getpid()}-")
    said = show(name, "Delegate", "ActiveState", "ControlGroup", "CollectMode")
    assert said["Delegate"] == "yes"
    assert said["ActiveState"] == "active"
    assert said["CollectMode"] == "inactive-or-failed"
    assert place.endswith(said["ControlGroup"])
    assert group_of(os.getpid()) == before
    assert mechanism._scope is not None
    assert pids_in(place) == []
    assert pids_in(f"{place}/nsmagic-host") == [mechanism._scope.holder.pid]


def test_a_process_is_moved_beside_the_groups_once(mechanism: systemd.Systemd) -> None:
    leaf = f"{directory(mechanism)}/nsmagic-host"
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        mechanism.admit(process.pid)
        assert process.pid in pids_in(leaf)
        mechanism.admit(process.pid)
        mechanism.close()  # somebody is in there: it stays
        assert process.pid in pids_in(leaf)
        assert mechanism._scope is not None
        process.kill()


def test_a_process_that_is_gone_cannot_be_taken_in(mechanism: systemd.Systemd) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    with pytest.raises(cgroups.HostError, match="launcher"):
        mechanism.admit(process.pid)


def test_groups_in_it_hold_their_limits(mechanism: systemd.Systemd) -> None:
    limits = Limits(mem=64 << 20, pids=9, cpus=0.5)
    group = mechanism.create(limits)
    lacking = {each.what for each in mechanism.missing(limits)}
    assert {*group.enforced} | lacking >= {"mem", "pids", "cpus"}
    assert all(text.startswith("cgroup v2 ") for text in group.enforced.values())
    assert group.directories[0].startswith(directory(mechanism))
    assert group.remove()


def test_a_scope_that_somebody_stops_is_made_anew(mechanism: systemd.Systemd) -> None:
    first = directory(mechanism)
    subprocess.run(["systemctl", *USER, "stop", first.rpartition("/")[2]], check=True, timeout=60, env=TELL)
    assert poll(lambda: not pathlib.Path(first).exists())
    second = directory(mechanism)
    assert second != first
    assert pathlib.Path(second).exists()


def test_a_fork_neither_ends_it_nor_keeps_it(mechanism: systemd.Systemd) -> None:
    place = directory(mechanism)
    pid = os.fork()
    if pid == 0:
        mechanism.close()
        os._exit(0 if pathlib.Path(place).exists() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert pathlib.Path(place).exists()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)  # until the owner has seen the scope go, though we live
        os._exit(0)
    mechanism.close()
    assert poll(lambda: not pathlib.Path(place).exists())
    os.close(theirs)
    os.close(ours)
    assert os.waitpid(pid, 0)[1] == 0


# ---- What bounds it -------------------------------------------------------------------------------

BOUNDED = """
import json, pathlib
from nsmagic import cgroups
from nsmagic.cgroups import systemd
found = systemd.find(cgroups.own_groups())
place = pathlib.Path(found._scope.directory)
files = ("memory.max", "memory.high", "pids.max", "cpu.max")
print(json.dumps({file: (place / file).read_text().split()[0] for file in files if (place / file).exists()}))
found.close()
"""


def test_the_limits_of_the_owner_go_with_it(mechanism: systemd.Systemd) -> None:
    words = ["-p", "MemoryMax=300M", "-p", "MemoryHigh=200M", "-p", "TasksMax=77", "-p", "CPUQuota=50%"]
    command = ["systemd-run", *USER, "--scope", "--quiet", *words, sys.executable, "-c", BOUNDED]
    told = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd="/", env=TELL
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    wanted = {"memory.max": 300 << 20, "memory.high": 200 << 20, "pids.max": 77, "cpu.max": 50_000}
    assert found
    for file, value in found.items():
        assert int(value) == wanted[file], file


@pytest.mark.parametrize(
    ("own", "manager", "expected"),
    [
        (
            "/u.slice/u-1.slice/session-1.scope",
            "/u.slice/u-1.slice/user@1.service",
            ("", "/u.slice/u-1.slice"),
        ),
        ("/system.slice/hub.service", "/u.slice/u-1.slice/user@1.service", ("", "")),
        ("/m/app.slice/a.service", "/m", ("app.slice", "/m/app.slice")),
        ("/m/app.slice/app-x.slice/a.scope/b", "/m", ("app-x.slice", "/m/app.slice/app-x.slice")),
        ("/m/a.service", "/m", ("", "/m")),
        ("/system.slice/a.service", "", ("system.slice", "/system.slice")),
        ("/u.slice/u-0.slice/session-1.scope", "", ("u-0.slice", "/u.slice/u-0.slice")),
        ("/init.scope", "", ("", "")),
        ("", "", ("", "")),
        ("/mm/a.service", "/m", ("", "")),
    ],
)
def test_the_slice_is_as_near_to_the_owner_as_can_be(
    own: str, manager: str, expected: tuple[str, str]
) -> None:
    assert systemd._slice_for(own, manager) == expected


def test_the_tightest_limit_up_to_the_roof_counts(tmp_path: pathlib.Path) -> None:
    deep = tmp_path / "roof" / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "roof" / "memory.max").write_text("1")  # stays in force: it is above both
    (tmp_path / "roof" / "a" / "memory.max").write_text("5000\n")
    (deep / "memory.max").write_text("max\n")
    (tmp_path / "roof" / "a" / "pids.max").write_text("7\n")
    (deep / "pids.max").write_text("9\n")
    (deep / "cpu.max").write_text("50000 200000\n")
    (tmp_path / "roof" / "a" / "cpu.max").write_text("max 100000\n")
    found = systemd._bounds(str(tmp_path), "/roof/a/b", "/roof")
    assert found == {"memory.max": 5000, "pids.max": 7, "cpu.max": 0.25}
    assert {file: systemd._as_property(file, value) for file, value in found.items()} == {
        "memory.max": 5000, "pids.max": 7, "cpu.max": 250_000,
    }  # fmt: skip


# ---- What it lacks --------------------------------------------------------------------------------


@pytest.mark.ordinary_user
def test_a_controller_that_users_do_not_get_is_named(mechanism: systemd.Systemd) -> None:
    lost = mechanism.missing(Limits(mem=1 << 26, cpus=1, pids=5))
    if not lost:
        pytest.skip("host: every controller is delegated to users")
    for each in lost:
        assert "is not delegated to users: user@" in each.reason
        assert "Delegate=cpu" in each.remedy
        assert "systemctl edit user@.service" in each.remedy


@pytest.mark.ordinary_user
def test_a_user_without_a_manager_is_told_how_to_get_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if systemd.find(cgroups.own_groups()) is None:
        pytest.skip("host: no systemd with cgroup v2")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found = systemd.find(cgroups.own_groups())
    assert isinstance(found, Unavailable)
    assert f"{tmp_path}/bus" in found.reason
    assert "loginctl enable-linger" in found.remedy
    assert "Delegate=yes" in found.remedy
    (tmp_path / "systemd").mkdir()
    found = systemd.find(cgroups.own_groups())
    assert isinstance(found, Unavailable)
    assert "dbus-user-session" in found.remedy


def test_who_is_no_systemd_is_not_asked() -> None:
    with pytest.raises(BusError, match="no systemd of this machine"):
        systemd._manager_root(os.getpid())


# ---- Nothing is left, whoever is killed ------------------------------------------------------------

OWNER = """
import json, sys
import nsmagic
from nsmagic import cgroups
from nsmagic.launcher import client
client.expect("programs")
def tell():
    box = nsmagic.Container(mem="64M", pids=9).start()
    result = box.run(["echo", "42"])
    scope = cgroups.mechanisms()[0]._scope
    print(json.dumps({
        "printed": result.stdout, "limits": dict(result.isolation.limits), "directory": scope.directory,
        "holder": scope.holder.pid, "launcher": client.running().pid, "init": box.init_pid,
    }), flush=True)
    return box
boxes = [tell()]
for line in sys.stdin:
    boxes.append(tell())
"""


class Owner:
    """A process that keeps a container, and makes another for each line that it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/tmp",
        )
        self.told = self.hear()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert told["printed"] == "42\n"
        assert {"mem", "pids"} <= told["limits"].keys()
        return told

    def again(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()


@pytest.fixture
def owner(chosen: None) -> Iterator[Owner]:
    made = Owner()
    yield made
    made.process.kill()
    made.process.wait()
    for pipe in (made.process.stdin, made.process.stdout):
        assert pipe is not None
        pipe.close()
    place = pathlib.Path(made.told["directory"])
    assert poll(lambda: not place.exists()), f"the scope is left: {place}"


def test_it_lives_on_when_one_of_them_is_killed(owner: Owner) -> None:
    first = owner.told
    scope = first["directory"].rpartition("/")[2]
    assert group_of(first["launcher"]).endswith(f"/{scope}/nsmagic-host")
    assert group_of(first["holder"]).endswith(f"/{scope}/nsmagic-host")
    assert f"/{scope}/nsmagic-{owner.process.pid}-" in group_of(first["init"])
    assert scope not in group_of(owner.process.pid)

    kill(first["launcher"])
    second = owner.again()
    assert second["launcher"] != first["launcher"]
    assert second["directory"] == first["directory"]
    assert group_of(second["launcher"]).endswith(f"/{scope}/nsmagic-host")

    os.kill(first["holder"], signal.SIGKILL)
    assert owner.again()["directory"] == first["directory"]

    subprocess.run(["systemctl", *USER, "stop", scope], check=True, timeout=60, env=TELL)
    assert poll(lambda: not pathlib.Path(first["directory"]).exists())
    owner.told = owner.again()
    assert owner.told["directory"] != first["directory"]


@pytest.mark.parametrize("killed", [["owner"], ["owner", "launcher"], ["launcher", "holder", "owner"]])
def test_nothing_is_left_when_they_are_killed(owner: Owner, killed: list[str]) -> None:
    """The fixture looks whether the scope has gone; here it is whether everybody in it has."""
    pids = {**owner.told, "owner": owner.process.pid}
    watched = [os.pidfd_open(pids[name]) for name in ("holder", "launcher", "init")]
    try:
        for name in killed:
            os.kill(pids[name], signal.SIGKILL)
        for descriptor in watched:
            assert select.select([descriptor], [], [], 20)[0]
    finally:
        for descriptor in watched:
            os.close(descriptor)


def kill(pid: int) -> None:
    """SIGKILL a process, and wait until it has ended."""
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([descriptor], [], [], 20)[0]
    os.close(descriptor)
