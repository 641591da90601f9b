"""What no run can have: an unknown key, a wrong type, a value out of its range.

All of it is said before any data is read. Each field says itself what it may be (`config.py`), and
each network what its options may be (`glomjax.models.check_options`); here are what all fields have
in common, and what goes together.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from glomjax.data.sources.manifest import MAX_MPP, MIN_MPP
from glomjax.data.splits import checked_fractions
from glomjax.errors import UserError, nearest_key, shown
from glomjax.evaluation.calibration import parse_rule
from glomjax.models import MODELS, MOST_PIXELS, check_options, is_of_type
from glomjax.preprocessing.sixteen_bits import BITS
from glomjax.training.config import TRACKERS, RunConfig
from glomjax.training.parameter_groups import (
    LARGEST,
    SMALLEST,
    compile_pattern,
    parse_unfreeze,
)

_NUMBER = r"\d+(\.\d+)?"
_LONGEST = 4096  # characters of a text, as of a path
_MOST_ENTRIES = 1000  # of a tuple
_MOST_BATCH_PIXELS = 2**31  # of all images in a batch, 24 GiB as float32
# Line breaks and other control characters, and what no file name or terminal can hold.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udc7f\udd00-\udfff]")
# What every option of every network is.
_OPTION = bool | int | float | str | None | tuple[float, ...]


def read_config(config: ConfigDict) -> RunConfig:
    """The typed configuration of a run, every value checked.

    Raises:
      UserError: an unknown key, a wrong type or a value that no run can have.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the configuration is {shown(config)}; it is a ConfigDict, such as "
            "glomjax.training.default_config() gives"
        )
    _check_section(config, RunConfig, "")
    settled = RunConfig.from_dict(config.to_dict())
    check_values(settled)
    return settled


def check_values(config: RunConfig) -> None:
    """Raises UserError for values that do not go together or that a field's type does not tell."""
    _require(
        config.model.name in MODELS,
        f"model.name is {shown(config.model.name)}; choose one of {', '.join(MODELS)}",
    )
    for prefix, part in (("", config), ("demo.", config.demo)):
        size, batch = part.image_size, part.batch_size
        _require(
            min(size) >= 32 and max(size) <= MOST_PIXELS,
            f"{prefix}image_size is {shown(size)}; it is (height, width), each at least 32 and at "
            f"most {MOST_PIXELS}",
        )
        _require(
            batch * math.prod(size) <= _MOST_BATCH_PIXELS,
            f"{prefix}batch_size is {batch} and {prefix}image_size {size}, so that a batch has "
            f"{batch * math.prod(size):,} pixels; it can have at most {_MOST_BATCH_PIXELS:,}",
        )
    check_options(config.model.name, config.image_size, config.model.options)
    _check_optimizer(config)
    _check_data(config)
    for pattern, _ in config.freeze.rules:
        compile_pattern(pattern, "freezing rule")
    for text in config.freeze.unfreeze:
        parse_unfreeze(text)
    config.augment()
    trackers = config.log.trackers
    _require(
        set(trackers) <= set(TRACKERS) and len(set(trackers)) == len(trackers),
        f"log.trackers is {shown(trackers)}; it holds some of {', '.join(TRACKERS)}, each once",
    )
    try:
        parse_rule(config.decision.threshold)
    except UserError as error:
        raise UserError(f"decision.threshold: {error}") from error


def _check_optimizer(config: RunConfig) -> None:
    decay, parts = config.weight_decay, config.accumulation_steps
    _require(
        config.optimizer != "adam" or decay == 0,
        f"weight_decay is {decay}, which goes with optimizer 'adamw' or 'sgd', not with 'adam'",
    )
    _require(
        config.warmup_epochs < config.num_epochs,
        f"warmup_epochs is {config.warmup_epochs}; it must be below num_epochs, "
        f"{config.num_epochs}",
    )
    _require(
        parts <= config.batch_size,
        f"accumulation_steps is {parts}; it must be at most batch_size, {config.batch_size}",
    )
    text = config.class_weights
    numbers = re.fullmatch(rf"{_NUMBER}(,{_NUMBER})+", text, re.ASCII) is not None
    weights = [float(number) for number in text.split(",")] if numbers else []
    _require(
        text in ("none", "balanced") or (numbers and any(weights) and max(weights) <= LARGEST),
        f"class_weights is {shown(text)}; it is 'none', 'balanced' or one number per class, such "
        "as '1,2.5', not all of them 0",
    )
    for what, rules in (
        ("learning rate rule", config.learning_rate_rules),
        ("weight decay rule", config.weight_decay_rules),
    ):
        for pattern, factor in rules:
            compile_pattern(pattern, what)
            _require(factor >= 0, f"{what} {shown(pattern)} says {factor}; it must not be negative")


def _check_data(config: RunConfig) -> None:
    data = config.data
    _require(
        data.bits in (0, *BITS),
        f"data.bits is {data.bits}; it is {', '.join(map(str, BITS))}, or 0 for 16",
    )
    _require(
        len(set(data.classes)) == len(data.classes),
        f"data.classes is {shown(data.classes)}; it holds the names of the classes, each once",
    )
    checked_fractions(data.fractions)
    _require(
        data.folds != 1 and (data.fold < data.folds or data.fold == data.folds == 0),
        f"data.fold is {data.fold}, but data.folds is {data.folds}; set both: at least 2 folds, "
        "numbered from 0",
    )
    for name, mpp in (("target_mpp", config.target_mpp), ("data.mpp", data.mpp)):
        _require(
            mpp == 0 or MIN_MPP <= mpp <= MAX_MPP,
            f"{name} is {mpp}; it is in microns per pixel, {MIN_MPP} to {MAX_MPP:g}, or 0",
        )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _check_section(config: ConfigDict, kind: Any, prefix: str) -> None:
    """Keys and types of a section whose fields are those of the dataclass `kind`."""
    fields, hints = {f.name: f for f in dataclasses.fields(kind)}, get_type_hints(kind)
    for key in fields:
        _require(key in config, f"the configuration lacks {prefix}{key}")
    for key in config:
        if key not in fields:
            hint = nearest_key(f"{prefix}{key}", [prefix + known for known in sorted(fields)])
            raise UserError(f"there is no configuration key {shown(f'{prefix}{key}')}; {hint}")
    for key, field in fields.items():
        name, value, section = prefix + key, config[key], field.default_factory
        if not isinstance(section, type):
            _check_field(name, value, hints[key], field)
            continue
        if not isinstance(value, ConfigDict):
            raise UserError(f"{name} is {shown(value)}; it is a section with keys of its own")
        if dataclasses.is_dataclass(section):
            _check_section(value, section, f"{name}.")
            continue
        for option in value:
            setting = value[option]
            _require(
                is_of_type(setting, _OPTION),
                f"{name}.{option} is {shown(setting)}; it is a number, a text or numbers",
            )
            _check_parts(f"{name}.{option}", setting)


def _check_field(name: str, value: Any, hint: Any, field: Any) -> None:
    if not is_of_type(value, hint):
        kind = inspect.formatannotation(hint)
        about = f" ({field.metadata['help']})" if isinstance(field.default, tuple) else ""
        raise UserError(f"{name} is {shown(value)}; it must be of type {kind}{about}")
    choices, within = field.metadata["choices"], field.metadata["within"]
    _require(
        not choices or value in choices,
        f"{name} is {shown(value)}; choose one of {', '.join(map(str, choices))}",
    )
    if isinstance(value, int) and value not in within:
        raise UserError(f"{name} is {shown(value)}; it must be {within}")
    _check_parts(name, value)
    if isinstance(value, float) and value not in within:
        raise UserError(f"{name} is {shown(value)}; it must be {within}")


def _check_parts(name: str, value: Any) -> None:
    """Numbers and texts, inside of tuples too, that nothing could be done with."""
    if isinstance(value, tuple | list) and len(value) > _MOST_ENTRIES:
        raise UserError(f"{name} has {len(value)} entries; it can have at most {_MOST_ENTRIES}")
    for part in _parts(value):
        if why := _unfit(part, lines=name == "data.classes"):
            told = shown(value) if part is value else f"{shown(value)}, with {shown(part)}"
            raise UserError(f"{name} is {told}; {why}")


def _unfit(part: Any, *, lines: bool) -> str:
    """Why a number or a text is of no use, "" where it may be; `lines`: whether it may have some,
    as a label in a table may, but not what names a file or a parameter."""
    if isinstance(part, float) and not math.isfinite(part):
        return "it must be a finite number"
    if isinstance(part, int | float) and part != 0 and not SMALLEST <= abs(part) <= LARGEST:
        return f"it must be 0 or between {SMALLEST} and {LARGEST} in size, which float32 can hold"
    if isinstance(part, str) and (
        len(part) > _LONGEST or _CONTROLS.search(part.replace("\n", "") if lines else part)
    ):
        return (
            "a text has no line breaks and no control characters, and at most "
            f"{_LONGEST} characters"
        )
    return ""


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
    else:
        yield value
