"""What the list of changes finds, and what the taking-out of files refuses: real overlays, hostile files."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nsmagic.changes import Change, ChangeList, Layer, list_changes
from nsmagic.descent import Descent, open_regular
from nsmagic.errors import ExtractionError
from nsmagic.extraction import save

if TYPE_CHECKING:
    from collections.abc import Iterator

if not sys.platform.startswith("linux"):
    pytest.skip("host: not Linux", allow_module_level=True)

FOREIGN = 65534  # a container's host uid where the tests run as root
DEADLINE = 20.0  # seconds until something that should happen soon counts as not happening

# Runs in the container: mounts a tmpfs and an overlay on it, sends the descriptors of the upper and of a
# private folder, then runs what it is sent.
INSIDE = """
import json, os, socket, subprocess, sys, threading, traceback
line, place = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
def mount(*argv): subprocess.run(["mount", *argv], check=True)
mount("-t", "tmpfs", "tmpfs", place + "/mnt")
os.chdir(place + "/mnt")
for name in ("upper", "work", "merged", "private"): os.mkdir(name)
options = f"lowerdir={place}/lower,upperdir=upper,workdir=work,userxattr"
mount("-t", "overlay", "-o", options, "overlay", "merged")
upper, private = os.open("upper", os.O_PATH), os.open("private", os.O_RDONLY)
mnt = os.getcwd()
socket.send_fds(line, [b"up"], [upper, private])
space = {"os": os, "threading": threading, "mount": mount, "MNT": mnt, "PLACE": place}
while True:
    code = line.recv(1 << 16)
    if not code: break
    where, _, code = code.decode().partition("\\n")
    os.chdir(mnt + "/" + where)
    try: exec(code, space); answer = "ok"
    except BaseException: answer = traceback.format_exc()
    line.send(answer.encode()[-30000:])
"""


class Box:
    """A container's file system: an overlay at /work and a private folder at /tmp."""

    def __init__(self, place: Path, python: str, user: int | None) -> None:
        """Build it, owned by `user`; None: by whoever runs the tests."""
        self.lower = place / "lower"
        self.out = place / "out"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE)
        self._line = ours
        argv = ["unshare", "-Urm", python, "-IS", "-c", INSIDE, str(theirs.fileno()), str(place)]
        groups: list[int] | None = None if user is None else []
        with theirs:
            self.process = subprocess.Popen(
                argv,
                pass_fds=[theirs.fileno()],
                user=user,
                group=user,
                extra_groups=groups,
                stderr=subprocess.PIPE,
                text=True,
                cwd="/",
            )
        self.upper_fd = self.private_fd = -1
        try:
            _, fds, _, _ = socket.recv_fds(ours, 16, 2)
            self.upper_fd, self.private_fd = fds
        except (OSError, ValueError):
            self.end()
            errors = self.process.stderr.read() if self.process.stderr else ""
            pytest.skip(f"host: no user namespaces with an overlay: {errors.strip()[:80]}")
        self.layers = (
            Layer("/work", str(self.lower), self.upper_fd),
            Layer("/tmp", None, self.private_fd),
        )

    def run(self, code: str, where: str = "merged") -> None:
        """Run Python code in the container and wait for it."""
        self._line.send(f"{where}\n{code}".encode())
        answer = self._line.recv(1 << 16).decode()
        assert answer == "ok", answer

    def list(self, max_entries: int = 100_000, max_depth: int = 512) -> ChangeList:
        """List the changes in both layers."""
        return list_changes(self.layers, max_entries=max_entries, max_depth=max_depth)

    def end(self) -> None:
        """Let the container die; its files stay as long as the descriptors."""
        self._line.close()
        self.process.wait(DEADLINE)

    def close(self) -> None:
        """Give everything back."""
        self.end()
        if self.process.stderr:
            self.process.stderr.close()
        for fd in (self.upper_fd, self.private_fd):
            if fd >= 0:
                os.close(fd)


def foreign_python() -> str | None:
    """Find an interpreter that the foreign user may run: the tests' own often lies in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            argv = [python, "-IS", "-c", ""]
            subprocess.run(argv, check=True, user=FOREIGN, group=FOREIGN, extra_groups=[], cwd="/")
        except OSError:
            continue
        return python
    return None


@contextlib.contextmanager
def effective(user: int) -> Iterator[None]:
    """Be another user for a while: a process of root loses its capabilities with its effective uid."""
    before, groups = os.geteuid(), os.getgroups()
    if user == 0:
        os.seteuid(0)
    os.setgroups([] if user else groups)
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setgroups(groups)
        os.setegid(before)
        os.seteuid(before)


@pytest.fixture(params=["root", "user"])
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    """Give a container on a lower folder with some files in it; the host process is root, then a user.

    To root the container's files belong to a foreign uid, to a user they are its own.
    """
    if shutil.which("unshare") is None:
        pytest.skip("host: no program unshare")
    root = os.getuid() == 0
    if request.param == "root" and not root:
        pytest.skip("host: not root")
    python = foreign_python() if root else sys.executable
    if python is None:
        pytest.skip("host: no Python that an ordinary user may run")
    place = Path(tempfile.mkdtemp(prefix="nsmagic-changes-"))  # not tmp_path: others may not enter it
    place.chmod(0o755)
    for folder in ("lower/d/e", "lower/gone", "lower/keep", "mnt", "out"):
        (place / folder).mkdir(parents=True)
    for name in ("a", "b", "c", "m", "d/x", "d/y", "d/e/z", "gone/g", "keep/k"):
        (place / "lower" / name).write_text(name)
    (place / "lower/link").symlink_to("a")
    with contextlib.ExitStack() as stack:
        stack.callback(remove_tree, place)
        if root:
            for path in (place, *place.rglob("*")):
                os.chown(path, FOREIGN, FOREIGN, follow_symlinks=False)
        made = Box(place, python, FOREIGN if root else None)
        stack.callback(made.close)
        if root and request.param == "user":
            stack.enter_context(effective(FOREIGN))
        yield made


def remove_tree(place: Path) -> None:
    """Remove a tree that may be deeper than shutil likes."""
    subprocess.run(["rm", "-rf", str(place)], check=True)


def lines(changes: ChangeList) -> list[str]:
    """Return the changes in short."""
    return [f"{change.kind} {change.path} {change.type} {change.size}" for change in changes]


@contextlib.contextmanager
def folder_layer(folder: Path) -> Iterator[Layer]:
    """Give a layer for what no container can make: root owns nothing in a container's tmpfs."""
    fd = os.open(folder, os.O_PATH)
    try:
        yield Layer("/tmp", None, fd)
    finally:
        os.close(fd)


def descriptors() -> int:
    """Count the descriptors that this process has open."""
    return len(names("/proc/self/fd"))


def names(folder: str | Path) -> list[str]:
    """List a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def wait_for_child_thread(box: Box) -> None:
    """Stop the container's background thread and wait for it."""
    box.run("stop.set(); thread.join()")


BACKGROUND = """
stop = threading.Event()
def loop():
    while not stop.is_set():
        step()
thread = threading.Thread(target=loop, daemon=True)
thread.start()
"""


# -- the list


def test_nothing_written_is_an_empty_list(box: Box) -> None:
    """An untouched layer has no changes, and reading alone makes none."""
    box.run("open('a').read(); os.listdir('d')")
    changes = box.list()
    assert list(changes) == []
    assert changes.truncated == ""


def test_an_empty_layer_is_quick(box: Box) -> None:
    """The common case costs a listing, not a walk; the bound allows for a busy machine."""
    layer = box.layers[:1]
    best = 1.0
    for _ in range(200):
        begin = time.perf_counter()
        list_changes(layer)
        best = min(best, time.perf_counter() - begin)
    assert best < 200e-6


def test_adds_edits_and_deletes(box: Box) -> None:
    """The ordinary things that a cell does to files."""
    box.run(
        "open('new', 'w').write('12345'); open('b', 'a').write('!'); os.remove('a'); os.mkdir('n');"
        "open('n/f', 'w').write('1'); os.remove('gone/g'); os.rmdir('gone'); os.rename('c', 'c2');"
        "os.remove('link'); os.symlink('b', 'link'); os.symlink('/etc', 'etc'); os.remove('d/x')"
    )
    assert lines(box.list()) == [
        "deleted /work/a file 0",
        "modified /work/b file 2",
        "deleted /work/c file 0",
        "added /work/c2 file 1",
        "deleted /work/d/x file 0",
        "added /work/etc symlink 4",
        "deleted /work/gone directory 0",
        "modified /work/link symlink 1",
        "added /work/n directory 0",
        "added /work/n/f file 1",
        "added /work/new file 5",
    ]


def test_a_copy_up_that_changes_nothing_is_left_out(box: Box) -> None:
    """Opened for writing and touched: copied up, yet the same."""
    box.run("open('a', 'a').close(); os.utime('b'); os.utime('d'); os.utime('link', follow_symlinks=False)")
    assert {"a", "b", "d"} <= set(names(f"/proc/self/fd/{box.upper_fd}"))
    assert lines(box.list()) == []


def test_same_size_other_bytes_is_modified(box: Box) -> None:
    """Size and mode agree; the content tells."""
    box.run("open('a', 'w').write('b')")
    assert lines(box.list()) == ["modified /work/a file 1"]


def test_modes_count(box: Box) -> None:
    """A changed mode is a change, of files and of folders."""
    box.run("os.chmod('a', 0o600); os.chmod('d', 0o700)")
    assert lines(box.list()) == ["modified /work/a file 1", "modified /work/d directory 0"]


def test_a_folder_deleted_and_made_anew_hides_what_was_there(box: Box) -> None:
    """An opaque folder: each lower entry that is missing counts as deleted, at every level."""
    box.run(
        "import shutil; shutil.rmtree('d'); os.makedirs('d/e'); open('d/x', 'w').write('other');"
        "open('d/y', 'w').write('d/y'); open('d/n', 'w')"
    )
    assert lines(box.list()) == [
        "deleted /work/d/e/z file 0",
        "added /work/d/n file 0",
        "modified /work/d/x file 5",
    ]


def test_kinds_that_change(box: Box) -> None:
    """A file that becomes a folder and a folder that becomes a file."""
    box.run(
        "os.remove('a'); os.mkdir('a'); open('a/f', 'w'); os.remove('keep/k'); "
        "os.rmdir('keep'); open('keep', 'w')"
    )
    assert lines(box.list()) == [
        "modified /work/a directory 0",
        "added /work/a/f file 0",
        "modified /work/keep file 0",
    ]


def test_a_renamed_folder(box: Box) -> None:
    """Overlays in user namespaces refuse (EXDEV); what programs do instead is copy and delete."""
    box.run("import shutil; shutil.move('keep', 'kept')")
    assert lines(box.list()) == [
        "deleted /work/keep directory 0",
        "added /work/kept directory 0",
        "added /work/kept/k file 6",
    ]


def test_a_private_folder_adds_everything(box: Box) -> None:
    """Without a lower folder there is nothing to compare with."""
    box.run("os.makedirs('a/b'); open('a/b/c', 'wb').write(bytes(7)); os.mkfifo('f')", "private")
    assert lines(box.list()) == [
        "added /tmp/a directory 0",
        "added /tmp/a/b directory 0",
        "added /tmp/a/b/c file 7",
        "added /tmp/f other 0",
    ]


def test_the_dead_are_listed_too(box: Box) -> None:
    """The descriptor keeps the files when every process and the mount namespace are gone."""
    box.run("open('new', 'w').write('1'); os.remove('a')")
    box.end()
    assert lines(box.list()) == ["deleted /work/a file 0", "added /work/new file 1"]
    save(box.layers, "new", box.out / "new")
    assert (box.out / "new").read_text() == "1"


def test_ignored_paths_and_what_is_below_them(box: Box) -> None:
    """An ignored folder takes its content along, not its namesakes."""
    box.run("os.mkdir('n'); open('n/f', 'w'); open('nn', 'w'); os.remove('a')")
    changes = list_changes(box.layers, ignore={"/work/n/", "/work/a"})
    assert lines(changes) == ["added /work/nn file 0"]


def test_mounts_are_not_changes(box: Box) -> None:
    """Another layer's mount point, and the folders leading to it, were made by the builder."""
    box.run("os.makedirs('p/q/deep'); open('p/f', 'w')", "private")
    inner = Layer("/tmp/p/q", str(box.lower), box.upper_fd)
    box.run("open('new', 'w')")
    assert lines(list_changes([box.layers[1], inner])) == [
        "added /tmp/p/f file 0",
        "added /tmp/p/q/new file 0",
    ]


def test_other_file_systems_are_not_entered(box: Box) -> None:
    """A mount seen through the descriptor is no part of the layer, neither listed nor taken out."""
    box.run(
        "os.makedirs('t/s'); open('t/f', 'w'); open('bound', 'w'); mount('-t', 'tmpfs', 'tmpfs', 't/s');"
        "open('t/s/foreign', 'w'); mount('--bind', PLACE + '/lower/a', 'bound')",
        "private",
    )
    seen = names(f"/proc/self/fd/{box.private_fd}/t/s")
    assert seen == ["foreign"], "the mount is not visible through the descriptor: the test tests nothing"
    assert lines(box.list()) == ["added /tmp/t directory 0", "added /tmp/t/f file 0"]
    report = save(box.layers, "/tmp/t", box.out / "t")
    assert names(box.out / "t") == ["f"]
    assert report.skipped == (("/tmp/t/s", "another file system is mounted there"),)
    with pytest.raises(ExtractionError, match="mounted from elsewhere"):
        save(box.layers, "/tmp/bound", box.out / "bound")


def test_overlay_marks_cannot_be_forged(box: Box) -> None:
    """In the overlay the kernel guards its names; in a private folder they mean nothing."""
    forge = """
open('hide', 'w')
os.mkdir('o')
for name, mark, value in (('hide', 'whiteout', b''), ('o', 'opaque', b'y')):
    try:
        os.setxattr(name, 'user.overlay.' + mark, value)
    except OSError as error:
        assert error.errno in (1, 95), error
"""
    box.run(forge)
    box.run(forge, "private")
    listed = lines(box.list())
    assert "added /work/hide file 0" in listed
    assert "added /tmp/hide file 0" in listed


def test_the_newer_whiteout(box: Box) -> None:
    """A zero-size file with the xattr user.overlay.whiteout deletes as well."""
    path = f"/proc/self/fd/{box.upper_fd}"
    try:
        with effective(FOREIGN) if os.geteuid() == 0 else contextlib.nullcontext():
            (Path(path) / "a").touch()
            os.setxattr(f"{path}/a", "user.overlay.whiteout", b"")
    except OSError as error:
        pytest.skip(f"host: Linux older than 6.6: {error}")
    assert lines(box.list()) == ["deleted /work/a file 0"]
    with pytest.raises(ExtractionError, match="deleted by the container"):
        save(box.layers, "a", box.out / "a")


def test_names_that_are_not_utf8(box: Box) -> None:
    """Bytes survive the list and the way out."""
    box.run("open(b'\\xff\\n', 'w').write('1'); os.mkdir(b'\\xfe'); open(b'\\xfe/\\xfd', 'w')", "private")
    found = [os.fsencode(change.path) for change in box.list()]
    assert sorted(found) == [b"/tmp/\xfe", b"/tmp/\xfe/\xfd", b"/tmp/\xff\n"]
    save(box.layers, "/tmp", box.out / "all")
    assert names(box.out / "all") == [os.fsdecode(b"\xfe"), os.fsdecode(b"\xff\n")]
    with pytest.raises(ExtractionError) as caught:
        save(box.layers, os.fsdecode(b"/tmp/\xff\n\x1b[2J"), box.out / "x")
    assert str(caught.value).isprintable()


DEEP = """
for i in range(1000):
    os.mkdir('d')
    os.chdir('d')
open('bottom', 'w')
"""


def test_a_thousand_levels(box: Box) -> None:
    """No recursion, few descriptors, and a list that says where it ends."""
    box.run(DEEP, "private")
    changes = box.list()
    assert len(changes) == 512
    assert changes.truncated.startswith("more than 512 levels of folders")
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 100, hard))
    try:
        whole = box.list(max_depth=2000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (len(whole), whole.truncated) == (1001, "")
    assert descriptors() == before


def test_a_thousand_levels_come_out_bounded(box: Box) -> None:
    """A saved folder is 512 levels deep at most, and the report says so."""
    box.run(DEEP, "private")
    report = save(box.layers, "/tmp/d", box.out / "d")
    assert [why for _, why in report.skipped] == ["more than 512 levels of folders"]
    found = subprocess.run(["find", str(box.out / "d"), "-type", "d"], check=True, capture_output=True)
    assert found.stdout.count(b"\n") == 513


def test_climbing_back_from_the_deep_finds_every_folder(box: Box) -> None:
    """Folders whose descriptors were closed on the way down are opened again on the way up."""
    box.run("for i in range(60):\n os.mkdir('d'); os.mkdir('e'); open('e/f', 'w'); os.chdir('d')", "private")
    changes = box.list()
    assert (len(changes), changes.truncated) == (180, "")
    report = save(box.layers, "/tmp", box.out / "t")
    assert report.files == 60


def test_entries_are_bounded(box: Box) -> None:
    """5,000 files, 1,000 looked at."""
    box.run("for i in range(5000): open(str(i), 'w').close()", "private")
    changes = box.list(max_entries=1000)
    assert len(changes) == 1000
    assert changes.truncated == "more than 1000 entries"
    assert len(box.list()) == 5000
    with pytest.raises(ExtractionError, match="more than 1000 files"):
        save(box.layers, "/tmp", box.out / "t", max_files=1000)
    assert names(box.out) == []


def test_folders_of_mode_000(box: Box) -> None:
    """The owner opens them, says so, and puts the mode back; root needs nothing."""
    box.run("os.makedirs('s/t/u'); open('s/t/u/f', 'w').write('1'); os.chmod('s/t', 0); os.chmod('s', 0o600)")
    changes = box.list()
    assert [change.path for change in changes] == ["/work/s", "/work/s/t", "/work/s/t/u", "/work/s/t/u/f"]
    assert changes.truncated == ""
    assert len(changes.notes) == (0 if os.geteuid() == 0 else 2)
    report = save(box.layers, "s", box.out / "s")
    assert (report.files, report.skipped) == (1, ())
    assert (box.out / "s/t/u/f").read_text() == "1"
    box.run("assert os.stat('s').st_mode & 0o777 == 0o600; assert os.stat('s/t').st_mode & 0o777 == 0")


def test_a_layer_whose_top_has_mode_000(box: Box) -> None:
    """The container may do that to the folder that it works in, too."""
    box.run("open('f', 'w').write('1'); os.chmod('.', 0)")
    assert lines(box.list()) == ["added /work/f file 1"]
    save(box.layers, "f", box.out / "f")
    box.run("assert os.stat(MNT + '/merged').st_mode & 0o777 == 0", "")


def test_a_folder_that_cannot_be_opened_is_named(box: Box) -> None:
    """An ordinary user meets a folder of somebody else: the list is incomplete and says so."""
    if os.getuid():
        pytest.skip("host: not root")
    with effective(0):
        (box.out / "locked").mkdir(0o000)
    with folder_layer(box.out) as layer:
        changes = list_changes([layer])
        assert lines(changes) == ["added /tmp/locked directory 0"]
        assert changes.truncated == ("" if os.geteuid() == 0 else "a folder of mode 000: /tmp/locked")
        if os.geteuid():
            with pytest.raises(ExtractionError, match="Operation not permitted"):
                save([layer], "locked", box.lower / "l")


def test_files_without_read_permission_stay_behind(box: Box) -> None:
    """Only folders' modes are ever touched."""
    box.run("os.mkdir('n'); open('n/f', 'w').close(); os.chmod('n/f', 0)")
    report = save(box.layers, "n", box.out / "n")
    if os.geteuid():
        assert report.skipped == (("n/f", "its mode forbids reading"),)
    else:
        assert report.files == 1


def test_a_closed_descriptor_is_an_error() -> None:
    """Never an empty list for a layer that could not be looked at."""
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        list_changes([Layer("/work", None, 10**6)])
    assert caught.value.errno == errno.EBADF


def test_a_change_list_is_a_sequence() -> None:
    """Slices, length, sorting."""
    changes = ChangeList([Change("added", "/b", 1, "file"), Change("added", "/a", 1, "file")])
    assert [change.path for change in changes[:1]] == ["/a"]
    assert (len(changes), changes[1].path) == (2, "/b")


# -- taking files out


def test_a_file_comes_out_plain(box: Box) -> None:
    """The caller's own, without special bits, under the caller's umask."""
    box.run("open('f', 'w').write('hello'); os.chmod('f', 0o6777)")
    before = descriptors()
    old = os.umask(0o027)
    try:
        report = save(box.layers, "f", box.out / "f")
    finally:
        os.umask(old)
    status = (box.out / "f").stat()
    assert (report.files, report.bytes, report.skipped) == (1, 5, ())
    assert stat.S_IMODE(status.st_mode) == 0o750
    assert (status.st_uid, status.st_nlink) == (os.geteuid(), 1)
    assert (box.out / "f").read_text() == "hello"
    assert names(box.out) == ["f"]
    assert descriptors() == before


def test_a_folder_comes_out_without_what_was_not_changed(box: Box) -> None:
    """Only the layer's content: added and modified; deletions leave no trace."""
    box.run(
        "open('d/new', 'w').write('n'); os.remove('d/x'); os.mkdir('d/sub'); os.link('d/new', 'd/sub/hard')"
    )
    report = save(box.layers, "/work/d", box.out / "d")
    found = sorted(str(path.relative_to(box.out)) for path in box.out.rglob("*"))
    assert found == ["d", "d/new", "d/sub", "d/sub/hard"]
    assert (report.files, report.bytes, report.skipped) == (2, 2, ())
    assert (box.out / "d/new").stat().st_nlink == 1


def test_special_files_stay_behind(box: Box) -> None:
    """Links are not followed, FIFOs not opened, and all are named."""
    box.run(
        "import socket; os.mkdir('n'); os.symlink('/etc/shadow', 'n/link'); os.symlink('/etc', 'n/folder');"
        "os.mkfifo('n/fifo'); socket.socket(socket.AF_UNIX).bind('n/sock'); open('n/f', 'w')"
    )
    report = save(box.layers, "n", box.out / "n")
    assert sorted(report.skipped) == [
        ("n/fifo", "a FIFO"),
        ("n/folder", "a link"),
        ("n/link", "a link"),
        ("n/sock", "a socket"),
    ]
    assert names(box.out / "n") == ["f"]
    for name, what in (
        ("link", "a link"),
        ("folder/passwd", "a link"),
        ("fifo", "a FIFO"),
        ("sock", "a socket"),
    ):
        with pytest.raises(ExtractionError, match=what):
            save(box.layers, f"n/{name}", box.out / "x")
    assert names(box.out) == ["n"]


@pytest.mark.parametrize("box", ["root"], indirect=True)
def test_devices_stay_behind(box: Box) -> None:
    """A device is never opened; only root can make one."""
    os.mknod(box.out / "dev", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with folder_layer(box.out) as layer:
        assert lines(list_changes([layer])) == ["added /tmp/dev other 0"]
        with pytest.raises(ExtractionError, match="a device"):
            save([layer], "dev", box.lower / "dev")


def test_the_skipped_list_is_bounded(box: Box) -> None:
    """300 FIFOs: a hundred named, the rest counted."""
    box.run("for i in range(300): os.mkfifo(str(i))", "private")
    report = save(box.layers, "/tmp", box.out / "t")
    assert (len(report.skipped), report.unlisted) == (100, 200)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nothing", "/work/nothing is not there"),
        ("a", "/work/a was deleted by the container"),
        ("gone/g", "/work/gone was deleted by the container"),
        ("d/x", "/work/d/x was deleted by the container"),
        ("keep/k", "/work/keep/k was not changed by the container; it is still at "),
        ("keep/none", "/work/keep/none is not there"),
        ("f/g", "/work/f is a file, not a folder"),
        ("link/g", "/work/link is a link"),
        ("../etc/passwd", "have no place"),
        ("/etc/passwd", "/etc/passwd is not in a folder that the container could write to"),
        ("/workshop", "not in a folder"),
        ("f\0", "have no place"),
        ("x/" * 600, "more than 512 levels"),
    ],
)
def test_one_clear_line_for_what_cannot_be_saved(box: Box, path: str, text: str) -> None:
    """Each refusal says why; nothing appears at the destination."""
    box.run(
        "import shutil; os.remove('a'); shutil.rmtree('gone'); shutil.rmtree('d'); os.mkdir('d');"
        "open('f', 'w').close()"
    )
    with pytest.raises(ExtractionError) as caught:
        save(box.layers, path, box.out / "x")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(box.out) == []


def test_what_is_there_already_is_kept(box: Box) -> None:
    """Overwriting is asked for, and then only a file gives way to a file."""
    box.run("open('f', 'w').write('new'); os.mkdir('n')")
    (box.out / "f").write_text("old")
    (box.out / "folder").mkdir()
    (box.out / "link").symlink_to("f")
    with pytest.raises(ExtractionError, match="there already; pass overwrite=True"):
        save(box.layers, "f", box.out / "f")
    for source, to in (("f", "folder"), ("f", "link"), ("n", "f"), ("n", "folder"), ("n", "link")):
        with pytest.raises(ExtractionError, match=r"is a link|only a file"):
            save(box.layers, source, box.out / to, overwrite=True)
    assert (box.out / "f").read_text() == "old"
    save(box.layers, "f", box.out / "f", overwrite=True)
    assert (box.out / "f").read_text() == "new"
    assert names(box.out) == ["f", "folder", "link"]


def test_destinations_that_make_no_sense(box: Box) -> None:
    """No name, or no folder around it."""
    box.run("open('f', 'w').write('new')")
    for to in ("/", "..", f"{box.out}/..", "", "a\0b"):
        with pytest.raises(ExtractionError, match="give the name"):
            save(box.layers, "f", to)
    with pytest.raises(ExtractionError, match="No such file"):
        save(box.layers, "f", box.out / "none/f")


def test_bytes_are_bounded_holes_included(box: Box) -> None:
    """A sparse file counts in full; a failure half-way through a folder leaves nothing."""
    box.run(
        "os.mkdir('n'); open('n/a', 'w').write('x' * 600)\nwith open('n/b', 'w') as f: f.truncate(1 << 40)"
    )
    with pytest.raises(ExtractionError, match="too large"):
        save(box.layers, "n/b", box.out / "b")
    with pytest.raises(ExtractionError, match="too large"):
        save(box.layers, "n", box.out / "n", max_bytes=1 << 30)
    assert names(box.out) == []
    assert save(box.layers, "n/a", box.out / "a", max_bytes=600).bytes == 600


def test_holes_stay_holes(box: Box) -> None:
    """Data between two holes arrives at its place; the host's disk does not pay for the holes."""
    box.run("with open('f', 'wb') as f: f.seek(32 << 20); f.write(b'data' * 5000); f.truncate(64 << 20)")
    save(box.layers, "f", box.out / "f")
    status = (box.out / "f").stat()
    assert status.st_size == 64 << 20
    assert status.st_blocks * 512 < 8 << 20
    content = (box.out / "f").read_bytes()
    assert content[32 << 20 : (32 << 20) + 20000] == b"data" * 5000
    assert content.count(0) == len(content) - 20000


def test_a_large_file_is_the_same_outside(box: Box) -> None:
    """More than one chunk, no holes."""
    box.run("open('f', 'wb').write(bytes(range(1, 256)) * 20000)")
    report = save(box.layers, "f", box.out / "f")
    assert report.bytes == 255 * 20000
    assert (box.out / "f").read_bytes() == bytes(range(1, 256)) * 20000


def test_a_leased_file_does_not_hold_us(box: Box) -> None:
    """A plain open would wait for the lease's holder, 45 seconds by default."""
    box.run(
        "import fcntl, signal; signal.signal(signal.SIGIO, signal.SIG_IGN); held = open('f', 'w');"
        "fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
        "private",
    )
    begin = time.monotonic()
    with pytest.raises(ExtractionError, match="lease"):
        save(box.layers, "/tmp/f", box.out / "f")
    assert time.monotonic() - begin < 5


def test_a_file_that_grows_and_shrinks(box: Box) -> None:
    """Whatever the container does meanwhile: an end, and a report that agrees with the file."""
    box.run(
        "file = open('f', 'wb', 0)\n"
        "def step():\n"
        " file.write(bytes(range(256)) * 1000)\n"
        " if file.tell() > 20 << 20: file.truncate(0); file.seek(0)\n" + BACKGROUND,
        "private",
    )
    for _ in range(30):
        report = save(box.layers, "/tmp/f", box.out / "f", max_bytes=1 << 26, overwrite=True)
        assert (box.out / "f").stat().st_size == report.bytes
    wait_for_child_thread(box)


def test_a_folder_swapped_for_a_link_leads_nowhere(box: Box) -> None:
    """The classic race: nothing from behind a link is ever listed or taken out.

    The folder's link stays on the container's tmpfs, the file's leads to the host.
    """
    (box.lower.parent / "host").write_text("secret")
    box.run("os.mkdir('outside'); open('outside/secret', 'w').close()", "")
    box.run(
        "os.makedirs('n/d'); open('n/d/f', 'w').close(); open('n/g', 'w').close()\n"
        "def swap(name, target):\n"
        " os.rename(name, name + '2'); os.symlink(target, name)\n"
        " os.unlink(name); os.rename(name + '2', name)\n"
        "def step():\n"
        " swap(top + '/n/d', '../../outside'); swap(top + '/n/g', PLACE + '/host')\n"
        "top = os.getcwd()\n" + BACKGROUND,
        "private",
    )
    seen: set[str] = set()
    end = time.monotonic() + DEADLINE
    while not {"link", "folder"} <= seen and time.monotonic() < end:
        report = save(box.layers, "/tmp/n", box.out / "n")
        found = {path.name: path for path in (box.out / "n").rglob("*")}
        assert "secret" not in found
        assert all(not path.read_bytes() for path in found.values() if path.is_file())
        seen |= {"link"} if any(why == "a link" for _, why in report.skipped) else set()
        seen |= {"folder"} if "f" in found else set()
        shutil.rmtree(box.out / "n")
        with pytest.raises(ExtractionError):
            save(box.layers, "/tmp/n/d/secret", box.out / "s")
        assert all("secret" not in change.path for change in box.list())
    wait_for_child_thread(box)
    assert seen == {"link", "folder"}, "the race was not run: the test tests nothing"


def test_a_descent_follows_no_link(tmp_path: Path) -> None:
    """What the race must not find, without the race."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "to-folder").symlink_to("folder")
    (tmp_path / "to-file").symlink_to("file")
    with Descent(str(tmp_path)) as descent:
        for name in ("to-folder", "file", "..", ".", "", "folder/.", "/etc"):
            with pytest.raises(OSError, match=rf"'{name}'"):
                descent.enter(name)
        for name in ("to-file", "folder"):
            with pytest.raises(OSError, match="not a regular file"):
                open_regular(name, descent.fd)
        os.close(open_regular("file", descent.fd))
        descent.enter("folder")
        assert descent.depth == 1


def test_a_descent_notices_a_folder_that_was_moved(tmp_path: Path) -> None:
    """A folder whose descriptor was closed on the way down is not another of the same name on the way up."""
    levels = ["d"] * 40
    tmp_path.joinpath(*levels).mkdir(parents=True)
    with Descent(str(tmp_path)) as descent:
        for name in levels:
            descent.enter(name)
        (tmp_path / "d/d").rename(tmp_path / "moved")
        tmp_path.joinpath(*levels).mkdir(parents=True)
        for _ in range(37):
            descent.leave()
        with pytest.raises(OSError, match="moved") as caught:
            _ = descent.fd
        assert caught.value.errno == errno.ESTALE
