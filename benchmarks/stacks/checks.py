"""What `device.py` asks of this project alone: golden outputs, products, and a whole run.

The golden outputs need nothing but networks and weights, so that they are compared also where a
package of training is missing.
"""

import concurrent.futures
import dataclasses
import importlib
import json
import math
import os
import pathlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from glomjax.models import create_model, params_of, set_params
from glomjax.pretrained import load_weights
from stacks import protocol

DATA = pathlib.Path(__file__).parents[2] / "tests" / "data"
SMALL = {
    "depths": (1, 1, 2, 1),
    "embed_dims": (16, 32, 64, 128),
    "num_heads": (2, 4, 8, 16),
    "num_classes": 5,
}
# The golden file's names of the CNNs and what makes those networks.
CNNS = {
    "alexnet_mini": {"name": "alexnet_mini"},
    "googlenet": {"name": "googlenet"},
    "googlenet_paper": {"name": "googlenet", "preset": "paper"},
}
PRECISIONS = {"highest": "highest", "default": None}
# {products: (type of the factors, precision)}
PRODUCTS: dict[str, tuple[Any, str | None]] = {
    "bfloat16": (jnp.bfloat16, None),
    "float32": (jnp.float32, None),
    "float32 highest": (jnp.float32, "highest"),
}


class Checks(protocol.Stack):
    def golden(self, toy: bool) -> dict[str, Any]:
        """{"cases": {case: {precision: {output: the largest difference from the golden one}}},
        "failed": {"case, precision": why}}.

        Differences of logits are absolute, those of feature maps relative to the largest value.
        """
        failed: dict[str, str] = {}
        report: dict[str, dict[str, Any]] = {}
        jobs = []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for case in _toy_cases() if toy else _cases():
                for name, precision in PRECISIONS.items():
                    with jax.default_matmul_precision(precision):
                        lowered = case.lower()
                    # Compilers use a core each and leave the interpreter to the next tracing.
                    jobs.append((case, name, pool.submit(lowered.compile)))
            for case, name, compiled in jobs:
                try:
                    outputs = compiled.result()(case.params, case.images)
                    differences = {
                        key: float(np.abs(np.asarray(outputs[key]) - expected).max())
                        / (float(np.abs(expected).max()) if key == "features" else 1.0)
                        for key, expected in case.expected.items()
                    }
                except Exception as error:  # the others can still be compared
                    failed[f"{case.name}, {name}"] = f"{type(error).__name__}: {error}"[:300]
                    continue
                report.setdefault(case.name, {})[name] = differences
        return {"cases": report, "failed": failed}

    def products(self, size: int, rounds: int, repeats: int) -> dict[str, Any]:
        """{products: [TFLOP/s of each round]} of square matrices of random values."""
        rng = np.random.default_rng(0)
        values = rng.standard_normal((size, size)) / math.sqrt(size)
        report: dict[str, list[float]] = {}
        for name, (dtype, precision) in PRODUCTS.items():
            a = jnp.asarray(values, dtype)

            def product(x: jax.Array, a: jax.Array, precision: Any = precision) -> jax.Array:
                return jnp.dot(x, a, precision=precision)

            program = jax.jit(product).lower(a, a).compile()
            x = jax.block_until_ready(program(a, a))
            rates = []
            for _ in range(rounds):
                begun = time.perf_counter()
                for _ in range(repeats):
                    x = program(x, a)
                jax.block_until_ready(x)
                seconds = time.perf_counter() - begun
                rates.append(2 * size**3 * repeats / seconds / 1e12)
            report[name] = rates
        return {"size": size, "tflops": report}

    def demo(self, config: str, mode: str, toy: bool) -> dict[str, Any]:
        """A whole run on the embedded demo data, from an empty folder to its test metrics."""
        from glomjax.data import synthetic
        from glomjax.training import train_and_evaluate

        module = importlib.import_module(f"configs.{config}")
        settings = module.get_config(*([mode] if mode else []))
        settings.report = "none"
        data: Any = None
        begun = time.perf_counter()
        if toy:
            settings.image_size, settings.batch_size, settings.num_epochs = (37, 37), 4, 1
            data = _toy_data()
        else:
            synthetic.load("demo")
        drawn = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="device-run-") as folder:
            metrics = train_and_evaluate(settings, folder, data=data)
            lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
        seconds = time.perf_counter() - drawn
        epochs = [json.loads(line) for line in lines]
        return {
            "test": {name: metrics[name] for name in ("loss", "accuracy", "auroc")},
            "auroc_interval": metrics["auroc_interval"],
            "epochs": len(epochs),
            "drawing_seconds": drawn - begun,
            "run_seconds": seconds,
            "images_per_second": statistics.median(e["time"]["images_per_second"] for e in epochs),
        }


@dataclasses.dataclass
class Case:
    """A network with weights, images, and what must come out."""

    name: str
    model: nnx.Module
    images: np.ndarray  # float32 [B, H, W, 3], preprocessed
    outputs: Callable[[Any, jax.Array], dict[str, jax.Array]]
    expected: dict[str, np.ndarray]

    def lower(self) -> Any:
        graphdef, self.params = nnx.split(self.model)

        def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
            return self.outputs(nnx.merge(graphdef, params), images)

        return jax.jit(run).lower(self.params, self.images)


def _toy_data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (8, 37, 37, 3), np.uint8), np.arange(8) % 2)
        for split in ("train", "validation", "test")
    }


def _toy_cases() -> Iterator[Case]:
    yield from _davit_small("timm", ("112x112",))
    yield _cnn("alexnet_mini", 224)


def _cases() -> Iterator[Case]:
    yield from _davit_small("kecam", ("140x140", "96x130", "224x224"))
    yield from _davit_small("timm", ("112x112", "140x140", "96x130", "224x224"))
    yield from _davit_tiny()
    for key in CNNS:
        yield from (_cnn(key, size) for size in (280, 224))


def _davit_small(source: str, sizes: tuple[str, ...]) -> Iterator[Case]:
    folder = DATA / f"davit_{source}"
    (file,) = (f for f in folder.iterdir() if f.stem == f"{source}_davit")
    preset = {"kecam": "kecam", "timm": "msft"}[source]
    model = _abstract("davit_tiny", preset=preset, **SMALL)
    preprocessing = load_weights(model, file).preprocessing
    mean, std = (np.float32(preprocessing[key]).reshape(1, 1, 1, 3) for key in ("mean", "std"))
    golden = np.load(folder / f"{source}_davit_outputs.npz")

    def outputs(model: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"features": model.features(images), "logits": model(images)}

    for size in sizes:
        pixels = golden[f"{size}.image_uint8"].astype(np.float32)
        expected = {key: golden[f"{size}.{key}"] for key in ("features", "logits")}
        yield Case(f"{source} small {size}", model, (pixels / 255 - mean) / std, outputs, expected)


def _davit_tiny() -> Iterator[Case]:
    """DaViT-T with weights by the formula of its golden file, as both presets."""
    spec = json.loads((DATA / "davit_full" / "davit_tiny_spec.json").read_text())
    golden = np.load(DATA / "davit_full" / "davit_tiny_outputs.npz")

    def weight(key: str, shape: list[int]) -> np.ndarray:
        seed = (zlib.crc32(key.encode()) + spec["seed"]) & 0x7FFFFFFF
        r = np.random.RandomState(seed).standard_normal(shape)
        if key.endswith("bias"):
            r = 0.05 * r
        elif "norm" in key:
            r = 1 + 0.1 * r
        else:
            r = r / np.sqrt(np.prod(shape[1:]))
        return r.astype(np.float32)

    with tempfile.TemporaryDirectory(prefix="device-weights-") as folder:
        file = pathlib.Path(folder) / "davit_tiny.safetensors"
        safetensors.numpy.save_file({k: weight(k, s) for k, s in spec["tensors"].items()}, file)
        for preset in ("msft", "kecam"):
            model = _abstract("davit_tiny", preset=preset, num_classes=5)
            load_weights(model, file, preset_mismatch="allow")
            for size in ("280x280", "200x280"):
                height, width = map(int, size.split("x"))
                random = np.random.RandomState(int(golden[f"{size}.input_seed"]))
                images = random.uniform(-2, 2, (2, height, width, 3)).astype(np.float32)
                expected = {"logits": golden[f"{size}.{preset}.logits"]}
                yield Case(f"davit_tiny {preset} {size}", model, images, _logits, expected)


def _cnn(key: str, size: int) -> Case:
    spec = json.loads((DATA / "cnn" / "cnn_spec.json").read_text())
    golden = np.load(DATA / "cnn" / "cnn_outputs.npz")

    def weight(path: str, shape: tuple[int, ...]) -> jax.Array:
        rng = np.random.RandomState((zlib.crc32(path.encode()) + spec["seed"]) & 0x7FFFFFFF)
        deviation = math.sqrt(2 / math.prod(shape[:-1])) if path.endswith("kernel") else 0.05
        return jnp.asarray(rng.standard_normal(shape) * deviation, jnp.float32)

    model = _abstract(**CNNS[key], image_size=(size, size))
    set_params(model, {path: weight(path, leaf.shape) for path, leaf in params_of(model).items()})
    seed = int(golden[f"{key}.{size}.input_seed"])
    images = np.random.RandomState(seed).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    names = ("logits",) if key == "alexnet_mini" else ("logits", "aux1_logits", "aux2_logits")

    def outputs(model: Any, images: jax.Array) -> dict[str, jax.Array]:
        auxiliary = model.auxiliary_logits(images) if len(names) > 1 else ()
        return dict(zip(names, (model(images), *auxiliary), strict=True))

    expected = {name: golden[f"{key}.{size}.{name}"] for name in names}
    return Case(f"{key} {size}x{size}", model, images, outputs, expected)


def _logits(model: Any, images: jax.Array) -> dict[str, jax.Array]:
    return {"logits": model(images)}


def _abstract(name: str, **options: Any) -> nnx.Module:
    """The network without numbers."""
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))


create = Checks
