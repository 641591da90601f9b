"""What augmentation gains on real patches, and what a split by file changes.

    python benchmarks/tissue_study.py FOLDER

FOLDER has a `manifest.csv` with patients. One network is trained under several conditions, each
three times: run n has seed n and tests fold n of three, so that over the three runs every patch is
tested once. Under `by file` the same folds are drawn without the patients. Prints, for each
condition, the loss and AUROC of each fold's test and of all patches together. Runs that are
finished are not run again, so the table can be printed at any time.
"""

import argparse
import csv
import json
import pathlib

import jax
import numpy as np
from real_tissue import load_config

from glomjax.evaluation import auroc
from glomjax.files import cache_dir
from glomjax.training import train_and_evaluate

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "alexnet_mini.py"
FOLDS = 3
# With the published 7 and 3 several runs end at ln 2: the network needs up to a dozen epochs of
# these few patches before its validation loss moves.
STOPPING_PATIENCE, PLATEAU_PATIENCE = 15, 7
CONDITIONS: dict[str, dict[str, float]] = {
    "none": {},
    "by file": {},
    "symmetries": {"symmetries": 1.0},
    "moderate": {
        "symmetries": 1.0,
        "crop": 0.2,
        "rotation": 10.0,
        "stain": 0.05,
        "brightness": 0.1,
        "contrast": 0.1,
    },
    "strong": {
        "symmetries": 1.0,
        "crop": 0.4,
        "rotation": 45.0,
        "stain": 0.15,
        "brightness": 0.2,
        "contrast": 0.2,
        "hue": 0.05,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--image-size", type=int, default=140)
    # Of 32, an epoch has ten steps, and early stopping may end a run before it leaves ln 2.
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/tissue_study"))
    args = parser.parse_args()

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    args.workdir.mkdir(parents=True, exist_ok=True)
    without_patients = args.workdir / "by_file.csv"
    write_without_patients(args.folder, without_patients)
    for fold in range(FOLDS):
        for condition in args.conditions:
            config = load_config(CONFIG)
            config.seed = fold
            config.batch_size = args.batch_size
            config.early_stopping.patience = STOPPING_PATIENCE
            config.plateau.patience = PLATEAU_PATIENCE
            config.image_size = (args.image_size, args.image_size)
            config.data.source = str(without_patients if condition == "by file" else args.folder)
            # The table without patients lies in the work folder.
            config.data.allow_outside = condition == "by file"
            config.data.folds, config.data.fold = FOLDS, fold
            for effect, strength in CONDITIONS[condition].items():
                config.augmentation[effect] = strength
            train_and_evaluate(config, run_folder(args.workdir, condition, fold))

    print("condition   | pooled loss  AUROC | each fold: epochs, loss, AUROC")
    for condition in args.conditions:
        folds = [run_folder(args.workdir, condition, fold) for fold in range(FOLDS)]
        metrics = [json.loads((folder / "test_metrics.json").read_text()) for folder in folds]
        labels, probabilities = pooled(folds)
        truth = np.where(labels == 1, probabilities, 1 - probabilities)
        each = ", ".join(f"{m['epochs']} {m['loss']:.3f} {m['auroc']:.3f}" for m in metrics)
        print(
            f"{condition:<11} | {-np.log(truth).mean():.3f}  {auroc(labels, probabilities):.3f} | "
            f"{each}"
        )


def run_folder(workdir: pathlib.Path, condition: str, fold: int) -> pathlib.Path:
    return workdir / f"{condition.replace(' ', '_')}-fold{fold}"


def write_without_patients(folder: pathlib.Path, out: pathlib.Path) -> None:
    """A manifest of the folder's patches that tells nothing of patients and slides."""
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([(folder / row["path"]).absolute(), row["label"]] for row in rows)


def pooled(runs: list[pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
    """(labels int [N], probability of a glomerulus [N]) of all test patches."""
    labels, probabilities = [], []
    for run in runs:
        with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                labels.append(int(row["label"] == "glomerulus"))
                probabilities.append(float(row["probability_glomerulus"]))
    return np.array(labels), np.array(probabilities)


if __name__ == "__main__":
    main()
