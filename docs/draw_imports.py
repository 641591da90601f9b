"""Which package imports which, read from the code and drawn as `docs/images/imports.svg`.

python docs/draw_imports.py
"""

import ast
import pathlib
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / "docs/images/imports.svg"

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 130, 38, 46, 44, 8  # pixels of boxes and between them
# Boxes have their own background, and arrows a grey that is seen on white and on black.
_BOX, _TEXT, _ARROW = "#e3eef0", "#1d3a40", "#7d8b90"


def imports() -> dict[str, set[str]]:
    """The packages of glomjax that each of them imports, anywhere in its modules.

    The single modules beside them, such as `errors` and `files`, are left out; `shared_modules`
    says what those import.
    """
    packages = {folder.parent.name for folder in (ROOT / "glomjax").glob("*/__init__.py")}
    return {name: _imported(ROOT / "glomjax" / name) & packages - {name} for name in packages}


def shared_modules() -> dict[str, set[str]]:
    """The same of the single modules beside the packages, which import single modules and `ops`."""
    modules = (ROOT / "glomjax").glob("[!_]*.py")
    return {file.stem: _imported(file) - {file.stem} for file in modules}


def _imported(place: pathlib.Path) -> set[str]:
    """The names below `glomjax` that the programs of a folder, or a program, import."""
    found = set()
    for file in place.rglob("*.py") if place.is_dir() else [place]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [name.split(".") for name in names]
            found |= {part[1] for part in parts if part[0] == "glomjax" and len(part) > 1}
    return found


def arrows(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """(importing, imported) of the imports that do not follow from others by way of a package."""
    reached = {name: _reached(graph, name) for name in graph}

    def follows(name: str, other: str) -> bool:
        below = {part for part in reached[name] if name not in reached[part]}
        return any(other in reached[part] and part not in reached[other] for part in below)

    return sorted((a, b) for a in graph for b in graph[a] if not follows(a, b))


def layers(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The packages in rows, each below all that import it; those that import each other, directly
    or by way of others, share a row."""
    reached = {name: _reached(graph, name) for name in graph}
    rows: list[list[str]] = []
    left = set(graph)
    while left:
        row = {
            name
            for name in left
            if all(other in reached[name] for other in left if name in reached[other])
        }
        rows.append(_ordered(row, rows[-1] if rows else [], graph))
        left -= row
    return rows


def _reached(graph: Mapping[str, set[str]], name: str) -> set[str]:
    """What a package imports, directly or by way of others."""
    found: set[str] = set()
    new = set(graph[name])
    while new:
        found |= new
        new = set().union(*(graph[other] for other in new)) - found
    return found


def _ordered(row: set[str], above: Sequence[str], graph: Mapping[str, set[str]]) -> list[str]:
    """Each near those of the row above that import it, so that few arrows cross."""

    def place(name: str) -> tuple[float, str]:
        places = [n for n, other in enumerate(above) if name in graph[other]]
        return (sum(places) / len(places) if places else 0.0, name)

    return sorted(row, key=place)


def drawn(graph: Mapping[str, set[str]]) -> str:
    """The graph as an SVG file."""
    rows = layers(graph)
    width = max(len(row) for row in rows) * (_WIDTH + _ACROSS) - _ACROSS + 2 * _MARGIN
    height = len(rows) * (_HEIGHT + _DOWN) - _DOWN + 2 * _MARGIN
    corners: dict[str, tuple[float, float]] = {}
    for n, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _ACROSS) + _ACROSS) / 2
        for k, name in enumerate(row):
            corners[name] = (left + k * (_WIDTH + _ACROSS), _MARGIN + n * (_HEIGHT + _DOWN))
    shown = arrows(graph)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-family="system-ui, sans-serif" font-size="15">',
        "<title>Which package of glomjax imports which</title>",
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{_ARROW}"/></marker>',
        f'<g stroke="{_ARROW}" stroke-width="1.5" marker-end="url(#tip)">',
    ]
    for name, other in shown:
        (x1, y1), (x2, y2) = corners[name], corners[other]
        if y1 < y2:
            ends = (x1 + _WIDTH / 2, y1 + _HEIGHT, x2 + _WIDTH / 2, y2)
        else:  # side by side
            step = _WIDTH if x1 < x2 else 0
            ends = (x1 + step, y1 + _HEIGHT / 2, x2 + _WIDTH - step, y2 + _HEIGHT / 2)
        lines.append('<path d="M{:g} {:g} {:g} {:g}"/>'.format(*ends))
    lines.append("</g>")
    for name, (x, y) in corners.items():
        lines += [
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="{_BOX}"/>',
            f'<text x="{x + _WIDTH / 2:g}" y="{y + _HEIGHT / 2 + 5:g}" text-anchor="middle" '
            f'fill="{_TEXT}">{name}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(imports()), encoding="utf-8")
