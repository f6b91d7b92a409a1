"""Kernel specs: the two that come with the package, and others that are made from them.

A kernel spec is a folder with a ``kernel.json`` that tells Jupyter what to start, and logos.  The wheel
installs those in ``data``; every other spec of ours is one of them with more words in its argv, so there is
one source for all.  Ours are marked by ``nsmagic`` in their metadata; no other program's is ever changed.

The argv begins with a few lines of Python instead of a plain ``-m nsmagic.kernel``: that would look for
modules in the notebook's folder first, and so run a stranger's ``nsmagic.py`` or ``zmq.py`` outside of any
container; an empty entry in PYTHONPATH does the same, even to modules that the interpreter starts with.  The
``-m`` behind them is for readers, and for front ends that tell by it whether a kernel is an ipykernel, which
they would start in their own way.

This module knows Jupyter's folders and no container.  What starts a kernel takes only its constants, so
Jupyter's packages are imported where they are used.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nsmagic import options
from nsmagic.errors import NsmagicError, SpecError
from nsmagic.spec import GIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jupyter_client.kernelspec import KernelSpecManager

DEFAULTS: Final[dict[str, Any]] = {"mem": GIB, "pids": 1024, "disk": 2 * GIB}
"""Limits of a kernel where nobody asked for others, by the options' names.  The rest is as in a cell: no
network, and the folder that the kernel was started in, copy-on-write."""

REFUSED: Final = {
    "timeout": "a kernel runs until it is shut down; --cell-timeout limits each cell",
    "rich": "is for cells of %%contain; a kernel that lets scripts through is made with --widgets",
    "publish": "is for one run; a kernel's next container waits beside it, and two cannot have one port",
    "fresh_exec": "is for one run; a kernel is one interpreter from its start to its end",
}
"""Options of a single run that make no sense for a kernel, and what does."""

MODULE: Final = "nsmagic.kernel"
CONNECTION_FILE: Final = "{connection_file}"
"""What Jupyter replaces by the connection file's path, wherever it stands in the argv."""

_DATA: Final = Path(__file__).parent / "data"
_PACKAGED: Final = {"safe": "isolated-python", "widgets": "isolated-python-widgets"}
_NAME: Final = re.compile(r"[a-z0-9._-]+")  # as Jupyter has it
_NAME_LENGTH: Final = 100
_LOGO_BYTES: Final = 1 << 20
_MODULE, _OPTIONS = slice(4, 6), slice(6, None)
"""Where an argv of ours, ``python -E -c … -m nsmagic.kernel …``, has the module's name and its options."""


@dataclass(frozen=True)
class Spec:
    """A kernel spec of ours.

    Attributes:
        output: ``safe`` or ``widgets``.
        display_name: what front ends show.
        words: options for the supervisor, as in its argv.
        program: argv of a wrapped kernel, empty for our own Python.
        language: the kernel's language, in lower case.
        debugger: whether front ends offer one.
        logos: the folder to take the logos from; ours where it has none.
    """

    output: str
    display_name: str
    words: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    language: str = "python"
    debugger: bool = False
    logos: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The contents of its ``kernel.json``, to be started by this very Python."""
        made = packaged(self.output)
        made["argv"] = [sys.executable, *made["argv"][1:], *self.words]
        if self.program:
            made["argv"] += ["--", *self.program]
        made["display_name"] = self.display_name
        made["language"] = self.language
        made["metadata"]["debugger"] = self.debugger
        return made


class Place(NamedTuple):
    """Where specs are kept.

    Attributes:
        folder: the folder of all specs.
        user: whether it is the user's own.
        prefix: the environment that it belongs to, or None.
    """

    folder: Path
    user: bool
    prefix: str | None


@dataclass(frozen=True)
class Installed:
    """A spec that Jupyter can find.

    Attributes:
        name: how Jupyter calls it.
        folder: where it is.
        contents: its ``kernel.json``; empty where that cannot be read.
    """

    name: str
    folder: Path
    contents: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether we made it."""
        return isinstance(self.metadata.get("nsmagic"), dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the spec says to whoever reads it, empty where that is no table."""
        metadata = self.contents.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def display_name(self) -> str:
        """What front ends show."""
        return str(self.contents.get("display_name", self.name))

    def settings(self) -> dict[str, str]:
        """What the spec asks for, defaults among it, by the options' names and as text.

        Raises:
            SpecError: somebody edited the argv, and it makes no sense.
        """
        argv = self.contents.get("argv")
        if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
            raise SpecError("argv", "is no list of words")
        if argv[_MODULE] != ["-m", MODULE]:
            raise SpecError("argv", f"does not start -m {MODULE}")
        written, _ = options.read(argv[_OPTIONS], options.KERNEL_SCOPES)
        options.checked(written)
        found = {name: text_of(name, value) for name, value in DEFAULTS.items()}
        for option, _, text in written:
            if option.scope != "supervisor" or option.name in {"output", "wrapped_name"}:
                shown = text or "yes"
                many = option.many and option.name in found
                found[option.name] = f"{found[option.name]} {shown}" if many else shown
        return found


def text_of(name: str, value: int) -> str:
    """A default as one would write it: a size in the largest unit that fits."""
    if options.BY_NAME[name].metavar != "SIZE":
        return str(value)
    for size, unit in ((GIB, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def packaged(output: str) -> dict[str, Any]:
    """The ``kernel.json`` that comes with the package, for this kind of output."""
    text = (_DATA / _PACKAGED[output] / "kernel.json").read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def default_name(output: str, written: Iterable[options.Written]) -> str:
    """A name that tells specs with other limits apart: ``isolated-python-mem-4g``."""
    return "-".join([_PACKAGED[output], *(_slug(each) for each in written)])


def default_display_name(output: str, written: Iterable[options.Written]) -> str:
    """The same for people: ``Isolated Python (mem 4G)``."""
    name = str(packaged(output)["display_name"])
    asked = ", ".join(f"{_plain(each.option)} {each.text}".strip() for each in written)
    return f"{name} ({asked})" if asked else name


def _plain(option: options.Option) -> str:
    return option.flag.lstrip("-")


def _slug(written: options.Written) -> str:
    """An option as part of a name; a value that is long or a path is left out."""
    value = re.sub(r"[^a-z0-9.]+", "-", written.text.lower()).strip("-")
    short = 12
    shown = value and len(value) <= short and "/" not in written.text
    return f"{_plain(written.option)}-{value}" if shown else _plain(written.option)


def jupyter() -> KernelSpecManager:
    """What finds and keeps kernel specs.

    Raises:
        NsmagicError: Jupyter's packages are not installed.
    """
    try:
        from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 - see the module's docstring
    except ImportError as error:
        raise NsmagicError(
            f'kernels need Jupyter\'s packages, and {error.name} is missing: pip install "nsmagic[kernel]"'
        ) from None
    return KernelSpecManager()


def place(given: dict[str, Any]) -> Place:
    """Where to put a spec: ``--user`` (also where nothing is said), ``--sys-prefix`` or ``--prefix``.

    Raises:
        SpecError: more than one of them, or a prefix that is a file.
    """
    asked = [name for name in ("for_user", "sys_prefix", "prefix") if name in given]
    if len(asked) > 1:
        first, second = (options.BY_NAME[name].flag for name in asked[:2])
        raise SpecError(first, f"names one place and {second} another; choose one")
    if asked in ([], ["for_user"]):
        return Place(Path(jupyter().user_kernel_dir), user=True, prefix=None)
    prefix = Path(given["prefix"]).expanduser().absolute() if "prefix" in given else Path(sys.prefix)
    if prefix.exists() and not prefix.is_dir():
        raise SpecError("--prefix", f"{str(prefix)!r} is not a folder")
    return Place(prefix / "share" / "jupyter" / "kernels", user=False, prefix=str(prefix))


def check_name(name: str) -> str:
    """A spec's name, in lower case as Jupyter keeps it.

    Raises:
        SpecError: it is none.
    """
    lowered = name.lower()
    if not _NAME.fullmatch(lowered) or lowered in {".", ".."} or len(lowered) > _NAME_LENGTH:
        raise SpecError(
            "--name",
            f"{name[:60]!r} is not a kernel's name; use up to {_NAME_LENGTH} letters, digits, '.', '_', '-'",
        )
    return lowered


def _load(name: str, folder: Path) -> Installed:
    try:
        contents = json.loads((folder / "kernel.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        contents = {}
    return Installed(name, folder, contents if isinstance(contents, dict) else {})


def found(folders: Sequence[Path] | None = None) -> list[Installed]:
    """Every spec in these folders, or wherever Jupyter looks, in the order in which it does.

    Of two with the same name Jupyter takes the first.
    """
    if folders is None:
        folders = [Path(folder) for folder in jupyter().kernel_dirs]
    specs = []
    for folder in folders:
        if folder.is_dir():
            each = sorted(path for path in folder.iterdir() if (path / "kernel.json").is_file())
            specs += [_load(path.name.lower(), path) for path in each if _NAME.fullmatch(path.name.lower())]
    return specs


def install(spec: Spec, name: str, where: Place, *, replace: bool) -> Path:
    """Write a spec.

    Args:
        spec: what to write.
        name: its name.
        where: the place to put it into.
        replace: whether it may replace one of ours, or go before another program's of that name.

    Returns:
        Its folder.

    Raises:
        NsmagicError: the name is taken, or the place may not be written to.
    """
    manager = jupyter()
    _check_free(name, where, replace=replace)
    try:
        with tempfile.TemporaryDirectory(prefix="nsmagic-spec-") as above:
            # The folder above is closed to others, and copies keep a folder's mode.
            folder = Path(above, name)
            folder.mkdir()
            text = json.dumps(spec.to_json(), indent=2, ensure_ascii=False)
            (folder / "kernel.json").write_text(text + "\n", encoding="utf-8")
            for logo in _logos(spec):
                shutil.copyfile(logo, folder / logo.name)
            where.folder.mkdir(parents=True, exist_ok=True)
            manager.log.setLevel(
                "ERROR"
            )  # it warns of a prefix that it does not search; its caller chose that
            return Path(manager.install_kernel_spec(str(folder), name, user=where.user, prefix=where.prefix))
    except OSError as error:
        raise NsmagicError(
            f"the kernel {name} cannot be written to {where.folder}: {error.strerror or error}; "
            "choose another place with --user, --sys-prefix or --prefix"
        ) from None


def _check_free(name: str, where: Place, *, replace: bool) -> None:
    target = where.folder / name
    if target.exists() or target.is_symlink():
        there = _load(name, target)
        if not there.ours or target.is_symlink():
            raise NsmagicError(f"{target} belongs to another program; choose another name with --name")
        if not replace:
            raise NsmagicError(
                f"there is a kernel {name} in {where.folder} already; "
                "replace it with --replace, or choose another name with --name"
            )
        return
    other = next((each for each in found() if each.name == name), None)
    if other is not None and not other.ours and not replace:
        raise NsmagicError(
            f"{name} is the name of another program's kernel, in {other.folder}; "
            "choose another with --name, or let yours go before it with --replace"
        )


def _logos(spec: Spec) -> list[Path]:
    """The pictures of a spec: those of the wrapped kernel if it has any."""
    for folder in (spec.logos, _DATA / _PACKAGED[spec.output]):
        if folder is not None:
            pictures = [
                path
                for path in sorted(folder.glob("logo-*"))
                if path.suffix in {".png", ".svg"} and path.is_file() and path.stat().st_size <= _LOGO_BYTES
            ]
            if pictures:
                return pictures
    return []


def remove(name: str, folders: Sequence[Path] | None = None) -> Path:
    """Remove a spec of ours; gives the folder that was removed.

    Raises:
        NsmagicError: there is none, it is another program's, or it may not be removed.
    """
    specs = found(folders)
    spec = next((each for each in specs if each.name == name.lower()), None)
    if spec is None:
        near = options.nearest(name.lower(), [each.name for each in specs if each.ours])
        raise NsmagicError(f"there is no kernel {name[:60]!r}{near}; see nsmagic kernel list")
    if not spec.ours:
        raise NsmagicError(f"the kernel {name} in {spec.folder} was not made by nsmagic, so it stays")
    try:
        if spec.folder.is_symlink():
            spec.folder.unlink()
        else:
            shutil.rmtree(spec.folder)
    except OSError as error:
        raise NsmagicError(f"{spec.folder} cannot be removed: {error.strerror or error}") from None
    return spec.folder
