"""A table of a network's parameters."""

from collections.abc import Mapping
from typing import Any

from glomjax.training.freezing import TRAINABLE


def summarize(
    model: Any, params: Mapping[str, Any], labels: Mapping[str, str], image_size: tuple[int, int]
) -> str:
    """One line per tensor: path, shape, count, trainable or frozen; the last line has the totals.

    Args:
      model: gives its name.
      params: flat dict of arrays.
      labels: {path: "trainable" or "frozen"}.
      image_size: (height, width) of the input.
    """
    width = max(map(len, params))
    lines = [f"{model.name}, input {image_size[0]} x {image_size[1]} x 3", ""]
    lines.append(f"{'parameter':<{width}}  {'shape':>18}  {'count':>11}  trains")
    for path, value in params.items():
        shape = " x ".join(map(str, value.shape))
        lines.append(f"{path:<{width}}  {shape:>18}  {value.size:>11,}  {labels[path]}")
    chosen = [path for path in params if labels[path] == TRAINABLE]
    total = sum(value.size for value in params.values())
    training = sum(params[path].size for path in chosen)
    lines += ["", f"{len(params)} tensors, {total:,} parameters"]
    lines.append(f"{len(chosen)} of {len(params)} tensors, {training:,} parameters train")
    return "\n".join(lines) + "\n"
