"""How fast images come in, beside how fast DaViT-T's training step takes them.

    python benchmarks/input_pipeline.py [SOURCE]

SOURCE is any source of training data; the default is the embedded demo data. Prints images a second
of batches of 8 at 280 x 280: decoded by one thread and by all, from the cache, and with stain
normalisation; and of the compiled training step with every parameter trained, which runs in turn
with them in every round.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
from freezing import Step

from glomjax.data.pipeline import Batches, DecodedImages
from glomjax.data.sources import load_source
from glomjax.data.threads import THREADS
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.decoding import decode_image
from glomjax.preprocessing.preprocessing import IMAGENET

SIZE = (280, 280)
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default="synthetic")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    examples = load_source(args.source).train
    decoded = Batches(DecodedImages(examples, SIZE), BATCH)
    cached = Batches(DecodedImages(examples, SIZE, cache_bytes=2**32), BATCH)
    first = next(cached.epoch())
    batch = {name: first[name] for name in ("image", "label", "mask")}
    step = Step("full", "", batch, "network")

    def one_thread() -> None:
        for i, name in enumerate(examples.ids):
            decode_image(examples.read(i), SIZE, name=name)

    def epoch(batches: Batches) -> Callable[[], None]:
        def run() -> None:
            for _ in batches.epoch(seed=0):
                pass

        return run

    sources: dict[str, Callable[[], None]] = {
        "decoded, one thread": one_thread,
        f"decoded, {THREADS} threads": epoch(decoded),
    }
    for method in stain_normalization.METHODS:
        images = DecodedImages(examples, SIZE)
        statistics_of = stain_normalization.image_statistics
        measured = [statistics_of(method, images[i]) for i in range(len(examples))]
        stain = stain_normalization.fit(method, np.stack(measured))
        images.prepare_with(dataclasses.replace(IMAGENET, stain=stain))
        sources[f"decoded, {method}"] = epoch(Batches(images, BATCH))
    sources["from the cache"] = epoch(cached)
    epoch(cached)()  # fills it

    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(args.rounds):
        for name, run in sources.items():
            begun = time.perf_counter()
            run()
            rates[name].append(len(examples) / (time.perf_counter() - begun))
        step.once()
    trained = BATCH / statistics.median(step.seconds)
    print(f"{len(examples)} images of {args.source}, median of {args.rounds} rounds")
    print(f"{'':<24}{'images/s':>10}{'times the step':>16}")
    print(f"{'DaViT-T training step':<24}{trained:>10.1f}{1:>16.1f}")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:<24}{rate:>10.0f}{rate / trained:>16.0f}")


if __name__ == "__main__":
    main()
