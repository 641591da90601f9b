"""How messages name what is to be set, to a script and at the command line."""

import pytest

from glomjax.errors import argument, assignment, at_command_line


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
        (lambda: argument("--overwrite", True), "overwrite=True", "--overwrite"),
        (lambda: argument("--target-mpp", 0.5), "target_mpp=0.5", "--target-mpp=0.5"),
    ],
)
def test_messages_speak_the_language_of_their_reader(made, script, command):
    assert made() == script
    with at_command_line():
        assert made() == command
    assert made() == script
