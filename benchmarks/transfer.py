"""Does pretraining help? A small DaViT, pretrained on the synthetic data, on few real patches.

    python benchmarks/transfer.py FOLDER --train 50 150 0 --seeds 0 1 2 --workdir runs/transfer

FOLDER has a `manifest.csv` with the columns path, label and patient. First the network learns the
`large` synthetic data. Then, for each seed, the folder's patients are divided, and the network is
trained on so many of the training patches (0: all of them; smaller sets lie within larger ones)
from random values, and from the pretrained ones with the head alone, partly and fully thawed; each
until it stops by itself. Prints a row per number of patches and regime: the test AUROC as mean and
Student's 95% interval over the seeds, and by how much it is above that from random values, paired
by seed, since the runs of a seed have the same patients. A study that was cut off goes on where it
was.
"""

import argparse
import csv
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from glomjax.data.sources import load_source
from glomjax.files import cache_dir
from glomjax.training import default_config, train_and_evaluate

REGIMES = ("scratch", "head_only", "partial", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--train", type=int, nargs="+", default=[50, 150, 0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=96, help="the image's height and width")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/transfer"))
    args = parser.parse_args()

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    args.workdir.mkdir(parents=True, exist_ok=True)
    pretrained = args.workdir / "pretrained"
    config = network_config(args.size, "scratch")
    config.data.synthetic_size = "large"
    config.num_epochs = 10
    train_and_evaluate(config, pretrained)

    results: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for count in args.train:
            source = args.workdir / f"patches{count}-seed{seed}.csv"
            write_subset(args.folder, source, count, seed)
            for regime in REGIMES:
                config = network_config(args.size, regime)
                config.seed = seed
                config.data.source = str(source)
                config.data.allow_outside = True  # the table of patches lies in the work folder
                if regime != "scratch":
                    config.pretrained.source = str(pretrained)
                name = f"patches{count}-{regime}-seed{seed}"
                metrics = train_and_evaluate(config, args.workdir / name)
                results.setdefault((count, regime), []).append(metrics)
    print("\n".join(tabulate(results)))


def tabulate(results: dict[tuple[int, str], list[dict[str, Any]]]) -> list[str]:
    """The lines of the table: {(training patches, regime): the test metrics of each seed}."""
    lines = [
        "training patches  regime  test AUROC (95% over seeds)  above scratch (95%, by seed)  "
        "AUROC of each seed  loss  collapsed"
    ]
    for (count, regime), runs in results.items():
        values = [run["auroc"] for run in runs]
        scratch = [run["auroc"] for run in results[count, "scratch"]]
        gain = [value - other for value, other in zip(values, scratch, strict=True)]
        above = (
            "-" if regime == "scratch" else "{:+.3f} ({:+.3f} to {:+.3f})".format(*interval(gain))
        )
        lines.append(
            f"{count or 'all'}  {regime}  "
            + "{:.3f} ({:.3f} to {:.3f})".format(*interval(values))
            + f"  {above}  {' '.join(f'{value:.3f}' for value in values)}  "
            f"{np.mean([run['loss'] for run in runs]):.3f}  "
            f"{sum(run['collapsed'] for run in runs)} of {len(runs)}"
        )
    return lines


def network_config(size: int, regime: str) -> ConfigDict:
    """A DaViT of 1.5 million parameters and its recipe, the same for every regime but the rate."""
    config = default_config()
    config.report = "none"
    config.image_size = (size, size)
    config.model.name = "davit_tiny"
    config.model.options.update(
        {
            "preset": "kecam",
            "depths": (1, 1, 1, 1),
            "embed_dims": (32, 64, 128, 192),
            "num_heads": (1, 2, 4, 6),
            "dropout_rate": 0.3,
        }
    )
    config.batch_size = 8
    config.stratified_batches = True
    config.freeze.regime = regime
    config.learning_rate = 1e-3 if regime == "head_only" else 1e-4
    return config


def write_subset(folder: pathlib.Path, out: pathlib.Path, count: int, seed: int) -> None:
    """A manifest with the seed's split, and `count` of its training patches, classes in turn."""
    splits = load_source(folder, seed=seed)
    rows = []
    for split in ("train", "validation", "test"):
        part = splits[split]
        chosen = np.arange(len(part))
        if split == "train" and count:
            order = np.random.default_rng(seed).permutation(len(part))
            labels = part.labels[order]
            # The k-th of each class comes k-th, whatever the class: balanced and nested.
            turn = np.empty(len(part), int)
            for label in np.unique(labels):
                turn[labels == label] = np.arange(np.sum(labels == label))
            chosen = order[np.argsort(turn, kind="stable")][:count]
        for i in sorted(chosen):
            patient = part.patients[i] if part.patients is not None else ""
            path = (folder / part.ids[i]).absolute()
            rows.append([path, splits.classes[part.labels[i]], patient, split])
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "split"])
        writer.writerows(rows)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and Student's 95% interval, which is the whole line for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("-inf"), float("inf")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


if __name__ == "__main__":
    main()
