"""A headless Chromium driven over its debugging pipe: no port, no package beside the browser itself."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WAIT_S = 60.0


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own. What the page complained of is in `complaints`, its requests in `requests`."""

    def __init__(self, binary: str, width: int = 1280, height: int = 900) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._ids = itertools.count(1)
        self._buffer = b""
        self._home = tempfile.mkdtemp(prefix="sapo_vl-browser-")
        there, self._to = os.pipe()  # its descriptor 3 reads what we write
        self._from, back = os.pipe()  # and 4 is what we read
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
                 f"--user-data-dir={self._home}", "about:blank"]  # fmt: skip
        script = f'exec 3<&{there} 4>&{back}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "browser", binary, *flags], pass_fds=(there, back),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attach = {"targetId": target["targetId"], "flatten": True}
        self._session = self._call("Target.attachToTarget", attach)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._to)
        os.close(self._from)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._call(method, parameters, self._session)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def open(self, address: str, ready: str = "document.documentElement?.dataset.ready") -> None:
        self.call("Page.navigate", {"url": address})
        self.wait(ready)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for. Raises AssertionError where it throws."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """The first true value of `condition`."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if value := self.run(condition):
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {WAIT_S:.0f} s: {condition}; complaints: {self.complaints}")

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element on the screen, after it was scrolled to. What a page draws once it knows its size
        (ResizeObserver) moves what is below it, so frames are let pass until one leaves the element where it was."""
        found = f"document.querySelector({json.dumps(selector)})"
        box = self.run(
            "(async () => { let at = []; for (;;) {"
            f" const e = {found}; e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            " const now = [b.left + b.width / 2, b.top + b.height / 2];"
            " if (now.every((v, i) => v === at[i])) return now;"
            " at = now;"
            " for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame); } })()"
        )
        return box[0], box[1]

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of an element."""
        x, y = self.place(selector)
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            button = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", button)

    def screenshot(self, path: Path, full: bool = False) -> None:
        shot: dict[str, Any] = {"format": "png", "captureBeyondViewport": full}
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            shot["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", shot)["data"]))

    def _call(self, method: str, parameters: dict[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        message = {"id": next(self._ids), "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == message["id"]:
                assert "error" not in told, f"{method}: {told['error']}"
                return told["result"]
            self._note(told)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], WAIT_S)
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, "the browser says nothing"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description") or details["text"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(told["args"])[:2000])
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
