"""Manifests as spreadsheets, scripts and people write them."""

import pathlib
import unicodedata
from collections.abc import Callable

from reliability.situations import (
    CLASSES,
    COUNT,
    Answer,
    Case,
    Cells,
    class_folders,
    command,
    load,
    patient,
    put,
    rows,
    table,
    text_of,
)

HEADING = "Tables"


def written(change: Callable[[str], str] | None = None, encoding: str = "utf-8", **form: str):
    """A plain table with its text changed, and written in another encoding."""

    def answer(folder: pathlib.Path) -> Answer:
        text = text_of(rows(folder), **form)
        file = folder / "table.csv"
        file.write_bytes((change(text) if change else text).encode(encoding))
        return load(file)

    return answer


def columns(of: dict[str, Cells], *, note: str = "", **options: object):
    """A table with other columns."""
    return lambda folder: load(table(folder, of), note=note, **options)


def line(number: int, cell: str, text: str) -> Callable[[int], str]:
    """A column in which one image's cell is another."""
    return lambda i: text if i == number else cell


def listed(path: str):
    """A table with one more row."""
    return written(lambda text: text + f"{path},other,Anna\n")


def absolute(folder: pathlib.Path) -> Answer:
    return listed(f"{folder}/img/00.png")(folder)


def outside(path: str, *, manifest: str = "", **options: object):
    """A table, or the manifest of a folder of patches, with one more image that lies elsewhere."""

    def answer(folder: pathlib.Path) -> Answer:
        put(folder / "elsewhere" / "00.png", 99)
        row = f"{path.replace('FOLDER', str(folder))},other,Anna\n"
        if not manifest:
            (folder / "set").mkdir()
            file = table(folder / "set")
            file.write_text(file.read_text() + row)
            return load(file, **options)
        class_folders(folder / "set")
        lines = [f"{name}/{i:02d}.png,{name},P{i // 2}\n" for name in CLASSES for i in range(8)]
        (folder / "set" / manifest).write_text("".join(["path,label,patient\n", *lines, row]))
        return load(folder / "set", **options)

    return answer


def outside_in_check_data(folder: pathlib.Path) -> Answer:
    (folder / "set").mkdir()
    file = table(folder / "set", path=lambda i: f"../set/../img/{i:02d}.png")
    return command("check-data", file, part="outside its folder")


def decomposed(folder: pathlib.Path) -> Answer:
    name = "Größe"
    put(folder / f"img/{unicodedata.normalize('NFD', name)}.png")
    composed = unicodedata.normalize("NFC", name)
    return written(lambda text: text + f"img/{composed}.png,other,Anna\n")(folder)


def named(name: str, note: str = ""):
    """A plain table in a file of another name, named as the source."""

    def answer(folder: pathlib.Path) -> Answer:
        (folder / name).write_text(text_of(rows(folder)))
        return load(folder / name, note=note)

    return answer


def in_class_folders(names: list[str], label: Callable[[str], str] = lambda name: name):
    """Class folders with a manifest of some of their images."""

    def answer(folder: pathlib.Path) -> Answer:
        class_folders(folder)
        lines = [
            f"{name}/{i:02d}.png,{label(name)},{name}{i // 2}\n"
            for name in CLASSES
            for i in range(8)
        ]
        lines = lines[1:] if names == ["short.csv"] else lines
        for file in ["manifest.csv"] if names == ["short.csv"] else names:
            (folder / file).write_text("path,label,patient\n" + "".join(lines))
        return load(folder)

    return answer


def other_label(folder: pathlib.Path) -> Answer:
    class_folders(folder)
    lines = [f"{name}/{i:02d}.png,{name}\n" for name in CLASSES for i in range(8)]
    lines[0] = lines[0].replace(",other", ",glomerulus")
    (folder / "manifest.csv").write_text("path,label\n" + "".join(lines))
    return load(folder)


def label_of_table(folder: pathlib.Path) -> Answer:
    class_folders(folder)
    lines = [f"{name}/{i:02d}.png,{name}\n" for name in CLASSES for i in range(8)]
    lines[0] = lines[0].replace(",other", ",glomerulus")
    (folder / "table.csv").write_text("path,label\n" + "".join(lines))
    return load(folder / "table.csv")


CASES = [
    Case("a table with a byte order mark", written(encoding="utf-8-sig")),
    Case("a table in UTF-16, as Excel's Unicode text", written(encoding="utf-16")),
    Case(
        "a table in Windows' code page with an umlaut",
        written(lambda text: text.replace("Anna", "Änne"), encoding="cp1252"),
    ),
    Case("a table with NUL characters", written(lambda text: text.replace("Dora", "Do\0ra"))),
    Case("a table with semicolons", written(separator=";")),
    Case("a table with tabs", written(separator="\t")),
    Case("a table whose lines end in carriage returns alone", written(end="\r")),
    Case("a table with a first line sep=;", written(lambda text: "sep=;\n" + text, separator=";")),
    Case(
        "a table with semicolons whose header has commas in quotes",
        columns({'"remarks, notes and more"': lambda i: "x"}),
    ),
    Case(
        "a table with blank rows and separators at the ends",
        written(lambda text: text.replace("\n", ",,\n").replace("img/05", ",,,,\n\nimg/05")),
    ),
    Case("a table with a comment above its header", written(lambda text: "# 2024\n" + text)),
    Case("a table with a row of totals", written(lambda text: text + "Total,24,\n")),
    Case(
        "a table with a line break within a cell",
        columns({"note": lambda i: '"line one\nline two"'}),
    ),
    Case(
        "a table with a comma in a cell without quotes",
        columns({"note": line(3, "x", "large, pale")}),
    ),
    Case("a table with a stray quote", columns({"note": line(3, "x", 'a "b')})),
    Case("a table with a stray quote that swallows rows", columns({"note": line(3, "x", '"b')})),
    Case("a table with a header alone", written(lambda text: text.splitlines()[0] + "\n")),
    Case("an empty table", written(lambda text: "")),
    Case("a table without a header", written(lambda text: text.partition("\n")[2])),
    Case("a table without labels", columns({"label": ""})),
    Case(
        "a table with an index in front, as pandas writes it",
        written(
            lambda text: "".join(
                f"{n - 1 if n else ''},{row}\n" for n, row in enumerate(text.splitlines())
            )
        ),
    ),
    Case("a table with Windows' separators in paths", written(lambda t: t.replace("/", "\\"))),
    Case("a table with doubled separators in paths", written(lambda t: t.replace("/", "//"))),
    Case("an image with an empty label", columns({"label": line(3, "other", "")})),
    Case("an image with an empty path", columns({"path": line(3, "img/00.png", "")})),
    Case("an image that is listed twice", listed("img/00.png")),
    Case("an image that is listed twice, once with ./ in front", listed("./img/00.png")),
    Case("an image that is listed twice, once with its whole path", absolute),
    Case(
        "an image outside the folder of its table, by its whole path",
        outside("FOLDER/elsewhere/00.png"),
    ),
    Case("an image outside the folder of its table, by ..", outside("../elsewhere/00.png")),
    Case("the same, allowed on purpose", outside("../elsewhere/00.png", allow_outside=True)),
    Case(
        "an image outside a folder of patches, in its manifest",
        outside("other/../../elsewhere/00.png", manifest="manifest.csv"),
    ),
    Case(
        "the same with its whole path, allowed on purpose",
        outside("FOLDER/elsewhere/00.png", manifest="manifest.csv", allow_outside=True),
    ),
    Case("images outside the folder of their table, in check-data", outside_in_check_data),
    Case(
        "an image whose path leads out of the folder of its table and back",
        outside("../set/img/../../set/img/00.png"),  # the same file as a row before
    ),
    Case("an image that is not there", listed("img/99.png")),
    Case("paths in capitals on a disk that tells them apart", written(lambda t: t.upper())),
    Case("a path whose letters have another Unicode form on the disk", decomposed),
    Case("an image that lies in the folder of another class", label_of_table),
    Case("class folders with a manifest that contradicts them", other_label),
    Case("class folders with a manifest that lacks an image", in_class_folders(["short.csv"])),
    Case("class folders with two manifests", in_class_folders(["manifest.csv", "manifest.tsv"])),
    Case("class folders with a manifest that agrees", in_class_folders(["manifest.csv"])),
    Case("a table as .xlsx", named("table.xlsx")),
    Case("a table as .csv.txt", named("table.csv.txt")),
    Case("a table as .CSV", named("Table.CSV")),
    Case("a weight of 1,000, a thousand or one", columns({"weight": lambda i: '"1,000"'})),
    Case("a weight below 0", columns({"weight": line(3, "1", "-1")})),
    Case("weights that are all 0", columns({"weight": lambda i: "0"})),
    Case("a weight that is no number", columns({"weight": line(3, "1", "high")})),
    Case("weights for some images alone", columns({"weight": line(3, "1", "")})),
    Case("a spacing with its unit", columns({"mpp": lambda i: "0.25 um"})),
    Case("a spacing in nanometres", columns({"pixel_size": lambda i: "250"})),
    Case("a spacing with a decimal comma", columns({"mpp": lambda i: '"0,25"'})),
    Case("a spacing for some images alone", columns({"mpp": line(3, "0.25", "n/a")})),
    Case(
        "a spacing in the table and another one in the configuration",
        columns({"mpp": lambda i: "0.25"}, mpp=0.5),
    ),
    Case(
        "a patient column called PatientID",
        columns({"patient": "", "PatientID": patient}, note="PatientID".lower()),
    ),
    Case(
        "a patient column called Subject #",
        columns({"patient": "", "Subject #": patient}, note="subject"),
    ),
    Case(
        "columns for the patient called case and Patient ID",
        columns({"patient": "", "case": patient, "Patient ID": lambda i: f"x{patient(i)}"}),
    ),
    Case(
        "columns for the patient called donor and Case Number",
        columns({"patient": "", "donor": patient, "Case Number": lambda i: f"x{patient(i)}"}),
    ),
    Case(
        "columns for the patient called patient and Patient ID",
        columns({"Patient ID": lambda i: f"x{patient(i)}"}, note="taken"),
    ),
    Case(
        "two columns called stain",
        written(
            lambda text: "".join(
                f"{row},stain,Stain\n" if n == 0 else f"{row},PAS,HE\n"
                for n, row in enumerate(text.splitlines())
            )
        ),
    ),
    Case(
        "two columns called patient",
        written(
            lambda text: "".join(
                f"{row},patient\n" if n == 0 else f"{row},P{n}\n"
                for n, row in enumerate(text.splitlines())
            )
        ),
    ),
    Case("no column of patients", columns({"patient": ""}, note="No patient")),
    Case(
        "a column of slides and none of patients",
        columns({"patient": "", "slide": patient}, note="No patient"),
    ),
    Case(
        "another patient for each image",
        columns({"patient": lambda i: f"P{i}"}, note="of its own"),
    ),
    Case(
        "patients who share slides, by numbers that each has anew",
        columns({"slide": lambda i: f"S{i // 2 % 3}"}, note="hold several patients"),
    ),
    Case(
        "a column of fields that repeat, and none of patients",
        columns({"patient": "", "field": lambda i: f"F{i % 12 // 2}"}, note="repeats over images"),
    ),
    Case(
        "the same column of fields, by which data is split",
        columns({"patient": "", "field": lambda i: f"F{i % 12 // 2}"}, split_by="field"),
    ),
]

assert COUNT == 24, "rows count on it"
