"""Sizes, durations, binds, namespaces: what is understood, and what is refused in one line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsmagic import options, spec
from nsmagic.errors import SpecError
from nsmagic.spec import Bind, ContainerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS: list[Callable[[str, Any], Any]] = [
    spec.parse_size, spec.parse_swap, spec.parse_mem, spec.parse_duration, spec.parse_cpus, spec.parse_count,
    spec.parse_hostname, spec.parse_user, spec.parse_variable, spec.parse_namespaces, spec.parse_bind,
    spec.parse_network, spec.parse_rich, spec.parse_output_limit,
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1), ("1", 1), ("128M", 128 << 20), ("128m", 128 << 20), ("128MiB", 128 << 20), ("1.5G", 3 << 29), ("2K", 2048),
        ("1kb", 1000), ("1MB", 10**6), ("3GB", 3 * 10**9), (" 4 K ", 4096), ("7b", 7), (1.0, 1), ("0.5K", 512),
    ],
)  # fmt: skip
def test_sizes(text: object, size: int) -> None:
    assert spec.parse_size("--disk", text) == size
    assert isinstance(spec.parse_size("--disk", text), int)


@pytest.mark.parametrize(
    "text",
    [
        "12Q",
        "",
        "M",
        "-1",
        "1e3",
        "1 2",
        "0",
        0,
        -5,
        "1T",
        True,
        None,
        float("nan"),
        float("inf"),
        "0x10",
        "9" * 40,
        [],
        b"1",
    ],
)
def test_bad_sizes(text: object) -> None:
    with pytest.raises(SpecError) as error:
        spec.parse_size("--disk", text)
    assert error.value.option == "--disk"


def test_sizes_with_a_least() -> None:
    assert spec.parse_swap("--swap", 0) == 0
    assert spec.parse_mem("--mem", "4M") == 4 << 20
    with pytest.raises(SpecError):
        spec.parse_mem("--mem", (4 << 20) - 1)
    with pytest.raises(SpecError):
        spec.parse_size("--disk", "0.1")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10.0), (0.5, 0.5), ("500ms", 0.5), ("2m", 120.0), ("1.5h", 5400.0), ("1min", 60.0), ("3 s", 3.0)],
)
def test_durations(text: object, seconds: float) -> None:
    assert spec.parse_duration("--timeout", text) == seconds


@pytest.mark.parametrize(
    "text", ["soon", "0", 0, -1, "", "1d", "inf", float("inf"), float("nan"), "11y", 1e12, True]
)
def test_bad_durations(text: object) -> None:
    with pytest.raises(SpecError):
        spec.parse_duration("--timeout", text)


@pytest.mark.parametrize(("text", "cpus"), [("0.5", 0.5), (2, 2.0), ("0.01", 0.01), (4096, 4096.0)])
def test_cpus(text: object, cpus: float) -> None:
    assert spec.parse_cpus("--cpus", text) == cpus


@pytest.mark.parametrize("text", [0, "0", -1, "0.001", 5000, "50%", "all", math.nan, math.inf, True])
def test_bad_cpus(text: object) -> None:
    with pytest.raises(SpecError):
        spec.parse_cpus("--cpus", text)


@pytest.mark.parametrize("text", [0, -1, 1.5, "1.5", "many", True, 2**23, math.nan, math.inf])
def test_bad_counts(text: object) -> None:
    with pytest.raises(SpecError):
        spec.parse_count("--pids", text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", spec.NAMESPACES), ("uts", ["uts"]), ("uts,pid", ["uts", "pid"]), (" uts , pid ", ["uts", "pid"]), ("mnt,network", ["mount", "net"]),
        ("all-net", set(spec.NAMESPACES) - {"net"}), ("all-net-user", set(spec.NAMESPACES) - {"net", "user"}), ("uts,uts", ["uts"]),
    ],
)  # fmt: skip
def test_namespaces(text: str, names: Any) -> None:
    assert spec.parse_namespaces("--ns", text) == frozenset(names)


@pytest.mark.parametrize(
    "text", ["", "quantum", "uts,", "all-", "all,net", "all-quantum", "UTS", "uts pid", "none", "-net"]
)
def test_bad_namespaces(text: str) -> None:
    with pytest.raises(SpecError) as error:
        spec.parse_namespaces("--ns", text)
    assert "choose from" in str(error.value)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("/a", Bind("/a")), ("/a:/b", Bind("/a", "/b")), ("/a:ro", Bind("/a")), ("/a:rw", Bind("/a", "", "rw")), ("a:/b:cow", Bind("a", "/b", "cow")),
        ("~/x:/y", Bind("~/x", "/y")), ("ro", Bind("ro")), ("./ro:ro", Bind("./ro")), ("ü b:/c d", Bind("ü b", "/c d")),
    ],
)  # fmt: skip
def test_binds(text: str, bind: Bind) -> None:
    assert spec.parse_bind("--bind", text) == bind
    assert spec.parse_bind("--bind", bind) == bind


@pytest.mark.parametrize(
    "text",
    ["", ":", ":/b", "/a:b", "/a:/b:/c", "/a:/b:rx", "/a:/../b", "/a\0:/b", "/a:/b\0", "/a:", "/a::ro"],
)
def test_bad_binds(text: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_bind("--bind", text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "a b", "a" * 65, "ä", "a\n", ".", "a_b", None, 7])
def test_bad_hostnames(text: object) -> None:
    with pytest.raises(SpecError):
        spec.parse_hostname("--hostname", text)


@pytest.mark.parametrize("text", ["A", "=x", "1A=x", "A B=x", "A=\0", "A\n=x", ""])
def test_bad_variables(text: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_variable("--env", text)


def test_variables() -> None:
    assert spec.parse_variable("--env", "A=b=c\n") == ("A", "b=c\n")
    assert spec.parse_variable("--env", "_=") == ("_", "")


@pytest.mark.parametrize(("text", "uid"), [("root", 0), (0, 0), ("1000", 1000), (65535, 65535)])
def test_users(text: object, uid: int) -> None:
    assert spec.parse_user("--user", text) == uid


@pytest.mark.parametrize("text", ["", "alice", -1, 65536, "1.5", True, math.nan])
def test_bad_users(text: object) -> None:
    with pytest.raises(SpecError):
        spec.parse_user("--user", text)


def test_output_limits() -> None:
    assert spec.parse_output_limit("--output-limit", "1M") == (1 << 20, "stop")
    assert spec.parse_output_limit("--output-limit", "1M:drop") == (1 << 20, "drop")
    assert spec.parse_output_limit("--output-limit", 5) == (5, "stop")
    for text in ("1M:", "1M:x", "x:drop", ":drop", "1M:stop:drop", ""):
        with pytest.raises(SpecError):
            spec.parse_output_limit("--output-limit", text)


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@given(
    value=st.one_of(
        st.text(max_size=30),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.binary(max_size=5),
        st.text(alphabet="0123456789.kKmMgGbBsh-:/=", max_size=12),
    )
)
def test_anything_is_parsed_or_refused_on_one_line(parse: Callable[[str, Any], Any], value: object) -> None:
    try:
        parse("--option", value)
    except SpecError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("--option: ")
        assert len(str(error)) < 400


@given(value=st.integers(1, spec.MAX_BYTES))
def test_every_size_is_read_as_it_is_written(value: int) -> None:
    assert (
        spec.parse_size("--disk", value)
        == spec.parse_size("--disk", str(value))
        == spec.parse_size("--disk", f"{value}b")
        == value
    )


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(SpecError) as error:
        spec.parse_size("--mem", "x" * 10_000)
    assert len(str(error.value)) < 300


def test_options_at_odds() -> None:
    every = frozenset(spec.NAMESPACES)
    with pytest.raises(SpecError, match="--net"):
        ContainerSpec(net="host")
    with pytest.raises(SpecError, match="--net"):
        ContainerSpec(namespaces=every - {"net"})
    with pytest.raises(SpecError, match="--bind"):
        ContainerSpec(namespaces=every - {"mount"}, binds=(Bind("/a", "/b"),))
    with pytest.raises(SpecError, match="two binds"):
        ContainerSpec(binds=(Bind("/a", "/x"), Bind("/b", "/x")))


def test_equal_specs_are_equal_and_can_be_keys() -> None:
    assert ContainerSpec(mem=1 << 30) == ContainerSpec(mem=1 << 30)
    assert len({ContainerSpec(mem=1 << 30), ContainerSpec(mem=1 << 30), ContainerSpec(mem=1 << 29)}) == 2


# ---- the table of options -------------------------------------------------------------


def test_words_become_options() -> None:
    found, rest = options.parse(
        ["--mem", "64M", "-t5", "--bind=/a:/b", "-b", "/c", "--fresh-exec", "bash", "-x"],
        options.MAGIC_SCOPES,
    )
    assert found == {
        "mem": 64 << 20,
        "timeout": 5.0,
        "bind": (Bind("/a", "/b"), Bind("/c")),
        "fresh_exec": True,
    }
    assert rest == ["bash", "-x"]
    assert options.parse(["--", "-m"], options.MAGIC_SCOPES) == ({}, ["-m"])
    assert options.parse(["-"], options.MAGIC_SCOPES) == ({}, ["-"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--memo", "1"], "did you mean --mem"), (["--tiemout=3"], "did you mean --timeout"), (["--mem"], "needs a value"),
        (["--fresh-exec=yes"], "takes no value"), (["--zzzz"], "no such option"), (["-Z"], "no such option"), (["--mem", "12Q"], "not a size"),
    ],
)  # fmt: skip
def test_wrong_words(words: list[str], text: str) -> None:
    with pytest.raises(SpecError, match=text) as error:
        options.parse(words, options.MAGIC_SCOPES)
    assert "\n" not in str(error.value)


def test_keyword_arguments() -> None:
    given_options = {"mem": "64M", "env": {"A": "1"}, "bind": "/a:/b", "ns": ["uts", "pid"], "cpus": None}
    assert options.convert(given_options) == {
        "mem": 64 << 20, "env": (("A", "1"),), "bind": (Bind("/a", "/b"),), "ns": frozenset({"uts", "pid"}),
    }  # fmt: skip
    with pytest.raises(SpecError, match="did you mean timeout"):
        options.convert({"timout": 3})


def test_defaults_and_what_is_given_over_them() -> None:
    merged = options.merge({"mem": 1, "env": (("A", "1"),)}, {"mem": 2, "env": (("B", "2"),)})
    assert merged == {"mem": 2, "env": (("A", "1"), ("B", "2"))}


def test_the_table_is_whole() -> None:
    names = [option.name for option in options.OPTIONS]
    assert len(set(names)) == len(names)
    # Only where they never meet may two options share a flag; `nsmagic kernel install --user` is said to be one.
    for scopes in (
        options.MAGIC_SCOPES,
        options.CONFIG_SCOPES,
        options.COMMAND_SCOPES,
        options.KERNEL_SCOPES,
    ):
        flags = [flag for option in options.of(scopes) for flag in option.flags]
        assert len(set(flags)) == len(flags)
    shared = [flag for option in options.of(options.INSTALL_SCOPES) for flag in option.flags]
    assert {flag for flag in shared if shared.count(flag) > 1} == {"--user"}
    for option in options.OPTIONS:
        assert option.help.endswith(".")
        assert option.flags[0].startswith("-")
        assert all(option.parse(option.flag, choice) is not None for choice in option.choices)
