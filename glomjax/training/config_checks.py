"""What no run can have: an unknown key, a wrong type, a value out of its range."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from glomjax.data.sources.manifest import MAX_MPP, MIN_MPP
from glomjax.errors import UserError, nearest_key
from glomjax.models import MODELS
from glomjax.preprocessing.sixteen_bits import BITS
from glomjax.training.config import RunConfig, default_config

_NUMBER = r"\d+(\.\d+)?"


def read_config(config: ConfigDict) -> RunConfig:
    """The typed configuration of a run, every value checked.

    Raises:
      UserError: an unknown key, a wrong type or a value that no run can have.
    """
    _check_keys(config, default_config(), "")
    settled = RunConfig.from_dict(config.to_dict())
    check_values(settled)
    return settled


def check_values(config: RunConfig) -> None:
    """Raises UserError for a value that no run can have."""
    for name, value, choices in _with_choices(config, ""):
        _require(
            value in choices, f"{name} is {value!r}; choose one of {', '.join(map(str, choices))}"
        )
    _require(
        config.model.name in MODELS,
        f"model.name is {config.model.name!r}; choose one of {', '.join(MODELS)}",
    )
    for prefix, part in (("", config), ("demo.", config.demo)):
        for name in ("batch_size", "num_epochs"):
            value = getattr(part, name)
            _require(value >= 1, f"{prefix}{name} is {value}; it must be at least 1")
        rate, size = part.learning_rate, part.image_size
        _require(rate > 0, f"{prefix}learning_rate is {rate}; it must be above 0")
        _require(
            len(size) == 2 and all(isinstance(n, int) and n >= 32 for n in size),
            f"{prefix}image_size is {size}; it is (height, width), each at least 32",
        )
    _check_optimizer(config)
    _check_data(config)
    for name in ("early_stopping", "plateau"):
        section = getattr(config, name)
        _require(section.patience >= 1, f"{name}.patience must be at least 1")
        _require(section.min_delta >= 0, f"{name}.min_delta must not be negative")
    _require(0 < config.plateau.factor < 1, "plateau.factor must lie between 0 and 1")
    _require(config.plateau.min_lr >= 0, "plateau.min_lr must not be negative")
    _check_rules("freeze.rules", config.freeze.rules, lambda label: isinstance(label, str))
    _require(
        all(isinstance(text, str) for text in config.freeze.unfreeze),
        f"freeze.unfreeze is {config.freeze.unfreeze}; it holds texts such as '5:full'",
    )
    config.augment()
    minutes = config.checkpoint_minutes
    _require(minutes > 0, f"checkpoint_minutes is {minutes}; it must be above 0")
    _require(config.devices >= 0, f"devices is {config.devices}; it must not be negative")
    _require(config.seed >= 0, f"seed is {config.seed}; it must not be negative")


def _check_optimizer(config: RunConfig) -> None:
    decay, parts = config.weight_decay, config.accumulation_steps
    _require(decay >= 0, f"weight_decay is {decay}; it must not be negative")
    _require(
        config.optimizer != "adam" or decay == 0,
        f"weight_decay is {decay}, which goes with optimizer 'adamw' or 'sgd', not with 'adam'",
    )
    for name in ("momentum", "ema_decay", "label_smoothing"):
        value = getattr(config, name)
        _require(0 <= value < 1, f"{name} is {value}; it must be at least 0 and below 1")
    for name in ("warmup_epochs", "clip_norm"):
        value = getattr(config, name)
        _require(value >= 0, f"{name} is {value}; it must not be negative")
    _require(
        config.warmup_epochs < config.num_epochs,
        f"warmup_epochs is {config.warmup_epochs}; it must be below num_epochs, "
        f"{config.num_epochs}",
    )
    _require(parts >= 1, f"accumulation_steps is {parts}; it must be at least 1")
    _require(
        re.fullmatch(rf"none|balanced|{_NUMBER}(,{_NUMBER})+", config.class_weights) is not None,
        f"class_weights is {config.class_weights!r}; it is 'none', 'balanced' or one number per "
        "class, such as '1,2.5'",
    )
    _require(
        0 < config.layer_decay <= 1,
        f"layer_decay is {config.layer_decay}; it must be above 0 and at most 1",
    )
    for name in ("learning_rate_rules", "weight_decay_rules"):
        _check_rules(name, getattr(config, name), lambda factor: _is_number(factor) and factor >= 0)


def _check_data(config: RunConfig) -> None:
    data = config.data
    _require(data.cache_gib >= 0, "data.cache_gib must not be negative")
    _require(
        data.bits in (0, *BITS),
        f"data.bits is {data.bits}; it is {', '.join(map(str, BITS))}, or 0 for 16",
    )
    _require(
        all(isinstance(name, str) for name in data.classes)
        and len(set(data.classes)) == len(data.classes),
        f"data.classes is {data.classes}; it holds the names of the classes as texts, each once",
    )
    _require(
        data.folds > 0 or data.fold == 0,
        f"data.fold is {data.fold}, but data.folds is {data.folds}; set both",
    )
    for name, mpp in (("target_mpp", config.target_mpp), ("data.mpp", data.mpp)):
        _require(
            mpp == 0 or MIN_MPP <= mpp <= MAX_MPP,
            f"{name} is {mpp}; it is in microns per pixel, {MIN_MPP} to {MAX_MPP:g}, or 0",
        )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _with_choices(config: Any, prefix: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, value, choices) of every field that has a list of values."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _with_choices(value, f"{prefix}{field.name}.")
        elif choices := field.metadata.get("choices"):
            yield prefix + field.name, value, choices


def _check_keys(config: Any, schema: ConfigDict, prefix: str) -> None:
    for key in schema:
        if key not in config:
            raise UserError(f"the configuration lacks {prefix}{key}")
    for key in config:
        name = prefix + key
        if key not in schema:
            hint = nearest_key(name, [prefix + known for known in schema])
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
        pair = isinstance(rule, tuple) and len(rule) == 2
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
