"""Another program's kernel spec in a container: its argv behind ``--`` of ours, and what it needs to see.

A container shows ``/usr`` and this Python's own folders.  A program from elsewhere, such as a venv's Python,
is followed link by link, and the folder that each link lies in is bound read-only.  Nothing is started for
that: what a spec names is looked at, not run.
"""

from __future__ import annotations

import os
import shutil
import string
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from nsmagic import filesystem, options
from nsmagic.errors import NsmagicError, SpecError
from nsmagic.kernel import specs

_SHOWN: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_OWN: Final = ("/", "/tmp", "/dev", "/proc", "/sys", "/etc", "/run", "/var", "/home", "/opt", "/srv", "/mnt")  # noqa: S108 - never shown whole
_LINKS: Final = 40  # as many as the kernel follows, see path_resolution(7)
_SHEBANG: Final = 256  # bytes of a script's first line that the kernel reads, see execve(2)
_CONFIG_BYTES: Final = 1 << 16
_KINDS: Final = {"safe": "isolated", "widgets": "isolated, widgets"}
_LOCAL: Final = "local-provisioner"


class Wrapped(NamedTuple):
    """A spec to install, and what its maker should know.

    Attributes:
        spec: the spec.
        shown: what of the host it shows, read-only.
        taken: variables whose present values went into it.
    """

    spec: specs.Spec
    shown: tuple[str, ...]
    taken: tuple[str, ...]


def wrap(name: str, *, output: str, words: tuple[str, ...], display_name: str | None = None) -> Wrapped:
    """Any installed kernel spec, put into a container.

    Args:
        name: how Jupyter calls it.
        output: ``safe`` or ``widgets``.
        words: options for the supervisor.
        display_name: what front ends shall show, or None for the spec's own with "(isolated)" behind it.

    Raises:
        NsmagicError: there is no such spec, it is ours, or it cannot be started inside a container.
    """
    original = _find(name)
    argv = _argv(original)
    program = _program(original, argv)
    environment, taken = _environment(original)
    given, _ = options.parse(words, options.KERNEL_SCOPES)
    shown = _needed([program, *argv[1:]], original.folder, given)
    for path in shown:
        if ":" in path:
            raise NsmagicError(f"the kernel {name} needs {path!r}, and a path with ':' in it cannot be bound")
    language = str(original.contents.get("language", "")).lower()
    interrupt = str(original.contents.get("interrupt_mode") or "signal").lower()
    extra = ["--wrapped-name", original.name, "--interrupt", interrupt]
    extra += ["--language", language] if language else []
    extra += [word for path in shown for word in ("--bind", f"{path}:ro")]
    extra += [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
    # The user's come last: of two values of one variable the later counts.
    mine = (*extra, *words)
    options.parse(mine, options.KERNEL_SCOPES)
    spec = specs.Spec(
        output=output,
        display_name=display_name or f"{original.display_name} ({_KINDS[output]})",
        words=mine,
        program=(program, *argv[1:]),
        language=language,
        debugger=output == "widgets" and bool(original.metadata.get("debugger")),
        logos=original.folder,
    )
    return Wrapped(spec, shown, taken)


def _find(name: str) -> specs.Installed:
    manager = specs.jupyter()
    lowered = name.lower()
    known = specs.found()
    spec = next((each for each in known if each.name == lowered), None)
    if spec is None and lowered in manager.find_kernel_specs():
        # ipykernel's own is there without being in any folder that is searched.
        native = manager.get_kernel_spec(lowered)
        spec = specs.Installed(lowered, Path(native.resource_dir), native.to_dict())
    if spec is None:
        near = options.nearest(lowered, [each.name for each in known])
        raise NsmagicError(f"there is no kernel {name[:60]!r}{near}; see jupyter kernelspec list")
    if spec.ours or specs.MODULE in spec.contents.get("argv", ()):
        raise NsmagicError(f"the kernel {name} runs in a container already")
    provisioner = spec.metadata.get("kernel_provisioner")
    kind = provisioner.get("provisioner_name") if isinstance(provisioner, dict) else provisioner
    if provisioner and kind != _LOCAL:
        raise NsmagicError(
            f"the kernel {name} is started by the provisioner {str(kind)[:60]!r}, "
            "which would start it elsewhere and not in a container of this machine"
        )
    return spec


def _argv(original: specs.Installed) -> list[str]:
    """The words that Jupyter would start, with what belongs to that spec and not to ours filled in."""
    argv = original.contents.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
        raise NsmagicError(f"{original.folder / 'kernel.json'} has no argv that could be started")
    if not any(specs.CONNECTION_FILE in word for word in argv):
        raise NsmagicError(
            f"the argv of {original.folder / 'kernel.json'} lacks {specs.CONNECTION_FILE}, so its program "
            "cannot be told where to listen"
        )
    filled = {"{resource_dir}": str(original.folder), "{prefix}": sys.prefix}
    words = []
    for word in argv:
        for key, value in filled.items():
            word = word.replace(key, value)  # noqa: PLW2901 - one word after the other
        words.append(word)
    return words


def _program(original: specs.Installed, argv: list[str]) -> str:
    """The program's absolute path: found now, as Jupyter would find it.

    Links stay: a venv's Python knows its venv by the place of the link.
    """
    major, minor = sys.version_info[:2]
    if argv[0] in {"python", f"python{major}", f"python{major}.{minor}"}:
        return sys.executable
    environment = original.contents.get("env")
    path = environment.get("PATH") if isinstance(environment, dict) else None
    program = shutil.which(argv[0], path=_expand(path) if isinstance(path, str) else None)
    if program is None:
        raise NsmagicError(
            f"the kernel {original.name} starts {argv[0]!r}, and this machine has no such program"
        )
    return os.path.abspath(program)  # noqa: PTH100 - keeps links


def _expand(value: str) -> str:
    """``${NAME}`` replaced as Jupyter does it; a name that is not set stays."""
    return string.Template(value).safe_substitute(os.environ)


def _environment(original: specs.Installed) -> tuple[dict[str, str], tuple[str, ...]]:
    """The spec's variables with their values of now, and those of them that our environment has a part in."""
    environment = original.contents.get("env") or {}
    if not isinstance(environment, dict):
        raise NsmagicError(f"the env of {original.folder / 'kernel.json'} is not a table of variables")
    expanded = {str(key): _expand(str(value)) for key, value in environment.items()}
    for key, value in expanded.items():
        try:
            options.BY_NAME["env"].parse("env", f"{key}={value}")
        except SpecError as error:
            raise NsmagicError(f"{original.folder / 'kernel.json'}: {error}") from None
    return expanded, tuple(key for key, value in expanded.items() if value != str(environment[key]))


def _needed(argv: list[str], resources: Path, given: dict[str, Any]) -> tuple[str, ...]:
    """What of the host this argv needs that a container does not show, outermost folders only.

    Args:
        argv: the program, by its absolute path, and its arguments.
        resources: the spec's own folder.
        given: the user's options; what he binds himself is not bound again.
    """
    if "mount" not in given.get("ns", ("mount",)):
        return ()  # the host's files are all there
    wanted = _behind(argv[0])
    wanted += [word for word in argv[1:] if word.startswith("/") and Path(word).exists()]
    wanted.append(str(resources))
    shown = [*_SHOWN, *filesystem.interpreter_folders(tuple(sys.path))]
    shown += [bind.target for bind in given.get("bind", ())]
    kept: list[str] = []
    for path in sorted({os.path.normpath(path) for path in wanted}):
        if not _too_much(path) and not any(_lies_in(path, folder) for folder in (*shown, *kept)):
            kept.append(path)
    return tuple(kept)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _behind(program: str) -> list[str]:
    """Folders and files that a program is made of: itself, what its links and its first line lead to."""
    wanted: list[str] = []
    ahead, seen = [program], set[str]()
    while ahead and len(seen) < _LINKS:
        path = ahead.pop()
        if path in seen or not os.path.lexists(path):
            continue
        seen.add(path)
        folder = _prefix(path)
        wanted += [folder or path, os.path.realpath(folder or path)]
        if folder is not None:
            ahead += _base_of_venv(Path(folder))
        if Path(path).is_symlink():
            # Joined, not resolved: each link on the way has to be there inside.
            ahead.append(os.path.normpath(Path(path).parent / os.readlink(path)))  # noqa: PTH115 - as it is written
        else:
            ahead += _interpreter(Path(path))
    return wanted


def _prefix(program: str) -> str | None:
    """The folder that a program was installed into: what its ``bin`` lies in; None where that is too much."""
    binaries = Path(program).parent
    prefix = str(binaries.parent)
    return prefix if binaries.name == "bin" and not _too_much(prefix) else None


def _too_much(path: str) -> bool:
    """Whether a folder is never shown whole: a home, or what holds Jupyter's keys and passwords."""
    from jupyter_core import paths  # noqa: PLC0415 - whoever imports Jupyter first says what is missing

    private = (paths.jupyter_runtime_dir(), paths.jupyter_config_dir())
    return path in _OWN or filesystem.shows_home(path) or any(_lies_in(each, path) for each in private)


def _base_of_venv(folder: Path) -> list[str]:
    """A program in the Python that a venv was made from, as its ``pyvenv.cfg`` names it, see venv(3)."""
    try:
        with (folder / "pyvenv.cfg").open(encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(_CONFIG_BYTES).splitlines()
    except OSError:
        return []
    settings = [line.partition("=") for line in lines]
    homes = [value.strip() for key, _, value in settings if key.strip().lower() == "home"]
    programs = [f"{home}/{name}" for home in homes if home.startswith("/") for name in ("python3", "python")]
    return [program for program in programs if Path(program).exists()][:1]


def _interpreter(script: Path) -> list[str]:
    """The program that a script's first line names, see execve(2)."""
    try:
        with script.open("rb") as file:
            line = file.read(_SHEBANG).partition(b"\n")[0]
    except OSError:
        return []
    words = line.removeprefix(b"#!").split() if line.startswith(b"#!") else []
    return [os.fsdecode(words[0])] if words else []


def describe(wrapped: Wrapped) -> str:
    """What the user should know, one thing a line."""
    lines: list[str] = [f"shows, read-only: {path}" for path in wrapped.shown]
    if wrapped.taken:
        lines.append(f"took the present values of: {', '.join(wrapped.taken)}")
    return "\n".join(lines)
