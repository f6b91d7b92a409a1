"""Jupyter's own test suite for kernels, in full, for both of our kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from unittest import mock

import jupyter_kernel_test as conformance
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One kernel serves each class.
pytestmark = pytest.mark.xdist_group("kernel_conformance")

SECONDS = 60.0
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SHOW = "from IPython.display import display; display({data!r}, raw=True)"


class Conformance(conformance.KernelTests):
    """What the two have in common."""

    packaged: ClassVar[str]

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('asked for')"
    code_execute_result: ClassVar = [
        {"code": "1+2+3", "result": "6"},
        {"code": "'a' 'b'", "result": "'ab'"},
    ]
    code_display_data: ClassVar = [
        {"code": SHOW.format(data={"text/plain": "plain"}), "mime": "text/plain"},
        {"code": SHOW.format(data={"text/html": "<b>bold</b>"}), "mime": "text/html"},
        {"code": SHOW.format(data={"image/png": PNG}), "mime": "image/png"},
        {"code": SHOW.format(data={"text/latex": "$x^2$"}), "mime": "text/latex"},
        {"code": SHOW.format(data={"application/json": {"a": 1}}), "mime": "application/json"},
    ]
    completion_samples: ClassVar = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import sys; sys.getsiz", "matches": {"getsizeof"}},
    ]
    complete_code_samples: ClassVar = ["1", "print('hello')", "def f(x):\n  return x * 2\n\n\n", "%isolation"]
    incomplete_code_samples: ClassVar = ["print('''hello", "def f(x):\n  x * 2"]
    invalid_code_samples: ClassVar = ["import = 7q"]
    code_inspect_sample = "zip"
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "range", "search")
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    def execute_helper(self, *args: Any, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """As the suite does it, but a machine that is busy may take its time between two messages."""
        channel = self.kc.iopub_channel
        get = conformance.ensure_sync(channel.get_msg)
        with mock.patch.object(channel, "get_msg", side_effect=lambda timeout: get(timeout=SECONDS)):
            found: tuple[dict[str, Any], list[dict[str, Any]]] = super().execute_helper(*args, **options)
        return found

    def history_helper(self, *args: Any, **options: Any) -> dict[str, Any]:
        """As the suite does it; but every ipykernel tells a range of its own session as one of session 0."""
        reply: dict[str, Any] = super().history_helper(*args, **options)
        if options["hist_access_type"] == "range":
            found = reply["content"]["history"]
            assert {session for session, *_ in found} == {0}
            reply["content"]["history"] = [[options["session"], *entry[1:]] for entry in found]
        return reply

    def test_interrupt(self) -> None:
        """The suite has none."""
        self.flush_channels()
        name = self.kc.execute("print('begun', flush=True)\nwhile True: pass")
        get = conformance.ensure_sync(self.kc.iopub_channel.get_msg)
        while get(timeout=SECONDS)["msg_type"] != "stream":
            pass
        self.km.interrupt_kernel()
        reply = self.get_non_kernel_info_reply(timeout=SECONDS)
        conformance.validate_message(reply, "execute_reply", name)
        assert reply["content"]["ename"] == "KeyboardInterrupt"

    def test_stdin(self) -> None:
        """The suite has none."""
        self.flush_channels()
        name = self.kc.execute("print(input('? '))", allow_stdin=True)
        asked = self.kc.get_stdin_msg(timeout=SECONDS)
        assert asked["parent_header"]["msg_id"] == name
        assert asked["content"] == {"prompt": "? ", "password": False}
        self.kc.input("typed")
        reply = self.get_non_kernel_info_reply(timeout=SECONDS)
        conformance.validate_message(reply, "execute_reply", name)
        get = conformance.ensure_sync(self.kc.iopub_channel.get_msg)
        while (message := get(timeout=SECONDS))["msg_type"] != "stream":
            pass
        conformance.validate_message(message, "stream", name)
        assert message["content"]["text"] == "typed\n"


class TestSafe(Conformance):
    packaged = "isolated-python"


class TestWidgets(Conformance):
    packaged = "isolated-python-widgets"


class TestWelcomeSafe(conformance.IopubWelcomeTests):
    packaged = "isolated-python"
    support_iopub_welcome = True


class TestWelcomeWidgets(conformance.IopubWelcomeTests):
    packaged = "isolated-python-widgets"
    support_iopub_welcome = True


@pytest.fixture(autouse=True, scope="module")
def _kernels(spec_name: Callable[..., str]) -> Iterator[None]:
    """Give the classes their kernels' names; the suite starts and ends them, but lets nothing go."""
    classes = (TestSafe, TestWidgets, TestWelcomeSafe, TestWelcomeWidgets)
    for each in classes:
        each.kernel_name = spec_name(each.packaged)
    yield
    for each in classes:
        manager = getattr(each, "km", None)
        if manager is not None:
            manager.cleanup_resources()
            manager.context.destroy()


# It is no test of this module's own.
del Conformance
