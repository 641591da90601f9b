"""What a result says to the items of reporting guidelines, in sentences made from its files alone.

Each function takes the facts as `Checklist.answers` has them and gives sentences: "" where these
show nothing; where they lack part of what a sentence needs, it raises LookupError.
"""

import collections
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from glomjax.errors import excerpt, plural
from glomjax.evaluation.report import estimate_text, measure_title
from glomjax.report import checklist_data as data
from glomjax.report.checklist_facts import (
    MOST_VALUES,
    Facts,
    classes_of,
    config_of,
    environment_of,
    estimates_of,
    get,
    judged,
    later_training,
    listed,
)


def _goal(facts: Facts) -> str:
    classes = classes_of(facts)
    done = {
        "run": "A network was trained on a training split and judged on a test split",
        "crossval": "Networks were trained and judged by cross-validation",
        "evaluation": "Trained networks were judged on labelled patches",
    }.get(facts.get("kind", ""), "")
    return f"{done}, to tell {classes} in patches." if classes and done else ""


def _architecture(facts: Facts) -> str:
    model = get(facts, "config", "model") or {}
    if not model.get("name"):
        names = sorted(
            {n.get("architecture", "") for n in get(facts, "metrics", "networks") or ()} - {""}
        )
        return f"Networks: {', '.join(names)}." if names else ""
    size = config_of(facts).get("image_size")
    text = f"{model['name']}" + (f", input {size[0]} x {size[1]} x 3" if size else "")
    if options := model.get("options"):
        text += f", options {', '.join(f'{k} {v}' for k, v in options.items())}"
    lines = (facts.get("summary") or "").strip().splitlines()
    if lines and "parameters" in lines[-1]:
        text += f"; {lines[-1]} (summary.txt lists each)"
    return f"{text}."


def _software(facts: Facts) -> str:
    found = environment_of(facts)
    parts = [f"{name} {version}" for name, version in (found.get("packages") or {}).items()]
    if not parts and (version := get(facts, "metrics", "glomjax_version")):
        parts = [f"glomjax {version}"]
    if python := found.get("python"):
        parts.append(f"Python {python}")
    if not parts:
        return ""
    text = f"{', '.join(parts)}"
    if found.get("devices"):
        devices = collections.Counter(found["devices"])
        text += ", on " + ", ".join(f"{n} x {name}" for name, n in devices.items())
    if found.get("platform"):
        text += f" ({found['platform']})"
    return f"{text}."


def _initialisation(facts: Facts) -> str:
    source = get(facts, "config", "pretrained", "source")
    if not source:
        return ""
    seed = config_of(facts).get("seed")
    begun = f"Weights begin from '{excerpt(pathlib.PurePath(str(source)).name)}'"
    if source == "none":
        begun = "Weights begin from random values" + ("" if seed is None else f" (seed {seed})")
    regime = {
        "full": "all of them train",
        "scratch": "all of them train",
        "head_only": "the head alone trains",
        "partial": "those up to a cut are frozen",
        "rules": "rules say which train",
    }.get(get(facts, "config", "freeze", "regime") or "", "")
    if regime:
        regime += later_training(config_of(facts))
    return f"{begun}; {regime}." if regime else f"{begun}."


def _training(facts: Facts) -> str:
    config = config_of(facts)
    text = (
        f"{config['optimizer']}, first learning rate {config['learning_rate']:g}, schedule "
        f"{config['schedule']}, batches of {config['batch_size']}, weight decay "
        f"{config['weight_decay']:g}, label smoothing {config['label_smoothing']:g}, augmentation "
        f"'{config['augmentation']['preset']}', {config['precision']}, seed {config['seed']}"
    )
    if epochs := get(facts, "metrics", "epochs"):
        text += f"; {epochs} epochs of at most {config['num_epochs']}"
    return f"{text}; config.json has every setting."


def _selection(facts: Facts) -> str:
    stopping = config_of(facts)["early_stopping"]
    text = (
        f"The weights of the epoch with the best {stopping['monitor']} are kept, and training ends "
        f"after {stopping['patience']} epochs without a better one"
    )
    if best := get(facts, "metrics", "best_epoch"):
        text += f"; epoch {best} was best"
    if looks := get(facts, "metrics", "test_evaluations"):
        text += f". The test split was judged {'once' if looks == 1 else f'{looks} times'}"
    return f"{text}."


def _ensemble(facts: Facts) -> str:
    networks, kind = get(facts, "metrics", "networks") or (), facts.get("kind")
    if kind not in ("run", "evaluation") or not get(facts, "metrics", "n"):
        return ""
    if kind == "evaluation" and not networks:
        return ""
    text = "A single network; no ensemble."
    if len(networks) > 1:
        text = f"The probabilities of {len(networks)} networks were averaged."
    turned = [get(facts, "metrics", "test_time_augmentation")]
    if any([*turned, *(network.get("test_time_augmentation") for network in networks)]):
        text += " Each patch was scored as the mean over its flips and quarter turns."
    return text


def _metrics(facts: Facts) -> str:
    names = [measure_title(name) for name in estimates_of(facts)]
    if not names:
        return ""
    text = f"{listed(names)}"
    controls = get(facts, "metrics", "controls")
    if controls:
        text += f"; compared with logistic regressions on {listed(list(controls))}"
    return f"{text[0].upper()}{text[1:]}."


def _uncertainty(facts: Facts) -> str:
    by_method: dict[str, list[str]] = collections.defaultdict(list)
    for name, estimate in estimates_of(facts).items():
        by_method[estimate.get("method") or "none"].append(measure_title(name))
    without = by_method.pop("none", [])
    if not by_method:
        return ""
    parts = [f"{', '.join(names)}: {method}" for method, names in by_method.items()]
    text = f"95% intervals ({'; '.join(parts)})"
    return f"{text}; none for {listed(without)}." if without else f"{text}."


def _robustness(facts: Facts) -> str:
    seeds = get(facts, "metrics", "between_repeats")
    if not seeds or seeds.get("auroc") is None:
        return ""
    return f"Between seeds the AUROC has a standard deviation of {seeds['auroc']:.3f}."


def _explainability(facts: Facts) -> str:
    if not get(facts, "saliency"):
        return ""
    correlations = get(facts, "randomised")
    checked = ""
    if correlations:
        last = list(correlations.values())[-1]
        checked = (
            f" With random weights in place of all trained ones their rank correlation with the "
            f"maps of the trained network is {last:.2f}."
        )
    return f"Maps of the worst errors and the least certain patches by Grad-CAM.{checked}"


def _internal(facts: Facts) -> str:
    return "" if facts.get("kind") not in ("run", "crossval") else _performance(facts)


def _performance(facts: Facts) -> str:
    estimates = estimates_of(facts)
    if "auroc" not in estimates:
        return ""
    where = {"run": "on the test split", "crossval": "over all folds, pooled"}
    at = where.get(facts.get("kind", ""), "on these patches")
    text = f"AUROC {at} {estimate_text(estimates['auroc'])}"
    best = get(facts, "metrics", "best_epoch")
    found: Mapping[str, Any] = {}
    for row in facts.get("history") or ():
        if row.get("epoch") == best:
            found = row
    values = [
        f"{name} {found[key]:.3f}"
        for name, key in (
            ("training accuracy", "accuracy"),
            ("validation accuracy", "val_accuracy"),
            ("validation AUROC", "val_auroc"),
        )
        if found.get(key) is not None
    ]
    if values:
        text += f"; at the best epoch {listed(values)}"
        if "accuracy" in estimates:
            text += f", and test accuracy {estimate_text(estimates['accuracy'])}"
    return f"{text}."


def _estimate_list(facts: Facts) -> str:
    parts = [
        f"{measure_title(n)} {estimate_text(found)}" for n, found in estimates_of(facts).items()
    ]
    return f"{'; '.join(parts)} (95% intervals)." if parts else ""


def _failures(facts: Facts) -> str:
    metrics = judged(facts)
    matrix, classes = metrics.get("confusion_matrix"), metrics.get("classes")
    if not matrix or not classes:
        return ""
    parts = [
        f"{n} of {sum(row)} {excerpt(classes[i], 40)} were taken for {excerpt(classes[j], 40)}"
        for i, row in enumerate(matrix)
        for j, n in enumerate(row)
        if i != j and n
    ]
    more = len(parts) - MOST_VALUES
    text = "; ".join(parts[:MOST_VALUES]) + (f"; and {more} more kinds" if more > 0 else "")
    first = "In the first repeat, " if (get(facts, "metrics", "repeats") or 1) > 1 else ""
    said = f"{first}{text or 'no patch was misclassified'}."
    return f"{said[0].upper()}{said[1:]}"


def _limitations(facts: Facts) -> str:
    metrics = facts.get("metrics") or {}
    told = [metrics.get("control_message") or "", *(metrics.get("notes") or ())]
    known = [e for e in estimates_of(facts).values() if e.get("low") is not None]
    parts = {part for e in known for part in (e.get("note") or "").split("; ")}
    # How bounds were had of several repeats is a method.
    told += sorted(part for part in parts if not part.startswith("the mean of the bounds"))
    sentences = [f"{text[0].upper()}{text[1:].removesuffix('.')}." for text in told if text]
    return " ".join(sentences)


def _code(facts: Facts) -> str:
    found = environment_of(facts)
    packages, git = found.get("packages") or {}, found.get("git") or {}
    version = packages.get("glomjax") or get(facts, "metrics", "glomjax_version")
    if not version:
        return ""
    commit = git.get("commit")
    text = f"glomjax {version}" + (f", commit {commit}" if commit else "")
    if git.get("uncommitted_changes"):
        text += " with changes that are not committed"
    return f"{text}."


def _predictors(facts: Facts) -> str:
    return "The pixels of a patch and nothing else." if _architecture(facts) else ""


def _building(facts: Facts) -> str:
    if facts.get("kind") == "evaluation":
        return ""
    parts = (_architecture(facts), _initialisation(facts), _training(facts), _selection(facts))
    return " ".join(filter(None, parts))


def _clusters(facts: Facts) -> str:
    kind = get(facts, "metrics", "clustered_by")
    return f"Intervals count {plural(kind)}, not patches." if kind else ""


def _updating(facts: Facts) -> str:
    rule = get(facts, "metrics", "threshold_rule")
    if facts.get("kind") != "evaluation" or not rule:
        return ""
    return f"No network was updated or recalibrated on these patches; threshold: {rule}."


def _predictions(facts: Facts) -> str:
    networks = get(facts, "metrics", "networks")
    if facts.get("kind") != "evaluation" or not networks:
        return ""
    names = [f"{n.get('architecture')} (sha256 {n.get('sha256', '')[:12]})" for n in networks]
    version = get(facts, "metrics", "glomjax_version")
    return f"By {listed(names)}" + (f" with glomjax {version}." if version else ".")


def _imbalance(facts: Facts) -> str:
    config = config_of(facts)
    if "class_weights" not in config:
        return ""
    weights = config["class_weights"]
    text = "No class weights" if weights == "none" else f"Class weights '{weights}'"
    if config.get("stratified_batches"):
        text += "; each batch has the classes in their proportions"
    temperature = get(facts, "config", "decision", "temperature")
    if facts.get("kind") == "crossval":
        text += "; the logits of each network are recalibrated on its own validation split"
    elif temperature is not None:
        fitted = "the temperature was fitted on the validation split"
        text += f"; {fitted if temperature else 'probabilities are not recalibrated'}"
    return f"{text}."


def _output(facts: Facts) -> str:
    metrics, classes = facts.get("metrics") or {}, classes_of(facts)
    threshold = metrics.get("threshold")
    if not classes:
        return ""
    if threshold is None:
        return f"The probabilities of {classes}."
    rule = metrics["threshold_rule"]
    if facts.get("kind") == "crossval":
        return (
            f"The probabilities of {classes}; positive above 0.5 in these results, and above "
            f"{threshold:.4g} for the ensemble of the folds (rule: {rule})."
        )
    return f"The probabilities of {classes}; positive above {threshold:.4g} (rule: {rule})."


def _model(facts: Facts) -> str:
    if facts.get("kind") not in ("run", "crossval") or not _architecture(facts):
        return ""
    return f"{_architecture(facts)} The weights are in the run's folder, for `load_classifier`."


def _between_clusters(facts: Facts) -> str:
    found = get(facts, "metrics", "between_patients") or {}
    kind = plural(get(facts, "metrics", "clustered_by") or "patient")
    parts = []
    for name, spread in found.items():
        if isinstance(spread, Mapping) and spread.get("median") is not None:
            low, high = spread["quartiles"]
            parts.append(
                f"{measure_title(name)} of {spread['patients']} {kind}: median "
                f"{spread['median']:.3f}, middle half {low:.3f} to {high:.3f}"
            )
    return f"{'; '.join(parts)}." if parts else ""


ANSWERS: dict[str, Callable[[Facts], str]] = {
    "goal": _goal,
    "source": data.source,
    "preprocessing": data.preprocessing,
    "missing": data.missing,
    "acquisition": data.acquisition,
    "partitions": data.partitions,
    "disjoint": data.disjoint,
    "precision": data.precision,
    "architecture": _architecture,
    "software": _software,
    "initialisation": _initialisation,
    "training": _training,
    "selection": _selection,
    "ensemble": _ensemble,
    "metrics": _metrics,
    "uncertainty": _uncertainty,
    "robustness": _robustness,
    "explainability": _explainability,
    "internal": _internal,
    "included": data.included,
    "characteristics": data.characteristics,
    "performance": _performance,
    "estimates": _estimate_list,
    "failures": _failures,
    "limitations": _limitations,
    "code": _code,
    "outcome": data.outcome,
    "predictors": _predictors,
    "inputs": data.preprocessing,
    "building": _building,
    "clusters": _clusters,
    "updating": _updating,
    "predictions": _predictions,
    "imbalance": _imbalance,
    "output": _output,
    "differences": data.differences,
    "model": _model,
    "between_clusters": _between_clusters,
}
