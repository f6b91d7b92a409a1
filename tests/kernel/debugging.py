"""A debugger's side of a kernel, for the tests that debug."""

from __future__ import annotations

from typing import Any


class Debugger:
    """Talks the debug adapter's protocol through a kernel's control channel."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.number = kernel, 0

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.number += 1
        asked = {"type": "request", "seq": self.number, "command": command, "arguments": arguments}
        answer: dict[str, Any] = self.kernel.ask("control", "debug_request", asked)
        return answer

    def event(self, name: str) -> dict[str, Any]:
        while True:
            content: dict[str, Any] = self.kernel.next_published("debug_event")["content"]
            if content["event"] == name:
                return content

    def attach(self) -> None:
        started = self.ask(
            "initialize", clientID="test", adapterID="", linesStartAt1=True, columnsStartAt1=True,
            pathFormat="path",
        )  # fmt: skip
        assert started["success"], started
        attached = self.ask("attach")
        assert attached["success"], attached

    def stops(self, code: str, line: int) -> None:
        """Run code, which stops at a line, and goes on."""
        source = self.ask("dumpCell", code=code)["body"]["sourcePath"]
        self.ask(
            "setBreakpoints", source={"path": source}, breakpoints=[{"line": line}], sourceModified=False
        )
        assert self.ask("configurationDone")["success"]
        name = self.kernel.send(code)
        thread = self.event("stopped")["body"]["threadId"]
        frames = self.ask("stackTrace", threadId=thread)["body"]["stackFrames"]
        assert frames[0]["line"] == line
        assert self.ask("continue", threadId=thread)["success"]
        assert self.kernel.wait(name).reply["status"] == "ok"
