"""What a kernel shows: displays, results, errors and questions to the user, rebuilt for a front end.

A display is a MIME bundle, and ``filter_bundle`` decides on each of its types. What it leaves out is said in
the display itself, with the way to allow it: below the plain text and below the HTML, one of which a front
end shows. Where it may show neither, because a picture or a chart is left, the sentence is returned beside
the display. Pure functions; they take any JSON and never raise.
"""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from typing import Any

from nsmagic.firewall import fields, filter_bundle
from nsmagic.firewall.text import MAX_PLAIN, bounded, clean_traceback

_MAX_PROMPT = 10_000
_MAX_DISPLAY_ID = 10_000
_SAID_IN = frozenset({"text/plain", "text/html"})


@dataclass(frozen=True)
class Rules:
    """What one kernel may do.

    Attributes:
        trusted: widgets, JavaScript and the debugger are allowed; what is typed and bounded stays so.
        language: the kernel's language, for where the kernel itself does not say it properly.
        remedy: a sentence on how to allow what is withheld.
    """

    trusted: bool
    language: str
    remedy: str


def bundle(content: dict[str, Any], rules: Rules) -> tuple[dict[str, Any], str]:
    """Filter the ``data`` and ``metadata`` of a message.

    Returns:
        Both, ready for a message, and what was withheld where they have no place to say it, else "".
    """
    found = filter_bundle(
        content.get("data", {}), content.get("metadata"), trusted=rules.trusted, remedy=rules.remedy
    )
    data: dict[str, Any] = dict(found.data)
    plain = data.pop("text/plain", None)
    if isinstance(plain, str):
        # Trusted text comes here as it is, and terminals show it.
        data["text/plain"] = bounded(plain, MAX_PLAIN) if rules.trusted else plain
    note = ""
    if found.withheld:
        note = f"Withheld: {'; '.join(found.withheld)}." + ("" if rules.trusted else f"\n{rules.remedy}")
        if isinstance(plain, str) and plain != note:  # it is where nothing else was left
            data["text/plain"] += f"\n{note}"
        if isinstance(data.get("text/html"), str):
            data["text/html"] += f"<p><small>{html.escape(note)}</small></p>"
    return {"data": data, "metadata": dict(found.metadata)}, "" if data.keys() <= _SAID_IN else note


def display(content: dict[str, Any], rules: Rules) -> tuple[dict[str, Any], str]:
    """Rebuild a display_data message; see ``bundle`` for what is returned."""
    shown, note = bundle(content, rules)
    shown["transient"] = _transient(content)
    return shown, note


def update(content: dict[str, Any], rules: Rules) -> dict[str, Any] | None:
    """Rebuild an update_display_data message; None where it names no display."""
    transient = _transient(content)
    return {**bundle(content, rules)[0], "transient": transient} if transient else None


def result(content: dict[str, Any], rules: Rules) -> tuple[dict[str, Any], str]:
    """Rebuild an execute_result message; see ``bundle`` for what is returned."""
    shown, note = bundle(content, rules)
    shown["execution_count"] = fields.count(content.get("execution_count"))
    if transient := _transient(content):
        shown["transient"] = transient
    return shown, note


def error(content: dict[str, Any]) -> dict[str, Any]:
    """Rebuild what says that a cell raised."""
    ename, evalue, traceback = clean_traceback(*map(content.get, ("ename", "evalue", "traceback")))
    return {"ename": ename, "evalue": evalue, "traceback": traceback}


def question(content: dict[str, Any]) -> dict[str, Any]:
    """Rebuild an input_request message."""
    prompt = fields.text(content.get("prompt"), _MAX_PROMPT)
    return {"prompt": prompt, "password": content.get("password") is True}


def executed(content: dict[str, Any]) -> dict[str, Any] | None:
    """Rebuild an execute_input message, which repeats the code that runs; None where it counts nothing."""
    count = fields.count(content.get("execution_count"))
    if count is None:
        return None
    return {"code": fields.code(content.get("code")), "execution_count": count}


def _transient(content: dict[str, Any]) -> dict[str, Any]:
    """Return the display's id. People may choose any text; front ends get a name that is safe anywhere."""
    theirs = fields.mapping(content.get("transient")).get("display_id")
    if not isinstance(theirs, str) or not 0 < len(theirs) <= _MAX_DISPLAY_ID:
        return {}
    # By a hash and not by a table: the same name again after a restart, and nothing to remember.
    name = fields.identifier(theirs) or _hashed(theirs)
    return {"display_id": name}


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
