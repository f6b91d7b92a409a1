"""A kernel's introduction of itself: kernel_info_reply.

Much of it is used outside the container. The front end writes ``language_info`` into the notebook, and from
there ``nbconvert_exporter`` is *imported* by whatever converts the notebook (nbconvert takes a dotted name
for a class), ``file_extension`` becomes part of a file's name, and ``pygments_lexer`` picks a lexer. Help
links open inside the front end's own window. So words are short and of plain letters, the exporter is one
that is known, and links lead to known documentation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nsmagic.firewall import fields

if TYPE_CHECKING:
    from nsmagic.firewall.outputs import Rules

_MAX_BANNER = 10_000
_MAX_LINKS = 30
_MAX_LINK_TEXT = 60

_PROTOCOL = re.compile(r"5\.[0-9]{1,2}(?:\.[0-9]{1,2})?")
_OLDEST_PROTOCOL = "5.0"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+#_()-]{0,59}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,39}")
_MIME = re.compile(r"[a-z]{1,20}/[A-Za-z0-9][A-Za-z0-9.+_-]{0,60}")
_EXTENSION = re.compile(r"\.[A-Za-z0-9_+-]{1,16}")
_URL = re.compile(r"https?://[A-Za-z0-9.-]{1,100}(?:/[A-Za-z0-9/._~%+-]{0,300})?")

_FEATURES = ("debugger", "kernel subshells")
_EXPORTERS = ("python", "script")
_DOCUMENTATION = frozenset({"cran.r-project.org", "docs.julialang.org", "docs.python.org", "docs.scipy.org",
                            "docs.sympy.org", "ipython.org", "ipython.readthedocs.io", "matplotlib.org",
                            "numpy.org", "pandas.pydata.org", "scipy.org", "stat.ethz.ch", "www.gnu.org",
                            "www.r-project.org"})  # fmt: skip


def kernel_info(content: dict[str, Any], rules: Rules) -> dict[str, Any]:
    """Rebuild the content of a kernel_info_reply, without its status."""
    features = fields.items(content.get("supported_features"))
    known = [name for name in _FEATURES if name in features]
    if content.get("debugger") is True and "debugger" not in known:
        known.insert(0, "debugger")  # as kernels said it before there was a list
    if not rules.trusted:
        known = [name for name in known if name != "debugger"]
    return {
        "protocol_version": fields.shaped(content.get("protocol_version"), _PROTOCOL, _OLDEST_PROTOCOL),
        "implementation": fields.shaped(content.get("implementation"), _WORD, rules.language),
        "implementation_version": fields.shaped(content.get("implementation_version"), _VERSION, "0"),
        "language_info": _language(fields.mapping(content.get("language_info")), rules.language),
        "banner": fields.text(content.get("banner"), _MAX_BANNER).replace("\r", "").replace("\b", ""),
        "help_links": _links(content.get("help_links"), rules),
        "supported_features": known,
        "debugger": "debugger" in known,
    }


def _language(theirs: dict[str, Any], language: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": fields.shaped(theirs.get("name"), _WORD, language),
        "version": fields.shaped(theirs.get("version"), _VERSION, "0"),
        "mimetype": fields.shaped(theirs.get("mimetype"), _MIME, "text/plain"),
        "file_extension": fields.shaped(theirs.get("file_extension"), _EXTENSION, ".txt"),
        "pygments_lexer": fields.shaped(theirs.get("pygments_lexer"), _WORD),
        "codemirror_mode": _editor_mode(theirs.get("codemirror_mode")),
        "nbconvert_exporter": fields.chosen(theirs.get("nbconvert_exporter"), _EXPORTERS),
    }
    return {name: value for name, value in found.items() if value}


def _editor_mode(theirs: object) -> str | dict[str, Any]:
    """Return what tells an editor how to colour code: a word, or an object with a word and a version."""
    mode = fields.mapping(theirs)
    name = fields.shaped(mode.get("name", theirs), _WORD)
    if not mode or not name:
        return name
    version = fields.count(mode.get("version"))
    return {"name": name} if version is None else {"name": name, "version": version}


def _links(theirs: object, rules: Rules) -> list[dict[str, str]]:
    links = []
    for link in map(fields.mapping, fields.items(theirs)[:_MAX_LINKS]):
        text = fields.line(link.get("text"), _MAX_LINK_TEXT)
        parts = urlsplit(fields.shaped(link.get("url"), _URL))
        if text and parts.hostname and (rules.trusted or parts.hostname in _DOCUMENTATION):
            links.append({"text": text, "url": f"https://{parts.hostname}{parts.path}"})
    return links
