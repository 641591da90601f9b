"""The report of a run, an evaluation and a cross-validation, read in a browser and made again."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from browser import open_page
from PIL import Image
from small_runs import config_for, write_patches

from glomjax.cli.main import main
from glomjax.errors import UserError
from glomjax.evaluation.measures import MEASURES
from glomjax.inference.classifier import load_classifier
from glomjax.inference.evaluation import evaluate
from glomjax.pretrained import read_weights, write_weights
from glomjax.report.page import make_report
from glomjax.training import scoring, train_and_evaluate
from glomjax.training.crossval import cross_validate

INERT = "<img src=x onerror=alert(1)>.png"
SCRIPT = "</script><script>alert(2)</script>"
MOST_BYTES = 5e6


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> pathlib.Path:
    """Patches of which some have names that look like programs; patients, blocks and stains."""
    folder = write_patches(tmp_path_factory.mktemp("report") / "patches")
    lines = (folder / "manifest.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for i, row in enumerate(rows):
        path = pathlib.Path(row[0])
        renamed = path.with_name(f"{i:02d}{INERT}")
        (folder / path).rename(folder / renamed)
        row[0] = str(renamed)
        row[2] = f"{row[2]} {SCRIPT}"
        row.append(("HE", "PAS & more")[i // 4 % 2])
    text = "\n".join(
        ",".join(row) for row in [["path", "label", "patient", "block", "stain"], *rows]
    )
    (folder / "manifest.csv").write_text(text + "\n")
    return folder


@pytest.fixture(scope="module")
def results(patches, tmp_path_factory) -> dict[str, pathlib.Path]:
    """A run, an evaluation of it and a cross-validation, each with its report."""
    place = tmp_path_factory.mktemp("results")
    config = config_for(patches, report="full")
    train_and_evaluate(config, place / "run", progress=False)
    evaluate(load_classifier(place / "run"), patches, place / "evaluation", allow_seen=True)
    config = config_for(patches, report="plain", num_epochs=1)
    cross_validate(config, place / "folds", folds=2, progress=False)
    return {name: place / name for name in ("run", "evaluation", "folds")}


@pytest.mark.parametrize("kind", ["run", "evaluation", "folds"])
def test_a_report_is_one_page_that_is_complete_and_inert(results, kind, tmp_path):
    page = results[kind] / "report" / "report.html"
    assert page.stat().st_size < MOST_BYTES
    with open_page(page) as opened:
        assert opened.errors == []
        assert opened.requests == []
        assert opened.images_not_loaded() == []
        assert not opened.scrolls_sideways(400)
        read = opened.page
        assert read.get_attribute("html", "lang") == "en"
        images = read.locator("main img")
        assert images.count() >= 12
        assert all(images.nth(i).get_attribute("alt") for i in range(images.count()))
        figures = read.locator("svg[role=img]")
        assert figures.count() >= 5
        assert all(figures.nth(i).locator("title").count() for i in range(figures.count()))
        # The names are texts, not elements.
        assert read.locator("main img[src=x], main script").count() == 0
        text = read.inner_text("main")
        assert INERT in text
        assert SCRIPT in text
        for heading in ("What was done", "Results", "Negative controls", "CLAIM 2024", "TRIPOD+AI"):
            assert read.locator("h2", has_text=heading).count() == 1
        opened.print_to(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_the_numbers_are_those_of_the_result(results):
    metrics = json.loads((results["run"] / "test_metrics.json").read_text())
    copied = json.loads((results["run"] / "report" / "metrics.json").read_text())
    assert copied["metrics"] == metrics
    markdown = (results["run"] / "report" / "results.md").read_text()
    latex = (results["run"] / "report" / "results.tex").read_text()
    card = (results["run"] / "report" / "MODEL_CARD.md").read_text()
    with open_page(results["run"] / "report" / "report.html") as opened:
        rows = opened.page.locator("#results table tbody tr").all_inner_texts()
    assert len(rows) == len(metrics["estimates"])
    for name, found in metrics["estimates"].items():
        value = "undefined" if found["value"] is None else f"{found['value']:.3f}"
        title = MEASURES[name][0]
        assert f"| {title} | {value} |" in markdown
        assert f"| {title} | {value} |" in card
        assert f"{title} & {value} &" in latex
        (row,) = [row for row in rows if row.startswith(f"{title}\t")]
        assert row.split("\t")[1] == value
        if found["low"] is not None:
            assert row.split("\t")[2] == f"{found['low']:.3f} to {found['high']:.3f}"


def test_what_nobody_may_overlook_comes_first(results):
    first = {}
    for kind, folder in results.items():
        with open_page(folder / "report" / "report.html") as opened:
            first[kind] = opened.page.inner_text(".must")
    metrics = json.loads((results["run"] / "test_metrics.json").read_text())
    assert metrics["control_message"] in first["run"]
    assert "random values" in first["run"]
    assert "indicative" in first["run"]
    assert "has seen part of these images" in first["evaluation"]


def test_parts_of_the_images_have_their_own_numbers(results):
    groups = json.loads((results["folds"] / "report" / "metrics.json").read_text())["groups"]
    assert set(groups) == {"patient", "block", "stain"}
    assert len(groups["patient"]) == 12
    assert {name: part["n"] for name, part in groups["stain"].items()} == {
        "HE": 24,
        "PAS & more": 24,
    }
    one = groups["patient"][f"Frau A {SCRIPT}"]["estimates"]["auroc"]
    assert one["value"] is not None
    assert one["low"] is None  # of one patient there is no interval


def test_figures_of_several_repeats_have_the_numbers_of_what_they_draw(patches, tmp_path):
    config = config_for(patches, num_epochs=1)
    cross_validate(config, tmp_path / "folds", folds=2, repeats=2, progress=False)
    page = make_report(tmp_path / "folds").read_text()
    assert "The table has the mean of the 2 repeats." in page
    told, *_ = re.findall(r"Sensitivity ([\d.]+) .*?specificity ([\d.]+) ", page)
    counted = dict(re.findall(r"of (\w+) were classified (\d+) as other, \d+ as glom", page))
    right = (24 - int(counted["glomerulus"])) / 24, int(counted["other"]) / 24
    assert told == tuple(f"{share:.3f}" for share in right)


def test_slides_and_wider_columns_are_counted_as_what_they_are(patches, tmp_path):
    lines = (patches / "manifest.csv").read_text().splitlines()
    sites = ["site", *(f"S{i // 12}" for i in range(len(lines) - 1))]
    said = {}
    for name, header, split_by in (("slide", "slide", "patient"), ("site", "patient", "site")):
        manifest = patches / f"by_{name}.csv"
        rows = [lines[0].replace("patient", header), *lines[1:]]
        pairs = zip(rows, sites, strict=True)
        manifest.write_text("".join(f"{row},{site}\n" for row, site in pairs))
        config = config_for(manifest, report="plain", num_epochs=1)
        config.data.split_by = split_by
        train_and_evaluate(config, tmp_path / name, progress=False)
        manifest.unlink()
        said[name] = (tmp_path / name / "report" / "report.html").read_text()
    assert "No slide of 12 is in two splits." in said["slide"]
    assert "No site of 4 is in two splits." in said["site"]
    assert "images of 1 site, " in (tmp_path / "site" / "report" / "results.md").read_text()


def test_a_report_made_again_is_the_same(results, tmp_path):
    copy = shutil.copytree(results["run"], tmp_path / "run")
    files = {file.name: file.read_bytes() for file in (copy / "report").iterdir() if file.is_file()}
    for name in files:
        (copy / "report" / name).unlink()
    assert main(["report", str(copy)]) == 0
    for name, content in files.items():
        assert (copy / "report" / name).read_bytes() == content


def test_a_run_that_was_stopped_before_its_report_makes_it_when_called_again(
    patches, results, tmp_path
):
    copy = shutil.copytree(results["run"], tmp_path / "run")
    (copy / "report" / "metrics.json").unlink()
    (copy / "report" / "report.html").unlink()
    train_and_evaluate(config_for(patches, report="full"), copy, progress=False)
    assert (copy / "report" / "report.html").is_file()


def test_a_run_that_trains_shows_its_curves(results, tmp_path):
    copy = shutil.copytree(results["run"], tmp_path / "run")
    for name in ("test_metrics.json", "predictions.csv"):
        (copy / name).unlink()
    page = make_report(copy)
    with open_page(page) as opened:
        assert opened.errors == []
        assert "has not finished" in opened.page.inner_text(".must")
        assert opened.page.locator("#network svg").count() == 1
        assert opened.page.locator("#results").count() == 0


def test_patches_are_kept_with_saliency_where_it_is_asked_for(results):
    kept = {
        name: json.loads((folder / "report" / "patches" / "patches.json").read_text())
        for name, folder in (
            ("run", results["run"]),
            ("fold", results["folds"] / "repeat_0" / "fold_0"),
        )
    }
    assert all(row["saliency"] for row in kept["run"]["patches"])
    assert "head" in kept["run"]["randomised"]
    assert not any(row["saliency"] for row in kept["fold"]["patches"])
    # Without the images the page says so, and is complete otherwise.
    ids = {row["id"] for row in kept["fold"]["patches"]}
    text = (results["folds"] / "report" / "report.html").read_text()
    assert "were not kept" not in text
    assert len(ids) >= 12


def test_without_kept_patches_the_page_says_so(results, tmp_path):
    copy = shutil.copytree(results["run"], tmp_path / "run")
    shutil.rmtree(copy / "report")
    assert "The images were not kept" in make_report(copy).read_text()


def test_no_report_where_none_is_wanted(small_run):
    assert not (small_run[1] / "report").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report/patches/patches.json", "[]"),
        ("report/patches/patches.json", '{"about": "", "randomised": {}, "patches": [{"id": 1}]}'),
        (
            "report/patches/patches.json",
            '{"about": "", "randomised": {}, "patches": '
            '[{"id": "a", "image": "../../config.json", "saliency": ""}]}',
        ),
        ("test_metrics.json", "{"),
        ("metrics.jsonl", "{"),
        ("splits.csv", "path,label,split\n" + 200_000 * "x" + "\n"),
        ("config.json", "[1]"),
    ],
)
def test_a_damaged_file_is_named(results, tmp_path, capsys, name, content):
    copy = shutil.copytree(results["run"], tmp_path / "run")
    (copy / name).write_text(content)
    assert main(["report", str(copy)]) == 2
    said = capsys.readouterr().err
    assert pathlib.Path(name).name in said or "patches" in said
    assert "Traceback" not in said


def test_a_run_goes_on_where_somebody_has_changed_what_only_its_page_needs(
    patches, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    draw = scoring.history_png

    def changes(*arguments, **options):
        (folder / "splits.csv").write_bytes(b"\xff")
        return draw(*arguments, **options)

    monkeypatch.setattr(scoring, "history_png", changes)
    config = config_for(patches, report="plain", num_epochs=1)
    assert train_and_evaluate(config, folder, progress=False)["epochs"] == 1
    assert not (folder / "report" / "report.html").exists()


def test_patches_are_kept_as_the_network_decoded_them(results, tmp_path):
    params, _ = read_weights(results["run"])
    spec = load_classifier(results["run"]).spec
    twelve = dataclasses.replace(spec.preprocessing, bits=12)
    file = tmp_path / "network.safetensors"
    write_weights(file, params, dataclasses.replace(spec, preprocessing=twelve))
    for i in range(8):
        place = tmp_path / "data" / spec.classes[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(values // (1 + i % 2)).save(place / f"{i}.png")
    evaluate(load_classifier(file), tmp_path / "data", tmp_path / "out", report="plain")
    assert (tmp_path / "out" / "report" / "patches" / "00.jpg").is_file()


def test_numbers_that_are_none_are_a_sentence(results, tmp_path, capsys):
    copy = shutil.copytree(results["run"], tmp_path / "run")
    (copy / "metrics.jsonl").write_text('{"epoch": 1, "loss": "x"}')
    assert main(["report", str(copy)]) == 2
    assert "are not what a result has" in capsys.readouterr().err


def test_what_is_no_result_is_refused(tmp_path, patches):
    with pytest.raises(UserError, match="is no folder"):
        make_report(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no result"):
        make_report(patches)
    (tmp_path / "crossval.json").write_text("{}")
    with pytest.raises(UserError, match="has not finished"):
        make_report(tmp_path)
