"""Other programs' kernels in a container, from the kernel spec to the reply."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic.kernel import commands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.manager import KernelManager

SECONDS = 60.0

# A kernel of another language: it says what it sees, and can be interrupted.
PARROT = textwrap.dedent(
    """
    import os, sys, time
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.kernelbase import Kernel

    class Parrot(Kernel):
        implementation, implementation_version, banner = "parrot", "1", "a parrot"
        language_info = {"name": "parrot", "mimetype": "text/plain", "file_extension": ".txt"}

        def say(self, text):
            self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": text})

        def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False):
            reply = {"status": "ok", "execution_count": self.execution_count, "user_expressions": {}}
            if code == "wait":
                try:
                    self.say("waiting")
                    time.sleep(1000)
                except KeyboardInterrupt:
                    self.say(", interrupted")
            elif code == "write":
                try:
                    open(os.path.join(sys.argv[1], "parrot.py"), "a")
                except OSError as error:
                    self.say(error.strerror)
            else:
                self.say(f"{os.environ['MOOD']} {os.uname().nodename}: {code}")
            return reply

    IPKernelApp.launch_instance(argv=sys.argv[2:], kernel_class=Parrot)
    """
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the test's own for kernel specs, connection files and work."""
    for name in ("home", "work", "prefix"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "prefix/share/jupyter"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


class Session:
    """A kernel that runs, and a client of it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self.client = client

    def streams(self, code: str, *, interrupt: bool = False) -> str:
        """What a cell prints; it may be interrupted once it has printed something."""
        printed: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])
                if interrupt and len(printed) == 1:
                    self.manager.interrupt_kernel()

        reply = self.client.execute_interactive(code, output_hook=hook, timeout=SECONDS)
        assert reply["content"]["status"] == "ok", (reply["content"], printed)
        return "".join(printed)


@pytest.fixture
def session(places: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A kernel of the name that the test's parameter has, wrapped by `nsmagic kernel wrap`, and started."""
    from jupyter_client.manager import start_new_kernel

    name, contents = request.param(places)
    folder = places / "prefix/share/jupyter/kernels" / name
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"display_name": name, **contents}))
    (folder / "parrot.py").write_text(PARROT)
    # Not every host can limit memory for an ordinary user, and that is not what this is about.
    words = ["wrap", name, "--prefix", str(places / "prefix"), "--best-effort", "--hostname", "cage"]
    assert commands.main(words) == 0
    manager, client = start_new_kernel(kernel_name=f"isolated-{name}", startup_timeout=SECONDS)
    try:
        yield Session(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)


def parrot(places: Path) -> tuple[str, dict[str, Any]]:
    """A script of the spec's own folder, in this environment's Python."""
    argv = ["python", "{resource_dir}/parrot.py", "{resource_dir}", "-f", "{connection_file}"]
    return "parrot", {"argv": argv, "language": "parrot", "env": {"MOOD": "happy"}}


def other_venv(places: Path) -> tuple[str, dict[str, Any]]:
    """The Python of another venv, which finds this one's packages by a file of paths."""
    venv = places / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", venv], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    packages = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site / "borrowed.pth").write_text("\n".join(packages) + "\n")
    argv = [f"{venv}/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return "venv", {"argv": argv, "language": "python"}


@pytest.mark.parametrize("session", [parrot], indirect=True)
def test_a_kernel_of_another_language(session: Session) -> None:
    assert session.streams("polly") == "happy cage: polly"
    session.client.kernel_info()
    info = session.client.get_shell_msg(timeout=SECONDS)["content"]
    assert info["language_info"]["name"] == "parrot"
    assert session.streams("write") == "Read-only file system"
    assert session.streams("wait", interrupt=True) == "waiting, interrupted"
    assert session.streams("still there") == "happy cage: still there"


@pytest.mark.parametrize("session", [other_venv], indirect=True)
def test_another_venvs_python(session: Session, places: Path) -> None:
    code = "import os, sys; print(sys.prefix, os.uname().nodename, os.getcwd()); open('new', 'w').close()"
    assert session.streams(code) == f"{places}/venv cage {places}/work\n"
    assert os.listdir(places / "work") == []
