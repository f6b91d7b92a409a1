"""What a container sees of the host's files, what it may write, and what comes of it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import ExtractionError, SpecError, intake

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("quiet")


def tree(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """All of a folder that a cell could have changed: mode, owner, and content."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, status.st_gid, content)
    return found


# ---- copy-on-write -------------------------------------------------------------

CHANGE = """
import os
open('new.txt', 'w').write('new')
open('edit.txt', 'a').write(' after')
os.remove('gone.txt')
os.rename('keep.txt', 'moved.txt')
os.chmod('sub/deep.txt', 0o600)
os.mkdir('made'); open('made/inner', 'w').write('x')
os.symlink('new.txt', 'link')
print(sorted(os.listdir('.')), open('edit.txt').read(), open('moved.txt').read())
"""


def test_the_working_directory_is_copy_on_write(project: Path) -> None:
    before = tree(project)
    result = nsmagic.run(CHANGE).check()
    assert result.stdout == "['edit.txt', 'link', 'made', 'moved.txt', 'new.txt', 'sub'] before after keep\n"
    assert tree(project) == before


def test_changes_are_exact(project: Path) -> None:
    result = nsmagic.run(CHANGE).check()
    changes = {(os.path.relpath(change.path, project), change.kind) for change in result.changes}
    assert changes == {
        ("new.txt", "added"), ("edit.txt", "modified"), ("gone.txt", "deleted"), ("keep.txt", "deleted"),
        ("moved.txt", "added"), ("sub/deep.txt", "modified"), ("made", "added"), ("made/inner", "added"),
        ("link", "added"),
    }  # fmt: skip
    sizes = {os.path.relpath(change.path, project): change.size for change in result.changes}
    assert sizes["new.txt"] == 3
    assert sizes["edit.txt"] == 12


def test_reading_changes_nothing(project: Path) -> None:
    result = nsmagic.run(
        "import os\nfor p, _, fs in os.walk('.'):\n for f in fs: open(os.path.join(p, f)).read()"
    ).check()
    assert list(result.changes) == []


def test_changes_elsewhere_are_listed_too(quiet: Path) -> None:
    result = nsmagic.run(
        "import os\nopen('/tmp/t', 'w').write('1')\nopen(os.path.expanduser('~/h'), 'w').write('22')"
    ).check()
    assert {(Path(change.path).name, change.kind, change.size) for change in result.changes} == {
        ("t", "added", 1),
        ("h", "added", 2),
    }


def test_what_was_written_can_be_taken_out(project: Path, tmp_path: Path) -> None:
    result = nsmagic.run(CHANGE).check()
    result.save("new.txt", to=tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "new"
    result.save("made", to=tmp_path / "folder")
    assert (tmp_path / "folder" / "inner").read_text() == "x"
    result.save(str(project / "edit.txt"), to=tmp_path / "edited")
    assert (tmp_path / "edited").read_text() == "before after"
    assert (tmp_path / "edited").stat().st_uid == os.geteuid()
    for path in ("gone.txt", "link", "nothing", "sub/../../keep.txt", "keep.txt"):
        with pytest.raises(ExtractionError):
            result.save(path, to=tmp_path / "never")
    with pytest.raises(ExtractionError):
        result.save("new.txt", to=tmp_path / "out.txt")
    result.save("edit.txt", to=tmp_path / "out.txt", overwrite=True)
    assert (tmp_path / "out.txt").read_text() == "before after"


def test_a_result_that_is_closed_gives_no_files(project: Path, tmp_path: Path) -> None:
    result = nsmagic.run(CHANGE).check()
    result.close()
    result.close()
    with pytest.raises(ExtractionError):
        result.save("new.txt", to=tmp_path / "x")


def test_files_outlive_the_container_but_not_the_result(project: Path) -> None:
    result = nsmagic.run("open('big', 'wb').write(bytes(1 << 20))").check()
    assert result.usage.written is not None
    assert result.usage.written >= 1 << 20
    assert len(result.changes) == 1


def test_a_file_of_another_mode_stays_so(project: Path) -> None:
    (project / "tool").write_text("#!/bin/sh\necho run\n")
    (project / "tool").chmod(0o755)
    assert nsmagic.run(["./tool"]).check().stdout == "run\n"


@pytest.mark.root
def test_roots_own_files_are_readable_and_writable_inside(project: Path) -> None:
    """Root's files are the payload's inside, by an idmapped mount, and stay root's outside."""
    (project / "private").write_text("secret")
    (project / "private").chmod(0o600)
    before = tree(project)
    code = "import os\nopen('private', 'a').write('!')\nprint(open('private').read(), os.stat('private').st_uid == os.getuid(), os.stat('.').st_uid == os.getuid())"
    result = nsmagic.run(code).check()
    if result.isolation.notes:
        pytest.skip(f"host: {result.isolation.notes}")
    assert result.stdout == "secret! True True\n"
    assert tree(project) == before


@pytest.mark.root
def test_files_of_another_owner_stay_foreign(project: Path) -> None:
    (project / "foreign").write_text("theirs")
    os.chown(project / "foreign", 12345, 12345)
    (project / "foreign").chmod(0o600)
    result = nsmagic.run(
        "try: open('foreign').read()\nexcept PermissionError: print('denied')\nimport os; print(os.stat('foreign').st_uid)"
    )
    assert result.check().stdout == "denied\n65534\n"


def test_a_working_directory_below_tmp_is_shown(tmp_path: Path) -> None:
    assert str(tmp_path).startswith("/tmp/") or os.environ.get("TMPDIR"), (
        "this test needs pytest's folder below /tmp"
    )
    (tmp_path / "f").write_text("here")
    assert nsmagic.run("print(open('f').read())", workdir=tmp_path).check().stdout == "here\n"


def test_workdir_by_option(project: Path) -> None:
    assert (
        nsmagic.run("import os; print(os.getcwd())", workdir="sub").check().stdout == f"{project / 'sub'}\n"
    )
    assert nsmagic.run("import os; print(os.listdir('..'))", workdir="sub").check().stdout == "['sub']\n"


def test_workdir_through_a_link_is_the_real_folder(project: Path) -> None:
    (project / "alias").symlink_to("sub")
    assert (
        nsmagic.run("import os; print(os.listdir('.'))", workdir="alias").check().stdout == "['deep.txt']\n"
    )


def test_a_home_folder_as_working_directory_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hush")
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, tmp_path.parent, Path("/")):
        result = nsmagic.run(
            f"import os; print(os.getcwd() == os.environ['HOME'], os.path.exists({str(tmp_path / 'secret')!r}))",
            workdir=folder,
        )
        assert result.check().stdout == "True False\n"
        assert any("home folder" in note for note in result.isolation.notes)
    result = nsmagic.run("import os; print(os.getcwd(), os.listdir('..'))", workdir=tmp_path / "work")
    assert result.check().stdout == f"{tmp_path / 'work'} ['work']\n"
    assert not result.isolation.notes


def test_home_folders_and_jupyters_are_absent(look: Callable[..., Any]) -> None:
    home = os.path.realpath(Path.home())
    for path in (f"{home}/.bashrc", f"{home}/.ssh", f"{home}/.local/share/jupyter", f"/run/user/{os.geteuid()}", "/etc/shadow",
                 "/run/docker.sock", "/var/run/dbus", "/var/log", "/sys/kernel", "/boot", "/etc/machine-id"):  # fmt: skip
        assert not look(f"os.path.exists({path!r})"), path
    assert look("os.listdir('/home')") in ([], ["user"]) or home.startswith("/home/")
    assert look("os.listdir('/run')") == []


# ---- binds ------------------------------------------------------------------------

WRITE = "try:\n open('/data/f', 'w').write('inside'); print('written')\nexcept OSError as e: print(type(e).__name__, e.errno)"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "f").write_text("outside")
    return folder


def test_a_read_only_bind(data: Path) -> None:
    result = nsmagic.run("print(open('/data/f').read())\n" + WRITE, bind=f"{data}:/data:ro").check()
    assert result.stdout == "outside\nOSError 30\n"
    assert (data / "f").read_text() == "outside"


def test_read_only_is_the_default(data: Path) -> None:
    assert nsmagic.run(WRITE, bind=f"{data}:/data").check().stdout == "OSError 30\n"


def test_a_writable_bind(data: Path) -> None:
    result = nsmagic.run(WRITE + "\nopen('/data/new', 'w').write('n')", bind=f"{data}:/data:rw").check()
    assert result.stdout == "written\n"
    assert (data / "f").read_text() == "inside"
    # What is made belongs to the folder's owner, not to some id that nobody knows.
    assert (data / "new").stat().st_uid == data.stat().st_uid == os.geteuid()
    assert (data / "new").stat().st_gid == data.stat().st_gid


@pytest.mark.root
def test_a_writable_bind_of_another_users_folder(data: Path) -> None:
    for path in (data, data / "f"):
        os.chown(path, 4321, 4322)
    nsmagic.run("open('/data/new', 'w').write('n')", bind=f"{data}:/data:rw").check()
    assert ((data / "new").stat().st_uid, (data / "new").stat().st_gid) == (4321, 4322)


def test_a_copy_on_write_bind(data: Path) -> None:
    result = nsmagic.run(WRITE, bind=f"{data}:/data:cow").check()
    assert result.stdout == "written\n"
    assert (data / "f").read_text() == "outside"
    assert [(change.path, change.kind) for change in result.changes] == [("/data/f", "modified")]


def test_a_bind_of_one_file(data: Path) -> None:
    assert (
        nsmagic.run("print(open('/etc/given').read())", bind=f"{data / 'f'}:/etc/given").check().stdout
        == "outside\n"
    )
    nsmagic.run("open('/tmp/x/y', 'w').write('in')", bind=f"{data / 'f'}:/tmp/x/y:rw").check()
    assert (data / "f").read_text() == "in"


def test_binds_at_their_own_place_and_several(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    result = nsmagic.run(
        f"import os; print(os.listdir({str(data)!r}), os.listdir('/o'))", bind=[str(data), f"{other}:/o"]
    )
    assert result.check().stdout == "['f'] []\n"


@pytest.mark.parametrize("order", [1, -1])
def test_nested_binds(data: Path, tmp_path: Path, order: int) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "g").write_text("inner")
    (data / "sub").mkdir()
    binds = [f"{data}:/data", f"{inner}:/data/sub:rw"][::order]
    result = nsmagic.run(
        WRITE + "\nprint(open('/data/sub/g').read()); open('/data/sub/g', 'w').write('new')", bind=binds
    ).check()
    assert result.stdout == "OSError 30\ninner\n"
    assert (inner / "g").read_text() == "new"


def test_a_read_only_bind_inside_the_working_directory(project: Path, data: Path) -> None:
    code = "import os\nprint(open('sub/f').read())\ntry: open('sub/f', 'w')\nexcept OSError as e: print(e.errno)\nopen('x', 'w')"
    result = nsmagic.run(code, bind=f"{data}:{project / 'sub'}").check()
    assert result.stdout == "outside\n30\n"


def test_a_bind_of_the_working_directory_itself_is_as_asked(project: Path) -> None:
    nsmagic.run("open('made', 'w').write('x')", bind=".:" + str(project) + ":rw").check()
    assert (project / "made").read_text() == "x"
    assert nsmagic.run("open('no', 'w')", bind=f"{project}:ro").failure is not None
    assert not (project / "no").exists()


def test_a_read_only_bind_cannot_be_made_writable(data: Path) -> None:
    code = (
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(None, b'/data', None, 32 | 4096, None), ctypes.get_errno())
"""
        + WRITE
    )
    assert nsmagic.run(code, bind=f"{data}:/data", user="root").check().stdout == "-1 1\nOSError 30\n"


def test_a_read_only_bind_holds_for_mounts_below_it(look: Callable[..., Any]) -> None:
    setup = "import os\ndef attempt(p):\n try: open(p, 'w')\n except OSError as e: return e.errno\n return 'written'"
    assert look("attempt('/seen/shm/x')", setup, bind="/dev:/seen") in {13, 30}
    assert not Path("/dev/shm/x").exists()


def test_a_socket_that_is_bound_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o777)
        code = "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('/tmp/s'); s.sendall(b'x'); print('connected')"
        assert nsmagic.run(code, bind=f"{path}:/tmp/s").check().stdout == "connected\n"


def test_setuid_and_devices_below_a_bind_are_dead(data: Path) -> None:
    code = "import os; f = os.statvfs('/data').f_flag; print(bool(f & os.ST_NOSUID), bool(f & os.ST_NODEV))"
    for mode in ("ro", "rw", "cow"):
        assert nsmagic.run(code, bind=f"{data}:/data:{mode}").check().stdout == "True True\n", mode


def test_a_link_that_leads_out_leads_nowhere(project: Path, data: Path) -> None:
    (project / "out").symlink_to(data)
    assert nsmagic.run("import os; print(os.path.exists('out/f'))").check().stdout == "False\n"


def test_a_hostile_target_in_a_bound_folder_stays_inside(data: Path, tmp_path: Path) -> None:
    """A link in a folder that is already there cannot turn a later bind's place into a place of the host."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (data / "evil").symlink_to(f"../../../../../..{victim}")
    with contextlib.suppress(nsmagic.StartError):
        nsmagic.run("pass", bind=[f"{data}:/data:rw", f"{data / 'f'}:/data/evil/planted"])
    assert list(victim.iterdir()) == []


# ---- its own folders -------------------------------------------------------------------


def test_tmp_and_shared_memory_are_private() -> None:
    name = f"nsmagic-test-{os.getpid()}"
    code = f"""
import os
for folder in ('/tmp', '/var/tmp', '/dev/shm'):
    open(folder + '/{name}', 'w').write('x')
    print(oct(os.stat(folder).st_mode & 0o7777))
"""
    assert nsmagic.run(code).check().stdout == "0o1777\n" * 3
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        assert not Path(folder, name).exists()


def test_shared_memory_works_and_counts(look: Callable[..., Any]) -> None:
    setup = "from multiprocessing import shared_memory\ns = shared_memory.SharedMemory(create=True, size=4096); s.buf[0] = 7\nvalue = s.buf[0]\ns.close(); s.unlink()"
    assert look("value", setup) == 7


def test_proc_is_its_own_and_its_settings_are_read_only(look: Callable[..., Any]) -> None:
    assert look("os.readlink('/proc/self')") == "2"
    setup = "import os\ndef attempt(p):\n try: os.open(p, os.O_WRONLY)\n except OSError as e: return e.errno\n return 'open'"
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/vm/swappiness",
        "/proc/sysrq-trigger",
    ):
        for user in (None, "root"):
            assert look(f"attempt({path!r})", setup, user=user) in {13, 30, 2}, path
    assert look("os.statvfs('/proc/sys').f_flag & os.ST_RDONLY") == os.ST_RDONLY


def test_devices_work(look: Callable[..., Any]) -> None:
    setup = """
import os
open('/dev/null', 'wb').write(b'x' * 99)
full = 0
try: os.write(os.open('/dev/full', os.O_WRONLY), b'x')
except OSError as error: full = error.errno
found = (open('/dev/null', 'rb').read(), open('/dev/zero', 'rb').read(4), len(open('/dev/urandom', 'rb').read(8)), full)
"""
    assert look("found", setup) == (b"", b"\0\0\0\0", 8, 28)
    assert look("os.openpty() and True", "import os")


def test_users_are_its_own(look: Callable[..., Any]) -> None:
    names = look("[line.split(':')[0] for line in open('/etc/passwd')]")
    assert names in (["user", "nobody"], ["root", "nobody"])
    assert look("[line.split(':')[0] for line in open('/etc/passwd')]", user="root") == ["root", "nobody"]


def test_its_home_is_its_own(look: Callable[..., Any]) -> None:
    assert look(
        "(os.environ['HOME'], os.listdir(os.environ['HOME']), oct(os.stat(os.environ['HOME']).st_mode & 0o777))"
    ) == ("/home/user", [], "0o700")


def test_the_usual_programs_and_libraries_work() -> None:
    script = "ls / >/dev/null && cat /etc/os-release | head -1 >/dev/null && mktemp >/dev/null && date +%Y && python3 -c 'import ssl, sqlite3, ctypes'"
    nsmagic.run(["sh", "-ec", script]).check()


def test_locale_and_time_zone(look: Callable[..., Any]) -> None:
    local = subprocess.run(["date", "+%Z"], capture_output=True, text=True, check=True).stdout.strip()
    assert look("time.strftime('%Z')", "import time") == local


def test_a_folder_that_the_user_may_not_read_is_an_error_not_a_gap(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("host: runs as root")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        result = nsmagic.run(
            "import os\ntry: print(os.listdir('/data'))\nexcept OSError as e: print(e.errno)",
            bind=f"{closed}:/data",
        )
        assert result.stdout == "13\n"
    finally:
        closed.chmod(0o700)


def test_the_hosts_mounts_are_not_changed() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    for _ in range(3):
        nsmagic.run("pass", bind="/usr/share:/data:cow").check()
    assert Path("/proc/self/mountinfo").read_text() == before


def test_no_name_of_the_host_is_in_the_mount_table(look: Callable[..., Any]) -> None:
    for line in look("open('/proc/self/mountinfo').read()").splitlines():
        point = line.split()[4]
        assert not point.startswith(("/sys", "/run/", "/old")), line


def test_a_bind_that_has_gone_since_the_spec_was_made_is_told_in_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    spec = intake.container_from({"bind": f"{gone}:/mnt/x"})
    gone.rmdir()
    with pytest.raises(SpecError, match="gone' cannot be looked at: No such file or directory"):
        nsmagic.Container(spec)
