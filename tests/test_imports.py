"""Which package imports which: the rules, the picture and the table in the docs."""

import re

import pytest

from docs.draw_imports import PICTURE, ROOT, arrows, drawn, imports, layers, shared_modules

GRAPH = imports()


def test_the_lowest_packages_import_no_other_or_the_one_below_them():
    lowest = ("ops", "preprocessing", "evaluation", "models", "data")
    below = {"models": {"ops"}, "data": {"preprocessing"}}
    assert {name: GRAPH[name] for name in lowest} == {n: below.get(n, set()) for n in lowest}


def test_only_the_command_line_imports_training_and_nothing_imports_the_command_line():
    assert [name for name in GRAPH if "training" in GRAPH[name]] == ["cli"]
    assert not [name for name in GRAPH if "cli" in GRAPH[name]]


def test_only_prediction_and_its_report_import_each_other():
    assert [row for row in layers(GRAPH) if any(a in GRAPH[b] for a in row for b in row)] == [
        ["inference", "report"]
    ]


def test_single_modules_import_single_modules_and_ops():
    modules = shared_modules()
    assert all(found <= {*modules, "ops"} for found in modules.values())


def test_the_picture_is_what_the_code_imports():
    why = "run `python docs/draw_imports.py`"
    assert PICTURE.read_text(encoding="utf-8") == drawn(GRAPH), why


def test_the_table_in_the_docs_lists_the_imports_of_each_package():
    page = (ROOT / "docs/how_it_is_built.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*)\|$", page, re.M)
    listed = {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}
    assert dict(rows)["cli"] == "any of them "
    assert listed | {"cli": GRAPH["cli"]} == GRAPH


@pytest.mark.parametrize(
    ("graph", "rows", "shown"),
    [
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, [["a"], ["b"], ["c"]], ["ab", "bc"]),
        # b and c import each other: they share a row, and d follows from either of them.
        (
            {"a": {"b", "d"}, "b": {"c", "d"}, "c": {"b"}, "d": set()},
            [["a"], ["b", "c"], ["d"]],
            ["ab", "bc", "bd", "cb"],
        ),
    ],
)
def test_rows_and_arrows_follow_from_the_imports(graph, rows, shown):
    assert layers(graph) == rows
    assert ["".join(pair) for pair in arrows(graph)] == shown
