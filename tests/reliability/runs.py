"""Folders of runs, and trained networks at work."""

import atexit
import contextlib
import dataclasses
import functools
import io
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from small_runs import config_for, write_patches
from test_old_runs import OLD, old_config, old_data

from glomjax import load_classifier
from glomjax.cli.main import main
from glomjax.models import params_of
from glomjax.pretrained import load_weights
from glomjax.pretrained.weight_file import write_weights
from glomjax.training import train_and_evaluate
from reliability.situations import Answer, Case, class_folders, command, picture, put

HEADING = "Folders of runs, and trained networks at work"
TIMM = OLD.parent / "davit_timm" / "timm_davit.safetensors"


def going_on(
    change: Callable[[pathlib.Path], Any],
    *,
    run: str = "unfinished",
    data: Callable[[dict], dict] = lambda data: data,
    part: str = "",
    **fields: Any,
):
    """A run that goes on after something was changed in its folder, its data or fields."""

    def answer(folder: pathlib.Path) -> Answer:
        shutil.copytree(OLD / run, folder / "run")
        change(folder / "run")
        config = old_config()
        for name, value in fields.items():
            config[name] = value
        train_and_evaluate(config, folder / "run", data=data(old_data()))
        return Answer("raw", "it goes on")

    return answer


def nothing(run: pathlib.Path) -> None:
    """The folder as it is."""


def empty(name: str, content: bytes = b"") -> Callable[[pathlib.Path], Any]:
    return lambda run: (run / name).write_bytes(content)


def damaged(run: pathlib.Path) -> None:
    """A byte of the best weights."""
    files = [file for file in (run / "checkpoints" / "best").rglob("*") if file.is_file()]
    file = next(file for file in sorted(files) if file.name == "metadata.json")
    file.write_bytes(file.read_bytes() + b" ")


def other_images(data: dict) -> dict:
    images, *more = data["test"]
    return data | {"test": (255 - images, *more)}


def called_again(*more: str, part: str = ""):
    """The command of a finished run."""

    def answer(folder: pathlib.Path) -> Answer:
        shutil.copytree(OLD / "finished", folder / "run")
        (folder / "mine.py").write_text("from test_old_runs import old_config as get_config\n")
        return command("train", "--config", "mine.py", "--workdir", "run", *more, part=part)

    return answer


def train(*more: str, prepare: Callable[[pathlib.Path], Any] = lambda folder: None):
    """A command in a folder that has something in it."""

    def answer(folder: pathlib.Path) -> Answer:
        prepare(folder)
        return command("train", "--config", "alexnet_mini", "--workdir", "run", *more)

    return answer


def with_file(folder: pathlib.Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.docx").write_text("x")


def as_file(folder: pathlib.Path) -> None:
    (folder / "run").write_text("x")


@functools.cache
def classifier():
    return load_classifier(OLD / "finished")


def classify(source: Any, **options: Any):
    """A trained network that cannot be loaded."""

    def answer(folder: pathlib.Path) -> Answer:
        found = source(folder) if callable(source) else source
        return Answer("raw", f"{load_classifier(found, **options)!r}")

    return answer


def copied(file: pathlib.Path) -> Callable[[pathlib.Path], Any]:
    return lambda folder: shutil.copy(file, folder)


def written(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A weight file of ours with the old run's network, of which something is other."""
    spec = classifier().spec
    model = spec.create_model()
    load_weights(model, OLD / "finished")
    file = folder / f"{'-'.join(changes) or 'same'}.safetensors"
    write_weights(file, params_of(model), dataclasses.replace(spec, **changes))
    return file


def predict(images: Any, **options: Any):
    """Images of which a trained network makes nothing."""

    def answer(folder: pathlib.Path) -> Answer:
        given = images(folder) if callable(images) else images
        found = classifier().predict(given, **options)
        if found.problems:
            assert np.isnan(found.logits).all()
            return Answer("told", next(iter(found.problems.values())))
        return Answer("raw", f"{found}")

    return answer


def resampled(folder: pathlib.Path) -> Answer:
    preprocessing = dataclasses.replace(
        classifier().spec.preprocessing, target_mpp=0.5, seen_mpp=None
    )
    network = load_classifier(written(folder, preprocessing=preprocessing))
    return Answer("raw", f"{network.predict(put(folder / 'a.png'))}")


def unlisted(folder: pathlib.Path) -> pathlib.Path:
    class_folders(folder, count=2)
    (folder / "manifest.csv").write_text("path\nother/00.png\n")
    return folder


def listed(path: str) -> Callable[[pathlib.Path], pathlib.Path]:
    def images(folder: pathlib.Path) -> pathlib.Path:
        put(folder / path)
        (folder / "set").mkdir()
        (folder / "set" / "table.csv").write_text(f"path\n{path}\n")
        return folder / "set" / "table.csv"

    return images


def finished_again():
    """A finished run that is called again with its data."""

    def answer(folder: pathlib.Path) -> Answer:
        shutil.copytree(OLD / "finished", folder / "run")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            train_and_evaluate(old_config(), folder / "run", data=old_data())
        return Answer("told", out.getvalue().strip())

    return answer


@functools.cache
def trained() -> pathlib.Path:
    """A folder with `patches` and a `run` of two epochs on them."""
    folder = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = config_for(write_patches(folder / "patches"))
    train_and_evaluate(config, folder / "run", progress=False)
    return folder


def small(use: Callable[[pathlib.Path, pathlib.Path], Answer]):
    """What is done with copies of these patches and this run."""

    def answer(folder: pathlib.Path) -> Answer:
        for name in ("patches", "run"):
            shutil.copytree(trained() / name, folder / name)
        # As if the run had read its data here.
        config = folder / "run" / "config.json"
        config.write_text(config.read_text().replace(str(trained()), str(folder)))
        return use(folder / "patches", folder / "run")

    return answer


def goes_on(patches: pathlib.Path, run: pathlib.Path, part: str = "", **fields: Any) -> Answer:
    """The finished run, called with this data; the first line that it says, or the one with these
    words."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        train_and_evaluate(config_for(patches, **fields), run)
    lines = [line for line in out.getvalue().splitlines() if part in line]
    return Answer("told", lines[0].strip("* ") if part else f"{lines[0]}: {lines[-1]}")


def renamed(folder: pathlib.Path) -> None:
    """`Tubule` in place of `other`."""
    (folder / "other").rename(folder / "Tubule")
    in_table(("other/", "Tubule/"), (",other,", ",Tubule,"))(folder)


def without_data(patches: pathlib.Path, run: pathlib.Path) -> Answer:
    shutil.rmtree(patches)
    return goes_on(patches, run, part="whether the data")


def starts_from(**fields: Any):
    """A run on another fold that would start from the small run."""

    def use(patches: pathlib.Path, run: pathlib.Path) -> Answer:
        own = {"freeze.regime": "full", "data.folds": 3, "data.fold": 0}
        config = config_for(patches, **own | fields | {"pretrained.source": str(run)})
        train_and_evaluate(config, run.parent / "next", progress=False)
        return Answer("raw", "it is trained")

    return small(use)


def judged(
    *more: str,
    data: Callable[[pathlib.Path, pathlib.Path], Any] = lambda patches, run: patches,
    part: str = "",
):
    """The small run on other data."""

    def use(patches: pathlib.Path, run: pathlib.Path) -> Answer:
        source = data(patches, run)
        out = run.parent / "out"
        return command("evaluate", run, "--data", source, "--out", out, *more, part=part)

    return small(use)


def others(change: Callable[[pathlib.Path], Any] = lambda folder: None, **options: Any):
    """Data that the small run has not seen."""

    def data(patches: pathlib.Path, run: pathlib.Path) -> pathlib.Path:
        folder = write_patches(run.parent / "others", first=500, **options)
        change(folder)
        return folder

    return data


def in_table(*replaced: tuple[str, str]) -> Callable[[pathlib.Path], Any]:
    def change(folder: pathlib.Path) -> None:
        text = (folder / "manifest.csv").read_text()
        for before, after in replaced:
            assert before in text
            text = text.replace(before, after)
        (folder / "manifest.csv").write_text(text)

    return change


def listed_elsewhere(patches: pathlib.Path, run: pathlib.Path) -> pathlib.Path:
    """A manifest of data that the small run has not seen, in another folder than its images."""
    folder = others(numbered=True)(patches, run)
    table = run.parent / "lists" / "table.csv"
    table.parent.mkdir()
    text = (folder / "manifest.csv").read_text()
    table.write_text(re.sub(r"^(other|glomerulus)/", rf"{folder}/\1/", text, flags=re.MULTILINE))
    return table


def tabled(
    *more: str,
    prepare: Callable[[pathlib.Path, pathlib.Path], Any] = lambda patches, run: None,
    kind: str = "told",
):
    """The small run predicts its patches into a table."""

    def use(patches: pathlib.Path, run: pathlib.Path) -> Answer:
        prepare(patches, run)
        err = io.StringIO()
        arguments = [
            "predict",
            str(run),
            "--data",
            str(patches),
            "--out",
            str(run.parent / "a.csv"),
        ]
        with contextlib.redirect_stderr(err):
            code = main([*arguments, *more])
        said = err.getvalue().strip()
        if code == 2:
            return Answer("refused", said.removeprefix("error: "))
        return Answer("told", f"exit code {code}: {said.splitlines()[1]}")

    return small(use)


CASES = [
    Case("a run folder that holds other files", train(prepare=with_file)),
    Case("a file in place of the run folder", train(prepare=as_file)),
    Case("a run folder of another configuration", called_again("--config.batch_size=4")),
    Case(
        "a run folder with ~ for the home folder, that holds other files",
        train("--workdir", "~/run", prepare=with_file),
    ),
    Case("--overwrite of a folder that holds no run", train("--overwrite", prepare=with_file)),
    Case("a run that is finished, called again", finished_again()),
    Case(
        "a run that is finished, with its data at another path",
        small(lambda patches, run: goes_on(shutil.move(patches, run.parent / "moved"), run)),
    ),
    Case(
        "a run that is finished, with other data",
        small(lambda patches, run: goes_on(others()(patches, run), run)),
    ),
    Case(
        "a run that is finished, with data that are not there",
        small(lambda patches, run: goes_on(run.parent / "typo", run)),
    ),
    Case(
        "a run that is finished, whose data are gone",
        small(without_data),
    ),
    Case(
        "a run that is finished, with other images",
        going_on(nothing, run="finished", data=other_images),
    ),
    Case("a run that starts from another whose training has its test patients", starts_from()),
    Case(
        "a run that starts from another, with other preprocessing",
        starts_from(preprocessing="standardize"),
    ),
    Case("a network on what it was trained on", judged()),
    Case("the same, as it is meant, in the report", judged("--allow-seen", part="HAS SEEN")),
    Case(
        "a network on patients of other names, one of whom it knows",
        judged(data=others(in_table((",1,B", ",Frau A,B")), numbered=True)),
    ),
    Case(
        "a network on data of other classes",
        judged(data=others(renamed, numbered=True)),
    ),
    Case(
        "the same, with the classes named",
        judged("--rename", "Tubule=other", data=others(renamed, numbered=True), part="is taken"),
    ),
    Case(
        "one class in place of the other",
        judged("--rename", "other=glomerulus", data=others(numbered=True)),
    ),
    Case(
        "a network on a manifest whose images lie outside its folder", judged(data=listed_elsewhere)
    ),
    Case(
        "the same, as it is meant",
        judged("--allow-outside", data=listed_elsewhere, part="48 images"),
    ),
    Case("a split that the data lacks", judged("--split", "test", data=others(numbered=True))),
    Case(
        "data without patients",
        judged(data=others(lambda f: (f / "manifest.csv").unlink()), part="No patient"),
    ),
    Case(
        "data with an image that cannot be read",
        judged(data=others(lambda f: (f / "other" / "00.png").write_bytes(b""), numbered=True)),
    ),
    Case(
        "a folder for the report with something in it",
        small(lambda patches, run: command("evaluate", run, "--data", patches, "--out", run)),
    ),
    Case(
        "predictions with a file that is no image",
        tabled(prepare=lambda patches, run: (patches / "other" / "00.png").write_text("x")),
    ),
    Case(
        "predictions for a blank image",
        tabled(
            prepare=lambda patches, run: Image.new("RGB", (40, 40)).save(
                patches / "other" / "00.png"
            )
        ),
    ),
    Case(
        "predictions into a table that is there",
        tabled(prepare=lambda patches, run: (run.parent / "a.csv").write_text("x")),
    ),
    Case(
        "predictions that go on with a table of another network",
        tabled(
            prepare=lambda patches, run: [
                (run.parent / f"a.csv.{end}").write_text("x") for end in ("part", "json")
            ]
        ),
    ),
    Case(
        "predictions for a manifest with images outside its folder, by the command",
        small(
            lambda patches, run: command("predict", run, "--data", listed_elsewhere(patches, run))
        ),
    ),
    Case("predictions into a table that is none", tabled("--out", "a.xlsx")),
    Case("a run that goes on with other images", going_on(nothing, data=other_images)),
    Case("a run that goes on with another batch", going_on(nothing, batch_size=4)),
    Case("a run whose config.json is empty", going_on(empty("config.json"))),
    Case("a run whose config.json is another JSON", going_on(empty("config.json", b"[]"))),
    Case("a run whose environment.json is empty", going_on(empty("environment.json"))),
    Case(
        "a run whose test_metrics.json is empty",
        going_on(empty("test_metrics.json"), run="finished"),
    ),
    Case("a run whose splits.csv is another table", going_on(empty("splits.csv", b"a,b\n1,2\n"))),
    Case("no trained network", classify(None)),
    Case("an empty list of trained networks", classify([])),
    Case("a threshold of 1", classify(OLD / "finished", threshold=1.0)),
    Case("a number in a list of trained networks", classify([3])),
    Case("a trained network that is not there", classify("runs/davit")),
    Case("published weights as a trained network", classify(copied(TIMM))),
    Case(
        "a weight file of an earlier version away from its run",
        classify(copied(OLD / "finished.safetensors")),
    ),
    Case(
        "two trained networks with other classes",
        classify(lambda folder: [written(folder), written(folder, classes=("a", "b"))]),
    ),
    Case(
        "two trained networks with other image sizes",
        classify(lambda folder: [written(folder), written(folder, image_size=(64, 64))]),
    ),
    Case("a batch of 0 images for a trained network", classify(OLD / "finished", device_batch=0)),
    Case("predictions for floats", predict(np.zeros((2, 8, 8, 3), np.float32))),
    Case("predictions for grey values", predict(np.zeros((8, 8), np.uint8))),
    Case("predictions for a list with floats", predict([np.zeros((8, 8, 3))])),
    Case("predictions for a list with None", predict([None])),
    Case("predictions for a number", predict(7)),
    Case("predictions for bytes", predict(b"\x89PNG")),
    Case("predictions for a folder that is not there", predict("patches")),
    Case("predictions for an empty path", predict("")),
    Case("predictions for an empty folder", predict(lambda folder: folder)),
    Case("predictions for a folder with a manifest that lacks images", predict(unlisted)),
    Case(
        "predictions for a manifest with an image outside its folder", predict(listed("../a.png"))
    ),
    Case("predictions with a spacing in nanometres", predict(picture(1), mpp=250.0)),
    Case("predictions of a network that needs a spacing, without one", resampled),
    Case(
        "predictions for an empty file",
        predict(lambda folder: (folder / "a.png").write_bytes(b"") or [folder / "a.png"]),
    ),
    Case("predictions for a folder in a list", predict(lambda folder: [folder])),
    Case("predictions for an image that is not there", predict(["a.png"])),
    Case("predictions for an image of floats", predict([Image.new("F", (8, 8))])),
]
