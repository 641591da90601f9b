"""What a run says of an epoch and of its test split, in its folder and on the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from glomjax.evaluation import (
    collapse_message,
    plot_history,
    prior_entropy,
    write_report,
)
from glomjax.evaluation.metrics import metrics_of_network
from glomjax.files import jsonable
from glomjax.training.config import RunConfig
from glomjax.training.setup import RunSetup
from glomjax.training.state import Position, TrainState


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


def report_test(setup: RunSetup, logits: np.ndarray) -> dict[str, Any]:
    """Writes the files of a finished run; the test metrics, as in `test_metrics.json`.

    Args:
      logits: float32 [N, K] of the test examples.
    """
    run, splits, config, state = setup.run, setup.splits, setup.config, setup.state
    test, terminal = splits.test, setup.terminal
    metrics = metrics_of_network(test.labels, logits, splits.classes, groups=test.patients)
    metrics |= {
        "split": "test",
        "best_epoch": state.stopping.best_epoch + 1,
        "epochs": state.position.epoch,
        "patients": None if test.patients is None else len(set(test.patients)),
        "notes": list(splits.notes),
        "initial_weights": config.pretrained.source,
        "test_time_augmentation": config.test_time_augmentation,
    }
    if run.writes:
        plot_history(
            state.position.history,
            run.path / "history.png",
            best_epoch=state.stopping.best_epoch + 1,
            prior_entropy=prior_entropy(splits.train.labels),
        )
        run.write_history(state.position.history)
        numbers = {"weight": test.weights, "mpp": test.mpp}
        known = {name: values.tolist() for name, values in numbers.items() if values is not None}
        # Last, since these files say that the run is finished.
        write_report(
            run.path,
            metrics=metrics,
            ids=test.ids,
            labels=test.labels,
            logits=logits,
            classes=splits.classes,
            patients=test.real_patients,
            columns={**test.columns, **known},
        )
    interval = metrics["auroc_interval"]
    terminal.say(
        f"test: loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.3f}  AUROC "
        f"{metrics['auroc']:.3f} (95% {interval['low']:.3f} to {interval['high']:.3f}, "
        f"{interval['method']})  n {metrics['n']}"
    )
    if message := collapse_message(metrics):
        terminal.banner(message)
    terminal.say(f"results: {run.path}")
    return jsonable(metrics)
