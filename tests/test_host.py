"""The doctor: what it says agrees with what then happens, on hosts where things are really missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import agreement
import pytest
from refusals import CLONE_NEWUSER, EAGAIN, ENOSPC, ENOSYS, EPERM, FILTER, NUMBERS

import nsmagic
from nsmagic import cgroups, host
from nsmagic.host import Finding
from nsmagic.result import Step
from nsmagic.spec import NAMESPACES

HOME = str(Path(nsmagic.__file__).resolve().parents[1])
BWRAP = ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--cap-drop", "ALL"]
ORDINARY = [*BWRAP, "--uid", "1000", "--gid", "1000"]
READ_ONLY = [*ORDINARY, "--ro-bind", "/sys/fs/cgroup", "/sys/fs/cgroup"]
OWN_ROOT = ["unshare", "--user", "--map-root-user", "--mount"]
"""Root of a user namespace that maps one uid."""

HOSTS = {
    "as it is": [],
    "an ordinary user": ORDINARY,
    "an ordinary user, cgroups read-only": READ_ONLY,
    "no more user namespaces": [*ORDINARY, "--disable-userns"],
    "user.max_user_namespaces = 0": [
        *OWN_ROOT, "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh",
    ],
    "root of a user namespace": OWN_ROOT,
    "root without capabilities": [*BWRAP, "--uid", "0", "--gid", "0"],
    "covered /proc": [*ORDINARY, "--ro-bind", "/dev/null", "/proc/kallsyms"],
}  # fmt: skip
"""Hosts made from this one, as words in front of a command."""

RUN = """
import json, sys
import nsmagic
options = json.loads(sys.argv[1])
try:
    result = nsmagic.run(options.pop("code", "pass"), **options)
    found = {"error": "", "outcome": result.outcome, "text": result.describe()}
except nsmagic.NsmagicError as error:
    found = {"error": type(error).__name__, "text": str(error), "call": getattr(error, "call", ""),
             "errno": getattr(error, "errno", 0), "remedy": getattr(error, "remedy", "")}
print(json.dumps(found))
"""

AGREE = Path(agreement.__file__).read_text()


def python(before: list[str], code: str, *words: str) -> Any:
    """What a script printed last, as JSON; skip where this host cannot be made into that one."""
    if before and shutil.which(before[0]) is None:
        pytest.skip(f"host: no program {before[0]}")
    trial = subprocess.run([*before, "true"], capture_output=True, text=True, timeout=30, check=False)
    if trial.returncode:
        pytest.skip(f"host: {' '.join(before)[:60]} does not work: {trial.stderr.strip()[:80]}")
    environment = {**os.environ, "PYTHONPATH": HOME}
    command = [*before, sys.executable, "-c", code, *words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def run(before: list[str], **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = python(before, RUN, json.dumps(options))
    return found


def run_filtered(rules: list[tuple[str, int, int]], before: list[str]) -> dict[str, Any]:
    numbered = [(NUMBERS[call], errno, mask) for call, errno, mask in rules]
    words = (json.dumps(numbered), json.dumps({"workdir": "/"}))
    found: dict[str, Any] = python(before, FILTER + RUN, *words)
    return found


# ---- What the doctor says is what happens -------------------------------------------------------


# Not for the lane: these hosts are made on any, and what a machine of its own is like test_agreement asks there.
@pytest.mark.parametrize("name", HOSTS)
def test_every_row_agrees_with_what_happens(name: str) -> None:
    rows = python(HOSTS[name], AGREE)
    assert len(rows) >= len(NAMESPACES) + 15
    wrong = [row for row in rows if row[1] != row[-1]]
    assert not wrong
    assert all(remedy for _, status, _, remedy, _ in rows if status == "missing")


def statuses(name: str) -> dict[str, str]:
    code = "import json; from nsmagic import host; print(json.dumps([row[:2] for row in host.examine()]))"
    return dict(python(HOSTS[name], code))


def test_missing_limits_are_seen() -> None:
    found = statuses("an ordinary user, cgroups read-only")
    assert {found[limit] for limit in ("--mem", "--cpus")} == {"missing"}
    assert found["--disk"] == "works"
    # The kernel exempts root from RLIMIT_NPROC, by whatever uid it goes in a user namespace.
    assert found["--pids"] == ("weaker" if os.geteuid() == 0 else "works")
    assert found["accounting"] == "weaker"


def test_missing_user_namespaces_are_seen() -> None:
    found = statuses("no more user namespaces")
    assert {found[f"{name} namespace"] for name in NAMESPACES} == {"missing"}
    assert found["launcher"] == "works"


def test_a_covered_proc_costs_only_what_needs_a_fresh_one() -> None:
    found = statuses("covered /proc")
    assert found["fresh /proc"] == "weaker"
    assert {found[f] for f in ("all namespaces", "uts namespace", "copy-on-write", "--disk")} == {"works"}


def test_a_kernel_that_is_too_old_is_one_row() -> None:
    code = "import json; from nsmagic import host; print(json.dumps(host.examine()))"
    rows = python(["setarch", platform.machine(), "--uname-2.6"], code)
    assert [row[1] for row in rows] == ["missing"]
    assert "5.12" in rows[0][3]


def test_the_doctor_leaves_nothing_behind() -> None:
    code = """
import json, os, tempfile
from nsmagic import container, host, standbys
with tempfile.TemporaryDirectory() as place:
    tempfile.tempdir = place
    os.chdir(place)
    host.examine()
    print(json.dumps([os.listdir(place), len(container.live), len(standbys.current()._waiting)]))
"""
    assert python([], code) == [[], 0, 0]


# ---- Remedies, for failures that really happened -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call", "words"),
    [
        ("no more user namespaces", "clone3", "user.max_user_namespaces"),
        ("user.max_user_namespaces = 0", "clone3", "sysctl -w user.max_user_namespaces=10000"),
        ("root without capabilities", "uid_map", "run it as an ordinary user"),
    ],
)
def test_a_host_that_refuses_is_told_what_to_change(name: str, call: str, words: str) -> None:
    found = run(HOSTS[name])
    assert found["error"] == "StartError"
    assert call in found["call"]
    assert words in found["remedy"]


def test_a_covered_proc_is_told_with_its_remedy() -> None:
    code = "import json; from nsmagic import host; print(json.dumps(host.examine()))"
    rows = {row[0]: row for row in python(HOSTS["covered /proc"], code)}
    assert "systempaths=unconfined" in rows["fresh /proc"][3]
    assert "Operation not permitted" in rows["fresh /proc"][2]


@pytest.mark.parametrize("kind", ["net", "pid", "mnt", "uts", "ipc", "cgroup", "time"])
def test_each_limit_on_namespaces_is_named(kind: str) -> None:
    # The limit is set in the user namespace around, and the words come from the one below it.
    zero = f'echo 0 > /proc/sys/user/max_{kind}_namespaces && exec "$@"'
    before = [*OWN_ROOT, "sh", "-c", zero, "sh", "unshare", "--user", "--map-user=1000", "--map-group=1000"]
    name = {"mnt": "mount"}.get(kind, kind)
    options = {} if name == "net" else {"net": "host"}
    found = run(before, ns=name, workdir="/", **options)
    assert found["errno"] == ENOSPC
    assert f"user.max_{kind}_namespaces" in found["remedy"]


@pytest.mark.parametrize(
    ("refused", "call", "words"),
    [
        ([("clone3", ENOSYS, 0), ("clone", EPERM, CLONE_NEWUSER)], "clone(", "seccomp=unconfined"),
        ([("unshare", EPERM, 0)], "unshare(CLONE_NEWCGROUP)", "seccomp=unconfined"),
        ([("mount", EPERM, 0)], "mount(", "seccomp=unconfined"),
        ([("open_tree", ENOSYS, 0)], "open_tree(", "Linux 5.2"),
        ([("fsopen", ENOSYS, 0)], "fsopen(", "Linux 5.2"),
        ([("close_range", ENOSYS, 0)], "close_range(", "Linux 5.9"),
        ([("mount_setattr", ENOSYS, 0)], "mount_setattr(", "Linux 5.12"),
    ],
)
def test_a_refused_call_is_told_with_its_remedy(
    refused: list[tuple[str, int, int]], call: str, words: str
) -> None:
    found = run_filtered(refused, READ_ONLY)
    assert found["error"] == "StartError"
    assert found["call"].startswith(call)
    assert words in found["remedy"]
    assert "unconfined" in found["remedy"]


def test_without_clone3_and_pivot_root_it_still_runs() -> None:
    found = run_filtered([("clone3", ENOSYS, 0), ("pivot_root", EPERM, 0)], READ_ONLY)
    assert found["error"] == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"disk": 1}, "more with --disk"),
        ({"bind": "/etc/hostname:/usr/there"}, "/usr/there would lie in a folder that is read-only"),
        ({"bind": "/etc/hostname:/tmp"}, "/tmp is no place for it"),
        ({"bind": "/etc:/etc/passwd/x"}, "/etc/passwd/x is no place for it"),
        ({"workdir": "/proc/sys"}, "another folder with -w"),
        ({"bind": "/dev:/mnt:cow"}, "mounts below it (/dev/"),
    ],
)
def test_a_spec_that_cannot_be_built_is_told_what_to_change(options: dict[str, Any], words: str) -> None:
    found = run(ORDINARY, **options)
    assert found["error"] == "StartError"
    assert words in found["remedy"]


def test_a_folder_that_may_not_be_entered_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:
        closed = "/root"
        if os.geteuid() == 0:
            closed = f"{place}/closed"
            Path(closed).mkdir(mode=0o700)
            os.chown(closed, 12345, 12345)
        elif os.access(closed, os.X_OK):
            pytest.skip("host: /root is open to everybody")
        found = run(ORDINARY, ns="uts", workdir=closed)
    assert found["error"] == "StartError"
    assert f"may not enter {closed}" in found["remedy"]


def test_too_few_open_files_are_told() -> None:
    found = run([*OWN_ROOT, "prlimit", "--nofile=30:30"])
    assert "ulimit -n" in found["remedy"]


def test_root_of_a_user_namespace_runs_like_an_ordinary_user() -> None:
    assert run(HOSTS["root of a user namespace"])["outcome"] == "exited"


def test_a_hard_limit_below_pids_stays_in_force() -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)); raise SystemExit(resource.getrlimit(resource.RLIMIT_NPROC)[1] > 100)"
    assert run([*READ_ONLY, "prlimit", "--nproc=100:100"], pids=200, code=code)["text"] == "exit status 0"


FULL_HOUSE = """
import json, os, resource, sys
import nsmagic
from nsmagic.launcher import client
client.start().wait_ready()
{shut}
try:
    found = nsmagic.run("pass").describe()
except nsmagic.StartError as error:
    found = [error.call.partition("(")[0], error.errno, error.remedy]
print(json.dumps(found))
"""


@pytest.mark.ordinary_user  # the kernel exempts root from RLIMIT_NPROC
def test_too_many_processes_of_a_user_are_told() -> None:
    shut = "resource.prlimit(client.start().pid, resource.RLIMIT_NPROC, (1, 1))"
    call, errno, remedy = python([], FULL_HOUSE.format(shut=shut))
    assert (call, errno) == ("clone3", EAGAIN)
    assert "ulimit -u" in remedy


@pytest.mark.root
def test_too_many_processes_of_a_group_are_told() -> None:
    own = cgroups.own_groups().get("pids")
    if own is None:
        pytest.skip("host: no cgroup v1 with pids")
    place = Path(own.directory, f"nsmagic-test-{os.getpid()}")
    place.mkdir()
    try:
        Path(place, "pids.max").write_text("1")
        shut = f"open('{place}/cgroup.procs', 'w').write(str(client.start().pid))"
        call, errno, remedy = python([], FULL_HOUSE.format(shut=shut))
    finally:
        place.rmdir()
    assert (call, errno) == ("clone3", EAGAIN)
    assert "Too many processes" in remedy


def test_the_apparmor_profile_is_shipped_and_its_command_fills_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel here has AppArmor, so what its setting would say is said for it; the command is run up to sudo."""
    monkeypatch.setattr(host, "_read", lambda path: "1" if "apparmor_restrict" in path else "")
    monkeypatch.setattr(host, "may", lambda *_: False)
    failed = Step("mount", 'mount("/", MS_REC|MS_PRIVATE)', -1, 13, 0.0, 0.0)
    command = host.remedy_for(failed).partition("for this Python: ")[2]
    assert command.endswith("| sudo tee /etc/apparmor.d/nsmagic | sudo apparmor_parser --replace")
    fill = command.partition(" | sudo")[0]
    profile = subprocess.run(["sh", "-c", fill], capture_output=True, text=True, check=True).stdout
    assert f'profile nsmagic "{os.path.realpath(sys.executable)}" flags=(unconfined) {{' in profile
    assert "\n  userns,\n" in profile


@pytest.mark.parametrize("call", ["", "(", "open_tree", 'clone3("', "fsconfig(\0)", "setrlimit(resource=6,"])
@pytest.mark.parametrize("errno", [0, -1, 1, 2, 13, 16, 22, 28, 38, 10**9])
def test_there_is_always_a_remedy_and_never_an_exception(call: str, errno: int) -> None:
    for step in ("", "sources", "mount", "userns", "cgroup", "no such step"):
        text = host.remedy_for(Step(step, call, -1, errno, 0.0, 0.0))
        assert text
        assert "\n" not in text


def test_the_journal_names_the_folder_of_an_overlay() -> None:
    moved = Step("mount", 'move_mount(tree of "/proc/sys", "/tmp/lower3")', 0, 0, 0.0, 0.0)
    failed = Step("mount", 'fsconfig("overlay", FSCONFIG_CMD_CREATE)', -1, 22, 0.0, 0.0)
    assert host.remedy_for(failed, [moved, failed]).startswith("/proc/sys (on proc) cannot")


# ---- How it looks ---------------------------------------------------------------------------------

ROWS = (
    Finding("kernel", "works", "Linux <b>7</b>"),
    Finding("--mem", "works", "cgroup v2 memory.max: stopped"),
    Finding("--cpus", "missing", "no\nway " + "far " * 60, 'say "please" & <wait>'),
    Finding("--swap", "missing", "no way", 'say "please" & <wait>'),
    Finding("--pids", "weaker", "RLIMIT_NPROC: almost", "hope"),
)


def test_text_is_an_aligned_table_and_says_what_limits_use() -> None:
    lines = host.render_text(ROWS).splitlines()
    assert lines[0].index("Linux") == lines[1].index("cgroup")
    assert max(map(len, lines)) <= 110
    assert [line[0] for line in lines if line[0:1] in {"✓", "~", "✗"}] == ["✓", "✓", "✗", "✗", "~"]
    assert "To mend --cpus, --swap:" in lines
    assert lines[-5:] == [
        "--mem uses cgroup v2 memory.max",
        "--cpus uses nothing: it cannot be enforced here",
        "--pids uses RLIMIT_NPROC",
        "--net uses nothing: it cannot be enforced here",
        "--disk uses nothing: it cannot be enforced here",
    ]


def test_html_escapes_everything() -> None:
    page = host.render_html(ROWS)
    assert "Linux &lt;b&gt;7&lt;/b&gt;" in page
    assert "&quot;please&quot; &amp; &lt;wait&gt;" in page
    assert "<b>" not in page
    assert "class=" not in page
    assert "<style" not in page


def test_json_holds_every_row() -> None:
    data = json.loads(json.dumps(host.to_json(ROWS)))
    assert [row["feature"] for row in data["findings"]] == [row.feature for row in ROWS]
    assert set(data["findings"][0]) == {"feature", "status", "detail", "remedy"}
    assert data["uses"]["--mem"] == "cgroup v2 memory.max"


def test_nothing_to_show_is_shown_too() -> None:
    assert "cannot be enforced" in host.render_text(())
    assert "cannot be enforced" in host.render_html(())
