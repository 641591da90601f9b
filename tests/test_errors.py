"""How messages name what is to be set, to a script and at the command line."""

import pytest

from glomjax.errors import argument, assignment, at_command_line, printable, same_again


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
            "--config.data.classes=\"('other', 'glomerulus')\"",
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
    ("text", "shown"),
    [
        ("Müller 腎臓 $x_1$ [b]", "Müller 腎臓 $x_1$ [b]"),
        ("a\nb\r\nc\td", r"a\nb\r\nc\td"),
        ("\x1b[31m\x00\x85\u2028\u2029\udcff", r"\x1b[31m\x00\x85\u2028\u2029\udcff"),
        ("3 images cannot be read:\n  a\n  b\nc", "3 images cannot be read:\n  a\n  b\\nc"),
        (5, "5"),
    ],
)
def test_what_is_printed_stays_on_its_line_and_commands_no_terminal(text, shown):
    assert printable(text) == shown
