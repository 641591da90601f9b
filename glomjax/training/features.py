"""What a frozen network gives for each image, computed once and kept in a file.

While only the head trains, every epoch would compute the same features again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from glomjax.data.pipeline import Batches
from glomjax.errors import UserError, assignment
from glomjax.files import cache_dir, checksum


def cached_features(
    embed: Callable[[np.ndarray], jax.Array],
    batches: Batches,
    *,
    weights: Mapping[str, Any],
    about: Mapping[str, Any],
) -> np.ndarray:
    """Features of all examples of a split, float32 [N, D], memory-mapped, in the split's order.

    The file's name holds a digest of all that the features depend on, and one of its content, so
    that neither a stale nor a damaged file is ever used.

    Args:
      embed: images uint8 [B, H, W, 3] -> features [B, D].
      batches: the split.
      weights: {path: array} of all that `embed` uses.
      about: what else the features depend on, JSON-ready: network, options, preprocessing.

    Raises:
      UserError: the cache folder cannot be read or written.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for batch in batches.epoch():
        digest.update(batch["image"][batch["mask"] > 0].tobytes())
    for path in sorted(weights):
        value = np.ascontiguousarray(weights[path])
        digest.update(f"\0{path} {value.dtype} {value.shape}\0".encode())
        digest.update(value.tobytes())
    key = digest.hexdigest()[:32]
    folder = cache_dir("features")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"{key}-*.npy"):
            if file.name == f"{key}-{checksum(file)[:32]}.npy":
                return np.load(file, mmap_mode="r")
            file.unlink()
        parts = [np.asarray(embed(b["image"]))[b["mask"] > 0] for b in batches.epoch()]
        partial = folder / f".{key}.{os.getpid()}.npy"
        try:
            np.save(partial, np.concatenate(parts))
            file = folder / f"{key}-{checksum(partial)[:32]}.npy"
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
        return np.load(file, mmap_mode="r")
    except OSError as error:
        raise UserError(
            f"the features cannot be kept in '{folder}' ({error.strerror or error}); set the "
            "environment variable GLOMJAX_CACHE to a folder that can be written, or "
            + assignment("freeze.cache_features", False)
        ) from error
