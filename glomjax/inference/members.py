"""The networks of a cross-validation as one ensemble, which the files in its folder name."""

import dataclasses
import json
import os
import pathlib

from glomjax.errors import UserError, same_again

CROSSVAL = "crossval.json"  # what a folder of a cross-validation begins with
METRICS = "metrics.json"  # what it ends with


@dataclasses.dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
      source: as for `load_network`.
      slope, intercept: of the line that makes its logits comparable to those of the others.
    """

    source: str | os.PathLike[str]
    slope: float = 1.0
    intercept: float = 0.0


def expand(source: str | os.PathLike[str]) -> tuple[list[Member], tuple[float, str] | None]:
    """(the members that a source of trained networks stands for, the threshold of their ensemble
    and where it comes from): the networks of all folds and repeats with the line that their
    validation gave, and the probability that the out-of-fold predictions gave, where it is the
    folder of a cross-validation of two classes; otherwise the source itself, and None.

    Raises:
      UserError: the cross-validation has not finished, or its file is damaged.
    """
    folder = pathlib.Path(source).expanduser()
    if not (folder / CROSSVAL).is_file():
        return [Member(source)], None
    file = folder / METRICS
    if not file.is_file():
        raise UserError(
            f"the cross-validation in '{folder}' has not finished; {same_again()} that began it "
            "goes on with it, and until then its folds can be named one by one"
        )
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        members = [
            Member(folder / fold["folder"], float(fold["slope"]), float(fold["intercept"]))
            for fold in stored["per_fold"]
        ]
        if stored["threshold"] is None:
            return members, None
        rule = f"{stored['threshold_rule']}, on the out-of-fold predictions"
        return members, (float(stored["threshold"]), rule)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{file}' is not what the cross-validation wrote; remove it, and {same_again()} that "
            "began it writes it anew"
        ) from error
