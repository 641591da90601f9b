"""Absurd values of all fields and options for `stress.py`."""

import copy
import dataclasses
import functools
import json
import pathlib
import random
import reprlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from stress_files import Case, drawn, write_patches

from glomjax.cli.configuration import apply_overrides
from glomjax.data.pipeline import Batches, DecodedImages
from glomjax.errors import UserError
from glomjax.models import create_model, settled_options
from glomjax.training import default_config, parameter_groups
from glomjax.training.config import RunConfig
from glomjax.training.config_checks import read_config
from glomjax.training.initial_weights import settle_source
from glomjax.training.optimizers import class_weights, learning_rate, make_optimizer
from glomjax.training.setup import create_network, load_splits
from glomjax.training.sharding import Placement


def show(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return ascii(short.repr(value))[1:-1]
    except Exception:  # such as an integer of more digits than Python writes
        return f"a {type(value).__name__}"


_NESTED: Any = ()
for _ in range(100_000):
    _NESTED = (_NESTED,)
_NUMBERS = (
    *(-(2**63), -1, 0, 1, 2, 3, 7, 100, 1023, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**9),
    *(10**400, 10**5000, -(10**5000)),
    *(1.0, 2.0, 1.5, -0.5, 0.5, 0.999999999999, 1e-9, 1e-300, 5e-324, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
_TEXTS = (
    *("", " ", "a", "none", "auto", "None", "nan", "0", "1e999", "a\0b", "a\nb", "a\r\nb"),
    *("\x1b[2J", "\ud800", "\udcff", "\u202egnp.exe", "😀" * 50, "x" * 300, "x" * 1_000_000),
    *("tfds:", "tfds:\n", "/dev", "/dev/null", "~nobody", "%s%n{0}", "'; --", "(1", "kecam/"),
    *("a/b", "../" * 2000),
)
_RULES = (
    *("(", "[", "*", "a{99999999999999}", "(?P<a", "(?i", "\\", "(" * 400 + ")" * 400, "\0"),
    *("(a+)+b", "(.*)*x", "(\\w+/?)+!", ".*.*.*.*.*.*.*.*.*.*x", "(.|.)*x", "((.*)*)*!", "\n"),
    *("x" * 100_000, "nothing", "", "(?s:.*)", ".*", "(a{1000}){1000}"),
)
_UNFREEZE = (
    *("5:full:1e999", "99999999999:full", "0:full", "1:full", "-1:full", "5", "5:", ":full", "5:x"),
    *("5:full:0", "5:full:-1", "5:full:nan", "5:full:1e-300", "5:full:1e308", "5:full:1:1"),
    *("5:full\n", "\uff15:full", "9" * 5000 + ":full", "5:full:" + "9" * 5000, "5:rules", "5:full"),
)
_CLASS_WEIGHTS = (
    *("1", "0,0", "1,2,3", "9" * 400 + ",1", "1," * 100_000, "1,2\n", "\uff11,2", "1e3,1"),
)


def config_cases(folder: pathlib.Path, count: int, seed: int) -> list[Case]:
    """Every field and option, with each absurd value through each door."""
    write_patches(folder)
    bases = {
        name: base_config(folder, name) for name in ("davit_tiny", "googlenet", "alexnet_mini")
    }
    leaves = [("davit_tiny", key, value) for key, value in fields_of(bases["davit_tiny"])]
    for name, config in bases.items():
        options = settled_options(name, config.image_size, {})
        leaves += [(name, f"model.options.{key}", value) for key, value in options.items()]
    for config in bases.values():
        go_on(read_config(config))  # what this loads is not counted as the first case's memory

    def cases(network: str, key: str, values: list[Any], texts: list[str]) -> Iterator[Case]:
        config = bases[network]
        label = f"{network} {key}" if key.startswith("model.options.") else key
        for value in values:
            set_it = functools.partial(by_script, config, key, value)
            yield f"script: {label} = {show(value)}", set_it
            if key.startswith("model.options."):
                make = functools.partial(by_call, network, key.rpartition(".")[2], value)
                yield f"create_model: {label} = {show(value)}", make
        for text in texts:
            give = functools.partial(by_command_line, config, key, text)
            yield f"command line: {label}={show(text)}", give

    def draw(generator: random.Random) -> Case:
        network, key, default = generator.choice(leaves)
        values = [random_value(generator, default)]
        return generator.choice(
            list(cases(network, key, values, [random_text(generator, default)]))
        )

    fixed = [
        case
        for network, key, default in leaves
        for case in cases(network, key, absurd_values(key, default), absurd_texts(key, default))
    ]
    for argument in ("num_classes", "image_size", "name"):
        for value in absurd_values(argument, (64, 64) if argument == "image_size" else 1):
            call = functools.partial(by_call, "davit_tiny", argument, value)
            fixed.append((f"create_model: {argument} = {show(value)}", call))
    return drawn(fixed, draw, count, seed)


def base_config(folder: pathlib.Path, name: str) -> ConfigDict:
    """A small network that trains its head; what the cases change is all that is wrong with it."""
    config = default_config()
    config.model.name = name
    if name == "davit_tiny":
        small = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2)}
        config.model.options.update(small)
    config.image_size = (96, 96)
    config.data.source = str(folder)
    config.freeze.regime = "head_only"
    return config


def fields_of(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every field that is no section; the options are the networks' own."""
    for name in config:
        value = config[name]
        if prefix + name == "model.options":
            continue
        if isinstance(value, ConfigDict):
            yield from fields_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def absurd_values(key: str, default: Any) -> list[Any]:
    """Values that a script may set a field to: of every type, and more of the field's own."""
    values: list[Any] = [None, True, False, b"bytes", 1j, object, range(3), {1, 2}, {}, {"a": 1}]
    values += [np.int32(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.arange(2)]
    values += [np.zeros((50, 50)), (), (1,), (1, 2), [1, 2], (1, 2, 3), ("a", "b"), _NESTED]
    values += [_NUMBERS, *_NUMBERS, *_TEXTS]
    if isinstance(default, tuple | list):
        values += [(64, 96), [64, 96], (64, 96.0), (64.5, 96), (1.5, 2.5), (64, True), (64, None)]
        values += [(0, 0), (-1, -1), (32, 32), (31, 64), (10**5, 10**5), (10**9, 10**9)]
        values += [(10**9, 1), (1, 1, 3, 1), (10**9, 1, 1, 1), (3, 6, 12, 24), (1,) * 10_000]
        values += [(float("nan"),) * 3, (0.7, 0.2, 0.1), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0)]
        values += [(np.int64(64), np.int64(64)), np.array([64, 96]), ("64", "96"), (b"a", b"b")]
        values += [("0.7", "0.2", "0.1"), (1e-320, 0.5, 0.5), ((64, 64), (64, 64)), ("a", "a")]
        values += [("a",), "ab", ("a\nb", "c"), ("", "b"), ("x" * 10**6, "b"), ((".*", 1.0),)]
        values += [(("a", 1, 2),), ((1, ".*"),), ((".*", "frozen"),), ((".*", "thawed"),)]
        values += [((".*", None),), ((".*", -1.0),), ((".*", 1e308),), ((".*", True),)]
        values += [((".*", 1.0),) * 10_000, [[".*", "trainable"]], ((".*", float("nan")),)]
        values += [((text, what), (".*", what)) for text in _RULES for what in ("trainable", 1.0)]
        values += [(text,) for text in _UNFREEZE] + [("3:full", "2:full"), ("5:full",) * 2000]
    if key == "class_weights":
        values += _CLASS_WEIGHTS
    return values


def absurd_texts(key: str, default: Any) -> list[str]:
    """The same for what a command line may say; it has no NUL."""
    texts = [text for text in _TEXTS if "\0" not in text]
    texts += ["-1", "0", "1", "2", "1.0", "1.5", "1e3", "0x10", "1_0", "\uff11", "+1", "--", "()"]
    texts += ["9" * 400, "9" * 5000, "9" * 10**6, "1e308", "-1e308", "1e-300", "inf", "true", "yes"]
    texts += ["(" * 200, "[" * 10**5, "-" * 10**5 + "1", "{}", "{'a': 1}", "1,2", "1, 2", "(1,2)"]
    texts += ["lambda: 0", "__import__('os')", "1+1", "b'a'", "1j", "...", "(,)"]
    texts += ["2147483648", "4294967296", "9223372036854775807", "9223372036854775808"]
    if isinstance(default, tuple | list):
        texts += ["64", "64,64", "64,", ",", "64x64", "64 64", "(64", "64.0,64", "[64,64]"]
        texts += ["0.7,0.2,0.1", "0.7 0.2 0.1", "70%,15%,15%", "a,b", "a, b", "'a','b'", "(a,b)"]
        texts += ["1000000000,1", "0,0", "1,1,3,1", "nan,nan", "None,None", "1," * 10**5]
        texts += ["('.*','frozen')", "(('.*','frozen'),)", "(('(','frozen'),)", "(('.*',1.0),)"]
        texts += [*_UNFREEZE, *(f"(({text!r}, 'trainable'), ('.*', 1.0))" for text in _RULES)]
    if key == "class_weights":
        texts += _CLASS_WEIGHTS
    return texts


def random_value(generator: random.Random, default: Any, depth: int = 0) -> Any:
    """A value near the default's type, or of any other."""
    if generator.random() < 0.3 and depth < 3:
        length = generator.choice((0, 1, 2, 2, 3, 4, 20))
        items = [random_value(generator, default, depth + 1) for _ in range(length)]
        return generator.choice((tuple, list))(items)
    if isinstance(default, str) or generator.random() < 0.2:
        return random_text(generator, default)
    return generator.choice(
        (
            generator.randint(-3, 40),
            generator.randint(-(2**70), 2**70),
            generator.uniform(-2, 2),
            generator.choice((1, -1)) * 10.0 ** generator.uniform(-320, 308),
            2 ** generator.randint(0, 70),
            generator.choice((*_NUMBERS, None, True, False)),
        )
    )


def random_text(generator: random.Random, default: Any) -> str:
    alphabet = "01259.,-+eE()[]'\":;xX_ aft/\\*\t\n😀\u00a0\ud800"
    if generator.random() < 0.5:
        return "".join(generator.choice(alphabet) for _ in range(generator.randint(0, 30)))
    text = list(str(default))
    for _ in range(generator.randint(1, 3)):
        place = generator.randint(0, len(text))
        text[place : place + generator.randint(0, 2)] = generator.choice(alphabet)
    return "".join(text)


def by_script(base: ConfigDict, key: str, value: Any) -> None:
    config = copy.deepcopy(base)
    *sections, field = key.split(".")
    part = functools.reduce(lambda part, name: part[name], sections, config)
    try:
        with config.ignore_type(), config.unlocked():
            part[field] = value
    except Exception as error:  # ml_collections does not take it, whatever we make of it
        raise UserError("the ConfigDict itself refuses it") from error
    go_on(read_config(config), key)


def by_command_line(base: ConfigDict, key: str, text: str) -> None:
    go_on(read_config(apply_overrides(base, [(key, text)])), key)


def by_call(network: str, argument: str, value: Any) -> None:
    arguments: dict[str, Any] = {"name": network, "image_size": (96, 96), argument: value}
    nnx.eval_shape(lambda: create_model(rngs=nnx.Rngs(0), **arguments))


def go_on(config: RunConfig, key: str = "") -> None:
    """What a run does with its configuration before it reads an image."""
    if key.startswith("demo."):
        config = dataclasses.replace(config, **vars(config.demo))
    placement = Placement(config.devices, shard_params=config.shard_params)
    if key == "pretrained.source":
        settle_source(config, has_arrays=False)
    if config.data.source == "synthetic":
        return  # drawing it takes half a minute
    splits = load_splits(config.data)
    model: Any = nnx.eval_shape(lambda: create_network(config, len(splits.classes)))
    freeze = config.freeze
    phases = parameter_groups.plan(
        model, freeze.regime, until=freeze.until, rules=freeze.rules, unfreeze=freeze.unfreeze
    )
    rates, decays = parameter_groups.rates_and_decays(
        model,
        phases,
        learning_rate_rules=config.learning_rate_rules,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        weight_decay_rules=config.weight_decay_rules,
    )
    with np.errstate(over="raise", under="raise"):
        for number in (config.weight_decay, *rates.values(), *decays.values()):
            np.float32(number)
        learning_rate(config, config.learning_rate, 0, 10)
    class_weights(config.class_weights, splits.train.labels, len(splits.classes))
    make_optimizer(config, parameter_groups.thaw_groups(phases))
    jax.random.key(config.seed)
    int(config.data.cache_gib * 2**30)
    Batches(
        DecodedImages(splits.train, config.image_size),
        config.batch_size,
        stratified=config.stratified_batches,
        multiple=placement.devices * config.accumulation_steps,
    ).examples_of(0, 0)
    json.dumps(config.to_dict()).encode()
