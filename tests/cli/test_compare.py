"""`glomjax compare`: predictions are matched by image, and what may mislead is said."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from glomjax.cli.main import main
from glomjax.evaluation import write_predictions, write_report
from glomjax.files import csv_text
from glomjax.inference.comparison import compare

CLASSES = ("other", "glomerulus")
COUNT = 60
IDS = [f"{i:02d}.png" for i in range(COUNT)]
LABELS = np.arange(COUNT) % 2
PATIENTS = [f"P {i // 6}" for i in range(COUNT)]
WEIGHTS = {"architecture": "davit_tiny", "sha256": "ab" * 32}


def logits(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=COUNT) + 1.5 * LABELS - 0.7)[:, None]


def evaluation(folder: pathlib.Path, seed: int, **changes) -> str:
    """What `evaluate` writes, for some network."""
    metrics = {"networks": [WEIGHTS | {"sha256": f"{seed}" * 64}], "seen_in_training": None}
    metrics |= changes.pop("metrics", {})
    known = {"ids": IDS, "labels": LABELS, "classes": CLASSES, "patients": PATIENTS}
    write_report(folder, metrics=metrics, **{"logits": logits(seed), **known, **changes})
    return str(folder)


def rows_of(table: pathlib.Path) -> list[list[str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def change(folder: str, column: str, row: int, value: str) -> None:
    """Writes another value into one cell of the predictions in a folder."""
    table = pathlib.Path(folder) / "predictions.csv"
    header, *rows = rows_of(table)
    rows[row][header.index(column)] = value
    table.write_text(csv_text([header, *rows]))


@pytest.fixture
def two(tmp_path) -> list[str]:
    return [evaluation(tmp_path / "one", 1), evaluation(tmp_path / "two", 2)]


def test_the_differences_are_printed_and_kept(two, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", *two, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "comparison.txt").read_text() + f"results: {out}\n"
    assert "60 images of 10 patients (30 other, 30 glomerulus)" in printed
    found = json.loads((out / "comparison.json").read_text())
    assert (found["grouped_by"], found["groups"], found["reference"]) == ("patient", 10, two[0])
    areas = [roc_auc_score(LABELS, logits(seed)) for seed in (1, 2)]
    auroc = found["comparisons"][0]["differences"]["auroc"]
    assert auroc["difference"] == pytest.approx(areas[1] - areas[0])
    assert auroc["low"] < auroc["difference"] < auroc["high"]
    (line,) = [line for line in printed.splitlines() if line.startswith("AUROC")]
    assert line.split()[1:3] == [f"{area:.3f}" for area in areas]
    assert "McNemar, clustered (Durkalski): right in A alone" in printed
    assert "p Holm" not in printed


def test_rows_are_matched_by_image_whatever_their_order_and_the_spelling_of_patients(two):
    (one,) = compare(two).result["comparisons"]
    table = pathlib.Path(two[1]) / "predictions.csv"
    header, *rows = rows_of(table)
    rows = [[name, patient.replace(" ", "-0"), *cells] for name, patient, *cells in rows[::-1]]
    table.write_text(csv_text([header, *rows]))
    (again,) = compare(two).result["comparisons"]
    assert again == one


def test_several_are_compared_to_the_first_and_corrected_for_their_number(two, tmp_path, capsys):
    third = evaluation(tmp_path / "three", 3)
    assert main(["compare", *two, third]) == 0
    printed = capsys.readouterr().out
    assert "B minus A" in printed
    assert "C minus A" in printed
    assert "p Holm: corrected for 2 comparisons to A, each measure by itself" in printed
    found = compare([*two, third]).result["comparisons"]
    p = sorted(part["differences"]["auroc"]["p"] for part in found)
    corrected = sorted(part["differences"]["auroc"]["p_holm"] for part in found)
    assert corrected[0] == pytest.approx(min(1, 2 * p[0]))


@pytest.fixture
def two_runs(small_run, tmp_path) -> list[str]:
    """A run, and as it would be from another seed, at another rate and on other patients."""
    run = pathlib.Path(shutil.copytree(small_run[1], tmp_path / "a"))
    other = pathlib.Path(shutil.copytree(small_run[1], tmp_path / "b"))
    config = json.loads((other / "config.json").read_text())
    config["effective"] |= {"seed": 7, "learning_rate": 0.5}
    (other / "config.json").write_text(json.dumps(config))
    header, *rows = rows_of(other / "splits.csv")
    trained = [row for row in rows if row[header.index("split")] == "train"]
    lost = {trained[0][header.index("patient")]}
    kept = [row for row in rows if row[header.index("patient")] not in lost]
    (other / "splits.csv").write_text(csv_text([header, *kept]))
    return [str(run), str(other)]


def test_of_runs_it_is_said_in_what_they_differ(two_runs):
    found = compare(two_runs)
    assert found.result["settings"] == {"learning_rate": [0.003, 0.5], "seed": [0, 7]}
    assert "\n  learning_rate: 0.003 | 0.5\n" in found.text
    assert "A: " + two_runs[0] + ": run, davit_tiny (" in found.text
    notes = "\n".join(found.result["notes"])
    assert "Indicative: 2 patients." in notes
    assert "different seeds (0, 7)" in notes
    assert "trained on different patients: 1 of 8 of" in notes
    assert "are of the same weights" in notes  # which they are, since one is a copy
    again = compare([two_runs[0], f"{two_runs[1]}/predictions.csv"]).result
    assert again["settings"] == found.result["settings"]


def test_labels_and_patients_may_be_in_one_source_alone(two, tmp_path):
    (whole,) = compare(two).result["comparisons"]
    table = pathlib.Path(two[1]) / "predictions.csv"
    header, *rows = rows_of(table)
    left = [i for i, name in enumerate(header) if name not in ("label", "patient")]
    predicted = tmp_path / "predicted.csv"
    predicted.write_text(csv_text([[row[i] for i in left] for row in [header, *rows]]))
    about = {"networks": [WEIGHTS], "threshold": 0.5}
    (tmp_path / "predicted.csv.json").write_text(json.dumps(about))
    found = compare([two[0], predicted]).result
    assert found["comparisons"][0] == whole | {"source": str(predicted)}
    assert "whether its networks were trained on these images is not known" in found["notes"][0]
    assert found["sources"][1]["networks"] == [WEIGHTS]


def test_without_patients_slides_stand_in_and_without_both_it_is_said(tmp_path):
    slides = {"slide": [f"S{i // 10}" for i in range(COUNT)]}
    with_slides = [
        evaluation(tmp_path / f"slides {seed}", seed, patients=None, columns=slides)
        for seed in (1, 2)
    ]
    found = compare(with_slides).result
    assert (found["grouped_by"], found["groups"]) == ("slide", 6)
    assert "Slides stand in for patients." in found["notes"]
    alone = [evaluation(tmp_path / f"none {seed}", seed, patients=None) for seed in (1, 2)]
    found = compare(alone)
    assert found.result["grouped_by"] is None
    assert "images for independent, and images of one patient are not." in found.text
    assert "McNemar, exact:" in found.text


def test_a_column_may_be_named(tmp_path, capsys):
    blocks = {"block": [f"B{i % 5}" for i in range(COUNT)]}
    two = [evaluation(tmp_path / f"{seed}", seed, columns=blocks) for seed in (1, 2)]
    assert main(["compare", *two, "--patients", "block"]) == 0
    printed = capsys.readouterr().out
    assert "60 images of 5 blocks" in printed
    assert "Blocks stand in for patients." in printed


def test_each_is_decided_at_its_own_threshold_which_a_copy_must_not_lose(two, tmp_path, fails):
    other = evaluation(tmp_path / "other", 2, metrics={"threshold": 0.7})
    table = pathlib.Path(other) / "predictions.csv"
    header, *rows = rows_of(table)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        called = float(cells["probability_glomerulus"]) > 0.7
        row[header.index("prediction")] = CLASSES[called]
    table.write_text(csv_text([header, *rows]))
    found = compare([two[0], other])
    sensitivity = found.result["comparisons"][0]["differences"]["sensitivity"]["value"]
    assert sensitivity == (logits(2)[LABELS == 1, 0] > np.log(7 / 3)).mean()
    assert "threshold 0.7" in found.text
    copy = shutil.copy(table, tmp_path / "copy.csv")
    fails(["compare", two[0], str(copy)], "otherwise than its logits do at a threshold of 0.5")


def test_out_of_fold_predictions_are_recalibrated_means_of_their_repeats(two, tmp_path):
    folder = tmp_path / "crossval"
    repeated = np.concatenate([logits(2) - 0.4, logits(2) + 0.6])
    write_predictions(
        folder / "out_of_fold.csv",
        ids=IDS * 2,
        labels=np.tile(LABELS, 2),
        logits=repeated * 100,
        classes=CLASSES,
        patients=PATIENTS * 2,
        columns={
            "repeat": [0] * COUNT + [1] * COUNT,
            "fold": [0] * 2 * COUNT,
            "recalibrated_logit": list(map(repr, repeated[:, 0].tolist())),
        },
    )
    mean = evaluation(tmp_path / "mean", 2, logits=logits(2) + 0.1)
    found, expected = (compare([two[0], part]).result for part in (folder, mean))
    for name, numbers in expected["comparisons"][0]["differences"].items():
        difference = found["comparisons"][0]["differences"][name]["difference"]
        assert difference == pytest.approx(numbers["difference"], abs=1e-12), name
    assert any("the mean of the logits of 2 repeats" in note for note in found["notes"])


def test_what_a_network_has_seen_is_said_again(two, tmp_path, capsys):
    seen = evaluation(tmp_path / "seen", 3, metrics={"seen_in_training": {"images": ["00.png"]}})
    assert main(["compare", two[0], seen]) == 0
    assert "THE NETWORK HAS SEEN PART OF THESE IMAGES" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda two: change(two[1], "id", 3, "x.png"),
         ["1 of 60 images of", "('03.png') and 1 of 60", "('x.png')"]),
        (lambda two: change(two[1], "id", 3, "04.png"), ["lists '04.png' more than once"]),
        (lambda two: change(two[1], "label", 2, "glomerulus"),
         ["give 1 of 60 images another label: '02.png' 'other' and 'glomerulus'"]),
        (lambda two: change(two[1], "patient", 2, "P 9"), ["another patient: '02.png' 'p0' and"]),
        (lambda two: change(two[1], "patient", 2, ""),
         ["has no patient for 1 of 60", "--patients"]),
        (lambda two: change(two[1], "logit", 2, "high"), ["is no table of predictions"]),
        (lambda two: change(two[1], "logit", 2, "nan"), ["not finite ('02.png')"]),
        (lambda two: change(two[1], "prediction", 2, "glomerulus") or
         change(two[1], "logit", 2, "-3"), ["calls 1 of 60 images ('02.png') otherwise"]),
        (lambda two: pathlib.Path(two[1], "test_metrics.json").write_text('{"networks": '),
         ["test_metrics.json' is not what was written"]),
        (lambda two: pathlib.Path(two[1], "predictions.csv").write_text("id,prediction\na,b\n"),
         ["no probabilities and logits"]),
        (lambda two: pathlib.Path(two[1], "predictions.csv").write_text(""), ["it has no row"]),
        (lambda two: pathlib.Path(two[1], "predictions.csv").unlink(),
         ["has no predictions.csv and no out_of_fold.csv"]),
        (lambda two: two.pop(), ["1 is the number of sources that are named"]),
        (lambda two: two.append(two[0]), ["is named twice"]),
        (lambda two: two.append("nowhere"), ["'nowhere' does not exist"]),
        (lambda two: two.extend(["--patients", "ward"]), ["no source has a column 'ward'"]),
        (lambda two: two.extend(["--out", two[0]]), ["is not empty", "--out"]),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence(two, fails, spoil, parts):
    spoil(two)
    fails(["compare", *two], *parts)


def test_other_classes_and_unfinished_runs_are_refused(two, tmp_path, fails):
    turned = evaluation(tmp_path / "turned", 2, classes=CLASSES[::-1])
    fails(["compare", two[0], turned], "in the same order")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    fails(["compare", two[0], str(tmp_path / "run")], "has not finished", "the same command")
