"""glomjax's initial weights under the names, and in the layout, of another stack."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glomjax.errors import UserError
from glomjax.pretrained import kecam, timm

# (name there as a regex, our path, axes that turn its array into ours or None)
Rules = Sequence[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str], Sequence[int] | None]]

_DAVIT: dict[str, Rules] = {
    "keras": kecam.RULES,
    "torch": (
        *timm.RULES,
        # timm's names where the head normalises first
        (re.compile(r"norm_pre\.weight"), "norm/scale", None),
        (re.compile(r"norm_pre\.bias"), "norm/bias", None),
    ),
}
# The CNNs of this folder have our names, as far as the stack lets them.
_CNN: dict[str, Rules] = {
    "keras": ((re.compile("(.+)"), r"\1", None),),
    "torch": (
        (re.compile(r"(inception_..)\.(\w+)\.weight"), r"\1/\2/kernel", (2, 3, 1, 0)),
        (re.compile(r"(inception_..)\.(\w+)\.bias"), r"\1/\2/bias", None),
        (re.compile(r"(conv\w+)\.weight"), r"\1/kernel", (2, 3, 1, 0)),
        (re.compile(r"(fc\d?|head)\.weight"), r"\1/kernel", (1, 0)),
        (re.compile(r"(\w+)\.bias"), r"\1/bias", None),
    ),
}


def rules_for(architecture: str, environment: str) -> Rules:
    """The names of `architecture` in the stacks of an environment."""
    return (_DAVIT if architecture.startswith("davit") else _CNN)[environment]


def translate(
    params: Mapping[str, np.ndarray], tensors: Mapping[str, Sequence[int]], rules: Rules
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name there: array as it is stored there}, {name there: our path}).

    Args:
      params: ours, flat.
      tensors: {name there: shape there}, all that the other network has.

    Raises:
      UserError: the two networks do not have the same tensors.
    """
    arrays: dict[str, np.ndarray] = {}
    paths: dict[str, str] = {}
    for name, shape in tensors.items():
        rule = next((rule for rule in rules if rule[0].fullmatch(name)), None)
        if rule is None:
            raise UserError(f"the other network has {name}, which glomjax does not have")
        pattern, target, axes = rule
        path = pattern.sub(target, name)
        if path not in params or path in paths.values():
            raise UserError(f"{name} would be {path}, which glomjax does not have (again)")
        value = params[path]
        arrays[name] = value if axes is None else value.transpose(np.argsort(axes))
        paths[name] = path
        if arrays[name].shape != tuple(shape):
            raise UserError(f"{name} is {tuple(shape)} there and {arrays[name].shape} from {path}")
    if missing := set(params) - set(paths.values()):
        raise UserError(f"the other network lacks {', '.join(sorted(missing))}")
    return arrays, paths
