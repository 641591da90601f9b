"""Our own weight file: safetensors under our paths, with metadata that names and checks itself.

The metadata's one key `glomjax` holds JSON: {"spec": as `NetworkSpec.to_dict` gives it, "source":
what it was written from, "sha256": of both and of all tensors}. safetensors itself has no checksum,
so a flipped bit would otherwise load as a weight.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from glomjax.errors import UserError, shown
from glomjax.files import write_file
from glomjax.pretrained.old_formats import spec_of_file
from glomjax.pretrained.spec import NetworkSpec

METADATA_KEY = "glomjax"


def write_weights(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    spec: NetworkSpec,
    *,
    source: str = "",
) -> None:
    """Writes float32 `{path: array}` as a `.safetensors` file, which appears whole or not at all.

    `source` is what it was written from, a published id or the checksum of a file. Raises UserError
    where the file cannot be written.
    """
    # Contiguous, since safetensors writes the buffer of a transposed view as it lies.
    arrays = {key: np.ascontiguousarray(value) for key, value in params.items()}
    about = {"spec": spec.to_dict(), "source": source}
    text = json.dumps(about | {"sha256": _digest(about, arrays)})
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f"weight file {path} cannot be written: its folder does not exist")
    write_file(path, safetensors.numpy.save(arrays, {METADATA_KEY: text}))


def check(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: str
) -> tuple[NetworkSpec, str]:
    """(spec, source) that a file of ours names.

    Raises:
      UserError: the contents of the file have changed, or it is of a newer format.
    """
    try:
        about = json.loads(metadata)
        digest, origin = about.pop("sha256"), about["source"]
        new = "spec" in about
        spec = None if new else spec_of_file(about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"weight file {path} is damaged (its glomjax metadata reads {shown(metadata)}); write "
            "it again"
        ) from error
    if digest != _digest(about, tensors):
        raise UserError(
            f"weight file {path} is damaged (its contents are not those it was written with); "
            "write it again"
        )
    return spec or NetworkSpec.from_dict(about["spec"], f"weight file {path}"), origin


def tensor_digest(tensors: Mapping[str, np.ndarray], begun: bytes = b"") -> "hashlib._Hash":
    """SHA-256 of names, shapes and values, in the order of the names, behind what is given."""
    digest = hashlib.sha256(begun)
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        digest.update(f"\0{name}\0{value.shape}\0".encode())
        digest.update(value.tobytes())
    return digest


def _digest(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    return tensor_digest(tensors, json.dumps(about, sort_keys=True).encode()).hexdigest()
