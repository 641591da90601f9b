"""What networks are worth in another laboratory, and as a start for its own.

    python benchmarks/elsewhere.py kidney_slides biopsy_stains aidpath --finetune biopsy_stains

Each folder has a `manifest.csv` with patients. AlexNet-mini and GoogLeNet learn the first two
folders, split by patient, and each network is judged on all patches of the folders that it has not
seen: AUROC with its interval, accuracy, and how many patches are flagged as unlike its training
images. Then each network is trained on the folder of `--finetune` in three folds by patient, from
random values and from the weights that learnt the first folder. Runs that are finished are not run
again, so the tables can be printed at any time.
"""

import argparse
import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from real_tissue import load_config

from glomjax import load_classifier
from glomjax.evaluation import auroc, classification_metrics
from glomjax.evaluation.intervals import paired_difference
from glomjax.files import cache_dir
from glomjax.inference.evaluation import evaluate
from glomjax.training import train_and_evaluate

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
NETWORKS = ("alexnet_mini", "googlenet")
CLASSES = ("other", "glomerulus")
FOLDS = 3
# As in `tissue_study.py`, where some networks leave ln 2 late.
STOPPING_PATIENCE, PLATEAU_PATIENCE = 15, 7


def train(network: str, source: pathlib.Path, workdir: pathlib.Path, size: int, **changes) -> None:
    """One run by the recipe that all of them have; a finished one is left as it is."""
    config = load_config(CONFIGS / f"{network}.py")
    config.batch_size = 8
    config.early_stopping.patience = STOPPING_PATIENCE
    config.plateau.patience = PLATEAU_PATIENCE
    config.image_size = (size, size)
    config.augmentation.preset = "histology"
    config.data.source = str(source)
    config.update_from_flattened_dict(changes)
    train_and_evaluate(config, workdir)


def train_all(args: argparse.Namespace) -> None:
    for network in NETWORKS:
        for folder in args.folders[:2]:
            train(network, folder, args.workdir / f"{network}-{folder.name}", args.image_size)
    for network in NETWORKS:
        first = args.workdir / f"{network}-{args.folders[0].name}"
        for fold in range(FOLDS):
            folds = {"seed": fold, "data.folds": FOLDS, "data.fold": fold}
            name = f"{network}-{args.finetune.name}-fold{fold}"
            train(
                network, args.finetune, args.workdir / f"{name}-scratch", args.image_size, **folds
            )
            weights = {"pretrained.source": str(first), "freeze.regime": "full"}
            train(
                network,
                args.finetune,
                args.workdir / f"{name}-finetuned",
                args.image_size,
                **folds,
                **weights,
            )


def judge(args: argparse.Namespace) -> None:
    """What each network says of all patches of the other folders."""
    print("trained on | network | judged on | n, patients | AUROC (95%) | accuracy | flagged")
    for folder in args.folders[:2]:
        for network in NETWORKS:
            run = args.workdir / f"{network}-{folder.name}"
            classifier = load_classifier(run)
            line(folder.name, network, "its own test", read(run), "")
            for other in args.folders:
                if other == folder:
                    continue
                out = run.with_name(f"{run.name}-on-{other.name}")
                if not (out / "test_metrics.json").is_file():
                    evaluate(classifier, other, out, report="none")
                found = read(out)
                flagged = f"{found['unlike_training']} of {found['n']}"
                line(folder.name, network, other.name, found, flagged)
            rule = classifier.spec.appearance
            assert rule is not None
            print(f"    the rule flags {rule.false_alarms:.1%} of {rule.groups} patients held out")


def line(trained: str, network: str, judged: str, metrics: Mapping[str, Any], flagged: str) -> None:
    interval = metrics["auroc_interval"]
    print(
        f"{trained} | {network} | {judged} | {metrics['n']}, {metrics['patients']} | "
        f"{metrics['auroc']:.3f} ({interval['low']:.3f} to {interval['high']:.3f}) | "
        f"{metrics['accuracy']:.3f} | {flagged}"
    )


def compare(args: argparse.Namespace) -> None:
    """The three folds from random values and from the first folder's weights, pooled, and the
    difference of the pooled areas with its interval by patient."""
    print(
        "network | start | pooled loss, AUROC (95% by patient) | each fold: best epoch, loss, AUROC"
    )
    for network in NETWORKS:
        of_starts = []
        for start in ("scratch", "finetuned"):
            runs = [
                args.workdir / f"{network}-{args.finetune.name}-fold{fold}-{start}"
                for fold in range(FOLDS)
            ]
            labels, logits, patients = pooled(runs)
            of_starts.append(logits)
            found = classification_metrics(
                labels, np.stack([np.zeros_like(logits), logits], axis=1), CLASSES, patients
            )
            interval = found["auroc_interval"]
            folds = [read(run) for run in runs]
            each = ", ".join(f"{m['best_epoch']} {m['loss']:.3f} {m['auroc']:.3f}" for m in folds)
            print(
                f"{network} | {start} | {found['loss']:.3f}, {found['auroc']:.3f} "
                f"({interval['low']:.3f} to {interval['high']:.3f}) | {each}"
            )
        scratch, finetuned = of_starts
        gain, around = paired_difference(auroc, labels, finetuned, scratch, patients)
        print(f"{network} | gain | {gain:+.3f} ({around.low:+.3f} to {around.high:+.3f}) in AUROC")


def pooled(runs: Sequence[pathlib.Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(labels int [N], logits [N], patients) of the test patches of several runs."""
    rows = []
    for run in runs:
        with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
            rows += list(csv.DictReader(file))
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    logits = np.array([float(row["logit"]) for row in rows])
    return labels, logits, [row["patient"] for row in rows]


def read(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "test_metrics.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    parser.add_argument("--finetune", type=pathlib.Path, required=True)
    parser.add_argument("--image-size", type=int, default=140)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/elsewhere"))
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    train_all(args)
    judge(args)
    compare(args)


if __name__ == "__main__":
    main()
