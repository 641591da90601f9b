"""What a run says: its lines on a terminal, and event files that TensorBoard can read."""

import pathlib
import struct
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from glomjax.training.progress import TensorBoard, Terminal


def row(epoch: int, shift: float = 0.0) -> dict:
    """A line of `metrics.jsonl`."""
    return {
        "epoch": epoch,
        "step": 7 * (epoch + 1),
        "learning_rate": 1e-3 / 2**epoch,
        "loss": 0.6 - 0.1 * epoch + shift,
        "total_loss": 0.9 - 0.1 * epoch + shift,
        "accuracy": 0.7 + 0.05 * epoch,
        "val_loss": 0.65 - 0.1 * epoch,
        "val_accuracy": 0.6 + 0.05 * epoch,
        "val_auroc": 0.8 + 0.05 * epoch,
        "time": {
            "seconds": 100.0,
            "images_per_second": 12.5 + epoch,
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
    board = TensorBoard(tmp_path, 0, True)
    for epoch in range(3):
        board.epoch(row(epoch))
    board.close()
    expected = {}
    for epoch in range(3):
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
    board = TensorBoard(tmp_path, 0, True)
    for epoch in range(2):
        board.epoch(row(epoch))
        end = time.monotonic() + 20
        while ("images_per_second/training", epoch) not in scalars(tmp_path):
            assert time.monotonic() < end
            time.sleep(0.05)
    board.close()


def test_a_run_that_goes_on_hides_what_it_repeats(tmp_path):
    for first in (0, 2):
        board = TensorBoard(tmp_path, first, True)
        for epoch in range(first, first + 3):
            board.epoch(row(epoch))
        board.close()
    starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert starts == [2]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path):
    board = TensorBoard(tmp_path / "board", 0, False)
    board.epoch(row(0))
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_nan_is_written_as_such(tmp_path):
    board = TensorBoard(tmp_path, 0, True)
    board.epoch(row(0) | {"val_auroc": float("nan")})
    board.close()
    assert np.isnan(scalars(tmp_path)["auroc/validation", 0])


def test_an_epoch_is_one_line_with_its_numbers(capsys):
    Terminal().epoch(row(1), num_epochs=10, epochs_left=7, best=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "epoch   2/10  loss 0.5000  accuracy 0.750  val_loss 0.5500  val_accuracy 0.650  "
        "val_auroc 0.850  lr 5.0e-04  13.5 images/s (step 14.5, input 90)  2 min  12 min left at "
        "least  *best"
    )
    Terminal().epoch(row(1), num_epochs=2, epochs_left=0, best=False)
    assert capsys.readouterr().out.endswith("13.5 images/s (step 14.5, input 90)  2 min\n")


def test_plain_lines_have_no_markup_and_no_bar(capsys):
    terminal = Terminal()
    terminal.say("a [bold] patch")
    terminal.banner("look")
    with terminal.epoch_bar(0, 3, 1) as bar:
        bar.advance(8)
    assert capsys.readouterr().out == "a [bold] patch\n*** look ***\n"


@pytest.mark.parametrize("method", ["say", "banner"])
def test_a_quiet_terminal_says_nothing(capsys, method):
    terminal = Terminal(quiet=True)
    getattr(terminal, method)("x")
    terminal.epoch(row(0), 10, 3, True)
    assert capsys.readouterr().out == ""
