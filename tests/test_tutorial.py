"""The notebook of the tutorial runs as it stands, what it says of its numbers is true, and the site
shows it.

    GLOMJAX_WRITE_DOCS=1 pytest -n 0 tests/test_tutorial.py

stores the notebook as it has been executed here.
"""

import json
import os
import pathlib
import re

import nbformat
import pytest
from browser import open_page
from nbclient import NotebookClient
from PIL import Image

from docs import draw_pictures, hooks
from glomjax.files import cache_dir

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that the cells printed."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures_of(cell: nbformat.NotebookNode) -> list[str]:
    return [o.data["image/jpeg"] for o in cell.outputs if "image/jpeg" in o.get("data", {})]


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(stored, tmp_path_factory) -> tuple[nbformat.NotebookNode, pathlib.Path]:
    """(the notebook, executed anew; the folder that it filled)."""
    notebook = nbformat.from_dict(stored)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache_dir("jit-tests")))
        client = NotebookClient(
            notebook,
            timeout=600,
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    if os.environ.get("GLOMJAX_WRITE_DOCS"):
        notebook.metadata.pop("language_info", None)  # which names the version of Python
        nbformat.write(notebook, NOTEBOOK)
    return notebook, folder / "runs" / "tutorial"


def read(file: pathlib.Path) -> dict:
    return json.loads(file.read_text())


def test_every_figure_is_drawn_anew(stored, executed):
    for before, after in zip(code_cells(stored), code_cells(executed[0]), strict=True):
        assert len(figures_of(after)) == len(figures_of(before)), before.source
        assert all(output.output_type != "error" for output in after.outputs)


def test_the_first_network_has_learnt(executed):
    notebook, runs = executed
    history = [json.loads(line) for line in (runs / "alexnet_mini/metrics.jsonl").open()]
    assert history[-1]["loss"] < 0.5 < history[0]["loss"] < 0.7
    metrics = read(runs / "alexnet_mini" / "test_metrics.json")
    assert metrics["auroc"] > 0.9
    for control in metrics["controls"].values():
        assert control["difference"]["low"] > 0
    inside, count = re.search(r"in the tuft in (\d+) of (\d+) patches", text_of(notebook)).groups()
    # 19 of 20 where the stored notebook was made, 11 with a newer jax: training rounds otherwise.
    assert int(inside) > 0.4 * int(count)
    assert (runs / "alexnet_mini" / "report" / "report.html").exists()


def test_the_data_check_finds_the_copy_and_accepts_the_data_without_it(executed):
    text = text_of(executed[0])
    assert re.search("error: .*again.png", text)
    assert "without the copy: Training accepts this source" in text


def test_the_first_network_fails_elsewhere_by_its_threshold_and_not_by_its_order(executed):
    metrics = read(executed[1] / "alexnet_mini_on_b" / "test_metrics.json")
    predicted = [sum(column) for column in zip(*metrics["confusion_matrix"], strict=True)]
    assert max(predicted) > 0.9 * metrics["n"]
    assert metrics["auroc"] > metrics["accuracy"] + 0.1
    assert metrics["unlike_training"] > 0.9 * metrics["n"]


def test_fine_tuning_raises_the_accuracy_beyond_its_interval(executed):
    compared = read(executed[1] / "comparison" / "comparison.json")
    accuracy = compared["comparisons"][0]["differences"]["accuracy"]
    assert accuracy["low"] > 0
    assert accuracy["value"] > 0.7


def test_the_stored_notebook_is_executed_and_says_nothing_of_a_machine(stored):
    assert NOTEBOOK.stat().st_size < 600_000
    assert set(stored.metadata) == {"kernelspec"}
    assert [cell.execution_count for cell in code_cells(stored)] == list(
        range(1, len(code_cells(stored)) + 1)
    )
    text = NOTEBOOK.read_text()
    assert not re.search(r"/(tmp|home|root|work|Users)/|\d+ images/s|ipykernel_", text)


def test_the_site_shows_the_notebook_with_its_figures(stored):
    page, figures = hooks.notebook_page(stored)
    assert page.startswith("# Tutorial")
    shown = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", page)
    assert [name for _, name in shown] == list(figures)
    assert len(figures) == sum(len(figures_of(cell)) for cell in code_cells(stored)) > 5
    assert all(len(alt) > 30 for alt, _ in shown)
    assert all(image.startswith(b"\xff\xd8") for image in figures.values())
    for cell in stored.cells:
        assert cell.source in page
    assert "(tutorial.ipynb)" in page  # the notebook itself, to download


def test_the_picture_of_the_readme_is_drawn_from_a_run(executed, tmp_path, monkeypatch):
    run = executed[1] / "alexnet_mini"
    with open_page(run / "report" / "report.html"):
        pass  # skips where there is no browser
    monkeypatch.setattr(draw_pictures, "PICTURE", tmp_path / "report.png")
    monkeypatch.setattr("sys.argv", ["draw_pictures.py", str(run)])
    draw_pictures.main()
    for file in (draw_pictures.PICTURE, ROOT / "docs" / "images" / "report.png"):
        with Image.open(file) as picture:
            assert picture.width == draw_pictures.WIDTH
            assert 1000 < picture.height < 1500  # the page has some 8000
        assert file.stat().st_size < 400_000
