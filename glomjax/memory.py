"""How much memory there is for what is about to be computed, and how much was taken."""

import contextlib
import os
import pathlib
import resource
import sys

import jax

_CGROUP = pathlib.Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Bytes that a program can still take: on a device those that its runtime has left, on a CPU
    those of the host; None where that is not told."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else int(limit) - int(stats.get("bytes_in_use", 0))
    return free_host_bytes()


def free_host_bytes() -> int | None:
    """Bytes that a process can still take of the host's memory: the least of what the machine and
    the control groups of this process leave; None where that is not told."""
    free = _of_machine("MemAvailable", "SC_AVPHYS_PAGES"), *_free_of_groups()
    return min((value for value in free if value is not None), default=None)


def host_bytes() -> int | None:
    """Bytes of the host's memory that a process can have at most: those of the machine, or the
    least limit of the control groups of this process; None where that is not told."""
    limits = [_limit(folder / limit) for folder, limit, _ in _groups()]
    most = _of_machine("MemTotal", "SC_PHYS_PAGES"), *limits
    return min((value for value in most if value is not None), default=None)


def peak_host_bytes() -> int:
    """The most bytes of the host's memory that this process has had at once so far."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        # What `getrusage` counts begins with the memory of whoever started this process.
        return 1024 * int(_fields(pathlib.Path("/proc/self/status"))["VmHWM"].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_device_bytes() -> int | None:
    """The most bytes that this process has had at once so far on one of its devices; None where
    they do not tell, as a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [int(found["peak_bytes_in_use"]) for found in stats if "peak_bytes_in_use" in found]
    return max(peaks, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or jax says that the host or a device has no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _of_machine(name: str, pages: str) -> int | None:
    """Bytes that Linux calls `name`, or, elsewhere, as many pages as the system tells."""
    try:
        return 1024 * int(_fields(pathlib.Path("/proc/meminfo"))[name].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        try:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return None


def _fields(file: pathlib.Path) -> dict[str, str]:
    """Of a file with lines `name: value`."""
    return dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)


def _limit(file: pathlib.Path) -> int | None:
    """Bytes that a control group may have; None where it has no limit, or tells none."""
    try:
        most = int(file.read_text())
    except (OSError, ValueError):  # "max", too
        return None
    return most if most < 2**60 else None


def _free_of_groups() -> list[int | None]:
    """Of the control group of this process and each one above it, in version 2 and 1."""
    found: list[int | None] = []
    for folder, limit, usage in _groups():
        if (most := _limit(folder / limit)) is None:
            continue
        try:
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # Pages of files, and what the kernel has noted of them, are given back before the limit is
        # felt. In version 1 those of the groups below are counted by a name of their own.
        given_back = sum(
            int(stat.get(f"total_{name}", stat.get(name, 0)))
            for name in ("inactive_file", "active_file", "slab_reclaimable")
        )
        found.append(most - used + given_back)
    return found


def _groups() -> list[tuple[pathlib.Path, str, str]]:
    try:
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = _CGROUP / "memory" if kinds else _CGROUP
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if kinds
            else ("memory.max", "memory.current")
        )
        folder = root / path.lstrip("/")
        for part in (folder, *folder.parents):
            if part == root or root in part.parents:
                groups.append((part, *names))
    return groups
