"""What an image's description must say to be believed, and how its layers are kept: once, whole, and let go of."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import HostError, SpecError

if not sys.platform.startswith("linux"):
    pytest.skip("host: not Linux", allow_module_level=True)

from imagery import (
    GZIP,
    INDEX,
    MACHINE,
    blobs,
    config,
    digest,
    layout,
    layout_tar,
    pack,
    saved,
    tar,
)

from nsmagic import images
from nsmagic.images import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYERS = [tar(("a", "lower"), ("gone", "x")), tar((".wh.gone", ""), ("b", "upper"))]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "cache" / "nsmagic"
    images.forget_known()


def prepare(image: Path | str, option: str = "image") -> tuple[str, ...]:
    """The paths of an image's layers."""
    return images.prepare({option: str(image)}, os.getcwd())[0].layers


def kept(store: Path) -> list[str]:
    """The layers that are there, and nothing else must be."""
    assert sorted(os.listdir(store)) == ["images", "layers", "lock"]
    return sorted(os.listdir(store / "layers"))


def names(layers: list[bytes]) -> list[str]:
    return sorted(f"sha256-{digest(layer)[7:]}" for layer in layers)


# ---- what is believed ---------------------------------------------------------------------


def changed(files: dict[str, bytes], old: bytes, new: bytes) -> dict[str, bytes]:
    """The files with one blob's content swapped for another, under the old name."""
    return {name: new if data == old else data for name, data in files.items()}


def described(manifest: dict[str, Any] | None = None, **more: Any) -> dict[str, bytes]:
    """A layout whose index says what a test wants it to say."""
    files = blobs(LAYERS)
    index = json.loads(files["index.json"])
    index["manifests"][0] |= manifest or {}
    files["index.json"] = json.dumps({**index, **more}).encode()
    return files


def remade(change: Callable[[dict[str, Any]], None], **more: Any) -> dict[str, bytes]:
    """A layout with a changed manifest, and the right digest of it."""
    files = blobs(LAYERS, **more)
    index = json.loads(files["index.json"])
    manifest = json.loads(files[f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"])
    change(manifest)
    data = json.dumps(manifest).encode()
    files[f"blobs/sha256/{digest(data)[7:]}"] = data
    index["manifests"][0]["digest"] = digest(data)
    files["index.json"] = json.dumps(index).encode()
    return files


def manifest_of(files: dict[str, bytes]) -> bytes:
    index = json.loads(files["index.json"])
    return files[f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"]


def config_of(files: dict[str, bytes]) -> bytes:
    return files[f"blobs/sha256/{json.loads(manifest_of(files))['config']['digest'][7:]}"]


GOOD = blobs(LAYERS)
FORGED = config([LAYERS[0], tar(("forged", "x"))])
OTHER = {"amd64": "arm64", "arm64": "amd64"}.get(MACHINE, "amd64")

UNFIT = {
    "a layer is another": (changed(GOOD, pack(LAYERS[1], GZIP), pack(tar(("forged", "x")), GZIP)), "digest"),
    "a layer is damaged": (changed(GOOD, pack(LAYERS[1], GZIP), pack(LAYERS[1], GZIP)[:-9] + b"123456789"), "damaged|digest"),
    "the manifest is another": (changed(GOOD, manifest_of(GOOD), manifest_of(GOOD) + b" "), "digest"),
    "the configuration is another": (changed(GOOD, config_of(GOOD), FORGED), "digest"),
    "a layer is packed otherwise": (changed(GOOD, pack(LAYERS[1], GZIP), LAYERS[1]), "damaged|digest"),
    "a layer is missing": ({name: data for name, data in GOOD.items() if data != pack(LAYERS[1], GZIP)}, "there is no"),
    "no blobs at all": ({name: GOOD[name] for name in ("index.json", "oci-layout")}, "there is no"),
    "no index": ({name: data for name, data in GOOD.items() if name != "index.json"}, "neither"),
    "no manifests": (described(manifests=[]), "no image for"),
    "an index that is none": ({**GOOD, "index.json": b"[1, 2"}, "does not say what it should"),
    "an index of another kind": ({**GOOD, "index.json": b'{"manifests": 7}'}, "does not say what it should"),
    "an index without end": ({**GOOD, "index.json": b'{"manifests": [' + b" " * (5 << 20)}, "more than"),
    "nesting without end": ({**GOOD, "index.json": b"[" * 1_000_000}, "does not say what it should"),
    "another digest": (described({"digest": "md5:0123"}), "not sha256"),
    "a digest that is a path": (described({"digest": "sha256:../../../../etc/passwd"}), "not sha256"),
    "an unknown manifest": (described({"mediaType": "application/x-evil\x1b[2J"}), "no image for"),
    "an unknown layer": (remade(lambda each: each["layers"][0].update(mediaType="application/x-evil")), "unknown media type"),
    "an unknown configuration": (remade(lambda each: each["config"].update(mediaType="text/html")), "unknown media type"),
    "fewer layers than it says": (remade(lambda each: each["layers"].pop()), "other layers"),
    "no layers": (blobs([]), "no layers"),
    "another machine": (described({"platform": {"architecture": OTHER, "os": "linux"}}), "no image for"),
    "another system": (described({"platform": {"architecture": MACHINE, "os": "windows"}}), "no image for"),
    "many layers": (remade(lambda each: each["layers"].extend(each["layers"] * 200)), "does not say"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("form", [layout, layout_tar])
def test_what_is_not_as_its_digest_says_is_refused(
    tmp_path: Path, store: Path, what: str, form: Callable[..., Path]
) -> None:
    files, text = UNFIT[what]
    image = form(tmp_path / "image", files)
    with pytest.raises(SpecError, match=text) as error:
        prepare(image)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert set(kept(store)) <= {names(LAYERS)[0], names(LAYERS)[1]}
    assert list((store / "images").iterdir()) == []
    assert listing.command("x", [])[0][0].startswith("no images")


def test_a_saved_file_with_another_layer_or_configuration_is_refused(tmp_path: Path, store: Path) -> None:
    whole = saved(tmp_path / "good.tar", LAYERS).read_bytes()
    for old, new in ((b"lower", b"LOWER"), (MACHINE.encode(), b"x" * len(MACHINE))):
        (tmp_path / "bad.tar").write_bytes(whole.replace(old, new))
        with pytest.raises(SpecError, match="digest"):
            prepare(tmp_path / "bad.tar")
    assert list((store / "images").iterdir()) == []


def test_an_image_for_another_machine_is_refused(tmp_path: Path) -> None:
    settings = config(LAYERS).replace(MACHINE.encode(), b"s390x")
    name = f"{digest(settings)[7:]}.json"
    manifest = [{"Config": name, "RepoTags": None, "Layers": ["1", "2"]}]
    members = [("1", LAYERS[0]), ("2", LAYERS[1]), (name, settings), ("manifest.json", json.dumps(manifest))]
    (tmp_path / "image.tar").write_bytes(tar(*members))
    with pytest.raises(SpecError, match="linux on s390x"):
        prepare(tmp_path / "image.tar")


def test_the_part_for_this_machine_is_taken_of_an_image_for_many(tmp_path: Path) -> None:
    files = {**blobs([tar(("wrong", "x"))]), **blobs(LAYERS)}
    right = json.loads(blobs(LAYERS)["index.json"])["manifests"][0]
    wrong = json.loads(blobs([tar(("wrong", "x"))])["index.json"])["manifests"][0]
    inner = json.dumps(
        {
            "manifests": [
                {**wrong, "platform": {"architecture": OTHER, "os": "linux"}},
                {**right, "platform": {"architecture": MACHINE, "os": "linux", "variant": "v8"}},
                {**wrong, "platform": {"architecture": "unknown", "os": "unknown"}},
            ]
        }
    ).encode()
    files[f"blobs/sha256/{digest(inner)[7:]}"] = inner
    outer = {"mediaType": INDEX, "digest": digest(inner), "size": len(inner)}
    files["index.json"] = json.dumps({"manifests": [outer]}).encode()
    assert len(prepare(layout(tmp_path / "image", files))) == 2


def test_which_of_several_images_is_said_by_name(tmp_path: Path, store: Path) -> None:
    one, other = config(LAYERS), config(LAYERS[:1])
    manifest = [
        {"Config": f"{digest(one)[7:]}.json", "RepoTags": ["host/two:1", "two:latest"], "Layers": ["1", "2"]},
        {"Config": f"{digest(other)[7:]}.json", "RepoTags": ["host/one:1"], "Layers": ["1"]},
    ]
    members: list[tuple[Any, ...]] = [
        ("1", LAYERS[0]), ("2", LAYERS[1]), (manifest[0]["Config"], one), (manifest[1]["Config"], other),
        ("manifest.json", json.dumps(manifest)),
    ]  # fmt: skip
    path = tmp_path / "several.tar"
    path.write_bytes(tar(*members))
    with pytest.raises(
        SpecError, match="3 images; say which, as in FILE#NAME: host/one:1, host/two:1, two:latest"
    ):
        prepare(path)
    with pytest.raises(SpecError, match="no image 'three'"):
        prepare(f"{path}#three")
    assert len(prepare(f"{path}#two:latest")) == len(prepare(f"{path}#host/two:1")) == 2
    assert len(prepare(f"{path}#one:1")) == 1
    assert kept(store) == names(LAYERS)


def test_links_in_a_saved_file_stay_in_it(tmp_path: Path) -> None:
    settings = config([LAYERS[0]])
    name = f"{digest(settings)[7:]}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [], "Layers": ["x/layer.tar"]}])
    for target, fits in (
        ("/etc/passwd", False),
        ("../../../etc/passwd", False),
        ("layer.tar", False),
        ("../y/layer.tar", True),
    ):
        members = [
            ("y/layer.tar", LAYERS[0]),
            ("x/layer.tar", "->", target),
            (name, settings),
            ("manifest.json", manifest),
        ]
        (tmp_path / "image.tar").write_bytes(tar(*members))
        if fits:
            prepare(tmp_path / "image.tar")
        else:
            with pytest.raises(SpecError, match="there is no"):
                prepare(tmp_path / "image.tar")


def test_an_image_is_no_root_file_system_and_says_so(tmp_path: Path, store: Path) -> None:
    with pytest.raises(SpecError, match="goes by --image"):
        prepare(saved(tmp_path / "image.tar", LAYERS), "rootfs")
    assert kept(store) == []
    (tmp_path / "root.tar").write_bytes(LAYERS[0])
    with pytest.raises(SpecError, match="goes by --rootfs"):
        prepare(tmp_path / "root.tar")


# ---- kept once --------------------------------------------------------------------------------


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which layers were unpacked since."""
    done: list[str] = []
    add_layer = images.Store.add_layer

    def count(self: images.Store, *arguments: Any, **more: Any) -> str:
        done.append(add_layer(self, *arguments, **more))
        return done[-1]

    monkeypatch.setattr(images.Store, "add_layer", count)
    return done


def test_a_layer_is_unpacked_once_for_all(tmp_path: Path, store: Path, unpacked: list[str]) -> None:
    first = saved(tmp_path / "first.tar", LAYERS)
    layers = prepare(first)
    assert [Path(layer).parent.name for layer in layers] == unpacked[::-1]
    assert prepare(first) == layers
    images.forget_known()  # as another process would
    assert prepare(first) == layers
    assert len(unpacked) == 2
    more = layout(tmp_path / "second", blobs([*LAYERS, tar(("c", "c"))]))
    assert prepare(more)[1:] == layers
    assert len(unpacked) == 3
    assert len(kept(store)) == 3
    assert [row[:4] for row in listing.command("x", [])[1:3]] == [
        ("tiny:latest", "2", "11 bytes", "11 bytes"),
        ("tiny:latest-2", "3", "12 bytes", "11 bytes"),
    ]


def test_a_changed_file_is_seen(tmp_path: Path, store: Path, unpacked: list[str]) -> None:
    image = saved(tmp_path / "image.tar", LAYERS)
    prepare(image)
    new = [LAYERS[0], tar(("new", "x"))]
    saved(image, new)
    assert Path(prepare(image)[0], "new").exists()
    images.current_store().let_go(names(LAYERS[1:])[0])
    saved(image, LAYERS[:1])
    prepare(image)
    assert names(LAYERS[1:])[0] not in kept(store), "what no image has any more is gone"


def test_what_is_damaged_in_the_store_is_made_again(tmp_path: Path, store: Path, unpacked: list[str]) -> None:
    image = saved(tmp_path / "image.tar", LAYERS)
    prepare(image)
    (record,) = (store / "images").iterdir()
    for damage in (b"", b"{", b'{"name": 1}', b"\xff" * 100):
        record.write_bytes(damage)
        images.forget_known()
        assert len(prepare(image)) == 2
    assert len(unpacked) == 2


def test_a_store_that_others_may_write_to_is_not_used(tmp_path: Path, store: Path) -> None:
    image = saved(tmp_path / "image.tar", LAYERS)
    store.mkdir(parents=True)
    store.chmod(0o777)
    with pytest.raises(HostError, match="others may write there") as error:
        prepare(image)
    assert "XDG_CACHE_HOME" in error.value.remedy
    store.rmdir()
    (tmp_path / "elsewhere").mkdir()
    store.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError):
        prepare(image)
    assert os.listdir(tmp_path / "elsewhere") in ([], ["images", "layers"])


def test_what_others_could_have_put_there_is_not_used(tmp_path: Path, store: Path) -> None:
    image = saved(tmp_path / "image.tar", LAYERS)
    prepare(image)
    store.chmod(0o770)
    for forget in (False, True):
        if forget:
            images.forget_known()
        with pytest.raises(HostError, match="others may write there"):
            prepare(image)


def test_without_a_home_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(HostError, match="no home folder"):
        prepare(saved(tmp_path / "image.tar", LAYERS))


def test_it_is_closed_to_others(tmp_path: Path, store: Path) -> None:
    prepare(saved(tmp_path / "image.tar", LAYERS))
    assert store.stat().st_mode & 0o077 == 0
    for layer in (store / "layers").iterdir():
        assert layer.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_said_and_nothing_is_left(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    image = saved(tmp_path / "image.tar", LAYERS)
    with monkeypatch.context() as patched:
        patched.setattr("nsmagic.images.unpack._write", full)
        with pytest.raises(HostError, match="is full"):
            prepare(image)
    assert kept(store) == []
    prepare(image)


# ---- several at once --------------------------------------------------------------------------

UNPACK = """
    import os, sys
    from nsmagic import images
    {before}
    image, _ = images.prepare({{"image": sys.argv[1]}}, "/")
    print(*sorted(os.listdir(image.layers[0])), flush=True)
    sys.stdin.read()
"""


def start(image: Path, before: str = "") -> subprocess.Popen[str]:
    """Another process that unpacks an image, says what is in it, and holds it until its input ends."""
    code = textwrap.dedent(UNPACK).format(before=before)
    return subprocess.Popen(
        [sys.executable, "-I", "-c", code, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(process: subprocess.Popen[str]) -> None:
    with process:
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    layers = [tar(*((f"{layer}/{i}", os.urandom(2000)) for i in range(1500))) for layer in range(2)]
    return saved(tmp_path / "large.tar", layers)


def test_two_processes_at_once_make_one_store(large: Path, store: Path) -> None:
    processes = [start(large) for _ in range(4)]
    try:
        assert {said(process) for process in processes} == {"1\n"}
        assert len(kept(store)) == 2
        for layer in (store / "layers").iterdir():
            (folder,) = (layer / "tree").iterdir()
            assert len(list(folder.iterdir())) == 1500
    finally:
        for process in processes:
            end(process)


def test_threads_at_once_make_one_store(large: Path, store: Path, unpacked: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(prepare, [large] * 24))) == 1
    assert len(unpacked) == 2
    assert len(kept(store)) == 2


def test_what_a_killed_process_left_is_cleared_away(
    large: Path, store: Path, until: Callable[..., bool]
) -> None:
    process = start(large)

    def half_done() -> bool:
        return any(True for _ in store.glob("layers/.new-*/tree/0/*"))

    assert until(half_done, 30)
    process.send_signal(signal.SIGKILL)
    with process:
        pass
    if not list(store.glob("layers/.new-*")):
        pytest.fail("it was ready before it was killed")
    prepare(large)
    assert len(kept(store)) == 2
    for layer in (store / "layers").iterdir():
        (folder,) = (layer / "tree").iterdir()
        assert len(list(folder.iterdir())) == 1500


def test_an_interrupt_leaves_nothing(large: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nsmagic.images.store._sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(large)
    assert kept(store) == []


# ---- removed ----------------------------------------------------------------------------------


def remove(name: str) -> str:
    return listing.command("%images", ["remove", name])[0][0]


def test_an_image_is_removed_and_what_others_have_stays(tmp_path: Path, store: Path) -> None:
    prepare(saved(tmp_path / "first.tar", LAYERS, tags=["first:1"]))
    prepare(saved(tmp_path / "second.tar", LAYERS[:1], tags=["second:1"]))
    assert "1 of its layers stay" in remove("first:1")
    assert kept(store) == names(LAYERS[:1])
    assert remove("second:1").startswith("removed second:1")
    assert kept(store) == []
    with pytest.raises(SpecError, match="no image that is unpacked; there is: none"):
        remove("first:1")
    assert len(prepare(tmp_path / "first.tar")) == 2


def test_what_another_process_uses_is_not_removed(tmp_path: Path, store: Path) -> None:
    image = saved(tmp_path / "image.tar", LAYERS)
    process = start(image)
    assert said(process) == "b gone\n"
    with pytest.raises(SpecError, match="another process"):
        remove("tiny:latest")
    assert len(kept(store)) == 2
    rows = listing.command("%images", ["tiny:latest"])
    assert [row[-1] for row in rows[1:]] == ["yes", "yes"]
    end(process)
    remove("tiny:latest")
    assert kept(store) == []


def test_a_layer_that_is_just_being_removed_is_made_again(tmp_path: Path, store: Path) -> None:
    image = saved(tmp_path / "image.tar", LAYERS)
    layers = prepare(image)
    (layer, *_) = names(LAYERS)
    images.current_store().let_go(layer)
    os.rename(store / "layers" / layer, store / "layers" / ".old-x")
    images.forget_known()
    assert prepare(image) == layers
    assert kept(store) == names(LAYERS)


def test_words_that_make_no_sense(tmp_path: Path) -> None:
    for words in (["remove"], ["remove", "a", "b"], ["a", "b"], ["nothing"]):
        with pytest.raises(SpecError) as error:
            listing.command("%images", words)
        assert "\n" not in str(error.value)


def test_the_lock_is_let_go_of(tmp_path: Path, store: Path) -> None:
    with pytest.raises(SpecError):
        prepare(layout(tmp_path / "bad", changed(GOOD, config_of(GOOD), FORGED)))
    with (store / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- in a notebook ------------------------------------------------------------------------------


@pytest.mark.works("--image")
def test_a_running_container_keeps_its_image(tmp_path: Path, quiet: Path) -> None:
    from imagery import base

    from nsmagic import image_magics, standbys

    image = saved(tmp_path / "image.tar", [base()])
    with nsmagic.Container(image=image) as box:
        box.run(["true"]).check()
        nsmagic.container.live[box.number] = box
        with pytest.raises(SpecError, match=f"in use by container {box.number}"):
            listing.command("%images", ["remove", "tiny:latest"], image_magics._busy)
        box.run(["ls", "/bin"]).check()
        nsmagic.container.live.pop(box.number)
    nsmagic.run(["true"], image=image).check()  # a standby waits for the next one
    listing.command("%images", ["remove", "tiny:latest"], image_magics._busy)
    assert not standbys.current().payload_pids()
    nsmagic.run(["true"], image=image).check()
    standbys.current().drop()
