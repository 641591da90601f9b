"""`glomjax predict`: a table that loses no image, and goes on where it stopped."""

import csv
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from small_runs import blots, write_patches

from glomjax import load_classifier
from glomjax.cli.main import main
from glomjax.inference import classifier as classifier_module
from glomjax.inference import saliency
from glomjax.pretrained import read_weights, write_weights

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(small_run) -> str:
    return str(small_run[1])


@pytest.fixture
def patches(tmp_path) -> pathlib.Path:
    """Forty images in a folder, without labels."""
    for i in range(40):
        (tmp_path / "patches").mkdir(exist_ok=True)
        blots(600 + i).save(tmp_path / "patches" / f"{i:02d}.png")
    return tmp_path / "patches"


def rows_of(file: pathlib.Path) -> list[dict]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_for_each_image_with_all_digits(run, patches, tmp_path, capsys):
    out = tmp_path / "found.csv"
    assert main(["predict", run, "--data", str(patches), "--out", str(out)]) == 0
    rows = rows_of(out)
    found = load_classifier(run).predict(patches)
    assert [row["id"] for row in rows] == list(found.ids)
    assert [row["prediction"] for row in rows] == list(found.labels)
    logits = np.array([row["logit"] for row in rows], np.float32)
    assert logits.tobytes() == found.logits.tobytes()
    assert [float(row["probability_glomerulus"]) for row in rows] == found.probabilities[
        :, 1
    ].tolist()
    assert list(rows[0]) == [
        *("id", "prediction", "probability_other", "probability_glomerulus", "logit"),
        *("unlike_training", "problem"),
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"40 image(s) in '{out}'" in captured.err
    about = json.loads((tmp_path / "found.csv.json").read_text())
    assert about["networks"][0]["architecture"] == "davit_tiny"
    assert len(about["networks"][0]["sha256"]) == 64
    assert not (tmp_path / "found.csv.part").exists()


def test_without_a_file_the_table_is_printed(run, patches, capsys):
    assert main(["predict", run, "--data", str(patches / "03.png")]) == 0
    captured = capsys.readouterr()
    header, row = captured.out.splitlines()
    assert header.startswith("id,prediction,")
    assert row.startswith(f"{patches / '03.png'},")
    assert captured.err.startswith("1 image(s)\n")


def test_what_the_data_says_of_its_images_is_in_the_table(run, tmp_path):
    data = write_patches(tmp_path / "patches", first=800)
    table = data / "manifest.csv"
    text = table.read_text().replace("path,label,patient,block", "path,label,patient,prediction")
    table.write_text(text)
    assert main(["predict", run, "--data", str(data), "--out", str(tmp_path / "a.csv")]) == 0
    (first, *_) = rows_of(tmp_path / "a.csv")
    assert (first["label"], first["patient"], first["data_prediction"]) == ("other", "Frau A", "B0")
    assert first["prediction"] in ("other", "glomerulus")


def test_what_cannot_be_read_has_its_row_and_its_reason(run, patches, tmp_path, capsys):
    (patches / "05.png").write_bytes(b"")
    (patches / "09.png").write_text("no image")
    out = tmp_path / "found.csv"
    assert main(["predict", run, "--data", str(patches), "--out", str(out)]) == 1
    rows = rows_of(out)
    assert len(rows) == 40
    bad = {row["id"]: row for row in rows if row["problem"]}
    assert set(bad) == {"05.png", "09.png"}
    assert "is empty" in bad["05.png"]["problem"]
    for row in bad.values():
        assert (row["prediction"], row["logit"], row["probability_other"]) == ("", "", "")
    assert "2 could not be read; the column 'problem' says why" in capsys.readouterr().err


def test_images_that_do_not_resemble_the_training_are_flagged_and_counted(
    run, patches, tmp_path, capsys
):
    Image.new("RGB", (40, 40), (240, 240, 240)).save(patches / "01.png")
    blots(5, size=120).save(patches / "02.png")
    out = tmp_path / "found.csv"
    assert main(["predict", run, "--data", str(patches), "--out", str(out)]) == 0
    flags = {row["id"]: row["unlike_training"] for row in rows_of(out)}
    assert flags["01.png"] == "blank"
    assert flags["02.png"].startswith("another size (120 x 120 in place of 40 x 40)")
    err = capsys.readouterr().err
    assert f"{sum(map(bool, flags.values()))} of 40 images do not resemble" in err
    assert "1 blank" in err
    assert "1 another size (120 x 120 in place of 40 x 40)" in err


class Stop(Exception):
    pass


def stopped_after(monkeypatch, batches: int, error: BaseException) -> None:
    """The command ends by `error` when so many batches are written."""
    iterate = classifier_module.Classifier.iterate

    def some(*arguments, **options):
        for n, part in enumerate(iterate(*arguments, **options)):
            if n == batches:
                raise error
            yield part

    monkeypatch.setattr(classifier_module.Classifier, "iterate", some)


@pytest.mark.parametrize("left", ["", "31.png,gl", '"a\nb', "\xff"])
def test_what_was_stopped_goes_on_to_the_same_table(
    run, patches, tmp_path, monkeypatch, capsys, left
):
    (patches / "03.png").write_bytes(b"")
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]
    whole = [*command[:-1], str(tmp_path / "whole.csv")]
    assert main(whole) == 1
    with monkeypatch.context() as patch:
        stopped_after(patch, 3, KeyboardInterrupt())
        capsys.readouterr()
        assert main(command) == 130
    part = tmp_path / "a.csv.part"
    assert f"stopped after 24 rows, which '{part}' keeps; the same command goes on there" in (
        capsys.readouterr().err
    )
    assert len(rows_of(part)) == 24
    with open(part, "ab") as file:
        file.write(left.encode("latin-1"))  # what a process that is killed leaves of a row
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "going on after 24 rows" in err
    assert "1 could not be read" in err
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not part.exists()


def test_another_network_or_other_settings_do_not_go_on_with_a_table(
    run, patches, tmp_path, monkeypatch, fails, capsys
):
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]
    with monkeypatch.context() as patch:
        stopped_after(patch, 1, KeyboardInterrupt())
        assert main(command) == 130
    capsys.readouterr()
    before = (tmp_path / "a.csv.part").read_bytes()
    for more in (["--symmetries"], ["--batch", "4"], ["--mpp", "0.5"]):
        fails([*command, *more], "was begun with another network, other data or other settings")
    (patches / "00.png").rename(patches / "zz.png")
    fails(command, "row 1 of", "is of image '00.png', and the data has another one there now")
    (patches / "zz.png").rename(patches / "00.png")
    assert (tmp_path / "a.csv.part").read_bytes() == before
    (tmp_path / "a.csv.json").unlink()
    fails(command, "was begun with another network")


def test_a_table_that_is_there_is_left_alone(run, patches, tmp_path, fails):
    (tmp_path / "a.csv").write_text("mine")
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]
    fails(command, "a.csv' exists already; remove it, or name another file")
    assert (tmp_path / "a.csv").read_text() == "mine"
    (tmp_path / "b.csv.json").write_text("mine")
    fails([*command[:-1], str(tmp_path / "b.csv")], "was begun with another network, other data")
    assert (tmp_path / "b.csv.json").read_text() == "mine"
    fails([*command[:-1], str(tmp_path / "c.txt")], "must end in .csv")


def test_a_mistake_that_is_put_right_may_take_the_same_name(run, patches, tmp_path, fails):
    """What was left of it has no rows."""
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "new" / "a.csv")]
    fails([*command, "--mpp", "0"], "mpp is 0.0; it is in microns per pixel")
    assert main(command) == 0
    (tmp_path / "new" / "a.csv").unlink()  # and so may whoever wants it again
    assert main([*command, "--symmetries"]) == 0
    assert len(rows_of(tmp_path / "new" / "a.csv")) == 40


def test_two_processes_do_not_write_one_table(run, patches, tmp_path, fails):
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]
    with open(tmp_path / "a.csv.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(command, "a.csv.part' is being written by another process; wait for it")
    assert main(command) == 0


def test_files_that_are_left_out_and_columns_that_are_taken_are_said(
    run, patches, tmp_path, caplog
):
    (patches / "slide.svs").write_bytes(b"II")
    assert main(["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]) == 0
    assert (
        "1 file(s) among the patches are no images and are left out, for example 'slide.svs'"
        in (caplog.text)
    )
    (tmp_path / "list.csv").write_text("Path,Case Number\npatches/00.png,7\n")
    table = ["--data", str(tmp_path / "list.csv"), "--out", str(tmp_path / "b.csv")]
    assert main(["predict", run, *table]) == 0
    assert "has no column 'patient': 'case_number' is taken for it" in caplog.text
    assert rows_of(tmp_path / "b.csv")[0]["patient"] == "7"


def test_whoever_closes_the_pipe_ends_the_work(run, patches, monkeypatch, capsys):
    monkeypatch.setattr("glomjax.cli.predict.print_text", lambda text, as_it_is: False)
    monkeypatch.setattr(classifier_module.Classifier, "iterate", None)  # not to be called
    assert main(["predict", run, "--data", str(patches)]) == 0
    assert capsys.readouterr().err == ""


LIMITED = """
import resource, sys
from glomjax.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def test_a_full_disk_is_one_sentence_and_keeps_the_rows(run, patches, tmp_path):
    """A limit for files takes the place of a full disk."""
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "2500", *command],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be written (File too large); make room, and the same command goes on" in lines[0]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a.csv.part").stat().st_size <= 2500
    assert main(command) == 0
    rows = rows_of(tmp_path / "a.csv")
    assert [row["id"] for row in rows] == [f"{n:02d}.png" for n in range(40)]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["predict"], ["the following arguments are required: SOURCE, --data"]),
        (["predict", "runs/x"], ["the following arguments are required: --data"]),
        (["predict", "runs/x", "--data", "nowhere"], ["'nowhere' does not exist"]),
        (["predict", "runs/x", "--data", "."], ["holds no image"]),
        (["predict", "runs/x", "--data", "a.png", "--batch", "two"], ["invalid int value: 'two'"]),
        (["predict", "runs/x", "--data", "a.png"], ["weight source 'runs/x' does not exist"]),
        (
            ["predict", "runs/x", "--data", "a.png", "--batch", "0"],
            ["--batch is 0; it is a number of images, 1 to 65536"],
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(home, fails, arguments, parts):
    blots(1).save(home / "a.png") if "." not in arguments else None
    fails(arguments, *parts)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_whole_rows_and_the_command_goes_on(run, tmp_path, number, code):
    """In a process of its own, in the middle of the work."""
    (tmp_path / "many").mkdir()
    blots(1).save(tmp_path / "one.png")
    for i in range(6000):
        os.link(tmp_path / "one.png", tmp_path / "many" / f"{i:04d}.png")
    command = [sys.executable, "-m", "glomjax", "predict", run, "--data", "many", "--out", "a.csv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Shells have what runs in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / "a.csv.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 2000):
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "which 'a.csv.part' keeps; the same command goes on there" in err
    assert 0 < len(rows_of(part)) < 6000
    shutil.rmtree(tmp_path / "many")


def test_several_networks_are_an_ensemble_and_one_named_twice_is_not(
    run, patches, tmp_path, fails, capsys
):
    params, info = read_weights(run)
    other = str(tmp_path / "other.safetensors")
    write_weights(other, {k: v * np.float32(1.5) for k, v in params.items()}, info.spec)
    out = tmp_path / "found.csv"
    assert main(["predict", run, other, "--data", str(patches), "--out", str(out)]) == 0
    each = [load_classifier(source).predict(patches).probabilities[:, 1] for source in (run, other)]
    chances = [float(row["probability_glomerulus"]) for row in rows_of(out)]
    np.testing.assert_allclose(chances, np.mean(each, axis=0), atol=1e-7)
    again = str(tmp_path / "again.safetensors")
    assert main(["convert", run, "--out", again]) == 0
    capsys.readouterr()
    fails(
        ["predict", run, again, "--data", str(patches)], "hold the same weights", "name them once"
    )


def test_a_picture_in_another_format_has_its_row(run, patches, tmp_path):
    Image.new("RGB", (40, 40)).save(patches / "moving.gif")
    assert main(["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]) == 1
    (bad,) = [row for row in rows_of(tmp_path / "a.csv") if row["problem"]]
    assert bad["id"] == "moving.gif"
    assert "GIF" in bad["problem"]


def test_saliency_lays_a_map_over_each_image_and_goes_on_where_it_stopped(
    run, patches, tmp_path, fails, monkeypatch, capsys
):
    (patches / "05.png").write_bytes(b"")
    maps = tmp_path / "maps"
    command = ["predict", run, "--data", str(patches), "--out", str(tmp_path / "a.csv")]
    command += ["--batch", "8", "--saliency", str(maps)]
    drawn, overlay_png = [], saliency.overlay_png

    def stops(*arguments):
        drawn.append(arguments)
        if len(drawn) == 20:
            raise KeyboardInterrupt
        return overlay_png(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(saliency, "overlay_png", stops)
        assert main(command) == 130
    assert 0 < len(list(maps.iterdir())) < 20
    assert main(command) == 1  # since one cannot be read
    assert "what speaks for 'glomerulus' lies over each image in" in capsys.readouterr().err
    names = [row["id"] for row in rows_of(tmp_path / "a.csv")]
    assert sorted(file.name for file in maps.iterdir()) == [
        f"{number:06d}_{name}" for number, name in enumerate(names, 1) if name != "05.png"
    ]
    image = np.asarray(Image.open(patches / "07.png").convert("RGB"))
    (found,) = load_classifier(run, device_batch=8).saliency(image)
    shown = np.asarray(Image.open(maps / "000008_07.png"))
    assert np.abs(shown.astype(int) - saliency.overlay(image, found)).max() <= 1
    fails([*command[:4], "--saliency", str(maps)], "is not empty", "name a new one with --saliency")
    # However often it is asked for: a table that has no row is nothing to go on with.
    again = [*command[:4], "--out", str(tmp_path / "b.csv"), "--saliency", str(maps)]
    for _ in range(2):
        fails(again, "is not empty", "name a new one with --saliency")
    assert not list(tmp_path.glob("b.csv*"))
