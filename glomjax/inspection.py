"""What a weight source holds and what a configuration trains, as text; nothing is computed."""

import os
import runpy

from flax import nnx
from ml_collections import ConfigDict

from glomjax.errors import UserError
from glomjax.models import params_of
from glomjax.pretrained import SourceInfo, read_weights
from glomjax.training import parameter_groups
from glomjax.training.config import check_config
from glomjax.training.inputs import create_network
from glomjax.training.summary import summarize, tabulate


def describe(what: str) -> str:
    """The description of a configuration file (`FILE.py` or `FILE.py:MODE`) or a weight source.

    Raises:
      UserError: neither of the two, or one that is not valid.
    """
    is_config = what.partition(":")[0].endswith(".py")
    return describe_config(what) if is_config else describe_weights(what)


def describe_weights(source: str) -> str:
    """What a weight source, as `load_weights` takes it, says about itself, and its tensors."""
    params, info = read_weights(source)
    lines = [f"{name:<14}{value or 'not named'}" for name, value in _facts(info)]
    return "\n".join([*lines, "", *tabulate(params)])


def describe_config(what: str) -> str:
    """A configuration's network, tensor by tensor, and what of it trains.

    The number of logits is a matter of the data: where `data.classes` does not name them, there are
    two classes here, and so one logit.
    """
    config = _load_config(what)
    check_config(config)
    classes, image_size = tuple(config.data.classes), tuple(config.image_size)
    model = nnx.eval_shape(lambda: create_network(config, len(classes) or 2))
    params = params_of(model)
    phases = parameter_groups.plan_of(config, model)
    lines = [
        f"{'configuration':<14}{what}",
        f"{'weights':<14}{config.pretrained.source}",
        f"{'regime':<14}{config.freeze.regime}",
        *(f"{'thaw':<14}epoch {p.epoch + 1}: {p.regime}" for p in phases[1:]),
        f"{'classes':<14}{', '.join(classes) or 'two, or as many as the data has'}",
    ]
    return "\n".join([*lines, "", summarize(model, params, phases[0].labels, image_size).rstrip()])


def _facts(info: SourceInfo) -> list[tuple[str, str]]:
    facts = [
        ("path", str(info.path)),
        ("layout", info.layout),
        ("model", info.model),
        ("preset", info.preset),
        ("settings", ", ".join(f"{key} {value}" for key, value in info.settings.items())),
        ("preprocessing", ", ".join(f"{key} {value}" for key, value in info.preprocessing.items())),
        ("classes", ", ".join(info.classes)),
        ("sha256", info.sha256),
    ]
    if info.origin:
        facts.append(("written from", info.origin))
    if info.unknown:
        facts.append(("not ours", f"{len(info.unknown)} tensors: {', '.join(info.unknown)}"))
    return facts


def _load_config(what: str) -> ConfigDict:
    """The `get_config()` of `FILE.py`, or the `get_config(MODE)` of `FILE.py:MODE`."""
    path, colon, mode = what.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"configuration file '{path}' does not exist")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"configuration file '{path}' has no get_config()")
        config = get_config(mode) if colon else get_config()
    except UserError:
        raise
    except Exception as error:  # whatever the file raises
        reason = (str(error).strip().splitlines() or ["without a word"])[-1].strip()
        raise UserError(
            f"configuration file '{path}' raises {type(error).__name__} ({reason})"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of configuration file '{path}' returns {type(config).__name__}; it must "
            "return a ConfigDict, such as glomjax.training.default_config()"
        )
    return config
