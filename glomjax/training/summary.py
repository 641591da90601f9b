"""A table of a network's parameters."""

from collections.abc import Mapping
from typing import Any

from glomjax.training.parameter_groups import TRAINABLE


def summarize(
    model: Any, params: Mapping[str, Any], labels: Mapping[str, str], image_size: tuple[int, int]
) -> str:
    """One line per tensor: path, shape, count, trainable or frozen; the last line has the totals.

    Args:
      model: gives its name.
      params: flat dict of arrays, or of their shapes as `nnx.eval_shape` leaves them.
      labels: {path: "trainable" or "frozen"}.
      image_size: (height, width) of the input.
    """
    lines = [f"{model.name}, input {image_size[0]} x {image_size[1]} x 3", ""]
    lines += tabulate(params, labels)
    chosen = [path for path in params if labels[path] == TRAINABLE]
    training = sum(params[path].size for path in chosen)
    lines.append(f"{len(chosen)} of {len(params)} tensors, {training:,} parameters train")
    return "\n".join(lines) + "\n"


def tabulate(params: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> list[str]:
    """The lines of the table, the last one with the totals; the labels are its last column."""
    width = max(map(len, params))
    trains = "" if labels is None else "  trains"
    lines = [f"{'parameter':<{width}}  {'shape':>18}  {'count':>11}{trains}"]
    for path, value in params.items():
        shape = " x ".join(map(str, value.shape))
        label = "" if labels is None else f"  {labels[path]}"
        lines.append(f"{path:<{width}}  {shape:>18}  {value.size:>11,}{label}")
    total = sum(value.size for value in params.values())
    return [*lines, "", f"{len(params)} tensors, {total:,} parameters"]
