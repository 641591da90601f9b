"""How many wrong labels the first tenth of a label review holds.

    python benchmarks/label_review.py synthetic
    python benchmarks/label_review.py FOLDER

FOLDER has a `manifest.csv` with patients; `synthetic` is the embedded data. In each of three draws
5% of the labels, drawn from all patches alike, are changed on purpose, AlexNet-mini is
cross-validated on these labels in five folds by patient at 96 x 96, and `rank_label_errors` ranks
the patches by its out-of-fold predictions. Prints for each draw how many of the changed labels are
in the first tenth of the list, how many chance would put there, and what confident learning counts
as errors. Folds that are finished are not trained again, so the table can be printed at any time.
"""

import argparse
import csv
import dataclasses
import pathlib

import jax
import numpy as np
from real_tissue import load_config
from tissue_study import CONDITIONS, CONFIG

from glomjax.data import synthetic
from glomjax.data.examples import SPLITS
from glomjax.data.sources.manifest import LABEL_BEFORE
from glomjax.evaluation.label_errors import rank_label_errors
from glomjax.files import cache_dir, csv_text
from glomjax.inference.saved_predictions import read_predictions
from glomjax.training import cross_validate

CHANGED = 0.05  # of the labels
FIRST = 0.1  # of the list
FOLDS = 5
# By which a network has learnt nearly all that it will; the embedded data is easier.
EPOCHS, SYNTHETIC_EPOCHS = 15, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder with a manifest.csv, or synthetic")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/label_review"))
    args = parser.parse_args()

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    folder = pathlib.Path(args.source)
    if args.source == "synthetic":
        folder = write_synthetic(args.workdir / "synthetic_patches")
    lines = []
    for draw in args.draws:
        work = args.workdir / f"{folder.name}-draw{draw}"
        manifest = args.workdir / f"{folder.name}-draw{draw}.csv"
        write_changed(folder / "manifest.csv", manifest, draw)
        config = load_config(CONFIG)
        config.seed = config.data.split_seed = draw
        config.data.source = str(manifest)
        config.data.allow_outside = True  # the table lies in the work folder
        config.image_size = (args.image_size, args.image_size)
        config.num_epochs = SYNTHETIC_EPOCHS if args.source == "synthetic" else EPOCHS
        # Of 32, an epoch has a dozen steps, and early stopping may end a run before it learns.
        config.batch_size, config.stratified_batches = 8, True
        config.augmentation.update(CONDITIONS["moderate"])
        metrics = cross_validate(config, work, folds=FOLDS)
        lines.append(judge(work, draw, metrics["pooled_recalibrated"]["auroc"]))
    print("| draw | AUROC | in the first tenth | of the changed | times chance | ", end="")
    print("counted as wrong, of these changed |\n|---|---|---|---|---|---|")
    for line in lines:
        print(line.row)
    share, times = (np.mean([getattr(line, name) for line in lines]) for name in ("share", "times"))
    print(f"| mean | | | {share:.0%} | {times:.1f} | |")


@dataclasses.dataclass(frozen=True)
class Line:
    """What the list of a draw holds: a row of the table, the share of the changed labels that is in
    its first tenth, and how many times as many these are as by chance."""

    row: str
    share: float
    times: float


def write_changed(manifest: pathlib.Path, out: pathlib.Path, draw: int) -> None:
    """The manifest with absolute paths and 5% of its labels changed to another class."""
    with open(manifest, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng(draw)
    classes = sorted({row["label"] for row in rows})
    for i in rng.choice(len(rows), round(CHANGED * len(rows)), replace=False):
        others = [name for name in classes if name != rows[i]["label"]]
        rows[i] |= {LABEL_BEFORE: rows[i]["label"], "label": str(rng.choice(others))}
    for row in rows:
        row["path"] = str((manifest.parent / row["path"]).absolute())
        row.setdefault(LABEL_BEFORE, "")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(csv_text([list(rows[0]), *(list(row.values()) for row in rows)]))


def write_synthetic(folder: pathlib.Path) -> pathlib.Path:
    """The embedded data as files with a manifest, since it has splits of its own."""
    rows = [["path", "label", "patient"]]
    splits = synthetic.load()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        part = splits[split]
        for i, name in enumerate(part.ids):
            file = folder / "images" / f"{name.replace('/', '_')}.png"
            if not file.exists():
                file.write_bytes(bytes(part.read(i)))
            label, patient = splits.classes[part.labels[i]], (part.patients or ())[i]
            rows.append([str(file.relative_to(folder)), label, patient])
    (folder / "manifest.csv").write_text(csv_text(rows))
    return folder


def judge(work: pathlib.Path, draw: int, area: float) -> Line:
    """Looks for the changed labels in the list of a cross-validation."""
    table = read_predictions(work)
    labels = [table.classes.index(name) for name in table.columns["label"]]
    changed = np.array([bool(name) for name in table.columns[LABEL_BEFORE]])
    errors = rank_label_errors(labels, table.logits)
    first = errors.order[: round(FIRST * len(labels))]
    found = int(changed[first].sum())
    share, times = found / changed.sum(), found / (changed.mean() * len(first))
    counted = errors.counted_as != labels
    held = f"{found} of {len(first)} | {found} of {changed.sum()}, {share:.0%}"
    return Line(
        f"| {draw} | {area:.3f} | {held} | {times:.1f} | {counted.sum()}, "
        f"{(counted & changed).sum()} |",
        share,
        times,
    )


if __name__ == "__main__":
    main()
