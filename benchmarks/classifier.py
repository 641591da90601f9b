"""A trained network at work: how long it takes to load, and what the loop around its step costs.

    python benchmarks/classifier.py [--rounds 5] [--batches 6] [--patches FOLDER]

For each network at 280 x 280 (random values: the arithmetic is that of trained ones), in one run:
seconds of `load_classifier` in a fresh process whose compilation cache is warm, and until the first
prediction; images a second of `predict` on decoded arrays and of the compiled step alone, in turns.
Then the command `glomjax predict` in processes of their own: images a second of DaViT-T on a folder
of patches, of which the embedded ones are 900, from its first row to its last, beside the step; and
what it adds to its memory over 100,000 files, with a network of two blocks.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from flax import nnx
from PIL import Image

from glomjax import load_classifier
from glomjax.data.sources import read_source
from glomjax.models import create_model, params_of, settled_options
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.pretrained import write_weights
from glomjax.pretrained.spec import NetworkSpec

BATCH = 8
NETWORKS = {"davit_tiny": {"preset": "kecam"}, "alexnet_mini": {}, "googlenet": {}}
TWO_BLOCKS = {"depths": (1,), "embed_dims": (8,), "num_heads": (1,)}

LOAD = """
import json, sys, time
begun = time.perf_counter()
import numpy as np
import glomjax
classifier = glomjax.load_classifier(sys.argv[1])
loaded = time.perf_counter() - begun
classifier.predict(np.zeros((*classifier.spec.image_size, 3), np.uint8))
print(json.dumps([loaded, time.perf_counter() - begun]))
"""


def write_network(file: pathlib.Path, name: str, size: int, options: dict) -> None:
    """A network of two classes with random values, as a converted run leaves it."""
    image_size = (size, size)
    model = create_model(name, image_size=image_size, rngs=nnx.Rngs(0), **options)
    spec = NetworkSpec(
        architecture=name,
        options=settled_options(name, image_size, options),
        outputs=1,
        classes=("other", "glomerulus"),
        image_size=image_size,
        preprocessing=IMAGENET,
        device_batch=BATCH,
    )
    write_weights(file, params_of(model), spec)


def in_a_fresh_process(code: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", code, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rates(file: pathlib.Path, rounds: int, batches: int) -> tuple[list[float], list[float]]:
    """Images a second of `predict` and of the compiled step alone, a pair a round."""
    classifier = load_classifier(file)
    size = classifier.spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (BATCH * batches, *size, 3), np.uint8)
    (network,) = classifier._networks
    classifier.predict(images[:BATCH])
    whole, alone = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        classifier.predict(images)
        whole.append(len(images) / (time.perf_counter() - begun))
        begun = time.perf_counter()
        for n in range(batches):
            np.asarray(network.run(images[n * BATCH : (n + 1) * BATCH], "network"))
        alone.append(len(images) / (time.perf_counter() - begun))
    return whole, alone


def follow(
    file: pathlib.Path, data: pathlib.Path, out: pathlib.Path
) -> list[tuple[float, int, float]]:
    """(seconds, rows, MiB of memory) of `glomjax predict` from its first rows to its last."""
    command = [sys.executable, "-m", "glomjax", "predict", str(file), "--data", str(data)]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    part, rows, size = pathlib.Path(f"{out}.part"), 0, 0
    seen: list[tuple[float, int, float]] = []
    while process.poll() is None:
        now = time.perf_counter()
        with contextlib.suppress(OSError), open(part, "rb") as table:
            table.seek(size)
            new = table.read()
            size, rows = size + len(new), rows + new.count(b"\n")
            with open(f"/proc/{process.pid}/status") as status:
                told = [line.split()[1] for line in status if line.startswith("VmRSS")]
            if told and rows > 1 and (not seen or rows - 1 > seen[-1][1]):
                seen.append((now, rows - 1, int(told[0]) / 1024))  # without the header
        time.sleep(0.02)
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(err.decode())
    return seen


def step_rate(file: pathlib.Path, batches: int) -> float:
    """Images a second of the compiled step alone."""
    return statistics.median(rates(file, 3, batches)[1])


def write_embedded(folder: pathlib.Path) -> None:
    """The embedded patches as files."""
    folder.mkdir()
    patches, read, _ = read_source("synthetic")
    for n, patch in enumerate(patches):
        encoded = read(patch.id)
        assert isinstance(encoded, bytes)
        (folder / f"{n:03d}.png").write_bytes(encoded)


def write_links(folder: pathlib.Path, count: int) -> None:
    """So many files of 500 small pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(500):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{n:06d}.png")
    for n in range(500, count):
        os.link(folder / f"{n % 500:06d}.png", folder / f"{n:06d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="of 8 images, in a round")
    parser.add_argument("--images", type=int, default=100_000, help="files of the last part")
    parser.add_argument("--patches", type=pathlib.Path, help="a folder of patches of 280 x 280")
    arguments = parser.parse_args()
    print(f"{'network':<14}{'loaded s':>10}{'first s':>9}{'predict':>10}{'step':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in NETWORKS.items():
            file = pathlib.Path(folder) / f"{name}.safetensors"
            write_network(file, name, 280, options)
            in_a_fresh_process(LOAD, str(file))  # fills the cache
            seconds = [in_a_fresh_process(LOAD, str(file)) for _ in range(3)]
            loaded, first = (statistics.median(part) for part in zip(*seconds, strict=True))
            whole, alone = rates(file, arguments.rounds, arguments.batches)
            ratio = statistics.median(w / a for w, a in zip(whole, alone, strict=True))
            print(
                f"{name:<14}{loaded:>10.1f}{first:>9.1f}{statistics.median(whole):>10.2f}"
                f"{statistics.median(alone):>10.2f}{ratio:>8.3f}"
            )
        file = pathlib.Path(folder) / "davit_tiny.safetensors"
        patches = arguments.patches or pathlib.Path(folder) / "patches"
        if arguments.patches is None:
            write_embedded(patches)
        before = step_rate(file, arguments.batches)
        seen = follow(file, patches, pathlib.Path(folder) / "davit.csv")
        step = (before + step_rate(file, arguments.batches)) / 2
        (start, first, _), (end, last, _) = seen[0], seen[-1]
        rate = (last - first) / (end - start)
        print(
            f"glomjax predict, DaViT-T, {last} files: {rate:.2f} images/s, {rate / step:.3f} of "
            f"the step's {step:.2f} before and after it"
        )
        file = pathlib.Path(folder) / "small.safetensors"
        write_network(file, "davit_tiny", 64, TWO_BLOCKS)
        write_links(pathlib.Path(folder) / "many", arguments.images)
        seen = follow(file, pathlib.Path(folder) / "many", pathlib.Path(folder) / "many.csv")
        early = next(memory for _, rows, memory in seen if rows >= 2000)
        print(
            f"glomjax predict, {seen[-1][1]} files: {early:.0f} MiB after 2,000, "
            f"{seen[-1][2]:.0f} at the end, {max(memory for *_, memory in seen):.0f} at most"
        )


if __name__ == "__main__":
    main()
