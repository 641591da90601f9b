"""`glomjax inspect`: what a weight source holds and what a configuration trains; nothing is
computed."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glomjax.cli.command import Parser, print_text
from glomjax.cli.configuration import Override, apply_overrides, is_config, load_config
from glomjax.errors import UserError, printable

if TYPE_CHECKING:
    from glomjax.pretrained import SourceInfo
    from glomjax.pretrained.spec import NetworkSpec

HELP = "print what weights hold or what a configuration trains"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s [-h] WHAT [--config.KEY=VALUE ...]"
    parser.description = (
        "Prints what weights say about themselves and every tensor of them; of a\n"
        "configuration, the network and which of its tensors train."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s davit:scratch\n"
        "  %(prog)s davit --config.freeze.regime=head_only\n"
        "  %(prog)s runs/davit"
    )
    parser.add_argument(
        "what",
        metavar="WHAT",
        type=os.path.expanduser,
        help="configuration (its name or FILE.py, with :MODE if it has modes), weight file, "
        "published id, run folder or checkpoint folder",
    )
    parser.takes_overrides = True


def run(arguments: argparse.Namespace) -> int:
    what, overrides = arguments.what, arguments.overrides
    if is_config(what):
        print_text(describe_config(what, overrides))
    elif overrides:
        raise UserError(f"--config.{overrides[0][0]} is of a configuration, which {what!r} is not")
    else:
        print_text(describe_weights(what))
    return 0


def describe_weights(source: str) -> str:
    """What a weight source, as `load_weights` takes it, says about itself, and its tensors."""
    from glomjax.pretrained import read_weights
    from glomjax.training.summary import tabulate

    params, info = read_weights(source)
    lines = [f"{name:<14}{printable(value or 'not named')}" for name, value in _facts(info)]
    return "\n".join([*lines, "", *tabulate(params)])


def describe_config(what: str, overrides: Sequence[Override] = ()) -> str:
    """A configuration's network, tensor by tensor, and what of it trains.

    The number of logits is a matter of the data: where `data.classes` does not name them, there are
    two classes here, and so one logit.
    """
    from flax import nnx

    from glomjax.models import params_of
    from glomjax.training import parameter_groups
    from glomjax.training.config_checks import read_config
    from glomjax.training.setup import create_network
    from glomjax.training.summary import summarize

    config = read_config(apply_overrides(load_config(what), overrides))
    classes, freeze = config.data.classes, config.freeze
    model: Any = nnx.eval_shape(lambda: create_network(config, len(classes) or 2))
    params = params_of(model)
    phases = parameter_groups.plan(
        model, freeze.regime, until=freeze.until, rules=freeze.rules, unfreeze=freeze.unfreeze
    )
    lines = [
        f"{'configuration':<14}{what}",
        f"{'weights':<14}{config.pretrained.source}",
        f"{'regime':<14}{config.freeze.regime}",
        *(f"{'thaw':<14}epoch {p.epoch + 1}: {p.regime}" for p in phases[1:]),
        f"{'classes':<14}{', '.join(classes) or 'two, or as many as the data has'}",
    ]
    return "\n".join(
        [*lines, "", summarize(model, params, phases[0].labels, config.image_size).rstrip()]
    )


def _facts(info: "SourceInfo") -> list[tuple[str, str]]:
    facts = [
        ("path", str(info.path)),
        ("layout", info.layout),
        ("model", info.model),
        ("preset", info.preset),
        ("options", _listed(info.spec.options)),
        ("preprocessing", _listed(info.spec.preprocessing.to_dict())),
        ("classes", ", ".join(info.classes)),
        ("sha256", info.sha256),
    ]
    if info.classes:
        facts += _facts_of_classifier(info.spec)
    if info.origin:
        facts.append(("written from", info.origin))
    if info.unknown:
        facts.append(("not ours", f"{len(info.unknown)} tensors: {', '.join(info.unknown)}"))
    return facts


def _facts_of_classifier(spec: "NetworkSpec") -> list[tuple[str, str]]:
    from glomjax.evaluation.calibration import probability_text

    source = "" if spec.source_size is None else f", of patches of {_size(spec.source_size)}"
    facts = [
        ("positive", spec.positive or "none: more than two classes"),
        ("images", f"{_size(spec.image_size)}{source}"),
        ("computes", f"{spec.precision}, {spec.device_batch} images in a batch"),
        ("symmetries", "mean over them" if spec.symmetries else "the images as they are"),
    ]
    if spec.temperature != 1:
        facts.append(("temperature", f"{spec.temperature:.4g}, by which logits are divided"))
    if spec.positive:
        facts.append(("threshold", f"{probability_text(spec.threshold)} ({spec.threshold_rule})"))
    if rule := spec.appearance:
        alarms = f"{rule.false_alarms:.1%} of training images, {rule.groups} {rule.kind}s held out"
        facts.append(("flags", f"images of other colours, and by mistake {alarms}"))
    if record := spec.trained_on:
        for name, split in (("trained on", record.train), ("validated on", record.validation)):
            groups = {"patients": split.patients, "slides": split.slides}
            known = "".join(f", {n} {what}" for what, n in groups.items() if n is not None)
            facts.append((name, f"{split.images} images{known}" if split.images else ""))
        facts.append(("regime", record.regime))
        if record.permuted_labels:
            facts.append(("labels", "PERMUTED: a control, whose predictions mean nothing"))
        terms = ", ".join(filter(None, [record.license, record.citation]))
        facts.append(("started from", record.initial_weights + (f" ({terms})" if terms else "")))
    return facts


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
