"""Weights into a model, strictly: everything fits and is loaded, or nothing is touched.

report = load_weights(model, "kecam/davit_t_imagenet", exclude=("head/.*",))
print(report)
"""

import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from glomjax.errors import LISTED, UserError, assignment, excerpt, first_few, named
from glomjax.models import params_of, set_params
from glomjax.pretrained.reading import SourceInfo, read_weights

_ROOM = 450  # characters of names in a message


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What was loaded from where; `str(report)` is one line.

    Attributes:
      source: path or id as it was given.
      info: what the source says about itself; `preset`, `preprocessing` and `sha256` are its.
      loaded: our paths of the tensors written.
      excluded: our paths of the model's tensors that kept their initial value.
      num_parameters: numbers in the loaded tensors.
    """

    source: str
    info: SourceInfo
    loaded: tuple[str, ...]
    excluded: tuple[str, ...]
    num_parameters: int

    @property
    def preset(self) -> str:
        return self.info.preset

    @property
    def preprocessing(self) -> dict[str, Any]:
        return self.info.preprocessing

    @property
    def sha256(self) -> str:
        return self.info.sha256

    def __str__(self) -> str:
        kept = f", left at their initial value: {first_few(self.excluded)}" if self.excluded else ""
        return (
            f"{self.source} (preset {self.preset or 'unnamed'}, sha256 {self.sha256[:12]}): "
            f"{len(self.loaded)} tensors, {self.num_parameters:,} parameters loaded{kept}"
        )


def load_weights(
    model: nnx.Module,
    source: str | os.PathLike[str],
    *,
    exclude: tuple[str, ...] = (),
    preset_mismatch: str = "error",
) -> LoadReport:
    """Writes published or converted weights into `model`, or raises and leaves it untouched.

    Args:
      model: as `create_model` makes it.
      source: a `.h5` file of kecam, a `.safetensors` file (timm's keys, the original authors' or
        our own), a published id such as "kecam/davit_t_imagenet", or a checkpoint: the folder of a
        run (its best weights) or one of the folders in its `checkpoints`.
      exclude: regexes, each matched in full against our paths; what they match keeps its initial
        value, whatever the file holds there.
      preset_mismatch: "allow" loads weights of another preset or window on purpose; "error" refuses
        them.

    Raises:
      UserError: tensors missing, unexpected or of another shape (all in one message), non-finite
        values, an exclude that matches nothing, another preset, a damaged file, an unknown source.
      WeightsUnavailable: a published id that is not cached and cannot be downloaded.
    """
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"model is of type {type(model).__name__}; it is a network as create_model makes it"
        )
    params, info = read_weights(source)
    chosen, report = select_weights(
        model, source, params, info, exclude=exclude, preset_mismatch=preset_mismatch
    )
    set_params(model, jax.device_put(chosen))
    return report


def select_weights(
    model: Any,
    source: str | os.PathLike[str],
    params: Mapping[str, np.ndarray],
    info: SourceInfo,
    *,
    exclude: tuple[str, ...] = (),
    preset_mismatch: str = "error",
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """What `load_weights` writes into `model`, which may be without numbers, of weights that have
    been read; arguments and errors as there."""
    if preset_mismatch not in ("error", "allow"):
        raise UserError(f"preset_mismatch is {preset_mismatch!r}; it is 'error' or 'allow'")
    name = str(getattr(model, "name", type(model).__name__))
    if preset_mismatch == "error":
        _check_settings(f"{source}", name, model, info)
    initial = params_of(model)
    excluded = _excluded(exclude, initial, params)
    wanted = {path: leaf.shape for path, leaf in initial.items() if path not in excluded}
    given = {path: value for path, value in params.items() if path not in excluded}
    _check_fit(f"{source} does not fit {name}", wanted, given, info.unknown)
    if bad := [path for path, value in given.items() if not np.isfinite(value).all()]:
        raise UserError(
            f"{source} holds values that are not finite (NaN or infinity) in {named(bad)}; "
            "weights like these cannot be used"
        )
    return {path: given[path] for path in wanted}, LoadReport(
        source=str(source),
        info=info,
        loaded=tuple(wanted),
        excluded=tuple(path for path in initial if path in excluded),
        num_parameters=sum(given[path].size for path in wanted),
    )


def _check_settings(source: str, name: str, model: Any, info: SourceInfo) -> None:
    """Raises UserError where the tensors would fit and the outputs would differ."""
    preset = str(getattr(model, "preset", ""))
    if info.preset and preset and info.preset != preset:
        raise UserError(
            f"{source} holds weights of preset {info.preset!r} and the model {name} has preset "
            f"{preset!r}: the tensors would fit, but the outputs would differ from the published "
            f"ones; create the model with preset={info.preset!r}, or say preset_mismatch='allow'"
        )
    ours, theirs = dict(model.options), info.spec.options
    for setting in model.HIDDEN_OPTIONS:
        value = theirs.get(setting)
        # Foreign weights do not say, and a window of 0 was not settled yet.
        if value is None or (setting == "window_size" and not value) or ours[setting] == value:
            continue
        why = ""
        if setting == "window_size":
            seen, expected = info.spec.image_size, model.image_size
            why = (
                f" (its images were {seen[0]} x {seen[1]} pixels and the model's are "
                f"{expected[0]} x {expected[1]})"
            )
        raise UserError(
            f"{source} was trained with {setting}={value!r} and the model {name} has "
            f"{ours[setting]!r}{why}: the tensors would fit, but the outputs would differ; create "
            f"the model with it ({assignment(f'model.options.{setting}', value)}), or "
            "say preset_mismatch='allow'"
        )


def _excluded(
    exclude: tuple[str, ...], initial: Mapping[str, Any], params: Mapping[str, Any]
) -> set[str]:
    texts = (exclude,) if isinstance(exclude, str) else exclude
    if not isinstance(texts, (tuple, list)) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"exclude is {exclude!r}; it is regular expressions of paths, such as ('head/.*',)"
        )
    paths = {*initial, *params}
    excluded = set()
    for text in texts:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise UserError(f"exclude {text!r} is not a regular expression ({error})") from error
        matched = {path for path in paths if pattern.fullmatch(path)}
        if not matched:
            near = _nearest(text, sorted(paths))
            raise UserError(f"exclude {text!r} matches none of the {len(paths)} tensors{near}")
        excluded |= matched
    return excluded


def _check_fit(
    what: str,
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
    unknown: tuple[str, ...],
) -> None:
    """One error with every tensor that is missing, unexpected or of another shape."""
    missing = [path for path in wanted if path not in given]
    unexpected = [*(path for path in given if path not in wanted), *unknown]
    shapes = [path for path in wanted if path in given and given[path].shape != wanted[path]]
    if not (missing or unexpected or shapes):
        return
    found = {
        "missing": (missing, lambda path: path + _nearest(path, unexpected)),
        "unexpected": (unexpected, lambda path: excerpt(path, 80)),
        "of another shape": (
            shapes,
            lambda path: excerpt(f"{path} is {given[path].shape} and should be {wanted[path]}"),
        ),
    }
    hint = ""
    if any(path.startswith("head/") for path in [*shapes, *unexpected]):
        hint = "; to keep the model's own head (another number of classes), exclude 'head/.*'"
    room = (_ROOM - len(hint)) // sum(bool(paths) for paths, _ in found.values())
    parts = [
        f"{len(paths)} {kind}: {_listed([say(path) for path in paths[:LISTED]], len(paths), room)}"
        for kind, (paths, say) in found.items()
        if paths
    ]
    raise UserError(f"{what}: {'; '.join(parts)}{hint}")


def _listed(items: list[str], total: int, room: int) -> str:
    """`first_few` of so many items as have room, but at least of one."""
    lengths = itertools.accumulate(len(item) + 2 for item in items)
    return first_few(items[: max(1, sum(length <= room for length in lengths))], total)


def _nearest(name: str, candidates: list[str]) -> str:
    plain = {re.sub(r"[/_]", ".", candidate): candidate for candidate in candidates}
    near = difflib.get_close_matches(re.sub(r"[/_]", ".", name), plain, n=1, cutoff=0.6)
    return f" (nearest: {excerpt(plain[near[0]], 80)})" if near else ""
