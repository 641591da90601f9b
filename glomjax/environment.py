"""On what something is computed, and what that takes: versions, devices, commit, time, memory."""

import contextlib
import datetime
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from glomjax.memory import host_bytes, peak_device_bytes, peak_host_bytes
from glomjax.ops import native

ENVIRONMENT = "environment.json"  # beside the results that it is about
# In which two runs on one machine differ.
_OF_A_PART = ("seed", "started", "seconds", "peak_memory_bytes", "peak_device_memory_bytes")
_PACKAGES = ("glomjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe_environment(precision: str) -> dict[str, Any]:
    """JSON-ready: packages, machine, devices of all processes, native kernels, git commit and
    command; of several processes, the machine of this one."""
    devices = jax.devices()
    return {
        "packages": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": usable_cores(),
        "memory_bytes": host_bytes(),
        "devices": [str(device.device_kind) for device in devices],
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "native_kernels": native.status(precision),
        "git": git_state(),
        "command": sys.argv,
    }


class Usage:
    """The time and memory that this process takes, from when this is made."""

    def __init__(self) -> None:
        self._started = datetime.datetime.now(datetime.UTC)
        self._begun = time.monotonic()  # no change of the clock changes a duration

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `started`, with the time zone; `seconds` until now; the most bytes of memory
        that this process had at once so far, and of its devices the one with the most, None where
        that is not told."""
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._begun, 3),
            "peak_memory_bytes": peak_host_bytes(),
            "peak_device_memory_bytes": peak_device_bytes(),
        }


def in_parts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of what went on once or more: the first one, with the seconds of all parts as
    `total_seconds` and the later ones as the list `resumed`."""
    first, *later = parts
    whole = {**first, "total_seconds": _total_seconds(parts)}
    return whole | ({"resumed": later} if later else {})


def parts_of(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `in_parts` was given; ValueError where it is not what that made."""
    first = dict(environment)
    first.pop("total_seconds", None)
    later = first.pop("resumed", [])
    if not isinstance(later, list) or not all(isinstance(part, dict) for part in later):
        raise ValueError("`resumed` is no list of environments")
    return [first, *later]


def together(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of several runs, such as the folds of a cross-validation.

    Args:
      parts: of all of them, as `parts_of` gives them.

    Returns:
      JSON-ready: when the first `started`; `total_seconds`, which are those of all whether or not
      they ran at the same time; the largest peaks of memory; and as `environments` what is left of
      the parts, which is often the same in all, once each.
    """
    rest = [{key: part[key] for key in part if key not in _OF_A_PART} for part in parts]
    return {
        "started": min(_known(parts, "started", str), default=None),
        "total_seconds": _total_seconds(parts),
        "peak_memory_bytes": max(_known(parts, "peak_memory_bytes", int), default=None),
        "peak_device_memory_bytes": max(
            _known(parts, "peak_device_memory_bytes", int), default=None
        ),
        "environments": [part for i, part in enumerate(rest) if part and part not in rest[:i]],
    }


def _total_seconds(parts: Sequence[Mapping[str, Any]]) -> float | None:
    """Of all parts; None where one does not tell, as those of an earlier version."""
    known = _known(parts, "seconds", int | float)
    return round(sum(known), 3) if len(known) == len(parts) else None


def _known(parts: Sequence[Mapping[str, Any]], key: str, kind: Any) -> list[Any]:
    return [part[key] for part in parts if isinstance(part.get(key), kind)]


def processor() -> str:
    """The name of the processor, as `lscpu` gives it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if name := _value_of("model name", lines):
            return name
    # Where Linux only gives numbers, as on ARM, `lscpu` knows whose they are.
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        variables = os.environ | {"LC_ALL": "C"}
        lines = _output(["lscpu"], env=variables).splitlines()
        if name := _value_of("Model name", lines):
            return name
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many this process may use, and with it its workers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str:
    """The version of an installed package, "not installed" of another."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_state() -> dict[str, Any]:
    """The `commit` of this package's own repository, and whether it has `uncommitted_changes`; None
    where it is installed elsewhere."""
    folder = pathlib.Path(__file__).parent
    try:
        # Installed inside somebody's repository, this file is not tracked there.
        _git(folder, "ls-files", "--error-unmatch", pathlib.Path(__file__).name)
        commit = _git(folder, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "uncommitted_changes": bool(_git(folder, "status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return {"commit": None, "uncommitted_changes": None}


def _value_of(name: str, lines: Sequence[str]) -> str:
    """Of the first line `name: value`, "" where there is none."""
    split = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in split if key.strip() == name), "")


def _git(folder: pathlib.Path, *arguments: str) -> str:
    return _output(["git", "-C", str(folder), *arguments])


def _output(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=env)
    return done.stdout.strip()
