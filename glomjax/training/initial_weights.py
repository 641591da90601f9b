"""The parameters that a run starts from: random values, or those of somebody's training."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from glomjax import pretrained
from glomjax.errors import UserError, assignment
from glomjax.models import params_of
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.training.config import RunConfig


def settle_source(config: RunConfig, *, has_arrays: bool) -> tuple[RunConfig, str]:
    """The configuration with `pretrained.source` settled: a file, an id or "none"; and a note.

    On the embedded demo data a run whose published weights cannot be had goes on from random
    values, and the note says so.

    Raises:
      UserError: the source does not go with the regime.
      WeightsUnavailable: published weights that are not cached and cannot be downloaded.
    """
    source, regime = config.pretrained.source, config.freeze.regime
    if regime == "scratch":
        if source not in ("auto", "none"):
            raise UserError(
                f"freeze.regime is 'scratch', but pretrained.source is {source!r}; say what of it "
                f"trains, as in {assignment('freeze.regime', 'full')}, or take "
                f"{assignment('pretrained.source', 'none')}"
            )
        return _with(config, "none", regime), ""
    if source == "none":
        raise UserError(
            f"freeze.regime {regime!r} needs pretrained weights, but pretrained.source is 'none'; "
            "name weights, or train from random values (the configuration davit:scratch)"
        )
    if config.preprocessing == "standardize":
        raise UserError(
            "preprocessing 'standardize' takes mean and deviation from this run's training images, "
            "and weights expect those that they were trained with; leave it at 'auto', which takes "
            "theirs"
        )
    if source != "auto":
        pretrained.resolve(source)  # one that does not exist is said before anything is read
        return config, ""
    preset = config.model.options.get("preset", "kecam")
    published = pretrained.default_source(config.model.name, preset)
    try:
        pretrained.resolve(published)
    except pretrained.WeightsUnavailable as error:
        if has_arrays or not config.is_demo:
            raise
        return _with(config, "none", "scratch"), (
            f"NO PRETRAINED WEIGHTS: {error}. On the demo data training goes on from random "
            "values, with nothing frozen."
        )
    return _with(config, published, regime), ""


def _with(config: RunConfig, source: str, regime: str) -> RunConfig:
    return dataclasses.replace(
        config,
        pretrained=dataclasses.replace(config.pretrained, source=source),
        freeze=dataclasses.replace(config.freeze, regime=regime),
    )


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Parameters to start from.

    Attributes:
      params: {path: float32 array}.
      messages: lines on what was loaded.
      notes: what nobody may overlook.
    """

    params: dict[str, Any]
    messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Pretrained weights that were read, and not yet fitted to a network.

    Attributes:
      name: what the configuration calls them.
      params: {path: float32 array}.
      info: what they say about themselves.
    """

    name: str
    params: dict[str, np.ndarray]
    info: pretrained.SourceInfo


def read_source(config: RunConfig) -> WeightSource | None:
    """The weights that a settled configuration names, None for random values."""
    name = config.pretrained.source
    return None if name == "none" else WeightSource(name, *pretrained.read_weights(name))


def load_initial(
    create: Callable[[], Any],
    source: WeightSource | None,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
) -> InitialWeights:
    """The parameters of `source` for the network that `create` makes.

    The head is taken where its shape is the network's and the source's class names, if it has any,
    are `classes` in their order; a head that belongs to other classes starts anew. Only then, or
    without a source, are initial values computed.

    Args:
      create: the network with random values.
      source: of the weights, None for random values.

    Raises:
      UserError: the weights do not fit the network or its preprocessing.
    """
    if source is None:
        return InitialWeights(params_of(create()))
    params, info = source.params, source.info
    model: Any = nnx.eval_shape(create)
    heads = {
        path: leaf
        for path, leaf in params_of(model).items()
        if re.fullmatch(model.LOGITS_PATHS, path)
    }
    fits = all(path in params and params[path].shape == leaf.shape for path, leaf in heads.items())
    keeps = fits and info.classes in ((), classes)
    exclude = () if keeps else (model.LOGITS_PATHS,)
    if info.model and info.model != model.name:
        raise UserError(
            f"{source.name} is of the network {info.model}, and this run has {model.name}; name "
            f"weights of {model.name}, or {assignment('model.name', info.model)}"
        )
    try:
        chosen, report = pretrained.select_weights(
            model, source.name, params, info, exclude=exclude
        )
    except UserError as error:
        size = info.spec.image_size
        if not info.classes or size == model.image_size:
            raise
        raise UserError(
            f"{error}; {source.name} was trained with image_size {size}, and this run has "
            f"{model.image_size}"
        ) from error
    if report.excluded:
        initial = params_of(create())
        chosen |= {path: np.asarray(initial[path]) for path in report.excluded}
    messages = [f"weights: {report}"]
    if keeps:
        messages.append("the head is that of the weights, since it has as many outputs")
    else:
        named = f" ({', '.join(info.classes)})" if info.classes else ""
        messages.append(f"the head of the weights belongs to other classes{named} and starts anew")
    if preprocessing.name == "standardize":
        messages.append("mean and deviation of pixels are those that the weights were trained with")
    notes = _differences(source.name, info, preprocessing)
    if info.unfinished:
        notes.append(f"{info.unfinished} are taken")
    return InitialWeights(chosen, tuple(messages), tuple(notes))


def _differences(
    source: str, info: pretrained.SourceInfo, preprocessing: Preprocessing
) -> list[str]:
    """Notes on how the images of the weights came in otherwise than here.

    Raises:
      UserError: with another mean or deviation, by which weights would load without a word and give
        other numbers.
    """
    given, expected = info.spec.preprocessing, preprocessing
    for key in ("mean", "std"):
        if getattr(given, key) != getattr(expected, key):
            raise UserError(
                f"{source} was trained with the {key} {list(getattr(given, key))} of its pixels "
                f"and not with that of preprocessing {preprocessing.name!r}; leave it at 'auto', "
                "which takes that of the weights"
            )
    # These make another task of it, which weights may be transferred to.
    return [
        f"{source} was trained on images with {key} {getattr(given, key)}, and this run has "
        f"{getattr(expected, key)}"
        for key in ("resize", "mpp", "stain")
        if getattr(given, key) != getattr(expected, key)
        # What is not known is no difference; without a stain there was none, in a network of ours.
        and (getattr(given, key) is not None or (key == "stain" and info.classes))
    ]
