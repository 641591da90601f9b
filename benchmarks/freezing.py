"""What a frozen prefix saves: the compiled training step of DaViT-T under each regime.

    python benchmarks/freezing.py --batch 8 --size 280 --repeats 5

Prints, for each regime, what trains, the step's floating-point operations and temporary memory as
XLA counts them, the optimizer's slots, and the median time of `repeats` steps, the regimes in turn
in every round. `head_on_features` is the head alone, as it runs on cached features.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from glomjax.inference.steps import make_predict_step
from glomjax.models import create_model, params_of
from glomjax.preprocessing.preprocessing import IMAGENET
from glomjax.training import parameter_groups
from glomjax.training.steps import make_train_step, zero_sums

REGIMES = (
    ("full", ""),
    ("partial", ""),
    ("partial", "stages/1"),
    ("partial", "stages/2"),
    ("head_only", ""),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=280)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    size = (args.size, args.size)
    rng = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (args.batch, *size, 3), dtype=np.uint8),
        "label": (np.arange(args.batch) % 2).astype(np.int32),
        "mask": np.ones(args.batch, np.float32),
    }
    runs = {}
    for regime, until in REGIMES:
        name = f"{regime} {until}".strip()
        runs[name] = Step(regime, until, batch, "network" if regime != "head_only" else "head")
    runs["head_on_features"] = Step("head_only", "", batch, "head_on_features")
    for _ in range(args.repeats):
        for run in runs.values():
            run.once()
    whole = statistics.median(runs["full"].seconds)
    print(
        f"{'regime':<20}{'tensors':>9}{'parameters':>13}{'GFLOP':>8}{'MB temporary':>14}"
        f"{'MB slots':>10}{'s a step':>10}{'times full':>12}"
    )
    for name, run in runs.items():
        seconds = statistics.median(run.seconds)
        print(
            f"{name:<20}{len(run.trainable):>9}{run.parameters:>13,}{run.flops / 1e9:>8.1f}"
            f"{run.temporary / 1e6:>14.0f}{run.slots / 1e6:>10.1f}{seconds:>10.4f}"
            f"{whole / seconds:>12.1f}"
        )


class Step:
    """A compiled training step with its own state."""

    def __init__(self, regime: str, until: str, batch: dict[str, np.ndarray], trains: str):
        def create() -> nnx.Module:
            size = batch["image"].shape[1:3]
            return create_model("davit_tiny", rngs=nnx.Rngs(0), image_size=size)

        model: Any = nnx.eval_shape(create)
        (phase,) = parameter_groups.plan(model, regime, until=until)
        parameter_groups.disable_regularisation_in_frozen_layers(model, phase.labels)
        graphdef, _ = nnx.split(model, nnx.Param)
        params = params_of(create())
        if trains == "head_on_features":
            embed = make_predict_step(graphdef, IMAGENET, part="embed")
            batch = batch | {"image": np.asarray(embed(params, batch["image"]))}
        groups = parameter_groups.thaw_groups((phase,))
        optimizer = parameter_groups.partition(optax.scale_by_adam(), groups)
        self.trainable = {path: params[path] for path in phase.trainable}
        self.frozen = {path: v for path, v in params.items() if path not in self.trainable}
        self.state = optimizer.init(self.trainable)
        self.batch = batch
        self.parameters = sum(value.size for value in self.trainable.values())
        self.slots = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self.seconds: list[float] = []
        step: Any = make_train_step(graphdef, IMAGENET, optimizer, trains=trains)
        compiled = step.lower(*self._arguments()).compile()
        self.step = compiled
        self.flops = compiled.cost_analysis()["flops"]
        self.temporary = compiled.memory_analysis().temp_size_in_bytes
        self.once()
        self.seconds.clear()

    def once(self) -> None:
        start = time.perf_counter()
        self.trainable, self.state, sums = self.step(*self._arguments())
        jax.block_until_ready(sums)
        self.seconds.append(time.perf_counter() - start)

    def _arguments(self) -> tuple[Any, ...]:
        rate, key = np.float32(1e-4), jax.random.key(0)
        return self.trainable, self.frozen, self.state, zero_sums(), self.batch, rate, key


if __name__ == "__main__":
    main()
