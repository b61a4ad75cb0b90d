"""A headless Chromium of the machine, driven by Playwright; none is ever downloaded.

Contents: `browser`, which starts one, and `Window`, which opens pages in it and keeps what they
said, asked for and let a reader take.
"""

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 120_000
"""Milliseconds until something that should happen counts as not happening; machines can be busy."""


class Window:
    """One page of a browser, and what happened in it.

    Attributes:
        page: Playwright's page.
        complaints: What consoles said since last cleared, information left out.
        requests: Every address that was asked for since last cleared.
    """

    page: Page

    def __init__(self, browser: Browser, downloads: Path) -> None:
        self.browser = browser
        self.downloads = downloads
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._taken: list[Any] = []
        self._context: Any = None
        self.size(1280, 900)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Go on in a fresh page of another size; a narrow one is a phone's."""
        self.close()
        self._context = self.browser.new_context(
            viewport={"width": width, "height": height},
            is_mobile=width < 600,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        self._context.set_default_timeout(PATIENCE)
        self.page = self._context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("download", lambda download: self._taken.append(download))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            self.complaints.append(message.text)

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a page from disk; the blank one before it makes a new fragment a new visit."""
        self.page.goto("about:blank")
        self.page.goto(page.as_uri() + fragment)

    def run(self, body: str, *arguments: Any) -> Any:
        """Return what the body of a function returns in the page."""
        return self.page.evaluate(f"(arguments) => {{ {body} }}", list(arguments))

    def until(self, body: str, *arguments: Any) -> Any:
        """Wait until the body of a function returns something true, and return that."""
        function = f"(arguments) => {{ {body} }}"
        return self.page.wait_for_function(function, arg=list(arguments)).json_value()

    def texts(self, selector: str) -> list[str]:
        """Return the text of every element."""
        return self.page.locator(selector).all_text_contents()

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list."""
        self.page.locator(selector).select_option(value)

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag across an element, from one share of its width to another."""
        element = self.page.locator(selector).first
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + start * box["width"], middle)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + end * box["width"], middle, steps=2)
        self.page.mouse.up()

    def printed(self) -> bytes:
        """Return the page as its print styles lay it out, as PDF."""
        return self.page.pdf(print_background=True, prefer_css_page_size=True)

    def colour(self, selector: str) -> tuple[int, int, int]:
        """Return the colour an element shows at its centre, from a picture of it."""
        shot = self.page.locator(selector).first.screenshot()
        picture = Image.open(io.BytesIO(shot)).convert("RGB")
        pixel = picture.getpixel((picture.width // 2, picture.height // 2))
        assert isinstance(pixel, tuple)
        return int(pixel[0]), int(pixel[1]), int(pixel[2])

    def downloaded(self, name: str) -> bytes:
        """Wait for a download and return it."""
        late = time.monotonic() + PATIENCE / 1000
        while not (found := [one for one in self._taken if one.suggested_filename == name]):
            assert time.monotonic() < late, f"no download of {name}"
            self.page.wait_for_timeout(20)
        found[-1].save_as(self.downloads / name)
        return (self.downloads / name).read_bytes()

    def close(self) -> None:
        """Close the page."""
        if self._context is not None:
            self._context.close()
            self._context = None


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield opened
        finally:
            opened.close()
