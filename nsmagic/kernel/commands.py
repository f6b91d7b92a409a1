"""``nsmagic kernel install | wrap | list | remove``: words in, a kernel spec or a table out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nsmagic import options
from nsmagic.errors import NsmagicError, SpecError
from nsmagic.kernel import specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PLACES: Final = ("for_user", "sys_prefix", "prefix")
_LIMITS: Final = ("mem", "swap", "cpus", "pids", "disk", "net", "cell_timeout", "output_limit")
_HELP: Final = """\
nsmagic kernel keeps Jupyter kernels that run in containers.

  nsmagic kernel install [options]       another "Isolated Python", with limits of its own
  nsmagic kernel wrap SPEC [options]     any installed kernel, in a container
  nsmagic kernel list [--json]           the kernels of ours that Jupyter finds
  nsmagic kernel remove NAME             remove one of them

list and remove look in one place only where --user, --sys-prefix or --prefix DIR names it.

Options of install and wrap:

{options}
"""


def help_text() -> str:
    """What ``nsmagic kernel --help`` prints."""
    chosen = [option for option in options.of(options.INSTALL_SCOPES) if option.name not in specs.REFUSED]
    lines = []
    for option in sorted(chosen, key=lambda option: option.scope != "install"):
        # --user is where the spec goes; the user inside keeps its short flag.
        flags = [flag for flag in option.flags if option.name != "user" or flag != "--user"]
        default = specs.DEFAULTS.get(option.name)
        text = option.default if default is None else specs.text_of(option.name, default)
        lines.append(f"  {', '.join(flags)} {option.metavar}".rstrip())
        lines.append(f"      {option.help}" + (f" Default: {text}." if text else ""))
    return _HELP.format(options="\n".join(lines))


def _given(arguments: list[str]) -> tuple[list[options.Written], dict[str, Any]]:
    """Options as written and as values, checked as far as they can be now.

    Raises:
        SpecError: one of them makes no sense, or not for a kernel.
    """
    written, rest = options.read(arguments, options.INSTALL_SCOPES)
    if rest:
        hint = "; the user inside is -u" if arguments[-len(rest) - 1 :][0] == "--user" else ""
        raise SpecError(rest[0][:60], f"is no option{hint}; see nsmagic kernel --help")
    for option, flag, _ in written:
        if option.name in specs.REFUSED:
            raise SpecError(flag, specs.REFUSED[option.name])
    return written, options.checked(written)


def _container_words(written: Iterable[options.Written], given: dict[str, Any]) -> tuple[str, ...]:
    """The options that a container is made with, for the spec: its paths hold wherever a kernel is started.

    Raises:
        SpecError: a path that is not there, or options at odds with each other.
    """
    from nsmagic import intake  # noqa: PLC0415 - list and remove need none of it

    intake.container_spec({**specs.DEFAULTS, **given})
    words: list[str] = []
    for option, _, text in written:
        if option.scope == "install":
            continue
        if option.name in {"workdir", "rootfs", "image"}:
            text = _absolute(text)  # noqa: PLW2901 - the same, wherever it is read
        if option.name == "bind":
            bind = option.parse("--bind", text)
            source = _absolute(bind.source)
            text = f"{source}:{bind.target or source}:{bind.mode}"  # noqa: PLW2901 - likewise
        words += [option.flag, text] if option.metavar else [option.flag]
    return tuple(words)


def _absolute(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - keeps links


def _install(arguments: list[str]) -> int:
    written, given = _given(arguments)
    where = specs.place(given)
    output = "widgets" if "widgets" in given else "safe"
    limits = [each for each in written if each.option.scope != "install"]
    name = specs.check_name(given.get("spec_name") or specs.default_name(output, limits))
    spec = specs.Spec(
        output=output,
        display_name=given.get("display_name") or specs.default_display_name(output, limits),
        words=_container_words(written, given),
        debugger=output == "widgets",
    )
    folder = specs.install(spec, name, where, replace="replace" in given)
    _say(f"installed {spec.display_name!r} as {name} in {folder}")
    return 0


def _wrap(arguments: list[str]) -> int:
    from nsmagic.kernel import wrapping  # noqa: PLC0415 - only this command needs it

    if not arguments or arguments[0].startswith("-"):
        raise SpecError("nsmagic kernel wrap", "needs the name of a kernel; see jupyter kernelspec list")
    written, given = _given(arguments[1:])
    where = specs.place(given)
    wrapped = wrapping.wrap(
        arguments[0],
        output="widgets" if "widgets" in given else "safe",
        words=_container_words(written, given),
        display_name=given.get("display_name"),
    )
    kind = "-widgets" if "widgets" in given else ""
    name = specs.check_name(given.get("spec_name") or f"isolated-{arguments[0]}{kind}")
    folder = specs.install(wrapped.spec, name, where, replace="replace" in given)
    _say(f"installed {wrapped.spec.display_name!r} as {name} in {folder}")
    if text := wrapping.describe(wrapped):
        _say(text)
    return 0


def _folders(written: list[options.Written], given: dict[str, Any]) -> list[Path] | None:
    """The one folder that was named, or None for all that Jupyter searches."""
    for option, flag, _ in written:
        if option.name not in _PLACES:
            raise SpecError(flag, "is no option here; see nsmagic kernel --help")
    return [specs.place(given).folder] if given else None


def _list(arguments: list[str]) -> int:
    from nsmagic import views  # noqa: PLC0415 - only this command needs it

    as_json = "--json" in arguments
    folders = _folders(*_given([word for word in arguments if word != "--json"]))
    ours = [spec for spec in specs.found(folders) if spec.ours]
    if as_json:
        _say(json.dumps([_row(spec) for spec in ours], indent=2))
        return 0
    rows = [("name", "shown as", "limits", "folder")]
    rows += [(spec.name, _printable(spec.display_name), _limits(spec), str(spec.folder)) for spec in ours]
    _say(views.table_text(rows) if ours else "no kernel of nsmagic is installed; see nsmagic kernel --help")
    return 0


def _row(spec: specs.Installed) -> dict[str, Any]:
    row: dict[str, Any] = {"name": spec.name, "display_name": spec.display_name, "folder": str(spec.folder)}
    try:
        row["options"] = spec.settings()
    except SpecError as error:
        row["problem"] = str(error)
    return row


def _limits(spec: specs.Installed) -> str:
    """What limits a kernel has, in a few words."""
    try:
        settings = spec.settings()
    except SpecError as error:
        return f"not understood: {error}"
    flags = {name: options.BY_NAME[name].flag.lstrip("-") for name in _LIMITS}
    return ", ".join(f"{flags[name]} {settings[name]}" for name in _LIMITS if name in settings)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _remove(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        raise SpecError("nsmagic kernel remove", "needs the name of a kernel; see nsmagic kernel list")
    folder = specs.remove(arguments[0], _folders(*_given(arguments[1:])))
    _say(f"removed {folder}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


_COMMANDS: Final[dict[str, Callable[[list[str]], int]]] = {
    "install": _install,
    "wrap": _wrap,
    "list": _list,
    "remove": _remove,
}


def main(arguments: list[str]) -> int:
    """Run ``nsmagic kernel``; gives the exit status.

    Raises:
        SpecError: wrong words.
        NsmagicError: it could not be done.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(help_text())
        return 0 if arguments else 2
    command = _COMMANDS.get(arguments[0])
    if command is None:
        near = options.nearest(arguments[0], _COMMANDS)
        raise SpecError(
            f"kernel {arguments[0][:60]}", f"there is no such command{near}; see nsmagic kernel --help"
        )
    try:
        return command(arguments[1:])
    except OSError as error:
        raise NsmagicError(f"the kernel specs cannot be read: {error}") from None
