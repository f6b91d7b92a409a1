"""Building, from the owner's side: all that a container is given, and the request to the launcher.

The owner makes the group, the channels and what else the container takes; the launcher's answer is the
report.  If anything cannot be made, nothing of it is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from nsmagic import channels, confinement, orphans, start_errors
from nsmagic.errors import HostError
from nsmagic.launcher import client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nsmagic.attachment import Attachment
    from nsmagic.cgroups import Group
    from nsmagic.plan import Plan


class Built(NamedTuple):
    """What the owner has of a container that is being built."""

    channels: channels.Channels
    launcher: client.Launcher
    group: Group
    attachment: Attachment | None


def build(
    plan: Plan,
    number: int,
    make_group: Callable[[], Group],
    attach: Callable[[], Attachment | None],
    *,
    blank: bool,
) -> Built:
    """Have the launcher build a container; returns before it is built.

    Args:
        plan: how.
        number: the container's own.
        make_group: makes the group that it lives in.
        attach: has somebody wait for it who builds its network, where it has one of those.
        blank: build only what all containers of its kind have in common.

    Raises:
        LauncherError: the launcher cannot be started, or has died.
        HostError: the kernel refused a limit.
        StartError: something that it takes cannot be made.
    """
    launcher = client.start()
    orphans.sweep_once(os.getpid())
    orphans.remove()
    try:
        plan.choice.mechanism.admit(launcher.pid)
    except HostError:
        if launcher.alive():
            raise
        raise start_errors.launchers(launcher) from None
    with contextlib.ExitStack() as undo:
        group = make_group()
        undo.callback(group.remove)
        try:
            ours, theirs = channels.make()
        except OSError as error:
            raise start_errors.owners("channels", "pipe2(), socketpair()", error) from error
        undo.callback(ours.close)
        attachment = attach()
        if attachment:
            undo.callback(attachment.close)
        private = _make_private(plan)
        undo.callback(shutil.rmtree, private, ignore_errors=True)
        with contextlib.ExitStack() as given:
            for descriptor in theirs:
                given.callback(os.close, descriptor)
            groups: list[int] = []
            given.callback(_close_all, groups)
            try:
                tasks = group.open_joins()
                groups += tasks
                directory = group.open_directory()
            except OSError as error:
                raise start_errors.owners("cgroup", f'open("{error.filename}")', error) from error
            groups += [] if directory is None else [directory]
            request = plan.request(
                number,
                tuple(group.directories),
                tasks=len(tasks),
                into_cgroup=directory is not None,
                blank=blank,
                network=attachment is not None,
            )
            doors = plan.doors.descriptors if plan.doors else []
            network = [attachment.end] if attachment else []
            if not launcher.send(request, [*theirs, *groups, *doors, *network]):
                raise start_errors.launchers(launcher)
        undo.pop_all()
    if attachment:
        attachment.close_end()
    return Built(ours, launcher, group, attachment)


def _make_private(plan: Plan) -> str:
    """The folder that confined code may write to; empty where it needs none."""
    view = plan.view
    if view is None:
        return ""
    try:
        confinement.make_private(view.private, plan.identity)
    except OSError as error:
        where = os.path.dirname(view.private)  # noqa: PTH120 - as text
        remedy = f"Set TMPDIR to a folder that you may write to; now it is {where}."
        raise start_errors.owners("private", f'mkdir("{view.private}")', error, remedy) from error
    return view.private


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
