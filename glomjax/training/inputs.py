"""What a run starts from, settled before anything is trained: its data and its initial weights."""

import dataclasses
import hashlib
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from glomjax import pretrained
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.pipeline import Batches, DecodedImages
from glomjax.data.sources import NO_PATIENTS, check_own_splits, load_source
from glomjax.data.splits import check_group_overlap
from glomjax.data.survey import (
    duplicate_notes,
    padding_note,
    seen_spacing,
    size_note,
    survey,
    unreadable_message,
    without_unreadable,
)
from glomjax.errors import UserError
from glomjax.models import create_model, params_of
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.preprocessing import IMAGENET, ChannelStatistics, Preprocessing
from glomjax.training.progress import Terminal
from glomjax.training.sharding import Placement

# (images uint8 [N, H, W, 3], labels int [N]), and one patient's name per image where it is known.
ArraySplits = Mapping[str, tuple[np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, Any]]


def load_data(config: ConfigDict, arrays: ArraySplits | None = None) -> DataSplits:
    """The data set that `config.data` (or a script's arrays) describes."""
    data = config.data
    if arrays is not None:
        check_own_splits("the data given", data.folds, data.split_by)
        splits = _from_arrays(arrays, tuple(data.classes))
    else:
        splits = load_source(
            data.source,
            classes=tuple(data.classes),
            fractions=tuple(data.fractions),
            folds=data.folds,
            fold=data.fold,
            split_by=data.split_by,
            seed=data.split_seed,
            synthetic_size=data.synthetic_size,
        )
    if not data.mpp:
        return splits
    if splits.train.mpp is not None:
        raise UserError(
            f"data.mpp is {data.mpp}, but the data tells the spacing of each image itself; "
            "leave data.mpp at 0"
        )
    return splits.map(
        lambda part: dataclasses.replace(part, mpp=np.full(len(part), data.mpp, np.float64))
    )


def describe_data(splits: DataSplits, terminal: Terminal) -> None:
    """Prints the classes, which of them is positive, the splits, and the data's notes."""
    if len(splits.classes) == 2:
        terminal.say(f"classes: negative {splits.classes[0]!r}, positive {splits.classes[1]!r}")
    else:
        terminal.say(f"classes: {', '.join(splits.classes)}")
    for split in SPLITS:
        part = splits[split]
        counts = np.bincount(part.labels, minlength=len(splits.classes))
        named = ", ".join(f"{n} {name}" for n, name in zip(counts, splits.classes, strict=True))
        patients = "" if part.patients is None else f" of {len(set(part.patients))} patients"
        terminal.say(f"{split}: {len(part)} images{patients} ({named})")
    weights = splits.train.weights
    if weights is not None:
        low, mean, high = weights.min(), weights.mean(), weights.max()
        terminal.say(f"weights of training images: {low:g} to {high:g}, mean {mean:.4g}")
    for note in splits.notes:
        terminal.banner(note)


def create_network(config: ConfigDict, classes: int) -> nnx.Module:
    """The network that a configuration describes, with one logit for two classes."""
    return create_model(
        config.model.name,
        num_classes=1 if classes == 2 else classes,
        image_size=tuple(config.image_size),
        rngs=nnx.Rngs(config.seed),
        **config.model.options.to_dict(),
    )


def find_weights(config: ConfigDict, has_arrays: bool, terminal: Terminal) -> str:
    """The source of initial weights, "" for random values; settles `auto` in `config`."""
    source, regime = config.pretrained.source, config.freeze.regime
    if regime == "scratch":
        if source not in ("auto", "none"):
            raise UserError(
                f"freeze.regime is 'scratch', but pretrained.source is {source!r}; "
                "use another regime, or --config.pretrained.source=none"
            )
        config.pretrained.source = "none"
        return ""
    if source == "none":
        raise UserError(
            f"freeze.regime {regime!r} needs pretrained weights, but pretrained.source is 'none'; "
            "name weights, or train from random values (--config configs/davit.py:scratch)"
        )
    if source != "auto":
        return source
    preset = config.model.options.get("preset", "kecam")
    published = pretrained.default_source(config.model.name, preset)
    try:
        pretrained.resolve(published)
    except pretrained.WeightsUnavailable as error:
        if has_arrays or not _is_demo(config):
            raise
        config.pretrained.source = "none"
        config.freeze.regime = "scratch"
        terminal.banner(
            f"NO PRETRAINED WEIGHTS: {error}\nOn the demo data training goes on from random "
            "values, with nothing frozen."
        )
        return ""
    config.pretrained.source = published
    return published


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the steps of a run read.

    Attributes:
      splits: the examples that are used: all, but for unreadable ones that may be skipped.
      batches: of each split.
      preprocessing: that of the initial weights, or of the training images.
    """

    splits: DataSplits
    batches: dict[str, Batches]
    preprocessing: Preprocessing


def prepare_inputs(
    config: ConfigDict, splits: DataSplits, source: str, placement: Placement, terminal: Terminal
) -> Inputs:
    """Reads every image once, so that one that cannot be read, or that is in two splits, ends the
    run now and not after the training; and settles how all are brought to one kind.

    Args:
      source: of the initial weights, "" for random values.

    Raises:
      UserError: images cannot be read (and `data.skip_unreadable` is off), one is in two splits,
        their spacings differ, or the preprocessing does not fit to weights or images.
    """
    standardize = config.preprocessing == "standardize"
    if standardize and source:
        raise UserError(
            "preprocessing 'standardize' does not go with pretrained weights, which expect "
            "'imagenet'"
        )
    if config.target_mpp and splits.train.mpp is None:
        raise UserError(
            f"target_mpp is {config.target_mpp}, but the data does not tell the spacing of its "
            "images: set --config.data.mpp, or fill in an 'mpp' column"
        )
    cache = int(config.data.cache_gib * 2**30)
    images = {
        split: DecodedImages(
            splits[split],
            tuple(config.image_size),
            resize=config.resize,
            mpp=config.target_mpp,
            # Training images are read in every epoch, so they come first.
            cache_bytes=cache * (8 if split == "train" else 1) // 10,
        )
        for split in SPLITS
    }
    begun = time.monotonic()
    found = survey(
        images,
        stain=config.stain_normalization,
        share=placement.share,
        total=placement.total,
    )
    count, seconds = sum(map(len, images.values())), time.monotonic() - begun
    terminal.say(f"read {count} images in {seconds:.1f} s, {count / seconds:.0f} images/s")
    if found.unreadable:
        if not config.data.skip_unreadable:
            raise UserError(unreadable_message(found, count))
        kept = without_unreadable(splits, found)
        del images  # and what they keep in memory
        terminal.banner(kept.notes[-1])
        return prepare_inputs(config, kept, source, placement, terminal)
    notes = duplicate_notes(splits, found)
    mpp = config.target_mpp or seen_spacing(
        splits, found.sizes, tuple(config.image_size), config.resize
    )
    if mpp is None:
        terminal.say("spacing: unknown")
        notes += filter(None, [size_note(found.sizes, tuple(config.image_size))])
    else:
        terminal.say(f"spacing: {mpp:.4g} microns per pixel, as the network sees it")
        if config.target_mpp:
            note = padding_note(splits, found.sizes, tuple(config.image_size), mpp)
            notes += filter(None, [note])
    for note in notes:
        terminal.banner(note)
    content = splits.content or found.content()
    splits = dataclasses.replace(splits, notes=(*splits.notes, *notes), content=content)

    stain = None
    if config.stain_normalization != "none":
        stain = stain_normalization.fit(config.stain_normalization, found.stains)
        pale = int(np.isnan(found.stains).any(axis=1).sum())
        terminal.say(
            f"stains are normalised ({config.stain_normalization}) to those of the training "
            f"images; {pale} of these show too little tissue or stain and stay as they are"
        )
        for part in images.values():
            part.normalize_with(stain)
    preprocessing = IMAGENET
    if standardize:
        statistics = ChannelStatistics()
        which, of = placement.share
        mine = range(which, len(splits.train), of)
        for _, image in images["train"].scan(mine, lambda image: image):
            assert not isinstance(image, UserError)  # all have just been read
            statistics.add(image)
        statistics.merge(placement.total)
        preprocessing = statistics.standardize()
    preprocessing = dataclasses.replace(preprocessing, resize=config.resize, mpp=mpp, stain=stain)
    batches = {
        split: Batches(
            images[split],
            config.batch_size,
            stratified=config.stratified_batches,
            multiple=placement.devices * config.accumulation_steps,
            share=placement.share,
        )
        for split in SPLITS
    }
    return Inputs(splits, batches, preprocessing)


def load_initial_weights(
    model: Any,
    source: str,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    terminal: Terminal,
) -> None:
    """Loads `source` into `model`; a head that belongs to other classes starts anew.

    The head is taken where its shape is the model's and the source's class names, if it has any,
    are `classes` in their order. Either way the terminal says what was done.
    """
    params, info = pretrained.read_weights(source)
    logits = model.LOGITS_PATHS
    ours = {path: leaf for path, leaf in params_of(model).items() if re.fullmatch(logits, path)}
    fits = all(path in params and params[path].shape == leaf.shape for path, leaf in ours.items())
    keeps = fits and info.classes in ((), classes)
    report = pretrained.load_weights(model, source, exclude=() if keeps else (logits,))
    terminal.say(f"weights: {report}")
    if keeps:
        terminal.say("the head is that of the weights, since it has as many outputs")
    else:
        named = f" ({', '.join(info.classes)})" if info.classes else ""
        terminal.say(f"the head of the weights belongs to other classes{named} and starts anew")
    # Weights of another preprocessing would load without a word and give other numbers.
    expected = preprocessing.to_dict()
    for key in ("mean", "std"):
        given = report.preprocessing.get(key)
        if given is not None and list(given) != expected[key]:
            raise UserError(
                f"{report.source} was trained with the {key} {given} of its pixels and not with "
                f"that of preprocessing {preprocessing.name!r}; use other weights"
            )
    # These make another task of it, which weights may be transferred to.
    for key in ("resize", "mpp", "stain"):
        given = report.preprocessing.get(key)
        if given is not None and given != expected[key]:
            terminal.banner(
                f"{report.source} was trained on images with {key} {given}, and this run has "
                f"{expected[key]}"
            )


def settle_demo(config: ConfigDict, terminal: Terminal) -> None:
    """On the demo data, from random values, `config.demo` takes effect, and the run says so."""
    if _is_demo(config) and config.freeze.regime == "scratch":
        config.update(config.demo)
        settings = ", ".join(f"{key} {value}" for key, value in config.demo.items())
        terminal.say(
            f"demo data: the settings of config.demo take effect ({settings}); "
            "--config.demo.KEY=VALUE changes them"
        )


def _is_demo(config: ConfigDict) -> bool:
    return config.data.source == "synthetic" and config.data.synthetic_size == "demo"


def _from_arrays(arrays: ArraySplits, classes: tuple[str, ...]) -> DataSplits:
    if sorted(arrays) != sorted(SPLITS):
        raise UserError(f"data has the splits {sorted(arrays)}; it needs {', '.join(SPLITS)}")
    parts, pixels, number = {}, hashlib.sha256(), 2
    for split in SPLITS:
        images, labels, *rest = (np.asarray(part) for part in arrays[split])
        if images.dtype != np.uint8 or images.ndim != 4 or not 0 < len(images) == len(labels):
            raise UserError(
                f"data[{split!r}] is {images.dtype} {images.shape} with {len(labels)} labels; it "
                "must be uint8 [N, H, W, 3] with N labels, N at least 1"
            )
        whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
        if not whole or labels.min() < 0:
            raise UserError(
                f"data[{split!r}] has labels of {labels.dtype} {labels.shape} from {labels.min()}; "
                "they must be whole numbers from 0, one per image"
            )
        number = max(number, int(labels.max()) + 1)
        ids = tuple(f"{split}/{i}" for i in range(len(images)))
        if rest and (len(rest) > 1 or rest[0].shape != labels.shape):
            raise UserError(
                f"data[{split!r}] has patients of shape {rest[0].shape}; give (images, labels) or "
                "(images, labels, patients), with one patient per image"
            )
        patients = tuple(str(name) for name in rest[0]) if rest else None
        if patients and (unnamed := {"", "None", "nan", "<NA>"} & set(patients)):
            raise UserError(
                f"data[{split!r}] has the patient {unnamed.pop()!r}; name the patient of every "
                "image, or leave the patients out"
            )
        parts[split] = Examples(ids, labels.astype(np.int32), images.__getitem__, patients)
        pixels.update(np.ascontiguousarray(images).tobytes())
    classes = classes or tuple(str(c) for c in range(number))
    if number > len(classes):
        raise UserError(f"data has the label {number - 1}, but data.classes names {list(classes)}")
    for split, part in parts.items():
        if missing := sorted(set(range(len(classes))) - set(part.labels.tolist())):
            raise UserError(f"data[{split!r}] has no example of class {classes[missing[0]]!r}")
    without = [split for split in SPLITS if parts[split].patients is None]
    if 0 < len(without) < 3:
        raise UserError(
            f"data[{without[0]!r}] has no patients, but other splits have: give them for all or "
            "for none"
        )
    check_group_overlap({split: parts[split].patients or () for split in SPLITS})
    train, validation, test = (parts[split] for split in SPLITS)
    notes, content = (NO_PATIENTS,) if without else (), pixels.hexdigest()
    return DataSplits(train, validation, test, classes=classes, notes=notes, content=content)
