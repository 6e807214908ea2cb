"""A headless Chromium, driven by the W3C WebDriver protocol of the chromedriver beside it.

The protocol is JSON over HTTP, so the standard library is all it takes and nothing is downloaded.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)
KEYS = {"Escape": "\ue00c", "Enter": "\ue007", "Left": "\ue012", "Up": "\ue013"} | {
    "Right": "\ue014",
    "Down": "\ue015",
}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_PATIENCE = 60  # seconds


def find() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, None where one of them is not installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)


class Browser:
    """One browser with one window.

    Args:
        browser: path of Chromium.
        driver: path of chromedriver.
        profile: an empty folder for the browser's own files.
        size: of the window, in pixels.
    """

    def __init__(
        self, browser: str, driver: str, profile: Path, size: tuple[int, int] = (1440, 900)
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._server = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._session = ""
        try:
            self._wait()
            flags = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
            options = {"binary": browser, "args": flags}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
            made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
            self._do("/url", {"url": "about:blank"})  # away from the page of the browser itself
            self.requests()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            if self._session:
                self._ask("DELETE", self._session)
        finally:
            self._process.terminate()
            self._process.wait()

    def open(self, path: Path, fragment: str = "") -> None:
        """Open a file, as a double click does."""
        self._do("/url", {"url": "about:blank"})
        self._do("/url", {"url": path.as_uri() + fragment})

    def run(self, script: str, *args: Any) -> Any:
        """Return what a function body of JavaScript returns."""
        return self._do("/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script: str) -> None:
        """Wait until a function body of JavaScript returns something true."""
        end = time.monotonic() + _PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, f"this never became true: {script}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """Return the text of the first element that a CSS selector finds, as a reader sees it."""
        return self._do(f"/element/{self._find(selector)}/text", None, "GET")

    def click(self, selector: str) -> None:
        """Click in the middle of an element, where a pointer would."""
        self._do(f"/element/{self._find(selector)}/click", {})

    def press(self, *keys: str) -> None:
        """Press keys one after the other: letters, or names in `KEYS`."""
        codes = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": code} for code in codes for kind in ("keyDown", "keyUp")]
        self._do("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def scheme(self, name: str) -> None:
        """Prefer a colour scheme: `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def devtools(self, command: str, params: dict[str, Any]) -> Any:
        """Run a command of the DevTools protocol."""
        return self._do("/goog/cdp/execute", {"cmd": command, "params": params})

    def complaints(self) -> list[str]:
        """Return what the console said since the last question, warnings and errors."""
        entries = self._do("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last question."""
        entries = self._do("/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG file."""
        path.write_bytes(base64.b64decode(self._do("/screenshot", None, "GET")))

    def _find(self, selector: str) -> str:
        return self._do("/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _do(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        return self._ask(method, self._session + path, body)

    def _wait(self) -> None:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                if self._ask("GET", "/status")["ready"]:
                    return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            found = json.load(error)["value"]
            raise AssertionError(f"{path}: {found['error']}: {found['message']}") from error
