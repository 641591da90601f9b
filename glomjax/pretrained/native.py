"""Our own weight file: safetensors under our paths, with metadata that names and checks itself.

The metadata's one key `glomjax` holds JSON: {"model": name, "preset": name, "preprocessing": as
`Preprocessing.to_dict` gives it, "classes": names, "settings": as `SourceInfo` has them, "source":
what it was written from, "sha256": of all of these and of all tensors}. safetensors itself has no
checksum, so a flipped bit would otherwise load as a weight.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from glomjax.errors import UserError
from glomjax.files import write_file

METADATA_KEY = "glomjax"


def write_weights(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    *,
    model: str,
    preset: str,
    preprocessing: Mapping[str, Any],
    classes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    source: str = "",
) -> None:
    """Writes float32 `{path: array}` as a `.safetensors` file, which appears whole or not at all.

    What is not known is "" or (): `preset` for a model without presets, `classes` for weights that
    belong to none. Raises UserError where the file cannot be written.
    """
    # Contiguous, since safetensors writes the buffer of a transposed view as it lies.
    arrays = {key: np.ascontiguousarray(value) for key, value in params.items()}
    about = {
        "model": model,
        "preset": preset,
        "preprocessing": dict(preprocessing),
        "classes": list(classes),
        "settings": dict(settings or {}),
        "source": source,
    }
    text = json.dumps(about | {"sha256": _digest(about, arrays)})
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"weight file {path} cannot be written: its folder does not exist")
    write_file(path, safetensors.numpy.save(arrays, {METADATA_KEY: text}))


def check(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: str) -> dict[str, Any]:
    """What a file of ours says about itself, as the fields of `SourceInfo`.

    Raises UserError where the contents of the file have changed.
    """
    try:
        about = json.loads(metadata)
        digest = about.pop("sha256")
        fields = {
            "model": about["model"],
            "preset": about["preset"],
            "preprocessing": about["preprocessing"],
            "classes": tuple(about["classes"]),
            "settings": dict(about["settings"]),
            "origin": about["source"],
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"weight file {path} is damaged (its glomjax metadata reads {metadata[:80]!r}); write "
            "it again"
        ) from error
    if digest != _digest(about, tensors):
        raise UserError(
            f"weight file {path} is damaged (its contents are not those it was written with); "
            "write it again"
        )
    return fields


def _digest(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name].shape}\0".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
