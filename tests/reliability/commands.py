"""Command lines with mistakes in them; those of a configuration's fields have a place of their
own."""

from reliability.situations import Case, class_folders, command

HEADING = "Command lines"


def line(*arguments: str, part: str = ""):
    return lambda folder: command(*arguments, part=part)


CASES = [
    Case("a verb that does not exist", line("trian")),
    Case("a verb of other programs", line("fit")),
    Case("an option of another verb", line("check-data", "patches", "--workdir=runs/a")),
    Case("an option with a letter missing", line("train", "--config=davit", "--workdr=runs/a")),
    Case("an option without its value", line("train", "--config")),
    Case("an option with one dash", line("train", "-config", "davit")),
    Case("two sources for one", line("check-data", "a", "b")),
    Case("no source", line("check-data")),
    Case("one class of two", line("check-data", "a", "--classes", "b")),
    Case("a word for a number of folds", line("check-data", "a", "--folds", "five")),
    Case("a fraction for a seed", line("check-data", "a", "--split-seed=1.5")),
    Case("inspect of nothing", line("inspect")),
    Case(
        "inspect of weights, with a field of a configuration",
        line("inspect", "weights.h5", "--config.seed=1"),
    ),
    Case("convert without an output", line("convert", "weights.h5")),
    Case("convert to another format", line("convert", "weights.h5", "--out", "weights.h5")),
    Case(
        "convert into a folder that is not there",
        line("convert", "weights.h5", "--out", "new/weights.safetensors"),
    ),
    Case(
        "a coordinator without processes",
        line("train", "--config=alexnet_mini", "--coordinator=localhost:1234"),
    ),
    Case(
        "process 2 of 2, which are numbered from 0",
        line(
            "train",
            "--config=alexnet_mini",
            "--coordinator=localhost:1234",
            "--processes=2",
            "--process=2",
        ),
    ),
    Case(
        "check-data of a folder that is in order",
        lambda folder: command(
            "check-data", class_folders(folder, count=12), part="Training accepts"
        ),
    ),
]
