"""Other root file systems for containers: folders, tars, files of ``docker save``, OCI layouts.

Files on this host only: nothing is fetched.  A folder is used where it is.  Of everything else the layers are
unpacked once, into a store that all images share; then a run needs no more than a look whether the file is
still the same.

What is read is hostile.  ``tar`` and ``archive`` read it with bounds, ``unpack`` writes it without following
a link, ``store`` keeps what is complete and has the right digest.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nsmagic import filesystem
from nsmagic.descent import shown
from nsmagic.errors import HostError, SpecError
from nsmagic.images import archive
from nsmagic.images.store import ImageRecord, Store, check_digest, folder_name, place
from nsmagic.images.streams import Hashed, Uncompressed, Window
from nsmagic.images.tar import ArchiveError
from nsmagic.images.unpack import Budget
from nsmagic.spec import MAX_UID, Image, parse_variable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsmagic.images.archive import Blob, Described, Files

    Progress = Callable[[str, int, int], None]
    """Called with what is being done, the bytes done and the bytes in all; 0 where nobody knows."""

MAX_ENTRIES: Final = 2_000_000
"""Files, folders and links of one image."""
WAITING: Final = "waiting for another process that unpacks an image"
_ROOTS: Final = ("bin", "usr", "sbin", "lib", "etc")
_USER: Final = re.compile(r"(\d{1,9})(?::\d{1,9})?")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_MARKS: Final = frozenset({errno.ENOTSUP, errno.EPERM, errno.EOPNOTSUPP})

_stores: dict[str, Store] = {}
_known: dict[tuple[str, str, str], ImageRecord] = {}


def current_store() -> Store:
    """The store of this user, as the environment names it now."""
    return _stores.setdefault(place(), Store())


def prepare(given: Mapping[str, Any], base: str, progress: Progress | None = None) -> tuple[Image, int]:
    """The image that options name, unpacked where it has to be, and the uid that its programs want to be.

    Args:
        given: options, ``rootfs`` or ``image`` among them.
        base: the folder that a relative path starts from.
        progress: told what is being done, if that takes time.

    Raises:
        SpecError: there is no such file, it is no image, or it holds what must not be.
        HostError: it cannot be kept here.
    """
    if "image" in given and "rootfs" in given:
        raise SpecError("--rootfs", "goes without --image: both name the root file system")
    option = "--image" if "image" in given else "--rootfs"
    text = str(given["image" if "image" in given else "rootfs"])
    source, chosen = _find(option, text, base)
    if option == "--rootfs" and Path(source).is_dir():
        return _folder(source), 0
    try:
        record = _ready(source, chosen) or _make(option, source, chosen, progress or _say_nothing)
    except ArchiveError as error:
        raise SpecError(option, f"{shown(text)}: {error}") from None
    except OSError as error:
        raise _failed(option, text, error) from error
    uid, notes = _user(record)
    return _image(record, () if "user" in given else notes), uid


def _say_nothing(what: str, done: int, total: int) -> None:
    """Nobody listens."""


def _find(option: str, text: str, base: str) -> tuple[str, str]:
    """A path as an absolute one without links, and which of the images in it is meant."""
    for name, chosen in ((text, ""), text.rpartition("#")[::2]):
        path = os.path.realpath(Path(base, Path(name).expanduser()))
        if name and os.path.lexists(path):
            if chosen and option == "--rootfs":
                break
            return path, chosen
    raise SpecError(option, f"there is no {shown(text)!r} on this host")


def _folder(path: str) -> Image:
    if filesystem.shows_home(path):
        raise SpecError("--rootfs", f"{path} is or holds your home folder, which would be shown inside")
    return Image(path, (path,))


def _failed(option: str, text: str, error: OSError) -> SpecError | HostError:
    where = current_store().path
    if error.errno in _FULL:
        remedy = "Free some of it, or set XDG_CACHE_HOME to a folder on another disk."
        return HostError(option, f"the disk of {where} is full", remedy)
    if error.errno in _NO_MARKS:
        remedy = "Set XDG_CACHE_HOME to a folder on a file system of the machine's own, such as ext4."
        return HostError(
            option,
            f"the file system of {where} takes no marks of what a layer hides ({error.strerror})",
            remedy,
        )
    return SpecError(option, f"{shown(text)} cannot be unpacked: {error.strerror}")


# ---- what is there already -----------------------------------------------------------


def _stamp(source: str) -> tuple[int, ...]:
    """By which a change is seen; an image layout's parts are named by their digests, all but its index."""
    index = Path(source, "index.json")
    status = (index if index.exists() else Path(source)).stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _ready(source: str, chosen: str) -> ImageRecord | None:
    """What was made of a file before, if the file is still the same and all of it is still there."""
    if not current_store().is_ours():
        return None
    key = (current_store().path, source, chosen)
    record = _known.get(key) or current_store().find(source, chosen)
    try:
        same = record is not None and record.stamp == _stamp(source)
    except OSError:
        same = False
    if record is None or not same or not all(map(current_store().hold, record.layers)):
        _known.pop(key, None)
        return None
    _known[key] = record
    return record


def forget_known() -> None:
    """Look at the store again, the next time."""
    _known.clear()


# ---- what is to be made ----------------------------------------------------------------


def _make(option: str, source: str, chosen: str, progress: Progress) -> ImageRecord:
    """Unpack what is not there yet, and write down what it is."""
    name = shown(os.path.basename(source))  # noqa: PTH119 - as text
    with current_store().changing(lambda: progress(WAITING, 0, 0)):
        record = _ready(source, chosen)
        if record is not None:
            return record
        total = 0 if os.path.isdir(source) else Path(source).stat().st_size  # noqa: PTH112 - as text
        seen = 0

        def passed(count: int) -> None:
            nonlocal seen
            seen += count
            progress(f"unpacking {name}", seen, total)

        stamp = _stamp(source)
        if option == "--rootfs":
            record = _from_tar(source, stamp, passed)
        else:
            with archive.opened(source, current_store().path, passed) as files:
                described = archive.describe(files, chosen)
                record = _from_image(
                    source, chosen, stamp, described, _layers(files, described.layers, passed)
                )
        if _stamp(source) != stamp:
            raise ArchiveError("it was changed while it was read")
        record = current_store().add_image(record)
        current_store().collect()
        _known[current_store().path, source, chosen] = record
        return record


def _from_tar(source: str, stamp: tuple[int, ...], passed: Callable[[int], None]) -> ImageRecord:
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError("it is neither a file nor a folder")
        window = Window(descriptor, 0, status.st_size)
        plain = Uncompressed(Hashed(window, passed), None, archive.MAX_BYTES)
        layer = current_store().add_layer(plain, Budget(archive.MAX_BYTES, MAX_ENTRIES), layer=False)
    finally:
        os.close(descriptor)
    tree = Path(current_store().tree(layer))
    image = any((tree / name).is_file() for name in ("manifest.json", "oci-layout"))
    if image and not any(os.path.lexists(tree / name) for name in _ROOTS):
        current_store().collect()
        raise ArchiveError("it is an image, and goes by --image")
    current_store().hold(layer)
    return ImageRecord(_stem(source), source, "", stamp, (layer,))


def _layers(files: Files, blobs: Sequence[Blob], passed: Callable[[int], None]) -> list[str]:
    """The store's names of an image's layers, the lowest first."""
    budget = Budget(archive.MAX_BYTES, MAX_ENTRIES)
    names = []
    for blob in blobs:
        name = folder_name(blob.diff_id)
        if not current_store().hold(name):
            name = _unpack(files, blob, budget, passed)
            current_store().hold(name)
        names.append(name)
    return names


def _unpack(files: Files, blob: Blob, budget: Budget, passed: Callable[[int], None]) -> str:
    with files.open(blob.place) as window:
        raw = Hashed(window, passed)
        plain = Uncompressed(raw, blob.compression, archive.MAX_BYTES)

        def finish() -> None:
            raw.drain()
            check_digest(raw, blob.digest)

        return current_store().add_layer(plain, budget, blob.diff_id, layer=True, finish=finish)


def _from_image(
    source: str, chosen: str, stamp: tuple[int, ...], described: Described, layers: Sequence[str]
) -> ImageRecord:
    stack: list[str] = []
    for layer in reversed(layers):
        # A layer that comes twice adds nothing where it comes first, and overlayfs takes no folder twice.
        if layer not in stack:
            stack.append(layer)
        record = current_store().layer(layer)
        if record is not None and record.opaque:
            break
    config = described.config
    workdir = os.path.normpath(f"/{config.working_dir}").replace("//", "/")
    command = (*(config.entrypoint or ()), *(config.cmd or ()))
    for text in (workdir, *command):
        if "\0" in text:
            raise ArchiveError("its configuration holds a zero byte")
    return ImageRecord(
        name=shown(described.name) or _stem(source),
        source=source,
        chosen=chosen,
        stamp=stamp,
        layers=tuple(stack),
        user=config.user,
        env=tuple(config.env or ()),
        workdir="" if workdir == "/" else workdir,
        command=command,
    )


def _stem(source: str) -> str:
    """A file's name without what says that it is an archive."""
    name = os.path.basename(source)  # noqa: PTH119 - as text
    return shown(re.sub(r"(\.tar)?(\.(gz|xz|bz2|zst)|\.tgz|\.tar)?$", "", name) or name)


# ---- how it wants to be run --------------------------------------------------------------


def _image(record: ImageRecord, notes: Sequence[str]) -> Image:
    variables: dict[str, str] = {}
    for text in record.env:
        try:
            variables |= [parse_variable("env", text)]
        except SpecError:  # no name that a program could ask for
            continue
    return Image(
        name=record.name,
        layers=tuple(map(current_store().tree, record.layers)),
        env=tuple(variables.items()),
        workdir=record.workdir,
        command=record.command,
        notes=tuple(notes),
    )


def _user(record: ImageRecord) -> tuple[int, tuple[str, ...]]:
    """The uid that an image wants, and what is not done of its wish."""
    if record.user in {"", "root"}:
        return 0, ()
    match = _USER.fullmatch(record.user)
    if match and int(match[1]) <= MAX_UID:
        return int(match[1]), ()
    wish = f"{record.name} wants to run as {shown(record.user)!r}"
    return 0, (f"{wish}; only numbers are taken, so it runs as root inside; -u names another",)
