"""A trained network at work: how long it takes to load, and what the loop around its step costs.

    python benchmarks/classifier.py [--rounds 5] [--batches 6]

For each network at 280 x 280 (random values: the arithmetic is that of trained ones), in one run:
seconds of `load_classifier` in a fresh process whose compilation cache is warm, and until the first
prediction; images a second of `predict` on decoded arrays and of the compiled step alone, in turns;
and what 100,000 images from an iterator add to the memory of a process, with a network of two
blocks.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from flax import nnx

from glomjax import load_classifier
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

MEMORY = """
import json, sys
import numpy as np
import glomjax

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

image = np.zeros((64, 64, 3), np.uint8)
classifier = glomjax.load_classifier(sys.argv[1])
count = done = 0
for part in classifier.iterate(image for _ in range(int(sys.argv[2]))):
    count += 1
    done += len(part)
    if count == 250:
        early = resident()
print(json.dumps([done, early, resident()]))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="of 8 images, in a round")
    parser.add_argument("--images", type=int, default=100_000, help="through the iterator")
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
        file = pathlib.Path(folder) / "small.safetensors"
        write_network(file, "davit_tiny", 64, TWO_BLOCKS)
        done, early, late = in_a_fresh_process(MEMORY, str(file), str(arguments.images))
        print(
            f"{done:.0f} images of an iterator: {early:.0f} MiB after 2,000, {late:.0f} at the end"
        )


if __name__ == "__main__":
    main()
