"""What trains, when and how fast: ordered rules over parameter paths, and named regimes of them."""

import dataclasses
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import optax
from flax import nnx

from glomjax.errors import UserError, shown

REGIMES = ("full", "partial", "head_only", "scratch", "rules")
TRAINABLE, FROZEN = "trainable", "frozen"
MOST_EPOCHS = 1_000_000  # of a run; the longest of the field have some thousand
# What float32, in which steps compute, holds with room for products of two.
SMALLEST, LARGEST = 1e-30, 1e30

_Value = TypeVar("_Value")
# (regular expression that must match a whole path, value); the first that matches counts.
Rules = Sequence[tuple[str, _Value]]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which the same parameters train.

    Attributes:
      epoch: its first epoch, from 0.
      regime: the regime that names what trains.
      labels: {path: "trainable" or "frozen"}.
      head_only: whether nothing before the last layer trains.
      factor: of the learning rate, for the parameters that train from this phase on.
    """

    epoch: int
    regime: str
    labels: Mapping[str, str]
    head_only: bool
    factor: float = 1.0

    @property
    def trainable(self) -> tuple[str, ...]:
        return tuple(path for path, label in self.labels.items() if label == TRAINABLE)

    def describe_thaw(self) -> str:
        """A line on what trains from here on."""
        named = "" if self.factor == 1 else f" at {self.factor:g} times the learning rate"
        return (
            f"epoch {self.epoch + 1}: regime {self.regime}, {len(self.trainable)} of "
            f"{len(self.labels)} tensors train; those newly thawed{named} start with fresh moments"
        )


def match_rules(paths: Iterable[str], rules: Rules[_Value], what: str) -> dict[str, _Value]:
    """{path: the value of the first rule that matches it}.

    Raises:
      UserError: a rule is no regular expression, takes for ever or matches no parameter, or a
        parameter matches no rule; `what` names the rules.
    """
    paths = list(paths)
    values: dict[str, _Value] = {}
    unused = []
    patterns = [compile_pattern(pattern, what) for pattern, _ in rules]
    _check_speed([pattern.pattern for pattern in patterns], paths, what)
    for (pattern, value), compiled in zip(rules, patterns, strict=True):
        matched = [path for path in paths if compiled.fullmatch(path)]
        if not matched:
            unused.append(pattern)
        for path in matched:
            values.setdefault(path, value)
    if unused:
        raise UserError(
            f"{what} {shown(unused[0])} matches no parameter; `summary.txt` of a run lists the "
            "paths"
        )
    for path in paths:
        if path not in values:
            raise UserError(f"no {what} covers parameter {path!r}; end with a rule '.*'")
    return {path: values[path] for path in paths}


def compile_pattern(pattern: str, what: str) -> re.Pattern[str]:
    """The regular expression of a rule; UserError for what is none, where `what` names the rule."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"{what} {shown(pattern)} is no regular expression ({shown(str(error))[1:-1]})"
        ) from error


def _check_speed(patterns: Sequence[str], paths: Sequence[str], what: str) -> None:
    """Raises UserError where a pattern takes for ever to match, as (a+)+b does.

    Nothing ends a match in this process. So patterns that repeat a group, or repeat more than
    twice, are first tried in another one, which ends after a second of computing.
    """
    doubtful = [p for p in patterns if re.search(r"\)[*+?{]", p) or len(_REPEATS.findall(p)) > 2]
    if not doubtful:
        return
    tried = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", "-c", _TRIAL],
        input=ascii((doubtful, list(paths))).encode(),
        capture_output=True,
    )
    if tried.returncode == -signal.SIGVTALRM:
        raise UserError(
            f"{what} {shown(doubtful[tried.stdout.count(b'.') - 1])} takes for ever to match the "
            "names of parameters; repeat no group that itself repeats something"
        )


_REPEATS = re.compile(r"[*+?{]")
_TRIAL = """
import ast, re, signal, sys
patterns, paths = ast.literal_eval(sys.stdin.read())
signal.setitimer(signal.ITIMER_VIRTUAL, 1)
for pattern in patterns:
    print(end=".", flush=True)
    for path in paths:
        re.fullmatch(pattern, path)
"""


def label_parameters(paths: Iterable[str], rules: Rules[str]) -> dict[str, str]:
    """{path: "trainable" or "frozen"}.

    Raises:
      UserError: as `match_rules`, or another label, or nothing trains.
    """
    for pattern, label in rules:
        if label not in (TRAINABLE, FROZEN):
            raise UserError(
                f"freezing rule {shown(pattern)} says {shown(label)}; it is {TRAINABLE!r} or "
                f"{FROZEN!r}"
            )
    labels = match_rules(paths, rules, "freezing rule")
    if TRAINABLE not in labels.values():
        raise UserError("every parameter is frozen, so there is nothing to train")
    return labels


def regime_rules(regime: str, model: Any, *, until: str = "", rules: Rules[str] = ()) -> Rules[str]:
    """The rules of a regime.

    `full` and `scratch` train everything (`scratch` from random values). `head_only` trains the
    last layer. `partial` freezes everything up to and with `until`, a block or a parameter in
    `model.forward_order`; by default the network's published cut, if it has one: with DaViT's, 168
    of DaViT-T's 212 tensors train. `rules` are those given.

    Raises:
      UserError: an unknown regime, or an `until` that the network does not have.
    """
    if regime in ("full", "scratch"):
        return ((".*", TRAINABLE),)
    if regime == "head_only":
        return ((model.HEAD_PATHS, TRAINABLE), (".*", FROZEN))
    if regime == "rules":
        return rules
    if regime == "partial":
        return (*((re.escape(p), FROZEN) for p in _up_to(model, until)), (".*", TRAINABLE))
    raise UserError(f"freeze.regime is {regime!r}; choose one of {', '.join(REGIMES)}")


def plan(
    model: Any,
    regime: str,
    *,
    until: str = "",
    rules: Rules[str] = (),
    unfreeze: Sequence[str] = (),
) -> tuple[Phase, ...]:
    """The phases of a run, the first from epoch 0.

    Args:
      model: as `create_model` makes it.
      regime, until, rules: of the first phase, as in `regime_rules`; the later phases use `until`
        and `rules`, too.
      unfreeze: "EPOCH:REGIME" or "EPOCH:REGIME:FACTOR" each: from that epoch on, counted from 1 as
        runs print them, REGIME holds, and what it thaws trains at FACTOR times the learning rate.

    Raises:
      UserError: what `regime_rules` raises, a text of another form, epochs that do not rise, or a
        phase that freezes what trained before or thaws nothing.
    """
    steps = [(0, regime, 1.0), *map(parse_unfreeze, unfreeze)]
    named = {name for _, name, _ in steps}
    if until and "partial" not in named:
        raise UserError(f"freeze.until is {shown(until)}, which goes with regime 'partial' alone")
    if bool(rules) != ("rules" in named):
        raise UserError(
            "freeze.rules and the regime 'rules' go together; give both or neither "
            f"(freeze.regime is {regime!r}, freeze.rules has {len(rules)} rules)"
        )
    phases: list[Phase] = []
    for (epoch, name, factor), text in zip(steps, ("", *unfreeze), strict=True):
        used = regime_rules(name, model, until=until, rules=rules)
        labels = label_parameters(model.forward_order, used)
        trainable = [path for path, label in labels.items() if label == TRAINABLE]
        head_only = all(re.fullmatch(model.HEAD_PATHS, path) for path in trainable)
        phase = Phase(epoch, name, labels, head_only, factor)
        if phases:
            before = phases[-1]
            if phase.epoch <= before.epoch:
                raise UserError(f"freeze.unfreeze {shown(text)} comes too early; epochs must rise")
            if not set(before.trainable) < set(phase.trainable):
                raise UserError(
                    f"freeze.unfreeze {shown(text)} thaws nothing beyond regime "
                    f"{before.regime!r}, or freezes what trained before; name a regime that trains "
                    "more"
                )
        phases.append(phase)
    return tuple(phases)


def rates_and_decays(
    model: Any,
    phases: Sequence[Phase],
    *,
    learning_rate_rules: Rules[float],
    layer_decay: float,
    weight_decay: float,
    weight_decay_rules: Rules[float],
) -> tuple[dict[str, float], dict[str, float]]:
    """({path: factor of the learning rate}, {path: weight decay}), as the configuration's fields of
    these names and the phases' factors have them.

    Raises:
      UserError: as `match_rules`, or a product that float32 cannot hold.
    """
    paths = model.forward_order
    factors = match_rules(paths, learning_rate_rules, "learning rate rule")
    layers = layer_rates(model, layer_decay)
    groups = thaw_groups(phases)
    rates = {
        path: factors[path] * layers[path] * phases[groups.get(path, 0)].factor for path in paths
    }
    shares = match_rules(paths, weight_decay_rules, "weight decay rule")
    decays = {path: weight_decay * share for path, share in shares.items()}
    for what, products in (("learning rate is multiplied by", rates), ("weight decay is", decays)):
        for path, product in products.items():
            if product and not SMALLEST <= product <= LARGEST:
                raise UserError(
                    f"of parameter {path!r} the {what} {product:g}, by all rules together, which "
                    "float32 cannot hold; choose factors nearer to 1, or 0"
                )
    return rates, decays


def thaw_groups(phases: Sequence[Phase]) -> dict[str, int]:
    """{path: the first phase in which it trains}, for the parameters that ever do."""
    groups: dict[str, int] = {}
    for number, phase in enumerate(phases):
        for path in phase.trainable:
            groups.setdefault(path, number)
    return groups


def partition(
    optimizer: optax.GradientTransformation, groups: Mapping[str, int]
) -> optax.GradientTransformation:
    """`optimizer` for each thaw group by itself; nothing, not even slots, for what is frozen.

    With one step count for all, parameters that thaw late would take steps two to three times their
    learning rate, since Adam's bias correction would think its empty averages warm.

    Takes and returns flat dicts. A step hands it the trainable parameters alone; the labels are a
    function, so that `init` and `update` look up just what they are given.
    """
    return optax.partition(
        {str(n): optimizer for n in sorted(set(groups.values()))} | {FROZEN: optax.set_to_zero()},
        lambda params: {path: str(groups.get(path, FROZEN)) for path in params},
    )


def carry_over(before: Any, after: Any) -> Any:
    """The optimizer state `after` a thaw, freshly made, with all that the state `before` has."""
    known = dict(jax.tree_util.tree_flatten_with_path(before)[0])
    leaves, structure = jax.tree_util.tree_flatten_with_path(after)
    return jax.tree.unflatten(structure, [known.get(key, leaf) for key, leaf in leaves])


def layer_rates(model: Any, decay: float) -> dict[str, float]:
    """{path: decay ** n}, where n counts the layers above: 0 for the head (Clark et al. 2020).

    A layer is a top-level module or, inside a list of blocks, one block; what lies between two
    blocks, such as a downsampling, is one as well.
    """
    layers = list(dict.fromkeys(_layer(path) for path in model.forward_order))
    top = len(layers) - 1
    return {path: decay ** (top - layers.index(_layer(path))) for path in model.forward_order}


def disable_regularisation_in_frozen_layers(model: nnx.Module, labels: Mapping[str, str]) -> None:
    """Disables the regularising modules, those with a method `disable`, of what is all frozen.

    They would only add noise to what cannot adapt to it. A module without parameters of its own
    belongs to the module around it.

    Args:
      labels: {path: "trainable" or "frozen"} of all parameters.
    """

    def labels_inside(module_path: tuple[Any, ...]) -> list[str]:
        prefix = "".join(f"{name}/" for name in module_path)
        return [label for path, label in labels.items() if path.startswith(prefix)]

    for path, module in nnx.iter_modules(model):
        disable = getattr(module, "disable", None)
        if disable is None:
            continue
        while path and not labels_inside(path):
            path = path[:-1]
        if TRAINABLE not in labels_inside(path):
            disable()


def _up_to(model: Any, until: str) -> list[str]:
    """The parameters from the input up to and with the block or parameter `until`."""
    paths = list(model.forward_order)
    wanted = until.rstrip("/") or model.PUBLISHED_CUT
    inside = [i for i, path in enumerate(paths) if f"{path}/".startswith(f"{wanted}/")]
    if inside:
        return paths[: inside[-1] + 1]
    if until:
        raise UserError(
            f"freeze.until is {shown(until)}, but network {model.name!r} has no such block or "
            "parameter; `summary.txt` of a run lists the paths"
        )
    blocks = list(dict.fromkeys(_layer(path) for path in paths))
    raise UserError(
        f"network {model.name!r} has no published cut for the regime 'partial'; name the last "
        f"frozen block with freeze.until, one of {', '.join(blocks[:-1])}"
    )


def _layer(path: str) -> str:
    """stages/1/blocks/0 of stages/1/blocks/0/spatial/mlp/fc1/kernel, conv1 of conv1/kernel."""
    block = re.match(r".*/\d+(?=/)", path)
    if block is None:
        return path.partition("/")[0]
    inner = path[block.end() + 1 :].partition("/")[0]
    return block[0] if "/blocks/" in block[0] else f"{block[0]}/{inner}"


def parse_unfreeze(text: str) -> tuple[int, str, float]:
    """(epoch from 0, regime, factor of the learning rate) of an entry of `freeze.unfreeze`."""
    match = re.fullmatch(r"(\d+):(\w+)(?::([0-9.eE+-]+))?", text)
    try:
        if match is None:
            raise ValueError
        epoch, regime, factor = int(match[1]), match[2], float(match[3] or 1)
        if not 2 <= epoch <= MOST_EPOCHS or not SMALLEST <= factor <= LARGEST:
            raise ValueError
        if regime not in REGIMES:
            raise ValueError
    except ValueError:
        raise UserError(
            f"freeze.unfreeze has {shown(text)}; write EPOCH:REGIME or EPOCH:REGIME:FACTOR, such "
            f"as '5:full:0.1', with an epoch from 2 (the first is 1) to {MOST_EPOCHS}, a factor "
            f"above 0 and a regime of {', '.join(REGIMES)}"
        ) from None
    return epoch - 1, regime, factor
