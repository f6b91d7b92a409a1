"""Inside another container: what is refused there has a way round, and nothing of the surroundings shows.

Most of this can be had anywhere, by a filter that refuses what Docker refuses; the Docker lane runs it in Docker.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from refusals import ENOSYS, EPERM, refused

import nsmagic
from nsmagic import host

pytestmark = [pytest.mark.hosts, pytest.mark.usefixtures("quiet")]

LANE = os.environ.get("NSMAGIC_LANE", "")
"""Which kind of container these tests run in; empty outside of the lanes."""

NONE, ALL = "missing", "works"
LANES = {
    "podman": {"all namespaces": ALL, "fresh /proc": "weaker", "--hostname": NONE, "--disk": ALL},
    "podman-user": {"all namespaces": ALL, "copy-on-write": ALL, "--hostname": NONE, "--net none": ALL},
    "podman-user-open": {"all namespaces": ALL, "fresh /proc": ALL, "--hostname": ALL, "--mem": NONE},
    "default": {"all namespaces": NONE, "--mem": NONE, "--net none": NONE, "--best-effort": "weaker"},
    "seccomp-unconfined": {
        "all namespaces": ALL,
        "fresh /proc": "weaker",
        "--mem": NONE,
        "--pids": ALL,
    },
    "sys-admin": {"all namespaces": ALL, "fresh /proc": "weaker", "--mem": NONE, "--disk": ALL},
    "privileged": {
        "all namespaces": ALL,
        "fresh /proc": ALL,
        "--mem": ALL,
        "--cpus": ALL,
        "--pids": ALL,
    },
    "read-only-cgroup": {"all namespaces": ALL, "fresh /proc": ALL, "--mem": NONE, "--pids": ALL},
    "user": {"all namespaces": NONE, "--mem": NONE, "--net none": NONE, "--best-effort": "weaker"},
    "user-open": {"all namespaces": ALL, "fresh /proc": ALL, "copy-on-write": ALL, "--net none": ALL},
}
"""What is known of some hosts: a doctor that is wrong in the same way as what it tries would not be seen else."""


def container_works() -> str:
    """Why no container can be made here; empty where one can."""
    try:
        nsmagic.run("pass").check()
    except nsmagic.NsmagicError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def needs_containers() -> None:
    """Skip where the doctor would say that there are none."""
    if why := container_works():
        pytest.skip(f"host: {why[:150]}")


def test_the_doctor_says_what_is_known_of_this_host() -> None:
    if not LANE:
        pytest.skip("host: no lane, so nothing is known of it beforehand")
    found = {row.feature: row.status for row in host.examine()}
    known = LANES[LANE]
    assert {feature: found[feature] for feature in known} == known


# Tried by hand: names that lead out of a root if anything does, and what the mounts say.
WALK = """
import json, os
ways = ["/.." * 8, "/proc/1/root", "/proc/self/root/..", "/proc/self/cwd" + "/.." * 8, "/dev/fd/../../.."]
reached = [way for way in ways if os.path.exists(way + {mark!r})]
descriptor = os.open("/", os.O_PATH)
for _ in range(8):
    descriptor = os.open("..", os.O_PATH, dir_fd=descriptor)
same = os.fstat(descriptor).st_ino == os.stat("/").st_ino
os.chdir("/")
for _ in range(8):
    os.chdir("..")
seen = os.path.exists({mark!r}), os.path.exists({mark!r}[1:]), os.getcwd()
print(json.dumps([reached, same, seen]))
"""
ROOTS = """
import nsmagic
result = nsmagic.run({walk!r}, workdir="/usr")
calls = {{step.call.partition("(")[0]: step.errno for step in result.journal}}
print(json.dumps([result.stdout, result.describe(), calls]))
"""


@pytest.mark.usefixtures("needs_containers")
@pytest.mark.parametrize("errno", [EPERM, ENOSYS])
def test_the_old_root_is_out_of_reach_without_pivot_root(errno: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="nsmagic-mark-") as folder:
        mark = Path(folder, "here")
        mark.touch()
        Path(folder).chmod(0o755)
        code = ROOTS.format(walk=WALK.format(mark=str(mark)))
        stdout, words, calls = refused([("pivot_root", errno, 0)], code)
    assert stdout, words
    assert calls["pivot_root"] in (EPERM, ENOSYS)
    assert calls["chroot"] == 0
    assert json.loads(stdout) == [[], True, [False, False, "/"]]


@pytest.mark.usefixtures("needs_containers")
def test_the_old_root_is_out_of_reach_as_it_is() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="nsmagic-mark-") as folder:
        mark = Path(folder, "here")
        mark.touch()
        Path(folder).chmod(0o755)
        result = nsmagic.run(WALK.format(mark=str(mark)), workdir="/usr").check()
    assert json.loads(result.stdout) == [[], True, [False, False, "/"]]


@pytest.mark.usefixtures("needs_containers")
def test_clone_stands_in_for_clone3() -> None:
    code = """
import nsmagic
result = nsmagic.run("import os; print(os.getpid())").check()
print(json.dumps([result.stdout, [step.call.partition("(")[0] for step in result.journal if step.step == "clone"]]))
"""
    assert refused([("clone3", ENOSYS, 0)], code) == ["2\n", ["clone3", "clone"]]


@pytest.mark.usefixtures("needs_containers")
def test_proc_shows_no_process_of_the_surroundings() -> None:
    code = """
import os
pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
print(max(pids, default=0) < 10, os.path.exists("/proc/version"), os.path.exists("/proc/1/environ"))
try:
    open("/proc/sys/kernel/domainname", "w")
    print("written")
except OSError:
    print("refused")
"""
    result = nsmagic.run(code).check()
    small = any("few files" in note for note in result.isolation.notes)
    assert result.stdout.split() == ["True", "True", str(not small), "refused"]


@pytest.mark.usefixtures("needs_containers")
def test_a_small_proc_can_be_worked_with() -> None:
    """What people do most, wherever /proc comes from."""
    code = """
import subprocess, sys, tempfile, threading
print(subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, text=True).stdout.strip())
with tempfile.TemporaryDirectory() as place:
    open(place + "/file", "w").write("text")
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.run([sys.executable, "-c", "print('python')"], capture_output=True, text=True).stdout.strip())
"""
    result = nsmagic.run(code)
    assert result.stdout.split() == ["42", "thread", "python"], (result.describe(), result.stderr)


@pytest.mark.usefixtures("needs_containers")
def test_a_name_that_nobody_asked_for_is_done_without() -> None:
    code = """
import nsmagic
result = nsmagic.run("import os; print(os.uname().nodename)").check()
try:
    nsmagic.run("pass", hostname="wanted")
    error = ""
except nsmagic.StartError as refusal:
    error = refusal.call
import socket
print(json.dumps([result.stdout.strip() == socket.gethostname(), result.isolation.notes, error]))
"""
    same, notes, error = refused([("sethostname", EPERM, 0)], code)
    assert same
    assert any("sethostname" in note and "Operation not permitted" in note for note in notes)
    assert error == 'sethostname(name="wanted")'


def test_without_containers_the_error_says_what_to_do() -> None:
    if not container_works():
        pytest.skip("host: containers can be made here")
    with pytest.raises(nsmagic.NsmagicError) as caught:
        nsmagic.run("pass")
    assert "--best-effort" in str(caught.value)
    if LANE:
        assert "docker run --security-opt seccomp=unconfined" in str(caught.value)
