"""Kept containers in a real IPython: ``--name``, ``--join``, ``%container``, ``%containers``, ``%namespaces``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_instruments import Shell

from nsmagic import Container, names, namespaces, views
from nsmagic.completion import candidates
from nsmagic.processes import MOST_SHOWN, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.xdist_group("lifetimes"),
    pytest.mark.container,
    pytest.mark.works("all namespaces", "fresh /proc"),
    pytest.mark.usefixtures("quiet"),
]

SERVER = """
import os, socket
listener = socket.create_server(('127.0.0.1', 8080))
open('/dev/shm/ready', 'w').close()
while True:
    with listener.accept()[0] as end:
        end.sendall(b'served')
"""
CLIENT = """
import socket, time
for _ in range(2000):
    try:
        end = socket.create_connection(('127.0.0.1', 8080))
        break
    except OSError as error:
        answer = type(error).__name__
        if not PATIENT: break
        time.sleep(0.01)
else:
    end = None
if 'end' in globals() and end: answer = end.recv(100).decode()
"""


@pytest.fixture(scope="module")
def loaded() -> Iterator[Shell]:
    shell = Shell()
    shell.run("%load_ext nsmagic")
    yield shell
    shell.run("%unload_ext nsmagic")


@pytest.fixture
def shell(loaded: Shell) -> Iterator[Shell]:
    yield loaded
    for name in names.live():
        loaded.run(f"%container stop {name}")


def ask(shell: Shell, options: str = "", *, patient: bool = False) -> str:
    """What the server answers to a cell with these options."""
    shell.run(f"%%contain -o answer {options}\n{CLIENT.replace('PATIENT', str(patient))}")
    return str(shell.shell.user_ns["answer"])


def test_a_server_is_kept_and_joined_and_stopped(shell: Shell) -> None:
    shell.run(f"%%contain --name web --bg --proc server\n{SERVER}")
    assert ask(shell, "--join web", patient=True) == "served"
    assert ask(shell, "--join web:net") == "served"
    assert ask(shell) == "ConnectionRefusedError"
    assert ask(shell, "--join web:uts") == "ConnectionRefusedError"
    (row,) = shell.table("%container")[1:]
    assert (row[0], row[2]) == ("web", "1")
    shell.run("server.stop()")
    assert shell.shell.user_ns["server"].wait(20).outcome == "stopped"
    # The cell is over, the container is not.
    assert ask(shell, "--join web") == "ConnectionRefusedError"
    assert shell.table("%container")[1][2] == "0"
    shell.run("%container stop web")
    assert "no container is kept" in shell.run("%container")[0]["text/plain"]
    with pytest.raises(Exception, match="web is no longer there: it was stopped"):
        shell.run("%%contain --join web\n1")


def test_stopping_a_container_ends_what_runs_in_it(shell: Shell) -> None:
    shell.run(f"%%contain --name web --bg --proc server\n{SERVER}")
    shell.run("%container stop web")
    result = shell.shell.user_ns["server"].wait(20)
    assert result.outcome == "stopped"
    assert "stopped by its owner" in result.describe()


def test_variables_output_and_changes(shell: Shell, project: Path) -> None:
    shell.run("n = 20")
    shell.run("%%contain --name web --workdir . -i n -o m\nm = n + 1\nopen('made.txt', 'w').write(str(m))")
    shell.run("%%contain --join web -o k --out said\nk = int(open('made.txt').read()) * 2\nprint('said')")
    user = shell.shell.user_ns
    assert (user["m"], user["k"], user["said"]) == (21, 42, "said\n")
    assert ["added", f"{project}/made.txt (2 bytes)"] in shell.table("%changes web")
    shell.run("%%contain --join web cat\nfrom standard input")
    assert user["_contained"].ok
    assert not (project / "made.txt").exists()


def test_the_defaults_of_the_notebook_are_not_asked_of_what_is_joined(shell: Shell) -> None:
    shell.run("%contain_config --pids 99 --output-limit 1M")
    try:
        shell.run("%%contain --name web\n1")
        shell.run("%%contain --join web\n1")
        assert Container.find("web").spec.pids == 99
        with pytest.raises(Exception, match="--pids: was settled when web was made"):
            shell.run("%%contain --join web --pids 9\n1")
    finally:
        shell.run("%contain_config --reset")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            "%%contain --join wep\n1",
            r"--join: no container has the name wep; there are web; did you mean web\?",
        ),
        (
            "%%contain --name web\n1",
            "--name: web is the name of a container that is there; run in it with --join web",
        ),
        ("%%contain --join web:what\n1", "--join: 'what' is not a namespace"),
        ("%container stop", "%container stop: needs a name; there are web"),
        ("%container stop wep", "%container stop: no container has the name wep"),
        ("%container stpo web", r"%container: cannot 'stpo'; it can stop NAME; did you mean stop\?"),
        ("%containers web", "%containers: takes nothing behind it"),
        ("%namespaces wep", "wep: is no live container of this notebook; live: web"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(shell: Shell, cell: str, words: str) -> None:
    shell.run("%%contain --name web\n1")
    with pytest.raises(Exception, match=words) as error:
        shell.run(cell)
    assert "\n" not in str(error.value)
    assert list(names.live()) == ["web"]


def test_the_tree_of_processes(shell: Shell, until: Callable[..., bool]) -> None:
    code = "import subprocess\nsubprocess.run(['sh', '-c', 'sleep 1000; true'])"
    shell.run(f"%%contain --name web --bg --proc job\n{code}")

    def rows() -> list[list[str]]:
        (shown,) = shell.run("%containers")
        assert "<table" in shown["text/html"]
        tree = shown["text/plain"].split("\n\n")[1].splitlines()
        assert re.fullmatch(r"container \d+ web", tree[0])
        return [re.split(r"  +", line.replace("└─ ", "")) for line in tree[2:]]

    assert until(lambda: len(rows()) == 5)
    found = rows()
    assert [row[-1] for row in found] == [
        "nsmagic-init",
        "nsmagic-join",
        "(python)",
        "sh -c sleep 1000; true",
        "sleep 1000",
    ]
    for row in found:
        status = Path(f"/proc/{row[0]}/status").read_text()
        (inside,) = re.findall(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)
        assert row[1] == inside
    assert found[0][1] == "1"
    shell.run("job.stop()")
    assert until(lambda: len(rows()) == 1)


def test_shared_namespaces_are_marked(shell: Shell) -> None:
    shell.run("%%contain --name web\n1")
    shell.run("%%contain --name second --join web:net,uts\n1")
    (shown,) = shell.run("%namespaces web second")
    rows = [re.split(r"  +", line) for line in shown["text/plain"].splitlines()]
    assert rows[0][2].startswith("web (pid ")
    for kind, ours, web, second in (row[:4] for row in rows[1:]):
        assert int(web[2:]) == os.fstat(Container.find("web").offered[kind]).st_ino
        assert ours != web[2:]
        shared = kind in {"net", "uts"}
        assert (web[0], second[0], web[2:] == second[2:]) == (
            ("&", "&", True) if shared else ("*", "*", False)
        )
    shades = re.findall(r"background:(#\w+)[^>]*>&amp; (\d+)", shown["text/html"])
    assert len(shades) == 4
    assert all(len({shade for shade, number in shades if number == one}) == 1 for _, one in shades)
    assert [row[2][0] for row in shell.table("%namespaces web")[1:]] == ["*"] * 8


def test_marks_of_namespaces() -> None:
    def column(name: str, net: int | None) -> namespaces.Column:
        return namespaces.Column(name, 1, dict.fromkeys(namespaces.FILES, 5) | {"net": net})

    columns = [
        column("host", 1),
        column("a", 2),
        column("b", 2),
        column("c", 3),
        column("d", None),
        column("e", 1),
    ]
    (row,) = [row for row in namespaces.rows(columns) if row[0] == "net"]
    assert [cell[0] for cell in row[1:-1]] == ["1", "&", "&", "*", "?", "="]


def test_a_long_tree_is_cut_and_names_are_text() -> None:
    many = [Process(number, number, 1, "running", None, "<b>") for number in range(MOST_SHOWN + 1)]
    rows = views.tree_rows(many)
    assert len(rows) == MOST_SHOWN + 2
    assert rows[-1][-1] == "and more"
    assert "<b>" not in views.table_html(rows)


def test_what_is_kept_is_offered_by_tab(shell: Shell) -> None:
    assert candidates("%%contain --join ") == []
    shell.run("%%contain --name web\n1")
    shell.run("%%contain --name second\n1")
    assert candidates("%%contain --join ") == ["web", "second"]
    assert candidates("%%contain --join=w") == ["--join=web"]
    assert candidates("%container stop s") == ["second"]
    assert candidates("%container stop web ") == ["web", "second"]


def test_both_sides_may_be_looked_at_in_what_is_joined(shell: Shell) -> None:
    shell.run("%%contain --name web\n1")
    (shown,) = shell.run("%%both --harmless --join web\nimport socket\nsocket.gethostname()")
    assert shown["text/plain"].splitlines()[-1].split()[-1].strip("'") == "web"


def test_explain_shows_the_building_once_and_the_joining(shell: Shell) -> None:
    first: list[dict[str, Any]] = shell.run("%%contain --name web --explain\n1")
    assert "pivot_root" in first[-1]["text/plain"]
    assert "setns(net:[" in first[-1]["text/plain"]
    second = shell.run("%%contain --join web --explain\n1")
    assert "pivot_root" not in second[-1]["text/plain"]
    text = second[-1]["text/plain"]
    for kind in ("USER", "PID", "NS", "NET", "UTS", "IPC", "CGROUP", "TIME"):
        assert f"CLONE_NEW{kind})" in text
    assert "setns(2), network_namespaces(7)" in text
    assert re.search(r"^joiner +join", text, re.MULTILINE)
