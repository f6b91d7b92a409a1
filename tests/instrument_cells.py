"""A notebook with every instrument, in the order of docs/instruments.md: run headless, in JupyterLab, in Notebook 7."""

from __future__ import annotations

from typing import Any

import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

CELLS = {
    "load": "%load_ext nsmagic",
    "doctor": "%contain_doctor",
    "both": """\
%%both --harmless
import os, socket
print("process", os.getpid())
print("user   ", os.getuid())
print("devices", [name for _, name in socket.if_nameindex()])
print("here   ", os.path.basename(os.getcwd()))""",
    "one": """\
%%both --harmless --ns uts,user --hostname lonely -w /
import os, socket
print("user   ", os.getuid())
print("host   ", socket.gethostname())
print("devices", len(socket.if_nameindex()) > 1)""",
    "behind": """\
%%contain --bg --proc job
import time
open("notes.txt", "w").write("only in here")
time.sleep(60)""",
    "built": """\
import time
while not job.container.payload_pid:
    time.sleep(0.05)""",
    "namespaces": "%namespaces",
    "containers": "%containers",
    "stop": "job.stop(); job.wait(20);",
    "explain": """\
%%contain --explain
print("built")""",
    "failure": """\
%%contain --explain --bind /usr/share:/usr/no-such/x
print("never")""",
    "write": """\
%%contain --stats
open("notes.txt", "w").write("only in here")""",
    "changes": "%changes",
    "memory": """\
%%contain --watch --mem 128M --no-raise-error
import time
blocks = []
while True:
    blocks.append(bytearray(4 * 1024**2))
    time.sleep(0.03)""",
    "cpu": """\
%%contain --watch --cpus 0.5 --pids 20 --no-raise-error
import threading, time
end = time.time() + 1.5
while time.time() < end:
    pass
while True:
    threading.Thread(target=time.sleep, args=(0.5,)).start()
    time.sleep(0.02)""",
    "lab": """\
%network create lab
%contain --net lab --name web -w / here = 1
%contain --net lab --name mail -w / here = 2""",
    "serve": """\
%%contain --join web --bg --proc server
import http.server
http.server.HTTPServer(("", 80), http.server.SimpleHTTPRequestHandler).serve_forever()""",
    "topology": "%network show lab",
    "lab-end": """\
server.stop()
%container stop web
%container stop mail
%network remove lab""",
    "scratch": """\
%%scratch lab
from nsmagic.linux import *
unshare(CLONE_NEWUSER | CLONE_NEWUTS)
sethostname("mine")""",
    "scratch-list": "%scratch",
    "scratch-stop": "%scratch stop lab",
}

LIMITED = {"memory", "cpu", "scratch"}
"""Cells that need a group that counts and limits."""


class OwnKernel(AsyncKernelManager):  # type: ignore[misc]
    """Starts this interpreter's own kernel, whatever the user has installed."""

    @default("kernel_spec_manager")  # type: ignore[untyped-decorator]
    def _no_other_specs(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def notebook(names: list[str] | None = None) -> Any:
    """These cells, not run; all of them without names."""
    found = nbformat.v4.new_notebook()
    found.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name in names or list(CELLS):
        cell = nbformat.v4.new_code_cell(CELLS[name])
        cell["id"] = name
        found.cells.append(cell)
    return found


def run(book: Any, folder: str) -> Any:
    """Run a notebook from top to bottom in its own kernel; cells that raise are allowed to."""
    client = nbclient.NotebookClient(
        book, timeout=100, kernel_manager_class=OwnKernel, resources={"metadata": {"path": folder}},
        allow_errors=True,
    )  # fmt: skip
    client.execute()
    return book
