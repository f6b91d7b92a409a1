"""Images made on the spot: tars, files as ``docker save`` writes them, OCI layouts."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

APPLETS = (
    "sh",
    "ls",
    "cat",
    "id",
    "echo",
    "rm",
    "mkdir",
    "env",
    "pwd",
    "stat",
    "find",
    "touch",
    "mv",
    "true",
    "sleep",
    "whoami",
)
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


@functools.cache
def busybox() -> bytes:
    """A static busybox; the test is skipped where there is none."""
    path = shutil.which("busybox")
    if path is None:
        pytest.skip("host: no program busybox")
    program = Path(path).read_bytes()
    if b"/lib64/ld-linux" in program or b"/lib/ld-" in program:
        pytest.skip("host: busybox is not a static program")
    return program


def tar(*members: tuple[Any, ...], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002 - tarfile's word
    """A tar of members: (name, content), (name, None) for a folder, (name, "->", target), (name, "=", target),
    or (TarInfo, content).
    """
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=format) as archive:
        for name, *rest in members:
            if isinstance(name, tarfile.TarInfo):
                archive.addfile(name, io.BytesIO(rest[0]) if rest and rest[0] is not None else None)
                continue
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o644, 1_000_000_000
            if rest[0] is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif rest[0] in ("->", "="):
                info.type = tarfile.SYMTYPE if rest[0] == "->" else tarfile.LNKTYPE
                info.linkname = rest[1]
                archive.addfile(info)
            else:
                content = rest[0].encode() if isinstance(rest[0], str) else rest[0]
                info.size = len(content)
                if len(rest) > 1:
                    info.mode = rest[1]
                archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def base(*more: tuple[Any, ...]) -> bytes:
    """A tiny root file system."""
    return tar(
        ("bin", None),
        ("bin/busybox", busybox(), 0o755),
        *((f"bin/{name}", "->", "busybox") for name in APPLETS),
        ("etc", None),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("tmp", None),
        *more,
    )


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config(layers: list[bytes], **run: Any) -> bytes:
    return json.dumps(
        {
            "architecture": MACHINE,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    ).encode()


def pack(layer: bytes, media_type: str) -> bytes:
    if media_type == GZIP:
        return gzip.compress(layer)
    if media_type == ZSTD:
        from backports import zstd

        return zstd.compress(layer)
    return layer


def blobs(
    layers: list[bytes], *, media: str = GZIP, name: str = "tiny:latest", run: dict[str, Any] | None = None
) -> dict[str, bytes]:
    """The files of an OCI layout."""
    files: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        files[f"blobs/sha256/{digest(data)[7:]}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": add(config(layers, **(run or {})), CONFIG),
        "layers": [add(pack(layer, media), media) for layer in layers],
    }
    entry = add(json.dumps(manifest).encode(), MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    return files


def layout(folder: Path, files: dict[str, bytes]) -> Path:
    """An OCI layout as a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def layout_tar(path: Path, files: dict[str, bytes]) -> Path:
    """An OCI layout as a tar."""
    path.write_bytes(tar(*files.items()))
    return path


def saved(
    path: Path, layers: list[bytes], *, tags: list[str] | None = None, run: dict[str, Any] | None = None
) -> Path:
    """A file as older versions of Docker save one."""
    settings = config(layers, **(run or {}))
    members: list[tuple[Any, ...]] = []
    places = []
    for layer in layers:
        place = f"{digest(layer)[7:]}/layer.tar"
        if place not in places:
            members.append((place, layer))
        places.append(place)
    name = f"{digest(settings)[7:]}.json"
    manifest = [{"Config": name, "RepoTags": tags or ["tiny:latest"], "Layers": places}]
    path.write_bytes(tar(*members, (name, settings), ("manifest.json", json.dumps(manifest))))
    return path
