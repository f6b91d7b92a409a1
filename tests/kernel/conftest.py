"""Our kernels as Jupyter starts them, and a client that looks at what they say.

A host that cannot limit memory runs no code in the kernels that come with the package, and says why.  What is
not about limits is tested there too, in a kernel of the same kind that was installed with ``--best-effort``.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nsmagic.kernel import specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.manager import KernelManager

SECONDS = 60.0  # an emulated machine takes 20 for the first kernel
SAFE, WIDGETS = "isolated-python", "isolated-python-widgets"
OUTPUTS = {SAFE: "safe", WIDGETS: "widgets"}
FOLDERS = ("config", "data", "runtime", "ipython")


@dataclass
class Cell:
    """What one cell led to, in order; ``reply`` is the content of its reply."""

    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [content for kind, content in self.messages if kind in kinds]

    def stream(self, name: str) -> str:
        return "".join(content["text"] for content in self.of("stream") if content["name"] == name)

    @property
    def text(self) -> str:
        return self.stream("stdout")

    @property
    def said(self) -> str:
        """All text that somebody sees under the cell."""
        shown = [
            content["data"].get("text/plain", "") for content in self.of("display_data", "execute_result")
        ]
        failed = [f"{content['ename']}: {content['evalue']}" for content in self.of("error")]
        return "\n".join([self.text, self.stream("stderr"), *shown, *failed])

    @property
    def error(self) -> str:
        """The error that is shown under the cell, which is also what its reply says."""
        shown = [f"{content['ename']}: {content['evalue']}" for content in self.of("error")]
        assert self.reply["status"] == "error", self
        assert [f"{self.reply['ename']}: {self.reply['evalue']}"] == shown, self
        return shown[0]


class Client:
    """One client of a kernel."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def close(self) -> None:
        self.client.stop_channels()

    def send(self, code: str, **more: Any) -> str:
        """Send a cell; gives the name of the request."""
        return self.client.execute(code, **{"allow_stdin": True, **more})

    def run(self, code: str, **more: Any) -> Cell:
        """Run a cell to its end."""
        return self.wait(self.send(code, **more))

    def wait(
        self, name: str, *, until: Callable[[Cell], bool] | None = None, cell: Cell | None = None
    ) -> Cell:
        """Collect what a request leads to, until it is idle and answered, or until a condition holds.

        Whoever stops before the end hands the cell in again to collect the rest.
        """
        cell = cell or Cell()
        state = ""
        while state != "idle":
            if until is not None and until(cell):
                return cell
            message = self.client.get_iopub_msg(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == name:
                state = message["content"].get("execution_state", state)
                cell.messages.append((message["header"]["msg_type"], message["content"]))
        cell.reply = self.reply(name)
        return cell

    def reply(self, name: str, channel: str = "shell") -> dict[str, Any]:
        """The content of a request's reply; other replies on the channel are dropped."""
        get = getattr(self.client, f"get_{channel}_msg")
        while True:
            message = get(timeout=SECONDS)
            if message["parent_header"].get("msg_id") == name:
                content: dict[str, Any] = message["content"]
                return content

    def post(self, channel: str, msg_type: str, content: dict[str, Any]) -> str:
        """Send any message; gives its name."""
        message = self.client.session.msg(msg_type, content)
        getattr(self.client, f"{channel}_channel").send(message)
        return str(message["header"]["msg_id"])

    def ask(self, channel: str, msg_type: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send any request; the content of its reply."""
        return self.reply(self.post(channel, msg_type, content or {}), channel)

    def next_published(self, *kinds: str) -> dict[str, Any]:
        """The next message of these kinds that is published, whatever it is about."""
        while True:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=SECONDS)
            if message["header"]["msg_type"] in kinds:
                return message

    def drain(self) -> list[dict[str, Any]]:
        """What has been published and nobody looked at."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.client.get_iopub_msg(timeout=0.1))
        return found


class Kernel(Client):
    """A running kernel with its first client."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.others: list[Client] = []
        super().__init__(manager.blocking_client())

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return int(self.manager.provisioner.pid)

    def another(self) -> Client:
        """One more client."""
        self.others.append(Client(self.manager.blocking_client()))
        return self.others[-1]

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def close(self) -> None:
        for client in self.others:
            client.close()
        super().close()


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with its number; see proc_pid_stat(5)."""

    pid: int
    started: str

    @classmethod
    def at(cls, pid: int) -> Process | None:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if words[0] in "ZX" else cls(pid, words[19])

    @property
    def runs(self) -> bool:
        return Process.at(self.pid) == self


class Tree:
    """A kernel's processes and cgroup directories at one moment, to see later that none of them is left."""

    def __init__(self, pid: int, children_of: Callable[[int], set[int]]) -> None:
        pids, todo = [], [pid]
        while todo:
            pids.append(todo.pop())
            with contextlib.suppress(OSError):
                todo += children_of(pids[-1])
        self.processes = [process for process in map(Process.at, pids) if process is not None]
        self.groups = {group for pid in pids for group in _groups(pid)}

    def left(self) -> list[object]:
        """What of it is still there."""
        return [*(each for each in self.processes if each.runs), *(g for g in self.groups if g.exists())]


def _groups(pid: int) -> set[Path]:
    """The cgroup directories of ours that a process is in, and ours above them."""
    found = set()
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return set()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for line in lines:
        _, names, path = line.split(":", 2)
        at = Path(path)
        for group in [at, *at.parents]:
            if group.name.startswith("nsmagic-") or group.parent.name.startswith("nsmagic-"):
                for _, target, kind, options, *_ in mounts:
                    if kind == "cgroup2" if not names else set(names.split(",")) <= set(options.split(",")):
                        found.add(Path(target + str(group)))
    return found


@pytest.fixture(scope="module")
def jupyter_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Jupyter's folders, of the module's own: nobody's kernels and settings are seen or touched."""
    home = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("JUPYTER", "IPYTHON"))]:
            patch.delenv(name)
        for folder in FOLDERS:
            (home / folder).mkdir(mode=0o700)
        patch.setenv("IPYTHONDIR", str(home / "ipython"))
        for folder in ("config", "data", "runtime"):
            patch.setenv(f"JUPYTER_{folder.upper()}_DIR", str(home / folder))
        yield home


@pytest.fixture(scope="module")
def spec_name(jupyter_home: Path, limits_lack: str) -> Callable[..., str]:
    """Give a function that finds the kernel to test with: the packaged one, or one like it with more options.

    Args of the function: ``name`` of the packaged spec, the words that are added to its argv; ``limits`` says
    that the test is about limits, so none are given up.
    """

    def find(name: str = SAFE, *words: str, limits: bool = False) -> str:
        if not limits and limits_lack:
            words = (*words, "--best-effort")
        if not words:
            return name
        made = re.sub(r"[^a-z0-9.]+", "-", " ".join([name, *words]).lower())
        where = specs.Place(jupyter_home / "data" / "kernels", user=True, prefix=None)
        if not (where.folder / made).exists():
            spec = specs.Spec(output=OUTPUTS[name], display_name="Made for a test", words=words)
            specs.install(spec, made, where, replace=False)
        return made

    return find


@contextlib.contextmanager
def running(name: str, folder: Path, **options: Any) -> Iterator[Kernel]:
    """A kernel, started as Jupyter does it and shut down at the end."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name=name)
    manager.start_kernel(cwd=str(folder), **options)
    try:
        kernel = Kernel(manager)
        try:
            yield kernel
        finally:
            kernel.close()
    finally:
        manager.shutdown_kernel(now=not manager.is_alive())
        manager.cleanup_resources()
        manager.context.destroy()


@pytest.fixture(scope="session")
def run_kernel() -> Callable[..., contextlib.AbstractContextManager[Kernel]]:
    """Give ``running``."""
    return running


@pytest.fixture
def start(spec_name: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """Give a function that starts a kernel for one test: ``start(name, *words, limits=False)``."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def begin(name: str = SAFE, *words: str, limits: bool = False, **options: Any) -> Kernel:
            return stack.enter_context(running(spec_name(name, *words, limits=limits), folder, **options))

        yield begin


@pytest.fixture
def start_wrapped(jupyter_home: Path, tmp_path: Path, limits_lack: str) -> Iterator[Callable[[], Kernel]]:
    """Give a function that starts ipykernel's own kernel spec, wrapped."""
    from nsmagic.kernel import wrapping

    words = ("--best-effort",) if limits_lack else ()
    made = wrapping.wrap("python3", output="safe", words=words)
    where = specs.Place(jupyter_home / "data" / "kernels", user=True, prefix=None)
    specs.install(made.spec, "isolated-python3", where, replace=True)
    folder = tmp_path / "wrapped"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(running("isolated-python3", folder))


@pytest.fixture(scope="module")
def safe(spec_name: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One "Isolated Python" for the whole module."""
    with running(spec_name(SAFE), tmp_path_factory.mktemp("notebooks")) as kernel:
        yield kernel


@pytest.fixture(scope="module")
def widgets(spec_name: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One "Isolated Python (widgets)" for the whole module."""
    with running(spec_name(WIDGETS), tmp_path_factory.mktemp("notebooks")) as kernel:
        yield kernel


@pytest.fixture(scope="session")
def tree_of(children_of: Callable[[int], set[int]]) -> Callable[[int], Tree]:
    """Give a function that looks at a kernel's processes and cgroups."""

    def look(pid: int) -> Tree:
        return Tree(pid, children_of)

    return look


@pytest.fixture(scope="session")
def nothing_left(until: Callable[..., bool]) -> Callable[..., float]:
    """Give a function that waits until nothing of these trees is there; gives the seconds that it took."""

    def wait(*trees: Tree, seconds: float = SECONDS) -> float:
        began = time.monotonic()
        gone = until(lambda: not any(tree.left() for tree in trees), seconds)
        assert gone, [tree.left() for tree in trees]
        return time.monotonic() - began

    return wait
