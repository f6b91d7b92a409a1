"""What Tab offers for a line; ``test_magics`` asks a real kernel the same."""

from __future__ import annotations

import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter

from nsmagic import options
from nsmagic.completion import candidates, matcher

FLAGS = [flag for option in options.of(options.MAGIC_SCOPES) for flag in option.flags]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("%%contain --m", ["--mem"]),
        ("  %%contain --m", ["--mem"]),
        ("%contain --best", ["--best-effort"]),
        ("%%contain --mem 1G --pid", ["--pids"]),
        ("%%contain --bg --pro", ["--proc"]),
        ("%%contain --net ", ["none", "host", "outbound"]),
        ("%%contain --net n", ["none"]),
        ("%%contain --rich=", ["--rich=safe", "--rich=trusted"]),
        ("%%contain --user r", ["root"]),
        ("%%contain -u r", ["root"]),
        ("%%contain --ns all-n", ["all-net"]),
        ("%contain_config --pre", ["--preload"]),
        ("%contain_config --res", ["--reset"]),
        ("%%scratch lab --p", ["--pids"]),
        ("%%scratch lab --mem 1G --tim", ["--timeout"]),
        ("%%scratch lab --net", []),
        ("%%scratch --p", []),
        ("%%contain --pre", []),
        ("%contain_config --bg", []),
        ("%%contain --report", []),
        ("%%contain --mem ", []),
        ("%%contain --zzz", []),
        ("%%contain bas", []),
        ("%%contained --m", []),
        ("%%contain", []),
        ("print --m", []),
        ("", []),
    ],
)
def test_candidates(line: str, wanted: list[str]) -> None:
    assert candidates(line) == wanted


def test_an_empty_word_offers_every_option() -> None:
    assert candidates("%%contain ") == FLAGS
    assert candidates("%%contain --stats ") == FLAGS


def test_options_end_where_the_code_or_the_program_begins() -> None:
    assert candidates("%contain x = 1 --m") == []
    assert candidates("%%contain bash --n") == []
    assert candidates("%%contain -- --m") == []


@pytest.fixture(scope="module")
def completer() -> IPCompleter:
    completer = IPCompleter(shell=None, namespace={"memory": 1}, global_namespace={})
    completer.custom_matchers.append(matcher)
    return completer


def texts(completer: IPCompleter, code: str, offset: int | None = None) -> list[str]:
    """The code as it stands after each completion."""
    at = len(code) if offset is None else offset
    with provisionalcompleter():
        return [code[: each.start] + each.text + code[each.end :] for each in completer.completions(code, at)]


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("%%contain --me", ["%%contain --mem"]),
        ("%%contain --net h", ["%%contain --net host"]),
        ("%%contain --rich=t", ["%%contain --rich=trusted"]),
        ("%%contain --ns=all-u", ["%%contain --ns=all-user", "%%contain --ns=all-uts"]),
        ("%contain_config --best-", ["%contain_config --best-effort"]),
    ],
)
def test_the_completer_replaces_the_whole_word(completer: IPCompleter, code: str, wanted: list[str]) -> None:
    assert sorted(texts(completer, code)) == wanted


def test_only_the_first_line_has_options(completer: IPCompleter) -> None:
    assert "%%contain\n%%contain --mem" not in texts(completer, "%%contain\n%%contain --me")
    assert texts(completer, "%%contain --me\nx = 1", len("%%contain --me")) == ["%%contain --mem\nx = 1"]
