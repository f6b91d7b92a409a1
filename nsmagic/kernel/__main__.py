"""``python -m nsmagic.kernel``: what a kernel spec of ours starts."""

from __future__ import annotations

import logging
import sys

from nsmagic.errors import NsmagicError, SpecError


def main(arguments: list[str]) -> int:
    """Be a kernel; gives the exit status."""
    from nsmagic.kernel import settings as reading  # noqa: PLC0415 - what it needs is little

    logging.basicConfig(format="nsmagic: %(message)s", level=logging.WARNING)
    try:
        settings = reading.parse(arguments)
        refuses = _start_launcher(wrapped=bool(settings.argv))
        # The launcher imports what it needs beside us, so it was started before we import the rest.
        from nsmagic.kernel.frontend import Connection, FrontEnd  # noqa: PLC0415 - see above
        from nsmagic.kernel.supervisor import Supervisor  # noqa: PLC0415 - see above

        front = FrontEnd(Connection.read(settings.connection_file))
    except SpecError as error:
        sys.stderr.write(f"nsmagic: {error}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f'nsmagic: {error}; the kernel needs: pip install "nsmagic[kernel]"\n')
        return 2
    Supervisor(settings, front, refuses=refuses).serve()
    return 0


def _start_launcher(*, wrapped: bool) -> str:
    """Start the launcher; gives why no container can be made here, or an empty string."""
    from nsmagic.plan import require_linux  # noqa: PLC0415 - likewise

    try:
        require_linux()
        from nsmagic.launcher import client  # noqa: PLC0415 - likewise

        client.expect("programs" if wrapped else "kernel")
        client.start()
    except NsmagicError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
