"""A configuration on the command line: which file, in which mode, with which fields set.

config = apply_overrides(load_config("davit:scratch"), [("batch_size", "16")])
"""

import ast
import copy
import dataclasses
import os
import pathlib
import runpy
import warnings
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, get_args, get_type_hints

from absl import flags
from ml_collections import ConfigDict

import glomjax
from glomjax.errors import UserError, first_few, nearest_key, shown

Override = tuple[str, str | None]  # (key such as "data.source", text; None where there is none)

# What other libraries call our fields.
ALIASES = {
    "accum": "accumulation_steps",
    "accumulate_grad_batches": "accumulation_steps",
    "arch": "model.name",
    "backbone": "model.name",
    "batch": "batch_size",
    "bs": "batch_size",
    "checkpoint": "pretrained.source",
    "clipnorm": "clip_norm",
    "data_dir": "data.source",
    "dataset": "data.source",
    "dropout": "model.options.dropout_rate",
    "ema": "ema_decay",
    "epochs": "num_epochs",
    "gradient_accumulation_steps": "accumulation_steps",
    "grad_clip": "clip_norm",
    "gpus": "devices",
    "img_size": "image_size",
    "init_lr": "learning_rate",
    "input_shape": "image_size",
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "max_epochs": "num_epochs",
    "max_grad_norm": "clip_norm",
    "mixed_precision": "precision",
    "n_epochs": "num_epochs",
    "opt": "optimizer",
    "random_state": "seed",
    "scheduler": "schedule",
    "smoothing": "label_smoothing",
    "tta": "test_time_augmentation",
    "warmup": "warmup_epochs",
    "wd": "weight_decay",
    "weights": "pretrained.source",
}

_LONGEST_LITERAL = 100_000  # characters; Python's parser may crash on longer ones

_PARSERS: dict[type, Any] = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
}


def config_names() -> list[str]:
    """The names of the configurations that come with the package."""
    return sorted(file.stem for file in _folder().glob("[!_]*.py"))


def is_config(what: str) -> bool:
    """Whether this names a configuration, and not a file or folder of another kind."""
    name, colon, _ = what.partition(":")
    return name.endswith(".py") or (
        name in config_names() and (bool(colon) or not os.path.exists(name))
    )


def shipped_name(what: str) -> str:
    """The name of a configuration that comes with the package, with its mode, "" for others'."""
    name, colon, mode = what.partition(":")
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        own = _folder() / path.name
        name = path.stem if own.is_file() and own.samefile(path) else ""
    return f"{name}{colon}{mode}" if name in config_names() else ""


def load_config(what: str) -> ConfigDict:
    """What `get_config()` of a configuration returns, or `get_config(MODE)`.

    Args:
      what: the path of a file or the name of one that comes with the package; `:MODE` may follow.

    Raises:
      UserError: there is none of that name, or the file is not a configuration.
    """
    name, colon, mode = what.partition(":")
    path = os.path.expanduser(name)
    if not os.path.isfile(path):
        if name not in config_names():
            raise UserError(
                f"configuration '{name}' does not exist; give the path of a file or one of the "
                f"names {', '.join(config_names())}"
            )
        path = str(_folder() / f"{name}.py")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"configuration '{name}' has no get_config()")
        if colon and not signature(get_config).parameters:
            raise UserError(f"configuration '{name}' has no modes; leave out ':{mode}'")
        config = get_config(mode) if colon else get_config()
    except UserError:
        raise
    except Exception as error:  # whatever the file raises
        reason = (str(error).strip().splitlines() or ["without a word"])[-1].strip()
        raise UserError(
            f"configuration '{name}' raises {type(error).__name__} ({reason})"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of configuration '{name}' returns {type(config).__name__}; it must "
            "return a ConfigDict, such as glomjax.training.default_config()"
        )
    return config


def split_overrides(argv: Sequence[str]) -> tuple[list[Override], list[str]]:
    """What `--config.KEY=VALUE`, `--config.KEY VALUE` and a bare `--config.KEY` set, and the other
    arguments."""
    overrides: list[Override] = []
    others: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        if not argument.startswith("--config."):
            others.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if equals:
            overrides.append((key, value))
        elif left and not left[0].startswith("--"):
            overrides.append((key, left.pop(0)))
        else:
            overrides.append((key, None))
    return overrides, others


def apply_overrides(config: ConfigDict, overrides: Sequence[Override]) -> ConfigDict:
    """A copy of the configuration in which fields are set, each text read by its field's type.

    What is set here holds on the demo data, too, whatever `demo` has for it.

    Raises:
      UserError: an unknown field, or a text that is not of its type.
    """
    texts: dict[str, list[str | None]] = {}
    for key, text in overrides:
        texts.setdefault(key, []).append(text)
    changed = copy.deepcopy(config)
    # The network first: the options that there are depend on it.
    for key in sorted(texts, key=lambda key: key != "model.name"):
        known = dict(_walk(changed)) | _network_options(changed)
        if key not in known:
            field = shown(f"--config.{key}")[1:-1]
            raise UserError(f"there is no {field}; {_nearest(key, list(known))}")
        if isinstance(known[key], ConfigDict):
            raise UserError(
                f"config.{key} is a section; set one of its fields, such as "
                f"--config.{next((k for k in known if k.startswith(f'{key}.')), f'{key}.KEY')}"
            )
        *sections, name = key.split(".")
        part = changed
        for section in sections:
            part = part[section]
        with changed.ignore_type(), changed.unlocked():
            part[name] = _parse(key, texts[key], known[key])
            if key == "model.name":
                _leave_options_of_another_network(changed, known[key])
            if key in changed.get("demo", {}) and f"demo.{key}" not in texts:
                changed.demo[key] = part[name]
    return changed


def _folder() -> pathlib.Path:
    """Where the configurations lie: in the package, or beside it in a clone."""
    package = pathlib.Path(glomjax.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _walk(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every section and every field."""
    for name in config:
        value = config[name]
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from _walk(value, f"{prefix}{name}.")


def _network_options(config: ConfigDict) -> dict[str, Any]:
    """{key: value} of the network's options that the configuration leaves at their defaults."""
    from glomjax.models import MODELS, settled_options
    from glomjax.training.config import RunConfig

    model = config.get("model")
    if not isinstance(model, ConfigDict) or model.get("name") not in MODELS:
        return {}
    given = model.get("options", {})
    options = settled_options(model.name, RunConfig().image_size, {})
    return {f"model.options.{key}": options[key] for key in options if key not in given}


def _leave_options_of_another_network(config: ConfigDict, before: str) -> None:
    """Those in the file are of the architecture that was named there."""
    from glomjax.models import MODELS

    kinds = [MODELS[name][0] if name in MODELS else None for name in (before, config.model.name)]
    if kinds[0] is not kinds[1]:
        config.model.options = ConfigDict()


def _nearest(key: str, known: list[str]) -> str:
    section, _, last = key.rpartition(".")
    alias = ALIASES.get(last)
    if alias in known:
        return f"did you mean --config.{alias}"
    if section == "model.options":
        otherwise, known = "", [name for name in known if name.startswith("model.options.")]
    else:
        otherwise = "the verb train lists all with --help"
    # The fields of the same section first, then those outside of any.
    known.sort(key=lambda name: (name.rpartition(".")[0] != section, name.count(".")))
    return nearest_key(key, [f"--config.{name}" for name in known], otherwise)


def _parse(key: str, texts: Sequence[str | None], current: Any) -> Any:
    """The value of texts for a field that has the value `current`; the last one counts, but several
    for a tuple may be one element each."""
    if isinstance(current, bool) and texts[-1] is None:
        return True
    given = [text for text in texts if text is not None]
    if len(given) < len(texts):
        raise UserError(f"--config.{key} has no value; give it as --config.{key}=VALUE")
    text = given[-1]
    is_option = key.startswith("model.options.")
    if isinstance(current, str):
        return text
    if isinstance(current, tuple | list) and not is_option:
        return _tuple(key, given)
    if type(current) not in _PARSERS:
        return _literal(key, text)
    try:
        return _PARSERS[type(current)].parse(text)
    except (TypeError, ValueError) as error:
        # A window is a side or a pair of sides; the network itself says which options may be one.
        if is_option and isinstance(pair := _literal(key, text), tuple):
            return pair
        raise UserError(
            f"--config.{key} is {shown(text)}; it must be of type {type(current).__name__}"
        ) from error


def _tuple(key: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """The tuple that texts give, each the whole of it or one element."""
    from glomjax.models import is_of_type

    kinds = get_args(_type_of(key))
    texts = [text for text in texts if text]
    values = [_names(key, text) if kinds[0] is str else _literal(key, text) for text in texts]
    whole = [isinstance(v, tuple | list) and not is_of_type(v, kinds[0]) for v in values]
    if all(whole):
        return tuple(values[-1]) if values else ()
    if kinds == (int, int) and list(map(type, values)) == [int]:
        return values[0], values[0]  # the side of a square
    if len(values) > 1 and (any(whole) or kinds[-1] is not ...):
        raise UserError(
            f"--config.{key} is given {len(texts)} times, as {first_few(map(shown, texts))}; give "
            "all of it once, with commas"
        )
    return tuple(values)


def _type_of(key: str) -> Any:
    """The declared type of a field."""
    from glomjax.training.config import RunConfig

    kind: Any = RunConfig
    *sections, name = key.split(".")
    try:
        for section in sections:
            kind = {f.name: f for f in dataclasses.fields(kind)}[section].default_factory
        return get_type_hints(kind)[name]
    except (KeyError, TypeError):
        return tuple[object, ...]  # of a field that there is not, which is said later


def _names(key: str, text: str) -> Any:
    """Texts with commas between them; or with quotes, as in Python."""
    if text.lstrip().startswith(("(", "[", "{", "'", '"')):
        return _literal(key, text)
    return tuple(part.strip() for part in text.split(",")) if "," in text else text


def _literal(key: str, text: str) -> Any:
    """A Python literal; a text without brackets and quotes may also be names with commas."""
    try:
        if len(text) > _LONGEST_LITERAL:
            raise ValueError
        with warnings.catch_warnings():  # of \\d in an expression
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        if text.lstrip().startswith(("(", "[", "{", "'", '"')):
            raise UserError(
                f"--config.{key} is {shown(text)}, which is no Python literal; put its texts in "
                f"""quotes, as in --config.{key}="('a','b')\""""
            ) from error
        return tuple(part.strip() for part in text.split(",")) if "," in text else text
