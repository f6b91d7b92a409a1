"""What a hostile archive can do: nothing outside its own folder, and nothing without bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if not sys.platform.startswith("linux"):
    pytest.skip("host: not Linux", allow_module_level=True)

import contextlib

from imagery import tar

from nsmagic.descent import is_opaque
from nsmagic.images.streams import Hashed, Uncompressed, compression
from nsmagic.images.tar import ArchiveError, TarReader
from nsmagic.images.unpack import Budget, Unpacked, Unpacker, new_folder

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


class Sandbox:
    """A folder to unpack into, with a secret and an innocent folder beside it that must stay as they are."""

    def __init__(self, around: Path) -> None:
        self.around = around
        self.tree = around / "in" / "tree"
        (around / "in").mkdir()
        (around / "secret").write_text("secret")
        (around / "outside").mkdir()
        (around / "outside" / "kept").write_text("kept")

    def unpack(
        self, archive: bytes, *, layer: bool = True, most: int = 64 * MIB, entries: int = 10_000
    ) -> Unpacked:
        above = os.open(self.around / "in", os.O_RDONLY)
        try:
            with new_folder("tree", above) as tree:
                reader = TarReader(Uncompressed(io.BytesIO(archive), None, most + MIB))
                return Unpacker(tree, Budget(most, entries), layer=layer).unpack(reader)
        finally:
            os.close(above)

    def check(self) -> None:
        """Nothing outside was touched, and nothing inside is dangerous."""
        assert (self.around / "secret").read_text() == "secret"
        assert (self.around / "secret").stat().st_nlink == 1
        assert stat.S_IMODE((self.around / "outside").stat().st_mode) & 0o777 == 0o777 & ~umask()
        assert os.listdir(self.around / "outside") == ["kept"]
        assert sorted(os.listdir(self.around)) == ["in", "outside", "secret"]
        assert os.listdir(self.around / "in") == ["tree"]
        for folder, folders, files in os.walk(self.tree):
            for name in folders + files:
                status = os.lstat(os.path.join(folder, name))
                assert status.st_uid == os.geteuid()
                if stat.S_ISLNK(status.st_mode):
                    continue
                assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
                assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or status.st_rdev == 0


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def info(name: str, kind: bytes, **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in more.items():
        setattr(made, key, value)
    return made


# ---- what is refused ---------------------------------------------------------------

REFUSED = {
    "up": tar(("../evil", "x")),
    "up in the middle": tar(("a/../../evil", "x")),
    "up as a folder": tar(("..", None)),
    "through an absolute link": tar(("out", "->", "/"), ("out/tmp/evil", "x")),
    "through a relative link": tar(("out", "->", "../../outside"), ("out/evil", "x")),
    "through a link in the middle": tar(("a", None), ("a/out", "->", "../../../outside"), ("a/out/b/evil", "x")),
    "through a link to a folder of its own": tar(("a", None), ("b", "->", "a"), ("b/c", "x")),
    "a folder through a link": tar(("out", "->", "../../outside"), ("out/evil", None)),
    "a link through a link": tar(("out", "->", "../../outside"), ("out/evil", "->", "x")),
    "a whiteout through a link": tar(("out", "->", "../../outside"), ("out/.wh.kept", "")),
    "an opaque folder through a link": tar(("out", "->", "../../outside"), ("out/.wh..wh..opq", "")),
    "a hard link out": tar(("evil", "=", "../../secret")),
    "a hard link through a link": tar(("out", "->", "../.."), ("evil", "=", "out/secret")),
    "a hard link to an absolute path": tar(("evil", "=", "/etc/passwd")),
    "a hard link to a folder": tar(("a", None), ("b", "=", "a")),
    "a hard link to nothing": tar(("b", "=", "")),
    "a hard link to what comes later": tar(("b", "=", "a"), ("a", "x")),
    "a hard link to a whiteout": tar((".wh.a", ""), ("b", "=", "a")),
    "below a file": tar(("a", "x"), ("a/b", "y")),
    "a whiteout of nothing": tar((".wh.", "")),
    "a whiteout of itself": tar((".wh..", "")),
    "a whiteout of what is above": tar(("a/.wh...", "")),
    "a file in place of the root": tar((".", "x")),
    "a link in place of the root": tar(("./", "->", "/")),
    "a name that is too long": tar(("a" * 256, "x")),
    "a path that is too long": tar(("a/" * 3000 + "b", "x")),
    "too deep": tar(("a/" * 200 + "b", "x")),
    "a link to nowhere at all": tar((info("a", tarfile.SYMTYPE),)),
    "a zero byte in a name": tar((info("a", tarfile.REGTYPE, pax_headers={"path": "a\0b"}),)),
    "a device for a name": tar((info("x", b"9"),)),
    "GNU sparse": tar((info("x", tarfile.GNUTYPE_SPARSE),)),
    "pax sparse": tar((info("x", tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": "9" * 18}),)),
    "a size beyond belief": tar((info("x", tarfile.REGTYPE, pax_headers={"size": str(1 << 61)}),)),
    "a size that is no number": tar((info("x", tarfile.REGTYPE, pax_headers={"size": "-1"}),)),
    "a global header": tar((info("x", tarfile.XGLTYPE), None)) [:0] + tarfile.TarInfo.create_pax_global_header({"path": "y"}) + tar(("x", "x")),
    "cut off in a header": tar(("a", "x"))[:700],
    "cut off in a file": tar(("a", "x" * 5000))[:3000],
    "no tar": b"This is no tar archive. " * 100,
    "a damaged header": tar(("a", "x")).replace(b"ustar", b"USTAR", 1),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_lead_out_is_refused(box: Sandbox, what: str) -> None:
    with pytest.raises(ArchiveError) as error:
        box.unpack(REFUSED[what])
    assert "\n" not in str(error.value)
    box.check()


def test_a_hostile_name_cannot_play_tricks_in_the_message(box: Sandbox) -> None:
    with pytest.raises(ArchiveError) as error:
        box.unpack(tar(("../\x1b[2J\n\r" + "x" * 1000, "x")))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


# ---- what is taken, and how -----------------------------------------------------------


def test_what_a_root_file_system_has_is_taken(box: Sandbox) -> None:
    done = box.unpack(
        tar(
            (info("./", tarfile.DIRTYPE, mode=0o555),),
            ("/abs", "absolute names begin at the root of the archive"),
            ("dir", None),
            ("dir/file", b"\1" * 70_000, 0o640),
            ("dir/hard", "=", "dir/file"),
            ("dir/deep/made/on/the/way", "x"),
            ("link", "->", "/etc/passwd"),
            ("soft", "=", "link"),
            ("l" * 200, "long"),
            ("empty", ""),
        )
    )
    box.check()
    assert done.entries == 10
    assert (box.tree / "abs").exists()
    assert (box.tree / "dir/file").read_bytes() == b"\1" * 70_000
    assert (box.tree / "dir/file").stat().st_nlink == 2
    assert stat.S_IMODE((box.tree / "dir/file").stat().st_mode) == 0o640
    assert (box.tree / "dir/file").stat().st_mtime == 1_000_000_000, "Python's compiled files look at that"
    assert os.readlink(box.tree / "link") == os.readlink(box.tree / "soft") == "/etc/passwd"
    assert (box.tree / ("l" * 200)).read_text() == "long"
    assert stat.S_IMODE(box.tree.stat().st_mode) == 0o755, "its owner may write, as root may anywhere"


def test_who_may_what_is_kept_and_set_uid_is_not(box: Sandbox) -> None:
    done = box.unpack(
        tar(
            ("su", "x", 0o4755),
            ("sg", "x", 0o2755),
            ("none", "x", 0),
            (info("sticky", tarfile.DIRTYPE, mode=0o1777),),
            (info("sgdir", tarfile.DIRTYPE, mode=0o2770),),
        )
    )
    box.check()
    assert done.left_out == {"set-uid bit": 2}
    modes = {name: stat.S_IMODE((box.tree / name).stat().st_mode) for name in os.listdir(box.tree)}
    assert modes == {"su": 0o755, "sg": 0o755, "none": 0o600, "sticky": 0o1777, "sgdir": 0o770}


def test_devices_are_left_out_and_counted(box: Sandbox) -> None:
    done = box.unpack(
        tar(
            (info("dev/sda", tarfile.BLKTYPE, devmajor=8),),
            (info("dev/mem", tarfile.CHRTYPE, devmajor=1, devminor=1),),
            (info("forged whiteout", tarfile.CHRTYPE),),
            (info("pipe", tarfile.FIFOTYPE),),
            ("after", "x"),
        )
    )
    box.check()
    assert os.listdir(box.tree) == ["after"]
    assert done.left_out == {"device": 3, "FIFO": 1}


def test_marks_of_overlayfs_cannot_be_forged(box: Sandbox) -> None:
    marks = {"SCHILY.xattr.user.overlay.opaque": "y", "LIBARCHIVE.xattr.user.overlay.whiteout": "y"}
    box.unpack(
        tar(
            (info("a", tarfile.DIRTYPE, pax_headers=marks),), (info("b", tarfile.REGTYPE, pax_headers=marks),)
        )
    )
    assert [os.listxattr(box.tree / name) for name in ("a", "b")] == [[], []]


def test_the_last_entry_of_a_name_counts(box: Sandbox) -> None:
    box.unpack(
        tar(
            ("file", "old"),
            ("file", "new"),
            ("was a link", "->", "../../secret"),
            ("was a link", "written to the name, not through it"),
            ("was a folder", None),
            ("was a folder/sub", None),
            ("was a folder/sub/file", "x"),
            ("was a folder", "->", "nowhere"),
            ("was a file", "x"),
            ("was a file", None),
            ("was a file/inside", "x"),
            ("stays", None),
            ("stays/kept", "x"),
            ("stays", None),
            ("outlink", "->", "../../outside"),
            ("outlink", None),
            ("outlink/inside", "x"),
        )
    )
    box.check()
    assert (box.tree / "file").read_text() == "new"
    assert (box.tree / "was a link").read_text().startswith("written")
    assert os.readlink(box.tree / "was a folder") == "nowhere"
    assert (box.tree / "was a file/inside").exists()
    assert (box.tree / "stays/kept").exists()
    assert (box.tree / "outlink/inside").exists()


def test_a_hard_link_then_another_file_leaves_the_first_alone(box: Sandbox) -> None:
    box.unpack(tar(("a", "one"), ("b", "=", "a"), ("b", "two"), ("a", "=", "a")))
    assert ((box.tree / "a").read_text(), (box.tree / "b").read_text()) == ("one", "two")


# ---- whiteouts -------------------------------------------------------------------------


def whited_out(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def opaque(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_opaque(descriptor)
    finally:
        os.close(descriptor)


def test_whiteouts_are_those_of_overlayfs(box: Sandbox) -> None:
    done = box.unpack(
        tar(
            ("d/.wh.gone", ""),
            ("d/.wh..wh.plnk", ""),
            ("hidden/.wh.unneeded", ""),
            ("hidden/.wh..wh..opq", ""),
            ("hidden/new", "x"),
            ("hidden/.wh.unneeded too", ""),
        )
    )
    box.check()
    assert whited_out(box.tree / "d/gone")
    assert not opaque(box.tree / "d")
    assert os.listdir(box.tree / "d") == ["gone"]
    assert opaque(box.tree / "hidden")
    assert os.listdir(box.tree / "hidden") == ["new"]
    assert not done.opaque


def test_a_name_that_is_hidden_and_new_is_new_and_hides(box: Sandbox) -> None:
    box.unpack(
        tar(
            (".wh.a", ""), ("a", None), ("a/x", "x"),
            ("b", None), ("b/x", "x"), (".wh.b", ""),
            (".wh.c", ""), ("c", "file"),
            ("d", "file"), (".wh.d", ""),
            (".wh.e", ""), ("e/made/on/the/way", "x"),
        )
    )  # fmt: skip
    assert opaque(box.tree / "a")
    assert opaque(box.tree / "b")
    assert opaque(box.tree / "e")
    assert (box.tree / "b/x").exists()
    assert ((box.tree / "c").read_text(), (box.tree / "d").read_text()) == ("file", "file")


def test_an_opaque_root_is_told(box: Sandbox) -> None:
    assert box.unpack(tar((".wh..wh..opq", ""), ("a", "x"))).opaque


def test_in_a_root_file_system_such_names_are_names(box: Sandbox) -> None:
    box.unpack(tar((".wh.a", "x"), ("d/.wh..wh..opq", "y")), layer=False)
    assert (box.tree / ".wh.a").read_text() == "x"
    assert not opaque(box.tree / "d")


# ---- bounds ----------------------------------------------------------------------------


def test_a_bomb_ends_at_the_budget(box: Sandbox) -> None:
    bomb = gzip.compress(tar(("zeros", bytes(200 * MIB))))
    assert len(bomb) < MIB
    with pytest.raises(ArchiveError, match="unpacks to more"):
        box.unpack(bomb, most=100 * MIB)
    box.check()


def test_many_files_end_at_the_budget_too(box: Sandbox) -> None:
    with pytest.raises(ArchiveError, match="more files"):
        box.unpack(tar(*((f"f{i}", "") for i in range(300))), entries=200)


def test_the_budget_is_for_all_of_it(box: Sandbox) -> None:
    with pytest.raises(ArchiveError, match="unpacks to more"):
        box.unpack(tar(*((f"f{i}", bytes(MIB)) for i in range(10))), most=5 * MIB)


def test_zeros_take_no_room(box: Sandbox) -> None:
    data = b"begin" + bytes(20 * MIB) + b"end"
    done = box.unpack(tar(("zeros", data)))
    assert done.bytes == len(data), "holes count all the same"
    assert (box.tree / "zeros").read_bytes() == data
    assert (box.tree / "zeros").stat().st_blocks * 512 < 5 * MIB


def test_a_header_without_end_takes_no_memory() -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = b"x", 1 << 40

    class Endless:
        """Headers for ever; whoever asks for much at once is caught."""

        begun = False

        def read(self, count: int, /) -> bytes:
            assert count <= 2 * MIB
            if count and not self.begun:
                self.begun = True
                return header.tobuf(tarfile.GNU_FORMAT)[:512]
            return b"x" * count

    with pytest.raises(ArchiveError, match="too long"):
        list(TarReader(Endless()))


def test_headers_upon_headers_end() -> None:
    one = tarfile.TarInfo.create_pax_global_header({"comment": "x"}).replace(b"g", b"g")
    with pytest.raises(ArchiveError, match="too long"):
        list(TarReader(io.BytesIO(one * 100 + tar(("a", "x")))))


# ---- streams ---------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    try:
        from compression import zstd as module  # type: ignore[import-not-found]
    except ImportError:
        from backports import zstd as module
    return bytes(module.compress(data))


COMPRESSIONS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd, "": bytes}


@pytest.mark.parametrize("method", COMPRESSIONS)
def test_streams_come_out_as_they_went_in(method: str) -> None:
    first, second = os.urandom(300_000) + bytes(3 * MIB), os.urandom(70_000)
    data = COMPRESSIONS[method](first) + COMPRESSIONS[method](second)
    assert compression(data) == method
    for count in (1 << 16, 777, 5 * MIB):
        source = Hashed(Uncompressed(io.BytesIO(data), None, 10 * MIB))
        found = []
        while piece := source.read(count):
            assert len(piece) <= count
            found.append(piece)
        assert b"".join(found) == first + second
        assert source.count == len(first + second)


@pytest.mark.parametrize("seed", [9, 25, 71, 76])
def test_a_piece_may_end_where_the_decompressor_has_nothing_left(seed: int) -> None:
    """It wants no input then, and has no output either; that is not the end.  With these numbers it is so."""
    randoms = random.Random(seed)
    whole = randoms.randbytes(300_000) + bytes(3 * MIB)
    source = Uncompressed(io.BytesIO(lzma.compress(whole)), "xz", 10 * MIB)
    assert b"".join(iter(lambda: source.read(777), b"")) == whole


@pytest.mark.parametrize("method", [method for method in COMPRESSIONS if method])
def test_a_stream_that_is_cut_or_damaged_is_refused(method: str) -> None:
    data = COMPRESSIONS[method](os.urandom(300_000))
    for bad in (data[:-1000], data[:8] + b"\xff" * 50 + data[58:]):
        with pytest.raises(ArchiveError, match="stream"):
            Uncompressed(io.BytesIO(bad), method, 10 * MIB).read(MIB)


def test_many_small_streams_are_one(box: Sandbox) -> None:
    """As programs write them that want to find a file in the middle."""
    whole = tar(*((f"f{i}", f"{i}") for i in range(500)))
    parts = b"".join(gzip.compress(whole[at : at + 512]) for at in range(0, len(whole), 512))
    box.unpack(parts)
    assert len(os.listdir(box.tree)) == 500


# ---- whatever comes ----------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "..",
        "../x",
        "/a",
        "a/../b",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        "./",
        "out",
        "out/x",
        "out/outside/x",
    ]
)
TARGETS = st.sampled_from(
    ["a", "a/b", "b", "..", "../..", "/", "../../outside", "../../secret", "out", "out/secret", ""]
)
MEMBERS = st.one_of(
    st.tuples(NAMES, st.sampled_from(["x", "y" * 600, None])),
    st.tuples(NAMES, st.just("->"), TARGETS),
    st.tuples(NAMES, st.just("="), TARGETS),
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(MEMBERS, max_size=12))
def test_no_order_of_links_and_files_leads_out(
    tmp_path_factory: pytest.TempPathFactory, members: list[Any]
) -> None:
    box = Sandbox(tmp_path_factory.mktemp("any"))
    with contextlib.suppress(ArchiveError):
        box.unpack(tar(*members))
    box.check()


@settings(max_examples=300)
@given(data=st.data())
def test_no_bytes_are_more_than_refused(data: st.DataObject) -> None:
    archive = bytearray(tar(("a", "x" * 1000), ("b" * 150, "y"), ("c", "->", "a"), ("é" * 80, None)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.integers(0, 255))
    try:
        reader = TarReader(io.BytesIO(bytes(archive)))
        for member in reader:
            assert sum(map(len, reader.content())) == member.size
    except ArchiveError:
        pass


@settings(max_examples=200)
@given(
    entries=st.lists(
        st.tuples(
            st.text(
                st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"),
                min_size=1,
                max_size=300,
            ),
            st.binary(max_size=2000),
        ),
        max_size=6,
    ),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_what_others_write_is_read_as_they_read_it(entries: list[tuple[str, bytes]], form: int) -> None:
    archive = tar(*entries, format=form)
    reader = TarReader(io.BytesIO(archive))
    ours = [(member.name, b"".join(reader.content()), member.mode, member.mtime) for member in reader]
    with tarfile.open(fileobj=io.BytesIO(archive)) as theirs:
        read = [
            (os.fsencode(each.name).rstrip(b"/"), theirs.extractfile(each).read(), each.mode, each.mtime)  # type: ignore[union-attr]
            for each in theirs
        ]
    assert [(name.rstrip(b"/"), *rest) for name, *rest in ours] == read
