"""Patients, slides, sites and other columns stay together by every door, and a table's own split is
never drawn anew."""

import csv
import io
import pathlib

import pytest
from PIL import Image

from glomjax.data.sources import NO_PATIENTS, load_source
from glomjax.errors import UserError

SPLITS = ("train", "validation", "test")
IMAGES = 48  # of two classes in turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    for i in range(IMAGES):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def listed(folder):
    """Writes a manifest whose further columns have the given values, {name: of image i}, and gives
    its path."""

    def write(**columns) -> pathlib.Path:
        stream = io.StringIO()
        writer = csv.writer(stream)
        writer.writerow(["path", "label", *(name.replace("__", " ") for name in columns)])
        for i in range(IMAGES):
            cells = [value(i) if callable(value) else value for value in columns.values()]
            writer.writerow([f"{i:02d}.png", ("other", "glomerulus")[i % 2], *cells])
        path = folder / f"{abs(hash(stream.getvalue()))}.csv"
        path.write_text(stream.getvalue(), encoding="utf-8")
        return path

    return write


def patient(i: int) -> str:
    return f"P{i // 4}"  # 12


def own_split(i: int) -> str:
    return ("train", "train", "val", "test")[i // 4 % 4]


def where(data, column="patient"):
    """{value of the column: the splits that it is in}"""
    found = {}
    for split in SPLITS:
        part = data[split]
        for name in part.patients if column == "patient" else part.columns[column]:
            found.setdefault(name, set()).add(split)
    return found


# One name in several spellings.


@pytest.mark.parametrize("column", ["patient", "slide", "site"])
def test_a_patient_a_slide_or_a_site_in_two_spellings_is_refused(listed, column):
    source = listed(**{column: lambda i: f"{'Case' if i % 2 else 'CASE'}-{i // 4:02d}"})
    with pytest.raises(UserError, match=rf"12 {column}s in several spellings: 'CASE-00' = 'Case"):
        load_source(source)
    data = load_source(source, exact_names=True)
    assert any("As data.exact_names asks" in note for note in data.notes)


def test_sites_that_stay_whole_are_asked_for_their_spellings(listed):
    names = ["Zürich", "Zurich", "ZÜRICH", "Basel", "BASEL ", "Bern"]
    with pytest.raises(
        UserError, match=r"2 sites in several spellings: 'BASEL' = 'Basel', 'Zurich' = 'ZÜ"
    ):
        load_source(listed(patient=patient, site=lambda i: names[i % 6]), split_by="site")


def test_spellings_of_other_columns_are_told(listed):
    data = load_source(listed(patient=patient, stain=lambda i: ("PAS", "pas", "HE")[i % 3]))
    assert any("has 1 stain in several spellings: 'PAS' = 'pas'." in n for n in data.notes)


@pytest.mark.parametrize("word", ["nan", "NA", "#N/A", "<NA>", "None", "null", "-", "?", "unknown"])
def test_a_word_for_a_missing_value_is_an_empty_patient(listed, word):
    with pytest.raises(UserError, match="the patient is empty in 16 of 48 rows"):
        load_source(listed(patient=lambda i: word if i % 3 == 0 else patient(i)))
    assert load_source(listed(patient=word)).notes[0] == NO_PATIENTS


# Columns of other names.


@pytest.mark.parametrize(
    "name",
    [
        *("PatientID", "patientId", "Patient.ID", "Patient_Number", "Case Number", "Subject #"),
        *(
            "pid",
            "Hospital Number",
            "clinic no",
            "record_id",
            "Fallnummer",
            "medical record number",
            "patients",
            "donor",
            "MRN",
            "bcr_patient_barcode",
            "case_submitter_id",
            "환자번호",
        ),
    ],
)
def test_near_misses_of_a_patient_column_are_taken_and_told(listed, name):
    data = load_source(listed(**{name: patient}))
    assert all(len(splits) == 1 for splits in where(data).values())
    assert "has no column 'patient'" in data.notes[0]
    assert NO_PATIENTS not in data.notes


@pytest.mark.parametrize("name", ["patient_age", "site_of_biopsy", "number of patients", "stage"])
def test_columns_about_patients_are_no_patients(listed, name):
    assert NO_PATIENTS in load_source(listed(**{name: lambda i: str(i % 3)})).notes


def test_two_columns_of_one_meaning_are_told_or_refused(listed):
    data = load_source(listed(patient=patient, Patient__ID=lambda i: f"x{i}"))
    assert "has 'patient', 'patient_id' for the patient: 'patient' is taken." in data.notes[0]
    with pytest.raises(UserError, match=r"2 columns for the patient \(case, patient_id\)"):
        load_source(listed(case=patient, Patient__ID=patient))
    with pytest.raises(UserError, match=r"2 columns for the patient \(patientid, donor\)"):
        load_source(listed(PatientID=patient, donor=patient))


def test_a_column_that_is_there_twice_is_refused(listed):
    with pytest.raises(UserError, match="has 2 columns called 'stain': keep one"):
        load_source(listed(stain="PAS", Stain="HE"))


# The table's own split.


@pytest.mark.parametrize(
    "name",
    ["data_split", "phase", "dataset", "partition", "usage", "group", "Train/Test", "Split Set"],
)
def test_the_table_s_own_split_is_kept_whatever_it_is_called(listed, name):
    data = load_source(listed(patient=patient, **{name: own_split}))
    for split, of in zip(SPLITS, ("train", "val", "test"), strict=True):
        assert set(data[split].patients) == {patient(i) for i in range(48) if own_split(i) == of}
    if name != "partition":
        assert (
            f"The column '{name.lower().replace(' ', '_')}' is taken for the split." in data.notes
        )


@pytest.mark.parametrize(
    "words",
    [
        ("Training set", "Validation", "TEST"),
        ("tr", "va", "te"),
        ("훈련", "검증", "시험"),
        ("训练", "验证", "测试"),
    ],
)
def test_splits_are_known_by_the_words_that_people_write(listed, words):
    spelt = dict(zip(("train", "val", "test"), words, strict=True))
    data = load_source(listed(patient=patient, cohort=lambda i: spelt[own_split(i)]))
    assert [len(data[split]) for split in SPLITS] == [24, 12, 12]


def test_two_columns_of_splits_agree_or_are_refused(listed):
    data = load_source(listed(patient=patient, split=own_split, phase=own_split))
    assert "'split', 'phase' tell the same split." in data.notes
    with pytest.raises(UserError, match="two splits that differ in 36 of 48 rows, 'split' and 'ph"):
        load_source(listed(patient=patient, split=own_split, phase=lambda i: own_split(i + 4)))
    with pytest.raises(UserError, match="two splits that differ in 36 of 48 rows, 'phase' and 'u"):
        load_source(listed(patient=patient, phase=own_split, usage=lambda i: own_split(i + 4)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("phase", lambda i: ("train", "external")[i % 2]),
        ("split_name", lambda i: "AB"[i % 2]),
        ("is_test", lambda i: i % 2),
        ("usage", lambda i: own_split(i) if i % 5 else ""),
        ("cohort", lambda i: ("development", "evaluation", "hold-out")[i // 4 % 3]),
        ("cohort", lambda i: ("discovery", "external validation")[i // 4 % 2]),
        ("dset", lambda i: ("train_a", "train_b", "test_a")[i // 4 % 3]),
        ("part", lambda i: ("train (70%)", "test (30%)")[i // 4 % 2]),
        ("part", lambda i: ("trainval", "test")[i // 4 % 2]),
        ("in_train", lambda i: i // 4 % 2),
        ("train_or_test", lambda i: ("x", "")[i // 4 % 2]),
    ],
)
def test_a_split_that_is_not_understood_stops_the_run(listed, name, value):
    with pytest.raises(UserError, match=f"has the column '{name}'"):
        load_source(listed(patient=patient, **{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", lambda i: "valid"),
        ("cohort", lambda i: "test"),
        ("reader", lambda i: ("TE", "VA")[i % 2]),
        ("set", lambda i: i % 2 + 1),
        ("partition", lambda i: "AB"[i % 2]),
        ("test", lambda i: ("pos", "neg")[i % 2]),
        ("split_time", lambda i: i % 3),
        ("group", lambda i: "AB"[i // 24]),
        ("phase", lambda i: ("arterial", "venous")[i // 24]),
    ],
)
def test_columns_that_tell_no_split_are_no_split(listed, name, value):
    data = load_source(listed(patient=patient, **{name: value}))
    assert [len(data[split]) for split in SPLITS] == [32, 8, 8]
    assert name in data.train.columns


def test_folds_of_a_table_are_told_not_to_be_read(listed):
    data = load_source(listed(patient=patient, fold=lambda i: i // 4 % 5))
    assert data.notes[0].startswith("The column 'fold' (0, 1, 2, 3, 4) is not read")


# What else belongs together.


def test_splits_follow_any_column(listed):
    source = listed(field=lambda i: f"F{i // 3}", stain=lambda i: ("PAS", "HE")[i // 24])
    data = load_source(source)
    assert (
        "The column 'field' repeats over images (16 values, up to 3 images each)" in data.notes[1]
    )
    assert len(data.notes) == 2  # nothing of the stain, which is no group
    whole = load_source(source, split_by="field")
    assert whole.notes == (NO_PATIENTS,)
    assert all(len(splits) == 1 for splits in where(whole, "field").values())
    with pytest.raises(UserError, match=r"split_by is 'block', but .* are 'field', 'stain'"):
        load_source(source, split_by="block")


def test_patients_and_a_column_stay_together_at_once(listed):
    source = listed(patient=patient, block=lambda i: f"B{i // 4 // 2}")
    data = load_source(source, split_by="block")
    for column in ("patient", "block"):
        assert all(len(splits) == 1 for splits in where(data, column).values())


def test_measured_numbers_are_no_groups(listed):
    data = load_source(listed(score=lambda i: f"0.{i // 4 + 1}", patient_age=lambda i: 50.5))
    assert data.notes == (NO_PATIENTS,)


def test_weights_that_are_no_factors_are_told(listed):
    data = load_source(listed(patient=patient, weight=lambda i: 60 + i))
    assert any(note.startswith("The column 'weight' has 6") for note in data.notes)
    assert not any("'weight'" in n for n in load_source(listed(weight=lambda i: i % 3 + 1)).notes)


def test_a_patient_of_its_own_for_each_image_is_told(listed):
    data = load_source(listed(patient=lambda i: f"row{i}"))
    assert data.notes[0].startswith("Each of the 48 images has a patient of its own")


def test_splits_of_one_or_two_patients_are_told_with_what_that_means(listed):
    notes = load_source(listed(patient=patient)).notes
    assert notes == (
        "The validation split has 2 patients, few to decide when training stops and which weights "
        "are kept; cross_validate(folds=5) tests each patient once.",
        "The test split has 2 patients, too few to tell how far the result holds for others; "
        "cross_validate(folds=5) tests each patient once.",
    )
    given = load_source(listed(patient=patient, split=own_split)).notes
    assert given == ()  # 3 each


# Tables as programs write them.


@pytest.mark.parametrize("first", ["sep=;\r\n", "SEP=;\n", '"sep=;"\n'])
def test_a_line_that_tells_the_separator_is_read(folder, first):
    rows = [f"{i:02d}.png;{('other', 'glomerulus')[i % 2]};P{i // 4}" for i in range(IMAGES)]
    path = folder / "excel.csv"
    path.write_bytes((first + "path;label;patient\n" + "\n".join(rows)).encode())
    assert len(set(load_source(path).train.patients)) == 8
    path.write_bytes((first + "path;label;patient\n" + "\n".join([*rows, "x"])).encode())
    with pytest.raises(UserError, match="line 51: 1 cells"):
        load_source(path)


def test_the_separator_is_the_one_that_gives_known_columns(folder):
    rows = [f"{i:02d}.png;{('other', 'glomerulus')[i % 2]};x" for i in range(IMAGES)]
    path = folder / "quoted.csv"
    path.write_text('path;label;"remarks, notes, and, more"\n' + "\n".join(rows))
    assert len(load_source(path).train) > 0


def test_nul_characters_are_refused(folder):
    path = folder / "nul.csv"
    path.write_bytes(b"path,label\n00.png,a\x00\n")
    with pytest.raises(UserError, match="it holds NUL characters"):
        load_source(path)


def test_unicode_forms_of_a_table_and_a_disk_may_differ(tmp_path):
    for i in range(8):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"Gro\u0308\u00dfe{i}.png")
    rows = [f"Gr\u00f6\u00dfe{i}.png,{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "m.csv").write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    data = load_source(tmp_path / "m.csv")
    assert data.train.read(0)
