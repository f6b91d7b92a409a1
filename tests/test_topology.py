"""The picture of a network and its text, and ``%network`` in a real IPython."""

from __future__ import annotations

import base64
import os
import re
import signal
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from test_instruments import Shell

from nsmagic import NetworkError, SpecError, completion, labs, topology
from nsmagic.launcher.lab_frames import Seen, View
from nsmagic.ports import Publish, parse_publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("instruments")  # one IPython in a process


def view(*names: str, up: bool = True) -> View:
    members = [
        Seen(name, number, f"10.77.0.{number}", f"02:6e:73:00:00:{number:02x}", f"port{number}", up, 2048, 100, ["80/tcp"])
        for number, name in enumerate(names, start=1)
    ]  # fmt: skip
    return View("lab0", "02:6e:73:00:00:00", "10.77.0.0/24", members)


def test_the_text_says_it_all() -> None:
    text = topology.text(topology.of_lab("lab", view("web", "db")))
    lines = text.splitlines()
    assert lines[0] == "network lab, 10.77.0.0/24, 2 containers"
    assert "the host (no cable: no way in or out)" in lines
    (web,) = [line for line in lines if " web " in line]
    assert re.split(r"  +", web.removeprefix("├─ ")) == [
        "port1 ── eth0", "web", "container 1", "up", "10.77.0.1", "02:6e:73:00:00:01", "serves 80/tcp",
        "in 2 KiB, out 100 bytes",
    ]  # fmt: skip
    assert lines[-1].startswith("└─ port2")
    assert "nobody" in topology.text(topology.of_lab("lab", view()))
    assert "down" in topology.text(topology.of_lab("lab", view("web", up=False)))


@pytest.mark.parametrize("count", [0, 1, 2, 24, 25, 254])
def test_the_picture_is_svg_and_bounded(count: int) -> None:
    network = topology.of_lab("lab", view(*(f"box{number}" for number in range(count))))
    picture = ET.fromstring(topology.svg(network))
    assert picture.tag.endswith("svg")
    words = [each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert sum(word.startswith("box") for word in words if word) == min(count, 24)
    assert int(picture.attrib["height"]) < 2000
    assert any("more" in (word or "") for word in words) == (count > 24)
    assert len(topology.text(network).splitlines()) >= count


def test_what_is_hostile_is_text() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    shown = topology.bundle(topology.of_lab(hostile, view(hostile)))
    assert "<script" not in shown["text/html"]
    source = re.search(r"base64,([A-Za-z0-9+/=]+)", shown["text/html"])
    assert source
    ET.fromstring(base64.b64decode(source[1]))
    assert b"<script" not in base64.b64decode(source[1])


def test_ports_that_are_published() -> None:
    publish = [Publish(8080, 80), parse_publish("--publish", "[::1]:5353:53/udp")]
    network = topology.of_outbound([("web", 3, publish), ("worker", 4, [])])
    text = topology.text(network)
    assert "127.0.0.1:8080 -> 80/tcp" in text
    assert "[::1]:5353 -> 53/udp" in text
    assert "no port published" in text
    ET.fromstring(topology.svg(network))


# ---- the magic -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    shell = Shell()
    shell.run("%load_ext nsmagic")
    yield shell
    shell.run("%unload_ext nsmagic")
    assert not labs.living()


@pytest.mark.works("lab networks")
def test_a_network_in_a_notebook(shell: Shell, quiet: Path, until: Callable[..., bool]) -> None:
    (said,) = shell.run("%network create lab")
    assert "--net lab" in said["text/plain"]
    serve = "import socket, time\nserver = socket.create_server(('', 80))\ntime.sleep(100)"
    for name in ("web", "db"):
        shell.run(f"%%contain --bg --proc {name} --net lab --hostname {name}\n{serve}")
    try:
        lab = labs.find("--net", "lab")
        assert until(lambda: [each.listens for each in lab.view().members] == [["80/tcp"], ["80/tcp"]], 30)
        (shown,) = shell.run("%network show lab")
        for word in ("web", "db", "10.77.", "02:6e:73", "serves 80/tcp", "bridge lab0", " up "):
            assert word in shown["text/plain"]
        assert '<img alt="network lab' in shown["text/html"]
        rows = shell.table("%network")
        assert ["lab", "a lab: a bridge, no way out", lab.subnet, "web, db"] in rows
        assert completion.candidates("%network show ") == ["lab", "outbound"]
        assert completion.candidates("%network remove l") == ["lab"]
        assert completion.candidates("%%contain --net l") == ["lab"]
        with pytest.raises(NetworkError, match="it has members: web"):
            shell.run("%network remove lab")
    finally:
        for name in ("web", "db"):
            job = shell.shell.user_ns[name]
            job.stop()
            assert until(lambda job=job: job.done, 30)
    shell.run("%network remove lab")
    assert "lab" not in str(shell.table("%network"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("create", "takes create NAME"),
        ("make lab", "takes create NAME"),
        ("create a b", "takes create NAME"),
        ("create none", "always there"),
        ("create 1lab", "no name for a lab"),
        ("remove nowhere", "'nowhere' is not a network here"),
        ("show nowhere", "'nowhere' is not a network here"),
        ("show 'a", "cannot be read"),
    ],
)
def test_bad_lines_are_one_clear_line(shell: Shell, line: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        shell.run(f"%network {line}")


def test_completion_of_the_magic() -> None:
    assert completion.candidates("%network ") == ["create", "remove", "show"]
    assert completion.candidates("%network s") == ["show"]
    assert completion.candidates("%network create ") == []
    assert completion.candidates("%network show lab ") == []


@pytest.mark.works("lab networks")
def test_a_network_whose_holder_was_killed_is_said_to_be_gone(shell: Shell, quiet: Path) -> None:
    shell.run("%network create lost")
    os.kill(labs.find("", "lost").pid, signal.SIGKILL)
    assert [
        "lost",
        "gone: its holder died",
        labs.find("", "lost").subnet,
        "%network create lost",
    ] in shell.table("%network")
    with pytest.raises(NetworkError, match="was killed by signal 9; create it again"):
        shell.run("%network show lost")
    shell.run("%network create lost")
    assert shell.run("%network show lost")
    shell.run("%network remove lost")
