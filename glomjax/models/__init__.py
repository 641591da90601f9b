"""The networks, by name. Importing this loads jax and flax and nothing heavier."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from glomjax.errors import UserError
from glomjax.models import davit
from glomjax.models.alexnet_mini import AlexNetMini
from glomjax.models.davit import DaViT
from glomjax.models.googlenet import GoogLeNet

MODELS = ("alexnet_mini", "googlenet", *davit.SIZES)


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
      image_size: (height, width) of the images to come. DaViT takes any size afterwards too.
      rngs: `nnx.Rngs(seed)`; its `params` stream initialises the parameters.
      **options: the architecture's own arguments, such as `preset` or `dropout_rate`.

    Returns:
      The network, with its `name` and, as `forward_order`, the paths of its parameters from the
      input to the logits.

    Raises:
      UserError: an unknown name, an unknown option or a value that the network cannot have.
    """
    if num_classes < 0:
        raise UserError(f"num_classes is {num_classes}; it must not be negative")
    sizes: dict[str, Any] = {}
    if name == "alexnet_mini":
        network: Any = AlexNetMini
        sizes = {"image_size": image_size}
    elif name == "googlenet":
        network = GoogLeNet
        sizes = {"image_size": image_size}
    elif name in davit.SIZES:
        network = DaViT
        depths, embed_dims, num_heads = davit.SIZES[name]
        sizes = {"depths": depths, "embed_dims": embed_dims, "num_heads": num_heads}
    else:
        raise UserError(f"there is no network {name!r}; choose one of {', '.join(MODELS)}")
    known = dict(inspect.signature(network.__init__).parameters)
    for settled in ("self", "num_classes", "image_size", "rngs"):
        known.pop(settled, None)
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f"network {name!r} has no option {option!r}; it has {', '.join(sorted(known))}"
            )
        kind = type(known[option].default)
        if kind in (bool, int, float, str) and not (
            type(value) is kind or (kind is float and type(value) is int)
        ):
            raise UserError(f"option {option!r} is {value!r}; it must be of type {kind.__name__}")
    model = network(num_classes=num_classes, rngs=rngs, **(sizes | options))
    model.name = name
    model.forward_order = tuple(_in_order_of_definition(model))
    return model


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
