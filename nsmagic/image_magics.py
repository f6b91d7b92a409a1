"""``%images``: what is unpacked of other root file systems.  Thin."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from nsmagic import container, standbys, views
from nsmagic.errors import SpecError
from nsmagic.plan import require_linux

if TYPE_CHECKING:
    from collections.abc import Collection


@magics_class
class ImageMagics(Magics):  # type: ignore[misc]
    """``%images``."""

    @line_magic  # type: ignore[untyped-decorator]
    def images(self, line: str) -> None:
        """Show the images that were unpacked for --image and --rootfs: layers, sizes, what is shared.

            %images                all of them
            %images NAME           one, layer by layer
            %images remove NAME    remove one; layers that another image has stay

        They are kept in ~/.cache/nsmagic, or below $XDG_CACHE_HOME.
        """
        require_linux()
        from nsmagic.images import listing  # noqa: PLC0415 - only whoever asks needs it, and only Linux has it

        try:
            words = shlex.split(line)
        except ValueError as error:
            raise SpecError("%images", f"the line cannot be read: {error}") from None
        rows = listing.command("%images", words, _busy)
        display(views.bundle(rows, head=len(rows) > 1), raw=True)


def _busy(layers: Collection[str]) -> str:
    """Which container of this notebook uses one of these layers; standbys that do are let go of."""
    for each in list(container.live.values()):
        if each.spec.image and set(layers) & set(each.spec.image.layers):
            return f"container {each.number}"
    standbys.current().drop()
    return ""
