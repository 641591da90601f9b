"""Splits that a source brings, and splits that are drawn."""

import pathlib

from glomjax.data.sources import load_source
from reliability.situations import (
    COUNT,
    PATIENTS,
    Answer,
    Case,
    Cells,
    class_folders,
    described,
    load,
    patient,
    split,
    table,
)

HEADING = "Splits and classes"


def columns(of: dict[str, Cells], *, note: str = "", **options: object):
    return lambda folder: load(table(folder, of), note=note, **options)


def drawn(**options: object):
    """Splits of a plain table."""
    return lambda folder: load(table(folder), **options)


def folders(*parts: str, note: str = "", **options: object):
    """Folders of splits with class folders in each."""

    def answer(folder: pathlib.Path) -> Answer:
        for part in parts:
            class_folders(folder / part, count=4)
        return load(folder, note=note, **options)

    return answer


def classes(*names: str, note: str = "", **options: object):
    """A table with these classes."""
    return columns({"label": lambda i: names[i * len(names) // COUNT]}, note=note, **options)


def three_patients(folder: pathlib.Path) -> Answer:
    return load(table(folder, patient=lambda i: ("Anna", "Berta")[i % 2]))


def one_patient_of_a_class(folder: pathlib.Path) -> Answer:
    """Where patients have one class each, and one has the rarer one."""
    file = table(folder, patient=lambda i: "Anna" if i >= COUNT // 2 else f"P{i // 2}")
    return load(file)


def few_files(folder: pathlib.Path) -> Answer:
    return load(class_folders(folder, count=2))


def folds(folder: pathlib.Path) -> Answer:
    file = table(folder)
    tested = [set(load_source(file, folds=3, fold=k).test.patients or ()) for k in range(3)]
    assert sum(map(len, tested)) == len(set().union(*tested)) == len(PATIENTS)
    return Answer("read", f"{len(PATIENTS)} patients, each of them tested once in 3 folds")


def again(folder: pathlib.Path) -> Answer:
    """The splits that were drawn, as a table with odd names that is read again."""
    names = ("=1+1", "$a_b$ [red]", 'the "one"', "Ö; 2", "'x'", "-5")
    file = table(
        folder, patient=lambda i: '"' + names[PATIENTS.index(patient(i))].replace('"', '""') + '"'
    )
    data = load_source(file)
    file.write_text(data.to_csv(), encoding="utf-8")
    same = load_source(file)
    assert all(same[s].ids == data[s].ids for s in ("train", "validation", "test"))
    assert set(same.train.patients or ()) == set(data.train.patients or ()) <= set(names)
    return described(same)


def kept_apart(folder: pathlib.Path) -> Answer:
    """A run's division with a patient in two of its splits."""
    file = table(folder)
    kept = {f"img/{i:02d}.png": "test" if i == 0 else split(i) for i in range(COUNT)}
    return load(file, kept=kept)


CASES = [
    Case("splits in a column called data_split", columns({"data_split": split}, note="taken")),
    Case(
        "splits in a column called phase, with val",
        columns({"phase": lambda i: {"validation": "val"}.get(split(i), split(i))}, note="taken"),
    ),
    Case("splits in a column called Train/Test", columns({"Train/Test": split}, note="taken")),
    Case("splits in a column called group", columns({"group": split}, note="taken")),
    Case(
        "splits in two columns that agree",
        columns({"split": split, "usage": split}, note="same split"),
    ),
    Case(
        "splits in two columns that differ",
        columns(
            {"split": split, "usage": lambda i: {"test": "validation"}.get(split(i), split(i))}
        ),
    ),
    Case(
        "splits in another column, which is filled in part",
        columns({"dataset": lambda i: "" if i == 3 else split(i)}),
    ),
    Case(
        "splits in another column, with a word that names none",
        columns({"data_split": lambda i: "holdout" if split(i) == "test" else split(i)}),
    ),
    Case(
        "a split column with a word that names none",
        columns({"split": lambda i: "holdout" if split(i) == "test" else split(i)}),
    ),
    Case(
        "a split column that is filled in part",
        columns({"split": lambda i: "" if i == 3 else split(i)}),
    ),
    Case(
        "a column of folds",
        columns({"fold": lambda i: PATIENTS.index(patient(i)) % 3}, note="is not read"),
    ),
    Case(
        "a patient in two of the given splits",
        columns({"split": lambda i: "test" if i == 0 else split(i)}),
    ),
    Case(
        "a slide in two of the given splits",
        columns(
            {
                "split": split,
                "slide": lambda i: "S1" if patient(i) in ("Anna", "Frieda") else f"S{i}",
            }
        ),
    ),
    Case(
        "a site in two of the given splits, kept apart by sites",
        columns({"split": split, "site": lambda i: f"site {i % 2}"}, split_by="site"),
    ),
    Case(
        "given splits without a validation split",
        columns(
            {"split": lambda i: {"validation": "train"}.get(split(i), split(i))}, note="is divided"
        ),
    ),
    Case(
        "given splits without training images",
        columns({"split": lambda i: {"train": "test"}.get(split(i), split(i))}),
    ),
    Case(
        "a given split without one of the classes",
        columns(
            {
                "label": lambda i: (
                    "other" if split(i) == "test" else ("other", "glomerulus")[i // 12]
                ),
                "split": split,
            }
        ),
    ),
    Case("given splits, and folds in the configuration", columns({"split": split}, folds=3)),
    Case("a validation split of one patient", drawn(note="validation split has")),
    Case("folders train, val and test", folders("train", "val", "test")),
    Case(
        "folders Training set and test data", folders("Training set", "test data", note="divided")
    ),
    Case("folders train, val and other", folders("train", "val", "other")),
    Case("a folder train alone", folders("train")),
    Case("folders train and training", folders("train", "training", "test")),
    Case(
        "folders of splits, and folds in the configuration",
        folders("train", "val", "test", folds=3),
    ),
    Case(
        "the embedded data, and folds in the configuration",
        lambda folder: load("synthetic", folds=3),
    ),
    Case(
        "the embedded data, with other classes",
        lambda folder: load("synthetic", classes=("a", "b")),
    ),
    Case("splits by a column that is not there", drawn(split_by="hospital")),
    Case(
        "splits by a column that is filled in part",
        columns({"site": lambda i: "" if i == 3 else f"site {i % 3}"}, split_by="site"),
    ),
    Case(
        "splits by site, which few sites allow",
        columns({"site": lambda i: f"site {i % 2}"}, split_by="site"),
    ),
    Case("shares that sum to more than 1", drawn(fractions=(0.7, 0.2, 0.2))),
    Case("a share of 0", drawn(fractions=(0.8, 0.2, 0.0))),
    Case("two shares", drawn(fractions=(0.8, 0.2))),
    Case("a negative seed of the splits", drawn(seed=-1)),
    Case("one fold", drawn(folds=1)),
    Case("fold 3 of 3, which are numbered from 0", drawn(folds=3, fold=3)),
    Case("more folds than patients", drawn(folds=9)),
    Case("two patients", three_patients),
    Case("a class that one patient alone has", one_patient_of_a_class),
    Case("two images of each class", few_files),
    Case("one class", classes("glomerulus")),
    Case("classes that are not those of the data", drawn(classes=("other", "glom"))),
    Case("classes Glomeruli and Tubules", classes("Glomeruli", "Tubules")),
    Case("classes 사구체 and 기타", classes("기타", "사구체")),
    Case(
        "classes of which both begin like glomerulus",
        classes("glomeruli_normal", "glomeruli_sclerosed"),
    ),
    Case(
        "two classes of which none is a glomerulus",
        classes("cortex", "medulla", note="by the alphabet"),
    ),
    Case("three classes", classes("cortex", "glomerulus", "medulla")),
    Case(
        "the classes in the order that the user gives",
        classes("cortex", "medulla", classes=("medulla", "cortex")),
    ),
    Case("folds over patients", folds),
    Case("a run's splits.csv as a table, with names such as =1+1", again),
    Case("a run that goes on with a patient in two splits of its splits.csv", kept_apart),
    Case("classes Glomérules and Tubules", classes("Glomérules", "Tubules")),
    Case("classes glomerulo and tubulo", classes("glomerulo", "tubulo")),
    Case("an empty name of a TFDS data set", lambda folder: load("tfds:")),
]
