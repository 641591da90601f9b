"""Pages opened in a real browser: what it complains about, asks for, and cannot show.

The browser is a headless Chromium. Tests that need it skip where there is none, unless the
environment variable GLOMJAX_BROWSER is `required`, as `.ci/run` sets it: then they fail.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclasses.dataclass(frozen=True)
class OpenPage:
    """A page in the browser.

    Attributes:
      page: of playwright, for keys, clicks and what else a reader does.
      errors: what the browser wrote to its console as errors, what scripts raised, and dialogs.
      requests: the addresses asked for besides the file itself, or what lies below the address
        that was opened, and what a page holds inline.
    """

    page: Page
    errors: list[str]
    requests: list[str]

    def images_not_loaded(self) -> list[str]:
        """The beginnings of the sources of images without pixels."""
        return self.page.evaluate(
            """async () => {
              const images = [...document.images];
              // Images that are not in view yet are loaded, too.
              for (const image of images) image.loading = "eager";
              await Promise.all(images.map(image => image.decode().catch(() => {})));
              return images.filter(image => image.naturalWidth === 0)
                .map(image => (image.getAttribute("src") || "").slice(0, 80));
            }"""
        )

    def scrolls_sideways(self, width: int) -> bool:
        """Whether a window of so many pixels is too narrow for the page."""
        size = self.page.viewport_size
        assert size is not None
        self.page.set_viewport_size({"width": width, "height": size["height"]})
        wide = self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        self.page.set_viewport_size(size)
        return wide

    def screenshot(self, file: pathlib.Path) -> None:
        """Writes the whole page as a PNG file."""
        self.page.screenshot(path=file, full_page=True)

    def print_to(self, file: pathlib.Path) -> None:
        """Prints the page to a PDF file."""
        self.page.pdf(path=file, print_background=True)


@contextlib.contextmanager
def open_page(
    file: pathlib.Path | str, *, width: int = 1200, height: int = 900
) -> Iterator[OpenPage]:
    """Opens a file, or an address, in a browser of its own, which knows nothing of pages opened
    before.

    No network is trained meanwhile: playwright keeps an event loop in this thread, in which others
    cannot run theirs.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            opened = OpenPage(page, [], [])
            page.on("console", lambda m: opened.errors.append(m.text) if m.type == "error" else 0)
            page.on("pageerror", lambda error: opened.errors.append(str(error)))
            page.on(
                "dialog", lambda dialog: (opened.errors.append(dialog.message), dialog.accept())
            )
            address = file if isinstance(file, str) else file.absolute().as_uri()
            page.on(
                "request",
                lambda request: (
                    request.url.startswith((address, "data:", "blob:"))
                    or opened.requests.append(request.url)
                ),
            )
            page.goto(address)
            yield opened
        finally:
            browser.close()


def _chromium() -> str:
    found = next(filter(None, map(shutil.which, _NAMES)), "")
    if found:
        return found
    why = f"pages are opened in Chromium, and there is none here ({', '.join(_NAMES)})"
    if os.environ.get("GLOMJAX_BROWSER") == "required":
        pytest.fail(why)
    pytest.skip(why)
