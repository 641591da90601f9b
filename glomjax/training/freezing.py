"""What trains and what stays: ordered rules over parameter paths, and named regimes of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optax

from glomjax.errors import UserError

REGIMES = ("full", "partial", "head_only", "scratch")
TRAINABLE, FROZEN = "trainable", "frozen"

# (regular expression that must match a whole path, label); the first that matches counts.
Rules = Sequence[tuple[str, str]]


def label_parameters(paths: Iterable[str], rules: Rules) -> dict[str, str]:
    """{path: "trainable" or "frozen"}.

    Raises:
      UserError: a rule matches no parameter, a parameter matches no rule, or nothing trains.
    """
    labels: dict[str, str] = {}
    paths = list(paths)
    for path in paths:
        for pattern, label in rules:
            if re.fullmatch(pattern, path):
                labels[path] = label
                break
        else:
            raise UserError(f"no freezing rule covers parameter {path!r}; end with a rule '.*'")
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise UserError(
                f"freezing rule {pattern!r} matches no parameter; "
                "`summary.txt` of a run lists the paths"
            )
    if TRAINABLE not in labels.values():
        raise UserError("every parameter is frozen, so there is nothing to train")
    return labels


def regime_rules(regime: str, model: Any, paths: Sequence[str]) -> Rules:
    """The rules of a regime.

    `full` and `scratch` train everything (`scratch` from random values). `head_only` trains the
    logits' layer. `partial` freezes what lies before the published cut: in DaViT the stem, the
    first stage, and the second up to the first block's attention (in DaViT-T 168 of 212 tensors
    train). The CNNs have no published cut.

    Raises:
      UserError: an unknown regime or one that the network does not have.
    """
    if regime in ("full", "scratch"):
        return ((".*", TRAINABLE),)
    if regime == "head_only":
        return ((r"head/.*", TRAINABLE), (".*", FROZEN))
    if regime == "partial":
        if "stages/1/blocks/0/spatial/norm1/scale" not in paths:
            raise UserError(
                f"network {model.name!r} has no published cut for the regime 'partial'; "
                "use head_only, full or scratch"
            )
        # The published cut falls right behind `stack2_block1_attn_ln` of the Keras model.
        frozen = (
            r"stem/.*|stages/0/.*|stages/1/downsample/.*|stages/1/blocks/0/spatial/(cpe1|norm1)/.*"
        )
        return ((frozen, FROZEN), (".*", TRAINABLE))
    raise UserError(f"freeze.regime is {regime!r}; choose one of {', '.join(REGIMES)}")


def partition(
    optimizer: optax.GradientTransformation, labels: Mapping[str, str]
) -> optax.GradientTransformation:
    """`optimizer` for what trains; nothing, not even slots, for what is frozen.

    Takes and returns flat dicts. The step hands it the trainable parameters alone; the labels are
    a function, so that `init` and `update` look up just what they are given.
    """
    return optax.partition(
        {TRAINABLE: optimizer, FROZEN: optax.set_to_zero()},
        lambda params: {path: labels[path] for path in params},
    )
