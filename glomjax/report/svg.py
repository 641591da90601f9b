"""Figures of matplotlib as SVG elements within a page."""

import contextlib
import hashlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np

from glomjax.errors import excerpt
from glomjax.evaluation.report import estimate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.25  # inches of 72 px: letters of 9 pt are 10 px tall in a page of 340 px
LINE = 62  # characters of a heading on a line
NAME = 24  # characters of a name that are shown in a figure

_SETTINGS: dict[Any, Any] = {
    "axes.formatter.use_mathtext": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so texts are measured alike everywhere
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "glomjax",
    "text.parse_math": False,  # a name may hold dollars
}
_NAMESPACE = re.compile(r"\{[^}]*\}")
# Attributes that hold coordinates, of which two decimals are a hundredth of a pixel.
_COORDINATES = ("clip-path", "d", "height", "points", "transform", "width", "x", "y")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The settings under which a figure is made and written; those of the user come back."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # A browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """An empty one of so many inches. It is none of pyplot's, which would set the backend of the
    user's session.

    Args:
      layout: None where whoever calls this places the axes, below the heading of `finished`.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout=layout)


def unit_axes(axes: "Axes", xlabel: str, ylabel: str) -> None:
    """Both from 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def headline(named: Sequence[tuple[str, Mapping[str, Any] | None]]) -> str:
    """Metrics with their intervals, and what is to be known of these, such as "AUROC 0.749 (0.502
    to 0.892), 95% interval; indicative: 6 patients".

    Args:
      named: what each metric is called, and what `estimates` has of it; None is left out.
    """
    given = [(name, metric) for name, metric in named if metric is not None]
    text = ", ".join(f"{name} {estimate_text(metric)}" for name, metric in given)
    bounded = [metric for _, metric in given if metric.get("low") is not None]
    if bounded:
        text += f", 95% interval{'s' if len(bounded) > 1 else ''}"
    notes = {metric.get("note", "") for metric in bounded} - {""}
    return "; ".join([text[:1].upper() + text[1:], *sorted(notes)])


def left_out(finite: np.ndarray) -> str:
    """Says how many patches have no finite score, given which have one; "" where all have."""
    missing = int((~finite).sum())
    return (
        f"{missing} of {len(finite)} patches have no finite score and are not shown."
        if missing
        else ""
    )


def finished(
    figure: "Figure", title: str, heading: str, told: Sequence[str], missing: str = ""
) -> str:
    """The figure below a heading, as `inline_svg` gives it.

    Args:
      title: as there.
      heading: the numbers that a reader looks for.
      told: sentences, which together are the description.
      missing: what is not shown, as `left_out` says it; it is part of the heading.
    """
    text = "\n".join([*textwrap.wrap(heading, LINE), *textwrap.wrap(missing, LINE)])
    if text:
        # Where no layout makes room above the axes, whoever placed these has.
        y = None if figure.get_layout_engine() else 1 - 0.06 / figure.get_figheight()
        figure.suptitle(text, x=0.02, y=y, ha="left", fontsize=8.5)
    return inline_svg(figure, title, " ".join(filter(None, [*told, missing])))


def inline_svg(figure: "Figure", title: str, alt: str) -> str:
    """A figure as one `<svg>` element: its width is that of the page, its texts are texts, its ids
    occur in no other figure, and equal figures are equal texts.

    Args:
      figure: made within `drawing`, as this is called.
      title: what it shows, in a few words.
      alt: the same in sentences, with the numbers, for who does not see it.
    """
    title, alt = clean(title, 500), clean(alt, 5000)
    file = io.StringIO()
    figure.savefig(
        file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    root = ElementTree.fromstring(file.getvalue())
    prefix = "f" + hashlib.sha256(f"{title}\0{alt}\0{file.getvalue()}".encode()).hexdigest()[:12]

    for parent in list(root.iter()):
        for child in list(parent):
            if _plain(child.tag) in ("metadata", "style"):  # a style would be that of the page
                parent.remove(child)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": box,
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-desc",
        "font-family": "sans-serif",
        "stroke-linejoin": "round",
    }
    for name, text in (("desc", alt), ("title", title)):
        element = ElementTree.Element(name, {"id": f"{prefix}-{name}"})
        element.text = text
        root.insert(0, element)
    _simplify(root)
    _rename_ids(root, prefix)
    return ElementTree.tostring(root, encoding="unicode")


def clean(text: object, most: int = NAME) -> str:
    """A text of the data on one line, cut in the middle where it is long, without the characters
    that XML has no way to write."""
    return re.sub("[\ufffe\uffff]", "\ufffd", excerpt(text, most))


def _plain(tag: str) -> str:
    return _NAMESPACE.sub("", tag)


def _simplify(root: ElementTree.Element) -> None:
    """Names without their namespaces, coordinates without needless digits, the page's own font."""
    for element in root.iter():
        element.tag = _plain(element.tag)
        element.tail = None
        if element.tag not in ("text", "title", "desc", "tspan"):
            element.text = None
        attributes = {_plain(name): value for name, value in element.attrib.items()}
        for name in _COORDINATES:
            if name in attributes:
                attributes[name] = re.sub(
                    r"-?\d+\.\d+", _rounded, " ".join(attributes[name].split())
                )
        if element.tag == "text" and "style" in attributes:
            style = re.sub(r"font: ((?:\w+ )*?)([\d.]+px) [^;]*", _font, attributes["style"])
            attributes["style"] = re.sub(r"font-family:[^;]*;? ?", "", style)
        element.attrib.clear()
        element.attrib |= attributes


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _font(shorthand: re.Match[str]) -> str:
    weight = f"; font-weight: {shorthand[1].strip()}" if shorthand[1] else ""
    return f"font-size: {shorthand[2]}{weight}"


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Ids that something refers to become the prefix with a number, others go."""
    used: dict[str, str] = {}
    reference = re.compile(r"(?<=url\(#)[^)]+(?=\))|(?<=^#).+$")
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "href" or "url(#" in value:
                element.set(
                    name,
                    reference.sub(lambda m: used.setdefault(m[0], f"{prefix}-{len(used)}"), value),
                )
    for element in root.iter():
        identity = element.get("id", "")
        if identity in used:
            element.set("id", used[identity])
        elif identity and not identity.startswith(prefix):
            del element.attrib["id"]
