"""How often the results of the same test images lie in a folder and in those beside it.

Whoever chooses among results has used the test for that, and then the best of them flatters. What
is known of it is what others have left: other places, and results that were removed, are not.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

DIGEST = "test_images_digest"  # the name in `test_metrics.json`


def images_digest(hashes: np.ndarray) -> str:
    """What identifies images whatever they are called and in whatever order they come.

    Args:
      hashes: uint64 [N, 4], `perceptual_hash` of each.
    """
    ordered = hashes[np.lexsort(hashes.T)]
    return hashlib.sha256(np.ascontiguousarray(ordered, "<u8").tobytes()).hexdigest()


def looks_beside(folder: str | os.PathLike[str], digest: str) -> dict[str, int]:
    """{name of a folder beside this one: how many results of the same test images it holds}."""
    here = pathlib.Path(folder).resolve()
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for file in sorted(here.parent.glob("*/test_metrics*.json")):
            name = file.parent.name
            if name != here.name and _digest_of(file) == digest:
                found[name] = found.get(name, 0) + 1
    return found


def looks_line(here: int, beside: dict[str, int]) -> str:
    """A line on both.

    Args:
      here: how often the test images were judged in this folder, now included.
      beside: as `looks_beside` gives them.
    """
    total = here + sum(beside.values())
    times = "once" if total == 1 else f"{total} times"
    listed = ", ".join([f"{here} here", *(f"{n} in '{name}'" for name, n in beside.items())])
    where = f" ({listed})" if beside else ""
    return (
        f"these test images were judged {times}{where}, as far as this folder and those beside it "
        "tell"
    )


def _digest_of(file: pathlib.Path) -> Any:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        return found.get(DIGEST) if isinstance(found, dict) else None
