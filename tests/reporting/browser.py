"""A headless Chromium, driven through the WebDriver protocol with nothing but the standard library.

Source: W3C WebDriver; `goog/cdp/execute` is Chromium's own.
"""

import base64
import io
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
KEYS = {"right": "\ue014", "left": "\ue012", "tab": "\ue004", "enter": "\ue007", "home": "\ue011",
        "end": "\ue010", "escape": "\ue00c"}  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
PATIENCE = 60
"""Seconds until something that should happen counts as not happening; machines can be busy."""


class Browser:
    """One window."""

    def __init__(self, base: str, downloads: Path) -> None:
        self.base = base
        self.downloads = downloads
        options = {
            "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--disable-component-update",
                "--no-first-run", "--force-prefers-reduced-motion", "--hide-scrollbars",
            ],
            "binary": str(CHROMIUM),
            "prefs": {"download.default_directory": str(downloads)},
        }  # fmt: skip
        logs = {"browser": "ALL", "performance": "ALL"}
        capabilities = {
            "alwaysMatch": {
                "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs
            }
        }  # fmt: skip
        made = self._call("POST", "/session", {"capabilities": capabilities}, session=False)
        self.session = made["sessionId"]
        # Milliseconds; an accessibility check of a long page takes its time on a busy machine.
        self._call("POST", "/timeouts", {"script": 240_000})
        self.cdp("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def _call(self, method: str, path: str, body: Any = None, session: bool = True) -> Any:
        where = self.base + (f"/session/{self.session}" if session else "") + path
        data = None if body is None else json.dumps(body).encode()
        request = Request(where, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=300) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def cdp(self, name: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, page: Path, fragment: str = "") -> None:
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": page.as_uri() + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """Run a script that calls its last argument when it is done."""
        return self._call("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def until(self, script: str, *arguments: Any) -> Any:
        """Wait until a script returns something true, and return that."""
        late = time.monotonic() + PATIENCE
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < late, f"never true: {script}"
            time.sleep(0.05)
        return value

    def find(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return found[ELEMENT]

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", {ELEMENT: element})
        self._call("POST", f"/element/{element}/click", {})

    def type(self, selector: str, text: str) -> None:
        self._call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        steps = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        actions = [{"type": "key", "id": "keys", "actions": steps}]
        self._call("POST", "/actions", {"actions": actions})

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag across an element, from one share of its width to another."""
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", {ELEMENT: element})
        width = self.run("return arguments[0].getBoundingClientRect().width", {ELEMENT: element})

        def at(share: float) -> dict[str, Any]:
            place = round((share - 0.5) * width)
            return {"type": "pointerMove", "duration": 0, "x": place, "y": 0,
                    "origin": {ELEMENT: element}}  # fmt: skip

        steps = [at(start), {"type": "pointerDown", "button": 0}, at((start + end) / 2), at(end),
                 {"type": "pointerUp", "button": 0}]  # fmt: skip
        actions = [{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"},
                    "actions": steps}]  # fmt: skip
        self._call("POST", "/actions", {"actions": actions})

    def choose(self, selector: str, value: str) -> None:
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {bubbles: true}));",
            selector, value,
        )  # fmt: skip

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", media="", features=[scheme])

    def screenshot(self, target: Path, whole: bool = False) -> None:
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        target.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """Return the page as its print styles lay it out, as PDF."""
        page = self.cdp("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(page["data"])

    def colour(self, selector: str) -> tuple[int, int, int]:
        """Return the colour an element shows at its centre, from a picture of it."""
        shot = self._call("GET", f"/element/{self.find(selector)}/screenshot")
        picture = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
        pixel = picture.getpixel((picture.width // 2, picture.height // 2))
        assert isinstance(pixel, tuple)
        return int(pixel[0]), int(pixel[1]), int(pixel[2])

    def complaints(self) -> list[str]:
        """Return what the console said since last asked, information left out."""
        rows = self._call("POST", "/se/log", {"type": "browser"})
        return [row["message"] for row in rows if row["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """Return every address that was asked for since last asked."""
        rows = self._call("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(row["message"])["message"] for row in rows]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def downloaded(self, name: str) -> bytes:
        """Wait for a download and return it."""
        late = time.monotonic() + PATIENCE
        while not (self.downloads / name).exists():
            assert time.monotonic() < late, f"no download of {name}"
            time.sleep(0.05)
        return (self.downloads / name).read_bytes()


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a driver and a browser, and end both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    try:
        late = time.monotonic() + PATIENCE
        while True:
            try:
                urlopen(f"{base}/status", timeout=5).close()
                break
            except (URLError, OSError):
                assert time.monotonic() < late, "chromedriver does not start"
                time.sleep(0.1)
        opened = Browser(base, folder)
        try:
            yield opened
        finally:
            opened._call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
