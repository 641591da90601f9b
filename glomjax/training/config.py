"""The configuration of a run: every field with its type, its default and what it is.

The dataclasses here are the one definition. `default_config` gives them as a `ConfigDict`, which
the files in `configs/` and the command line change; `config_checks.read_config` turns that into a
`RunConfig` whose values are checked, and nothing behind it sees a `ConfigDict`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from glomjax.data import synthetic
from glomjax.files import as_tuples
from glomjax.models import MODELS
from glomjax.ops import native
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.augmentation import PRESETS, Augmentation
from glomjax.preprocessing.decoding import RESIZES
from glomjax.preprocessing.preprocessing import PREPROCESSINGS
from glomjax.report import REPORTS
from glomjax.training.parameter_groups import MOST_EPOCHS, REGIMES

# `_field` is `dataclasses.field` with the help beside it, not a mutable default.
# ruff: noqa: RUF009

# The monitored metrics and the direction in which each is better.
MONITORS = {
    "val_loss": "min",
    "val_accuracy": "max",
    "val_auroc": "max",
    "loss": "min",
    "total_loss": "min",
    "accuracy": "max",
}
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "constant")
PRECISIONS = ("float32", "bfloat16")
TRACKERS = ("mlflow", "wandb")

# What may differ between the parts of one run: where and how long it runs, not what it computes.
# Whether another source holds the same data is seen when it is read.
MAY_DIFFER = (
    "num_epochs",
    "demo.num_epochs",
    "devices",
    "shard_params",
    "checkpoint_minutes",
    "report",
    "data.source",
    "data.allow_outside",
    "data.cache_gib",
    "pretrained.allow_seen",
    "ops.native",
    "log.trackers",
)

# (regular expression of whole parameter paths, what it sets)
LabelRule = tuple[str, str]
FactorRule = tuple[str, float]


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be.

    Attributes:
      low, high: the limits, None where there is none.
      above, below: whether the limit itself is left out.
      sentinel: a number outside the limits that is allowed, since it stands for something else.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    sentinel: float | None = None

    def __contains__(self, value: float) -> bool:
        if value == self.sentinel:
            return True
        if self.low is not None and (value <= self.low if self.above else value < self.low):
            return False
        if self.high is None or value > self.high:
            return self.high is None
        # Steps compute in float32, in which 0.999999999 is 1.
        return not self.below or bool(np.float32(value) < self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}"
        high = f"{'below' if self.below else 'at most'} {self.high}"
        text = low if self.high is None else high if self.low is None else f"{low} and {high}"
        return text if self.sentinel is None else f"{text}, or {self.sentinel:g}"


_POSITIVE = Range(0, above=True)
_NOT_NEGATIVE = Range(0)
_NETWORK_OWN = -1.0  # stands for the network's own learning rate
_SHARE = Range(0, 1, below=True)
_BATCH = Range(1, 2**16)
_EPOCHS = Range(1, MOST_EPOCHS)
_SEEDS = Range(0, 2**32 - 1)  # JAX would take a larger one for the seed of its lower 32 bits


def _field(default: Any, help: str, choices: tuple[str, ...] = (), within: Range = Range()) -> Any:
    """A field with the line that `--help` prints, and the values that it may have."""
    about = {"help": help, "choices": choices, "within": within}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class OpsConfig:
    native: str = _field(
        "auto",
        "kernels for CPUs: auto builds them at the first use, off does without",
        native.SETTINGS,
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = _field("davit_tiny", "the network, see glomjax.models.MODELS")
    options: Mapping[str, Any] = _field(dict, "the network's own arguments, such as dropout_rate")


@dataclasses.dataclass(frozen=True)
class EarlyStoppingConfig:
    monitor: str = _field("val_loss", "the metric that is to become better", tuple(MONITORS))
    patience: int = _field(
        7, "epochs without a better value after which the run stops", within=_EPOCHS
    )
    min_delta: float = _field(0.0, "the least change that counts as better", within=_NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class PlateauConfig:
    monitor: str = _field("val_loss", "the metric of the schedule plateau", tuple(MONITORS))
    factor: float = _field(
        0.5,
        "by which the learning rate is multiplied on a plateau",
        within=Range(0, 1, above=True, below=True),
    )
    patience: int = _field(3, "epochs without a better value after which it is", within=_EPOCHS)
    min_delta: float = _field(0.0, "the least change that counts as better", within=_NOT_NEGATIVE)
    min_lr: float = _field(1e-5, "the smallest learning rate", within=_NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = _field("synthetic", "a folder of patches, a CSV or TSV manifest, or tfds:NAME")
    synthetic_size: str = _field("demo", "of the embedded data", tuple(synthetic.SIZES))
    classes: tuple[str, ...] = _field((), "(negative, positive); () lets the data decide")
    fractions: tuple[float, ...] = _field(
        (0.7, 0.15, 0.15), "train, validation, test, where no split is given"
    )
    folds: int = _field(
        0, "in place of fractions: so many folds, of which fold is the test", within=Range(0, 1000)
    )
    fold: int = _field(0, "which fold is the test, from 0", within=Range(0, 999))
    split_by: str = _field("patient", "what stays together: patient, or a column such as site")
    exact_names: bool = _field(
        False, "patients, slides, sites and classes that are spelt alike are different ones"
    )
    allow_outside: bool = _field(False, "a manifest may list images that lie outside its folder")
    split_seed: int = _field(0, "of the random split", within=_SEEDS)
    permute_labels: bool = _field(
        False,
        "train and validate on labels permuted within patients: a control that learns nothing",
    )
    mpp: float = _field(0.0, "microns per pixel of all images; 0: the source gives it, or unknown")
    bits: int = _field(
        0, "that 16-bit images use: 8, 10, 12, 14 or 16; 0: 16, refused where one has fewer"
    )
    skip_unreadable: bool = _field(False, "leave out images that cannot be read, and count them")
    cache_gib: float = _field(4.0, "memory for decoded images", within=_NOT_NEGATIVE)

    def source_options(self) -> dict[str, Any]:
        """The arguments of `load_source` besides the source."""
        same = ("classes", "fractions", "folds", "fold", "split_by", "synthetic_size", "mpp")
        options = {name: getattr(self, name) for name in (*same, "exact_names", "allow_outside")}
        return options | {"seed": self.split_seed}


@dataclasses.dataclass(frozen=True)
class DecisionConfig:
    """What is chosen on the validation split once the weights are, before the test is predicted."""

    threshold: str = _field(
        "0.5",
        "the probability from which a patch is positive: 0.5, youden, sensitivity=VALUE or "
        "specificity=VALUE on the validation split",
    )
    temperature: bool = _field(
        False, "divide the logits by the temperature that fits the validation split"
    )


# The strength of each effect, as a field of its own.
AugmentationConfig = dataclasses.make_dataclass(
    "AugmentationConfig",
    [
        ("preset", str, _field("none", "strengths of all effects together", tuple(PRESETS))),
        *(
            (effect.name, float, _field(-1.0, f"strength of {effect.name}; -1: the preset's"))
            for effect in dataclasses.fields(Augmentation)
        ),
    ],
    frozen=True,
)


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    source: str = _field("none", "of initial weights: auto, a file, a run or a published id")
    allow_seen: bool = _field(
        False, "test also on patients and images that the weights were trained or validated on"
    )


@dataclasses.dataclass(frozen=True)
class FreezeConfig:
    regime: str = _field("scratch", "what trains", REGIMES)
    until: str = _field("", "partial: the last frozen block or parameter; '': the published cut")
    rules: tuple[LabelRule, ...] = _field((), "rules: (expression, 'trainable' or 'frozen') each")
    unfreeze: tuple[str, ...] = _field(
        (), "'EPOCH:REGIME' or 'EPOCH:REGIME:FACTOR' each; the first epoch is 1"
    )
    cache_features: bool = _field(
        True, "while only the head trains, compute the features before it once per image"
    )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    trackers: tuple[str, ...] = _field(
        (), f"that are sent the numbers of each epoch and of the test: {', '.join(TRACKERS)}"
    )


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What takes the place of these fields on the embedded demo data, trained from random values:
    it has few images, and its purpose is to end soon."""

    image_size: tuple[int, int] = _field((280, 280), "as image_size")
    batch_size: int = _field(8, "as batch_size", within=_BATCH)
    stratified_batches: bool = _field(False, "as stratified_batches")
    num_epochs: int = _field(10, "as num_epochs", within=_EPOCHS)
    learning_rate: float = _field(1e-4, "as learning_rate", within=_POSITIVE)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The published recipe by default, but for the learning rate, which is the network's own: 280 x
    280 RGB, binary cross-entropy, Adam with Keras' defaults, batch 32, at most 1000 epochs, early
    stopping (patience 7, best weights restored) and a plateau schedule on `val_loss`."""

    seed: int = _field(0, "of initial values, orders, dropout and augmentation", within=_SEEDS)
    image_size: tuple[int, int] = _field((280, 280), "(height, width) that the network sees")
    batch_size: int = _field(32, "images in a step", within=_BATCH)
    stratified_batches: bool = _field(False, "each batch with the classes in their proportions")
    num_epochs: int = _field(
        1000, "the most epochs; early stopping needs few of them", within=_EPOCHS
    )
    learning_rate: float = _field(
        _NETWORK_OWN,
        "the first, before warm-up and schedule; -1: the network's own from random values",
        within=Range(0, above=True, sentinel=_NETWORK_OWN),
    )
    learning_rate_rules: tuple[FactorRule, ...] = _field(
        ((".*", 1.0),), "(expression over parameter paths, factor) each; the first match counts"
    )
    layer_decay: float = _field(
        1.0, "learning rate of each layer, relative to the one above it", within=Range(0.1, 1)
    )
    weight_decay: float = _field(0.0, "decoupled, per step and learning rate", within=_NOT_NEGATIVE)
    weight_decay_rules: tuple[FactorRule, ...] = _field(
        ((".*/kernel", 1.0), (".*", 0.0)), "(expression over parameter paths, factor) each"
    )
    optimizer: str = _field("adam", "adamw with weight_decay, sgd with momentum", OPTIMIZERS)
    momentum: float = _field(0.9, "of the optimizer sgd", within=_SHARE)
    schedule: str = _field("plateau", "cosine falls to 0 over num_epochs, so set these", SCHEDULES)
    warmup_epochs: int = _field(
        0, "in which the learning rate rises from 0", within=Range(0, MOST_EPOCHS)
    )
    clip_norm: float = _field(
        0.0, "largest norm of the whole gradient; 0 clips nothing", within=_NOT_NEGATIVE
    )
    accumulation_steps: int = _field(
        1,
        "a batch in so many parts, with the gradient of the whole, for small memories",
        within=_BATCH,
    )
    ema_decay: float = _field(
        0.0, "of a moving average of the weights, evaluated and kept; 0: none", within=_SHARE
    )
    label_smoothing: float = _field(
        0.0, "share taken from the true class and spread over all", within=_SHARE
    )
    class_weights: str = _field("none", "none, balanced, or one weight per class: '1,2.5'")
    precision: str = _field("float32", "bfloat16 keeps float32 parameters", PRECISIONS)
    devices: int = _field(0, "how many devices; 0: all there are", within=Range(0, 2**16))
    shard_params: bool = _field(False, "divide parameters and optimizer state over the devices")
    checkpoint_minutes: float = _field(
        10.0, "between two checkpoints within an epoch", within=_POSITIVE
    )
    preprocessing: str = _field(
        "auto",
        "of pixels: auto is that of the weights, or without weights the network's own; "
        "standardize: each channel by the training images",
        ("auto", *PREPROCESSINGS),
    )
    resize: str = _field("stretch", "to image_size: stretch, pad with white, or crop", RESIZES)
    target_mpp: float = _field(0.0, "microns per pixel to which images are resampled; 0: none")
    stain_normalization: str = _field(
        "none", "to the training images' median", ("none", *stain_normalization.METHODS)
    )
    report: str = _field(
        "full",
        "the page on the result: full, plain (without saliency, which takes a compilation), none",
        REPORTS,
    )
    test_time_augmentation: bool = _field(
        False, "score test images as the mean over their flips and quarter turns"
    )
    ops: OpsConfig = _field(OpsConfig, "how operations are computed")
    model: ModelConfig = _field(ModelConfig, "the network")
    early_stopping: EarlyStoppingConfig = _field(EarlyStoppingConfig, "when the run ends")
    plateau: PlateauConfig = _field(PlateauConfig, "the schedule plateau")
    decision: DecisionConfig = _field(DecisionConfig, "how logits become a decision")
    data: DataConfig = _field(DataConfig, "the labelled images and their splits")
    augmentation: Any = _field(AugmentationConfig, "random changes of training images")
    pretrained: PretrainedConfig = _field(PretrainedConfig, "initial weights")
    freeze: FreezeConfig = _field(FreezeConfig, "what trains, and when")
    log: LogConfig = _field(LogConfig, "where numbers go besides the run's folder")
    demo: DemoConfig = _field(DemoConfig, "in place of these fields on the embedded demo data")

    @property
    def is_demo(self) -> bool:
        """Whether this run trains on the small embedded data."""
        return self.data.source == "synthetic" and self.data.synthetic_size == "demo"

    def settle(self) -> "RunConfig":
        """The configuration with the network's own learning rate where none is given, and with its
        own preprocessing in place of `auto` where no weights bring theirs."""
        network, _ = MODELS[self.model.name]
        own = dict[str, Any]()
        if self.learning_rate == _NETWORK_OWN:
            own["learning_rate"] = network.LEARNING_RATE
        if self.preprocessing == "auto" and self.pretrained.source == "none":
            own["preprocessing"] = network.PREPROCESSING
        return dataclasses.replace(self, **own)

    @property
    def takes_demo_settings(self) -> bool:
        """Whether the settings of `demo` take effect: on that data, from random values."""
        return self.is_demo and self.freeze.regime == "scratch"

    def preparation_options(self) -> dict[str, Any]:
        """The arguments of `prepare_data` that say how images are read."""
        return {
            "image_size": self.image_size,
            "resize": self.resize,
            "target_mpp": self.target_mpp,
            "stain": self.stain_normalization,
            "standardize": self.settle().preprocessing == "standardize",
            "bits": self.data.bits,
            "skip_unreadable": self.data.skip_unreadable,
        }

    def demo_settings(self) -> dict[str, Any]:
        """The settings of `demo` that take effect on that data: all but those of fields that are
        set themselves where `demo` is left as it is."""
        plain = RunConfig()
        settings = {
            name: value
            for name, value in vars(self.demo).items()
            if value != getattr(plain.demo, name) or getattr(self, name) == getattr(plain, name)
        }
        rates = self.learning_rate, self.demo.learning_rate
        if rates == (plain.learning_rate, plain.demo.learning_rate):
            # Nobody has given a rate, so the network's own holds, and not one for all networks.
            del settings["learning_rate"]
        return settings

    def augment(self) -> Augmentation:
        """What happens to training images.

        Raises:
          UserError: a strength out of its range.
        """
        strengths = dataclasses.asdict(self.augmentation)
        preset = PRESETS[strengths.pop("preset")]
        changes = {name: strength for name, strength in strengths.items() if strength != -1}
        return dataclasses.replace(preset, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "RunConfig":
        """The configuration that `to_dict` wrote; fields that are not there have their defaults."""
        return _build(cls, stored)


def default_config() -> ConfigDict:
    """The published recipe (see `RunConfig`) for `configs/` to build on; no field is None."""
    return ConfigDict(dataclasses.asdict(RunConfig()))


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of nested dicts: lists become tuples, whole numbers floats where these belong."""
    built = {}
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        value = values[field.name]
        if dataclasses.is_dataclass(field.default_factory):
            value = _build(field.default_factory, value)
        elif isinstance(field.default, float):
            value = float(value)
        elif isinstance(value, (list, tuple)):
            value = as_tuples(value)
        elif isinstance(value, Mapping):
            value = {key: as_tuples(item) for key, item in value.items()}
        built[field.name] = value
    return kind(**built)
