"""The one table of options: how magics, command line and API read it."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nsmagic
from nsmagic import intake, options
from nsmagic.errors import SpecError
from nsmagic.spec import Bind

MAGIC = options.MAGIC_SCOPES


def error(tokens: list[str], scopes: tuple[str, ...] = MAGIC) -> str:
    with pytest.raises(SpecError) as caught:
        options.parse(tokens, scopes)
    return str(caught.value)


# ---- the table itself ------------------------------------------------------------------


def test_no_flag_and_no_name_is_used_twice() -> None:
    for scopes in (
        options.MAGIC_SCOPES,
        options.CONFIG_SCOPES,
        options.COMMAND_SCOPES,
        options.SCRATCH_SCOPES,
    ):
        flags = [flag for option in options.of(scopes) for flag in option.flags]
        assert len(flags) == len(set(flags))
    assert len(options.BY_NAME) == len(options.OPTIONS)


def test_every_option_is_documented_in_one_sentence() -> None:
    for option in options.OPTIONS:
        assert option.help.endswith("."), option.name
        assert "\n" not in option.help


def test_every_choice_is_one_that_is_taken() -> None:
    for option in options.OPTIONS:
        for choice in option.choices:
            option.parse(option.flag, choice)


def test_every_default_in_words_is_one_that_is_taken() -> None:
    for option in options.OPTIONS:
        if option.default and option.name not in {"workdir", "user"}:
            option.parse(option.flag, option.default)


def typed(name: str) -> set[str]:
    """The keys of a TypedDict of ``intake``, which exists for type checkers only."""
    tree = ast.parse(inspect.getsource(intake))
    (found,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.target.id
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_the_python_api_has_the_same_options() -> None:
    assert typed("ContainerOptions") == {option.name for option in options.of(("container", "life"))}
    assert typed("JobOptions") == {option.name for option in options.of(("job",))}
    for option in options.of(options.API_SCOPES):
        assert f"``{option.name}``" in (nsmagic.run.__doc__ or ""), option.name


# ---- words -------------------------------------------------------------------------------


def test_every_way_to_write_an_option() -> None:
    for tokens in (["--mem", "1M"], ["--mem=1M"], ["-m", "1M"], ["-m1M"], ["-m=1M"]):
        with pytest.raises(SpecError, match="out of range"):
            options.parse(tokens, MAGIC)
        assert options.parse([token.replace("1M", "64M") for token in tokens], MAGIC) == (
            {"mem": 64 << 20},
            [],
        )


def test_options_end_at_the_first_word_that_is_none() -> None:
    assert options.parse(["--stats", "bash", "--norc", "-m"], MAGIC) == (
        {"stats": True},
        ["bash", "--norc", "-m"],
    )
    assert options.parse(["--stats", "--", "--odd"], MAGIC) == ({"stats": True}, ["--odd"])
    assert options.parse(["-", "x"], MAGIC) == ({}, ["-", "x"])
    assert options.parse([], MAGIC) == ({}, [])


def test_the_last_one_counts_and_some_add_up() -> None:
    assert options.parse(["--cpus", "1", "--cpus", "2"], MAGIC)[0] == {"cpus": 2.0}
    assert options.parse(["-e", "A=1", "-e", "B=x=y"], MAGIC)[0] == {"env": (("A", "1"), ("B", "x=y"))}
    assert options.parse(["-i", "a,b", "-i", "c"], MAGIC)[0] == {"inputs": ("a", "b", "c")}
    found = options.parse(["-b", "a", "--bind=b:/c:rw"], MAGIC)[0]
    assert found == {"bind": (Bind("a"), Bind("b", "/c", "rw"))}


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--meme", "1"], "--meme: there is no such option; did you mean --mem?"),
        (["--timout=1"], "--timout: there is no such option; did you mean --timeout?"),
        (["--no-raise-errors"], "--no-raise-errors: there is no such option; did you mean --no-raise-error?"),
        (["--zzzzzz"], "--zzzzzz: there is no such option"),
        (["-z"], "-z: there is no such option"),
        (["--mem"], "--mem: needs a value: --mem SIZE"),
        (["-o"], "-o: needs a value: -o NAMES"),
        (["--bg=1"], "--bg: takes no value"),
        (["-i", "a,,b"], "-i: '' is not a variable's name"),
        (["-o", "a b"], "-o: 'a b' is not a variable's name"),
        (["--out", "class-x"], "--out: 'class-x' is not a variable's name"),
        (["-e", "=x"], "-e: '=x' is not KEY=VALUE"),
    ],
)
def test_wrong_words_name_the_option_as_it_was_written(tokens: list[str], words: str) -> None:
    text = error(tokens)
    assert text.startswith(words)
    assert "\n" not in text


def test_an_option_of_another_place_is_unknown() -> None:
    assert error(["--preload", "numpy"]).startswith("--preload: there is no such option")
    assert error(["-c", "pass"]).startswith("-c: there is no such option")
    assert error(["--bg"], options.CONFIG_SCOPES).startswith("--bg: there is no such option")
    assert error(["--stats"], options.COMMAND_SCOPES).startswith("--stats: there is no such option")


def test_names_of_modules() -> None:
    assert options.parse(["--preload", "numpy, os.path"], options.CONFIG_SCOPES)[0] == {
        "preload": ("numpy", "os.path")
    }
    assert options.parse(["--preload", ""], options.CONFIG_SCOPES)[0] == {"preload": ()}
    assert "'1x' is not a module's name" in error(["--preload", "1x"], options.CONFIG_SCOPES)


def test_a_reserved_word_is_no_variables_name() -> None:
    assert error(["--out", "class"]).startswith("--out: 'class' is not a variable's name")


# ---- keyword arguments ---------------------------------------------------------------------


def test_keywords_are_checked_like_words() -> None:
    given = {
        "mem": "64M",
        "cpus": 1,
        "env": {"A": "1"},
        "bind": "a:/b:rw",
        "ns": ["pid", "uts"],
        "timeout": None,
    }
    assert options.convert(given) == {
        "mem": 64 << 20,
        "cpus": 1.0,
        "env": (("A", "1"),),
        "bind": (Bind("a", "/b", "rw"),),
        "ns": frozenset({"pid", "uts"}),
    }
    assert options.convert({"bind": [Bind("a"), "b"]}) == {"bind": (Bind("a"), Bind("b"))}
    with pytest.raises(SpecError, match="^meme: there is no such option; did you mean mem[?]$"):
        options.convert({"meme": 1})
    with pytest.raises(SpecError, match="^mem: '12Q' is not a size"):
        options.convert({"mem": "12Q"})
    with pytest.raises(SpecError, match="^best_effort: 'yes' is not True or False"):
        options.convert({"best_effort": "yes"})
    with pytest.raises(SpecError, match="^bg: there is no such option"):
        options.convert({"bg": True})


def test_options_over_defaults() -> None:
    defaults = {"mem": 1, "env": (("A", "1"),), "net": "none"}
    merged = options.merge(defaults, {"mem": 2, "env": (("A", "2"),), "stats": True})
    assert merged == {"mem": 2, "env": (("A", "1"), ("A", "2")), "net": "none", "stats": True}
    assert defaults == {"mem": 1, "env": (("A", "1"),), "net": "none"}


# ---- anything at all -------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from([f for o in options.OPTIONS for f in o.flags])),
        max_size=6,
    )
)
def test_any_words_give_options_or_a_one_line_error(tokens: list[str]) -> None:
    try:
        found, words = options.parse(tokens, MAGIC)
    except SpecError as problem:
        assert len(str(problem).splitlines()) == 1
        assert len(str(problem)) < 500
    else:
        assert words == tokens[len(tokens) - len(words) :]
        assert set(found) <= set(options.BY_NAME)


@given(
    st.sampled_from(options.of(options.API_SCOPES)),
    st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.binary()),
)
def test_any_value_is_taken_or_refused_on_one_line(option: options.Option, value: Any) -> None:
    try:
        options.convert({option.name: value})
    except SpecError as problem:
        assert len(str(problem).splitlines()) == 1
        assert len(str(problem)) < 500
