"""Our own weight file: safetensors under our paths, with metadata that names and checks itself.

The metadata's one key `glomjax` holds JSON: {"model": name, "preset": name, "preprocessing": as in
`loading.SourceInfo`, "sha256": of all names and values}. safetensors itself has no checksum, so a
flipped bit would otherwise load as a weight.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from glomjax.errors import UserError

METADATA_KEY = "glomjax"


def write_weights(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    *,
    model: str,
    preset: str,
    preprocessing: Mapping[str, Any],
) -> None:
    """Writes float32 `{path: array}` as a `.safetensors` file, which appears whole or not at all.

    `preset` is "" for a model without presets. Raises UserError where the file cannot be written.
    """
    # Contiguous, since safetensors writes the buffer of a transposed view as it lies.
    arrays = {key: np.ascontiguousarray(value) for key, value in params.items()}
    about = {
        "model": model,
        "preset": preset,
        "preprocessing": dict(preprocessing),
        "sha256": _digest(arrays),
    }
    target = pathlib.Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(safetensors.numpy.save(arrays, {METADATA_KEY: json.dumps(about)}))
        os.replace(partial, target)
    except OSError as error:
        raise UserError(f"weight file {path} cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


def check(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: str
) -> tuple[str, dict[str, Any]]:
    """(preset, preprocessing) of a file of ours; UserError where its contents have changed."""
    try:
        about = json.loads(metadata)
        preset, preprocessing = str(about["preset"]), dict(about["preprocessing"])
        digest = about["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"weight file {path} is damaged (its glomjax metadata reads {metadata[:80]!r}); write "
            "it again"
        ) from error
    if digest != _digest(tensors):
        raise UserError(
            f"weight file {path} is damaged (its values are not those it was written with); write "
            "it again"
        )
    return preset, preprocessing


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
