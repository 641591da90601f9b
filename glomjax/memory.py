"""How much memory there is for what is about to be computed."""

import os
import pathlib

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
    known = [value for value in (_free_of_machine(), *_free_of_groups()) if value is not None]
    return min(known, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or jax says that the host or a device has no memory left."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _free_of_machine() -> int | None:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return 1024 * int(found["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        try:  # elsewhere than on Linux
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return None


def _free_of_groups() -> list[int | None]:
    """Of the control group of this process and each one above it, in version 2 and 1."""
    found: list[int | None] = []
    for folder, limit, usage in _groups():
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max" and int(most) < 2**60:
            # Pages of files, and what the kernel has noted of them, are given back before the limit
            # is felt. In version 1 those of the groups below are counted by a name of their own.
            given_back = sum(
                int(stat.get(f"total_{name}", stat.get(name, 0)))
                for name in ("inactive_file", "active_file", "slab_reclaimable")
            )
            found.append(int(most) - used + given_back)
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
