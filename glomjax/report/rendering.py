"""From facts to pages: templates whose texts are escaped, and images that a page holds itself."""

import base64
import io
import pathlib
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from glomjax import __version__
from glomjax.report.tables import plain_markdown

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_SIDE, _QUALITY = 280, 85  # of JPEG files: pixels of the longer side


def rendered(template: str, **facts: Any) -> str:
    """A template with its facts; every text in a page is escaped, but for `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = plain_markdown
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, version=__version__, **facts)


def jpeg(image: Image.Image) -> bytes:
    """An image small enough for a page, as a JPEG file."""
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=_QUALITY)
    return content.getvalue()


def jpeg_uri(content: bytes) -> str:
    """A JPEG file as the address of an image that needs no file; ValueError for an empty one."""
    if not content:
        raise ValueError("an image is empty")
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
