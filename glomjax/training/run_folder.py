"""The folder that a run leaves: what was asked, on what it ran, what came out."""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from glomjax import checkpoints
from glomjax.errors import UserError
from glomjax.files import jsonable, write_file
from glomjax.ops import native
from glomjax.training.config import MAY_DIFFER, default_config

_PACKAGES = ("glomjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunFolder:
    """Paths and plain files of one run.

    Args:
      path: the folder, made where it does not exist.
      writes: False for all but one of several processes: they only read.

    Raises:
      UserError: the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True):
        self.path = pathlib.Path(path)
        self.writes = writes
        self.best = self.path / "checkpoints" / "best"
        self.last = self.path / "checkpoints" / "last"
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run folder '{self.path}' cannot be made ({error.strerror}); "
                "name another with --workdir"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether a run has ended here: the test metrics are its last file."""
        return (self.path / "test_metrics.json").is_file()

    @property
    def begun(self) -> bool:
        """Whether something has been trained here."""
        return self.finished or checkpoints.exists(self.last)

    def claim(self, requested: ConfigDict) -> list[str]:
        """Takes the folder for this configuration, or refuses one that holds another's run.

        Returns:
          The fields that differ from those of the run so far, and may.
        """
        wanted = json.loads(to_json(requested))
        file = self.path / "config.json"
        if not file.exists():
            leftovers = [f for f in self.path.iterdir() if f.name != "checkpoints"]
            if leftovers and self.writes:
                raise UserError(
                    f"folder '{self.path}' is not empty and holds no run ('{leftovers[0].name}' "
                    "for one); name another with --workdir"
                )
            self.write_config(requested, requested)
            return []
        try:
            before = self._config("requested")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{file}' is not the configuration of a run; name another folder with --workdir"
            ) from error
        changes = _differences(before, wanted)
        if changes and not self.begun:
            # Nothing was trained with the old one: a mistake that has been put right.
            self.write_config(requested, requested)
            return []
        # A cosine over the epochs is another one when their number is.
        may_differ = set(MAY_DIFFER)
        if wanted.get("schedule") == "cosine":
            may_differ -= {"num_epochs", "demo.num_epochs"}
        if forbidden := [text for key, text in changes.items() if key not in may_differ]:
            raise UserError(
                f"folder '{self.path}' holds a run with another configuration "
                f"({'; '.join(forbidden)}); name another folder with --workdir, or replace the run "
                "with --overwrite"
            )
        return list(changes)

    def effective(self, requested: ConfigDict) -> ConfigDict | None:
        """The settled configuration of the run that goes on here, with what may differ as it is
        requested now; None where none has begun."""
        if not checkpoints.exists(self.last):
            return None
        config = ConfigDict(self._config("effective"))
        now, then = flatten(requested), flatten(self._config("requested"))
        changed = {key: now[key] for key in MAY_DIFFER if now[key] != then.get(key)}
        config.update_from_flattened_dict(changed)
        return config

    def _config(self, which: str) -> dict[str, Any]:
        """The requested or the effective configuration in `config.json`; fields that did not exist
        when it was written have their defaults."""
        stored = json.loads((self.path / "config.json").read_text())[which]
        return _completed(stored, json.loads(to_json(default_config())))

    def check_data(self, digest: str) -> None:
        """Refuses to go on with other data: a redrawn split would leak training patients."""
        before = json.loads((self.path / "config.json").read_text()).get("data", digest)
        if before != digest and self.begun:
            raise UserError(
                f"the images, labels or patients are not those of the run in '{self.path}'; "
                "restore them or name another folder with --workdir"
            )

    def write_config(
        self, requested: ConfigDict, effective: ConfigDict, data: str | None = None
    ) -> None:
        """`config.json`: what was asked for, what was taken where that left it open, and a digest
        of the data."""
        both: dict[str, Any] = {
            "requested": json.loads(to_json(requested)),
            "effective": json.loads(to_json(effective)),
        }
        if data is not None:
            both["data"] = data
        self.write("config.json", json.dumps(both, indent=2) + "\n")

    def write_environment(self, config: ConfigDict) -> None:
        """`environment.json`: versions, device, native kernels, git commit, command and seed.

        Where a run goes on, perhaps on another machine, the first environment stays, and the list
        `resumed` has the later ones.
        """
        devices = jax.devices()
        environment = {
            "packages": {name: _version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": [str(device.device_kind) for device in devices],
            "backend": jax.default_backend(),
            "native_kernels": native.status(config.precision),
            "git": _git_state(),
            "command": sys.argv,
            "seed": config.seed,
        }
        file = self.path / "environment.json"
        if self.begun and file.is_file():
            first = json.loads(file.read_text())
            environment = first | {"resumed": [*first.get("resumed", []), environment]}
        self.write("environment.json", json.dumps(environment, indent=2) + "\n")

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """`metrics.jsonl`: a line an epoch."""
        self.write("metrics.jsonl", "".join(json.dumps(jsonable(row)) + "\n" for row in history))

    def write(self, name: str, text: str) -> None:
        """A text file of the run, whole or not at all."""
        if self.writes:
            write_file(self.path / name, text.encode())


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON."""
    return json.dumps(config.to_dict(), sort_keys=True, default=list)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"section.field": value} of a configuration."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        section = isinstance(value, (dict, ConfigDict))
        flat |= flatten(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return flat


def _completed(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    sections = {
        key: _completed(stored.get(key, {}), value)
        for key, value in defaults.items()
        if isinstance(value, dict)
    }
    return defaults | stored | sections


def clear(path: str | os.PathLike[str]) -> None:
    """Removes a run, so that another can take its folder.

    Raises:
      UserError: the folder exists, is not empty and holds no run: it is left as it is. Or
        something in it cannot be removed.
    """
    folder = pathlib.Path(path)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        holds_run = "requested" in dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        holds_run = False
    if not holds_run:
        raise UserError(
            f"'{folder}' holds no run, so --overwrite leaves it alone; name another with --workdir"
        )
    try:
        # The folder itself may be a link to another disk. The file that says what it holds goes
        # last: where something stops this, the same command can be tried again.
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise UserError(
            f"the run in '{folder}' cannot be removed ({error.strerror or error}); name another "
            "folder with --workdir"
        ) from error


def _differences(before: Any, now: Any) -> dict[str, str]:
    """{field: what it was and is now} of two configurations."""
    was, is_now = flatten(before), flatten(now)
    return {
        key: f"{key} was {was.get(key, 'nothing')!r}, now {is_now.get(key, 'nothing')!r}"
        for key in sorted(was.keys() | is_now.keys())
        if was.get(key, "nothing") != is_now.get(key, "nothing")
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
