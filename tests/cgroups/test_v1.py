"""What only cgroup v1 does: several hierarchies, memory and swap in one number."""

from __future__ import annotations

import pathlib

import pytest

from nsmagic import cgroups
from nsmagic.cgroups import Limits, v1
from nsmagic.errors import HostError

pytestmark = [pytest.mark.hosts, pytest.mark.root, pytest.mark.cgroup_v1]


@pytest.fixture
def mechanism() -> v1.V1:
    """Give the mechanism, or skip."""
    found = [each for each in cgroups.mechanisms() if isinstance(each, v1.V1)]
    if not found:
        pytest.skip("host: no cgroup v1 that may be written to")
    return found[0]


def test_one_directory_for_each_hierarchy(mechanism: v1.V1) -> None:
    group = mechanism.create(Limits())
    own = cgroups.own_groups()
    for controller in ("memory", "pids", "cpuacct"):
        if controller in own:
            assert any(each.startswith(own[controller].directory) for each in group.directories)
    assert all(each.endswith(f"/{group.name}") for each in group.directories[: len(group.directories) // 2])
    assert group.remove()
    mechanism.close()
    left = [each for each in group.directories if pathlib.Path(each).exists()]
    assert not left, [list(pathlib.Path(each).rglob("*/")) for each in left]


def test_swap_comes_on_top_of_memory(mechanism: v1.V1) -> None:
    limits = Limits(mem=64 << 20, swap=16 << 20)
    if (
        "memory" not in mechanism.trees
        or not pathlib.Path(mechanism.trees["memory"].own, "memory.memsw.limit_in_bytes").exists()
    ):
        pytest.skip("host: no account of swap")
    group = mechanism.create(limits)
    assert group.enforced["swap"] == f"cgroup v1 memory.memsw.limit_in_bytes = {80 << 20}"
    assert group.remove()
    group = mechanism.create(Limits(mem=64 << 20))
    assert group.enforced["swap"].endswith(f" {64 << 20}")
    assert group.remove()
    mechanism.close()


def test_a_cpu_limit_cannot_come_later(mechanism: v1.V1) -> None:
    group = mechanism.create(Limits())
    if "cpu" in group.places or mechanism.missing(Limits(cpus=1)):
        assert group.remove()
        pytest.skip("host: cpu and cpuacct are one hierarchy")
    with pytest.raises(HostError, match="--cpus"):
        group.set_limits(Limits(cpus=1))
    assert group.remove()
    mechanism.close()


def test_nothing_to_find_without_own_groups() -> None:
    found = v1.find({})
    if found is None:
        pytest.skip("host: no cgroup v1")
    assert isinstance(found, cgroups.Unavailable)
    assert "not mounted" in found.reason
