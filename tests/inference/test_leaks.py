"""What a network has seen of other data, told by digests of names and hashes of images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import blots

from glomjax.data.duplicates import perceptual_hash
from glomjax.data.examples import Examples
from glomjax.inference.leaks import doubts, find_seen, records_of
from glomjax.pretrained.spec import HASHED, SplitRecord, TrainingRecord, record_split

SALT = "00" * 16


def hashes_of(numbers) -> np.ndarray:
    images = [np.asarray(blots(number)) for number in numbers]
    return np.array([perceptual_hash(image) for image in images]).reshape(-1, 4)


def record(train=(), validation=(), patients=None, slides=None, **more) -> TrainingRecord:
    """Of images by their numbers; patients are those of the training split."""

    def split(numbers, patients=None, slides=None):
        return record_split(patients, slides, hashes_of(numbers), np.ones(len(numbers)), SALT)

    return TrainingRecord(
        salt=SALT,
        train=split(train, patients, slides),
        validation=split(validation),
        regime="full",
        images_hashed_as=HASHED,
        **more,
    )


def examples(numbers, patients=None, column="patient", slides=None) -> Examples:
    return Examples(
        ids=tuple(f"{number}.png" for number in numbers),
        labels=np.zeros(len(numbers), np.int32),
        read=lambda i: b"",
        patients=patients,
        patient_column=column,
        columns={} if slides is None else {"slide": slides},
    )


def test_images_of_train_validation_and_every_ancestor_are_found():
    grandmother = record(train=[1, 2], validation=[3])
    mother = record(train=[4], ancestors=(grandmother,))
    spec = type("Spec", (), {"trained_on": mother})()
    records = records_of([spec, type("Spec", (), {"trained_on": None})()])
    assert records == [mother, grandmother]
    numbers = [9, 3, 4, 8, 1]
    seen = find_seen(records, examples(numbers), hashes_of(numbers))
    assert seen.images == ("3.png", "4.png", "1.png")
    assert (seen.names, bool(seen)) == ({}, True)
    assert not find_seen(records, examples([8, 9]), hashes_of([8, 9]))


def test_names_in_other_spellings_are_the_same_patients():
    known = record(train=[1, 2], patients=["Case_07", "Müller"])
    numbers, names = [2, 8, 9], ("muller", "case 7", "Case 8")
    seen = find_seen([known], examples(numbers, names), hashes_of(numbers))
    found = seen.names["patient"]
    assert (found.with_images, found.alone, found.total) == (("muller",), ("case 7",), 3)
    assert "'2.png'), as good as certain by their pixels" in seen.describe()
    assert seen.to_dict() == {
        "images": ["2.png"],
        "patients_by_name_and_image": ["muller"],
        "patients_by_name_alone": ["case 7"],
    }


@pytest.mark.parametrize(
    ("names", "sure"),
    [
        (["1", "2"], "such short names are given in many places, so these may be other patients"),
        (["Patient 12"], "such short names are given in many places"),
        (["I_3_S_1"], "such short names are given in many places"),
        (["TCGA-B0-5691"], "names as long as these are hardly given to two patients"),
        (["Anna Muster"], "names as long as these are hardly given to two patients"),
        (["1", "Anna Muster"], "1 of these names are so short that they may be those of other"),
    ],
)
def test_how_sure_a_name_alone_is_depends_on_the_name(names, sure):
    known = record(train=range(len(names)), patients=names)
    numbers = range(100, 100 + len(names))
    seen = find_seen([known], examples(numbers, tuple(names)), hashes_of(numbers))
    assert sure in seen.describe()
    assert "certain" not in seen.describe()
    assert seen.verb == "may have seen"


def test_slides_are_compared_whether_they_stand_in_for_patients_or_not():
    numbers, slides = [8, 9], ("S_0001_a", "x")
    data = {
        "in place of patients": examples(numbers, slides, "slide", slides),
        "beside patients": examples(numbers, ("A", "B"), slides=slides),
    }
    for known in (
        record(train=[1, 2], slides=["S_0001_a", "S_0002_a"]),
        record(train=[1, 2], patients=["C", "D"], slides=["s-1-a", "S_0002_a"]),
    ):
        for name, given_data in data.items():
            seen = find_seen([known], given_data, hashes_of(numbers))
            assert seen.names["slide"].alone == ("S_0001_a",), name
            assert "1 of 2 slides have the names of its slides" in seen.describe()
        assert not find_seen([known], examples(numbers, slides), hashes_of(numbers))


def test_images_without_a_hash_match_nothing():
    flat = np.zeros((3, 4), np.uint64)
    known = record(train=[1, 2])
    assert not find_seen([known], examples([7, 8, 9]), flat)
    assert not find_seen([TrainingRecord()], examples([1]), hashes_of([1]))
    assert not find_seen([], examples([1]), hashes_of([1]))


PUBLISHED = TrainingRecord(initial_weights="kecam/davit_t_imagenet")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([record([1], patients=["A"])], ""),
        ([record([1], patients=["A"]), PUBLISHED], ""),
        ([TrainingRecord(regime="full")], "do not tell on whom they were trained"),
        ([TrainingRecord(initial_weights="unpublished")], "do not tell on whom they were trained"),
        ([record([1], patients=["A"], initial_weights="sha256 0")], "do not tell on whom"),
        (
            [
                record([1], patients=["A"], initial_weights="sha256 0", ancestors=(PUBLISHED,)),
                PUBLISHED,
            ],
            "",
        ),
        ([record([1])], "the network knows no names of its training, and the data tells patients"),
        ([record([1], slides=["S"])], "the network knows slides of its training, and the data"),
        (
            [TrainingRecord(regime="full", train=SplitRecord(images=3, patient_digests=("a",)))],
            "knows its images as they were resized",
        ),
        ([record([1], patients=["A"], permuted_labels=True)], "trained on permuted labels"),
    ],
)
def test_what_cannot_be_told_is_said(records, said):
    notes = doubts(records, examples([1], ("A",)))
    assert len(notes) == bool(said)
    assert said in "".join(notes)


@settings(max_examples=25)
@given(st.sets(st.integers(0, 30), max_size=8), st.sets(st.integers(0, 30), min_size=1, max_size=8))
def test_just_the_images_of_both_are_seen(trained, asked):
    asked = sorted(asked)
    seen = find_seen([record(train=sorted(trained))], examples(asked), hashes_of(asked))
    assert set(seen.images) == {f"{number}.png" for number in trained & set(asked)}
