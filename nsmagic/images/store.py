"""Where unpacked layers are kept: each once, named by its digest, for all images that have it.

    $XDG_CACHE_HOME/nsmagic/        ~/.cache/nsmagic where that is not set
        lock                        held by whoever changes anything
        images/NAME.json            what an image is made of, and which file it came from
        layers/sha256-…/tree/       a layer, complete
        layers/sha256-…/layer.json  what was written there
        layers/.new-…               a layer on its way; without the lock's holder it is rubbish

A layer comes into being by a rename, so it is there as a whole or not at all.  Whoever uses one keeps a lock
on its folder, and nobody removes what is in use.  All of it is the user's own and closed to others.

See flock(2), rename(2), the XDG base directory specification.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import secrets
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nsmagic.descent import lstat, remove_tree
from nsmagic.errors import HostError
from nsmagic.images.streams import Hashed
from nsmagic.images.tar import ArchiveError, TarReader
from nsmagic.images.unpack import Unpacker, new_folder
from nsmagic.plan import layers_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

    from nsmagic.images.tar import Source
    from nsmagic.images.unpack import Budget

_NEW: Final = ".new-"
_OLD: Final = ".old-"
_MAX_RECORD: Final = 4 << 20
_TREE: Final = "tree"


class LayerRecord(msgspec.Struct, frozen=True):
    """What was written into a layer.

    Attributes:
        bytes: in files, holes included.
        entries: files, folders and links.
        opaque: nothing of the layers below it is to be seen.
        left_out: how many of what was not written, by what it was.
    """

    bytes: int
    entries: int
    opaque: bool
    left_out: dict[str, int]


class ImageRecord(msgspec.Struct, frozen=True):
    """An image, unpacked.

    Attributes:
        name: as people call it; no two have the same.
        source: the file's or folder's absolute path.
        chosen: which of the images in it, where it has several.
        stamp: of the file, by which a change of it is seen.
        layers: folders of the store, the topmost first.
        user: what the image says about its user.
        env: variables, each as KEY=VALUE.
        workdir: where it starts.
        command: what it runs.
        made: seconds since the epoch.
    """

    name: str
    source: str
    chosen: str
    stamp: tuple[int, ...]
    layers: tuple[str, ...]
    user: str = ""
    env: tuple[str, ...] = ()
    workdir: str = ""
    command: tuple[str, ...] = ()
    made: float = 0.0


def place() -> str:
    """The store's folder, which may not be there yet."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = cache if cache.startswith("/") else os.path.expanduser("~/.cache")  # noqa: PTH111 - no home is no error yet
    return os.path.join(base, "nsmagic")  # noqa: PTH118 - likewise


class Store:
    """The store of this user.

    Raises:
        HostError: from every method that opens it: the folder cannot be made, or is open to others.
    """

    def __init__(self) -> None:
        self.path = place()
        self._held: dict[str, int] = {}
        self._lock = threading.RLock()

    # ---- the folder itself -------------------------------------------------------

    def make(self) -> None:
        """Make the folders, for this user alone."""
        if not self.path.startswith("/"):
            raise self._unusable("you have no home folder")
        try:
            Path(self.path).mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.is_ours():
                raise self._unusable("others may write there, or it is another user's")
            for folder in ("images", "layers"):
                Path(self.path, folder).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror or "unknown") from error

    def is_ours(self) -> bool:
        """Whether it is there, this user's own, and nobody else may write to it."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _unusable(self, why: str) -> HostError:
        remedy = "Set XDG_CACHE_HOME to a folder of your own."
        return HostError("--image", f"layers cannot be kept in {self.path}: {why}", remedy)

    @contextlib.contextmanager
    def changing(self, waits: Callable[[], None]) -> Iterator[None]:
        """Hold the store's lock, and clear away what was left half-done.

        Args:
            waits: called where another process holds it.
        """
        self.make()
        try:
            lock = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(error.strerror or "unknown") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._sweep()
            yield
        finally:
            os.close(lock)

    def _sweep(self) -> None:
        with _folder(f"{self.path}/layers") as layers:
            for name in os.listdir(layers):  # noqa: PTH208 - a descriptor
                if name.startswith((_NEW, _OLD)):
                    remove_tree(layers, name)
        for path in Path(self.path, "images").glob(f"{_NEW}*"):
            path.unlink(missing_ok=True)

    # ---- layers --------------------------------------------------------------------

    def tree(self, layer: str) -> str:
        """The path of a layer's files."""
        return f"{self.path}/layers/{layer}/{_TREE}"

    def layer(self, layer: str) -> LayerRecord | None:
        """What was written into a layer; None where it is not there."""
        return _read(f"{self.path}/layers/{layer}/layer.json", LayerRecord)

    def layers(self) -> list[str]:
        """All layers that are complete."""
        with contextlib.suppress(FileNotFoundError):
            folders = Path(self.path, "layers").iterdir()
            return sorted(folder.name for folder in folders if not folder.name.startswith("."))
        return []

    def hold(self, layer: str) -> bool:
        """Use a layer from now on, so that nobody removes it; False where it is not there."""
        with self._lock:
            return self._hold(layer, f"{self.path}/layers/{layer}")

    def _hold(self, layer: str, path: str) -> bool:
        if layer in self._held and _is_still(path, self._held[layer]):
            return True
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            held = _is_still(path, descriptor)  # it may have been removed just before
        except OSError:
            held = False
        if not held:
            os.close(descriptor)
            return False
        self.let_go(layer)
        self._held[layer] = descriptor
        return True

    def let_go(self, layer: str) -> None:
        """Use a layer no more."""
        with self._lock:
            if layer in self._held:
                os.close(self._held.pop(layer))

    def add_layer(
        self,
        archive: Source,
        budget: Budget,
        expected: str = "",
        *,
        layer: bool,
        finish: Callable[[], None] = lambda: None,
    ) -> str:
        """Unpack a layer; whoever calls holds the store's lock.

        Args:
            archive: the tar's bytes, uncompressed.
            budget: what may be written.
            expected: the digest that the archive must have, ``sha256:…``; empty where nobody knows.
            layer: whether ``.wh.`` hides what lies below.
            finish: called when all is read, before the layer is there; it may raise.

        Returns:
            Its name in the store.

        Raises:
            ArchiveError: the archive is not taken.
            OSError: the file system does not take it.
        """
        hashed = Hashed(archive)
        new = f"{_NEW}{secrets.token_hex(8)}"
        with _folder(f"{self.path}/layers") as layers:
            try:
                with new_folder(new, layers) as around:
                    with new_folder(_TREE, around) as tree:
                        done = Unpacker(tree, budget, layer=layer, owner=layers_owner()).unpack(
                            TarReader(hashed)
                        )
                    hashed.drain()
                    check_digest(hashed, expected)
                    finish()
                    _write(
                        around,
                        "layer.json",
                        LayerRecord(done.bytes, done.entries, done.opaque, dict(done.left_out)),
                    )
                    os.fchmod(around, 0o700)
                    _sync(around)
                name = folder_name(hashed.digest)
                if lstat(name, layers) is None:
                    os.rename(new, name, src_dir_fd=layers, dst_dir_fd=layers)
                return name
            finally:
                remove_tree(layers, new)

    def remove_layer(self, layer: str) -> bool:
        """Remove a layer that nobody uses; whoever calls holds the store's lock.

        Returns:
            Whether it is gone; if not, a process uses it.
        """
        self.let_go(layer)
        with _folder(f"{self.path}/layers") as layers:
            try:
                descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=layers)
            except FileNotFoundError:
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                old = f"{_OLD}{secrets.token_hex(8)}"
                os.rename(layer, old, src_dir_fd=layers, dst_dir_fd=layers)
            except BlockingIOError:
                return False
            finally:
                os.close(descriptor)
            remove_tree(layers, old)
        return True

    def used(self, layer: str) -> bool:
        """Whether a process uses a layer, be it this one."""
        try:
            with _folder(f"{self.path}/layers/{layer}") as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    # ---- images ----------------------------------------------------------------------

    def images(self) -> list[ImageRecord]:
        """All images, by name."""
        with contextlib.suppress(FileNotFoundError):
            found = [_read(str(path), ImageRecord) for path in Path(self.path, "images").glob("[!.]*.json")]
            return sorted((record for record in found if record is not None), key=lambda each: each.name)
        return []

    def find(self, source: str, chosen: str) -> ImageRecord | None:
        """The image that was made of a file."""
        return next((each for each in self.images() if (each.source, each.chosen) == (source, chosen)), None)

    def add_image(self, record: ImageRecord) -> ImageRecord:
        """Write down an image, under a name of its own; whoever calls holds the store's lock."""
        others = {
            each.name
            for each in self.images()
            if (each.source, each.chosen) != (record.source, record.chosen)
        }
        name, number = record.name, 1
        while name in others:
            number += 1
            name = f"{record.name}-{number}"
        record = msgspec.structs.replace(record, name=name, made=time.time())
        with _folder(f"{self.path}/images") as images:
            new = f"{_NEW}{secrets.token_hex(8)}"
            _write(images, new, record)
            os.rename(new, self._file(record), src_dir_fd=images, dst_dir_fd=images)
        return record

    def forget(self, record: ImageRecord) -> None:
        """Strike out an image; its layers stay until ``collect``."""
        Path(self.path, "images", self._file(record)).unlink(missing_ok=True)

    def collect(self) -> int:
        """Remove the layers that no image has and no process uses; how many bytes they had."""
        wanted = {layer for record in self.images() for layer in record.layers}
        freed = 0
        for layer in self.layers():
            if layer not in wanted and layer not in self._held:
                record = self.layer(layer)
                if self.remove_layer(layer) and record is not None:
                    freed += record.bytes
        return freed

    @staticmethod
    def _file(record: ImageRecord) -> str:
        key = f"{record.source}\0{record.chosen}".encode(errors="surrogateescape")
        return f"{hashlib.sha256(key).hexdigest()[:32]}.json"


def folder_name(digest: str) -> str:
    """The name of a layer's folder, for its digest ``sha256:…``."""
    return digest.replace(":", "-")


def check_digest(hashed: Hashed, expected: str) -> None:
    """Refuse a layer that has another digest than it was named by.

    Raises:
        ArchiveError: it has.
    """
    if expected and hashed.digest != expected:
        raise ArchiveError(f"a layer has the digest {hashed.digest}, but should have {expected}")


@contextlib.contextmanager
def _folder(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_still(path: str, descriptor: int) -> bool:
    """Whether a path is what a descriptor refers to."""
    try:
        there = os.lstat(path)
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _read(path: str, kind: type[T]) -> T | None:
    """A record; None where there is none, or none that says what it should."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - hot
            return msgspec.json.decode(file.read(_MAX_RECORD), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write(folder: int, name: str, record: msgspec.Struct) -> None:
    """A record as a new file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
        file.write(msgspec.json.encode(record))


def _sync(descriptor: int) -> None:
    """All that was written is on the disk before its name is: after a power cut it is there whole, or not."""
    ctypes.CDLL(None).syncfs(descriptor)
