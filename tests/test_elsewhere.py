"""On macOS and Windows the package imports, and its use is one error that says where to go.

Neither is at hand, so an interpreter is made to look like one: the platform's name is changed before the
import, and what only Linux or only Unix has is taken away.  What a wheel for such a system holds is built for real.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nsmagic

HOME = str(Path(nsmagic.__file__).resolve().parents[1])

ELSEWHERE = """
import importlib.abc, json, os, platform, select, signal, socket, sys
where = sys.argv[1]
import IPython.core.interactiveshell, msgspec, nh3, asyncio, subprocess, multiprocessing, tempfile, shutil  # theirs
LINUX = ["memfd_create", "pidfd_open", "unshare", "setns", "sched_getaffinity", "listxattr", "setxattr", "eventfd"]
UNIX = ["fork", "register_at_fork", "geteuid", "getuid", "fchown", "chown", "mkfifo", "statvfs", "fstatvfs", "waitstatus"]
gone = LINUX + (UNIX if where == "win32" else [])
for name in gone:
    if hasattr(os, name):
        delattr(os, name)
modules = {"nsmagic.native._runtime", "_cffi_backend"}
if where == "win32":
    modules |= {"fcntl", "resource", "termios", "pwd", "grp"}
    for module, names in ((signal, ["SIGKILL", "SIGHUP", "SIGSTOP"]), (socket, ["AF_UNIX", "SOCK_SEQPACKET"]),
                          (select, ["poll", "epoll"])):
        for name in names:
            delattr(module, name)
for name in modules:
    sys.modules.pop(name, None)

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.platform = where
platform.system = lambda: {"win32": "Windows", "darwin": "Darwin"}[where]
"""
USE = """
import nsmagic
found = {}
def tried(name, what):
    try:
        found[name] = repr(what())
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}"
tried("run", lambda: nsmagic.run("pass"))
tried("best effort", lambda: nsmagic.run("pass", best_effort=True))
tried("Container", lambda: nsmagic.Container())
tried("image", lambda: nsmagic.run(["true"], image="x.tar"))
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
tried("load", lambda: nsmagic.load_ipython_extension(shell))
from nsmagic import cli, host
tried("doctor", lambda: [tuple(row) for row in host.examine()])
tried("text", lambda: host.render_text(host.examine()))
tried("command", lambda: cli.main(["run", "-c", "pass"]))
tried("images", lambda: cli.main(["images"]))
print(json.dumps(found))
"""


@pytest.mark.parametrize("where", ["darwin", "win32"])
def test_it_imports_and_use_is_one_error_that_points_elsewhere(where: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE + USE, where]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PYTHONPATH": HOME}
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    name = {"win32": "Windows", "darwin": "Darwin"}[where]
    for use in ("run", "best effort", "Container", "image"):
        assert found[use].startswith("HostError"), found[use]
        assert name in found[use]
        for place in ("Docker", "WSL2", "Codespaces", "Binder"):
            assert place in found[use]
    assert "None" in found["load"] or found["load"].startswith("HostError")
    assert "missing" in found["doctor"]
    assert "Docker" in found["text"]
    assert found["command"] == found["images"] == "125"
    assert "Codespaces" in ran.stderr
