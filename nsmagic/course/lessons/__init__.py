"""The table of lessons.  Each has a module here with its exercises and its picture."""

from __future__ import annotations

from typing import Final, NamedTuple

from nsmagic.errors import SpecError


class Lesson(NamedTuple):
    """One lesson.

    Attributes:
        number: two digits.
        module: the module in this folder.
        title: what it is about.
        needs: what the host must have, in the doctor's words; without one of them hardly a cell makes sense.
        partly: what some cells need, which the notebook leaves out where the host lacks it.
    """

    number: str
    module: str
    title: str
    needs: tuple[str, ...] = ("all namespaces",)
    partly: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its notebook, without the ending: ``02-host-names``."""
        return f"{self.number}-{self.module.replace('_', '-')}"


LESSONS: Final = (
    Lesson("00", "what_works_here", "What works here", needs=(), partly=("all namespaces",)),
    Lesson("01", "one_kernel", "A container is a process on one shared kernel"),
    Lesson("02", "host_names", "Host names, and the three calls"),
    Lesson("03", "users", "Root inside, nobody outside"),
    Lesson("04", "processes", "Processes: PID 1, and who buries the dead"),
    Lesson("05", "ipc_and_time", "Shared memory and clocks"),
    Lesson("06", "chroot", "chroot, and the way out of it"),
    Lesson("07", "mounts", "Mounts and pivot_root"),
    Lesson("08", "copy_on_write", "Copy-on-write", needs=("all namespaces", "copy-on-write")),
    Lesson("09", "networks", "Networks", partly=("lab networks",)),
    Lesson("10", "cgroups", "Control groups", partly=("--mem", "--cpus", "--pids")),
    Lesson("11", "capabilities", "Capabilities and seccomp"),
    Lesson("12", "not_isolated", "What is not isolated"),
    Lesson(
        "13", "build_your_own", "Build your own container",
        needs=("all namespaces", "copy-on-write", "fresh /proc", "clone3, pivot_root"),
    ),
)  # fmt: skip


def find(number: str) -> Lesson:
    """The lesson of this number.

    Raises:
        SpecError: there is none.
    """
    for lesson in LESSONS:
        if lesson.number == number.zfill(2):
            return lesson
    raise SpecError("%lesson", f"there is no lesson {number[:20]!r}; there are 00 to {LESSONS[-1].number}")
