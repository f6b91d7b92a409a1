"""The choice of a mechanism, and what is said where a limit cannot be enforced."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys

import pytest

from nsmagic import cgroups
from nsmagic.cgroups import Limits

ROOT = str(pathlib.Path(cgroups.__file__).parents[2])
pytestmark = pytest.mark.hosts

NOBODY = 65534


def as_ordinary_user(code: str) -> str:
    """Run Python code as nobody, in the same groups as this process; return what it prints."""
    # The modules are loaded first: nobody may be unable to read them.
    setup = f"""
import os, resource
from nsmagic import cgroups
from nsmagic.cgroups import Limits, bus, rlimits, systemd, v1, v2
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""
    ended = subprocess.run(
        [sys.executable, "-c", setup + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.parametrize(
    "wrong", [{"mem": 0}, {"mem": -1}, {"swap": -1}, {"cpus": 0.0}, {"cpus": float("nan")}, {"pids": 0}]
)
def test_limits_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_memory_limit_asks_for_swap_too() -> None:
    assert Limits().asked() == ()
    assert Limits(mem=1).asked() == ("mem", "swap")
    assert Limits(cpus=1, pids=1).asked() == ("cpus", "pids")


def test_mechanisms_are_found_once() -> None:
    assert cgroups.mechanisms() == cgroups.mechanisms()
    assert cgroups.mechanisms()[-1].name == "rlimits"
    cgroups.close()


def test_looking_leaves_nothing_behind() -> None:
    code = """
import glob, os
from nsmagic import cgroups
cgroups.mechanisms()
owns = {own.directory for own in cgroups.own_groups().values()}
print([base for own in owns for base in glob.glob(f"{own}/nsmagic-{os.getpid()}-*")])
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_own_groups_hold_this_process() -> None:
    own = cgroups.own_groups()
    if not own:
        pytest.skip("host: no cgroup that shows this process")
    for group in own.values():
        assert str(os.getpid()) in pathlib.Path(group.directory, "cgroup.procs").read_text().split()


def test_without_limits_there_is_always_a_choice() -> None:
    for best_effort in (False, True):
        choice = cgroups.choose(Limits(), userns=False, best_effort=best_effort)
        assert choice.missing == ()
        assert choice.rlimits == {}
        group = choice.create()
        assert group.remove()
    cgroups.close()


@pytest.mark.root
def test_an_ordinary_user_is_told_what_to_do() -> None:
    if os.getuid() != 0:
        pytest.skip("host: not root")
    said = as_ordinary_user("""
for limits in (Limits(mem=1 << 27), Limits(cpus=1), Limits(pids=5)):
    try: cgroups.choose(limits, userns=False, best_effort=False)
    except Exception as error:
        print(type(error).__name__, error.feature, "|", error.reason, "|", error.remedy)
""").splitlines()
    assert [line.split(" |")[0] for line in said] == [
        "HostError --mem",
        "HostError --cpus",
        "HostError --pids",
    ]
    for line in said:
        _, reason, remedy = line.split(" | ")
        assert "/" in reason, "it names the directory"
        assert "Delegate=yes" in remedy or "docker run --privileged" in remedy
        assert "--best-effort" in remedy


@pytest.mark.root
def test_an_ordinary_user_gets_rlimits_as_best_effort() -> None:
    if os.getuid() != 0:
        pytest.skip("host: not root")
    said = as_ordinary_user("""
choice = cgroups.choose(Limits(mem=1 << 27, pids=5), userns=True, best_effort=True)
lost = [each.what for each in choice.missing if each.what != "swap"]
print(choice.mechanism.name, lost, sorted(choice.rlimits))
print(choice.rlimits[resource.RLIMIT_NPROC], choice.enforced["pids"])
group = choice.create()
print(group.directories, group.open_joins(), group.open_directory(), group.usage() == cgroups.Usage())
""").splitlines()
    numbers = sorted([resource.RLIMIT_AS, resource.RLIMIT_NPROC])
    assert said == [
        f"rlimits ['mem'] {numbers}",
        "(6, 6) RLIMIT_NPROC = 6 in its own user namespace",
        "() [] None True",
    ]


@pytest.mark.root
def test_pids_need_no_group_in_a_user_namespace() -> None:
    if os.getuid() != 0:
        pytest.skip("host: not root")
    said = as_ordinary_user("""
choice = cgroups.choose(Limits(pids=5), userns=True, best_effort=False)
print(choice.missing, dict(choice.rlimits) == {resource.RLIMIT_NPROC: (6, 6)})
""")
    assert said == "() True\n"
