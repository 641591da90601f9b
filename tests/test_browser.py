"""Tests of pages see what is wrong with a page."""

import pytest
from browser import open_page


def test_what_is_wrong_with_a_page_is_seen(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(
        """<!doctype html><html lang="en"><meta charset="utf-8"><title>page</title>
        <style>@import url("other.css");</style>
        <img alt="none" src="data:image/png;base64,AAAA">
        <img alt="red" src="data:image/svg+xml,
          %3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/%3E">
        <div style="width: 500px">wide</div>
        <script>console.error("a complaint"); alert("a dialog"); throw Error("a fault");</script>
        </html>"""
    )
    with open_page(file) as page:
        for error in ("a complaint", "a dialog", "a fault"):
            assert any(error in text for text in page.errors), error
        assert page.requests == [(tmp_path / "other.css").as_uri()]
        assert page.images_not_loaded() == ["data:image/png;base64,AAAA"]
        assert page.scrolls_sideways(400)
        assert not page.scrolls_sideways(600)
        page.screenshot(tmp_path / "page.png")
        page.print_to(tmp_path / "page.pdf")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("required", "outcome"), [("", pytest.skip.Exception), ("required", pytest.fail.Exception)]
)
def test_a_test_without_a_browser_skips_and_fails_where_one_is_required(
    required, outcome, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GLOMJAX_BROWSER", required)
    with pytest.raises(outcome, match="there is none here"), open_page(tmp_path / "page.html"):
        pass
