"""Patients, slides, sites and classes under several names, and words that are no names."""

import contextlib
import io
import math
import pathlib
import unicodedata

import numpy as np

from glomjax.cli.main import main
from reliability.situations import (
    CLASSES,
    COUNT,
    PATIENTS,
    Answer,
    Case,
    class_folders,
    command,
    load,
    patient,
    put,
    spelt,
    split,
    table,
)

HEADING = "Names of patients, slides, sites and classes"
GERMAN = "Glomérule"


def patients(*names: object):
    """A table whose first patient has several names."""
    return lambda folder: load(table(folder, patient=spelt(*names)))


def labels(*names: object):
    """A table whose first class has several names."""

    def answer(folder: pathlib.Path) -> Answer:
        def label(i):
            return names[i % len(names)] if i < COUNT // 2 else "glomerulus"

        return load(table(folder, label=label))

    return answer


def arrays(train: list, validation: list, test: list, **options: object):
    """A script's arrays with these patients, each of two images of both classes."""

    def answer(folder: pathlib.Path) -> Answer:
        data = {}
        parts = {"train": train, "validation": validation, "test": test}
        for part, names in parts.items():
            images = np.zeros((2 * len(names), 8, 8, 3), np.uint8)
            everyone = [name for name in names for _ in range(2)]
            data[part] = images, np.arange(len(images)) % 2, everyone
        return load(data, **options)

    return answer


def sites(folder: pathlib.Path) -> Answer:
    names = ("Zürich", "Zurich", "ZÜRICH", "Basel", "Basel", "Bern")
    file = table(folder, site=lambda i: names[PATIENTS.index(patient(i))])
    return load(file, split_by="site")


def unfilled(column: str, word: str):
    """A table in which a word for a missing value stands in place of some names."""

    def answer(folder: pathlib.Path) -> Answer:
        of = {column: lambda i: word if i % 3 == 0 else patient(i)}
        leaves = {} if column == "patient" else {"patient": ""}
        return load(table(folder, of | leaves))

    return answer


def folder_names(*names: str):
    return lambda folder: load(class_folders(folder, [*names, "glomerulus"]))


def on_command_line(folder: pathlib.Path) -> Answer:
    file = table(folder, patient=spelt("Case-01", "CASE-01"))
    return command("train", "--config", "alexnet_mini", f"--config.data.source={file}")


def in_check(folder: pathlib.Path) -> Answer:
    file = table(folder, patient=spelt("7", "007"))
    return command("check-data", file, part="ERROR")


def manifest_beside(folder: pathlib.Path) -> Answer:
    class_folders(folder / "set")
    lines = [
        f"{name}/{i:02d}.png,{name},{'case 1' if i < 2 else 'CASE 1' if i < 4 else f'case {i}'}\n"
        for name in CLASSES
        for i in range(8)
    ]
    (folder / "set" / "manifest.csv").write_text("path,label,patient\n" + "".join(lines))
    return load(folder / "set")


def two_forms(folder: pathlib.Path) -> Answer:
    for form in ("NFC", "NFD"):
        for i in range(4):
            put(folder / unicodedata.normalize(form, GERMAN) / f"{form} {i}.png", i)
    for i in range(4):
        put(folder / "andere" / f"{i}.png", 10 + i)
    return load(folder)


def on_ascii(folder: pathlib.Path) -> Answer:
    file = table(folder, patient=lambda i: f"{patient(i)} 환자", label=lambda i: "사기"[i // 12])
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        code = main(["check-data", str(file)])
    stream.flush()
    (line,) = [n for n in stream.buffer.getvalue().decode().splitlines() if n[:8] == "classes:"]
    return Answer("read" if code == 0 else "raw", line)


CASES = [
    Case("a patient in capitals and in small letters", patients("Case-01", "CASE-01")),
    Case("a patient as a number with and without a decimal point", patients("7", "7.0")),
    Case("a patient as a number with and without leading zeros", patients("7", "00007")),
    Case("a patient as a number in scientific notation", patients("1200", "1.2e3")),
    Case("a patient with an underscore, a hyphen and neither", patients("P_1", "P-1", "P1")),
    Case("a patient with an apostrophe that makes a spreadsheet keep text", patients("'P1", "P1")),
    Case('a patient as ="7", by which a spreadsheet keeps text', patients('"=""7"""', "7")),
    Case("a patient as Python prints bytes", patients("b'P1'", "P1")),
    Case("a patient with an accent in one and in two characters", patients("Zoé", "Zoe\u0301")),
    Case("a patient with and without its accent", patients("Zoé", "Zoe")),
    Case("a patient with a no-break space", patients("case 1", "case\u00a01")),
    Case("a patient with two blanks inside", patients("case 1", "case  1")),
    Case("a patient with a tab inside", patients("case 1", "case\t1")),
    Case("a patient with a zero-width space in front", patients("P1", "\u200bP1")),
    Case("a patient with a byte order mark in front", patients("P1", "\ufeffP1")),
    Case("a patient with a soft hyphen inside", patients("Maria", "Ma\u00adria")),
    Case("a patient in full-width letters", patients("P1", "\uff30\uff11")),
    Case("a patient with blanks around it", patients("P1", "  P1 ")),
    Case(
        "patients P1 and p1 that are two, as the user says",
        lambda folder: load(
            table(folder, patient=spelt("P1", "p1")), note="exact_names", exact_names=True
        ),
    ),
    Case(
        "patients P1 and P10, which only begin alike",
        lambda folder: load(
            table(folder, patient=lambda i: {"Anna": "P1", "Berta": "P10"}.get(patient(i), "P2"))
        ),
    ),
    Case("a patient in two spellings, at the start of a training", on_command_line),
    Case("a patient in two spellings, in check-data", in_check),
    Case("a patient in two spellings, in the manifest of a folder", manifest_beside),
    Case(
        "a slide with and without the suffix of its file",
        lambda folder: load(table(folder, {"patient": ""}, slide=spelt("S1.svs", "S1"))),
    ),
    Case(
        "a slide in two spellings beside patients that are right",
        lambda folder: load(table(folder, slide=spelt("S 1", "s-1"))),
    ),
    Case("a site with and without its accent and in capitals", sites),
    Case(
        "a column by which data is split, in two spellings",
        lambda folder: load(table(folder, block=spelt("B 1", "b1")), split_by="block"),
    ),
    Case(
        "a stain in two spellings, by which nothing is split",
        lambda folder: load(
            table(folder, stain=lambda i: ("PAS", "pas", "HE")[i % 3]), note="stain"
        ),
    ),
    Case("a class as 1 and as 1.0", labels("1", "1.0")),
    Case("a class as 1 and as True", labels("1", "True")),
    Case("a class in capitals and in small letters", labels("other", "Other")),
    Case("a class with a hyphen and with an underscore", labels("non-x", "non_x")),
    Case("a class with a zero-width space at its end", labels("rest", "rest\u200b")),
    Case(
        "the class glomerulus in singular and plural",
        lambda folder: load(
            table(
                folder,
                label=lambda i: "other" if i < COUNT // 2 else ("glomerulus", "glomeruli")[i % 2],
            )
        ),
    ),
    Case("two class folders that differ in a blank at the end", folder_names("other", "other ")),
    Case("two class folders whose letters have two Unicode forms", two_forms),
    Case("a script's patients as whole numbers and as floats", arrays([1, 2], [3], [1.0])),
    Case("a script's patients as texts and as bytes", arrays(["P1", "P2"], ["P3"], [b"P1"])),
    Case("a script's patients as texts and as numbers", arrays(["1", "2"], ["3"], [2])),
    Case("a script's patients in capitals and small letters", arrays(["P1", "P2"], ["P3"], ["p1"])),
    Case("a script's patients padded with blanks", arrays(["P1", "P2"], ["P3"], ["P1   "])),
    Case("a script's patient in train and in test", arrays(["P1", "P2"], ["P3"], ["P1"])),
    Case("a script's patients as floats beyond 2^53", arrays([1e17, 2.0], [3.0], [4.0])),
    Case("a script's patients as pairs", arrays([("A", 1), ("A", 2)], [("A", 3)], [("A", 4)])),
    Case("a script's patient that is NaN", arrays([1.0, math.nan], [3.0], [4.0])),
    Case("a script's patient that is None", arrays(["P1", None], ["P3"], ["P4"])),
    Case("a script's patient called NA", arrays(["P1", "NA"], ["P3"], ["P4"])),
    Case(
        "a script's classes that differ in case",
        arrays(["P1"], ["P2"], ["P3"], classes=("a", "A")),
    ),
    Case("nan in place of some patients", unfilled("patient", "nan")),
    Case("#N/A in place of some patients", unfilled("patient", "#N/A")),
    Case("unknown in place of some patients", unfilled("patient", "unknown")),
    Case("- in place of some slides, where no patients are given", unfilled("slide", "-")),
    Case(
        "None in place of all patients",
        lambda folder: load(table(folder, patient=lambda i: "None"), note="No patient"),
    ),
    Case(
        "? in place of some splits",
        lambda folder: load(table(folder, split=lambda i: "?" if i == 5 else split(i))),
    ),
    Case("nan among the labels", labels("nan", "other")),
    Case("a class that is called none", labels("none")),
    Case(
        "a class that is called none, as the user says",
        lambda folder: load(
            table(folder, label=lambda i: ("none", "glomerulus")[i // (COUNT // 2)]),
            classes=("none", "glomerulus"),
        ),
    ),
    Case("names in other scripts on a terminal that has ASCII alone", on_ascii),
]
