"""``python -m nsmagic.kernel``: what a kernel spec of ours starts."""

from __future__ import annotations

import sys

from nsmagic.errors import NsmagicError, SpecError


def main(arguments: list[str]) -> int:
    """Be a kernel; gives the exit status."""
    # The launcher imports what it needs beside us, so it is started before we import anything ourselves.
    refuses = _start_launcher(arguments)
    import logging  # noqa: PLC0415 - see above

    logging.basicConfig(format="nsmagic: %(message)s", level=logging.WARNING)
    try:
        from nsmagic.kernel import settings as reading  # noqa: PLC0415 - see above
        from nsmagic.kernel.frontend import Connection, FrontEnd  # noqa: PLC0415 - see above
        from nsmagic.kernel.supervisor import Supervisor  # noqa: PLC0415 - see above

        settings = reading.parse(arguments)
        front = FrontEnd(Connection.read(settings.connection_file))
    except SpecError as error:
        sys.stderr.write(f"nsmagic: {error}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f'nsmagic: {error}; the kernel needs: pip install "nsmagic[kernel]"\n')
        return 2
    Supervisor(settings, front, refuses=refuses).serve()
    return 0


def _start_launcher(arguments: list[str]) -> str:
    """Start the launcher; gives why no container can be made here, or an empty string."""
    from nsmagic.launcher import client  # noqa: PLC0415 - a launcher is for Linux

    ours: client.Warm = "debuggable kernel" if "widgets" in arguments else "kernel"
    client.expect("programs" if "--" in arguments else ours)
    try:
        client.start()
        from nsmagic.plan import require_linux  # noqa: PLC0415 - meanwhile

        require_linux()
    except NsmagicError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
