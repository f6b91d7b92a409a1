#!/usr/bin/env python3
"""Run the tests that depend on the host on hosts of every kind, each a small machine of its own.

Usage: ``hosts.py [--core] [--only NAME]… --python PYTHON --wheels FOLDER [-- PYTEST WORDS]``

For each host: a machine is thawed or booted (see ``run.sh``), the tests and the packages are shipped into it,
the doctor is asked and the tests marked ``hosts`` run there as that host's user; back come JUnit reports,
the doctor's words and what was printed, in ``build/hosts/NAME/``.  Then come a table of hosts by tests,
and unless ``--core`` is given the pages in ``docs/hosts/`` and the table of hosts by features in
``docs/hosts.md``.

Exit status: 0 all is well, or no machine can be made here, which is said; 1 a test failed or was skipped
without a right.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
TREE: Final = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import junit  # noqa: E402 - ours, beside this folder
import pages  # noqa: E402 - ours
import table  # noqa: E402 - ours

OUT: Final = TREE / "build" / "hosts"
SHIPPED: Final = ("tests", "tools", "notebooks", "pyproject.toml")
EXTRAS: Final = "[kernel]"
SITE_BYTES: Final = "1G"
CANNOT: Final = 3
PACKAGES: Final = ("pytest>=8", "pytest-rerunfailures>=15", "pytest-timeout>=2.3", "hypothesis>=6")
PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}
"""By Debian's release, the Python that its machines have."""


class Host(NamedTuple):
    """One kind of host.

    Attributes:
        name: of its folder and page.
        title: what it is, for the tables.
        how: how the lane makes it, a sentence or two.
        init: what runs as PID 1.
        who: who runs the tests there; see ``users.sh``.
        append: words for the kernel's command line.
        suite: Debian's release.
        core: whether it is one of the few that every change is tried on.
    """

    name: str
    title: str
    how: str
    init: str
    who: str
    append: str = ""
    suite: str = "bookworm"
    core: bool = False


_V1: Final = "lane.cgroups=v1"
HOSTS: Final = (
    Host(
        "systemd-user", "v2, systemd, user logged in",
        "An ordinary user logs in, as by ssh: a session's scope, which is not handed over to anybody. "
        "The user's own systemd is there to be asked.",
        "systemd", "user-session", core=True,
    ),
    Host(
        "systemd-root", "v2, systemd, root logged in",
        "Root logs in: a session's scope, which is not handed over. The system's systemd is there to be "
        "asked.",
        "systemd", "root-session", core=True,
    ),
    Host(
        "raw-root", "v2, no systemd, root",
        "No systemd; cgroup2 is mounted, and root's processes live in the hierarchy's root.",
        "mini", "root", core=True,
    ),
    Host(
        "systemd-user-newer", "v2, systemd, user logged in, newer kernel",
        "As the first, on Debian 13: a newer kernel, a newer systemd.",
        "systemd", "user-session", suite="trixie",
    ),
    Host(
        "systemd-user-without-cpu", "v2, systemd, user who gets no cpu",
        "As the first, but users are handed memory and pids only, as by systemd before 244 or by a drop-in "
        "with Delegate=memory pids.",
        "systemd", "user-without-cpu",
    ),
    Host(
        "systemd-user-service", "v2, systemd, user's own unit",
        "systemd-run --user -p Delegate=yes: a unit of the user's systemd, which marks no units as handed "
        "over.",
        "systemd", "user-service",
    ),
    Host(
        "systemd-user-lingering", "v2, systemd, user in a service, lingering",
        "An ordinary user without a login, in a group of root's, as under a hub or cron; loginctl "
        "enable-linger has started the user's systemd.",
        "systemd", "user-lingering",
    ),
    Host(
        "systemd-user-alone", "v2, systemd, user in a service",
        "The same without lingering: there is no systemd that this user may ask.",
        "systemd", "user",
    ),
    Host(
        "systemd-root-unit", "v2, systemd, root's own unit",
        "Root in a service with Delegate=yes: the group is handed over, and nobody need be asked.",
        "systemd", "root",
    ),
    Host(
        "raw-user-delegated", "v2, no systemd, user with a group",
        "No systemd; root has made a group and given it to the user.",
        "mini", "user-delegated",
    ),
    Host("v1-root", "v1, root", "cgroup v1 for every controller, as on old hosts.", "mini", "root", _V1),
    Host("v1-user", "v1, user", "cgroup v1 for every controller, as on old hosts.", "mini", "user", _V1),
    Host(
        "no-cgroups-user", "no cgroups, user",
        "No cgroup file system is mounted at all.", "mini", "user", "lane.cgroups=none",
    ),
)  # fmt: skip

# In the machine: what the user runs. /out takes what comes back.
JOB: Final = """
set -u
export LANG=C.UTF-8 PYTHONPATH=/site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# On the disk: root's containers may write to folders on a tmpfs since Linux 6.3 only (idmapped mounts).
export TMPDIR=/srv
folder=/srv/notebooks && mkdir $folder && cp -r /src/* "$folder" || exit 1
cd "$folder"
cat /proc/self/cgroup >/out/cgroup
python3 -c '
import json
from nsmagic import host
found = host.examine()
open("/out/doctor.txt", "w").write(host.render_text(found))
open("/out/doctor.json", "w").write(json.dumps(host.to_json(found)))
'
python3 -m pytest -m hosts -q -p no:cacheprovider --reruns 2 --timeout 300 --durations=10 \
    --junit-xml /out/junit.xml "$@"
status=$?
python3 tools/check_skips.py --alone /out/junit.xml || status=1
exit $status
"""


class Ran(NamedTuple):
    """What became of one host.

    Attributes:
        host: which.
        status: its exit status.
        seconds: how long it took.
        tests: what its JUnit report says; none where none came back.
    """

    host: Host
    status: int
    seconds: float
    tests: list[junit.Test]


def make_images(hosts: list[Host]) -> str:
    """Build and freeze what these hosts need; return why none can be made here, or an empty string."""
    for suite in dict.fromkeys(host.suite for host in hosts):
        environment = {**os.environ, "LANE_SUITE": suite}
        built = subprocess.run(
            [HERE / "build.sh"], env=environment, check=False, stderr=subprocess.PIPE, text=True
        )
        sys.stderr.write(built.stderr)
        if built.returncode == CANNOT:
            return built.stderr.strip().splitlines()[-1]
        built.check_returncode()
        for init in dict.fromkeys(host.init for host in hosts if host.suite == suite and not host.append):
            subprocess.run([HERE / "freeze.sh", init], env=environment, check=True)
    return ""


def make_site(python: str, wheels: Path, suite: str) -> Path:
    """Install nsmagic, and what its tests need, for a machine's Python into a file system of its own.

    What the wheel depends on changes seldom and is kept; one wheel serves every Python.
    """
    version = PYTHONS[suite]
    wheel = next(iter(sorted(wheels.glob("nsmagic-*.whl"))))
    place = TREE / "build" / "site" / version
    asked = (TREE / "pyproject.toml").read_bytes() + repr((EXTRAS, PACKAGES)).encode()
    wanted = hashlib.sha256(asked).hexdigest()
    pip = [python, "-I", "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--target"]
    binary = ["--only-binary=:all:", "--python-version", version, "--implementation", "cp"]
    stamp = place / ".wanted"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([*pip, place, *binary, f"{wheel}{EXTRAS}", *PACKAGES], check=True)
        stamp.write_text(wanted)
    for old in place.glob("nsmagic*"):
        shutil.rmtree(old)
    subprocess.run([*pip, place, *binary, "--no-deps", "--upgrade", wheel], check=True)
    image = TREE / "build" / "site" / f"{version}.ext4"
    image.unlink(missing_ok=True)
    # Everybody may read what root has made here.
    subprocess.run(["chmod", "-R", "a+rX", place], check=True)
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    command: list[str | Path] = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-d",
        place,
        image,
        SITE_BYTES,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    return image


def run(host: Host, source: Path, site: Path, seconds: int, words: list[str]) -> Ran:
    """Run the tests on one host."""
    out = OUT / host.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command: list[str | Path] = [
        HERE / "run.sh", "--init", host.init, "--as", host.who, "--append", host.append, "--src", source,
        "--site", site, "--out", out, "--timeout", str(seconds), "--", "bash", "-c", JOB, "job", *words,
    ]  # fmt: skip
    began = time.monotonic()
    with (out / "log").open("w") as log:
        environment = {**os.environ, "LANE_SUITE": host.suite}
        ended = subprocess.run(command, env=environment, check=False, stdout=log, stderr=subprocess.STDOUT)
    report = OUT / f"{host.name}.xml"
    report.unlink(missing_ok=True)
    tests = []
    if (out / "junit.xml").exists():
        shutil.copy(out / "junit.xml", report)
        tests = junit.read([str(report)])
    taken = time.monotonic() - began
    sys.stdout.write(f"── {host.name}: exit status {ended.returncode} after {taken:.0f} s\n")
    sys.stdout.flush()
    return Ran(host, ended.returncode, taken, tests)


def marked() -> list[str]:
    """The modules of tests that have the mark: to import all of the others there would take minutes."""
    modules = sorted((TREE / "tests").rglob("test_*.py"))
    return [str(path.relative_to(TREE)) for path in modules if "mark.hosts" in path.read_text()]


def main() -> int:
    """Run the lane; the exit status."""
    parser = argparse.ArgumentParser(
        description="Run the tests that depend on the host on hosts of every kind."
    )
    parser.add_argument(
        "--core", action="store_true", help="only the few hosts that every change is tried on"
    )
    parser.add_argument("--only", action="append", default=[], help="only the host of this name")
    parser.add_argument("--python", required=True, help="a Python with pip")
    parser.add_argument("--wheels", type=Path, required=True, help="where nsmagic's wheel is")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="machines at a time")
    parser.add_argument("--seconds", type=int, default=1500, help="for one host at most")
    parser.add_argument("words", nargs="*", help="pytest's words")
    given = parser.parse_args()
    if unknown := set(given.only) - {host.name for host in HOSTS}:
        parser.error(
            f"no host {', '.join(sorted(unknown))}; there are {', '.join(host.name for host in HOSTS)}"
        )
    hosts = [
        host for host in HOSTS if (host.name in given.only if given.only else host.core or not given.core)
    ]
    if why := make_images(hosts):
        sys.stdout.write(f"skipped: {why}\n")
        return 0
    sites = {suite: make_site(given.python, given.wheels, suite) for suite in {host.suite for host in hosts}}
    source = OUT / ".source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in SHIPPED:
        there = TREE / name
        if there.is_dir():
            shutil.copytree(there, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(there, source)
    words = given.words or marked()
    ran = []
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for each in pool.map(lambda host: run(host, source, sites[host.suite], given.seconds, words), hosts):
            ran.append(each)
            if each.tests and not given.core:
                pages.write_page(TREE / "docs" / "hosts", OUT / each.host.name, *each.host[:3])
    reports = [OUT / f"{each.host.name}.xml" for each in ran]
    table.main([str(report) for report in reports if report.exists()])
    for each in ran:
        if each.status:
            log = (OUT / each.host.name / "log").read_text(errors="replace").splitlines()
            shown = "\n".join(f"    {line}" for line in log[-60:])
            sys.stdout.write(
                f"── {each.host.name} failed; the end of {OUT / each.host.name / 'log'}:\n{shown}\n"
            )
    if not given.core:
        pages.write_table(TREE / "docs" / "hosts.md", TREE / "docs" / "hosts", [host.name for host in HOSTS])
    return 1 if any(each.status or not each.tests for each in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
