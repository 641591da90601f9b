"""Trains one config on a folder of real patches, patients apart, over several seeds.

    python benchmarks/real_tissue.py FOLDER --config configs/alexnet_mini.py --seeds 0 1 2 \
        --test I_3_S_1 I_4_S_4 I_2_S_3 --validation I_4_S_3 I_1_S_4

FOLDER has a `manifest.csv` with the columns path, label and patient. Without --test and
--validation, each seed also draws the split. Prints a line per seed and the mean.
"""

import argparse
import csv
import importlib.util
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from glomjax.files import cache_dir
from glomjax.training import train_and_evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--config", type=pathlib.Path, required=True)
    parser.add_argument("--mode", default="", help="the config's argument, such as scratch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", nargs="*", default=[], help="patients of the test split")
    parser.add_argument("--validation", nargs="*", default=[], help="patients to stop by")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--size", type=int, default=280, help="the image's height and width")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/real_tissue"))
    args = parser.parse_args()

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    source = args.folder
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.test:
        source = args.workdir / "split.csv"
        write_split(args.folder, source, args.test, args.validation)

    results = []
    for seed in args.seeds:
        config = load_config(args.config, args.mode)
        config.seed = config.data.split_seed = seed
        config.data.source = str(source)
        # The table of a given split lies in the work folder.
        config.data.allow_outside = bool(args.test)
        config.precision, config.image_size = args.precision, (args.size, args.size)
        metrics = train_and_evaluate(config, args.workdir / f"{args.config.stem}-seed{seed}")
        results.append(metrics)
    print("seed  epochs  best  n  patients  loss  accuracy  AUROC (95% interval)  collapsed")
    for seed, m in zip(args.seeds, results, strict=True):
        interval = m["auroc_interval"]
        print(
            f"{seed}  {m['epochs']}  {m['best_epoch']}  {m['n']}  {m['patients']}  "
            f"{m['loss']:.3f}  {m['accuracy']:.3f}  {m['auroc']:.3f} ({interval['low']:.3f} to "
            f"{interval['high']:.3f}, {interval['method']})  {m['collapsed']}"
        )
    for name in ("auroc", "loss", "accuracy"):
        values = [m[name] for m in results]
        print(f"mean {name}: {np.mean(values):.3f}, from {min(values):.3f} to {max(values):.3f}")


def load_config(path: pathlib.Path, mode: str = "") -> ConfigDict:
    """What the `get_config` of a file gives, for a run whose numbers alone are looked at."""
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(mode) if mode else module.get_config()
    config.report = "none"
    return config


def write_split(
    folder: pathlib.Path, out: pathlib.Path, test: list[str], validation: list[str]
) -> None:
    """A manifest of the folder's patches with a split column, by patient."""
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "split"])
        for row in rows:
            patient = row["patient"]
            split = (
                "test" if patient in test else "validation" if patient in validation else "train"
            )
            path = (folder / row["path"]).absolute()
            writer.writerow([path, row["label"], patient, split])


if __name__ == "__main__":
    main()
