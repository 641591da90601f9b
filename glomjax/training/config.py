"""The configuration of a run: every field with its default, and the checks on a user's values."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from glomjax.data.sources.manifest import MAX_MPP, MIN_MPP
from glomjax.errors import UserError
from glomjax.models import MODELS
from glomjax.ops import native
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.augmentation import PRESETS, Augmentation
from glomjax.preprocessing.decoding import RESIZES
from glomjax.preprocessing.preprocessing import PREPROCESSINGS
from glomjax.training.optimizers import OPTIMIZERS, SCHEDULES
from glomjax.training.parameter_groups import REGIMES

# The monitored metrics and the direction in which each is better.
MONITORS = {
    "val_loss": "min",
    "val_accuracy": "max",
    "val_auroc": "max",
    "loss": "min",
    "total_loss": "min",
    "accuracy": "max",
}
PRECISIONS = ("float32", "bfloat16")
# What may differ between the parts of one run: where and how long it runs, not what it computes.
MAY_DIFFER = (
    "num_epochs",
    "demo.num_epochs",
    "devices",
    "shard_params",
    "checkpoint_minutes",
    "data.cache_gib",
    "ops.native",
)


_NUMBER = r"\d+(\.\d+)?"


def default_config() -> ConfigDict:
    """The published recipe, for the configs to build on; no field is None.

    280 x 280 RGB, binary cross-entropy, Adam with Keras' defaults, batch 32, at most 1000 epochs,
    early stopping (patience 7, best weights restored) and a plateau schedule on `val_loss`.
    """
    config = ConfigDict()
    config.seed = 0
    config.image_size = (280, 280)  # height, width
    config.batch_size = 32
    config.stratified_batches = False  # each batch with the classes in their shares
    config.num_epochs = 1000
    config.learning_rate = 1e-3
    # (regular expression of whole parameter paths, factor) each; the first that matches counts.
    config.learning_rate_rules = ((".*", 1.0),)
    config.layer_decay = 1.0  # the learning rate of each layer, of the one above it
    config.weight_decay = 0.0  # decoupled, per step and learning rate
    config.weight_decay_rules = ((".*/kernel", 1.0), (".*", 0.0))
    config.optimizer = "adam"  # "adamw" with weight_decay, or "sgd" with momentum
    config.momentum = 0.9  # of "sgd"
    config.schedule = "plateau"  # "cosine", down to 0 over num_epochs, or "constant"
    config.warmup_epochs = 0  # in which the learning rate rises from 0, before any schedule
    config.clip_norm = 0.0  # the largest norm of the whole gradient; 0 clips nothing
    config.accumulation_steps = 1  # a batch in so many parts, with the gradient of the whole
    config.ema_decay = 0.0  # evaluate and keep a moving average of the weights; 0 keeps none
    config.label_smoothing = 0.0
    config.class_weights = "none"  # "balanced", or one weight per class, such as "1,2.5"
    config.precision = "float32"  # "bfloat16" computes in it and keeps float32 parameters
    config.devices = 0  # 0: all there are
    config.shard_params = False  # divide parameters and optimizer state over the devices
    config.checkpoint_minutes = 10.0  # between two checkpoints within an epoch
    config.preprocessing = "imagenet"  # or "standardize": each channel by the training images
    config.resize = "stretch"  # to image_size; or "pad" with white, or "crop" to the centre
    config.target_mpp = 0.0  # microns per pixel to which images are resampled; 0 resamples none
    config.stain_normalization = "none"  # "macenko" or "reinhard", fitted on the training images

    config.ops = ConfigDict()
    config.ops.native = "auto"  # kernels for CPUs, built at the first use; "off" does without

    config.model = ConfigDict()
    config.model.name = "davit_tiny"
    config.model.options = ConfigDict()  # the network's own arguments

    config.early_stopping = ConfigDict()
    config.early_stopping.monitor = "val_loss"
    config.early_stopping.patience = 7
    config.early_stopping.min_delta = 0.0

    config.plateau = ConfigDict()
    config.plateau.monitor = "val_loss"
    config.plateau.factor = 0.5
    config.plateau.patience = 3
    config.plateau.min_delta = 0.0
    config.plateau.min_lr = 1e-5

    config.data = ConfigDict()
    # "synthetic", a folder of patches, a CSV or TSV manifest, or "tfds:NAME"
    config.data.source = "synthetic"
    config.data.synthetic_size = "demo"  # or "large"
    config.data.classes = ()  # (negative, positive); () lets the data decide
    config.data.fractions = (0.7, 0.15, 0.15)  # train, validation, test, where no split is given
    config.data.folds = 0  # in place of fractions: so many folds, of which `fold` is the test
    config.data.fold = 0  # from 0
    config.data.split_by = "patient"  # or "site": whole sites stay together
    config.data.split_seed = 0
    config.data.mpp = 0.0  # microns per pixel of all images; 0: the source tells, or unknown
    config.data.skip_unreadable = False  # leave out images that cannot be read, and count them
    config.data.cache_gib = 4.0  # memory for decoded images

    config.augmentation = ConfigDict()  # see `glomjax/preprocessing/augmentation.py`
    config.augmentation.preset = "none"  # or "histology"
    for effect in dataclasses.fields(Augmentation):
        config.augmentation[effect.name] = -1.0  # its strength; -1 leaves the preset's
    # Score the test images as the mean over their eight flips and quarter turns.
    config.test_time_augmentation = False

    config.pretrained = ConfigDict()
    config.pretrained.source = "none"  # "auto", a file or a published id

    config.freeze = ConfigDict()
    config.freeze.regime = "full"
    config.freeze.until = ""  # partial: the last frozen block or parameter; "" is the published cut
    config.freeze.rules = ()  # rules: (regular expression, "trainable" or "frozen") each
    config.freeze.unfreeze = ()  # "EPOCH:REGIME" or "EPOCH:REGIME:FACTOR" each
    config.freeze.cache_features = True  # while only the head trains, run the rest once per image

    # What takes the place of these fields on the embedded demo data, trained from random values: it
    # has few images, and its purpose is to end soon.
    config.demo = ConfigDict()
    config.demo.image_size = (280, 280)
    config.demo.batch_size = 8
    config.demo.stratified_batches = False
    config.demo.num_epochs = 10
    config.demo.learning_rate = 1e-4
    return config


def augmentation_of(config: ConfigDict) -> Augmentation:
    """What a run's configuration does to its training images.

    Raises:
      UserError: an unknown preset, or a strength out of its range.
    """
    given = config.augmentation.to_dict()
    preset = given.pop("preset")
    if preset not in PRESETS:
        raise UserError(f"augmentation.preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    changes = {name: strength for name, strength in given.items() if strength != -1}
    return dataclasses.replace(PRESETS[preset], **changes)


def check_config(config: ConfigDict) -> None:
    """Raises UserError for an unknown key, a wrong type or a value that no run can have."""
    _check_keys(config, default_config(), "")
    _require(
        config.model.name in MODELS,
        f"model.name is {config.model.name!r}; choose one of {', '.join(MODELS)}",
    )
    _require(
        config.preprocessing in PREPROCESSINGS,
        f"preprocessing is {config.preprocessing!r}; choose one of {', '.join(PREPROCESSINGS)}",
    )
    _require(
        config.freeze.regime in REGIMES,
        f"freeze.regime is {config.freeze.regime!r}; choose one of {', '.join(REGIMES)}",
    )
    for name, choices in (
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("precision", PRECISIONS),
        ("resize", RESIZES),
        ("stain_normalization", ("none", *stain_normalization.METHODS)),
    ):
        _require(
            config[name] in choices,
            f"{name} is {config[name]!r}; choose one of {', '.join(choices)}",
        )
    _require(
        config.ops.native in native.SETTINGS,
        f"ops.native is {config.ops.native!r}; choose one of {', '.join(native.SETTINGS)}",
    )
    _require(
        config.weight_decay >= 0,
        f"weight_decay is {config.weight_decay}; it must not be negative",
    )
    _require(
        config.optimizer != "adam" or config.weight_decay == 0,
        f"weight_decay is {config.weight_decay}, which goes with optimizer 'adamw' or 'sgd', not "
        "with 'adam'",
    )
    for name in ("momentum", "ema_decay", "label_smoothing"):
        _require(
            0 <= config[name] < 1, f"{name} is {config[name]}; it must be at least 0 and below 1"
        )
    for name in ("warmup_epochs", "clip_norm", "devices"):
        _require(config[name] >= 0, f"{name} is {config[name]}; it must not be negative")
    minutes, parts = config.checkpoint_minutes, config.accumulation_steps
    _require(minutes > 0, f"checkpoint_minutes is {minutes}; it must be above 0")
    _require(parts >= 1, f"accumulation_steps is {parts}; it must be at least 1")
    _require(
        re.fullmatch(rf"none|balanced|{_NUMBER}(,{_NUMBER})+", config.class_weights) is not None,
        f"class_weights is {config.class_weights!r}; it is 'none', 'balanced' or one number per "
        "class, such as '1,2.5'",
    )
    for section in ("early_stopping", "plateau"):
        monitor = config[section].monitor
        _require(
            monitor in MONITORS,
            f"{section}.monitor is {monitor!r}; choose one of {', '.join(MONITORS)}",
        )
        _require(config[section].patience >= 1, f"{section}.patience must be at least 1")
        _require(config[section].min_delta >= 0, f"{section}.min_delta must not be negative")
    for prefix, part in (("", config), ("demo.", config.demo)):
        for name in ("batch_size", "num_epochs"):
            _require(part[name] >= 1, f"{prefix}{name} is {part[name]}; it must be at least 1")
        rate = part.learning_rate
        _require(rate > 0, f"{prefix}learning_rate is {rate}; it must be above 0")
        size = tuple(part.image_size)
        _require(
            len(size) == 2 and all(isinstance(n, int) and n >= 32 for n in size),
            f"{prefix}image_size is {size}; it is (height, width), each at least 32",
        )
    _require(
        0 < config.layer_decay <= 1,
        f"layer_decay is {config.layer_decay}; it must be above 0 and at most 1",
    )
    for name in ("learning_rate_rules", "weight_decay_rules"):
        _check_rules(name, config[name], lambda factor: _is_number(factor) and factor >= 0)
    _check_rules("freeze.rules", config.freeze.rules, lambda label: isinstance(label, str))
    _require(
        all(isinstance(text, str) for text in config.freeze.unfreeze),
        f"freeze.unfreeze is {tuple(config.freeze.unfreeze)}; it holds texts such as '5:full'",
    )
    _require(0 < config.plateau.factor < 1, "plateau.factor must lie between 0 and 1")
    _require(config.plateau.min_lr >= 0, "plateau.min_lr must not be negative")
    augmentation_of(config)
    _require(config.data.cache_gib >= 0, "data.cache_gib must not be negative")
    classes = tuple(config.data.classes)
    _require(
        all(isinstance(name, str) for name in classes) and len(set(classes)) == len(classes),
        f"data.classes is {classes}; it holds the names of the classes as texts, each once",
    )
    _require(
        config.data.folds > 0 or config.data.fold == 0,
        f"data.fold is {config.data.fold}, but data.folds is {config.data.folds}; set both",
    )
    for name, mpp in (("target_mpp", config.target_mpp), ("data.mpp", config.data.mpp)):
        _require(
            mpp == 0 or MIN_MPP <= mpp <= MAX_MPP,
            f"{name} is {mpp}; it is in microns per pixel, {MIN_MPP} to {MAX_MPP:g}, or 0",
        )
    _require(
        config.warmup_epochs < config.num_epochs,
        f"warmup_epochs is {config.warmup_epochs}; it must be below num_epochs, "
        f"{config.num_epochs}",
    )
    _require(config.seed >= 0, f"seed is {config.seed}; it must not be negative")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _check_keys(config: Any, schema: ConfigDict, prefix: str) -> None:
    for key in schema:
        if key not in config:
            raise UserError(f"the configuration lacks {prefix}{key}")
    for key in config:
        name = prefix + key
        if key not in schema:
            close = difflib.get_close_matches(key, list(schema), n=1)
            hint = f"did you mean {prefix}{close[0]}" if close else f"known are {', '.join(schema)}"
            raise UserError(f"there is no configuration key {name!r}; {hint}")
        value, default = config[key], schema[key]
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"{name} is {value!r}; it is a section with keys of its own")
            if name == "model.options":
                _check_options(value)
            else:
                _check_keys(value, default, f"{name}.")
            continue
        expected = (int, float) if isinstance(default, float) else type(default)
        if isinstance(default, tuple) and isinstance(value, list):
            continue
        if not isinstance(value, expected) or isinstance(value, bool) != isinstance(default, bool):
            raise UserError(f"{name} is {value!r}; it must be of type {type(default).__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}; it must be a finite number")


def _check_rules(name: str, rules: Any, fits: Callable[[Any], bool]) -> None:
    for rule in rules:
        pair = isinstance(rule, (tuple, list)) and len(rule) == 2
        _require(
            pair and isinstance(rule[0], str) and fits(rule[1]),
            f"{name} has {rule!r}; each is a pair of a regular expression and what it sets",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_options(options: ConfigDict) -> None:
    """The network itself knows its options; none of them is NaN or infinite."""
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"model.options.{key} is {value}; it must be a finite number")
