"""Tab completion: the options of ``%%contain`` and its like, the words of ``%network``."""

from __future__ import annotations

import re
import sys
from typing import Final

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from nsmagic import names, options

_MAGIC: Final = r"%%contain|%contain_config|%contain|%%scratch\s+\w+|%network"
_LINE: Final = re.compile(rf"\s*({_MAGIC})\s(.*)", re.DOTALL)
_STOP: Final = re.compile(r"\s*%container\s+stop\s+(?:\S+\s+)*(\S*)")

_SCOPES: Final = {"%contain_config": options.CONFIG_SCOPES, "%%scratch": options.SCRATCH_SCOPES}


def candidates(line: str) -> list[str]:
    """What may stand at the end of a line: options, or the values of the one before.

    Args:
        line: the line up to the cursor.
    """
    if stop := _STOP.fullmatch(line):
        return [name for name in names.live() if name.startswith(stop[1])]
    match = _LINE.match(line)
    if not match:
        return []
    if match[1] == "%network":
        return _network(match[2].split(" "))
    scopes = _SCOPES.get(match[1].split()[0], options.MAGIC_SCOPES)
    known = {flag: option for option in options.of(scopes) for flag in option.flags}
    words = match[2].split(" ")
    word, before = words[-1], words[-2] if len(words) > 1 else ""
    if _options_have_ended(words[:-1], known):
        return []
    flag, equals, value = word.partition("=")
    if equals and flag in known:
        return [f"{flag}={choice}" for choice in _choices(known[flag]) if choice.startswith(value)]
    if before in known and known[before].metavar:
        return [choice for choice in _choices(known[before]) if choice.startswith(word)]
    return [flag for flag in known if flag.startswith(word)] if word.startswith("-") or not word else []


def _choices(option: options.Option) -> tuple[str, ...]:
    """What may stand behind an option; to be joined is what is kept, and a lab is a network."""
    if option.name == "join":
        return tuple(names.live())
    return (*option.choices, *(_labs() if option.name == "net" else ()))


def _labs() -> list[str]:
    """The labs of this notebook."""
    labs = sys.modules.get("nsmagic.labs")  # nobody has made one if it is not there
    return [lab.name for lab in labs.living()] if labs is not None else []


def _network(words: list[str]) -> list[str]:
    """What may stand behind ``%network``: an action, and then a lab."""
    actions: dict[str, list[str]] = {"create": [], "remove": _labs(), "show": [*_labs(), "outbound"]}
    choices = {1: list(actions), 2: actions.get(words[0], [])}.get(len(words), [])
    return [choice for choice in choices if choice.startswith(words[-1])]


def _options_have_ended(words: list[str], known: dict[str, options.Option]) -> bool:
    """Whether the code or the program has begun: a word that is neither an option nor an option's value."""
    value_due = False
    for word in words:
        if value_due or not word:
            value_due = False
        elif not word.startswith("-") or word == "--":
            return True
        else:
            value_due = word in known and bool(known[word].metavar)
    return False


@context_matcher()  # type: ignore[untyped-decorator]
def matcher(context: CompletionContext) -> SimpleMatcherResult:
    """The matcher that IPython's completer asks; see ``IPCompleter.custom_matchers``."""
    found = candidates(context.text_until_cursor) if context.cursor_line == 0 else []
    # IPython replaces its own token, which begins behind the hyphens that it takes for operators.
    token = context.token
    whole = context.text_until_cursor.rpartition(" ")[2]
    cut = len(whole) - len(token)
    completions = [SimpleCompletion(text[cut:] if cut > 0 else text, type="option") for text in found]
    return {"completions": completions, "suppress": bool(completions)}
