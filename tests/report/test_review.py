"""The page on which labels are reviewed, in a browser, and the manifest that it gives."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from browser import OpenPage, open_page
from playwright.sync_api import Locator
from small_runs import CLASSES, config_for, write_patches

from glomjax.cli.main import main
from glomjax.data.sources import load_source
from glomjax.data.sources.manifest import LABEL_BEFORE
from glomjax.errors import UserError
from glomjax.evaluation.report import write_predictions, write_report
from glomjax.report.review import write_review
from glomjax.training import train_and_evaluate

INERT = "<img src=x onerror=alert(1)>.png"
SCRIPT = "</script><script>alert(2)</script>"


def rows_of(file: pathlib.Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_rows(file: pathlib.Path, rows: list[dict[str, str]]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def predict(file: pathlib.Path, rows: list[dict[str, str]], logits: np.ndarray, **columns) -> None:
    """A table of predictions of a manifest's rows."""
    classes = sorted({row["label"] for row in rows}, key=lambda name: (name == "glomerulus", name))
    write_predictions(
        file,
        ids=[row["path"] for row in rows],
        labels=np.array([classes.index(row["label"]) for row in rows]),
        logits=logits,
        classes=classes,
        patients=[row["patient"] for row in rows],
        columns=columns,
    )


@pytest.fixture
def reviewed(tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
    """(a folder of patches, one of whose files and patients have names that look like programs; a
    cross-validation's folder): of 48 networks doubt the label of number 7 most, then that of 10."""
    patches = write_patches(tmp_path / "patches")
    rows = rows_of(patches / "manifest.csv")
    (patches / rows[10]["path"]).rename(patches / "other" / INERT)
    rows[10]["path"] = f"other/{INERT}"
    for row in rows:
        row["patient"] = row["patient"].replace("Frau B", SCRIPT)
    write_rows(patches / "manifest.csv", rows)
    folder = tmp_path / "cv"
    (folder / "repeat_0" / "fold_0").mkdir(parents=True)
    effective = {"data": {"source": str(patches), "permute_labels": False}}
    config = folder / "repeat_0" / "fold_0" / "config.json"
    config.write_text(json.dumps({"effective": effective}))
    truth = np.array([2.0 if row["label"] == "glomerulus" else -2.0 for row in rows])
    truth += np.linspace(0, 0.5, len(rows))
    # As the networks gave them, the first ones would be the most doubtful.
    raw = truth * np.linspace(-1, 1, len(rows))
    truth[7], truth[10] = -4.0, 3.0
    columns = {"repeat": [0] * 48, "fold": [0] * 48, "recalibrated_logit": truth.tolist()}
    predict(folder / "out_of_fold.csv", rows, raw[:, None], **columns)
    return patches, folder


def cards(page: OpenPage) -> list[str]:
    return page.page.locator("#doubts > li").all_inner_texts()


def card(page: OpenPage, number: int) -> Locator:
    return page.page.locator("#doubts > li").nth(number)


def download(page: OpenPage, file: pathlib.Path) -> list[dict[str, str]]:
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "manifest_corrected.csv"
    download.value.save_as(file)
    return rows_of(file)


def test_a_review_is_done_by_keys_and_mouse_and_training_takes_it(reviewed, tmp_path, capsys):
    patches, folder = reviewed
    warning = "The network is not shown to be better than <b>colours</b>."
    (folder / "metrics.json").write_text(json.dumps({"control_message": warning}))
    assert main(["review", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "20 of 48 patches" in said
    assert "has not seen its patient" in said
    with open_page(folder / "review.html") as page:
        assert page.page.locator("ul.must").all_inner_texts() == [warning]
        first, second, *others = cards(page)
        assert len(others) == 18
        assert first.startswith("1. label: glomerulus")
        assert "probability: other 0.982, glomerulus 0.01799 counted as other" in first
        assert "glomerulus/07.png" in first
        assert INERT in second
        assert any(SCRIPT in text for text in [first, second, *others])
        keys = page.page.keyboard
        keys.press("w")  # the first patch is of the other class, and the second comes
        keys.press("ArrowRight")
        keys.press("r")
        keys.press("ArrowLeft")
        keys.press("ArrowLeft")
        keys.press("x")
        card(page, 5).get_by_role("button", name="it is").click()
        keys.press("u")
        card(page, 6).get_by_role("button", name="right").click()
        decided = "4 of 20 decided: 2 right, 1 changed, 1 left out."
        assert page.page.locator("#status").inner_text() == decided
        page.page.reload()
        assert page.page.locator("#status").inner_text() == decided
        pressed = card(page, 1).locator("button[aria-pressed=true]")
        assert pressed.all_inner_texts() == ["unclear: leave out"]
        rows = download(page, tmp_path / "elsewhere" / "corrected.csv")
        assert "47 rows; changed labels: 1; left out: 1." in page.page.inner_text("#after")
        card(page, 7).get_by_role("button", name="right").click()
        assert not page.page.locator("#after").is_visible()  # the file lacks this decision
        assert (page.errors, page.requests, page.images_not_loaded()) == ([], [], [])
        assert not page.scrolls_sideways(400)
        page.print_to(tmp_path / "review.pdf")
    known = rows_of(patches / "manifest.csv")
    changed = [row for row in rows if row[LABEL_BEFORE]]
    assert [(r["path"], r["label"], r[LABEL_BEFORE]) for r in changed] == [
        (str(patches / "glomerulus" / "07.png"), "other", "glomerulus")
    ]
    expected = sorted(
        (k["path"], k["patient"], k["block"]) for k in known if INERT not in k["path"]
    )
    assert expected == [
        (str(pathlib.Path(r["path"]).relative_to(patches)), r["patient"], r["block"]) for r in rows
    ]

    config = config_for(tmp_path / "elsewhere" / "corrected.csv", num_epochs=1)
    config.data.allow_outside = True
    train_and_evaluate(config, tmp_path / "run", progress=False)
    assert "1 label(s) that were changed" in (tmp_path / "run" / "run.log").read_text()
    splits = rows_of(tmp_path / "run" / "splits.csv")
    assert len(splits) == 47
    assert {r["path"]: r["label"] for r in splits} == {r["path"]: r["label"] for r in rows}

    again = write_review(tmp_path / "run", count=2)
    judged = sum(row["split"] == "test" for row in splits)
    text = " ".join(again.sentences)
    assert f"2 of {judged} patches" in text
    assert "of the test split of one run: each was judged by a network that has not seen" in text
    assert f"The other {47 - judged} of 47 patches of the data have not been judged" in text
    page_data = re.search(r'id="data">(.*?)</script>', again.file.read_text(), re.DOTALL)[1]
    assert len(json.loads(page_data)["manifest"]["rows"]) == 47


def test_several_classes_are_chosen_by_number(tmp_path):
    rows = rows_of(write_patches(tmp_path / "patches") / "manifest.csv")
    names = ["artery", "<b>tubule</b>", "tuft"]
    for i, row in enumerate(rows):
        row["label"] = names[i % 3]
        row["path"] = f"patches/{row['path']}"
    rows = [row | {LABEL_BEFORE: "", "note": 'a "b", c\nd'} for row in rows]
    rows[6] |= {LABEL_BEFORE: "tuft"}  # by an earlier review
    write_rows(tmp_path / "table.csv", rows)
    logits = 3.0 * np.eye(3)[[sorted(names).index(row["label"]) for row in rows]]
    for place, i in enumerate((6, 2, 4)):
        logits[i] *= place / 2 - 2
    predict(tmp_path / "predictions.csv", rows, logits)
    review = write_review(
        tmp_path / "predictions.csv", tmp_path / "page.html", data=tmp_path / "table.csv", count=3
    )
    assert any("is not known" in sentence for sentence in review.sentences)
    with open_page(review.file) as page:
        assert [re.search(r"(\d\d).png", text)[1] for text in cards(page)] == ["06", "02", "04"]
        buttons = card(page, 0).get_by_role("button").all_inner_texts()
        assert buttons == ["right", "1: it is <b>tubule</b>", "3: it is tuft", "unclear: leave out"]
        for key in ("3", "1", "2"):  # back to what it was first, another one, and still another
            page.page.keyboard.press(key)
        found = {r["path"]: r for r in download(page, tmp_path / "corrected.csv")}
        assert not page.errors
    found = {str(pathlib.Path(path).relative_to(tmp_path)): row for path, row in found.items()}
    changed = {i: found[rows[i]["path"]] for i in (6, 2, 4)}
    labels = {i: (row["label"], row[LABEL_BEFORE]) for i, row in changed.items()}
    assert labels == {6: ("tuft", ""), 2: ("<b>tubule</b>", "tuft"), 4: ("artery", "<b>tubule</b>")}
    assert {row["note"] for row in found.values()} == {'a "b", c\nd'}


def test_an_evaluation_says_that_the_network_has_seen_the_images(reviewed, tmp_path):
    patches, _ = reviewed
    rows = rows_of(patches / "manifest.csv")
    write_report(
        tmp_path / "evaluation",
        metrics={"networks": [], "data": str(patches), "seen_in_training": {"patients": 3}},
        ids=[row["path"] for row in rows],
        labels=np.arange(48) % 2,
        logits=np.linspace(-1, 1, 48)[:, None],
        classes=CLASSES,
    )
    text = " ".join(write_review(tmp_path / "evaluation").sentences)
    assert "data on which finished networks were judged" in text
    assert "THE NETWORK HAS SEEN PART OF THESE IMAGES" in text
    table = tmp_path / "evaluation" / "predictions.csv"
    rows = [row for row in rows_of(table) if row["label"] == "other"]
    write_rows(table, rows)
    with pytest.raises(UserError, match="no image of .* has the label 'glomerulus'"):
        write_review(tmp_path / "evaluation")


def test_what_cannot_be_reviewed_is_said_with_the_way_out(reviewed, tmp_path, monkeypatch):
    patches, folder = reviewed

    def refused(*parts: str, **options) -> None:
        with pytest.raises(UserError) as error:
            write_review(folder, tmp_path / "page.html", **options)
        for part in parts:
            assert part in str(error.value)
        assert not (tmp_path / "page.html").exists()

    refused("count is 0", "1 to 1000", count=0)
    table = tmp_path / "table.csv"
    shutil.copy(folder / "out_of_fold.csv", table)
    with pytest.raises(UserError, match="does not say where its images are.* with data"):
        write_review(table)
    moved = tmp_path / "moved"
    patches.rename(moved)
    refused("were in", str(patches), "say where they are now with data")
    write_review(folder, tmp_path / "page.html", data=moved)
    (tmp_path / "page.html").unlink()

    rows = rows_of(moved / "manifest.csv")
    part = moved / "part.csv"
    write_rows(part, rows[1:])
    refused("1 of 48 images", "cannot be found", rows[0]["path"], data=part)
    rows = [row | {LABEL_BEFORE: ""} for row in rows]
    write_rows(part, [rows[0] | {"label": "glomerulus", LABEL_BEFORE: "other"}, *rows[1:]])
    refused("1 images have other labels in the data", rows[0]["path"], data=part)
    (moved / rows[7]["path"]).write_bytes(b"no image")
    refused("glomerulus/07.png", data=moved)
    (moved / rows[7]["path"]).unlink()
    refused("07.png", "restore them", data=moved / "manifest.csv")
    refused("not in files of their own", data="synthetic")


def test_a_label_that_contradicts_its_folder_needs_the_one_before(tmp_path):
    patches = write_patches(tmp_path / "patches")
    rows = [row | {LABEL_BEFORE: ""} for row in rows_of(patches / "manifest.csv")]
    rows[0]["label"] = "glomerulus"
    for file in (patches / "manifest.csv", patches / "table.csv"):
        for before in ("", "glomerulus"):
            rows[0][LABEL_BEFORE] = before
            write_rows(file, rows)
            with pytest.raises(UserError, match="lies in the"):
                load_source(file if file.stem == "table" else patches)
        rows[0][LABEL_BEFORE] = "other"
        write_rows(file, rows)
        splits = load_source(file if file.stem == "table" else patches)
        assert any("1 label(s) that were changed" in note for note in splits.notes)
