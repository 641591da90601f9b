"""A part of `benchmarks/stress.py`: whole runs that are killed, find their disk full, or train on
and on."""

import os
import pathlib
import subprocess
import sys

import pytest

STRESS = pathlib.Path(__file__).parents[1] / "benchmarks" / "stress.py"


@pytest.mark.parametrize(
    ("kind", "count", "counted"),
    [
        ("kills", 4, "runs that ended as undisturbed ones"),
        ("disk", 3, "3 runs that ended as undisturbed ones"),
        ("epochs", 40, "open files in the last fifth"),
    ],
)
def test_runs_end_as_undisturbed_ones_or_go_on_to_that(kind, count, counted):
    command = [sys.executable, STRESS, kind, f"--count={count}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert counted in done.stdout
