"""The C runtime against what Python believes of it, and what it says of its own work."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

import nsmagic
from nsmagic import StartError
from nsmagic.native import _runtime, kinds  # type: ignore[attr-defined]  # built, not written
from nsmagic.plan import Reach

pytestmark = pytest.mark.usefixtures("quiet")


def test_kinds_and_flags_are_those_of_the_header() -> None:
    names = [
        "DIRECTORY",
        "FILE",
        "SYMLINK",
        "BIND",
        "COW",
        "PRIVATE",
        "PROC",
        "PTS",
        "LAYER",
        "WRITABLE",
        "DEVICE",
        "OPTIONAL",
        "REPLACE",
        "CONFINE_FILES",
        "CONFINE_OTHERS",
        "CONFINE_NETWORK",
        "CONFINE_METADATA",
        "CONFINE_TRUNCATE",
    ]
    for name in names:
        assert getattr(kinds, name) == getattr(_runtime.lib, f"NSM_{name}"), name


def test_clone_flags_are_the_kernels() -> None:
    for name, flag in kinds.CLONE_NEW.items():
        known = getattr(os, f"CLONE_NEW{ {'mount': 'NS'}.get(name, name.upper()) }", None)
        assert known in (None, flag), name
    assert len(set(kinds.CLONE_NEW.values())) == 8
    assert kinds.CLONE_NEW["user"] == 0x10000000


def test_the_journal_is_the_real_runs_own() -> None:
    journal = nsmagic.run("pass", hostname="told").check().journal
    calls = [step.call for step in journal]
    assert 'sethostname(name="told")' in calls
    assert any(call.startswith("prctl(PR_SET_SECCOMP") for call in calls)
    assert any("setns" not in call and call.startswith("unshare(CLONE_NEWTIME)") for call in calls)
    # Launcher, init and payload write at once; each of the three begins after the one that made it.
    first = {
        name: min(step.began for step in journal if step.step == name)
        for name in ("clone", "mount", "session")
    }
    assert first["clone"] < first["mount"] < first["session"]
    # Each call that failed is one that may fail: the run went on.
    for step in journal:
        if step.errno:
            assert step.call.startswith(("mount_setattr", "keyctl", "clone3")), step


def test_the_order_of_the_last_steps() -> None:
    """Rights go before the filter, and the filter is last: after it nothing could be taken away any more."""
    steps = [step.step for step in nsmagic.run("pass").check().journal]
    # Init writes its own steps beside; the payload's begin with its session, and nothing of it follows the filter.
    payload = list(dict.fromkeys(steps[steps.index("session") :]))
    assert payload[: payload.index("seccomp")] == ["session", "limits", "capabilities", "payload"]


def test_the_order_of_the_last_steps_without_namespaces() -> None:
    """Landlock takes no_new_privs, and opens files; so it comes between the two."""
    if _runtime.lib.nsm_landlock_abi() <= 0:
        pytest.skip("host: no Landlock")
    container = nsmagic.Container(best_effort=True, keep=False, reach=Reach({}, "a test says so"))
    journal = container.start().run("pass").check().journal
    steps = [step.step for step in journal]
    payload = [step for step in dict.fromkeys(steps[steps.index("session") :]) if step != "identity"]
    # Init writes beside; of the payload nothing follows the filter.
    last = payload.index("seccomp") + 1
    assert payload[:last] == ["session", "limits", "capabilities", "payload", "landlock", "seccomp"]
    assert [step.call for step in journal if step.step == "landlock"][-1] == "landlock_restrict_self()"
    assert not {"userns", "mount", "net", "uts"} & set(steps)


@pytest.mark.parametrize("join", ["web", "web:net,pid", "web:user,mount", "web:time,cgroup"])
def test_what_is_joined_is_entered_in_order_before_init_is_made(join: str) -> None:
    """The user namespace first, since it gives the right to enter the others; the mounts last; then init."""
    with nsmagic.Container(name="web"):
        journal = nsmagic.run("pass", join=join).check().journal
    entered = [step.call for step in journal if step.call.startswith("setns(")]
    assert entered[0].endswith("CLONE_NEWUSER)")
    assert not [call for call in entered[:-1] if call.endswith("CLONE_NEWNS)")]
    calls = [step.call for step in journal if step.who == "joiner"]
    (made,) = [call for call in calls if call.startswith(("clone3(", "clone("))]
    assert "CLONE_PARENT" in made
    assert calls.index(entered[-1]) < calls.index(made)
    assert [call for call in calls if call.startswith("open_tree(")] == (
        ['open_tree("/proc" of the joined, OPEN_TREE_CLONE|AT_RECURSIVE)'] if "pid" in join else []
    )
    assert not [
        step
        for step in journal
        if step.errno and not step.call.startswith(("mount_setattr", "keyctl", "clone3"))
    ]


def test_without_a_namespace_its_steps_are_not_there() -> None:
    steps = {step.step for step in nsmagic.run("pass", ns="all-uts-time").check().journal}
    assert "uts" not in steps
    assert "time" not in steps
    assert "net" in steps


@pytest.mark.parametrize(
    ("options", "step"),
    [({"bind": "/usr/share:/usr/no-such/x"}, "mount"), ({"bind": "/usr/share:/proc/sys/x"}, "mount")],
    ids=["read-only place", "in proc"],
)
def test_a_step_that_fails_is_named(options: dict[str, Any], step: str) -> None:
    with pytest.raises(StartError) as error:
        nsmagic.run("pass", **options)
    assert error.value.step == step
    assert error.value.errno in {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT}
    assert error.value.call
    assert os.strerror(error.value.errno) in str(error.value)
    assert "\n" not in str(error.value)
    assert nsmagic.run("print(1)").check().stdout == "1\n"


def test_a_bind_place_longer_than_a_path_may_be_is_an_error() -> None:
    with pytest.raises((StartError, nsmagic.SpecError, nsmagic.LauncherError)):
        nsmagic.run("pass", bind="/usr/share:/" + "x" * 300)
    with pytest.raises((StartError, nsmagic.SpecError, nsmagic.LauncherError)):
        nsmagic.run("pass", bind="/usr/share:/" + "x/" * 3000)


def test_many_binds() -> None:
    binds = [f"/usr/share:/many/{number}" for number in range(200)]
    assert nsmagic.run("import os; print(len(os.listdir('/many')))", bind=binds).check().stdout == "200\n"


def test_too_many_binds_are_an_error_not_a_hang() -> None:
    binds = [f"/usr/share:/many/{'x' * 200}{number}" for number in range(1200)]
    with pytest.raises(nsmagic.NsmagicError):
        nsmagic.run("pass", bind=binds)
    assert nsmagic.run("print(1)").check().stdout == "1\n"


def test_the_sources_keep_their_promises() -> None:
    """No step ends the process on its own: exit, abort and assert stand nowhere but in init and in clones."""
    # `make test` runs on an installed wheel, and lays the sources beside the tests.
    places = [Path(__file__).parents[2] / "nsmagic" / "native", Path(__file__).parents[2] / "native"]
    sources = sorted(source for place in places for source in place.glob("*.c"))
    assert sources
    for source in sources:
        if source.name in {"init.c", "spawn.c", "join.c", "_ffi.csrc.c"}:
            continue
        text = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(exit|_exit|abort|assert|err|errx)\s*\(", text), source.name


@pytest.mark.root
def test_a_user_namespace_for_idmapped_mounts_leaves_no_process(children_of: Any) -> None:
    before = children_of(os.getpid())
    namespace = _runtime.lib.nsm_userns_for_idmap(0, 0, 0x6E730000, 0x6E730000)
    assert namespace >= 0
    assert os.readlink(f"/proc/self/fd/{namespace}").startswith("user:[")
    assert os.readlink(f"/proc/self/fd/{namespace}") != os.readlink("/proc/self/ns/user")
    os.close(namespace)
    assert children_of(os.getpid()) == before
