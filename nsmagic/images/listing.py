"""``%images`` and ``nsmagic images``: what is unpacked, how large it is, what is shared; and removing it.

Names and sources come from files that others made; they are text here, and shortened where they came in.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from nsmagic.descent import shown
from nsmagic.errors import SpecError
from nsmagic.images import WAITING, current_store, forget_known
from nsmagic.progress import Progress
from nsmagic.result import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from nsmagic.images.store import ImageRecord

Rows = list[tuple[str, ...]]

_DIGEST_LENGTH: Final = 19  # "sha256-" and twelve digits


def command(where: str, words: Sequence[str], busy: Callable[[Collection[str]], str] | None = None) -> Rows:
    """Do what the words say; rows of a table, the first its head.

    Args:
        where: the command, for messages.
        words: none to list all, ``NAME`` for one, ``remove NAME``.
        busy: says, for layers' paths, which of this process's containers uses one; empty for none.

    Raises:
        SpecError: there is no such image, it is in use, or the words make no sense.
        HostError: the store cannot be used.
    """
    match list(words):
        case []:
            return _all()
        case ["remove", name]:
            return _remove(name, busy)
        case [name] if name != "remove":
            return _one(_named(name))
    raise SpecError(where, "takes nothing, NAME, or remove NAME")


def _all() -> Rows:
    images = current_store().images()
    if not images:
        return [(f"no images are unpacked in {shown(current_store().path)}",)]
    having = Counter(layer for image in images for layer in set(image.layers))
    rows: Rows = [("image", "layers", "size", "shared with others", "unpacked", "from")]
    for image in images:
        sizes = {layer: _size(layer) for layer in set(image.layers)}
        shared = sum(size for layer, size in sizes.items() if having[layer] > 1)
        rows.append(
            (
                image.name,
                str(len(image.layers)),
                size_text(sum(sizes.values())),
                size_text(shared) if shared else "",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(image.made)),
                _from(image),
            )
        )
    whole = sum(_size(layer) for layer in having)
    rows.append(("all", str(len(having)), size_text(whole), "", "", f"in {shown(current_store().path)}"))
    return rows


def _from(image: ImageRecord) -> str:
    gone = "" if os.path.lexists(image.source) else " (gone)"
    return shown(image.source + (f"#{image.chosen}" if image.chosen else "")) + gone


def _one(image: ImageRecord) -> Rows:
    having: dict[str, list[str]] = {}
    for other in current_store().images():
        for layer in set(other.layers) - {""}:
            having.setdefault(layer, []).append(other.name)
    rows: Rows = [("layer, the topmost first", "size", "files", "left out", "shared with", "in use")]
    for layer in image.layers:
        record = current_store().layer(layer)
        left_out = ", ".join(f"{count} {what}" for what, count in record.left_out.items()) if record else ""
        rows.append(
            (
                layer[:_DIGEST_LENGTH],
                size_text(record.bytes) if record else "not there",
                str(record.entries) if record else "",
                left_out,
                ", ".join(name for name in having[layer] if name != image.name),
                "yes" if current_store().used(layer) else "",
            )
        )
    return rows


def _size(layer: str) -> int:
    record = current_store().layer(layer)
    return record.bytes if record else 0


def _named(name: str) -> ImageRecord:
    images = current_store().images()
    found = [image for image in images if name in {image.name, image.source}]
    if not found:
        known = ", ".join(image.name for image in images) or "none"
        raise SpecError(shown(name), f"is no image that is unpacked; there is: {known}")
    return found[0]


def _remove(name: str, busy: Callable[[Collection[str]], str] | None) -> Rows:
    image = _named(name)
    with Progress() as progress, current_store().changing(lambda: progress(WAITING, 0, 0)):
        others = {layer for other in current_store().images() if other != image for layer in other.layers}
        alone = [layer for layer in dict.fromkeys(image.layers) if layer not in others]
        by = busy([current_store().tree(layer) for layer in alone]) if busy else ""
        if by:
            raise SpecError(image.name, f"is in use by {by}; stop it first")
        forget_known()
        for layer in alone:
            current_store().let_go(layer)
        if any(current_store().used(layer) for layer in alone):
            raise SpecError(
                image.name, "is in use by another process; a notebook keeps what it has used until it ends"
            )
        freed = sum(map(_size, alone))
        current_store().forget(image)
        current_store().collect()
    kept = (
        f"; {len(set(image.layers)) - len(alone)} of its layers stay for others"
        if others & set(image.layers)
        else ""
    )
    return [(f"removed {image.name}: {size_text(freed)}{kept}",)]
