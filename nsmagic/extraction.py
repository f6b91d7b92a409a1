"""Taking files out of a container's copy-on-write folders, safely.

What a container wrote is copied to a host path: regular files and folders only, owned by the caller, with
plain modes, complete or not at all. What is read is hostile and may change meanwhile; it is reached through
:class:`nsmagic.descent.Descent`, never by a path that the kernel would resolve through a link. What is
written to is the caller's: the destination's folder is resolved as usual, the destination itself never
followed.

It must not know how containers are built, nor what the files mean.

See open(2), lseek(2) for holes, linkat(2) for making a name appear without replacing another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsmagic.below import Below
from nsmagic.descent import (
    Descent,
    is_opaque,
    is_whiteout,
    lstat,
    open_regular,
    remove_tree,
    self_fd,
    shown,
    traverse,
)
from nsmagic.errors import ExtractionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsmagic.changes import Layer

_CHUNK = 1 << 20  # bytes
_PAGE = 4096  # bytes
_MAX_DEPTH = 512  # levels of a saved folder
_MAX_SKIPPED = 100  # a path has up to 130 kB
_NAMES = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class SaveReport:
    """What was saved.

    Attributes:
        files: how many regular files.
        bytes: their sizes added up, holes included.
        skipped: path in the container and reason for what stayed behind; the first 100.
        unlisted: how many more stayed behind.
    """

    files: int
    bytes: int
    skipped: tuple[tuple[str, str], ...]
    unlisted: int = 0


@dataclass
class _Saving:
    """What one save has done so far, and how much it may do."""

    max_bytes: int
    max_files: int
    files: int = 0
    bytes: int = 0
    entries: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unlisted: int = 0

    def count(self, path: str) -> None:
        """Count an entry of any kind: a million FIFOs take as long as a million files."""
        self.entries += 1
        if self.entries > self.max_files:
            raise ExtractionError(f"{shown(path)}: more than {self.max_files} files and folders")

    def take(self, path: str, size: int) -> None:
        if self.bytes + size > self.max_bytes:
            raise ExtractionError(f"{shown(path)}: too large: more than {self.max_bytes} bytes in all")

    def skip(self, path: str, why: str) -> None:
        if len(self.skipped) < _MAX_SKIPPED:
            self.skipped.append((path, why))
        else:
            self.unlisted += 1


def save(
    layers: Sequence[Layer],
    path: str,
    to: str | os.PathLike[str],
    *,
    max_bytes: int = 1 << 30,
    max_files: int = 100_000,
    overwrite: bool = False,
) -> SaveReport:
    """Copy a file or folder that the container wrote to the host.

    Of a folder only what lies in the copy-on-write layer comes along: what was added, modified or merely
    touched. Links, FIFOs, sockets and devices stay behind and are named in the report. Modes lose
    setuid, setgid, sticky and the write bits of others, then pass the caller's umask; folders are at least
    ``u+rwx``, files ``u+r``. Holes in files stay holes. A failure leaves nothing at the destination.

    Args:
        layers: the container's copy-on-write folders; the container may be running or dead.
        path: absolute as in the container, or relative to the first layer's target.
        to: the name to give it on the host; the folder around it must exist.
        max_bytes: bytes in all files, holes included.
        max_files: entries of any kind that are looked at.
        overwrite: replace a regular file, if a file is saved; never a folder, never a link.

    Raises:
        ExtractionError: nothing was saved; the text says why, in one line.
        OSError: a descriptor in `layers` is not open.
    """
    layer, parts = _place(layers, path)
    os.fstat(layer.upper_fd)
    saving = _Saving(max_bytes, max_files)
    destination = _Destination.of(to, overwrite=overwrite)
    try:
        with _reach(layer, parts) as (source, status):
            if stat.S_ISDIR(status.st_mode):
                _save_folder(layer, source, path, destination, saving)
            else:
                _save_file(source, parts[-1], path, destination, saving)
    except OSError as error:
        raise ExtractionError(f"{shown(path)} cannot be saved to {destination}: {error.strerror}") from error
    finally:
        os.close(destination.folder)
    return SaveReport(saving.files, saving.bytes, tuple(saving.skipped), saving.unlisted)


@dataclass
class _Destination:
    """A name in a folder of the host; the descriptor is the owner's to close."""

    folder: int
    name: str
    text: str
    overwrite: bool

    @classmethod
    def of(cls, to: str | os.PathLike[str], *, overwrite: bool) -> _Destination:
        text = shown(os.fspath(to))
        around, name = os.path.split(os.fspath(to).rstrip("/"))
        if name in {"", ".", ".."} or "\0" in around + name:
            raise ExtractionError(f"{text}: give the name to save as")
        try:
            return cls(os.open(around or ".", os.O_RDONLY | os.O_DIRECTORY), name, text, overwrite)
        except OSError as error:
            raise ExtractionError(f"{text}: cannot save there: {error.strerror}") from error

    def __str__(self) -> str:
        return self.text

    def check(self, *, file: bool) -> None:
        """Refuse what is there already, unless a file replaces a file on demand."""
        status = lstat(self.name, self.folder)
        if status is None:
            return
        if stat.S_ISLNK(status.st_mode):
            raise ExtractionError(f"{self} is a link; it is neither followed nor replaced")
        if not (file and stat.S_ISREG(status.st_mode)):
            raise ExtractionError(f"{self} is there already; only a file can replace a file")
        if not self.overwrite:
            raise ExtractionError(f"{self} is there already; pass overwrite=True to replace it")

    def publish(self, stage: str, *, file: bool) -> None:
        """Give what was staged its name."""
        self.check(file=file)
        if file and not self.overwrite:
            try:
                # Unlike a rename, a link never replaces what came into being meanwhile.
                os.link(
                    stage, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder, follow_symlinks=False
                )
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
            else:
                return
        os.rename(stage, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)


def _place(layers: Sequence[Layer], path: str) -> tuple[Layer, list[str]]:
    """Find the layer that `path` lies in, and the names from its top down."""
    if not layers:
        raise ExtractionError(f"{shown(path)}: the container had no copy-on-write folder")
    given = path.split("/")
    if ".." in given or "\0" in path:
        raise ExtractionError(f'{shown(path)}: ".." and NUL have no place in a path of a container')
    whole = given if path.startswith("/") else layers[0].target.split("/") + given
    parts = [part for part in whole if part not in {"", "."}]
    best: tuple[Layer, list[str]] | None = None
    for layer in layers:
        target = [part for part in layer.target.split("/") if part]
        if parts[: len(target)] == target and (best is None or len(parts) - len(target) < len(best[1])):
            best = layer, parts[len(target) :]
    if best is None:
        raise ExtractionError(f"{shown(path)} is not in a folder that the container could write to")
    if len(best[1]) > _MAX_DEPTH:
        raise ExtractionError(f"{shown(path)}: more than {_MAX_DEPTH} levels of folders")
    return best


@contextlib.contextmanager
def _reach(layer: Layer, parts: Sequence[str]) -> Iterator[tuple[Descent, os.stat_result]]:
    """Go down to a file's folder, or into a folder; give the descent and what is there."""
    path = "/".join((layer.target.rstrip("/"), *parts)) or "/"
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(Descent(self_fd(layer.upper_fd), widen=True))
            below = None
            if layer.lower is not None:
                with contextlib.suppress(OSError):
                    below = stack.enter_context(Below(layer.lowers))
            status = _go_down(layer, parts, source, below)
        except OSError as error:
            raise ExtractionError(f"{shown(path)} cannot be reached: {error.strerror}") from error
        yield source, status


def _go_down(layer: Layer, parts: Sequence[str], source: Descent, below: Below | None) -> os.stat_result:
    path = layer.target.rstrip("/")
    hidden = False
    status = os.fstat(source.fd)
    for index, name in enumerate(parts):
        path += f"/{name}"
        found = lstat(name, source.fd)
        if found is None or (layer.lower is not None and is_whiteout(found, name, source.fd)):
            raise _absent(layer, parts, index, below, deleted=hidden or found is not None)
        kind = _unfit(found, source.device)
        if kind is not None:
            raise ExtractionError(f"{shown(path)} is {kind}; only files and folders are taken out")
        status = found
        if stat.S_ISDIR(found.st_mode):
            source.enter(name)
            hidden = hidden or (layer.lower is not None and is_opaque(source.fd))
            try:
                if below is not None:
                    below.enter(name)
            except OSError:
                below = None
        elif index < len(parts) - 1:
            raise ExtractionError(f"{shown(path)} is a file, not a folder")
    return status


def _absent(
    layer: Layer, parts: Sequence[str], index: int, below: Below | None, *, deleted: bool
) -> ExtractionError:
    """Say why the layer holds nothing at `parts`, of which it has the first `index`."""
    top = layer.target.rstrip("/")
    here = shown("/".join((top, *parts[: index + 1])))
    whole = shown("/".join((top, *parts)))
    old = None if below is None else below.look(parts[index])
    if below is None or old is None:
        return ExtractionError(f"{here} is not there")
    if deleted:
        return ExtractionError(f"{here} was deleted by the container")
    if _is_there(below, parts[index:]):
        one = layer.lowers[0] if len(layer.lowers) == 1 else ""
        still = f"still at {shown('/'.join((one, *parts)))}" if one else "as it is in the image"
        return ExtractionError(f"{whole} was not changed by the container; it is {still}")
    if stat.S_ISLNK(old.status.st_mode):
        return ExtractionError(f"{here} is a link; only files and folders are taken out")
    return ExtractionError(f"{whole} is not there")


def _is_there(below: Below, names: Sequence[str]) -> bool:
    """Tell whether a path exists in what lies below, without following links."""
    try:
        for name in names[:-1]:
            below.enter(name)
    except OSError:
        return False
    return below.look(names[-1]) is not None


def _unfit(status: os.stat_result, device: int) -> str | None:
    """Name what is neither a file nor a folder of the layer."""
    if status.st_dev != device:
        return "mounted from elsewhere"
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        return None
    return _NAMES.get(stat.S_IFMT(status.st_mode), "a device")


def _save_file(source: Descent, name: str, path: str, destination: _Destination, saving: _Saving) -> None:
    destination.check(file=True)
    try:
        file = open_regular(name, source.fd)
    except OSError as error:
        raise ExtractionError(f"{shown(path)} cannot be opened: {_why(error)}") from error
    stage = _stage_name()
    try:
        _copy(file, destination.folder, stage, saving, path)
        destination.publish(stage, file=True)
    finally:
        os.close(file)
        with contextlib.suppress(OSError):
            os.unlink(stage, dir_fd=destination.folder)


def _stage_name() -> str:
    return f".nsmagic-{secrets.token_hex(8)}"


def _why(error: OSError) -> str:
    forbidden = "its mode forbids reading"
    lease = "the container holds a lease on it"
    known = {errno.EAGAIN: lease, errno.EACCES: forbidden, errno.EPERM: forbidden}
    return known.get(error.errno or 0, error.strerror or "unknown")


def _copy(file: int, folder: int, name: str, saving: _Saving, path: str) -> None:
    """Copy an open regular file, up to the size it has now, to a new name."""
    status = os.fstat(file)
    saving.take(path, status.st_size)
    mode = stat.S_IMODE(status.st_mode) & 0o755 | 0o400
    new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=folder)
    try:
        saving.bytes += _copy_data(file, new, status.st_size)
    finally:
        os.close(new)
    saving.files += 1


def _copy_data(file: int, new: int, size: int) -> int:
    """Copy up to `size` bytes, keeping holes; return how many there were: the container may cut the file."""
    position = 0
    while position < size:
        try:
            position = os.lseek(file, position, os.SEEK_DATA)
            hole = os.lseek(file, position, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole is left, or nothing at all
        # A page at least: a container that digs holes under us must not hold us here.
        end = min(max(hole, position + _PAGE), size)
        while position < end:
            chunk = memoryview(os.pread(file, min(end - position, _CHUNK), position))
            if not chunk:
                size = position
                break
            while chunk:
                written = os.pwrite(new, chunk, position)
                position += written
                chunk = chunk[written:]
    size = min(size, os.fstat(file).st_size)
    os.ftruncate(new, size)
    return size


class _FolderCopy:
    """Copies the folder that `source` stands in into the one that `target` stands in."""

    def __init__(self, layer: Layer, source: Descent, target: Descent, saving: _Saving, path: str) -> None:
        self._overlay = layer.lower is not None
        self._source = source
        self._target = target
        self._saving = saving
        self._paths = [path]

    def run(self) -> None:
        traverse(self._files(), self._enter, self._leave)

    def _files(self) -> list[str]:
        """Copy the files of one folder; return the names of the folders in it."""
        folders = []
        with os.scandir(self._source.fd) as entries:
            for entry in entries:
                path = f"{self._paths[-1]}/{entry.name}"
                self._saving.count(path)
                status = lstat(entry.name, self._source.fd)
                if status is None:
                    self._saving.skip(path, "gone meanwhile")
                elif self._overlay and is_whiteout(status, entry.name, self._source.fd):
                    continue
                elif stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                else:
                    self._file(entry.name, path, _unfit(status, self._source.device))
        return folders

    def _file(self, name: str, path: str, unfit: str | None) -> None:
        if unfit is not None:
            return self._saving.skip(path, unfit)
        try:
            file = open_regular(name, self._source.fd)
        except OSError as error:
            return self._saving.skip(path, _why(error))
        try:
            _copy(file, self._target.fd, name, self._saving, path)
        except FileExistsError:
            self._saving.skip(path, "the destination takes it for the same name as another")
        finally:
            os.close(file)
        return None

    def _enter(self, name: str) -> list[str] | None:
        path = f"{self._paths[-1]}/{name}"
        if len(self._paths) > _MAX_DEPTH:
            self._saving.skip(path, f"more than {_MAX_DEPTH} levels of folders")
            return None
        try:
            self._source.enter(name)
        except OSError as error:
            self._saving.skip(path, _why(error))
            return None
        try:
            os.mkdir(name, _folder_mode(self._source), dir_fd=self._target.fd)
        except FileExistsError:
            self._saving.skip(path, "the destination takes it for the same name as another")
            self._source.leave()
            return None
        self._target.enter(name)
        self._paths.append(path)
        return self._files()

    def _leave(self) -> None:
        self._source.leave()
        self._target.leave()
        self._paths.pop()


def _folder_mode(source: Descent) -> int:
    mode = source.widened if source.widened is not None else os.fstat(source.fd).st_mode
    return mode & 0o755 | 0o700


def _save_folder(
    layer: Layer, source: Descent, path: str, destination: _Destination, saving: _Saving
) -> None:
    destination.check(file=False)
    stage = _stage_name()
    os.mkdir(stage, _folder_mode(source), dir_fd=destination.folder)
    try:
        with Descent(f"{self_fd(destination.folder)}/{stage}") as target:
            _FolderCopy(layer, source, target, saving, path).run()
        destination.publish(stage, file=False)
    except BaseException:
        remove_tree(destination.folder, stage)
        raise
