"""A headless Chromium, driven by the DevTools protocol over a pipe: what a phone, a desk and a printer show."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")
_SECONDS = 60
_SECONDS_TO_END = 10
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root in a container has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)


def find_chromium() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page, and what it did that was not asked for: `requests` it made, and lines of its `console`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._ids = itertools.count(1)
        self._unread = b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.console: list[str] = []
        self._loaded = False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str, width: int, *, height: int = 900, dark: bool = False) -> None:
        """Show `url` at a width in CSS pixels, in the dark or the light colour scheme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._loaded = False
        self._call("Page.navigate", url=url)
        deadline = time.monotonic() + _SECONDS
        while not self._loaded:
            self._handle(self._next(deadline))

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """Return the value of a JavaScript expression as soon as it is true."""
        deadline = time.monotonic() + _SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"{script} is still {value!r}"
            time.sleep(0.02)
        return value

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key, as a person does."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = "keyDown" if text else "rawKeyDown"
        self._call("Input.dispatchKeyEvent", type=down, **facts, **({"text": text} if text else {}))
        self._call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def screenshot(self) -> bytes:
        """Return the whole page as a PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """Return the page as it would be printed on A4."""
        answer = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._handle(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            chunk = os.read(self._from, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium went away")
            self._unread += chunk
        message, self._unread = self._unread.split(b"\0", 1)
        return dict(json.loads(message))

    def _handle(self, event: dict[str, Any]) -> None:
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.console.append(json.dumps(event["params"]))


@contextmanager
def chromium_tab(program: str, profile: Path, *flags: str) -> Iterator[Tab]:
    """Start Chromium with its files under `profile` and more `flags`, and end it with the block."""
    (from_us, to_browser), (from_browser, to_us) = os.pipe(), os.pipe()
    # The browser reads from descriptor 3 and writes to descriptor 4.
    start = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    command = ["bash", "-c", start, "bash", program, *_FLAGS, *flags, f"--user-data-dir={profile}"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, pass_fds=(from_us, to_us), stdout=quiet, stderr=quiet, start_new_session=True)
    os.close(from_us)
    os.close(to_us)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        os.close(to_browser)  # it ends when nobody can command it any more
        os.close(from_browser)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
