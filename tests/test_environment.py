"""On what something ran and what it took, of one part or of several."""

import datetime
import json
import pathlib
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glomjax import environment
from glomjax.environment import (
    Usage,
    describe_environment,
    in_parts,
    parts_of,
    processor,
    together,
    usable_cores,
)

PARTS = st.lists(
    st.fixed_dictionaries(
        {"command": st.lists(st.text(max_size=3), max_size=2)},
        optional={"seconds": st.floats(0, 1e6), "peak_memory_bytes": st.integers(1, 2**40)},
    ),
    min_size=1,
    max_size=5,
)


def test_it_can_be_kept_as_json_and_says_what_a_reviewer_asks():
    found = describe_environment("float32") | Usage().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["processor"]
    assert found["cores"] == usable_cores() >= 1
    assert found["memory_bytes"] > found["peak_memory_bytes"] > 2**20
    assert found["peak_device_memory_bytes"] is None  # a CPU does not tell
    assert found["processes"] == 1
    assert found["packages"]["jax"] != "not installed"


def test_a_clock_that_is_set_changes_no_duration(monkeypatch):
    now, begun = [50.0], time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    usage = Usage()
    monkeypatch.setattr(time, "time", lambda: begun - 86400)
    now[0] += 12.3456
    found = usage.to_dict()
    assert found["seconds"] == 12.346
    started = datetime.datetime.fromisoformat(found["started"])
    assert started.utcoffset() == datetime.timedelta(0)
    assert abs(started.timestamp() - begun) < 60


def test_where_linux_has_no_name_of_the_processor_lscpu_has(monkeypatch):
    read = pathlib.Path.read_text
    numbers = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"

    def reads(path, *arguments, **options):
        return numbers if str(path) == "/proc/cpuinfo" else read(path, *arguments, **options)

    def told(command, **options):
        assert command == ["lscpu"]
        text = "Architecture:  aarch64\nModel name:    Neoverse-V1\nModel: 1\n"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    def missing(command, **options):
        raise FileNotFoundError

    monkeypatch.setattr(pathlib.Path, "read_text", reads)
    monkeypatch.setattr(environment.subprocess, "run", told)
    assert processor() == "Neoverse-V1"
    monkeypatch.setattr(environment.subprocess, "run", missing)
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    assert processor() == "aarch64"


@given(PARTS)
def test_parts_come_back_from_a_file_and_their_seconds_add_up(parts):
    whole = json.loads(json.dumps(in_parts(parts)))
    assert parts_of(whole) == parts
    assert whole["command"] == parts[0]["command"]
    assert ("resumed" in whole) == (len(parts) > 1)
    if all("seconds" in part for part in parts):
        assert whole["total_seconds"] == pytest.approx(sum(p["seconds"] for p in parts), abs=1e-3)
    else:  # a sum without one of them would be too small
        assert whole["total_seconds"] is None


@pytest.mark.parametrize("resumed", [5, "x", [1], {"seconds": 1}])
def test_parts_that_are_none_are_refused(resumed):
    with pytest.raises(ValueError, match="resumed"):
        parts_of({"command": [], "resumed": resumed})


def test_several_runs_on_one_machine_have_one_environment():
    machine, other = {"processor": "A", "cores": 2}, {"processor": "B", "cores": 8}
    begun = ("2026-01-03T10:00:00+00:00", "2026-01-02T23:00:00+00:00")
    runs = [
        machine | {"seed": 0, "started": begun[0], "seconds": 1.5, "peak_memory_bytes": 10},
        machine | {"seed": 1, "started": begun[1], "seconds": 2.0, "peak_memory_bytes": 30},
        other | {"seed": 1, "seconds": 4, "peak_memory_bytes": 20, "peak_device_memory_bytes": 7},
    ]
    assert together(runs) == {
        "started": begun[1],
        "total_seconds": 7.5,
        "peak_memory_bytes": 30,
        "peak_device_memory_bytes": 7,
        "environments": [machine, other],
    }
    unknown = together([{}])
    assert unknown.pop("environments") == []
    assert set(unknown.values()) == {None}
