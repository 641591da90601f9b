"""The networks, by name. Importing this loads jax and flax and nothing heavier.

Examples:
  >>> import jax.numpy as jnp
  >>> from flax import nnx
  >>> from glomjax.models import create_model, params_of
  >>> model = create_model("alexnet_mini", image_size=(140, 140), rngs=nnx.Rngs(0))
  >>> model(jnp.zeros((2, 140, 140, 3))).shape
  (2, 1)
  >>> list(params_of(model))[-2:]
  ['head/bias', 'head/kernel']
"""

import inspect
import numbers
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from glomjax.errors import UserError, shown
from glomjax.models import davit
from glomjax.models.alexnet_mini import AlexNetMini
from glomjax.models.davit import DaViT
from glomjax.models.googlenet import GoogLeNet

__all__ = [
    "MODELS",
    "AlexNetMini",
    "DaViT",
    "GoogLeNet",
    "create_model",
    "params_of",
    "set_params",
]


def __dir__() -> list[str]:
    """What tab completion offers: the names for scripts."""
    return __all__


MOST_PIXELS = 4096  # of an image's side; patches have some hundred
MOST_CLASSES = 2**16

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "alexnet_mini": (AlexNetMini, {}),
    "googlenet": (GoogLeNet, {}),
    **{name: (DaViT, size) for name, size in davit.SIZES.items()},
}
"""{name: (class, the arguments that make its size)}. A new architecture is a module and a line
here."""


def create_model(
    name: str,
    *,
    num_classes: int = 1,
    image_size: tuple[int, int] = (280, 280),
    rngs: nnx.Rngs,
    **options: Any,
) -> nnx.Module:
    """A network with freshly initialised parameters.

    Args:
      name: one of `MODELS`.
      num_classes: logits; 1 for two classes (one logit, sigmoid), 0 for pooled features.
      image_size: (height, width) of the images to come. DaViT takes any other size, too.
      rngs: `nnx.Rngs(seed)`; its `params` stream initialises the parameters.
      **options: the architecture's own arguments, such as `preset` or `dropout_rate`.

    Returns:
      The network. Beside its own attributes it has:

      - `model(images, deterministic=True, rngs=None)`: images [B, H, W, 3] -> logits
        [B, num_classes], which is `model.classify(model.embed(images))` with the same arguments
        passed on. In training GoogLeNet gives (logits, a tuple of auxiliary logits).
      - `feature_map(images)`: the map [B, h, w, C] by which Grad-CAM explains a prediction,
        `embed_map(map)`, which is what `embed` makes of it, and `map_grids()`: for its rows and for
        its columns, the pixel at the centre of the first cell and the pixels from cell to cell.
      - `name` and `image_size` as given here, and `options`, pairs of each option and the value
        that took effect.
      - `forward_order`: the paths of its parameters from the input to the logits.
      - `HEAD_PATHS`: a regular expression of the paths of the last layer, which is what `classify`
        has of parameters.
      - `LOGITS_PATHS`: the same of all layers whose outputs are the classes.
      - `HIDDEN_OPTIONS`: the options that change what the same tensors compute, beside the preset.
      - `PUBLISHED_CUT`: the block or parameter up to and with which the published partial
        fine-tuning freezes the network; "" where nothing is published.
      - `PREPROCESSING`: what its pixels go through where no weights say otherwise, as the field
        `preprocessing` of a configuration has it.
      - `LEARNING_RATE`: the first one, with which it learnt from random values (`docs/results.md`).

      Its class has `check(options, image_size)`, which refuses options that it cannot have. Where
      they follow the preset or the images, it has `settle(options, image_size)`, too, which puts in
      their place what takes effect.

      A module inside it that regularises beyond plain dropout has a method `disable`, which is
      called where all that it acts on is frozen.

    Raises:
      UserError: an unknown name, an unknown option or a value that the network cannot have.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"there is no network {shown(name)}; choose one of {', '.join(MODELS)}")
    if not _is_whole(num_classes) or num_classes < 0:
        raise UserError(
            f"num_classes is {shown(num_classes)}; it is a whole number of logits, 0 for features"
        )
    image_size = _checked_size(image_size)
    if not isinstance(rngs, nnx.Rngs) or not hasattr(rngs, "params"):
        raise UserError(
            f"rngs is of type {type(rngs).__name__}; it is flax.nnx.Rngs(seed), whose stream "
            "'params' draws the initial values"
        )
    check_options(name, image_size, options, num_classes)
    network, size = MODELS[name]
    settings = size | _as_tuples(options)
    model = network(num_classes=int(num_classes), image_size=image_size, rngs=rngs, **settings)
    model.name = name
    model.options = tuple(settled_options(name, image_size, options).items())
    model.forward_order = tuple(_in_order_of_definition(model))
    return model


def check_options(
    name: str, image_size: tuple[int, int], options: Mapping[str, Any], num_classes: int = 1
) -> None:
    """Checks what a network is made of before anything is made.

    Args:
      name, image_size, options, num_classes: as in `create_model`.

    Raises:
      UserError: an unknown option, or values that the network cannot have or that make one of an
        absurd size.
    """
    network, _ = MODELS[name]
    if max(image_size) > MOST_PIXELS:
        raise UserError(
            f"image_size is {shown(tuple(image_size))}; a side has at most {MOST_PIXELS} pixels"
        )
    if num_classes > MOST_CLASSES:
        raise UserError(
            f"num_classes is {shown(num_classes)}; a network has at most {MOST_CLASSES} logits"
        )
    known = {
        option: hint
        for option, hint in get_type_hints(network.__init__).items()
        if option not in ("num_classes", "image_size", "rngs", "return")
    }
    options = _as_tuples(options)
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"network {name!r} has no option {shown(option)}; it has {', '.join(sorted(known))}"
            )
        if not is_of_type(value, known[option]):
            kind = inspect.formatannotation(known[option])
            raise UserError(f"option {option!r} is {shown(value)}; it must be of type {kind}")
    network.check(_all_options(name, options), image_size)


def num_logits(num_classes: int) -> int:
    """Logits of a classifier of so many named classes: one, under a sigmoid, for two."""
    return 1 if num_classes == 2 else num_classes


def settled_options(
    name: str, image_size: tuple[int, int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Every option of a network with the value that takes effect, JSON-ready but for tuples.

    What depends on the image is in numbers, such as DaViT's window, so that the same tensors give
    the same outputs wherever they are loaded.

    Args:
      name, image_size, options: as in `create_model`.
    """
    options = _all_options(name, _as_tuples(options))
    settle = getattr(MODELS[name][0], "settle", None)
    return options if settle is None else settle(options, image_size)


def _all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of those that are not given."""
    network, size = MODELS[name]
    parameters = inspect.signature(network.__init__).parameters
    known = {
        option: parameter.default
        for option, parameter in parameters.items()
        if option not in ("self", "num_classes", "image_size", "rngs")
    }
    return known | size | dict(options)


def _checked_size(image_size: Any) -> tuple[int, int]:
    """(height, width) in Python's own numbers, also of a list or an array of NumPy's."""
    sides = tuple(image_size) if isinstance(image_size, (tuple, list, np.ndarray)) else ()
    if len(sides) != 2 or not all(_is_whole(side) and side >= 1 for side in sides):
        raise UserError(
            f"image_size is {shown(image_size)}; it is (height, width) in pixels, such as "
            "(280, 280)"
        )
    return int(sides[0]), int(sides[1])


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _as_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists in place of tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a type such as int, bool | None or tuple[int, ...]; here bools are no
    ints, ints are floats, and lists are tuples."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, tuple | list):
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(is_of_type, value, kinds))
    if isinstance(hint, UnionType):
        return any(is_of_type(value, kind) for kind in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _in_order_of_definition(module: nnx.Module, prefix: str = "") -> Iterator[str]:
    """Parameter paths as the constructors made them, which is the order of the forward pass; NNX
    sorts attributes by name in all that it hands out later."""
    for name, child in vars(module).items():
        if isinstance(child, nnx.Param):
            yield prefix + name
        elif isinstance(child, nnx.Module):
            yield from _in_order_of_definition(child, f"{prefix}{name}/")


def params_of(model: nnx.Module) -> dict[str, jax.Array]:
    """The parameters as one flat dict, `{"stages/0/blocks/0/...": array}`, sorted by module."""
    return flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def set_params(model: nnx.Module, params: Mapping[str, jax.Array]) -> None:
    """Writes a flat dict of parameters into the model; paths it does not name stay as they are."""
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, nest(params))
    nnx.update(model, state)


def flatten(nested: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested dicts of parameters as one flat dict keyed by path."""
    return {"/".join(map(str, path)): leaf for path, leaf in flatten_dict(nested).items()}


def nest(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`: list positions are integers again, as NNX names them."""
    paths = {tuple(int(p) if p.isdigit() else p for p in k.split("/")): k for k in flat}
    return unflatten_dict({path: flat[key] for path, key in paths.items()})
