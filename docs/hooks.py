"""What mkdocs does besides turning Markdown into pages: it shows the tutorial's notebook."""

import base64
import html
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

NOTEBOOK = "tutorial.ipynb"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebook as a page, with its figures as files beside it."""
    stored = files.get_file_from_path(NOTEBOOK)
    assert stored is not None
    page, figures = notebook_page(nbformat.reads(stored.content_string, as_version=4))
    files.append(File.generated(config, "tutorial.md", content=page))
    for name, content in figures.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to the notebook lead to its page, but for the page's own, which gives the file."""
    if page.file.src_uri == "tutorial.md":
        return markdown
    return markdown.replace(f"]({NOTEBOOK})", "](tutorial.md)")


def notebook_page(notebook: Any) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook, and the JPEG files that it shows, by their paths.

    The text for those who do not see a figure is the metadata `alt` of the cell that draws it.
    """
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(_fenced(cell.source, "python"))
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/jpeg" in data:
                name = f"images/tutorial_{len(figures) + 1}.jpg"
                figures[name] = base64.b64decode(data["image/jpeg"])
                # Attributes of HTML, since a description may hold what Markdown reads otherwise.
                parts.append(f"![{html.escape(cell.metadata.alt)}]({name})")
            else:
                parts.append(_fenced(output.get("text", data.get("text/plain", "")), "text"))
    return "\n\n".join(parts) + "\n", figures


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
