"""How a result came about, as the paragraph of a methods section."""

import pathlib
from collections.abc import Mapping
from typing import Any

from glomjax.errors import plural
from glomjax.evaluation.calibration import FIXED
from glomjax.report.checklist_data import disjoint
from glomjax.report.checklist_facts import (
    environment_of,
    later_training,
    listed,
    split_summaries,
)
from glomjax.report.result import CROSSVAL, EVALUATION, Result

_NETWORKS = {"alexnet_mini": "AlexNet-mini", "googlenet": "GoogLeNet"}
_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "stochastic gradient descent"}
_REGIMES = {
    "full": "all parameters were trained",
    "scratch": "all parameters were trained",
    "head_only": "only the classification head was trained",
    "partial": "the first part of the network was frozen",
    "rules": "the parameters that rules chose were trained",
}


def network_title(name: str) -> str:
    """How a network is called in a text: `davit_tiny` is DaViT-tiny."""
    return _NETWORKS.get(name, name.replace("davit_", "DaViT-").replace("_", " "))


def paragraph(result: Result) -> str:
    """What was asked and how, in sentences of a methods section, from what the folder says."""
    parts = [_data(result), *_training(result), _decision(result), _intervals(result)]
    parts.append(_software(result))
    return " ".join(part for part in parts if part)


def _data(result: Result) -> str:
    metrics = result.metrics
    classes = listed(result.classes) or "the classes"
    kind = metrics.get("clustered_by")
    if result.kind == CROSSVAL:
        people = f" of {metrics['clusters']} {plural(kind)}" if kind else ""
        times = "" if metrics["repeats"] == 1 else f", {metrics['repeats']} times"
        whole = f", with every {kind} in the test split of one fold" if kind else ""
        return (
            f"Patches were classified as {classes}. {metrics['n']} patches{people} were divided "
            f"into {metrics['folds']} folds{times}{whole}; each network was selected on a "
            "validation split of its own and judged on patches that it had not seen."
        )
    if result.kind == EVALUATION:
        people = f" of {metrics['patients']} {plural(kind)}" if kind else ""
        networks = metrics.get("networks", [])
        names = listed(
            sorted({network_title(network.get("architecture", "")) for network in networks})
        )
        what = "a trained network" if len(networks) == 1 else f"{len(networks)} trained networks"
        seen = metrics.get("seen_in_training")
        known = (
            "part of which had been seen in training"
            if seen
            else "none of which is known to have been seen in training"
        )
        return (
            f"Patches were classified as {classes} by {what} ({names}), judged on "
            f"{metrics['n']} patches{people}, {known}."
        )
    rows = split_summaries(result.facts)
    if not rows:
        return ""
    counts = []
    for row in rows:
        people = f" of {row['patients']} patients" if row["patients"] is not None else ""
        counts.append(f"{row['images']} for {_PURPOSE[row['split']]}{people}")
    of = f" as {classes}" if result.classes else ""
    return f"Patches were classified{of}. There were {listed(counts)}. {disjoint(result.facts)}"


_PURPOSE = {"train": "training", "validation": "validation", "test": "testing"}


def _training(result: Result) -> list[str]:
    config = result.config
    if not config:
        return []
    height, width = config["image_size"]
    name = network_title(config["model"]["name"])
    source = config["pretrained"]["source"]
    begun = (
        "random values" if source == "none" else f"pretrained weights ({pathlib.Path(source).name})"
    )
    regime = _REGIMES.get(config["freeze"]["regime"], config["freeze"]["regime"])
    regime += later_training(config)
    first = (
        f"{name} with inputs of {height} x {width} pixels was trained from {begun}; {regime}. "
        f"Pixels were preprocessed by '{config['preprocessing']}'."
    )
    if config["augmentation"]["preset"] != "none":
        first += f" Training images were augmented ('{config['augmentation']['preset']}')."
    if config["stain_normalization"] != "none":
        first += f" Stains were normalised by the method of {config['stain_normalization']}."
    stopping = config["early_stopping"]
    classes = result.classes or {row.get("label") for row in result.splits}
    loss = "binary cross-entropy" if len(classes) == 2 else "cross-entropy"
    optimizer = _OPTIMIZERS.get(config["optimizer"], config["optimizer"])
    second = (
        f"The {loss} was minimised by {optimizer} with a learning rate of "
        f"{config['learning_rate']:g} (schedule: {config['schedule']}) in batches of "
        f"{config['batch_size']} for at most {config['num_epochs']} epochs; training ended where "
        f"{_monitor(stopping['monitor'])} had not become better for {stopping['patience']} epochs, "
        "and the weights of the best epoch were kept."
    )
    if result.kind == CROSSVAL:
        return [first, second]
    if epochs := result.metrics.get("epochs"):
        second += f" It ended after {epochs} epochs; epoch {result.metrics['best_epoch']} was best."
    return [first, second]


def _monitor(name: str) -> str:
    return {
        "val_loss": "the validation loss",
        "val_accuracy": "the validation accuracy",
        "val_auroc": "the validation AUROC",
    }.get(name, name)


def _decision(result: Result) -> str:
    if len(result.classes) != 2 or result.predictions is None:
        return ""
    threshold, rule = result.predictions.threshold, result.metrics.get("threshold_rule", FIXED)
    positive = result.classes[1]
    if result.kind == CROSSVAL:
        return f"A patch was called {positive} above a recalibrated probability of 0.5."
    chosen = "" if rule == FIXED else f" (chosen on the validation split by the rule {rule})"
    return f"A patch was called {positive} above a probability of {threshold:.3g}{chosen}."


def _intervals(result: Result) -> str:
    if not result.finished:
        return ""
    kind = result.metrics.get("clustered_by")
    if kind is None:
        return "95% intervals take patches as independent, since no patients were known."
    return (
        f"95% intervals count {plural(kind)}, not patches: of the AUROC by Newcombe's method and "
        "of shares by Wilson's, both with numbers divided by a design effect; of the others by a "
        f"jackknife over {plural(kind)}."
    )


def _software(result: Result) -> str:
    packages = environment_of(result.facts).get("packages", {})
    named = [f"{name} {packages[name]}" for name in ("glomjax", "jax", "flax") if name in packages]
    if not named and (version := result.metrics.get("glomjax_version")):
        named = [f"glomjax {version}"]
    seed = result.config.get("seed")
    numbers = "" if seed is None else f", seed {seed}"
    return f"Software: {', '.join(named)}{numbers}." if named else ""


def settings_rows(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(section.field, value) of a configuration, sections written out."""
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            rows += settings_rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
