"""Two spellings of one name are never two patients, sites or classes; a missing name is none."""

import string
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from glomjax.data.identities import cell, check_spellings, is_missing, name_of, normal_form
from glomjax.errors import UserError


@pytest.mark.parametrize(
    "spellings",
    [
        ("Case-01", "CASE_01", "case 01", "case\u00a001", "  Case--01 ", "Case\t1", "case01"),
        ("7", "007", "7.0", "7,0", "\u0667", "7.", " 7 ", "\uff17", "'7", '="7"', "#7"),
        ("1000", "1E+3", "1.000e3"),
        ("Zu\u0308rich", "Z\u00fcrich", "Z\u00dcRICH", "Zurich"),
        (
            "P1",
            "\u200bP1",
            "\ufeffP1",
            "p1",
            "P\u00ad1",
            "b'P1'",
            "P_1",
            "P-1",
            "P+1",
            "P=1",
            "P\u20111",
            "P01",
        ),
        ("S1", "S1.svs", "S1.NDPI", "s1.ome.tiff"),
        ("\uc0ac\uad6c\uccb4", unicodedata.normalize("NFD", "\uc0ac\uad6c\uccb4")),
        ("Stra\u00dfe", "STRASSE"),
        ("A1", "\u04101", "\u03911"),
        ("\u0141\u00f3d\u017a", "Lodz"),
        ("M&amp;M", "M&M"),
        ("P\u22121", "P-1"),
        ("P\u3164 1", "P\ufe0f1"),
    ],
)
def test_what_reads_alike_has_one_form_and_is_refused_with_all_spellings(spellings):
    assert len({normal_form(name) for name in spellings}) == 1
    with pytest.raises(UserError, match="1 patient in several spellings") as caught:
        check_spellings([*spellings, "", "another"], "patient", "'m.csv'")
    message = str(caught.value)
    assert message.isprintable()
    assert message.count(" = ") == len(spellings)  # one of them in the way out
    assert "config.data.exact_names = True" in message
    note = check_spellings([*spellings, "another"], "patient", "'m.csv'", exact=True)
    assert note.startswith("As data.exact_names asks, these are different patients: ")


def test_names_that_differ_keep_forms_of_their_own():
    names = [
        "P1",
        "P2",
        "P11",
        "1-1",
        "11",
        "1.5",
        "0.5",
        "A",
        "-",
        "P1a",
        "P1+",
        "PAS+",
        "PAS-",
        "<5",
        ">5",
        "AB",
        "A-B",
    ]
    names += ["1.01", "1E1", "10", "-1", "1", "P10", "\u0438", "\u0439", "+"]
    assert len({normal_form(name) for name in names}) == len(names)
    assert check_spellings(names, "patient", "'m.csv'") == ""
    assert check_spellings(names, "patient", "'m.csv'", exact=True) == ""


@given(
    st.text(string.ascii_letters + string.digits + " _-.", min_size=1, max_size=12),
    st.sampled_from([str.upper, str.lower, lambda t: f" {t}\u200b", lambda t: t.replace("_", "-")]),
)
def test_a_form_does_not_change_with_the_spelling_nor_when_it_is_formed_again(name, respell):
    # A hyphen in front of a number is its sign, which an underscore is not.
    assume(respell(name).strip(" \u200b")[:1] != "-" or name.strip()[:1] == "-")
    assert normal_form(respell(name)) == normal_form(name)
    assert normal_form(normal_form(name)) == normal_form(name)


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["0", "1", "1.0"], True),
        (["True", "1", "0"], True),
        (["other", "other\u00a0", "glomerulus"], True),
        (["non-x", "non_x", "x"], True),
        (["glomerulus", "glomeruli", "other"], True),
        (["glom\u00e9rule", "Glomerules", "autre"], True),
        (["other", "others", "glomerulus"], True),
        (["other", "other (1)", "glomerulus"], True),
        (["other", "other - Copy", "glomerulus"], True),
        (["non-glomerulus", "nonglom", "x"], True),
        (["no glomerulus", "No_Glomeruli"], True),
        (["neg", "negative", "positive"], True),
        (["glomerulus", "glomerulus_sclerosed", "other"], False),
        (["-1", "1"], False),
        (["PAS", "PAS-", "PAS+"], False),
        (["a", "b"], False),
    ],
)
def test_one_class_in_several_spellings_is_refused(names, refused):
    if refused:
        with pytest.raises(UserError, match="1 class in several spellings"):
            check_spellings(names, "class", "'m.csv'")
    else:
        assert check_spellings(names, "class", "'m.csv'") == ""


MISSING = [
    "nan",
    "NaN",
    "NA",
    "n/a",
    "N.A.",
    "#N/A",
    "<NA>",
    "None",
    "NONE",
    "null",
    "nil",
    "NaT",
    "missing",
    "-",
    "--",
    "—",
    "?",
    "???",
    ".",
    "unknown",
    "Unknown",
    "(none)",
    "[null]",
    "#REF!",
    "#DIV/0!",
    "-nan",
    "1.#QNAN",
    "…",
    "'NA'",
    "unbekannt",
    "(blank)",
    "\\N",
    "n.d.",
    "not reported",
    "Not_Available",
    "#NV",
    "#WERT!",
    "#NOM?",
    "Err:502",
    "k. A.",
    "unknown patient",
    "no id",
    "nicht angegeben",
    "entf\u00e4llt",
    "\u672a\u77e5",
    "\uc54c \uc218 \uc5c6\uc74c",
    "NA_character_",
    "idem",
    "\uff2e\uff21",
]


@pytest.mark.parametrize("text", [*MISSING, "", "  ", "\u200b", "not available", "N / A"])
def test_words_for_a_missing_value_are_empty_cells(text):
    assert is_missing(text)
    assert cell(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "+",
        "no",
        "No1",
        "Nonet",
        "#7",
        "-1",
        "Nancy",
        "P1",
        "x",
        "other",
        "Nan Li",
        "N1",
        "value",
    ],
)
def test_other_words_are_kept_without_the_blanks_around_them(text):
    assert cell(f" {text}\t") == text


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("P1", "P1"),
        (b"P1", "P1"),
        (np.bytes_(b"P1"), "P1"),
        (1, "1"),
        (1.0, "1"),
        (np.float32(1), "1"),
        (np.int64(1), "1"),
        (1.5, "1.5"),
        (None, ""),
        (float("nan"), ""),
        (np.datetime64("NaT"), ""),
        ("NA", ""),
    ],
)
def test_names_from_arrays_are_one_whatever_their_type(value, name):
    assert name_of(value) == name


def test_floats_that_cannot_tell_names_apart_are_refused():
    with pytest.raises(UserError, match=r"1e\+17 is a float above 2\^53"):
        name_of(1e17)
