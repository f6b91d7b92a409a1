"""What an image is made of: its layers and how it wants to be run, read from files on disk.

Two forms are known, each as a tar or (the second) as a folder: that of ``docker save``, with a
``manifest.json``, and the OCI image layout, with an ``index.json`` and blobs named by their digests.
Current versions of Docker write both into one file.  All of it is read with types and bounds, and every blob
is held against its digest: a manifest and a configuration here, a layer when it is unpacked.

See the OCI image specification: image-layout.md, manifest.md, config.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from nsmagic.descent import shown
from nsmagic.images.streams import Disk, Hashed, Uncompressed, Window, compression
from nsmagic.images.tar import ArchiveError, TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    T = TypeVar("T")

MAX_BYTES: Final = 32 << 30
"""Bytes of an image's files, unpacked, holes included; and of an archive that comes compressed."""
_MAX_JSON: Final = 4 << 20
_MAX_MEMBERS: Final = 10_000
_MAX_LAYERS: Final = 128
_MAX_TEXT: Final = 4096
_MAX_WORDS: Final = 1000
_MAX_LINKS: Final = 8
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEXES: Final = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
_MANIFESTS: Final = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
_CONFIGS: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
_LAYERS: Final = {
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
_NAME_KEYS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")

Text = Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)]
Words = Annotated[list[Annotated[str, msgspec.Meta(max_length=1 << 16)]], msgspec.Meta(max_length=_MAX_WORDS)]
Layers = Annotated[list[Text], msgspec.Meta(max_length=_MAX_LAYERS)]


class _Platform(msgspec.Struct):
    architecture: Text = ""
    os: Text = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: Text
    digest: Text
    size: int
    annotations: dict[Text, str] | None = None
    platform: _Platform | None = None


class _Index(msgspec.Struct):
    manifests: Annotated[list[_Descriptor], msgspec.Meta(max_length=_MAX_WORDS)]


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: Annotated[list[_Descriptor], msgspec.Meta(max_length=_MAX_LAYERS)]


class RunConfig(msgspec.Struct, rename="pascal"):
    """How an image wants to be run; what else its configuration says is passed over."""

    env: Words | None = None
    entrypoint: Words | None = None
    cmd: Words | None = None
    working_dir: Text = ""
    user: Text = ""


class _RootFs(msgspec.Struct):
    diff_ids: Layers


class _Config(msgspec.Struct):
    rootfs: _RootFs
    architecture: Text = ""
    os: Text = ""
    config: RunConfig | None = None


class _Saved(msgspec.Struct, rename="pascal"):
    config: Text
    layers: Layers
    repo_tags: Annotated[list[Text], msgspec.Meta(max_length=_MAX_WORDS)] | None = None


class _Layout(msgspec.Struct):
    version: Text = msgspec.field(name="imageLayoutVersion")


@dataclass(frozen=True)
class Blob:
    """A layer as it lies in the file.

    Attributes:
        place: where.
        compression: what its media type says; None to look.
        digest: ``sha256:…`` of its bytes as they lie there; empty where only ``diff_id`` is known.
        diff_id: ``sha256:…`` of its bytes uncompressed.
    """

    place: str
    compression: str | None
    digest: str
    diff_id: str


@dataclass(frozen=True)
class Described:
    """An image, described.

    Attributes:
        name: what it calls itself; empty for nothing.
        layers: the lowest first.
        config: how it wants to be run.
    """

    name: str
    layers: tuple[Blob, ...]
    config: RunConfig


# ---- where the bytes are ------------------------------------------------------------


class Files:
    """Named pieces of bytes: the members of an archive, or the files of a folder."""

    def size(self, place: str) -> int | None:
        """Bytes at a place; None where there is nothing."""
        raise NotImplementedError

    def open(self, place: str) -> contextlib.AbstractContextManager[Window]:
        """The bytes at a place."""
        raise NotImplementedError

    def json(self, place: str, kind: type[T], digest: str = "") -> T:
        """What a place says, as a type; held against its digest where there is one.

        Raises:
            ArchiveError: it is not there, too large, not of that type, or has another digest.
        """
        size = self.size(place)
        if size is None:
            raise ArchiveError(f"there is no {shown(place)} in it")
        if size > _MAX_JSON:
            raise ArchiveError(f"{shown(place)} has {size} bytes, more than {_MAX_JSON}")
        with self.open(place) as window:
            data = window.read(size)
        if digest and f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise ArchiveError(f"{shown(place)} has not the digest that it is named by")
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise ArchiveError(f"{shown(place)} does not say what it should") from None


class Folder(Files):
    """An image layout as a folder of the host, whose links are followed as anywhere."""

    def __init__(self, path: str) -> None:
        self._path = path

    def size(self, place: str) -> int | None:
        """Bytes of a regular file."""
        try:
            status = Path(self._path, place).stat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    @contextlib.contextmanager
    def open(self, place: str) -> Iterator[Window]:
        """The bytes of a regular file."""
        if place.startswith("/") or ".." in place.split("/"):
            raise ArchiveError(f"{shown(place)} is no place in it")
        try:
            descriptor = os.open(Path(self._path, place), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ArchiveError(f"there is no {shown(place)} in it") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveError(f"{shown(place)} is no regular file")
            yield Window(descriptor, 0, status.st_size)
        finally:
            os.close(descriptor)


class Members(Files):
    """The members of a tar on this host.

    Args:
        descriptor: the open file, uncompressed; the caller's to close.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        size = os.fstat(descriptor).st_size
        for count, member in enumerate(TarReader(_Skipping(descriptor, 0, size))):
            if count > _MAX_MEMBERS:
                raise ArchiveError(
                    f"it has more than {_MAX_MEMBERS} members; a root file system goes by --rootfs"
                )
            name = os.path.normpath(os.fsdecode(member.name))
            self._places.pop(name, None)
            self._links.pop(name, None)
            if member.kind == "file":
                self._places[name] = (member.offset, member.size)
            elif member.kind == "link":  # as old versions of Docker write a layer that two images have
                around = os.path.dirname(name)  # noqa: PTH120 - as text
                self._links[name] = os.path.normpath(os.path.join(around, os.fsdecode(member.target)))  # noqa: PTH118 - likewise

    def _find(self, place: str) -> tuple[int, int] | None:
        place = os.path.normpath(place)
        for _ in range(_MAX_LINKS):
            if place not in self._links:
                break
            place = self._links[place]
        return self._places.get(place)

    def size(self, place: str) -> int | None:
        """Bytes of a member."""
        found = self._find(place)
        return None if found is None else found[1]

    @contextlib.contextmanager
    def open(self, place: str) -> Iterator[Window]:
        """The bytes of a member."""
        found = self._find(place)
        if found is None:
            raise ArchiveError(f"there is no {shown(place)} in it")
        yield Window(self._descriptor, *found)


class _Skipping(Window):
    """A file that is read for its headers: what is large is passed over, not read."""

    def skip(self, count: int) -> bool:
        """Pass over so many bytes; False where there are fewer."""
        self._position += count
        return self._position <= self._end


@contextlib.contextmanager
def opened(path: str, scratch: str, passed: Callable[[int], None]) -> Iterator[Files]:
    """An image's files, for a path of a file or folder.

    Args:
        path: trusted; what is there is not.
        scratch: a folder for temporary files.
        passed: called with bytes that were read of it.

    Raises:
        ArchiveError: it is no archive.
        OSError: it cannot be read.
    """
    if Path(path).is_dir():
        yield Folder(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError("it is neither a file nor a folder")
        method = compression(os.pread(descriptor, 16, 0))
        if not method:
            yield Members(descriptor)
            return
        # Its parts are wanted in another order than they come in, so it is uncompressed as a whole first.
        with tempfile.TemporaryFile(dir=scratch) as whole:
            source = Uncompressed(Hashed(Window(descriptor, 0, status.st_size), passed), method, MAX_BYTES)
            disk = Disk(whole.fileno())
            while piece := source.read(1 << 20):
                disk.will_take(len(piece))
                whole.write(piece)
            whole.flush()
            yield Members(whole.fileno())
    finally:
        os.close(descriptor)


# ---- what they say -------------------------------------------------------------------


def describe(files: Files, chosen: str) -> Described:
    """The image in these files.

    Args:
        files: where to look.
        chosen: the name of one, where there are several; else empty.

    Raises:
        ArchiveError: there is none, or several, or it is none for this machine.
    """
    if files.size("index.json") is not None and files.size("oci-layout") is not None:
        files.json("oci-layout", _Layout)
        return _of_layout(files, chosen)
    if files.size("manifest.json") is not None:
        return _of_saved(files, chosen)
    raise ArchiveError(
        "it has neither a manifest.json nor an index.json, so it is no image; a tar of a root file system "
        "goes by --rootfs"
    )


def _of_layout(files: Files, chosen: str) -> Described:
    found = _for_this_machine(files.json("index.json", _Index).manifests)
    named = {_name_of(each): each for each in found}
    descriptor = found[0] if len(found) == 1 and not chosen else _choose(named, chosen)
    for _ in range(2):
        if descriptor.media_type not in _INDEXES:
            break
        below = _for_this_machine(_blob(files, descriptor, _INDEXES, _Index).manifests)
        if len(below) != 1:
            raise ArchiveError(f"it has {len(below)} images for this machine under one name")
        descriptor = below[0]
    manifest = _blob(files, descriptor, _MANIFESTS, _Manifest)
    config = _checked(_blob(files, manifest.config, _CONFIGS, _Config), len(manifest.layers))
    name = next((name for name, each in named.items() if name and len(found) == 1), chosen)
    return Described(
        name,
        tuple(
            Blob(_place(layer.digest), _compression(layer.media_type), layer.digest, _digest(diff_id))
            for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True)
        ),
        config.config or RunConfig(),
    )


def _of_saved(files: Files, chosen: str) -> Described:
    saved = files.json("manifest.json", list[_Saved])
    named = {tag: each for each in saved for tag in each.repo_tags or [""]}
    one = saved[0] if len(saved) == 1 and not chosen else _choose(named, chosen)
    # The configuration's file is named by its digest.
    digest = os.path.basename(one.config).removesuffix(".json")  # noqa: PTH119 - as text
    config = _checked(files.json(one.config, _Config, _digest(f"sha256:{digest}")), len(one.layers))
    return Described(
        chosen or next(iter(one.repo_tags or []), ""),
        tuple(
            Blob(place, None, "", _digest(diff_id))
            for place, diff_id in zip(one.layers, config.rootfs.diff_ids, strict=True)
        ),
        config.config or RunConfig(),
    )


def _choose(named: dict[str, T], chosen: str) -> T:
    """The one of that name; ``latest`` need not be said, nor where it was fetched from."""
    fitting = {name for name in named if chosen and (name == chosen or name.endswith(f"/{chosen}"))}
    fitting = fitting or {
        name for name in named if chosen and name.endswith((f"/{chosen}:latest", f":{chosen}"))
    }
    if len(fitting) == 1:
        return named[fitting.pop()]
    known = ", ".join(sorted(shown(name) for name in named if name)) or "none that has a name"
    if chosen:
        raise ArchiveError(f"there is no image {shown(chosen)!r} in it; there is: {known}")
    raise ArchiveError(f"it has {len(named)} images; say which, as in FILE#NAME: {known}")


def _for_this_machine(descriptors: Sequence[_Descriptor]) -> list[_Descriptor]:
    """Those that can run here; attestations and the like are for no machine."""
    fit = []
    for each in descriptors:
        platform = each.platform or _Platform()
        right = platform.architecture in {"", _architecture()} and platform.os in {"", "linux"}
        if right and each.media_type in _INDEXES | _MANIFESTS:
            fit.append(each)
    if not fit:
        raise ArchiveError(f"it has no image for linux on {_architecture()}")
    return fit


def _architecture() -> str:
    machine = os.uname().machine
    return _MACHINES.get(machine, machine)


def _name_of(descriptor: _Descriptor) -> str:
    notes = descriptor.annotations or {}
    return next((notes[key] for key in _NAME_KEYS if notes.get(key)), "")


def _checked(config: _Config, layers: int) -> _Config:
    if config.architecture not in {"", _architecture()} or config.os not in {"", "linux"}:
        where = shown(f"{config.os} on {config.architecture}")
        raise ArchiveError(f"it is for {where}, and this is linux on {_architecture()}")
    if len(config.rootfs.diff_ids) != layers:
        raise ArchiveError("its configuration names other layers than its manifest")
    if not layers:
        raise ArchiveError("it has no layers")
    return config


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ArchiveError("it names something by a digest that is not sha256")
    return text


def _place(digest: str) -> str:
    return f"blobs/sha256/{_digest(digest).removeprefix('sha256:')}"


def _blob(files: Files, descriptor: _Descriptor, types: frozenset[str], kind: type[T]) -> T:
    if descriptor.media_type not in types:
        raise ArchiveError(f"it has a part of the unknown media type {shown(descriptor.media_type)!r}")
    return files.json(_place(descriptor.digest), kind, descriptor.digest)


def _compression(media_type: str) -> str:
    if media_type not in _LAYERS:
        raise ArchiveError(f"it has a layer of the unknown media type {shown(media_type)!r}")
    return _LAYERS[media_type]
