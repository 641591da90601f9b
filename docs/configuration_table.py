"""A hook of mkdocs: the tables of every field of the configuration, from `RunConfig` itself."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from glomjax.training.config import Range, RunConfig

PLACE = "<!-- every field of the configuration -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with the tables in their place."""
    return markdown.replace(PLACE, "\n".join(_tables(RunConfig))) if PLACE in markdown else markdown


def _tables(kind: Any, about: str = "fields without a section", section: str = "") -> Iterator[str]:
    """A table of a section's own fields, then those of the sections in it."""
    fields = dataclasses.fields(kind)
    parts = [field for field in fields if dataclasses.is_dataclass(field.default_factory)]
    yield f"## {section.rstrip('.') or 'The run'}\n\n{_sentence(about)}\n"
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


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
