"""Kernel specs: those of the wheel, those that `nsmagic kernel` makes, and other programs' in a container."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import nsmagic
from nsmagic import cli, options, spec
from nsmagic.errors import SpecError
from nsmagic.kernel import commands, specs, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

SAFE, WIDGETS = "isolated-python", "isolated-python-widgets"
DATA = Path(specs.__file__).parent / "data"
SHARE = Path(sys.prefix, "share", "jupyter", "kernels")
SECONDS = 60.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, so that nobody's kernels are seen or touched."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in [name for name in os.environ if name.startswith(("JUPYTER", "XDG", "IPYTHON"))]:
        monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "prefix"


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def call(*words: str | Path) -> Ended:
    """`nsmagic kernel` with these words, in this process: it is quicker by far."""
    out, err = io.StringIO(), io.StringIO()
    # The command line sets how it ends on signals; the tests shall not end so.
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(["kernel", *map(str, words)])
    finally:
        for number, handler in kept:
            signal.signal(number, handler)
    return Ended(status, out.getvalue(), err.getvalue())


def start(*words: str | Path) -> Ended:
    """The same in a process of its own, as a shell starts it."""
    command = [Path(sys.executable).parent / "nsmagic", "kernel", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def done(*words: str | Path) -> str:
    """What a command prints, which must end well and without a complaint."""
    ended = call(*words)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def refused(*words: str | Path, status: int = 125) -> str:
    """The one line that a command complains in."""
    ended = call(*words)
    assert (ended.returncode, ended.stdout) == (status, ""), ended
    assert ended.stderr.startswith("nsmagic: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr.removeprefix("nsmagic: ").rstrip("\n")


def written(prefix: Path, name: str) -> dict[str, Any]:
    return json.loads((prefix / "share/jupyter/kernels" / name / "kernel.json").read_text())


def words_of(spec: dict[str, Any]) -> list[str]:
    """The options in an argv of ours, for the supervisor."""
    assert spec["argv"][:6] == [sys.executable, *specs.packaged("safe")["argv"][1:6]]
    return spec["argv"][6:]


def settings(spec: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """An argv of ours as the supervisor reads it."""
    return options.parse(words_of(spec), options.KERNEL_SCOPES)


def foreign(home: Path, name: str, **contents: Any) -> Path:
    """Another program's kernel spec, in the user's Jupyter folder."""
    folder = home / ".local/share/jupyter/kernels" / name
    folder.mkdir(parents=True)
    plain = {"argv": ["/bin/sh", "{connection_file}"], "display_name": name.title(), "language": "sh"}
    (folder / "kernel.json").write_text(json.dumps({**plain, **contents}))
    return folder


# ---- what the wheel installs -------------------------------------------------------------


def test_jupyter_finds_both() -> None:
    program = Path(sys.executable).parent / "jupyter"
    listed = subprocess.run(
        [program, "kernelspec", "list", "--json"], capture_output=True, text=True, timeout=SECONDS, check=True
    )
    found = json.loads(listed.stdout)["kernelspecs"]
    for name in (SAFE, WIDGETS):
        assert found[name]["resource_dir"] == str(SHARE / name)
        assert found[name]["spec"]["interrupt_mode"] == "message"
        assert found[name]["spec"]["language"] == "python"
    assert found[SAFE]["spec"]["display_name"] == "Isolated Python"
    assert found[SAFE]["spec"]["metadata"]["debugger"] is False
    assert found[SAFE]["spec"]["metadata"]["nsmagic"] == {}
    assert found[WIDGETS]["spec"]["display_name"] == "Isolated Python (widgets)"
    assert found[WIDGETS]["spec"]["metadata"]["debugger"] is True


@pytest.mark.parametrize("name", [SAFE, WIDGETS])
def test_what_is_installed_is_what_others_are_made_from(name: str) -> None:
    files = {"kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}
    for folder in (DATA / name, SHARE / name):
        assert {path.name for path in folder.iterdir()} == files
    for file in files:
        assert (DATA / name / file).read_bytes() == (SHARE / name / file).read_bytes()


@pytest.mark.parametrize(("name", "output"), [(SAFE, "safe"), (WIDGETS, "widgets")])
def test_jupyter_starts_the_supervisor_with_the_very_python(name: str, output: str, tmp_path: Path) -> None:
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name=name, connection_file=str(tmp_path / "connection.json"))
    argv = manager.format_kernel_cmd()
    assert argv[0] == sys.executable
    assert options.parse(argv[6:], options.KERNEL_SCOPES) == (
        {"connection_file": str(tmp_path / "connection.json"), "output": output},
        [],
    )
    assert not any("ipykernel" in word for word in argv)


def test_front_ends_do_not_take_a_wrapped_ipykernel_for_their_own(prefix: Path) -> None:
    # They look for the first -m, and start an ipykernel in their own way: outside of any container.
    done("wrap", "python3", "--prefix", prefix)
    argv = written(prefix, "isolated-python3")["argv"]
    assert argv[argv.index("-m") + 1] == "nsmagic.kernel"


@pytest.mark.parametrize("python_path", [None, "", "/nowhere:"])
def test_no_module_of_the_notebooks_folder_is_run_outside(python_path: str | None, tmp_path: Path) -> None:
    names = ["nsmagic", "zmq", "msgspec", "json", "logging", "runpy", "jupyter_client", "hmac", "encodings"]
    for name in names:
        Path(f"{name}.py").write_text("raise SystemExit('ran outside')\n")
    argv = [sys.executable, *specs.packaged("safe")["argv"][1:]]
    argv[argv.index("{connection_file}")] = str(tmp_path / "missing.json")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if python_path is not None:
        environment["PYTHONPATH"] = python_path
    plain = [sys.executable, "-m", "nsmagic.kernel", *argv[6:]]
    ended = [
        subprocess.run(each, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        for each in (argv, plain)
    ]
    # It got as far as to miss its connection file.
    assert "missing.json" in ended[0].stderr, ended[0]
    assert "ran outside" not in ended[0].stderr
    assert "ran outside" in ended[1].stderr, "the trap does not work"


def test_modules_of_pythonpath_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/msgspec.py").write_text("raise SystemExit('of PYTHONPATH')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/mine")
    argv = [sys.executable, *specs.packaged("safe")["argv"][1:]]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.stderr == "of PYTHONPATH\n"


def pixels(file: Path) -> tuple[int, list[tuple[int, ...]]]:
    """The side and the pixels of one of our PNGs: 8 bits a channel, with opacity, no row filtered."""
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + length
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, form) == (height, [8, 6, 0, 0, 0])
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [raw[start + 1 : start + 1 + 4 * width] for start in range(0, len(raw), 4 * width + 1)]
    return width, [tuple(row[i : i + 4]) for row in rows for i in range(0, len(row), 4)]


@pytest.mark.parametrize("size", [32, 64])
def test_logos_can_be_told_apart(size: int) -> None:
    pictures = []
    for name in (SAFE, WIDGETS):
        side, picture = pixels(DATA / name / f"logo-{size}x{size}.png")
        assert side == size
        assert picture[0][3] == 0, "a corner is not transparent"
        pictures.append(picture)
    different = [a for a, b in zip(*pictures, strict=True) if sum(map(abs, map(int.__sub__, a, b))) > 60]
    assert len(different) > size * size / 3


@pytest.mark.parametrize("name", [SAFE, WIDGETS])
def test_the_drawing_is_plain(name: str) -> None:
    root = ET.parse(DATA / name / "logo-svg.svg").getroot()
    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {"svg", "rect", "polyline"}
    assert (DATA / name / "logo-svg.svg").stat().st_size < 2048


# ---- install ---------------------------------------------------------------------------------


def test_install_with_other_limits(prefix: Path) -> None:
    name = "isolated-python-mem-4g-net-host"
    said = done("install", "--prefix", prefix, "--mem", "4G", "--net", "host", "-e", "A=b c", "--name", name)
    assert said == (
        f"installed 'Isolated Python (mem 4G, net host, env A=b c)' as {name} "
        f"in {prefix}/share/jupyter/kernels/{name}\n"
    )
    spec = written(prefix, name)
    assert settings(spec) == (
        {
            "connection_file": "{connection_file}",
            "output": "safe",
            "mem": 4 << 30,
            "net": "host",
            "env": (("A", "b c"),),
        },
        [],
    )
    assert spec["interrupt_mode"] == "message"
    assert spec["metadata"] == specs.packaged("safe")["metadata"]
    folder = prefix / "share/jupyter/kernels" / name
    assert folder.stat().st_mode & 0o055 == 0o055, "others cannot read it"
    assert (folder / "logo-32x32.png").read_bytes() == (DATA / SAFE / "logo-32x32.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "name", "shown"),
    [
        ([], SAFE, "Isolated Python"),
        (["--widgets"], WIDGETS, "Isolated Python (widgets)"),
        (["-m4G"], f"{SAFE}-mem-4g", "Isolated Python (mem 4G)"),
        (["--cell-timeout=1.5m"], f"{SAFE}-cell-timeout-1.5m", "Isolated Python (cell-timeout 1.5m)"),
        (["--best-effort"], f"{SAFE}-best-effort", "Isolated Python (best-effort)"),
        (["-b", "/usr:/opt/usr"], f"{SAFE}-bind", "Isolated Python (bind /usr:/opt/usr)"),
        (["--ns", "all-net"], f"{SAFE}-ns-all-net", "Isolated Python (ns all-net)"),
        (["--display-name", "Grader"], SAFE, "Grader"),
        (["--name", "Grader"], "grader", "Isolated Python"),
    ],
)
def test_names_tell_limits_apart(words: list[str], name: str, shown: str, prefix: Path) -> None:
    done("install", "--prefix", prefix, *words)
    assert [folder.name for folder in (prefix / "share/jupyter/kernels").iterdir()] == [name]
    assert written(prefix, name)["display_name"] == shown


def test_widgets_have_a_debugger_and_their_own_logo(prefix: Path) -> None:
    done("install", "--prefix", prefix, "--widgets", "--name", "w")
    assert settings(written(prefix, "w"))[0]["output"] == "widgets"
    assert written(prefix, "w")["metadata"]["debugger"] is True
    logo = prefix / "share/jupyter/kernels/w/logo-64x64.png"
    assert logo.read_bytes() == (DATA / WIDGETS / "logo-64x64.png").read_bytes()


def test_paths_hold_wherever_the_kernel_is_started(prefix: Path) -> None:
    Path("data").mkdir()
    here = os.getcwd()
    done(
        "install", "--prefix", prefix, "--bind", "data:rw", "-b", "data:/in", "--workdir", ".", "--name", "x"
    )
    given = settings(written(prefix, "x"))[0]
    assert [(bind.source, bind.target, bind.mode) for bind in given["bind"]] == [
        (f"{here}/data", f"{here}/data", "rw"),
        (f"{here}/data", "/in", "ro"),
    ]
    assert given["workdir"] == here


def test_the_users_own_folder_is_the_place_where_nothing_is_said(home: Path) -> None:
    kernels = home / ".local/share/jupyter/kernels"
    assert f" in {kernels}/" in done("install", "--mem", "2G")
    assert f" in {kernels}/" in done("install", "--mem", "3G", "--user")
    assert {folder.name for folder in kernels.iterdir()} == {f"{SAFE}-mem-2g", f"{SAFE}-mem-3g"}


def test_sys_prefix_is_this_pythons_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    assert commands.main(["install", "--sys-prefix", "--mem", "2G"]) == 0
    assert written(tmp_path / "venv", f"{SAFE}-mem-2g")["argv"][0] == sys.executable


def test_nothing_is_overwritten_unasked(prefix: Path) -> None:
    done("install", "--prefix", prefix, "--name", "mine", "--mem", "2G")
    assert "replace it with --replace" in refused("install", "--prefix", prefix, "--name", "mine")
    assert settings(written(prefix, "mine"))[0]["mem"] == 2 << 30
    done("install", "--prefix", prefix, "--name", "mine", "--mem", "3G", "--replace")
    assert settings(written(prefix, "mine"))[0]["mem"] == 3 << 30


def test_another_programs_spec_stays(home: Path, prefix: Path) -> None:
    folder = foreign(home, "toy")
    before = (folder / "kernel.json").read_bytes()
    for words in (["--name", "toy"], ["--name", "TOY", "--replace"]):
        assert "belongs to another program" in refused("install", *words)
    # One of another place would hide it: that, too, only when it is asked for.
    assert "another program's kernel" in refused("install", "--name", "toy", "--prefix", prefix)
    done("install", "--name", "toy", "--prefix", prefix, "--replace")
    assert "was not made by nsmagic" in refused("remove", "toy")
    assert (folder / "kernel.json").read_bytes() == before


def test_a_folder_that_is_no_spec_stays(home: Path) -> None:
    folder = home / ".local/share/jupyter/kernels/odd"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    assert "belongs to another program" in refused("install", "--name", "odd", "--replace")
    (folder / "kernel.json").write_text("[[" * 100_000)
    assert "belongs to another program" in refused("install", "--name", "odd", "--replace")
    assert "was not made by nsmagic" in refused("remove", "odd")
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["instal"], 2, "kernel instal: there is no such command; did you mean install?"),
        (["install", "--mem", "12Q"], 2, "--mem: '12Q' is not a size"),
        (["install", "--mem", "1K"], 2, "--mem: '1K' is out of range"),
        (["install", "--meme", "1G"], 2, "--meme: there is no such option; did you mean --mem?"),
        (["install", "--mem"], 2, "--mem: needs a value: --mem SIZE"),
        (["install", "--cell-timeout", "0"], 2, "--cell-timeout: '0' is not a duration"),
        (["install", "--widgets=1"], 2, "--widgets: takes no value"),
        (["install", "--ns", "uts", "--net", "none"], 2, "--net: none needs a network namespace"),
        (["install", "--bind", "/no/such/folder"], 2, "--bind: there is no '/no/such/folder' on this host"),
        (["install", "--workdir", "/no/such"], 2, "--workdir: there is no folder '/no/such'"),
        (["install", "--timeout", "9"], 2, "--timeout: a kernel runs until it is shut down; --cell-timeout"),
        (["install", "--rich", "trusted"], 2, "--rich: is for cells of %%contain"),
        (["install", "--output-limit", "9:x"], 2, "--output-limit: 'x' is not what can be done at the limit"),
        (["install", "--fresh-exec"], 2, "--fresh-exec: is for one run"),
        (["install", "-f", "x"], 2, "-f: there is no such option"),
        (["install", "--name", "a b"], 2, "--name: 'a b' is not a kernel's name"),
        (["install", "--name", "../up"], 2, "--name: '../up' is not a kernel's name"),
        (["install", "--name", ".."], 2, "--name: '..' is not a kernel's name"),
        (["install", "--name", "a\nb"], 2, "--name: 'a\\nb' is not a kernel's name"),
        (["install", "--name", ""], 2, "--name: is empty"),
        (["install", "--user", "--prefix", "p"], 2, "--user: names one place and --prefix another"),
        (["install", "--user", "root"], 2, "root: is no option; the user inside is -u"),
        (["install", "extra"], 2, "extra: is no option"),
        (["install", "--prefix", "/dev/null"], 2, "--prefix: '/dev/null' is not a folder"),
        (["install", "--prefix", "/dev/null/x"], 125, f"the kernel {SAFE} cannot be written to /dev/null/x"),
        (["install", "--name", "python3"], 125, "python3 is the name of another program's kernel"),
        (["wrap"], 2, "nsmagic kernel wrap: needs the name of a kernel"),
        (["wrap", "--mem", "1G"], 2, "nsmagic kernel wrap: needs the name of a kernel"),
        (["wrap", "pythn3"], 125, "there is no kernel 'pythn3'; did you mean python3?"),
        (["wrap", SAFE], 125, f"the kernel {SAFE} runs in a container already"),
        (["wrap", "python3", "--mem", "12Q"], 2, "--mem: '12Q' is not a size"),
        (["remove"], 2, "nsmagic kernel remove: needs the name of a kernel"),
        (
            ["remove", "isolated-pythn"],
            125,
            "there is no kernel 'isolated-pythn'; did you mean isolated-python?",
        ),
        (["remove", "python3"], 125, "the kernel python3 in "),
        (["remove", "x", "--mem", "1G"], 2, "--mem: is no option here"),
        (["list", "--mem", "1G"], 2, "--mem: is no option here"),
        (["list", "x"], 2, "x: is no option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], status: int, said: str, home: Path) -> None:
    assert refused(*words, status=status).startswith(said)
    assert list(home.rglob("kernel.json")) == [], "something was written all the same"


def test_a_shell_sees_the_same(prefix: Path, home: Path) -> None:
    foreign(home, "toy", argv=["sh", "{connection_file}"])
    commands = [
        ("install", "--prefix", prefix, "--mem", "2G"),
        ("wrap", "toy", "--prefix", prefix, "--name", "x"),
        ("list", "--prefix", prefix),
        ("remove", "x", "--prefix", prefix),
    ]
    for words in commands:
        status, stdout, stderr = start(*words)
        assert (status, stderr) == (0, ""), words
        assert str(prefix) in stdout
    assert start("install", "--mem", "12Q") == (
        2,
        "",
        "nsmagic: --mem: '12Q' is not a size; write bytes, or a number with K, M or G, as in 128M\n",
    )
    assert start("remove", "x", "--prefix", prefix)[:2] == (125, "")


# ---- list and remove -----------------------------------------------------------------------------


def test_list_shows_ours_alone(home: Path, prefix: Path) -> None:
    foreign(home, "toy")
    done("install", "--mem", "4G", "--cell-timeout", "30")
    table = done("list").splitlines()
    assert table[0].split() == ["name", "shown", "as", "limits", "folder"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert set(rows) == {f"{SAFE}-mem-4g-cell-timeout-30", SAFE, WIDGETS}
    assert "  mem 4G, pids 1024, disk 2G, cell-timeout 30  " in rows[f"{SAFE}-mem-4g-cell-timeout-30"]
    assert "  mem 1G, pids 1024, disk 2G  " in rows[SAFE]
    assert rows[SAFE].endswith(str(SHARE / SAFE))
    assert (
        done("list", "--prefix", prefix) == "no kernel of nsmagic is installed; see nsmagic kernel --help\n"
    )


def test_list_as_json(prefix: Path) -> None:
    assert json.loads(done("list", "--json", "--prefix", prefix)) == []
    done(
        "install", "--prefix", prefix, "--mem", "4G", "-e", "A=1", "-e", "B=2", "--best-effort", "--name", "x"
    )
    (row,) = json.loads(done("list", "--json", "--prefix", prefix))
    assert row == {
        "name": "x",
        "display_name": "Isolated Python (mem 4G, env A=1, env B=2, best-effort)",
        "folder": f"{prefix}/share/jupyter/kernels/x",
        "options": {
            "output": "safe",
            "mem": "4G",
            "pids": "1024",
            "disk": "2G",
            "env": "A=1 B=2",
            "best_effort": "yes",
        },
    }


def test_a_spec_that_somebody_broke_is_listed_and_can_be_removed(prefix: Path) -> None:
    done("install", "--prefix", prefix, "--name", "x")
    file = prefix / "share/jupyter/kernels/x/kernel.json"
    spec = json.loads(file.read_text())
    file.write_text(
        json.dumps({**spec, "argv": [*spec["argv"], "--mem", "12Q"], "display_name": "a\x1b[2Jb"})
    )
    assert "not understood: --mem: '12Q'" in done("list", "--prefix", prefix)
    assert "a?[2Jb" in done("list", "--prefix", prefix)
    (row,) = json.loads(done("list", "--json", "--prefix", prefix))
    assert row["problem"].startswith("--mem: '12Q'")
    for argv in (7, [], [None], None, ["sh"]):
        file.write_text(json.dumps({**spec, "argv": argv}))
        assert "not understood: argv: " in done("list", "--prefix", prefix)
    done("remove", "x", "--prefix", prefix)


def test_remove(prefix: Path) -> None:
    done("install", "--prefix", prefix, "--name", "x")
    done("install", "--prefix", prefix, "--name", "y")
    assert done("remove", "X", "--prefix", prefix) == f"removed {prefix}/share/jupyter/kernels/x\n"
    assert [folder.name for folder in (prefix / "share/jupyter/kernels").iterdir()] == ["y"]
    assert refused("remove", "x", "--prefix", prefix).startswith("there is no kernel 'x'; see nsmagic")


def test_remove_takes_a_link_and_not_what_it_leads_to(prefix: Path, tmp_path: Path) -> None:
    done("install", "--prefix", prefix, "--name", "x")
    kernels = prefix / "share/jupyter/kernels"
    (kernels / "x").rename(tmp_path / "kept")
    (kernels / "x").symlink_to(tmp_path / "kept")
    assert "belongs to another program" in refused("install", "--prefix", prefix, "--name", "x", "--replace")
    done("remove", "x", "--prefix", prefix)
    assert list(kernels.iterdir()) == []
    assert (tmp_path / "kept" / "kernel.json").exists()


@pytest.mark.ordinary_user
def test_a_place_that_may_not_be_written_is_said(prefix: Path) -> None:
    done("install", "--prefix", prefix, "--name", "x")
    kernels = prefix / "share/jupyter/kernels"
    kernels.chmod(0o555)
    try:
        assert "Permission denied; choose another place" in refused(
            "install", "--prefix", prefix, "--name", "y"
        )
        (kernels / "x").chmod(0o555)
        assert "cannot be removed: Permission denied" in refused("remove", "x", "--prefix", prefix)
    finally:
        kernels.chmod(0o755)
        (kernels / "x").chmod(0o755)


# ---- wrap --------------------------------------------------------------------------------------------


def look(spec: dict[str, Any], *words: str) -> str:
    """Run a wrapped kernel's program, with other words behind it, in a container that sees what the spec says."""
    given, argv = settings(spec)
    result = nsmagic.run([argv[0], *words], bind=given.get("bind", ()), env=dict(given.get("env", ())))
    assert result.ok, (result.describe(), result.stderr)
    return str(result.stdout)


@pytest.fixture
def toy(home: Path, tmp_path: Path) -> Path:
    """A kernel like that of a shell: a script elsewhere, with an interpreter elsewhere and files of its own."""
    tools = tmp_path / "tools"
    for folder in ("engine-1.0/bin", "scripts"):
        (tools / folder).mkdir(parents=True)
    (tools / "engine").symlink_to("engine-1.0")
    shutil.copy("/bin/sh", tools / "engine-1.0/bin/engine")
    script = tools / "scripts/toy"
    script.write_text(f'#!{tools}/engine/bin/engine\n. "$1/library"\nanswer "$GREETING" "$2"\n')
    script.chmod(0o755)
    folder = foreign(
        home,
        "toy",
        argv=[str(script), "{resource_dir}", "{connection_file}", "--mode", "{other}"],
        display_name="Toy",
        language="Sh",
        interrupt_mode="message",
        env={"GREETING": "hello $PLACE ${NOT_SET} $$"},
        metadata={"debugger": True, "kernel_provisioner": {"provisioner_name": "local-provisioner"}},
    )
    (folder / "library").write_text('answer() { echo "$@"; }\n')
    (folder / "logo-64x64.png").write_bytes(b"a picture")
    (folder / "logo-svg.svg").mkdir()
    return folder


def test_wrap(toy: Path, tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "moon")
    tools = tmp_path / "tools"
    said = done("wrap", "toy", "--prefix", prefix, "--mem", "512M", "--cell-timeout", "1m")
    assert said.splitlines() == [
        f"installed 'Toy (isolated)' as isolated-toy in {prefix}/share/jupyter/kernels/isolated-toy",
        f"shows, read-only: {toy}",
        f"shows, read-only: {tools}/engine",
        f"shows, read-only: {tools}/engine-1.0",
        f"shows, read-only: {tools}/scripts/toy",
        "took the present values of: GREETING",
    ]
    spec = written(prefix, "isolated-toy")
    given, argv = settings(spec)
    assert argv == [f"{tools}/scripts/toy", str(toy), "{connection_file}", "--mode", "{other}"]
    assert {key: value for key, value in given.items() if key != "bind"} == {
        "connection_file": "{connection_file}",
        "output": "safe",
        "wrapped_name": "toy",
        "interrupt": "message",
        "language": "sh",
        "env": (("GREETING", "hello moon ${NOT_SET} $"),),
        "mem": 512 << 20,
        "cell_timeout": 60.0,
    }
    assert (spec["display_name"], spec["language"], spec["interrupt_mode"]) == (
        "Toy (isolated)",
        "sh",
        "message",
    )
    assert spec["metadata"] == specs.packaged("safe")["metadata"]
    # Whatever else Jupyter would read there was for another start.
    assert set(spec) == {"argv", "display_name", "language", "interrupt_mode", "metadata"}
    folder = prefix / "share/jupyter/kernels/isolated-toy"
    assert sorted(path.name for path in folder.iterdir()) == ["kernel.json", "logo-64x64.png"]
    assert (folder / "logo-64x64.png").read_bytes() == b"a picture"
    assert look(spec, str(toy), "there") == "hello moon ${NOT_SET} $ there\n"
    assert "wrapped_name" in done("list", "--json", "--prefix", prefix)


def test_wrap_with_names_of_ones_own(toy: Path, prefix: Path) -> None:
    done("wrap", "toy", "--prefix", prefix, "--widgets", "--name", "mine", "--display-name", "Mine")
    spec = written(prefix, "mine")
    assert spec["display_name"] == "Mine"
    assert settings(spec)[0]["output"] == "widgets"
    assert spec["metadata"]["debugger"] is True
    assert "runs in a container already" in refused("wrap", "isolated-python-widgets")


def test_both_kinds_of_one_kernel_have_names(toy: Path, prefix: Path) -> None:
    done("wrap", "toy", "--prefix", prefix)
    done("wrap", "toy", "--prefix", prefix, "--widgets")
    shown = {name: written(prefix, name)["display_name"] for name in ("isolated-toy", "isolated-toy-widgets")}
    assert list(shown.values()) == ["Toy (isolated)", "Toy (isolated, widgets)"]


def test_what_the_user_binds_is_not_bound_twice(toy: Path, tmp_path: Path, prefix: Path) -> None:
    done("wrap", "toy", "--prefix", prefix, "--bind", f"{tmp_path}/tools:cow", "-e", "GREETING=hi")
    spec = written(prefix, "isolated-toy")
    given = settings(spec)[0]
    assert [bind.source for bind in given["bind"]] == [str(toy), f"{tmp_path}/tools"]
    assert look(spec, str(toy), "there") == "hi there\n"


def test_the_hosts_own_files_need_no_binds(toy: Path, prefix: Path) -> None:
    done("wrap", "toy", "--prefix", prefix, "--ns", "all-mount")
    assert "bind" not in settings(written(prefix, "isolated-toy"))[0]


def test_a_program_of_the_path_is_found_now(
    home: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign(home, "shell", argv=["sh", "-c", "true {connection_file}"])
    done("wrap", "shell", "--prefix", prefix)
    (folder,) = (home / ".local/share/jupyter/kernels").iterdir()
    given, argv = settings(written(prefix, "isolated-shell"))
    assert argv == [shutil.which("sh"), "-c", "true {connection_file}"]
    assert [bind.source for bind in given["bind"]] == [str(folder)]
    assert given["interrupt"] == "signal"
    logo = prefix / "share/jupyter/kernels/isolated-shell/logo-64x64.png"
    assert logo.read_bytes() == (DATA / SAFE / "logo-64x64.png").read_bytes()


def test_another_venvs_python(home: Path, tmp_path: Path, prefix: Path) -> None:
    # Its base is reached by a link that lies elsewhere, as version managers make them.
    base = tmp_path / "versions/default/bin"
    base.mkdir(parents=True)
    (base / "python3").symlink_to(os.path.realpath(sys.executable))
    venv = tmp_path / "venv"
    subprocess.run([base / "python3", "-m", "venv", "--without-pip", "--symlinks", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "only_here.py").write_text("answer = 42\n")
    foreign(home, "venv", argv=[f"{venv}/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    done("wrap", "venv", "--prefix", prefix)
    spec = written(prefix, "isolated-venv")
    given, argv = settings(spec)
    shown = [bind.source for bind in given["bind"]]
    assert str(venv) in shown
    assert str(base.parent) in shown
    assert all(bind.mode == "ro" for bind in given["bind"])
    assert argv[0] == f"{venv}/bin/python"
    code = "import only_here, sys; print(only_here.answer, sys.prefix)"
    assert look(spec, "-c", code) == f"42 {venv}\n"
    # Without them it does not even start.
    assert not nsmagic.run([argv[0], "-c", code]).ok


def test_this_environments_python(prefix: Path) -> None:
    done("wrap", "python3", "--prefix", prefix)
    given, argv = settings(written(prefix, "isolated-python3"))
    assert argv[0] == sys.executable
    assert "ipykernel_launcher" in argv
    assert "bind" not in given, "a container shows this Python anyway"


def test_ipykernels_own_is_there_without_a_folder(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    code = (
        "import jupyter_core.paths as p, sys; p.ENV_JUPYTER_PATH[:] = []; p.SYSTEM_JUPYTER_PATH[:] = []\n"
        "from nsmagic.kernel import commands; commands.main(sys.argv[1:])"
    )
    words = ["wrap", "python3", "--prefix", str(prefix)]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, timeout=SECONDS)
    assert settings(written(prefix, "isolated-python3"))[1][0] == sys.executable


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"argv": ["sh", "-c", "true"]}, "the argv of {}/kernel.json lacks {{connection_file}}"),
        ({"argv": []}, "{}/kernel.json has no argv"),
        ({"argv": "sh {connection_file}"}, "{}/kernel.json has no argv"),
        ({"argv": ["sh", 7, "{connection_file}"]}, "{}/kernel.json has no argv"),
        (
            {"argv": ["no-such-program", "{connection_file}"]},
            "the kernel toy starts 'no-such-program', and this machine has no such program",
        ),
        (
            {"metadata": {"kernel_provisioner": {"provisioner_name": "remote"}}},
            "the kernel toy is started by the provisioner 'remote'",
        ),
        (
            {"metadata": {"kernel_provisioner": "remote"}},
            "the kernel toy is started by the provisioner 'remote'",
        ),
        ({"argv": ["python", "-m", "nsmagic.kernel", "{connection_file}"]}, "the kernel toy runs in a"),
        ({"metadata": {"nsmagic": {}}}, "the kernel toy runs in a container already"),
        ({"env": {"A-B": "1"}}, "{}/kernel.json: env: 'A-B=1' is not KEY=VALUE"),
        ({"env": ["A"]}, "the env of {}/kernel.json is not a table"),
        ({"interrupt_mode": "shout"}, "--interrupt: 'shout' is none of signal, message"),
    ],
)
def test_a_kernel_that_cannot_be_wrapped_is_refused(
    contents: dict[str, Any], said: str, home: Path, prefix: Path
) -> None:
    folder = foreign(home, "toy", **contents)
    status = 2 if said.startswith("--") else 125
    assert refused("wrap", "toy", "--prefix", prefix, status=status).startswith(said.format(folder))
    assert not prefix.exists()


def test_a_path_that_cannot_be_bound_is_refused(home: Path, tmp_path: Path, prefix: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    shutil.copy("/bin/sh", folder / "sh")
    foreign(home, "toy", argv=[f"{folder}/sh", "{connection_file}"])
    assert "a path with ':' in it cannot be bound" in refused("wrap", "toy", "--prefix", prefix)


def test_neither_a_home_nor_jupyters_keys_are_shown(home: Path, tmp_path: Path, prefix: Path) -> None:
    local = home / ".local"
    runtime = local / "share/jupyter/runtime"
    runtime.mkdir(parents=True)
    (runtime / "kernel-1.json").write_text("a key")
    for place in (home / "bin", local / "bin"):
        place.mkdir()
        shutil.copy("/bin/sh", place / "toy")
        name = place.parent.name.strip(".")
        argv = [
            f"{place}/toy",
            "{connection_file}",
            str(home),
            f"{home}/../home",
            str(local),
            str(runtime),
            "/",
        ]
        folder = foreign(home, name, argv=argv)
        done("wrap", name, "--prefix", prefix)
        spec = written(prefix, f"isolated-{name}")
        assert {bind.source for bind in settings(spec)[0]["bind"]} == {f"{place}/toy", str(folder)}
        assert look(spec, "-c", f"cat {runtime}/* 2>/dev/null || echo nothing") == "nothing\n"


def test_links_in_a_circle_end(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert set(wrapping._behind(str(tmp_path / "a"))) >= {str(tmp_path / "a"), str(tmp_path / "b")}
    script = tmp_path / "script"
    script.write_text(f"#!{script}\n")
    assert wrapping._behind(str(script)) == [str(script), str(script)]


# ---- the page about it ------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[2] / "docs/kernel.md"


def test_the_page_names_every_variable_and_no_other() -> None:
    from nsmagic.kernel import settings as reading

    named = set(re.findall(r"NSMAGIC_[A-Z_]+[A-Z]", PAGE.read_text()))
    assert named == {f"NSMAGIC_{name.upper()}" for name in reading._FROM_ENVIRONMENT}


def test_the_page_tells_the_defaults() -> None:
    text = PAGE.read_text()
    mem, pids, disk = (specs.DEFAULTS[name] for name in ("mem", "pids", "disk"))
    said = f"{mem >> 30} GiB of memory, {pids} processes and threads, {disk >> 30} GiB written to files"
    assert said in text
    assert f"{spec.DEFAULT_OUTPUT_LIMIT >> 20} MiB of output for each cell" in text


def test_the_pages_commands_can_be_typed() -> None:
    page = PAGE.read_text()
    commands = [
        line.partition("#")[0].split()[2:] for line in page.splitlines() if line.startswith("nsmagic kernel")
    ]
    assert {words[0] for words in commands} == {"install", "wrap", "list", "remove"}
    for name, *words in commands:
        if name in {"install", "wrap"}:
            taken = words[1:] if name == "wrap" else words
            assert options.parse(taken, options.INSTALL_SCOPES)[1] == []
    known = {flag for option in options.of(options.INSTALL_SCOPES) for flag in option.flags} | {
        "--json",
        "--help",
    }
    shell = {"--execute", "--to", "--kernel"}  # of other programs
    written = set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", page))
    assert written - shell <= known


# ---- the command line ----------------------------------------------------------------------------------


def test_help_names_every_option_once() -> None:
    ended = call("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert call("install", "--help").stdout == ended.stdout
    assert call().returncode == 2
    lines = [line.strip().split() for line in ended.stdout.splitlines() if line.startswith("  -")]
    flags = [word.rstrip(",") for line in lines for word in line if word.startswith("-")]
    assert len(flags) == len(set(flags))
    taken = {option.flag for option in options.of(options.INSTALL_SCOPES)} - {
        "--timeout", "--rich", "--fresh-exec", "--publish",
    }  # fmt: skip
    assert taken <= set(flags)
    assert "Default: 1G." in ended.stdout
    assert "nsmagic kernel" in subprocess.run(
        [sys.executable, "-m", "nsmagic.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def test_flags_mean_one_thing() -> None:
    flags = [flag for option in options.of(options.KERNEL_SCOPES) for flag in option.flags]
    assert len(flags) == len(set(flags))
    flags = [flag for option in options.of(options.INSTALL_SCOPES) for flag in option.flags]
    assert {flag for flag in flags if flags.count(flag) > 1} == {"--user"}
    assert options.parse(["--user", "-u", "root"], options.INSTALL_SCOPES) == (
        {"for_user": True, "user": 0},
        [],
    )
    with pytest.raises(SpecError, match="--output: 'html' is none of safe, widgets"):
        options.parse(["--output", "html"], options.KERNEL_SCOPES)


def test_missing_packages_are_named_in_one_line() -> None:
    code = "import sys; sys.modules['jupyter_client'] = None\nfrom nsmagic.cli import main; sys.exit(main(['kernel', 'list']))"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith("nsmagic: kernels need Jupyter's packages, and jupyter_client")
    assert ended.stderr.endswith('is missing: pip install "nsmagic[kernel]"\n')


def test_other_commands_do_not_wait_for_jupyter(call_modules: Callable[..., set[str]]) -> None:
    assert not {"nsmagic.kernel", "jupyter_client", "jupyter_core"} & call_modules(
        "main(['--version'])", "nsmagic.cli"
    )
    # The supervisor takes its defaults from here.
    assert not {"jupyter_client", "jupyter_core"} & call_modules("DEFAULTS", "nsmagic.kernel.specs")


@pytest.fixture
def call_modules() -> Callable[..., set[str]]:
    """Give a function that tells which modules are loaded after an expression in a module."""

    def modules(expression: str, module: str) -> set[str]:
        code = (
            f"import sys\nfrom {module} import *\nimport {module} as m\nm.{expression}\nprint(*sys.modules)"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(ended.stdout.splitlines()[-1].split())

    return modules
