"""Which class of a network each label of other data is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glomjax.data.classes import match_classes
from glomjax.errors import UserError

OURS = ("other", "glomerulus")


@pytest.mark.parametrize(
    ("labels", "rename", "meant"),
    [
        ({"other", "glomerulus"}, [], {"other": "other", "glomerulus": "glomerulus"}),
        ({"Other", "Glomeruli"}, [], {"Other": "other", "Glomeruli": "glomerulus"}),
        ({"glom", "Tubule", "Vessel"}, [("Tubule", "other"), ("other", "Vessel")],
         {"glom": "glomerulus", "Tubule": "other", "Vessel": "other"}),
        # Whoever has the classes exchanged says so for both.
        ({"other", "glomerulus"}, [("other", "glomerulus"), ("glomerulus", "other")],
         {"other": "glomerulus", "glomerulus": "other"}),
        ({"0", "1"}, [("0", "other"), ("1", "glomerulus")], {"0": "other", "1": "glomerulus"}),
    ],
)  # fmt: skip
def test_labels_are_classes_by_name_by_spelling_or_as_it_is_said(labels, rename, meant):
    found, notes = match_classes(labels, OURS, rename, "there")
    assert found == meant
    renamed = [label for label, name in meant.items() if label != name]
    assert len([note for note in notes if "is taken for the network's" in note]) == len(renamed)


@pytest.mark.parametrize(
    ("labels", "rename", "message"),
    [
        ({"other", "Tubule"}, [], "say what 'Tubule' is, as in rename 'Tubule=other'"),
        ({"0", "1"}, [], "the network has 'other', 'glomerulus', and 'there' has '0', '1'"),
        ({"other", "Tubule"}, [("Tubule", "vessel")], "names no class of the data and of the netw"),
        ({"other", "glomerulus"}, [("other", "glomerulus")], "can be meant in two ways"),
        ({"a", "b"}, [("a", "other"), ("a", "glomerulus")], "both 'other' and 'glomerulus'"),
    ],
)
def test_what_does_not_say_which_class_is_meant_is_refused(labels, rename, message):
    with pytest.raises(UserError, match=message):
        match_classes(labels, OURS, rename, "there")


names = st.sampled_from(["a", "b", "c", "d", "e"])


@given(st.sets(names, min_size=1), st.lists(names, min_size=2, unique=True), st.data())
def test_every_label_is_some_class_or_it_is_refused(labels, classes, data):
    pairs = st.tuples(st.sampled_from(sorted(labels)), st.sampled_from(classes))
    rename = data.draw(st.lists(pairs, max_size=3))
    try:
        meant, _ = match_classes(labels, classes, rename, "there")
    except UserError:
        return
    assert set(meant) == labels
    assert set(meant.values()) <= set(classes)
    turned, _ = match_classes(labels, classes, [(b, a) for a, b in rename], "there")
    assert turned == meant
