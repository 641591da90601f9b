"""How messages name what is to be set, to a script and at the command line."""

import pytest
from ml_collections import ConfigDict

from glomjax.errors import (
    SHOWN,
    argument,
    assignment,
    at_command_line,
    printable,
    same_again,
    shown,
)


@pytest.mark.parametrize(
    ("made", "script", "command"),
    [
        (lambda: assignment("data.fold", 1), "config.data.fold = 1", "--config.data.fold=1"),
        (
            lambda: assignment("pretrained.source", "none"),
            "config.pretrained.source = 'none'",
            "--config.pretrained.source=none",
        ),
        (
            lambda: assignment("data.classes", ("other", "glomerulus")),
            "config.data.classes = ('other', 'glomerulus')",
            "--config.data.classes=other,glomerulus",
        ),
        (lambda: assignment("data.mpp"), "config.data.mpp", "--config.data.mpp"),
        (lambda: argument("--workdir"), "workdir", "--workdir"),
        (same_again, "the same call", "the same command"),
        (lambda: argument("--overwrite", True), "overwrite=True", "--overwrite"),
        (lambda: argument("--target-mpp", 0.5), "target_mpp=0.5", "--target-mpp=0.5"),
    ],
)
def test_messages_speak_the_language_of_their_reader(made, script, command):
    assert made() == script
    with at_command_line():
        assert made() == command
    assert made() == script


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Müller 腎臓 $x_1$ [b]", "Müller 腎臓 $x_1$ [b]"),
        ("a\nb\r\nc\td", r"a\nb\r\nc\td"),
        ("\x1b[31m\x00\x85\u2028\u2029\udcff", r"\x1b[31m\x00\x85\u2028\u2029\udcff"),
        ("3 images cannot be read:\n  a\n  b\nc", "3 images cannot be read:\n  a\n  b\\nc"),
        (5, "5"),
    ],
)
def test_what_is_printed_stays_on_its_line_and_commands_no_terminal(text, expected):
    assert printable(text) == expected


class Unkind:
    def __repr__(self):
        return "first\n   second\x1b[2J"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        ("it's", '"it\'s"'),
        ("a\nb\0\u202e", r"'a\nb\x00\u202e'"),
        ((1, "a", None), "(1, 'a', None)"),
        ([], "[]"),
        (Unkind(), r"first second\x1b[2J"),
        (10**5000, "a value of type int"),
        (ConfigDict({"a": 1}), "a: 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_is_shown_as_python_writes_it_on_one_line(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, (1,) * 10**6, tuple("abcdefgh" * 100), 10**4000],
    ids=["text", "tuple", "texts", "number"],
)
def test_a_long_value_is_cut_in_the_middle(value):
    text = shown(value)
    assert "..." in text
    assert len(text) <= SHOWN + 3
