"""How much memory is left, by the machine and by the control groups."""

import pathlib
import resource

import pytest

from glomjax import memory


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Control groups in a folder: {path: (limit, used, of which files that nothing uses)}."""

    def make(of_process: str, limits: dict[str, tuple[str, int, int]], version: int = 2):
        limit, usage = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        root = tmp_path if version == 2 else tmp_path / "memory"
        for path, (most, used, files) in limits.items():
            folder = root / path
            folder.mkdir(parents=True, exist_ok=True)
            (folder / limit).write_text(f"{most}\n")
            (folder / usage).write_text(f"{used}\n")
            name = "inactive_file" if version == 2 else "total_inactive_file"
            (folder / "memory.stat").write_text(f"anon 5\n{name} {files}\n")
        monkeypatch.setattr(memory, "_CGROUP", tmp_path)
        listed = f"0::/{of_process}\n" if version == 2 else f"4:memory:/{of_process}\n"
        read = pathlib.Path.read_text

        def reads(path, *arguments, **options):
            if str(path) == "/proc/self/cgroup":
                return listed
            if str(path) == "/proc/meminfo":
                return "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"
            return read(path, *arguments, **options)

        monkeypatch.setattr(pathlib.Path, "read_text", reads)

    return make


def test_the_machine_limits_where_no_group_does(groups):
    groups("job", {"job": ("max", 100, 0)})
    assert memory.free_bytes() == 8000 * 1024


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_all_groups_above_counts_and_files_are_given_back(groups, version):
    groups("job/step", {"job/step": ("9000000", 1000, 0), "job": ("5000", 3000, 500)}, version)
    assert memory.free_bytes() == 5000 - 3000 + 500


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_process_can_have_at_most_is_the_least_limit(groups, version):
    groups("job/step", {"job/step": ("9000000", 1000, 0), "job": ("5000", 3000, 500)}, version)
    assert memory.host_bytes() == 5000
    groups("other", {"other": ("max" if version == 2 else str(2**63), 1, 0)}, version)
    assert memory.host_bytes() == 9000 * 1024


def test_the_peak_is_at_least_what_this_process_has_now():
    block = bytearray(2**25)
    block[::4096] = b"x" * len(range(0, len(block), 4096))
    peak = memory.peak_host_bytes()
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(block) < peak < 1.1 * most  # the kernel counts to within some pages
    if (statm := pathlib.Path("/proc/self/statm")).exists():
        now = int(statm.read_text().split()[1]) * resource.getpagesize()
        assert now < 1.1 * peak


def test_this_machine_has_some():
    free = memory.free_bytes()
    assert free is None or free > 2**20


def test_a_device_tells_itself(monkeypatch):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300, "peak_bytes_in_use": self.peak}

        def __init__(self, peak: int):
            self.peak = peak

    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device(400), Device(500)])
    assert memory.free_bytes() == 700
    assert memory.peak_device_bytes() == 500
