"""Writing what a tar archive holds into a new folder, and nothing anywhere else.

The archive is hostile.  The guarantee is the way of writing: every name is used with the descriptor of the
folder that it lies in, one at a time, and the kernel is told to follow no link; so no path leads out,
whatever links the archive has made before.  ``..`` is refused, what has the name of another entry takes its
place.

Kept are files, folders, links, hard links within the archive, modes and times.  All is the caller's: owners
are not kept, nor set-uid and set-gid bits, attributes, devices and FIFOs.  The owner may always read and
write: no container's user has the rights by which root gets around a mode.

See open(2) for ``O_NOFOLLOW``, the layer's format in the OCI image specification for whiteouts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nsmagic.descent import is_opaque, is_whiteout, lstat, remove_tree, shown
from nsmagic.images.streams import Disk
from nsmagic.images.tar import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsmagic.images.tar import Member, TarReader

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
_MAX_DEPTH: Final = 128
"""Levels of folders; each takes a descriptor while its members are written."""
_NOTHING: Final = bytes(1 << 20)
_FOLDER_FLAGS: Final = (
    os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
)
_XATTR_WHITEOUTS: Final = (6, 7)


@dataclass
class Budget:
    """What may still be unpacked, for all layers of an image together.

    Attributes:
        bytes: in files, holes included.
        entries: of any kind.
    """

    bytes: int
    entries: int

    def count(self) -> None:
        """One more entry.

        Raises:
            ArchiveError: there are too many.
        """
        self.entries -= 1
        if self.entries < 0:
            raise ArchiveError("it has more files than an image may have")

    def take(self, size: int) -> None:
        """A file of so many bytes.

        Raises:
            ArchiveError: that is too much.
        """
        self.bytes -= size
        if self.bytes < 0:
            raise ArchiveError("it unpacks to more than an image may have")


@dataclass
class Unpacked:
    """What was written.

    Attributes:
        bytes: in files, holes included.
        entries: of any kind.
        opaque: nothing of the layers below is to be seen.
        left_out: how many of what was not written: ``device``, ``FIFO``, ``set-uid bit``.
    """

    bytes: int = 0
    entries: int = 0
    opaque: bool = False
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, what: str) -> None:
        """One more of these."""
        self.left_out[what] = self.left_out.get(what, 0) + 1


class Unpacker:
    """Writes members into a folder.

    Args:
        folder: a descriptor of a new folder that is nobody else's; the caller's to close.
        budget: what may be written.
        layer: whether names are those of an image's layer, where ``.wh.`` hides what lies below.
        owner: the uid and gid that all of it is to belong to; None for the caller's.
    """

    def __init__(self, folder: int, budget: Budget, *, layer: bool, owner: int | None = None) -> None:
        self.done = Unpacked()
        self._owner = owner
        self._budget = budget
        self._layer = layer
        self._names: list[bytes] = []  # of the folders that are open
        self._folders = [folder]
        self._disk = Disk(folder)
        self._give(folder)

    def unpack(self, archive: TarReader) -> Unpacked:
        """Write all members.

        Raises:
            ArchiveError: a member is not taken; its name is in the text.
            OSError: the file system does not take it.
        """
        try:
            for member in archive:
                self._budget.count()
                self.done.entries += 1
                try:
                    self._put(member, archive)
                except ArchiveError as error:
                    name = shown(os.fsdecode(member.name))
                    raise ArchiveError(f"{error} (in {name})") from None
                except OSError as error:
                    if error.errno not in _OF_THE_NAME:
                        raise
                    name = shown(os.fsdecode(member.name))
                    raise ArchiveError(f"{name} cannot be written: {error.strerror}") from None
        finally:
            self._close_to(0)
        return self.done

    # ---- the way to a folder ---------------------------------------------------

    def _close_to(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._folders.pop())

    def _enter(self, parts: list[bytes]) -> int:
        """A descriptor of a folder, made if it is missing; those on the way to it stay open for the next."""
        same = 0
        while same < min(len(parts), len(self._names)) and parts[same] == self._names[same]:
            same += 1
        self._close_to(same)
        for name in parts[same:]:
            here = self._folders[-1]
            status = lstat_bytes(name, here)
            if status is None or self._is_whiteout(status, name, here):
                self._make_folder(name, status)
            self._folders.append(_open_folder(name, here))
            self._names.append(name)
        return self._folders[-1]

    def _find(self, parts: list[bytes]) -> tuple[int, bytes]:
        """The folder of what is there already, and its name; nothing is made."""
        folder = os.dup(self._folders[0])
        try:
            for name in parts[:-1]:
                deeper = _open_folder(name, folder)
                os.close(folder)
                folder = deeper
        except BaseException:
            os.close(folder)
            raise
        return folder, parts[-1]

    # ---- members ---------------------------------------------------------------

    def _put(self, member: Member, archive: TarReader) -> None:
        parts = split(member.name)
        if self._layer and parts and parts[-1].startswith(_WHITEOUT):
            self._put_whiteout(parts)
        elif member.kind in {"device", "FIFO"}:
            self.done.leave_out(member.kind)
        elif member.kind == "folder":
            self._put_folder(parts, member)
        elif not parts:
            raise ArchiveError("its root is no folder")
        else:
            here, name = self._enter(parts[:-1]), parts[-1]
            if member.kind == "hard link":
                self._put_hard_link(here, name, split(member.target), parts)
                return
            self._clear(here, name)
            if member.kind == "link":
                if not member.target:
                    raise ArchiveError("a link to nowhere")
                os.symlink(member.target, name, dir_fd=here)
                if self._owner is not None:
                    os.chown(name, self._owner, self._owner, dir_fd=here, follow_symlinks=False)
            else:
                self._put_file(here, name, member, archive)

    def _put_folder(self, parts: list[bytes], member: Member) -> None:
        if parts:
            here, name = self._enter(parts[:-1]), parts[-1]
            status = lstat_bytes(name, here)
            if status is not None and not stat.S_ISDIR(status.st_mode):
                if not self._is_whiteout(status, name, here):
                    self._clear(here, name)
                    status = None
                self._make_folder(name, status)
        os.fchmod(self._enter(parts), self._mode(member) | 0o700)

    def _make_folder(self, name: bytes, whiteout: os.stat_result | None) -> None:
        """A new folder; where a whiteout stood, it hides the one below."""
        here = self._folders[-1]
        if whiteout is not None:
            self._clear(here, name)
        os.mkdir(name, 0o700, dir_fd=here)
        folder = _open_folder(name, here)
        try:
            self._give(folder)
            os.fchmod(folder, 0o755)
            if whiteout is not None:
                self._make_opaque(folder)
        finally:
            os.close(folder)

    def _put_file(self, here: int, name: bytes, member: Member, archive: TarReader) -> None:
        self._budget.take(member.size)
        self.done.bytes += member.size
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=here)
        try:
            for piece in archive.content():
                self._disk.will_take(len(piece))
                if piece == _NOTHING[: len(piece)]:
                    os.lseek(file, len(piece), os.SEEK_CUR)  # zeros become a hole
                else:
                    _write(file, piece)
            os.ftruncate(file, member.size)
            self._give(file)
            os.fchmod(file, self._mode(member) & 0o777 | 0o600)
            time = int(member.mtime * 1e9)
            os.utime(file, ns=(time, time))
        finally:
            os.close(file)

    def _put_hard_link(self, here: int, name: bytes, target: list[bytes], parts: list[bytes]) -> None:
        if not target:
            raise ArchiveError("a hard link to nothing")
        if target == parts:
            return
        folder, old = self._find(target)
        try:
            status = lstat_bytes(old, folder)
            if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
                raise ArchiveError("a hard link to what is no file of the same archive")
            self._clear(here, name)
            os.link(old, name, src_dir_fd=folder, dst_dir_fd=here, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError("a hard link to a file that its own name has replaced") from None
        finally:
            os.close(folder)

    def _give(self, descriptor: int) -> None:
        if self._owner is not None:
            os.fchown(descriptor, self._owner, self._owner)

    def _mode(self, member: Member) -> int:
        if member.mode & (stat.S_ISUID | stat.S_ISGID) and member.kind == "file":
            self.done.leave_out("set-uid bit")
        return member.mode & 0o1777

    def _clear(self, here: int, name: bytes) -> None:
        """Nothing is at a name any more."""
        status = lstat_bytes(name, here)
        if status is None:
            return
        if stat.S_ISDIR(status.st_mode):
            remove_tree(here, os.fsdecode(name))
        else:
            os.unlink(name, dir_fd=here)

    # ---- what hides the layers below ---------------------------------------------

    def _put_whiteout(self, parts: list[bytes]) -> None:
        here = self._enter(parts[:-1])
        if parts[-1] == _OPAQUE:
            if len(parts) == 1:
                self.done.opaque = True  # overlayfs looks for no mark there
            else:
                self._make_opaque(here)
            return
        if parts[-1].startswith(_AUFS) or is_opaque(here):
            return  # AUFS's own notes; or all is hidden already
        name = parts[-1].removeprefix(_WHITEOUT)
        if name in {b"", b".", b".."}:
            raise ArchiveError("a whiteout of nothing")
        status = lstat_bytes(name, here)
        if status is None:
            make_whiteout(here, name)
            if self._owner is not None:
                os.chown(name, self._owner, self._owner, dir_fd=here, follow_symlinks=False)
        elif stat.S_ISDIR(status.st_mode):
            # The layer has a folder of that name too: it hides the one below.
            folder = _open_folder(name, here)
            try:
                self._make_opaque(folder)
            finally:
                os.close(folder)

    def _make_opaque(self, folder: int) -> None:
        """All of the layers below is hidden, so no name in it need be."""
        mark(folder, "opaque", b"y")
        for name in os.listdir(folder):
            status = lstat(name, folder)
            if status is not None and is_whiteout(status, name, folder):
                os.unlink(name, dir_fd=folder)

    def _is_whiteout(self, status: os.stat_result, name: bytes, here: int) -> bool:
        return self._layer and is_whiteout(status, os.fsdecode(name), here)


_OF_THE_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EMLINK, errno.EEXIST})
"""What a file system answers that does not take this very name; all else is told as it is."""


def split(path: bytes) -> list[bytes]:
    """A path's names from the root of the archive; a leading ``/`` says no more than that.

    Raises:
        ArchiveError: it goes up, or is too deep.
    """
    parts = [part for part in path.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise ArchiveError("a path that goes up by '..'")
    if len(parts) > _MAX_DEPTH:
        raise ArchiveError(f"more than {_MAX_DEPTH} levels of folders")
    return parts


def lstat_bytes(name: bytes, folder: int) -> os.stat_result | None:
    """What `name` is, without following a link; None if it is not there."""
    return lstat(os.fsdecode(name), folder)


def _open_folder(name: bytes, here: int) -> int:
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=here)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise ArchiveError("a path through what is no folder, but maybe a link") from None
        if error.errno == errno.ENOENT:
            raise ArchiveError("a hard link to what is no file of the same archive") from None
        raise


def _write(file: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(file, left) :]


def mark(folder: int, what: str, value: bytes) -> None:
    """One of overlayfs's marks; see "userxattr" there."""
    os.setxattr(folder, f"user.overlay.{what}", value)


def make_whiteout(here: int, name: bytes) -> None:
    """A character device 0/0, which any user may make; where the file system takes none, the other form.

    An overlay takes none, as in a container of Docker's.
    """
    try:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=here)
    except PermissionError:
        if tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) < _XATTR_WHITEOUTS:
            raise
    else:
        return
    file = os.open(
        name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=here
    )
    try:
        mark(file, "whiteout", b"")
    finally:
        os.close(file)
    if not is_opaque(here):
        mark(here, "opaque", b"x")  # "look for such whiteouts in here"


@contextlib.contextmanager
def new_folder(name: str, around: int) -> Iterator[int]:
    """Make a folder and give a descriptor of it."""
    os.mkdir(name, 0o755, dir_fd=around)
    folder = os.open(name, _FOLDER_FLAGS, dir_fd=around)
    try:
        os.fchmod(folder, 0o755)
        yield folder
    finally:
        os.close(folder)
