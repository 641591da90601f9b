"""`glomjax evaluate`: the report of a test on other data."""

import json

import pytest
from small_runs import write_patches

from glomjax.cli.main import main


def test_a_report_is_printed_and_kept(small_run, tmp_path, capsys):
    data = write_patches(tmp_path / "data", first=500, numbered=True)
    out = tmp_path / "out"
    assert main(["evaluate", str(small_run[1]), "--data", str(data), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "report.txt").read_text() + f"results: {out}\n"
    assert "48 images of 12 patients (24 other, 24 glomerulus)" in printed
    assert json.loads((out / "test_metrics.json").read_text())["n"] == 48
    assert (out / "predictions.csv").is_file()


def test_what_was_seen_is_refused_and_said_first_where_it_is_allowed(
    small_run, tmp_path, fails, capsys
):
    patches, run = map(str, small_run)
    command = ["evaluate", run, "--data", patches, "--out", str(tmp_path / "out")]
    fails(command, "the network has seen part of this data", "give --allow-seen, which the report")
    assert main([*command, "--allow-seen"]) == 0
    assert capsys.readouterr().out.startswith("THE NETWORK HAS SEEN PART OF THIS DATA")


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--rename", "Tubule"], "--rename Tubule is no pair"),
        (["--rename", "=other"], "--rename =other is no pair"),
        (["--rename", "a=b"], "--rename a=b names no class of the data and of the network"),
        (["--split", "test"], "has no split 'test' (it tells none at all)"),
        (["--mpp", "900"], "--mpp is 900.0; it is in microns per pixel"),
        (["--allow_seen"], "did you mean --allow-seen"),
    ],
)
def test_what_is_wrong_is_one_sentence(small_run, tmp_path, fails, more, part):
    data = write_patches(tmp_path / "data", first=500)
    command = ["evaluate", str(small_run[1]), "--data", str(data), "--out", str(tmp_path / "out")]
    fails([*command, *more], part)


def test_no_folder_is_one_sentence(small_run, home, fails):
    run = str(small_run[1])
    fails(["evaluate", run, "--data", "nowhere", "--out", "out"], "nowhere' does not exist")
    fails(["evaluate", run, "--data", "nowhere"], "arguments are required: --out")
