"""The magics about containers that live: ``%container`` and ``%containers``.  Thin."""

from __future__ import annotations

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.display import display

from nsmagic import container, names, options, views
from nsmagic.errors import SpecError


@magics_class
class LifetimeMagics(Magics):  # type: ignore[misc]
    """Which containers there are, and their end."""

    @line_magic  # type: ignore[untyped-decorator]
    def container(self, line: str) -> None:
        """List the containers that are kept, or stop some.

            %container                 those that %%contain --name NAME has made
            %container stop NAME ...   end them, with all that runs in them

        A container that is kept ends at the latest with the notebook's kernel.
        """
        words = line.split()
        if not words:
            kept = list(names.live().values())
            rows = (
                views.kept_rows(kept)
                if kept
                else [("no container is kept; %%contain --name NAME keeps one",)]
            )
            display(views.bundle(rows, head=bool(kept)), raw=True)
            return
        command, *wanted = words
        if command != "stop":
            near = options.nearest(command, ["stop"])
            raise SpecError("%container", f"cannot {command[:40]!r}; it can stop NAME{near}")
        if not wanted:
            raise SpecError("%container stop", f"needs a name; there are {', '.join(names.live()) or 'none'}")
        for each in [names.find("%container stop", name) for name in wanted]:
            each.stop()

    @line_magic  # type: ignore[untyped-decorator]
    def containers(self, line: str) -> None:
        """List the live containers of this notebook, and the processes in each.

        A process has a number on the host, and another one inside, where counting begins anew with PID 1; see
        pid_namespaces(7).
        """
        if line.strip():
            raise SpecError("%containers", f"takes nothing behind it, not {line.strip()[:40]!r}")
        display(views.containers_bundle(list(container.live.values())), raw=True)
