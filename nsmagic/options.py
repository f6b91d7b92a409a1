"""The one table of options: magics, command line, Python API, completion and the docs all read it.

Pure: no I/O, and nothing here knows what a container is made of.
"""

from __future__ import annotations

import difflib
import keyword
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from nsmagic import ports, spec
from nsmagic.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Scope = Literal[
    "container", "job", "life", "view", "magic", "line", "command", "kernel", "supervisor", "install",
    "scratch"
]  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as the Python API spells it.
        flags: as magics and command line spell it, the first is the one that messages use.
        metavar: what its value looks like; empty for a switch.
        parse: from the option's name and what the user wrote to the value.
        help: one sentence.
        scope: ``container`` and ``job`` options are everywhere; ``life`` ones are of ``%%contain`` and the
            API; ``view`` ones are of ``%%contain`` and ``nsmagic run``; ``magic`` ones of ``%%contain``;
            ``line`` ones of ``%contain_config``; ``command`` ones of ``nsmagic run``; ``kernel`` ones of
            kernels, ``supervisor`` ones of what a kernel spec starts, ``install`` ones of ``nsmagic kernel``;
            ``scratch`` ones of ``%%scratch``.
        default: in words, for the docs; empty where there is none.
        many: whether it may be given more than once.
        choices: values to complete.
    """

    name: str
    flags: tuple[str, ...]
    metavar: str
    parse: Callable[[str, Any], Any]
    help: str
    scope: Scope
    default: str = ""
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """The spelling that messages use."""
        return self.flags[0]


def _switch(option: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise SpecError(option, f"{value!r} is not True or False")


def _text(option: str, value: object) -> str:
    text = str(value)
    if not text or "\0" in text:
        raise SpecError(option, "is empty or holds a zero byte")
    return text


def _path(option: str, value: object) -> str:
    return _text(option, os.fspath(value) if isinstance(value, os.PathLike) else value)


def _name(option: str, value: object) -> str:
    text = str(value)
    if not text.isidentifier() or keyword.iskeyword(text):
        raise SpecError(option, f"{text[:40]!r} is not a variable's name")
    return text


def _names(option: str, value: object) -> tuple[str, ...]:
    """``a,b``: names of variables."""
    parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    return tuple(_name(option, part.strip()) for part in parts)


def _modules(option: str, value: object) -> tuple[str, ...]:
    """``numpy,pandas``: names of modules, none for an empty text."""
    parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    names = [part.strip() for part in parts if part.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise SpecError(option, f"{name[:40]!r} is not a module's name")
    return tuple(names)


def _choice(*words: str) -> Callable[[str, Any], str]:
    """A parser that takes one of these words."""

    def parse_choice(option: str, value: object) -> str:
        if value not in words:
            raise SpecError(option, f"{str(value)[:60]!r} is none of {', '.join(words)}")
        return str(value)

    return parse_choice


def _environment(option: str, value: object) -> tuple[str, str]:
    return value if isinstance(value, tuple) else spec.parse_variable(option, value)


def _output_limit_text() -> str:
    return f"{spec.DEFAULT_OUTPUT_LIMIT // spec.MIB}M:stop"


OPTIONS: Final = (
    Option("mem", ("--mem", "-m"), "SIZE", spec.parse_mem,
           "Memory limit, such as 128M; what is written to files counts too.", "container"),
    Option("swap", ("--swap",), "SIZE", spec.parse_swap,
           "Swap on top of --mem.", "container", "0"),
    Option("cpus", ("--cpus",), "N", spec.parse_cpus,
           "Processors' worth of time, such as 0.5.", "container"),
    Option("pids", ("--pids",), "N", spec.parse_count,
           "Processes and threads at once.", "container", str(spec.DEFAULT_PIDS)),
    Option("disk", ("--disk",), "SIZE", spec.parse_size,
           "All that may be written to files.", "container", f"{spec.DEFAULT_DISK // spec.GIB}G"),
    Option("timeout", ("--timeout", "-t"), "TIME", spec.parse_duration,
           "Wall-clock limit, such as 10, 500ms or 2m.", "job"),
    Option("output_limit", ("--output-limit",), "SIZE[:stop|drop]", spec.parse_output_limit,
           "Output limit; there the run is stopped, or the rest dropped.", "job", _output_limit_text()),
    Option("net", ("--net",), "NETWORK", spec.parse_network,
           "Network: none (a loopback of its own), host (the host's own), outbound (a way out, by pasta) "
           "or a lab's name (%network create).", "container", "none",
           choices=spec.NETWORKS),
    Option("publish", ("--publish",), "[ADDRESS:]HOST:BOX[/udp]", ports.parse_publish,
           "With --net outbound: a port of the host, on 127.0.0.1 or ADDRESS, leads to one of the container.",
           "container", many=True),
    Option("ns", ("--ns",), "NAMESPACES", spec.parse_namespaces,
           "Namespaces to make: all, all-net, or a list such as uts,pid.", "container", "all",
           choices=("all", *(f"all-{name}" for name in spec.NAMESPACES), *spec.NAMESPACES)),
    Option("bind", ("--bind", "-b"), "SRC[:DST][:ro|rw|cow]", spec.parse_bind,
           "Show a file or folder of the host: read-only, writable, copy-on-write.", "container", many=True),
    Option("workdir", ("--workdir", "-w"), "DIR", _text,
           "Working directory, shown copy-on-write.", "container", "the current one"),
    Option("rootfs", ("--rootfs",), "DIR|TAR", _path,
           "Another root file system, copy-on-write: a folder, or a tar of one.", "container"),
    Option("image", ("--image",), "FILE[#NAME]", _path,
           "An image's root file system: a file of docker save, or an OCI layout as a folder or a tar.",
           "container"),
    Option("env", ("--env", "-e"), "KEY=VALUE", _environment,
           "Set an environment variable.", "job", many=True),
    Option("hostname", ("--hostname",), "NAME", spec.parse_hostname,
           "Host name inside.", "container", "container"),
    Option("user", ("--user", "-u"), "root|UID", spec.parse_user,
           "The user that the code sees itself as; outside it is nobody special.", "container", "your own",
           choices=("root",)),
    Option("fresh_exec", ("--fresh-exec",), "", _switch,
           "Start a new Python interpreter instead of a clone of the warm one.", "job"),
    Option("best_effort", ("--best-effort",), "", _switch,
           "Run with less isolation where the host cannot do all that is asked, and say what is missing.",
           "container"),
    Option("rich", ("--rich",), "KIND", spec.parse_rich,
           "Rich output: safe (filtered) or trusted (scripts run in your notebook).", "job", "safe",
           choices=("safe", "trusted")),
    Option("name", ("--name",), "NAME", spec.parse_name,
           "Keep the container under this name, until %container stop NAME.", "life"),
    Option("join", ("--join",), "NAME[:NAMESPACES]", spec.parse_join,
           "Run in a kept container, or in a new one that shares namespaces of it, such as web:net,uts.",
           "life"),
    Option("stats", ("--stats",), "", _switch,
           "Say what the run used and which isolation was in force.", "magic"),
    Option("explain", ("--explain",), "", _switch,
           "Show each system call that built the container: why, how long, and where to read on.", "view"),
    Option("watch", ("--watch",), "", _switch,
           "Show memory, processor time and processes against their limits while it runs.", "view"),
    Option("inputs", ("-i", "--input"), "NAMES", _names,
           "Copy variables in, such as a,b.", "magic", many=True),
    Option("outputs", ("-o", "--output"), "NAMES", _names,
           "Take variables out, in data-only formats.", "magic", many=True),
    Option("out", ("--out",), "NAME", _name,
           "Put standard output into this variable instead of showing it.", "magic"),
    Option("err", ("--err",), "NAME", _name,
           "Put standard error into this variable instead of showing it.", "magic"),
    Option("bg", ("--bg",), "", _switch,
           "Run in the background.", "magic"),
    Option("proc", ("--proc",), "NAME", _name,
           "With --bg: put the running job into this variable.", "magic"),
    Option("no_raise_error", ("--no-raise-error",), "", _switch,
           "Do not raise when the cell fails.", "magic"),
    Option("preload", ("--preload",), "MODULES", _modules,
           "Modules that the launcher imports once, such as numpy,pandas.", "line"),
    Option("reset", ("--reset",), "", _switch,
           "Forget the session's defaults.", "line"),
    Option("code", ("-c",), "CODE", _text,
           "Run this Python code.", "command"),
    Option("report", ("--report",), "FILE", _text,
           "Write the result as JSON.", "command"),
    Option("cell_timeout", ("--cell-timeout",), "TIME", spec.parse_duration,
           "Wall-clock limit of each cell, such as 10, 500ms or 2m.", "kernel"),
    Option("keep_state", ("--keep-state",), "auto|on|off", _choice("auto", "on", "off"),
           "Snapshot before each cell, so that a cell that dies takes no variables along: "
           "auto leaves it out where it could not be faithful or would hurt.", "kernel", "auto",
           choices=("auto", "on", "off")),
    Option("connection_file", ("-f",), "FILE", _text,
           "The connection file that Jupyter wrote.", "supervisor"),
    Option("output", ("--output",), "KIND", _choice("safe", "widgets"),
           "What gets out: safe (filtered), or widgets, which bring scripts to the front end.", "supervisor",
           "safe", choices=("safe", "widgets")),
    Option("wrapped_name", ("--wrapped-name",), "NAME", _text,
           "Name of the kernel spec whose program stands behind --.", "supervisor"),
    Option("language", ("--language",), "NAME", _text,
           "Language of that kernel.", "supervisor"),
    Option("interrupt", ("--interrupt",), "HOW", _choice("signal", "message"),
           "How that kernel is interrupted.", "supervisor", "signal", choices=("signal", "message")),
    Option("for_user", ("--user",), "", _switch,
           "Put the kernel spec into your own Jupyter folder; the user inside is -u.", "install"),
    Option("sys_prefix", ("--sys-prefix",), "", _switch,
           "Put it into this Python's environment.", "install"),
    Option("prefix", ("--prefix",), "DIR", _text,
           "Put it into DIR/share/jupyter/kernels.", "install"),
    Option("spec_name", ("--name",), "NAME", _text,
           "Name of the kernel spec, its folder's too.", "install"),
    Option("display_name", ("--display-name",), "TEXT", _text,
           "Name that front ends show.", "install"),
    Option("widgets", ("--widgets",), "", _switch,
           "Let widgets, which bring scripts to the front end, and the debugger through.", "install"),
    Option("replace", ("--replace",), "", _switch,
           "Replace a kernel of ours, or go before another program's of that name.", "install"),
    Option("scratch_mem", ("--mem", "-m"), "SIZE", spec.parse_mem,
           "Memory limit of the scratch process and its children.", "scratch", "1G"),
    Option("scratch_pids", ("--pids",), "N", spec.parse_count,
           "Processes and threads at once, on top of itself.", "scratch", "64"),
    Option("scratch_timeout", ("--timeout", "-t"), "TIME", spec.parse_duration,
           "Wall-clock limit of this cell, which is then interrupted, or killed.", "scratch", "60s"),
    Option("scratch_best_effort", ("--best-effort",), "", _switch,
           "Take weaker limits than those asked for where the host has no better ones.", "scratch"),
)  # fmt: skip
"""Every option, in the order in which the docs list them."""

BY_NAME: Final = {option.name: option for option in OPTIONS}

API_SCOPES: Final = ("container", "job", "life")
MAGIC_SCOPES: Final = ("container", "job", "life", "view", "magic")
CONFIG_SCOPES: Final = ("container", "job", "line")
COMMAND_SCOPES: Final = ("container", "job", "view", "command")
KERNEL_SCOPES: Final = ("container", "job", "kernel", "supervisor")
INSTALL_SCOPES: Final = ("container", "job", "kernel", "install")
SCRATCH_SCOPES: Final = ("scratch",)


def of(scopes: Iterable[str]) -> tuple[Option, ...]:
    """The options of these scopes."""
    return tuple(option for option in OPTIONS if option.scope in scopes)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the nearest known word, to be put behind "there is no such …"; empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown(flag: str, known: Iterable[str]) -> SpecError:
    return SpecError(flag, f"there is no such option{nearest(flag, known)}")


def _split(token: str, by_flag: dict[str, Option]) -> tuple[str, str | None]:
    """``--mem=1G`` and ``-m1G`` as the flag and its value."""
    if token in by_flag:
        return token, None
    flag, equals, value = token.partition("=")
    if token.startswith("--"):
        return flag, value if equals else None
    short = by_flag.get(token[:2])
    if short is not None and short.metavar:
        return token[:2], token[2:].removeprefix("=")
    return flag, value if equals else None


class Written(NamedTuple):
    """An option as somebody wrote it.

    Attributes:
        option: which one.
        flag: the spelling that was used.
        text: its value's text; empty for a switch.
    """

    option: Option
    flag: str
    text: str


def read(tokens: Sequence[str], scopes: Iterable[str]) -> tuple[list[Written], list[str]]:
    """Options from the front of a list of words, their values as written, and the words that follow them.

    The options end at the first word that is none, or behind ``--``.  Where options of two scopes share a
    flag, it means the one that stands later in the table.

    Raises:
        SpecError: an unknown option (with the nearest right one), or a value that is missing.
    """
    by_flag = {flag: option for option in of(scopes) for flag in option.flags}
    found: list[Written] = []
    words = list(tokens)
    while words and words[0].startswith("-") and words[0] != "-":
        token = words.pop(0)
        if token == "--":  # noqa: S105 - no password, a separator
            break
        flag, value = _split(token, by_flag)
        option = by_flag.get(flag)
        if option is None:
            raise _unknown(flag, by_flag)
        if not option.metavar:
            if value is not None:
                raise SpecError(flag, "takes no value")
            found.append(Written(option, flag, ""))
            continue
        if value is None:
            if not words:
                raise SpecError(flag, f"needs a value: {flag} {option.metavar}")
            value = words.pop(0)
        found.append(Written(option, flag, value))
    return found, words


def parse(tokens: Sequence[str], scopes: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Options from the front of a list of words, checked, and the words that follow them; see ``read``.

    Raises:
        SpecError: an unknown option (with the nearest right one), a value that is missing or wrong.
    """
    written, words = read(tokens, scopes)
    return checked(written), words


def checked(written: Iterable[Written]) -> dict[str, Any]:
    """The values of options as written, by the options' names.

    Raises:
        SpecError: a wrong value.
    """
    found: dict[str, Any] = {}
    for option, flag, text in written:
        if option.metavar:
            _put(found, option, option.parse(flag, text))
        else:
            found[option.name] = True
    return found


def _put(found: dict[str, Any], option: Option, value: object) -> None:
    if not option.many:
        found[option.name] = value
    elif isinstance(value, tuple) and option.name in {"inputs", "outputs"}:
        found[option.name] = (*found.get(option.name, ()), *value)
    else:
        found[option.name] = (*found.get(option.name, ()), value)


def convert(given: dict[str, Any], scopes: Iterable[str] = API_SCOPES) -> dict[str, Any]:
    """Options as keyword arguments of the Python API, checked like those of the magics.

    Raises:
        SpecError: an unknown name or a wrong value.
    """
    known = {option.name: option for option in of(scopes)}
    found: dict[str, Any] = {}
    for name, value in given.items():
        option = known.get(name)
        if option is None:
            raise _unknown(name, known)
        if value is None:
            continue
        if name == "env" and hasattr(value, "items"):
            found[name] = tuple(option.parse(name, f"{key}={text}") for key, text in value.items())
        elif option.many:
            several = [value] if isinstance(value, str | spec.Bind | ports.Publish) else _several(name, value)
            found[name] = tuple(option.parse(name, each) for each in several)
        elif name == "ns" and not isinstance(value, str):
            found[name] = option.parse(name, ",".join(str(each) for each in _several(name, value)))
        else:
            found[name] = option.parse(name, value)
    return found


def _several(name: str, value: object) -> list[Any]:
    """A list of what may be given many times."""
    if not isinstance(value, Iterable):
        raise SpecError(name, f"{str(value)[:60]!r} is neither a text nor a list of texts")
    return list(value)


def merge(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options over defaults; those that may be given many times add up."""
    if given.keys() & {"image", "rootfs"}:  # one root file system takes the place of another
        defaults = {name: value for name, value in defaults.items() if name not in {"image", "rootfs"}}
    merged = {**defaults, **given}
    for name in defaults.keys() & given.keys():
        if BY_NAME[name].many:
            merged[name] = (*defaults[name], *given[name])
    return merged
