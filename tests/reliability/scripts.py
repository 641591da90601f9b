"""What scripts give to the functions of the package."""

import csv
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from glomjax.cli.configuration import load_config
from glomjax.evaluation import auroc, classification_metrics, plot_history, write_report
from glomjax.models import create_model
from glomjax.training import EarlyStopping, ReduceLROnPlateau, train_and_evaluate
from reliability.situations import CLASSES, Answer, Case

HEADING = "Scripts"
LABELS = np.array([0, 1, 0, 1])
LOGITS = np.array([[-1.0], [2.0], [0.5], [0.25]])


def returns(call: Callable[[], Any]):
    """A call that has to be refused."""
    return lambda folder: Answer("raw", f"{call()!r:.80} is returned")


def data(
    images: Callable[[np.ndarray], Any] = lambda x: x,
    labels: Callable[[np.ndarray], Any] = lambda y: y,
    change: Callable[[dict], Any] = lambda data: data,
    config: dict[str, Any] | None = None,
):
    """A training on arrays that were changed, up to its refusal."""

    def answer(folder: pathlib.Path) -> Answer:
        fields = load_config("alexnet_mini")
        fields.image_size = (64, 64)
        fields.update_from_flattened_dict(config or {})
        rng = np.random.default_rng(0)
        arrays = {
            split: (images(rng.integers(0, 256, (4, 8, 8, 3), np.uint8)), labels(np.arange(4) % 2))
            for split in ("train", "validation", "test")
        }
        train_and_evaluate(fields, folder / "run", data=change(arrays))
        return Answer("raw", "it is trained on")

    return answer


def model(*arguments: Any, **options: Any):
    """A network that cannot be made, in shapes alone."""

    def create() -> nnx.Module:
        return create_model(*arguments, **({"rngs": nnx.Rngs(0), "image_size": (64, 64)} | options))

    return returns(lambda: nnx.eval_shape(create))


def called(images: Any, **arguments: Any):
    """A network that is called with what it cannot take, in shapes alone."""

    def answer(folder: pathlib.Path) -> Answer:
        def output(images):
            network = create_model(
                "davit_tiny",
                image_size=(64, 64),
                rngs=nnx.Rngs(0),
                dropout_rate=0.5,
                depths=(1,),
                embed_dims=(8,),
                num_heads=(1,),
            )
            return network(images, **arguments)

        return Answer("raw", f"{jax.eval_shape(output, images)}")

    return answer


def metrics(labels: Any = LABELS, logits: Any = LOGITS, classes: Any = CLASSES, **more: Any):
    return returns(lambda: classification_metrics(labels, logits, classes, **more))


def report(**changes: Any):
    def answer(folder: pathlib.Path) -> Answer:
        arguments = {"ids": "abcd", "labels": LABELS, "logits": LOGITS, "classes": CLASSES}
        write_report(folder, metrics={}, **(arguments | changes))
        return Answer("raw", "it is written")

    return answer


def saturated(folder: pathlib.Path) -> Answer:
    """Probabilities that float64 writes as 1."""
    logits = np.array([[25.0], [40.0], [30.0], [45.0]])
    found = classification_metrics(LABELS, logits, CLASSES)
    write_report(folder, metrics=found, ids="abcd", labels=LABELS, logits=logits, classes=CLASSES)
    with open(folder / "predictions.csv", newline="") as file:
        scores = [float(row["logit"]) for row in csv.DictReader(file)]
    assert auroc(LABELS, scores) == found["auroc"] == 1.0
    return Answer("read", "the AUROC of its logits is the one that is reported")


def history(*rows: dict):
    return lambda folder: Answer("raw", f"{plot_history(rows, folder / 'history.png')}")


def workdir(where: Any):
    def answer(folder: pathlib.Path) -> Answer:
        train_and_evaluate(load_config("alexnet_mini"), where)
        return Answer("raw", "it is trained")

    return answer


CASES = [
    Case("arrays without a test split", data(change=lambda d: {k: d[k] for k in ("train",)})),
    Case(
        "arrays with a split called val",
        data(change=lambda d: {"train": d["train"], "val": d["validation"], "test": d["test"]}),
    ),
    Case("a list of arrays in place of splits", data(change=lambda d: list(d.values()))),
    Case("images without labels", data(change=lambda d: d | {"test": d["test"][0]})),
    Case("images as floats from 0 to 1", data(lambda x: (x / 255).astype(np.float32))),
    Case("images as uint16", data(lambda x: x.astype(np.uint16))),
    Case("images with channels first", data(lambda x: x.transpose(0, 3, 1, 2))),
    Case("grey images", data(lambda x: x[..., :1])),
    Case("images with an alpha channel", data(lambda x: np.concatenate([x, x[..., :1]], -1))),
    Case("fewer images than labels", data(lambda x: x[:3])),
    Case("a split without images", data(lambda x: x[:0], lambda y: y[:0])),
    Case("labels as texts", data(labels=lambda y: np.array(["other", "glomerulus"])[y])),
    Case("labels as truth values", data(labels=lambda y: y.astype(bool))),
    Case("labels as floats", data(labels=lambda y: y.astype(float))),
    Case("labels of -1 and 1", data(labels=lambda y: 2 * y - 1)),
    Case("labels of 1 and 2", data(labels=lambda y: y + 1)),
    Case("labels as one-hot rows", data(labels=lambda y: np.eye(2, dtype=int)[y])),
    Case("labels as a column", data(labels=lambda y: y[:, None])),
    Case("labels of one class alone", data(labels=lambda y: 0 * y)),
    Case(
        "more labels than classes that are named",
        data(labels=lambda y: 2 * y, config={"data.classes": ("other", "glomerulus")}),
    ),
    Case(
        "patients for one split alone",
        data(change=lambda d: d | {"train": (*d["train"], ["A", "A", "B", "B"])}),
    ),
    Case(
        "fewer patients than images",
        data(change=lambda d: {k: (*v, [f"{k} A", f"{k} B"]) for k, v in d.items()}),
    ),
    Case(
        "one patient for all images of a split",
        data(change=lambda d: {k: (*v, f"patient {k}") for k, v in d.items()}),
    ),
    Case("arrays, and folds in the configuration", data(config={"data.folds": 3})),
    Case("arrays, and splits by site", data(config={"data.split_by": "site"})),
    Case("three class weights for two classes", data(config={"class_weights": "1,2,3"})),
    Case("arrays to be resampled, whose spacing is not known", data(config={"target_mpp": 0.5})),
    Case(
        "the pixels of a training image in the test split",
        data(change=lambda d: d | {"test": d["train"]}),
    ),
    Case("saturated probabilities in predictions.csv", saturated),
    Case("a run folder that is no path", workdir(3)),
    Case(
        "a configuration as a dictionary", returns(lambda: train_and_evaluate({"seed": 1}, "run"))
    ),
    Case("a network called resnet50", model("resnet50")),
    Case("a network as a class", model(nnx.Linear)),
    Case("an image size as one number", model("davit_tiny", image_size=64)),
    Case("an image size of three numbers", model("davit_tiny", image_size=(64, 64, 3))),
    Case("rngs as a key of JAX", model("davit_tiny", rngs=jax.random.key(0))),
    Case("rngs as a number", model("davit_tiny", rngs=0)),
    Case("-1 classes", model("davit_tiny", num_classes=-1)),
    Case("classes by their names", model("davit_tiny", num_classes=("other", "glomerulus"))),
    Case("images that are too small for AlexNet-mini", model("alexnet_mini", image_size=(32, 32))),
    Case("images that are too small for GoogLeNet", model("googlenet", image_size=(64, 64))),
    Case("an option that a network does not have", model("alexnet_mini", window_size=7)),
    Case("an option of another type", model("davit_tiny", drop_path_rate="high")),
    Case("a preset of another network", model("googlenet", preset="kecam")),
    Case("a network called with uint8 images", called(np.zeros((2, 64, 64, 3), np.uint8))),
    Case("a network called with one image", called(np.zeros((64, 64, 3), np.float32))),
    Case("a network called with channels first", called(np.zeros((2, 3, 64, 64), np.float32))),
    Case("a network called with grey images", called(np.zeros((2, 64, 64, 1), np.float32))),
    Case(
        "a network with dropout, called in training without rngs",
        called(np.zeros((2, 64, 64, 3), np.float32), deterministic=False),
    ),
    Case(
        "a network called with a key of JAX for rngs",
        called(np.zeros((2, 64, 64, 3), np.float32), deterministic=False, rngs=jax.random.key(0)),
    ),
    Case(
        "probabilities in place of logits", metrics(logits=np.array([[0.1], [0.9], [0.6], [0.4]]))
    ),
    Case(
        "probabilities of two classes in place of logits",
        metrics(logits=np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.6, 0.4]])),
    ),
    Case("logits that are NaN", metrics(logits=np.array([[np.nan], [1], [1], [0.5]]))),
    Case("logits without a second axis", metrics(logits=LOGITS[:, 0])),
    Case("logits as texts", metrics(logits=np.array([["a"], ["b"], ["c"], ["d"]]))),
    Case("fewer labels than logits", metrics(labels=LABELS[:3])),
    Case("labels as texts, in the metrics", metrics(labels=np.array(list(CLASSES))[LABELS])),
    Case("labels of 1 and 2, in the metrics", metrics(labels=LABELS + 1)),
    Case("three classes for one logit", metrics(classes=("a", "b", "c"))),
    Case("fewer patients than predictions", metrics(groups=["A", "B"])),
    Case("an AUROC of three classes", returns(lambda: auroc([0, 1, 2], [0.1, 0.2, 0.3]))),
    Case("an AUROC of fewer scores than labels", returns(lambda: auroc([0, 1, 1], [0.1, 0.2]))),
    Case("an AUROC of scores that are NaN", returns(lambda: auroc([0, 1], [0.1, np.nan]))),
    Case("a report with fewer names than predictions", report(ids="ab")),
    Case("a report with a class too many", report(classes=("a", "b", "c"))),
    Case("learning curves of no epoch", history()),
    Case(
        "learning curves with a value that some epochs lack",
        history({"epoch": 1, "loss": 0.5}, {"epoch": 2}),
    ),
    Case("learning curves of other values", history({"epoch": 1, "f1": 0.5})),
    Case(
        "early stopping in a direction that does not exist",
        returns(lambda: EarlyStopping(3, mode="auto")),
    ),
    Case("a schedule with a factor of 1", returns(lambda: ReduceLROnPlateau(1.0, 3))),
]
