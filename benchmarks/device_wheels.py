"""Fetches what `device.py` needs on a machine with Python 3.12, JAX and PyTorch and no network.

    python benchmarks/device_wheels.py

Wheels of the packages that such a machine lacks go into `.wheels`, which git ignores: those of
requirements.txt in its versions, and those that they ask for. Carry the folder along with the
checkout; `device.py` takes what is missing from there.
"""

import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / ".wheels"
LIMIT_MB = 45
# Requirements that come with no installation of JAX, Flax and PyTorch.
REQUIREMENTS = (
    "array_record",
    "grain",
    "importlib_resources",
    "ml_collections",
    "tensorboardX",
    "tensorflow-datasets",
)
# What these ask for and such a machine lacks as well.
DEPENDENCIES = (
    "dm-tree==0.1.10",
    "docstring_parser==0.18.0",
    "googleapis-common-protos==1.76.0",
    "immutabledict==4.3.1",
    "portpicker==1.6.0",
    "simple-parsing==0.1.9",
    "tensorflow-metadata==1.21.0",
    "termcolor==3.3.0",
    "toml==0.10.2",
)
SOURCES = ("promise==2.3",)  # pure Python, published without a wheel
TARGET = ("--python-version", "3.12", "--implementation", "cp")
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


def main() -> None:
    pinned = (ROOT / "requirements.txt").read_text()
    wanted = []
    for name in REQUIREMENTS:
        found = re.search(rf"^{re.escape(name)}==\S+$", pinned, re.MULTILINE)
        if found is None:
            sys.exit(f"error: requirements.txt pins no {name!r}; take it off REQUIREMENTS")
        wanted.append(found[0])
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [f"--platform={name}_x86_64" for name in PLATFORMS]
    fetch = [*pip, "download", "--no-deps", "--only-binary=:all:", *TARGET, *platforms]
    build = [*pip, "wheel", "--no-deps"]
    for command in (
        [*fetch, "-d", str(FOLDER), *wanted, *DEPENDENCIES],
        [*build, "-w", str(FOLDER), *SOURCES],
    ):
        if subprocess.run(command).returncode:
            sys.exit(f"error: this failed: {' '.join(command)}")
    total = 0.0
    for wheel in sorted(FOLDER.iterdir()):
        size = wheel.stat().st_size / 1e6
        total += size
        print(f"{size:7.2f} MB  {wheel.name}")
    print(f"{total:7.2f} MB  in {FOLDER}")
    if total > LIMIT_MB:
        sys.exit(f"error: {total:.0f} MB of wheels; {LIMIT_MB} MB can be carried along")


if __name__ == "__main__":
    main()
