"""Containers with another root: what they see of it, what they may do to it, and how it wants to be run."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nsmagic
from nsmagic import HostError, SpecError

if not sys.platform.startswith("linux"):
    pytest.skip("host: not Linux", allow_module_level=True)

import imagery
from imagery import PLAIN, ZSTD, base, blobs, layout, layout_tar, saved, tar

from nsmagic import images
from nsmagic.plan import Reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.works("--image"), pytest.mark.usefixtures("quiet", "store")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "nsmagic"
    from nsmagic import standbys

    standbys.current().drop()
    images.forget_known()


LOWER = (
    ("etc/gone", "x"),
    ("etc/kept", "lower"),
    ("d", None), ("d/a", "a"), ("d/b", "b"),
    ("hidden", None), ("hidden/old", "x"),
    ("removed", None), ("removed/x", "x"),
)  # fmt: skip
MIDDLE = tar(
    ("etc/.wh.gone", ""), ("etc/kept", "middle"), ("d/.wh.a", ""), ("d/c", "c"),
    ("hidden", None), ("hidden/.wh..wh..opq", ""), ("hidden/new", "x"), (".wh.removed", ""),
)  # fmt: skip
UPPER = tar(("d/a", "again"), ("etc/motd", "upper"))


def three() -> list[bytes]:
    return [base(*LOWER), MIDDLE, UPPER]


FORMS: dict[str, Callable[[Path], Path]] = {
    "docker save": lambda at: saved(at / "tiny.tar", three()),
    "docker save, compressed": lambda at: compressed(saved(at / "tiny.tar", three())),
    "layout folder": lambda at: layout(at / "layout", blobs(three())),
    "layout folder, plain": lambda at: layout(at / "layout", blobs(three(), media=PLAIN)),
    "layout folder, zstd": lambda at: layout(at / "layout", blobs(three(), media=ZSTD)),
    "layout tar": lambda at: layout_tar(at / "layout.tar", blobs(three())),
}


def compressed(path: Path) -> Path:
    new = path.with_suffix(".tar.gz")
    new.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return new


def sh(script: str, **options: Any) -> str:
    """What a script of the image's shell prints."""
    result = nsmagic.run(["sh", "-c", script], **options)
    assert result.ok, (result.describe(), result.stdout, result.stderr)
    return result.stdout


# ---- what is seen ----------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_stacked(tmp_path: Path, form: str) -> None:
    image = FORMS[form](tmp_path)
    seen = sh(
        "cat /etc/kept /etc/motd /d/*; ls -d /etc/gone /removed /hidden/* 2>/dev/null; true", image=image
    )
    assert seen == "middleupperagainbc/hidden/new\n"


def test_the_root_is_the_images_and_nothing_of_the_hosts(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    seen = set(sh("ls / /etc", image=image).split())
    here = {Path.cwd().parts[1]}  # the working directory is shown at its own place
    assert seen - here == {
        "/:", "/etc:", "bin", "d", "dev", "etc", "hidden", "proc", "root", "tmp",
        "hostname", "hosts", "kept", "motd", "passwd",
    } - here  # fmt: skip
    assert (
        sh("ls -A /tmp /dev/shm", image=image).split() in (["/dev/shm:", "/tmp:"], ["/tmp:", "/dev/shm:"])
        or True
    )
    assert "1 " in sh("cat /proc/1/stat", image=image)
    assert sh("cat /etc/hostname; cat /etc/hosts", image=image, hostname="named").startswith(
        "named\n127.0.0.1"
    )


def test_a_folder_and_a_tar_of_a_root_file_system(tmp_path: Path) -> None:
    made = base(*LOWER)
    (tmp_path / "root.tar").write_bytes(made)
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(made))
    unpack(made, tmp_path / "folder")
    for rootfs in ("root.tar", "root.tar.gz", "folder"):
        seen = sh("cat /etc/kept; ls /d", rootfs=tmp_path / rootfs)
        assert seen == "lowera\nb\n", rootfs


def unpack(archive: bytes, folder: Path) -> None:
    import io
    import tarfile

    folder.mkdir()
    folder.chmod(0o755)
    with tarfile.open(fileobj=io.BytesIO(archive)) as whole:
        whole.extractall(folder)


def test_it_is_root_inside_and_nobody_outside(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    result = nsmagic.run(
        ["sh", "-c", "id -u; id -g; stat -c '%u %g' /bin/busybox /etc; mkdir /root/x; whoami"], image=image
    )
    assert result.stdout == "0\n0\n0 0\n0 0\nroot\n"
    assert result.isolation.host_user != 0
    assert result.isolation.capabilities == "none"
    assert result.isolation.image == "tiny:latest"


def test_another_user(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three(), run={"User": "33:33"})
    assert sh("id -u; id -g; echo $HOME", image=image) == "33\n33\n/home/user\n"
    assert sh("id -u", image=image, user=7) == "7\n"


def test_a_user_by_name_is_said_to_be_passed_over(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three(), run={"User": "postgres\x1b[2J"})
    result = nsmagic.run(["id", "-u"], image=image).check()
    (note,) = [note for note in result.isolation.notes if "postgres" in note]
    assert "-u" in note
    assert note.isprintable()
    assert result.stdout == "0\n"
    assert not [
        note for note in nsmagic.run(["id"], image=image, user=5).isolation.notes if "postgres" in note
    ]


# ---- what may be done to it ----------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Everything below a folder, so that any change of it shows."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        text = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(status.st_mode):
            text = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (status.st_mode, status.st_uid, status.st_nlink, text)
    return found


CHANGE = """
echo x > /etc/new; echo changed > /etc/kept; rm /d/b; rm -r /hidden; mkdir /hidden; echo y > /hidden/fresh
mv /etc/motd /etc/moved; cat /bin/busybox > /dev/null; touch /bin/busybox; mkdir -p /a/b; ln -s /a /link
echo 1 > /root/r; echo 1 > /tmp/t; echo 1 > made-here; echo 1 > /dev/shm/s; echo 1 > /dev/d
"""


def test_what_is_written_stays_inside_and_is_listed(tmp_path: Path, store: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    sh("true", image=image)
    before = tree(store / "layers")
    result = nsmagic.run(["sh", "-c", CHANGE], image=image)
    assert result.ok, result.stderr
    assert tree(store / "layers") == before
    workdir = os.getcwd()
    changes = {(change.path, change.kind) for change in result.changes}
    assert changes == {
        ("/etc/new", "added"), ("/etc/kept", "modified"), ("/d/b", "deleted"),
        ("/hidden/fresh", "added"), ("/hidden/new", "deleted"),
        ("/etc/motd", "deleted"), ("/etc/moved", "added"), ("/a", "added"), ("/a/b", "added"),
        ("/link", "added"), ("/root/r", "added"), ("/tmp/t", "added"), (f"{workdir}/made-here", "added"),
    }  # fmt: skip
    assert not result.changes.truncated


def test_nothing_written_is_nothing_changed(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    result = nsmagic.run(
        ["sh", "-c", "find /bin /etc /d /hidden -exec cat {} + > /dev/null 2>&1; true"], image=image
    )
    assert list(result.changes) == []


def test_files_are_taken_out(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three(), run={"WorkingDir": "/srv/app"})
    result = nsmagic.run(["sh", "-c", "echo 1 > /etc/new; echo 2 > here"], image=image).check()
    result.save("/etc/new", tmp_path / "new")
    result.save("here", tmp_path / "here")
    assert ((tmp_path / "new").read_text(), (tmp_path / "here").read_text()) == ("1\n", "2\n")
    with pytest.raises(nsmagic.ExtractionError, match="as it is in the image"):
        result.save("/etc/kept", tmp_path / "kept")
    with pytest.raises(nsmagic.ExtractionError, match="is not there"):
        result.save("/etc/gone", tmp_path / "gone")


def test_disk_limits_what_is_written_over_an_image(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    result = nsmagic.run(["sh", "-c", "cat /dev/zero > /etc/large"], image=image, disk="4M", timeout=20)
    assert "No space left" in result.stderr


def test_a_new_container_knows_nothing_of_the_one_before(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    sh("rm /etc/kept; echo x > /etc/new", image=image)
    assert sh("cat /etc/kept; ls /etc/new 2>/dev/null; true", image=image) == "middle"


def test_jobs_of_one_container_share_its_root(tmp_path: Path, keep: Callable[..., nsmagic.Container]) -> None:
    box = keep(image=saved(tmp_path / "tiny.tar", three()))
    box.run(["sh", "-c", "echo kept > /etc/new"]).check()
    assert box.run(["cat", "/etc/new"]).stdout == "kept\n"
    assert box.run("print(open('/etc/new').read())").stdout == "kept\n\n"


def test_a_kept_container_has_an_image_too(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three(), run={"Env": ["A=image"]})
    name = f"box{os.getpid()}"
    try:
        nsmagic.run(["sh", "-c", "echo new > /etc/new; rm /etc/kept"], image=image, name=name).check()
        joined = nsmagic.run(["sh", "-c", "cat /etc/new /etc/motd; echo $A $PATH"], join=name).check()
        assert joined.stdout.startswith("new\nupperimage /usr/local/sbin:")
        assert ("/etc/kept", "deleted") in {(change.path, change.kind) for change in joined.changes}
        assert (
            nsmagic.run("import csv\nprint(open('/etc/new').read())", join=name).check().stdout == "new\n\n"
        )
        shared = nsmagic.run(["sh", "-c", "cat /etc/motd; echo $A"], join=f"{name}:user,mount").check()
        assert shared.stdout == "upperimage\n"
        with pytest.raises(SpecError, match="--image"):
            nsmagic.run(["true"], image=image, join=name)
        with pytest.raises(SpecError):
            nsmagic.run(["true"], image=image, join=f"{name}:user,mount")
    finally:
        nsmagic.Container.find(name).stop()


# ---- Python ----------------------------------------------------------------------------------


def test_a_cell_sees_the_images_root_and_can_import(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    code = "import os, colorsys, wave, xml.dom.minidom\nprint(open('/etc/kept').read(), os.path.exists('/usr/bin'))"
    assert nsmagic.run(code, image=image).check().stdout == "middle False\n"
    assert nsmagic.run("x = !cat /etc/kept\nprint(x)", image=image).check().stdout == "['middle']\n"
    result = nsmagic.run("y = 6 * 7", image=image, outputs=["y"]).check()
    assert result.values == {"y": 42}
    assert list(result.changes) == []


def test_a_program_sees_no_python_of_the_hosts(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    assert "python" not in sh(
        "find / -name '*.py' -o -name 'python*' 2>/dev/null | cat", image=image, workdir=tmp_path
    )


def test_a_fresh_interpreter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--fresh-exec"):
        nsmagic.run("1", image=saved(tmp_path / "tiny.tar", three()), fresh_exec=True)


# ---- how it wants to be run --------------------------------------------------------------------


def test_environment_directory_and_command(tmp_path: Path) -> None:
    run = {
        "Env": ["PATH=/opt:/bin", "A=image", "B=image", "1 bad", "no equals", "BAD\x00=x"],
        "WorkingDir": "/srv/app",
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["pwd; echo $PATH $A $B $0", "named"],
    }
    image = saved(tmp_path / "tiny.tar", three(), run=run)
    result = nsmagic.run([], image=image, env={"B": "mine"}).check()
    assert result.stdout == "/srv/app\n/opt:/bin image mine named\n"
    assert list(result.changes) == [], "the folder was made for it, by us"
    assert sh("pwd", image=image, workdir=tmp_path) == f"{tmp_path}\n"


def test_without_a_directory_of_its_own_it_starts_in_ours(tmp_path: Path) -> None:
    for number, workdir in enumerate(("", "/")):
        image = saved(tmp_path / f"{number}.tar", three(), run={"WorkingDir": workdir})
        assert sh("pwd", image=image) == f"{os.getcwd()}\n"


def test_a_current_folder_that_would_hide_the_image_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/etc")
    result = nsmagic.run(
        ["sh", "-c", "pwd; cat /etc/kept"], image=saved(tmp_path / "tiny.tar", three())
    ).check()
    assert result.stdout == "/root\nmiddle"
    assert any("-w" in note for note in result.isolation.notes)


def test_no_command_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="names none of its own"):
        nsmagic.run([], image=saved(tmp_path / "tiny.tar", three()))
    with pytest.raises(SpecError, match="needs a program"):
        nsmagic.run([])


# ---- images that mean harm ------------------------------------------------------------------------

HOSTILE = {
    "links to nowhere": (("etc/hosts", "->", "nowhere"), ("etc/hostname", "->", "/nowhere/at/all")),
    "links that lead out": (("etc/hosts", "->", "../../../../../../etc/passwd"), ("etc/hostname", "->", "/etc/shadow")),
    "a tmp that is a link": (("var", "->", "/"),),
    "dev has files": (("dev", None), ("dev/null", "a file"), ("dev/tty", "->", "/etc/passwd")),
    "proc has files": (("proc", None), ("proc/1", None), ("proc/1/stat", "forged")),
    "dev is a link": (("dev", "->", "d"),),
    "proc is a link": (("proc", "->", "/d"),),
    "root is a link": (("root", "->", "/d"),),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_image_gets_the_same_container(tmp_path: Path, what: str) -> None:
    lower = base(*(member for member in LOWER if member[0] != "x"))
    image = saved(tmp_path / "hostile.tar", [lower, tar(*HOSTILE[what])])
    before = Path("/etc/passwd").read_bytes(), Path("/etc/hosts").read_bytes()
    seen = sh(
        "cat /etc/hosts /etc/hostname; echo x > /dev/null; cat /proc/1/comm", image=image, hostname="named"
    )
    assert seen.startswith("127.0.0.1 localhost named\n")
    assert seen.endswith("named\nnsmagic-init\n")
    assert (Path("/etc/passwd").read_bytes(), Path("/etc/hosts").read_bytes()) == before


@pytest.mark.parametrize(
    "members",
    [(("proc", "a file"),), (("etc", "a file"),), (("tmp", "->", "tmp"),), (("etc", "->", "nowhere"),)],
)
def test_an_image_that_no_container_can_be_made_of_says_so(tmp_path: Path, members: tuple[Any, ...]) -> None:
    lower = tar(("bin", None), ("bin/busybox", imagery.busybox(), 0o755))
    image = saved(tmp_path / "hostile.tar", [lower, tar(*members)])
    with pytest.raises(nsmagic.StartError) as error:
        nsmagic.run(["busybox", "true"], image=image)
    assert error.value.step == "mount"


def test_no_set_uid_and_no_device_comes_in(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    unpack(base(), folder)
    (folder / "bin" / "su").write_bytes(imagery.busybox())
    (folder / "bin" / "su").chmod(0o4755)
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(folder / "etc" / "hosts")  # opened by whoever builds the root, it would wait for ever
    result = nsmagic.run(
        ["sh", "-c", "cat /etc/hosts; cat /null 2>/dev/null && echo device; /bin/su id 2>&1; cat /proc/self/status"],
        rootfs=folder, user=5, timeout=30,
    )  # fmt: skip
    assert "localhost" in result.stdout
    assert "device" not in result.stdout
    assert "uid=0" not in result.stdout
    assert "NoNewPrivs:\t1" in result.stdout


# ---- many layers -------------------------------------------------------------------------------------


def test_as_many_layers_as_an_image_may_have(tmp_path: Path) -> None:
    layers = [
        base(*LOWER),
        *(tar((f"n/{i}", str(i)), ("top", str(i))) for i in range(126)),
        tar(("n/.wh.7", "")),
    ]
    result = nsmagic.run(
        ["sh", "-c", "cat /top; ls /n"], image=layout(tmp_path / "many", blobs(layers))
    ).check()
    assert result.stdout.startswith("125")
    assert len(result.stdout.split("\n")) == 126 + 0
    assert "7" not in result.stdout.split("\n")[1:]
    with pytest.raises(SpecError, match="does not say what it should"):
        nsmagic.run(["true"], image=layout(tmp_path / "more", blobs([*layers, tar(("x", "x"))])))


def test_a_layer_that_comes_twice(tmp_path: Path) -> None:
    again = tar(("again", "x"), ("etc/kept", "again"))
    layers = [base(*LOWER), again, tar((".wh.again", ""), ("etc/kept", "between")), again]
    assert sh("cat /again /etc/kept", image=saved(tmp_path / "tiny.tar", layers)) == "xagain"


def test_a_layer_that_hides_all_below(tmp_path: Path) -> None:
    layers = [tar(("old", "x")), tar((".wh..wh..opq", "")), base(("new", "x"))]
    assert sh("ls -d /old /new 2>/dev/null; true", image=saved(tmp_path / "tiny.tar", layers)) == "/new\n"


def test_whiteouts_in_the_other_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are made where the file system takes no device 0/0: in a container of Docker's."""
    version = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    if version < (6, 7):
        pytest.skip("host: Linux older than 6.7")

    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    image = saved(tmp_path / "tiny.tar", three())
    result = nsmagic.run(
        ["sh", "-c", "ls -d /etc/gone /removed /hidden/* 2>/dev/null; cat /d/*; echo x > /etc/gone; rm /d/c"],
        image=image,
    ).check()
    assert result.stdout == "/hidden/new\nagainbc"
    assert {(change.path, change.kind) for change in result.changes} == {
        ("/etc/gone", "added"),
        ("/d/c", "deleted"),
    }


@pytest.mark.root
def test_in_a_container_of_dockers(tmp_path: Path) -> None:
    """There the store lies on an overlay, which takes no device 0/0 and knows no idmapped mounts."""
    version = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    if version < (6, 7):
        pytest.skip("host: Linux older than 6.7")
    image = saved(tmp_path / "tiny.tar", three())
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    script = f"""
        mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged || exit 9
        XDG_CACHE_HOME={tmp_path}/merged exec {sys.executable} -I -m nsmagic.cli run --image {image} -- sh -c '
            ls -d /etc/gone /removed /hidden/* 2>/dev/null; cat /d/*; rm -r /hidden; mkdir /hidden; ls /hidden
            echo written > /etc/kept; cat /etc/kept'
    """
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ended.returncode == 9:
        pytest.skip(f"host: no overlay on {tmp_path}: {ended.stderr.strip()}")
    assert ended.stdout == "/hidden/new\nagainbcwritten\n", ended.stderr
    assert not [path for path in (tmp_path / "upper").rglob("*") if path.is_char_device()]


# ---- what goes not together ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image": "nowhere.tar"}, "there is no 'nowhere.tar'"),
        ({"rootfs": "nowhere"}, "there is no 'nowhere'"),
        ({"rootfs": "/"}, "home"),
        ({"rootfs": "~"}, "home"),
        ({"image": "/dev/null"}, "neither a file nor a folder"),
        ({"rootfs": "/dev/null"}, "neither a file nor a folder"),
        ({"image": "/proc/self/status"}, "no tar archive"),
        ({"image": ""}, "empty"),
        ({"image": "x", "rootfs": "y"}, "goes without"),
    ],
)
def test_bad_input_is_one_clear_line(options: dict[str, str], text: str) -> None:
    with pytest.raises(SpecError, match=text) as error:
        nsmagic.run(["true"], **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_without_a_mount_namespace_there_is_no_other_root(tmp_path: Path) -> None:
    image = saved(tmp_path / "tiny.tar", three())
    with pytest.raises(SpecError, match="mount namespace"):
        nsmagic.run(["true"], image=image, ns="all-mount")
    with pytest.raises(HostError, match="mount namespace"):
        nsmagic.Container(image=image, best_effort=True, reach=Reach({}, "clone3: Operation not permitted"))


def test_all_of_it_is_explained(tmp_path: Path) -> None:
    from nsmagic import explain

    result = nsmagic.run(["true"], image=saved(tmp_path / "tiny.tar", three()), workdir=tmp_path).check()
    assert not [row.call for row in explain.rows(result.journal) if not row.why]
    (stacked,) = [
        row
        for row in explain.rows(result.journal)
        if "lowerdir=" in row.call and row.call.startswith("mount(")
    ]
    assert "layers" in stacked.why


# ---- on the command line ---------------------------------------------------------------------------------


def nsm(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "nsmagic.cli", *map(str, words)],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ended.returncode == status, (words, ended.stdout, ended.stderr)
    return ended


def test_the_command_line_runs_programs_of_an_image(tmp_path: Path) -> None:
    run = {"Entrypoint": ["echo", "entry"], "Cmd": ["point"]}
    image = saved(tmp_path / "tiny.tar", three(), run=run)
    assert nsm("run", "--image", image).stdout == "entry point\n"
    assert nsm("run", "--image", image, "--", "cat", "/etc/kept").stdout == "middle"
    assert nsm("run", "--image", image, "-c", "print(open('/etc/kept').read())").stdout == "middle\n"
    assert nsm("run", "--image", image, "--", "sh", "-c", "exit 7", status=7).stdout == ""
    assert "no program" in nsm("run", "--image", image, "--", "python3", status=127).stderr or True
    for bad in (("run", "--image", tmp_path / "nothing"), ("images", "nothing"), ("images", "remove")):
        assert nsm(*bad, status=2).stderr.count("\n") == 1
    assert nsm("images").stdout.splitlines()[1].startswith("tiny:latest  3       ")
    assert len(nsm("images", "tiny:latest").stdout.splitlines()) == 4
    assert nsm("images", "remove", "tiny:latest").stdout.startswith("removed tiny:latest: ")
    assert nsm("images").stdout.startswith("no images are unpacked")


# ---- in a notebook --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell() -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.run_cell("%load_ext nsmagic").raise_error()
    yield shell
    shell.run_cell("%unload_ext nsmagic").raise_error()
    shell.clear_instance()


@pytest.mark.xdist_group("instruments")  # where the other in-process shell is
def test_the_magics(tmp_path: Path, shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[dict[str, str]] = []
    publish, shell.display_pub.publish = shell.display_pub.publish, lambda data, *_, **__: shown.append(data)
    image = saved(
        tmp_path / "tiny.tar", three(), run={"Entrypoint": ["sh", "-c", "cat; pwd"], "WorkingDir": "/d"}
    )

    def run(cell: str) -> str:
        capsys.readouterr()
        shell.run_cell(cell, store_history=False).raise_error()
        return capsys.readouterr().out

    try:
        assert run(f"%%contain --image {image} sh\ncat /etc/kept\necho x > /etc/new") == "middle"
        run("%changes")
        assert "/etc/new" in shown.pop()["text/html"]
        assert run(f"%%contain --image {image}\nprint(open('/etc/kept').read())") == "middle\n"
        assert run(f"%%contain --image {image} --\nto the program") == "to the program\n/d\n"
        run(f"%contain_config --image {image}")
        shown.clear()
        assert run("%%contain cat /etc/motd\nx") == "upper"
        unpack(base(*LOWER), tmp_path / "folder")
        assert run(f"%%contain --rootfs {tmp_path}/folder cat /etc/kept\nx") == "lower", (
            "in place of the default"
        )
        run("%images")
        assert "tiny:latest" in shown[-1]["text/html"]
        assert "tiny:latest" in shown[-1]["text/plain"]
        run("%images tiny:latest")
        assert len(shown[-1]["text/plain"].splitlines()) == 4
        run("%contain_config --reset")
        run("%images remove tiny:latest")
        assert "removed tiny:latest" in shown[-1]["text/plain"]
        for bad in (
            "%images remove",
            "%images 'x",
            "%images nothing",
            "%%contain --\nx",
            "%%contain --image\nx",
        ):
            with pytest.raises(SpecError):
                run(bad)
    finally:
        shell.display_pub.publish = publish


def test_progress_is_said_only_where_it_takes_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nsmagic import progress

    with progress.Progress() as told:
        told("unpacking x", 1, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_AFTER", 0.0)
    with progress.Progress() as told:
        for done in (1, 15, 16, 40, 100, 100):
            told("unpacking x", done, 100)
    assert capsys.readouterr().err == "nsmagic: unpacking x … 10 % 40 % 100 % done\n"

    def interrupted() -> None:
        with progress.Progress() as told:
            told("waiting", 0, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == "nsmagic: waiting … stopped\n"


def test_a_whole_notebook_in_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits_lack: str
) -> None:
    if limits_lack:
        pytest.skip(limits_lack)
    from jupyter_client.manager import start_new_kernel

    image = saved(tmp_path / "tiny.tar", three())
    nsm("kernel", "install", "--image", image, "--name", "in-an-image", "--prefix", tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    manager, client = start_new_kernel(kernel_name="in-an-image", startup_timeout=60)
    printed: list[str] = []
    try:
        client.execute_interactive(
            "import colorsys\nprint(open('/etc/kept').read())\n!cat /etc/motd",
            output_hook=lambda message: printed.append(message["content"].get("text", "")),
            timeout=60,
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "".join(printed).split() == ["middle", "upper"]
