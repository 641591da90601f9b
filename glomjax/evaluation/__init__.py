"""How good a classifier is: numbers, a report folder and figures, from arrays alone."""

from glomjax.evaluation.auroc import auroc, auroc_interval
from glomjax.evaluation.calibration import choose_threshold, fit_temperature, predicted_classes
from glomjax.evaluation.intervals import Interval
from glomjax.evaluation.logits import probabilities
from glomjax.evaluation.metrics import classification_metrics, collapse_message, prior_entropy
from glomjax.evaluation.plots import plot_history
from glomjax.evaluation.report import write_predictions, write_report

__all__ = [
    "Interval",
    "auroc",
    "auroc_interval",
    "choose_threshold",
    "classification_metrics",
    "collapse_message",
    "fit_temperature",
    "plot_history",
    "predicted_classes",
    "prior_entropy",
    "probabilities",
    "write_predictions",
    "write_report",
]
