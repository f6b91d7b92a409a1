"""What only cgroup v2 does: one hierarchy, delegation, room made for the controllers."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from nsmagic import cgroups
from nsmagic.cgroups import Limits, v2
from nsmagic.cgroups.rlimits import pids_in

pytestmark = [pytest.mark.hosts, pytest.mark.cgroup_v2]


@pytest.fixture
def mechanism() -> v2.V2:
    """Give the mechanism, or skip."""
    found = [each for each in cgroups.mechanisms() if isinstance(each, v2.V2) and each.name == "cgroup v2"]
    if not found:
        pytest.skip("host: no cgroup v2 with controllers that may be written to")
    return found[0]


def test_out_of_memory_takes_the_whole_group(mechanism: v2.V2) -> None:
    group = mechanism.create(Limits())
    switch = pathlib.Path(group.directories[0], "memory.oom.group")
    if not switch.exists():
        pytest.skip("host: memory is not delegated")
    assert switch.read_text() == "1\n"
    assert group.remove()
    mechanism.close()


def test_without_limits_swap_is_off(mechanism: v2.V2) -> None:
    group = mechanism.create(Limits())
    swap = pathlib.Path(group.directories[0], "memory.swap.max")
    if not swap.exists():
        pytest.skip("host: no memory controller, or no swap")
    assert swap.read_text() == "0\n"
    assert set(group.enforced) == {"swap"}
    assert group.remove()
    mechanism.close()


def test_this_process_stays_below_its_owners_limit(mechanism: v2.V2) -> None:
    """We move into a leaf where there must be room, but never out of the group that we were given."""
    now = cgroups.own_groups()[""]
    tree = mechanism.trees[""]
    if v2.is_real_root(tree.own):
        assert now.directory == tree.own, "the real root needs no room"
    else:
        assert now.directory == f"{tree.own}/nsmagic-host"
        assert not pathlib.Path(tree.own, "cgroup.procs").read_text()
    group = mechanism.create(Limits())
    assert group.directories[0].startswith(f"{tree.own}/nsmagic-")
    assert group.remove()
    mechanism.close()


def test_a_second_process_finds_the_room_made(mechanism: v2.V2) -> None:
    code = "from nsmagic import cgroups as c; m = c.mechanisms()[0]; print(m.trees[''].own); c.close()"
    root = str(pathlib.Path(cgroups.__file__).parents[2])
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == mechanism.trees[""].own
    mechanism.close()


def test_a_group_that_is_not_ours_is_left_as_it_is(mechanism: v2.V2) -> None:
    own = mechanism.make(Limits())  # stands for a group that somebody else made for one process
    own_directory = own.directories[0]
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        pathlib.Path(own_directory, "cgroup.procs").write_text(str(process.pid))
        # The controllers must reach it, or there is nothing to find.
        offered = pathlib.Path(own_directory, "cgroup.controllers").read_text().split()
        assert v2.handed_over(own_directory, "/some/group") is False
        found = v2.build(own_directory, ours=False)
        assert isinstance(found, cgroups.Unavailable)
        assert "Delegate=yes" in found.remedy
        assert own.pids() == [process.pid]
        assert "handed over" in found.reason if offered else "delegated" in found.reason
        assert pathlib.Path(own_directory, "cgroup.subtree_control").read_text().strip() == ""
        assert pathlib.Path(own_directory, "cgroup.type").read_text() == "domain\n"
        assert [each for each in pathlib.Path(own_directory).iterdir() if each.is_dir()] == []

        if offered:
            os.setxattr(own_directory, "user.delegate", b"1")
            assert v2.handed_over(own_directory, "/some/group") is True
            found = v2.build(own_directory, ours=True)
            assert isinstance(found, v2.V2)
            assert pids_in(own_directory) == []
            assert pids_in(f"{own_directory}/nsmagic-host") == [process.pid]
            below = found.create(Limits(pids=3) if "pids" in offered else Limits())
            assert below.remove()
            found.close()
        process.communicate(b"")
    pathlib.Path(own_directory, "nsmagic-host").rmdir() if offered else None
    assert own.remove()
    mechanism.close()


def test_a_controller_that_is_not_delegated_is_named(mechanism: v2.V2) -> None:
    own = mechanism.make(Limits())  # an empty group, to which only some controllers come
    directory = pathlib.Path(own.directories[0])
    if "pids" not in (directory / "cgroup.controllers").read_text().split():
        pytest.skip("host: pids is not delegated")
    (directory / "cgroup.subtree_control").write_text("+pids")
    (directory / "below").mkdir()
    found = v2.build(str(directory / "below"), ours=False)
    assert isinstance(found, v2.V2)
    missing = {each.what: each for each in found.missing(Limits(mem=1 << 26, cpus=1, pids=1))}
    assert missing.keys() - {"swap"} == {"mem", "cpus"}
    assert "cpu is not delegated" in missing["cpus"].reason
    assert "Delegate=cpu" in missing["cpus"].remedy
    group = found.create(Limits(mem=1 << 26, pids=1))
    assert set(group.enforced) == {"pids"}
    assert group.usage().memory is None
    assert group.remove()
    found.close()
    (directory / "below").rmdir()
    assert own.remove()
    mechanism.close()


def test_nothing_to_find_without_an_own_group() -> None:
    found = v2.find({})
    assert isinstance(found, cgroups.Unavailable)
    assert "mounted" in found.reason
