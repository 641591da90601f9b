"""Do saliency maps point to the tuft? Three networks on drawn patches whose tufts are known.

    python benchmarks/saliency.py --workdir runs/saliency

Trains each network at 280 x 280 on the embedded demo data, where the work folder does not have it
yet, and draws further patches of the test split's patients: those of them whose tuft does not hold
the centre of the patch, so that a map that is bright in the middle of every image points beside all
of them. Prints, of the true positives, how many have the peak of their map within the tuft, beside
what the centre and a random place reach; the same of the split's own positives, most of which have
the tuft in the middle; and the check by randomised weights. Beside the runs it writes the overlays
of the misses, or of the peaks that are farthest from the tuft's centre where there is none.

    python benchmarks/saliency.py --workdir runs/saliency --split validation --layers

compares the maps that Grad-CAM may weigh in a DaViT, for which the validation split is there.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from glomjax import load_classifier
from glomjax.cli.configuration import load_config
from glomjax.data import synthetic
from glomjax.data.synthetic.drawing import Patch, draw_patch
from glomjax.files import cache_dir
from glomjax.inference.classifier import Classifier
from glomjax.inference.saliency import METHODS, overlay, randomisation_check
from glomjax.models.davit import DaViT
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import read_weights, write_weights
from glomjax.training import train_and_evaluate

NETWORKS = ("alexnet_mini", "googlenet", "davit")
SIZE = 280
SHOWN = 12  # overlays of a network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/saliency"))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:1])
    parser.add_argument("--count", type=int, default=100, help="patches whose tuft is off centre")
    parser.add_argument("--layers", action="store_true", help="compare the maps of DaViT alone")
    parser.add_argument("--check", type=int, default=8, help="patches of the randomisation check")
    args = parser.parse_args()

    jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
    args.workdir.mkdir(parents=True, exist_ok=True)
    images, tufts = off_centre(args.split, args.count, args.workdir)
    own, own_tufts = positives(args.split)
    print(
        f"{args.split}: {len(images)} patches off centre, where the tuft is "
        f"{area(tufts):.0%} of the patch; {len(own)} of the split itself, {area(own_tufts):.0%}"
    )
    for name, where in (("off centre", tufts), ("the split's own", own_tufts)):
        centre = np.full((len(where), 2), (SIZE - 1) / 2)
        print(f"  the centre of {name}: {share(distances(centre, where) <= 1)}")
    if args.layers:
        run = train("davit", args.workdir)
        for layer in itertools.product((1, 2, 3, 4), (False, True)):
            with grad_cam_at(layer):
                found, *_ = measure(load_classifier(run), images, tufts, "grad_cam")
            form = "normalised" if layer[1] else "as it is"
            print(f"  davit, the map of stage {layer[0]} {form}: {found}", flush=True)
        return
    for name in args.networks:
        classifier = load_classifier(train(name, args.workdir))
        for method in args.methods:
            found, maps, far = measure(classifier, images, tufts, method)
            print(f"  {name}, {method}: {found}", flush=True)
            if method == "grad_cam":
                found, *_ = measure(classifier, own, own_tufts, method)
                print(f"  {name}, {method}, the split's own: {found}")
                sheet = contact_sheet(images, tufts, maps, far)
                sheet.save(args.workdir / f"{name}_{args.split}_farthest.png")
        if args.check:
            check = randomisation_check(classifier, images[: args.check])
            print(f"  {name}, randomised from the head down (Spearman's correlation):")
            print("    " + ", ".join(f"{stage} {value:.2f}" for stage, value in check.items()))


def train(name: str, workdir: pathlib.Path) -> pathlib.Path:
    """The folder of a network that was trained at 280 x 280 on the demo data, from random values.

    DaViT-T learns at 96 x 96 first, a third of the pixels in each direction, and then at full size
    with the window of that size: from random values at 280 x 280 it would take more than an hour on
    two cores.
    """
    run = workdir / name
    config = load_config(name)
    config.report = "none"
    if name == "googlenet":
        config.demo.image_size = (SIZE, SIZE)
    if name == "davit":
        small = workdir / "davit_96"
        weights = workdir / "davit_96.safetensors"
        if not weights.exists():
            train_and_evaluate(load_config(name), small)
            params, info = read_weights(small)
            options = {**info.spec.options, "window_size": 0}
            write_weights(weights, params, dataclasses.replace(info.spec, options=options))
        config.pretrained.source = str(weights)
        config.freeze.regime = "full"
        config.batch_size = 8
        config.stratified_batches = True
        config.learning_rate = 3e-5
        config.num_epochs = 7
    if not (run / "test_metrics.json").exists():
        train_and_evaluate(config, run)
    return run


def off_centre(split: str, count: int, workdir: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Further patches of a split's patients, whose tufts do not hold the centre of the patch: about
    one of 23 patches with a tuft.

    Returns:
      (images uint8 [N, 280, 280, 3], tufts float32 [N, 3] as `tuft_locations`).
    """
    file = workdir / f"off_centre_{split}.npz"
    if not file.exists():
        index, patients = synthetic.SIZES["demo"][split]
        found: list[Patch] = []
        while len(found) < count:
            index += 1  # behind those of the split itself
            if index % 2:  # those with a tuft
                patch = draw_patch(0, split, index, patients)
                if np.hypot(*(patch.tuft[:2] - (SIZE - 1) / 2)) > patch.tuft[2]:
                    found.append(patch)
        images, tufts = (np.stack([getattr(p, part) for p in found]) for part in ("image", "tuft"))
        np.savez(file, images=images, tufts=tufts)
    stored = np.load(file)
    return stored["images"][:count], stored["tufts"][:count]


def positives(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The patches of a split that have a tuft; as `off_centre`."""
    examples = synthetic.load()[split]
    tufts = synthetic.tuft_locations(split)
    chosen = np.flatnonzero(tufts[:, 2])
    images = [np.asarray(IMAGENET.open(examples.read(i), name=str(i))) for i in chosen.tolist()]
    return np.stack(images), tufts[chosen]


def measure(
    classifier: Classifier, images: np.ndarray, tufts: np.ndarray, method: str
) -> tuple[str, np.ndarray, np.ndarray]:
    """(the share of true positives whose peak lies within the tuft, in words; the maps; the peak's
    distance to the tuft's centre in units of its radius, NaN of the others)."""
    found = np.array(classifier.predict(images).labels) == classifier.spec.positive
    maps = classifier.saliency(images, method)
    peaks = np.array([np.unravel_index(values.argmax(), values.shape) for values in maps])
    far = np.where(found, distances(peaks, tufts), np.nan)
    text = f"{share(far[found] <= 1)}, median distance {np.nanmedian(far):.2f} radii"
    return f"{text}; {len(images) - found.sum()} patches not recognised", maps, far


def distances(points: np.ndarray, tufts: np.ndarray) -> np.ndarray:
    """Of (row, column) [N, 2] to the centres of tufts [N, 3], in units of their radii."""
    return np.hypot(*(points - tufts[:, :2]).T) / tufts[:, 2]


def area(tufts: np.ndarray) -> float:
    """The mean share of the patch that is tuft, and so what a random place reaches."""
    places = np.indices((SIZE, SIZE)).reshape(2, -1).T
    return float(np.mean([np.mean(distances(places, tuft[None]) <= 1) for tuft in tufts]))


def share(hits: np.ndarray) -> str:
    return f"{hits.mean():.0%} ({hits.sum()} of {len(hits)})"


@contextlib.contextmanager
def grad_cam_at(layer: tuple[int, bool]) -> Iterator[None]:
    """Another map of DaViT for Grad-CAM: that of a stage from 1, as its blocks leave it or
    normalised for what follows."""
    network: Any = DaViT
    stage, normalised = layer
    before = {
        name: vars(network)[name] for name in ("MAP_STAGE", "feature_map", "embed_map", "embed")
    }

    def feature_map(self: Any, images: jax.Array, **_: Any) -> jax.Array:
        x, window = self.stem(images), self.window(images.shape[1:3])
        for part in self.stages[:stage]:
            x = part(x, window, deterministic=True, rngs=None)
        return x

    def embed_map(self: Any, x: jax.Array, **_: Any) -> jax.Array:
        window = self.window(self.image_size)
        for part in self.stages[stage:]:
            x = part(x, window, deterministic=True, rngs=None)
        return jnp.mean(self.norm(x), axis=(1, 2))

    try:
        network.MAP_STAGE = stage
        if not normalised:
            network.feature_map, network.embed_map = feature_map, embed_map
            network.embed = lambda self, x, **_: self.embed_map(self.feature_map(x))
        yield
    finally:
        for name, value in before.items():
            setattr(network, name, value)


def contact_sheet(
    images: np.ndarray, tufts: np.ndarray, maps: np.ndarray, far: np.ndarray
) -> Image.Image:
    """Overlays of the true positives whose peak is farthest from the tuft's centre, half as large,
    with the tuft as a white circle and the peak as a cross."""
    chosen = [i for i in np.argsort(-np.nan_to_num(far)) if far[i] == far[i]][:SHOWN]
    columns = SHOWN // 2
    sheet = Image.new("RGB", (columns * SIZE // 2, -(-len(chosen) // columns) * SIZE // 2))
    for place, i in enumerate(chosen):
        picture = Image.fromarray(overlay(images[i], maps[i]))
        draw = ImageDraw.Draw(picture)
        row, column, radius = tufts[i].tolist()
        draw.ellipse(
            (column - radius, row - radius, column + radius, row + radius), outline="white", width=3
        )
        y, x = np.unravel_index(maps[i].argmax(), maps[i].shape)
        draw.line((x - 9, y, x + 9, y), fill="white", width=3)
        draw.line((x, y - 9, x, y + 9), fill="white", width=3)
        corner = place % columns * SIZE // 2, place // columns * SIZE // 2
        sheet.paste(picture.resize((SIZE // 2, SIZE // 2)), corner)
    return sheet


if __name__ == "__main__":
    main()
