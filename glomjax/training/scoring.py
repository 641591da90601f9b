"""What a run says of an epoch and of its test split, in its folder and on the terminal."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glomjax.data.examples import DataSplits
from glomjax.data.permuted_labels import PERMUTED_LABELS
from glomjax.data.sources.columns import column_name
from glomjax.errors import UserError, assignment
from glomjax.evaluation import (
    collapse_message,
    prior_entropy,
    write_predictions,
    write_report,
)
from glomjax.evaluation.calibration import Decision, fit_decision
from glomjax.evaluation.controls import (
    CONTROLS,
    compare_with_controls,
    control_message,
    controls_line,
    controls_table,
    fit_controls,
)
from glomjax.evaluation.looks import DIGEST, images_digest, looks_beside, looks_line
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.evaluation.plots import history_png
from glomjax.evaluation.report import decision_line, patients_line, summary_line
from glomjax.files import jsonable
from glomjax.inference.classifier import load_classifier
from glomjax.ops import native
from glomjax.preprocessing.decoding import open_image
from glomjax.report import FOLDER as REPORT
from glomjax.report import PAGE
from glomjax.report.page import report_files
from glomjax.report.patches import worst_patches
from glomjax.training.config import RunConfig
from glomjax.training.setup import RunSetup
from glomjax.training.state import Position, TrainState

# When a network counts as overfitted: the share of training images that are right, how much larger
# it is than that of validation images, and by what factor their loss is above its best.
_BY_HEART, _LEAST_GAP, _WORSE = 0.98, 0.05, 1.1


def epoch_row(
    position: Position,
    totals: Mapping[str, float],
    validation: Mapping[str, Any],
    *,
    learning_rate: float,
    seconds: float,
    trained: float,
    waited: float,
    input_rate: float,
) -> dict[str, Any]:
    """The line of `metrics.jsonl` of an epoch.

    Args:
      totals: the sums of its steps, as `zero_sums` has them.
      validation: as `classification_metrics` gives them.
      learning_rate: of the last step.
      seconds: of the epoch with its validation.
      trained: seconds of its steps.
      waited: seconds of these for which the steps waited for images.
      input_rate: images a second that the input gives while it works.
    """
    count = totals["count"]
    return {
        "epoch": position.epoch + 1,
        "step": position.step,
        "learning_rate": float(learning_rate),
        "loss": totals["loss"] / count,
        "total_loss": totals["total_loss"] / count,
        "accuracy": totals["correct"] / count,
        "val_loss": validation["loss"],
        "val_accuracy": validation["accuracy"],
        "val_auroc": validation["auroc"],
        "time": {
            "seconds": seconds,
            "images_per_second": count / trained,
            # What either would do without the other: a starved step shows.
            "step_images_per_second": count / max(trained - waited, 1e-9),
            "input_images_per_second": input_rate,
            "waited_for_input": waited,
        },
    }


def draw_history(setup: RunSetup) -> None:
    """`history.png` and the page: the curves as far as the run has come, with the best epoch so
    far."""
    run, state = setup.run, setup.state
    if run.writes:
        image = history_png(
            state.position.history,
            best_epoch=state.stopping.best_epoch + 1,
            prior_entropy=prior_entropy(setup.splits.train.labels),
        )
        run.write("history.png", image)
        if setup.config.report != "none":
            _write_report(setup)


def _write_report(setup: RunSetup) -> bool:
    """Whether there is a page now. No run ends for a file that only the page needs, such as
    `splits.csv`, and that somebody has changed."""
    try:
        files = report_files(setup.run.path)
    except UserError as error:
        setup.terminal.say(f"the report cannot be made: {error}")
        return False
    for name, content in files.items():
        setup.run.write(name, content)
    return True


def describe_end(config: RunConfig, state: TrainState) -> str:
    """A line on why the epochs have ended, and which was the best."""
    stopping, position = config.early_stopping, state.position
    reason = (
        f"no better {stopping.monitor} for {stopping.patience} epochs"
        if position.stop
        else f"the limit of {config.num_epochs} epochs"
    )
    return (
        f"stopped after epoch {position.epoch}: {reason}; "
        f"the best weights are those of epoch {state.stopping.best_epoch + 1}"
    )


def overfitting(history: Sequence[Mapping[str, Any]], best_epoch: int) -> str:
    """A sentence on a network that knows its training images by heart while others become worse,
    "" where that is not so.

    Args:
      history: the lines of `metrics.jsonl`.
      best_epoch: from 1, of the weights that are kept.
    """
    best, last = history[best_epoch - 1], history[-1]
    gap = last["accuracy"] - last["val_accuracy"]
    rises = last["val_loss"] > _WORSE * best["val_loss"]
    if last["accuracy"] < _BY_HEART or gap < _LEAST_GAP or not rises:
        return ""
    return (
        f"The network has overfitted: in the last epoch it has {last['accuracy']:.1%} of the "
        f"training images right and {last['val_accuracy']:.1%} of the validation images, whose "
        f"loss has risen from {best['val_loss']:.3f} in epoch {best_epoch} to "
        f"{last['val_loss']:.3f}; the weights of epoch {best_epoch} are kept. More patients, "
        f"{assignment('augmentation.preset', 'histology')}, pretrained weights or fewer trained "
        "layers may help."
    )


def choose_decision(setup: RunSetup, validation_logits: np.ndarray) -> Decision:
    """The temperature and the threshold that the configuration asks for, which are said."""
    rules = setup.config.decision
    labels = setup.splits.validation.labels
    decision = fit_decision(
        labels, validation_logits, rules.threshold, temperature=rules.temperature
    )
    chosen = decision.rule == rules.threshold
    for note in decision.notes:
        (setup.terminal.say if chosen else setup.terminal.banner)(note)
    return decision


def report_test(
    setup: RunSetup, logits: np.ndarray, validation_logits: np.ndarray, decision: Decision
) -> dict[str, Any]:
    """Writes the files of a finished run; the test metrics, as in `test_metrics.json`.

    Args:
      logits, validation_logits: float32 [N, K] of the test and of the validation examples, divided
        by the temperature.
      decision: that was chosen on the validation split.
    """
    run, splits, config, state = setup.run, setup.splits, setup.config, setup.state
    test, terminal = splits.test, setup.terminal
    history, best_epoch = state.position.history, state.stopping.best_epoch + 1
    looks = run.test_evaluations + 1
    notes = [*splits.notes, *state.position.notes, *decision.notes]
    if looks > 1:
        notes.append(
            f"The test split was judged {looks} times, now after {state.position.epoch} epochs: a "
            "number of epochs that is chosen by its results flatters them."
        )
    if overfitted := overfitting(history, best_epoch):
        notes.append(overfitted)
    threshold = decision.threshold
    clusters, kind = test.clusters(column_name(config.data.split_by))
    metrics = metrics_of_network(
        test.labels, logits, splits.classes, clusters, threshold=threshold, kind=kind
    )
    metrics |= _controls(setup, logits, clusters, kind)
    metrics |= {
        "split": "test",
        "temperature": decision.temperature,
        "best_epoch": best_epoch,
        "epochs": state.position.epoch,
        "patients": None if test.patients is None else len(set(test.patients)),
        "clustered_by": None if clusters is None else kind,
        "notes": notes,
        "test_evaluations": looks,
        "permuted_labels": splits.permuted,
        "initial_weights": config.pretrained.source,
        "test_time_augmentation": config.test_time_augmentation,
    }
    if len(splits.classes) == 2:
        metrics |= {"threshold": threshold, "threshold_rule": decision.rule}
    if run.writes:
        run.write_history(history)
        write_predictions(
            run.path / "predictions_validation.csv",
            logits=validation_logits,
            threshold=threshold,
            **_known_of(splits, "validation"),
        )
        run.write_usage()
        run.lock.check()
        # Last, since these files say that the run is finished.
        known = _known_of(splits, "test")
        write_report(run.path, metrics=metrics, logits=logits, threshold=threshold, **known)
    terminal.say(summary_line(metrics, "test"))
    permuted = PERMUTED_LABELS if splits.permuted else ""
    for message in filter(None, [permuted, collapse_message(metrics), metrics["control_message"]]):
        terminal.banner(message)
    terminal.say(controls_line(metrics["controls"], metrics["controls_fitted"]))
    # Only said, since results would not be the same from folder to folder with it.
    terminal.say(looks_line(looks, looks_beside(run.path, metrics[DIGEST])))
    for line in filter(None, [decision_line(metrics), patients_line(metrics)]):
        terminal.say(line)
    if overfitted:
        terminal.banner(overfitted)
    if run.writes and config.report != "none":
        # Behind the results, which are safe whatever becomes of this.
        _keep_patches(setup, logits, threshold)
        if _write_report(setup):
            terminal.say(f"report: {run.path / REPORT / PAGE}")
    elif run.writes:
        # A part of the run that had a page would have it say that the run has not finished.
        (run.path / REPORT / PAGE).unlink(missing_ok=True)
    terminal.say(f"results: {run.path}")
    return jsonable(metrics)


def _keep_patches(setup: RunSetup, logits: np.ndarray, threshold: float) -> None:
    """Keeps the patches of the report. Of several processes one alone cannot run the network, and
    so they have no saliency."""
    config, run = setup.config, setup.run
    explains = config.report == "full" and setup.placement.processes == 1
    try:
        with native.setting(config.ops.native):
            classifier = load_classifier(run.path) if explains else None
            files = worst_patches(
                setup.splits.test,
                logits,
                threshold,
                classifier,
                decode=functools.partial(open_image, bits=config.data.bits),
            )
    except UserError as error:  # an image that has gone, or no memory for its saliency
        setup.terminal.banner(f"the report shows no patches: {error}")
        return
    for name, content in files.items():
        run.write(name, content)


def _controls(
    setup: RunSetup, logits: np.ndarray, clusters: Sequence[str] | None, kind: str
) -> dict[str, Any]:
    """What negative controls reach on the test split, and which images it has, as in
    `test_metrics.json`; of a fold, their logits are kept for whoever puts folds together."""
    splits, survey = setup.splits, setup.survey
    train, test = (survey.facts[split].features() for split in ("train", "test"))
    fitted = fit_controls(train, splits.train.labels, test)
    if setup.run.writes and setup.config.data.folds:
        setup.run.write(CONTROLS, controls_table(splits.test.ids, fitted))
    compared = compare_with_controls(
        splits.test.labels, logits, fitted, splits.classes, clusters, kind=kind
    )
    return {
        "controls": compared,
        "controls_fitted": "on the training images",
        "control_message": control_message(compared),
        DIGEST: images_digest(survey.hashes["test"]),
    }


def _known_of(splits: DataSplits, split: str) -> dict[str, Any]:
    """What a table of predictions says of the examples of a split, as `write_predictions` takes
    it."""
    part = splits[split]
    numbers = {"weight": part.weights, "mpp": part.mpp}
    known: dict[str, Any] = {n: v.tolist() for n, v in numbers.items() if v is not None}
    if splits.permuted and split != "test":
        known["labels"] = ["permuted"] * len(part)
    return {
        "ids": part.ids,
        "labels": part.labels,
        "classes": splits.classes,
        "patients": part.real_patients,
        "columns": {**part.columns, **known},
    }
