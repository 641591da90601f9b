"""On what a run runs: versions, devices, commit and command."""

import pathlib
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

from glomjax.ops import native

_PACKAGES = ("glomjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe_environment(seed: int, precision: str) -> dict[str, Any]:
    """JSON-ready: packages, machine, devices, native kernels, git commit, command and seed."""
    devices = jax.devices()
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(device.device_kind) for device in devices],
        "backend": jax.default_backend(),
        "native_kernels": native.status(precision),
        "git": _git_state(),
        "command": sys.argv,
        "seed": seed,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any]:
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


def _git(folder: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
