"""Which labels are likely wrong, by predictions of networks that never saw the patient.

Confident learning (Northcutt, Jiang, Chuang 2021, J Artif Intell Res 70:1373-1411): the
*self-confidence* of an example is the probability that its own label has. Where it is low, the
label or the network is wrong, or both. Networks are more confident of some classes than of others,
so that self-confidence is compared within a class alone, as "prune by class" does there.

The networks must not have been trained on the patient of the example: a network that has learnt a
wrong label by heart is confident of it. Where several networks predict, as in a cross-validation,
their logits must be on one scale, so each is recalibrated on its own validation split.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from glomjax.errors import UserError
from glomjax.evaluation.logits import checked_labels, log_odds_of, probabilities


@dataclasses.dataclass(frozen=True)
class LabelErrors:
    """How doubtful the labels of N examples are.

    Attributes:
      order: int [N], the examples from the most doubtful label to the least.
      self_confidence: float64 [N], the probability that the network gives to the label.
      counted_as: int [N], the class in which confident learning counts the example; where that is
        not the label's, the label or the network is wrong.
    """

    order: np.ndarray
    self_confidence: np.ndarray
    counted_as: np.ndarray


def rank_label_errors(labels: ArrayLike, logits: ArrayLike) -> LabelErrors:
    """Ranks examples by how doubtful their labels are.

    An example that has the k-th lowest self-confidence of the n examples with its label comes at
    (k - 1/2) / n, and of two at the same place the one with the lower self-confidence comes first.
    So the first tenth of the list holds the least confident tenth of each class, however rare it is
    and however confident the network is of it.

    An example is counted in the class that has the largest probability among the classes whose
    probability reaches their threshold, the mean self-confidence of the examples with that label;
    in its own class where there is none (equation 1 and algorithm 1 of the paper).

    Args:
      labels: int [N], the given class of each, 0 to C - 1; every class occurs.
      logits: float [N, K] as for `probabilities`, of networks that have not seen the patient.

    Raises:
      UserError: the labels do not fit the logits, or these are not finite.
    """
    chances = probabilities(logits)  # [N, C]
    classes = [str(c) for c in range(chances.shape[1])]
    given = checked_labels(labels, chances, classes)
    counts = np.bincount(given, minlength=len(classes))
    if not counts.all():
        raise UserError(
            f"no example has the label {int(counts.argmin())}, so that nothing tells how confident "
            "the network is of that class; give examples of every class"
        )
    rows = np.arange(len(given))
    # A probability saturates, and would tie examples that the log-odds tell apart.
    odds = log_odds_of(np.asarray(logits, np.float64))[rows, given]
    place = np.empty(len(given))
    for c, count in enumerate(counts):
        members = np.flatnonzero(given == c)
        place[members[np.argsort(odds[members], kind="stable")]] = (np.arange(count) + 0.5) / count
    own = chances[rows, given]
    thresholds = np.array([own[given == c].mean() for c in range(len(classes))])
    reached = np.where(chances >= thresholds[None, :], chances, -1.0)
    counted = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), given)
    return LabelErrors(np.lexsort((odds, place)), own, counted)
