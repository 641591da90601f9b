"""Several networks as one: which they are, what their logits and thresholds are together."""

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from glomjax.errors import UserError, argument, same_again
from glomjax.evaluation.calibration import probability_text
from glomjax.pretrained.sources import CROSSVAL
from glomjax.pretrained.spec import NetworkSpec

METRICS = "metrics.json"  # what it ends with
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """A network of an ensemble.

    Attributes:
      source: as for `load_network`.
      slope, intercept: of the line that makes its logits comparable to those of the others.
      threshold: of its cross-validation, and where it comes from; None where the network's own
        counts.
    """

    source: str | os.PathLike[str]
    slope: float = 1.0
    intercept: float = 0.0
    threshold: tuple[float, str] | None = None

    def recalibrate(self, logits: np.ndarray) -> np.ndarray:
        """Logits [N, K] as they mean the same as those of the other members; those of a network
        without a line of its own as they are, bit for bit."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return logits
        return self.slope * logits.astype(np.float64) + self.intercept


def expand(source: str | os.PathLike[str]) -> list[Member]:
    """The members that a source of trained networks stands for: of the folder of a cross-validation
    the networks of all folds and repeats, with the line that their validation gave and the
    threshold that the out-of-fold predictions gave; otherwise the source itself.

    Raises:
      UserError: the cross-validation has not finished, or its file is damaged.
    """
    folder = pathlib.Path(source).expanduser()
    if not (folder / CROSSVAL).is_file():
        return [Member(source)]
    file = folder / METRICS
    if not file.is_file():
        raise UserError(
            f"the cross-validation in '{folder}' has not finished; {same_again()} that began it "
            "goes on with it, and until then its folds can be named one by one"
        )
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        threshold = None
        if stored["threshold"] is not None:
            rule = f"{stored['threshold_rule']}, on the out-of-fold predictions"
            threshold = float(stored["threshold"]), rule
        members = [
            Member(
                folder / fold["folder"], float(fold["slope"]), float(fold["intercept"]), threshold
            )
            for fold in stored["per_fold"]
        ]
        if gone := [str(part.source) for part in members if not os.path.isdir(part.source)]:
            raise UserError(
                f"the cross-validation in '{folder}' has lost '{gone[0]}'; restore it from a copy, "
                f"or {same_again()} that began it trains it anew"
            )
        return members
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{file}' is not what the cross-validation wrote; remove it, and {same_again()} that "
            "began it writes it anew"
        ) from error


def threshold_of(
    specs: Sequence[NetworkSpec], members: Sequence[Member], given: float | None
) -> tuple[float, str]:
    """(the threshold of a classifier of these networks, where it comes from): the one that is
    given, or the mean of those that they carry.

    Raises:
      UserError: one is given, and there are other than two classes.
    """
    if given is not None:
        if (count := len(specs[0].classes)) != 2:
            raise UserError(
                f"{argument('--threshold')} is {given!r}, and the network has {count} classes; "
                "leave it out, and the most probable one is predicted"
            )
        return float(given), "given"
    pairs = [
        member.threshold or (spec.threshold, spec.threshold_rule)
        for spec, member in zip(specs, members, strict=True)
    ]
    carried = [threshold for threshold, _ in pairs]
    rules = list(dict.fromkeys(rule for _, rule in pairs))
    if len(set(carried)) == 1:
        return carried[0], "; ".join(rules)
    mean = float(np.mean(carried))
    told = ", ".join(map(probability_text, carried))
    _LOG.warning(
        "the members' thresholds differ (%s); that of the ensemble is their mean, %s",
        told,
        probability_text(mean),
    )
    return mean, f"mean of the members' thresholds ({told}; {'; '.join(rules)})"


def joint_logits(members: Sequence[np.ndarray]) -> np.ndarray:
    """The log-odds float32 [N, 1] of two classes, or the logarithms [N, C] of more, of the mean of
    the probabilities that the members' logits [N, K] stand for; exact where these saturate."""
    logs = []
    for logits in members:
        z = logits.astype(np.float64)
        z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
        logs.append(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
    mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))  # [N, C]
    return (mean[:, 1:] - mean[:, :1] if mean.shape[1] == 2 else mean).astype(np.float32)
