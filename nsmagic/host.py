"""What this host can do, and how to mend what it cannot."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsmagic.result import Step


def remedy_for(step: Step) -> str:
    """What to do about a step that failed, or an empty string where nothing general can be said."""
    del errno
    return ""
