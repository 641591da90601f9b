"""The site: it builds without a warning, loads nothing from elsewhere, and works in a browser."""

import dataclasses
import functools
import html.parser
import http.server
import importlib
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from browser import open_page

from glomjax.training.config import RunConfig

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("glomjax", "glomjax.data", "glomjax.preprocessing", "glomjax.models")
PACKAGES += ("glomjax.training", "glomjax.inference", "glomjax.evaluation", "glomjax.report")
PACKAGES += ("glomjax.pretrained", "glomjax.ops")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The folder of the site, built as a reader of the sources builds it.

    A page that the navigation names and does not find, or the other way round, a link to no page
    or heading, and a name that is not in the code are warnings, which here end the build.
    """
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": path}
    built = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


class _Loads(html.parser.HTMLParser):
    """The addresses that a page loads by itself, without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "srcset", "poster", "data", *(["href"] if tag == "link" else []))
        self.found += [value for name, value in attrs if name in names and value]


def test_no_page_and_no_style_loads_anything_from_elsewhere(site):
    loads = _Loads()
    for page in site.rglob("*.html"):
        loads.feed(page.read_text(encoding="utf-8"))
    styles = [file.read_text(encoding="utf-8") for file in site.rglob("*.css")]
    loads.found += [found for style in styles for found in re.findall(r"url\(['\"]?([^)]*)", style)]
    assert len(loads.found) > 100
    assert not [found for found in loads.found if re.match(r"(https?:)?//", found)]
    assert not [style for style in styles if "@import" in style]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name_of_a_package(site, package):
    folder = site / "reference" / package.split(".")[-1]
    page = (folder / "index.html").read_text(encoding="utf-8")
    public = importlib.import_module(package).__all__
    # A module is named with what it is about, all else has a heading.
    headings = r'id="glomjax\.(?:\w+\.)*%s"|<code>glomjax\.(?:\w+\.)*%s</code>'
    missing = [name for name in public if not re.search(headings % (name, name), page)]
    assert public
    assert set(missing) <= {"__version__"}
    # Of "a, b: what they are" among attributes the first comma would become a part of the name.
    assert not re.findall(r"<code>\w+,</code>", page)


def test_the_reference_has_every_field_of_the_configuration(site):
    def fields(kind, section: str = "") -> Iterator[str]:
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default_factory):
                yield from fields(field.default_factory, f"{section}{field.name}.")
            else:
                yield section + field.name

    page = (site / "reference/configuration/index.html").read_text(encoding="utf-8")
    assert not [name for name in fields(RunConfig) if f"<td><code>{name}</code></td>" not in page]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests are no output of a test."""


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where a server of this machine has the site, since search needs one."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_pages_show_without_errors_and_fit_a_telephone(address):
    with open_page(address) as opened:
        for page in ("", "tutorial/", "own_data/", "how_it_is_built/", "reference/inference/"):
            opened.page.goto(address + page)
            assert opened.page.locator("article h1").count() == 1
            assert opened.images_not_loaded() == []
            assert not opened.scrolls_sideways(400), page
        assert opened.errors == []
        assert opened.requests == []


def test_search_finds_a_function_of_the_reference(address):
    with open_page(address) as opened:
        page = opened.page
        page.get_by_role("textbox", name="Search").fill("load_classifier")
        page.locator(".md-search-result__item a[href*='reference/glomjax']").first.wait_for()
        assert opened.errors == []
        assert opened.requests == []
