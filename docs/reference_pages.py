"""A hook of mkdocs: what the pages of the API reference hold, from the code itself."""

import ast
import dataclasses
import importlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from glomjax.training.config import Range, RunConfig

FIELDS = "<!-- every field of the configuration -->"
NAMES = re.compile(r"<!-- every name of ([\w.]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with what its comments stand for."""
    markdown = NAMES.sub(lambda found: "\n".join(_reference(found[1])), markdown)
    return (
        markdown.replace(FIELDS, "\n".join(_tables(RunConfig))) if FIELDS in markdown else markdown
    )


def _reference(package: str) -> Iterator[str]:
    """The docstring of a package, then its public names in the order of its stub or its imports.

    Each name is looked up where it is defined: a function may be called like its module.
    """
    public = importlib.import_module(package).__all__
    places, modules = _places(package)
    yield f"::: {package}\n    options:\n      members: false\n"
    for name in sorted(public, key=[*places, *public].index):
        if name not in modules:
            yield f"::: {places.get(name, f'{package}.{name}')}\n    options:"
            yield f"      heading: {name}\n      show_root_heading: true"
            yield "      show_root_toc_entry: true\n"
    if modules:
        yield "## Modules\n"
    for name in modules:
        module = importlib.import_module(f"{package}.{name}")
        yield f"- `{package}.{name}`: {(module.__doc__ or '').splitlines()[0]}"


def _places(package: str) -> tuple[dict[str, str], list[str]]:
    """{name: the path where it is defined} of what a package imports, and its modules by name."""
    file = pathlib.Path(importlib.import_module(package).__file__ or "")
    stub = file.with_suffix(".pyi")
    program = (stub if stub.exists() else file).read_text(encoding="utf-8")
    places: dict[str, str] = {}
    modules: list[str] = []
    for node in ast.parse(program).body:
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if node.level and node.module is None:
                modules += names
            else:
                start = f"{package}.{node.module}" if node.level else node.module
                places |= {name: f"{start}.{name}" for name in names}
    return places, modules


def _tables(kind: Any, about: str = "fields without a section", section: str = "") -> Iterator[str]:
    """A table of a section's own fields, then those of the sections in it."""
    fields = dataclasses.fields(kind)
    parts = [field for field in fields if dataclasses.is_dataclass(field.default_factory)]
    yield f"## {section.rstrip('.') or 'The run'}\n\n{about[0].upper()}{about[1:]}.\n"
    yield "| field | default | what it is |\n|---|---|---|"
    for field in fields:
        if field not in parts:
            yield f"| `{section}{field.name}` | {_code(_default(field))} | {_what(field)} |"
    yield ""
    for part in parts:
        yield from _tables(part.default_factory, part.metadata["help"], f"{section}{part.name}.")


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _what(field: dataclasses.Field[Any]) -> str:
    """The line of `--help`, and the values that the field may have."""
    about = field.metadata
    what = about["help"].replace("|", "\\|").replace("*", "\\*")
    if about["choices"]:
        what += f"; one of {', '.join(map(_code, about['choices']))}"
    elif about["within"] != Range():
        what += f"; {about['within']}"
    return what


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f"`{text}`".replace("|", "\\|") if text else "`''`"
