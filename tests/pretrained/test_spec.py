"""What a network carries comes back from its JSON form to the last bit, and names nobody."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glomjax.data.identities import normal_form
from glomjax.errors import UserError
from glomjax.models import MODELS, settled_options
from glomjax.preprocessing.appearance import Appearance
from glomjax.preprocessing.preprocessing import IMAGENET, Preprocessing
from glomjax.preprocessing.stain_normalization import STATISTICS, StainNormalizer
from glomjax.pretrained.spec import (
    FORMAT,
    NetworkSpec,
    SplitRecord,
    TrainingRecord,
    name_digests,
    record_split,
)

SALT = "00112233445566778899aabbccddeeff"

numbers = st.floats(1e-6, 1e6, allow_nan=False)
triples = st.tuples(numbers, numbers, numbers)
texts = st.text(max_size=12)
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
counts = st.none() | st.integers(0, 10**4)
stains = st.one_of(
    st.none(),
    *(
        st.tuples(*[numbers] * len(names)).map(lambda target, m=method: StainNormalizer(m, target))
        for method, names in STATISTICS.items()
    ),
)
FIELDS = {
    Preprocessing: {
        "name": st.sampled_from(["imagenet", "standardize"]),
        "mean": triples,
        "std": triples,
        "resize": st.sampled_from(["stretch", "pad", "crop"]),
        "target_mpp": st.none() | numbers,
        "seen_mpp": st.none() | numbers,
        "stain": stains,
        "bits": st.sampled_from([0, 8, 10, 12, 14, 16]),
        "decoding": st.sampled_from([1, 2]),
    },
    Appearance: {
        "mean": triples,
        "precision": st.tuples(triples, triples, triples),
        "hues": st.lists(triples, max_size=3).map(tuple),
        "hue_deviations": triples,
        "units": st.tuples(numbers, numbers),
        "false_alarms": numbers,
        "groups": st.integers(3, 100),
        "kind": st.sampled_from(["patient", "slide", "image"]),
    },
    SplitRecord: {
        "images": st.integers(0, 10**6),
        "patients": counts,
        "slides": counts,
        "patient_digests": st.lists(texts, max_size=3).map(tuple),
        "slide_digests": st.lists(texts, max_size=3).map(tuple),
        "image_hashes": texts,
    },
}
splits = st.builds(SplitRecord, **FIELDS[SplitRecord])
FIELDS[TrainingRecord] = {
    "salt": texts,
    "train": splits,
    "validation": splits,
    "regime": texts,
    "permuted_labels": st.booleans(),
    "augmentation": st.dictionaries(texts, numbers, max_size=3),
    "initial_weights": texts,
    "license": texts,
    "citation": texts,
    "glomjax_version": texts,
    "images_hashed_as": st.sampled_from(["stored", "prepared"]),
}
FIELDS[TrainingRecord]["ancestors"] = st.lists(
    st.builds(TrainingRecord, **FIELDS[TrainingRecord]), max_size=2
).map(tuple)
FIELDS[NetworkSpec] = {
    "architecture": texts,
    "options": st.dictionaries(
        texts, st.one_of(st.booleans(), st.integers(), numbers, texts, sizes), max_size=4
    ),
    "outputs": st.integers(0, 1000),
    "classes": st.lists(texts, max_size=4).map(tuple),
    "image_size": sizes,
    "preprocessing": st.builds(Preprocessing, **FIELDS[Preprocessing]),
    "source_size": st.none() | sizes,
    "source_sizes": st.none() | st.tuples(sizes, sizes),
    "appearance": st.none() | st.builds(Appearance, **FIELDS[Appearance]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "native": st.sampled_from(["auto", "off"]),
    "symmetries": st.booleans(),
    "device_batch": st.integers(1, 1024),
    "temperature": st.floats(0.1, 10),
    "threshold": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "threshold_rule": texts,
    "trained_on": st.none() | st.builds(TrainingRecord, **FIELDS[TrainingRecord]),
}


@settings(max_examples=60)
@given(st.builds(NetworkSpec, **FIELDS[NetworkSpec]))
def test_a_spec_comes_back_from_json(spec):
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict())), "it") == spec


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_every_field_is_drawn_in_that_test(kind):
    assert {field.name for field in dataclasses.fields(kind)} == set(FIELDS[kind])


SPEC = NetworkSpec(
    architecture="davit_tiny",
    options=settled_options("davit_tiny", (96, 128), {"dropout_rate": 0.3}),
    outputs=1,
    classes=("other", "glomerulus"),
    image_size=(96, 128),
    preprocessing=IMAGENET,
)


def test_a_newer_format_is_refused_and_missing_fields_take_defaults():
    stored = SPEC.to_dict()
    with pytest.raises(UserError, match=rf"it has format {FORMAT + 1} and .* install a newer"):
        NetworkSpec.from_dict(stored | {"format": FORMAT + 1}, "it")
    for field in ("symmetries", "trained_on", "source_size", "precision", "native"):
        del stored[field]
    stored["preprocessing"].pop("target_mpp")
    assert NetworkSpec.from_dict(stored, "it") == SPEC
    # What a later version of the same format adds is no reason to refuse it.
    assert NetworkSpec.from_dict(SPEC.to_dict() | {"more": 1}, "it") == SPEC


def test_an_older_version_reads_what_has_no_temperature_and_no_threshold_and_refuses_the_rest():
    assert SPEC.to_dict()["format"] == 2
    for change in ({"threshold": 0.3}, {"temperature": 2.0}):
        stored = dataclasses.replace(SPEC, **change).to_dict()
        assert stored["format"] == FORMAT == 3
    for field in ("temperature", "threshold", "threshold_rule"):
        del stored[field]
    assert NetworkSpec.from_dict(stored, "it") == SPEC


def nested(depth: int) -> list:
    inside: list = []
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "x"},
        {"options": 3},
        {"preprocessing": {}},
        {"classes": nested(5000)},
        {"trained_on": {"train": {"patient_digests": 3}}},
        {"threshold": 1.0},
        {"threshold": None},
        {"temperature": 0.0},
        {
            "preprocessing": SPEC.preprocessing.to_dict()
            | {"stain": {"method": "reinhard", "target": {"lightness_mean": 10**400}}}
        },
    ],
    ids=range(9),
)
def test_a_damaged_spec_is_one_sentence(damage):
    with pytest.raises(UserError, match="it is damaged: its spec is not one of a network"):
        NetworkSpec.from_dict(SPEC.to_dict() | damage, "it")


def test_other_rules_of_decoding_are_refused():
    stored = SPEC.to_dict()
    stored["preprocessing"]["decoding"] = 99
    with pytest.raises(UserError, match="decoded by version 99 of the rules"):
        NetworkSpec.from_dict(stored, "it")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"decoding": "x" * 10_000}, "decoded by version 'xxx"),
        ({"stain": {"method": 10**4000, "target": {}}}, "the stain normalisation 1000"),
    ],
    ids=["decoding", "stain"],
)
def test_an_absurd_value_is_cut_in_one_short_sentence(damage, message):
    stored = SPEC.to_dict()
    stored["preprocessing"] |= damage
    with pytest.raises(UserError, match=message) as caught:
        NetworkSpec.from_dict(stored, "it")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", MODELS)
def test_every_option_of_a_network_is_settled(name):
    options = settled_options(name, (96, 128), {})
    assert None not in options.values()
    json.dumps(options)
    if not name.startswith("davit"):
        return
    assert options["head_norm_first"] is True
    assert options["window_size"] == (3, 4)
    for size, given_options, window in (
        ((280, 280), {}, 9),
        ((280, 280), {"preset": "msft"}, 7),
        ((96, 96), {"window_size": 5}, 5),
    ):
        assert settled_options(name, size, given_options)["window_size"] == window


def test_a_patient_can_be_asked_for_and_not_listed():
    digests = name_digests(["Case 7", "case-7", "P1", "7", "007", "7.0"], SALT)
    assert len(digests) == 3
    assert set(name_digests(["CASE_7"], SALT)) < set(digests)
    assert not set(name_digests(["P2"], SALT)) & set(digests)
    assert not set(name_digests(["P1"], SALT[::-1])) & set(digests)
    # It is none of the hashes that a list of names could be run through in a moment.
    fast = {
        hashlib.new(algorithm, (start + name).encode()).hexdigest()[:32]
        for algorithm in ("sha256", "md5", "sha1", "blake2b")
        for name in ("p1", "P1", "7", "case-7")
        for start in ("", SALT)
    }
    assert not fast & set(digests)


def test_a_name_is_hashed_by_scrypt_with_the_cost_of_a_log_in(slow_hashes):
    # RFC 7914's parameters for interactive log-ins.
    cost = {"n": 2**14, "r": 8, "p": 1, "maxmem": 2**26, "dklen": 16}
    expected = hashlib.scrypt(normal_form("Case 7").encode(), salt=bytes.fromhex(SALT), **cost)
    assert name_digests(["case-7"], SALT) == (expected.hex(),)


def test_images_are_recorded_but_for_blank_ones():
    hashes = np.arange(20, dtype=np.uint64).reshape(5, 4)
    contents = np.array([1, 2, 0, 3, 4], np.uint64)
    record = record_split(["A", "A", "B", "B", "B"], None, hashes, contents, SALT)
    assert (record.images, record.patients, record.slides) == (5, 2, None)
    spelled = record_split(
        ["A", "a", "B", "B", "b"], ["S", "", "s", "", "T"], hashes, contents, SALT
    )
    assert (spelled.patients, spelled.slides) == (2, 2)
    assert record.hashes().tolist() == hashes[contents != 0].tolist()
    assert len(record.patient_digests) == 2
