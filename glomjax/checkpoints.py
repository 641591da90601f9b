"""Checkpoints that count only when they are whole.

A checkpoint is a folder: `arrays/` (Orbax), `metadata.json` (everything that is not an array) and,
written last, `manifest.json` with the size and SHA-256 of every other file. Orbax restores an array
file with a flipped bit without a word, so a folder without a matching manifest does not exist.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from glomjax.errors import UserError

Arrays = Mapping[str, jax.Array | np.ndarray]


def save(folder: pathlib.Path, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint in place of the one in `folder`, which stays whole until the new one is.

    Args:
      arrays: flat dict of arrays.
      metadata: JSON-ready.

    Raises:
      UserError: it cannot be written; the one in `folder` is as it was.
    """
    try:
        _save(folder, arrays, metadata)
    except OSError as error:
        raise UserError(
            f"checkpoint '{folder}' cannot be written ({error.strerror or error}); make room, and "
            "the same command goes on after the last checkpoint"
        ) from error


def _save(folder: pathlib.Path, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    host = {path: np.asarray(array) for path, array in arrays.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(new.absolute() / "arrays", host)
    (new / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    manifest = json.dumps(_digests(new), indent=2) + "\n"
    (new / "manifest.json").write_text(manifest)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def exists(folder: pathlib.Path) -> bool:
    """Whether `folder` holds a checkpoint, or its predecessor does (see `restore`)."""
    return _newest(folder) is not None


def fingerprint(folder: pathlib.Path) -> str:
    """SHA-256 of the manifest of the checkpoint in `folder`, and so of every file in it."""
    found = _newest(folder)
    if found is None:
        raise UserError(f"'{folder}' holds no checkpoint")
    return hashlib.sha256((found / "manifest.json").read_bytes()).hexdigest()


def restore(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, metadata) of the checkpoint in `folder`.

    Raises:
      UserError: there is none, or its files are not those that were written.
    """
    import orbax.checkpoint as ocp

    found = _newest(folder)
    if found is None:
        raise UserError(f"'{folder}' holds no checkpoint")
    written, present = _manifest(found), _digests(found)
    damaged = [f for f in sorted(written | present) if written.get(f) != present.get(f)]
    if damaged:
        raise _damaged(found, damaged[0])
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(found.absolute() / "arrays")
    arrays = {path: np.asarray(array) for path, array in restored.items()}
    return arrays, json.loads((found / "metadata.json").read_text())


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder, or the old one that a kill between the two renames of `save` left behind."""
    for candidate in (folder, pathlib.Path(f"{folder}.old")):
        if (candidate / "manifest.json").is_file():
            return candidate
    return None


def _manifest(folder: pathlib.Path) -> dict[str, str]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except ValueError as error:  # no JSON, or no text
        raise _damaged(folder, "manifest.json") from error
    if not isinstance(manifest, dict):
        raise _damaged(folder, "manifest.json")
    return manifest


def _damaged(folder: pathlib.Path, file: str) -> UserError:
    return UserError(
        f"checkpoint '{folder}' is damaged: file '{file}' is not what was written; "
        "restore the folder from a copy or remove it"
    )


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): _digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / "manifest.json"
    }


def _digest(file: pathlib.Path) -> str:
    with open(file, "rb") as stream:
        return f"{file.stat().st_size}:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
