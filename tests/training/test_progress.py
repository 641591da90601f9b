"""What a run says: its lines on a terminal, and event files that TensorBoard can read."""

import io
import logging
import pathlib
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from glomjax.errors import UserError
from glomjax.training.progress import RUN_LOG, Curves, TensorBoard, Terminal


def row(epoch: int, shift: float = 0.0) -> dict:
    """A line of `metrics.jsonl`."""
    return {
        "epoch": epoch,
        "step": 7 * epoch,
        "learning_rate": 2e-3 / 2**epoch,
        "loss": 0.7 - 0.1 * epoch + shift,
        "total_loss": 1.0 - 0.1 * epoch + shift,
        "accuracy": 0.65 + 0.05 * epoch,
        "val_loss": 0.75 - 0.1 * epoch,
        "val_accuracy": 0.55 + 0.05 * epoch,
        "val_auroc": 0.75 + 0.05 * epoch,
        "time": {
            "seconds": 100.0,
            "images_per_second": 11.5 + epoch,
            "step_images_per_second": 14.5,
            "input_images_per_second": 90.0,
        },
    }


def events(folder: pathlib.Path) -> list[Event]:
    """All records of all event files: uint64 length, its CRC, the event, its CRC."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, place = file.read_bytes(), 0
        while place + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            if place + 12 + length + 4 > len(content):
                break  # still being written
            found.append(Event.FromString(content[place + 12 : place + 12 + length]))
            place += 12 + length + 4
    return found


def scalars(folder: pathlib.Path) -> dict[tuple[str, int], float]:
    """{(tag, step): value}."""
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def test_the_event_files_hold_the_numbers_of_the_metrics(tmp_path):
    board = TensorBoard(tmp_path, 1, True)
    for epoch in (1, 2, 3):
        board.epoch(row(epoch))
    board.close()
    expected = {}
    for epoch in (1, 2, 3):
        line = row(epoch)
        for name in ("learning_rate", "loss", "total_loss", "accuracy"):
            expected[f"{name}/training", epoch] = line[name]
        for name in ("loss", "accuracy", "auroc"):
            expected[f"{name}/validation", epoch] = line[f"val_{name}"]
        expected["images_per_second/training", epoch] = line["time"]["images_per_second"]
    got = scalars(tmp_path)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == np.float32(value), key


def test_an_epoch_can_be_watched_while_the_run_goes_on(tmp_path):
    board = TensorBoard(tmp_path, 1, True)
    for epoch in (1, 2):
        board.epoch(row(epoch))
        end = time.monotonic() + 20
        while ("images_per_second/training", epoch) not in scalars(tmp_path):
            assert time.monotonic() < end
            time.sleep(0.05)
    board.close()


def test_a_run_that_goes_on_hides_what_it_repeats(tmp_path):
    for first in (1, 3):
        board = TensorBoard(tmp_path, first, True)
        for epoch in range(first, first + 3):
            board.epoch(row(epoch))
        board.close()
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [3]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path):
    board = TensorBoard(tmp_path / "board", 1, False)
    board.epoch(row(1))
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_nan_is_written_as_such(tmp_path):
    board = TensorBoard(tmp_path, 1, True)
    board.epoch(row(1) | {"val_auroc": float("nan")})
    board.close()
    assert np.isnan(scalars(tmp_path)["auroc/validation", 1])


@given(
    epochs=st.lists(st.floats(0.01, 1000), min_size=1, max_size=60),
    costs=st.lists(st.floats(0.2, 2), min_size=61, max_size=61),
)
def test_drawing_takes_little_of_the_time_and_long_epochs_are_drawn_each(epochs, costs):
    now, drawn = 0.0, []

    def draw():
        nonlocal now
        now += costs[len(drawn)]
        drawn.append(now)

    curves = Curves(draw, lambda: now)
    for seconds in epochs:
        before = len(drawn)
        now += seconds
        curves.epoch()
        if seconds > 2 * Curves.SPACING:  # longer than any drawing asks for
            assert len(drawn) == before + 1
    # The last one is paid for by the time that follows.
    assert sum(costs[: max(len(drawn) - 1, 0)]) <= 0.02 * now
    before = len(drawn)
    curves.draw()
    assert len(drawn) == before + 1


def test_an_epoch_is_one_line_with_its_numbers(capsys):
    Terminal().epoch(row(2), num_epochs=10, epochs_left=7, best=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "epoch   2/10  loss 0.5000  accuracy 0.750  val_loss 0.5500  val_accuracy 0.650  "
        "val_auroc 0.850  lr 5.0e-04  13.5 images/s (step 14.5, input 90)  2 min  12 min left at "
        "least  *best"
    )
    Terminal().epoch(row(2), num_epochs=2, epochs_left=0, best=False)
    assert capsys.readouterr().out.endswith("13.5 images/s (step 14.5, input 90)  2 min\n")


def test_plain_lines_have_no_markup_and_no_bar(capsys):
    terminal = Terminal()
    terminal.say("a [bold] patch")
    terminal.banner("look")
    with terminal.epoch_bar(1, 3, 1) as bar:
        bar.advance(8)
    assert capsys.readouterr().out == "a [bold] patch\n*** look ***\n"


def say_all(terminal: Terminal) -> None:
    terminal.say("a line")
    terminal.banner("look")
    terminal.epoch(row(1), 10, 3, True)


def test_a_terminal_that_does_not_print_leaves_warnings_to_the_logger(capsys, caplog, tmp_path):
    terminal = Terminal(prints=False)
    terminal.keep_in(tmp_path)
    with caplog.at_level(logging.INFO, "glomjax"):
        say_all(terminal)
    assert capsys.readouterr().out == ""
    levels = [(record.name, record.levelname) for record in caplog.records]
    assert levels == [("glomjax", "INFO"), ("glomjax", "WARNING"), ("glomjax", "INFO")]
    assert len((tmp_path / RUN_LOG).read_text().splitlines()) == 3


def test_a_process_that_does_not_speak_says_nothing_anywhere(capsys, caplog, tmp_path):
    terminal = Terminal(speaks=False)
    terminal.keep_in(tmp_path)
    with caplog.at_level(logging.INFO, "glomjax"):
        say_all(terminal)
    assert (capsys.readouterr().out, caplog.records, list(tmp_path.iterdir())) == ("", [], [])


@pytest.mark.parametrize(
    ("level", "printed", "logged"),
    [
        (logging.INFO, "", ["INFO a line", "WARNING look"]),
        (logging.WARNING, "a line\n", ["WARNING look"]),
        (logging.ERROR, "a line\n*** look ***\n", []),
    ],
)
def test_what_a_script_s_own_logging_shows_is_not_printed_again(capsys, level, printed, logged):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    handler.setLevel(level)
    logger = logging.getLogger("glomjax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        terminal = Terminal()
        terminal.say("a line")
        terminal.banner("look")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    captured = capsys.readouterr()
    assert captured.out == printed
    assert captured.err.splitlines() == logged


def test_logging_is_left_to_the_script(tmp_path):
    program = """
import logging, pathlib, sys
import numpy as np
import glomjax.training
from glomjax import checkpoints
print(logging.root.handlers)
folder = pathlib.Path(sys.argv[1])
checkpoints.save(folder, {"x": np.zeros(1)}, {})
checkpoints.restore(folder)
print(logging.root.handlers)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "last")]
    assert subprocess.check_output(command, text=True) == "[]\n[]\n"


def test_a_name_stays_on_its_line_everywhere(capsys, tmp_path):
    terminal = Terminal()
    terminal.keep_in(tmp_path)
    terminal.say("patient 'A\n1\x1b[2J\u2028'")
    assert capsys.readouterr().out == r"patient 'A\n1\x1b[2J\u2028'" + "\n"
    (line,) = (tmp_path / RUN_LOG).read_text().splitlines()
    assert line.endswith(r"patient 'A\n1\x1b[2J\u2028'")


def as_terminal(monkeypatch, encoding: str) -> tuple[io.BytesIO, io.TextIOWrapper]:
    """(what is written, a standard output that passes for a terminal, with bars and frames)."""
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding=encoding)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    return output, stream


def test_a_terminal_shows_all_words_of_a_banner(monkeypatch):
    output, stream = as_terminal(monkeypatch, "utf-8")
    monkeypatch.setenv("COLUMNS", "80")
    words = [f"word{n}" for n in range(60)]
    Terminal().banner(" ".join(words))
    stream.flush()
    assert re.findall(r"word\d+", output.getvalue().decode()) == words


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_shows_a_replacement_for_what_it_cannot_show(monkeypatch, tmp_path, encoding):
    output, stream = as_terminal(monkeypatch, encoding)
    terminal = Terminal()
    terminal.keep_in(tmp_path)
    terminal.say("腎臓 \udcff")
    terminal.banner("腎臓")
    with terminal.epoch_bar(1, 3) as bar:
        bar.advance(8)
    stream.flush()
    assert rb"?? \udcff" in output.getvalue()
    assert b"1/3 batches" in output.getvalue()
    assert "腎臓" in (tmp_path / RUN_LOG).read_text(encoding="utf-8")


def test_what_ends_a_run_is_in_its_log(tmp_path):
    terminal = Terminal(prints=False)
    terminal.keep_in(tmp_path)
    with pytest.raises(UserError), terminal.recording_failure():
        raise UserError("a sentence")
    assert (tmp_path / RUN_LOG).read_text().endswith(" ended by UserError: a sentence\n")
