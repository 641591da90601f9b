"""What a run starts from, settled before anything is trained: its data and its initial weights."""

import hashlib
import re
from collections.abc import Mapping

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from glomjax import pretrained
from glomjax.data import folder, synthetic
from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.pipeline import Batches
from glomjax.data.preprocessing import IMAGENET, ChannelStatistics, Preprocessing
from glomjax.errors import UserError
from glomjax.models import create_model, params_of
from glomjax.training.progress import Terminal
from glomjax.training.sharding import Placement

ArraySplits = Mapping[str, tuple[np.ndarray, np.ndarray]]
LOGITS = r"(aux\d/)?head/.*"  # the layers whose outputs are the classes


def load_data(config: ConfigDict, arrays: ArraySplits | None = None) -> DataSplits:
    """The data set that `config.data` (or a script's arrays) describes."""
    if arrays is not None:
        return _from_arrays(arrays, tuple(config.data.classes))
    if config.data.source == "synthetic":
        if tuple(config.data.classes) not in ((), synthetic.CLASSES):
            raise UserError(
                f"data.classes is {list(config.data.classes)}, but the synthetic data has "
                f"{list(synthetic.CLASSES)}"
            )
        return synthetic.load(config.data.synthetic_size)
    return folder.load_folder(
        config.data.source,
        classes=tuple(config.data.classes),
        fractions=tuple(config.data.fractions),
        seed=config.data.split_seed,
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


def survey(
    batches: Mapping[str, Batches], preprocessing: str, source: str, placement: Placement
) -> Preprocessing:
    """Reads every image once, so that one that cannot be read ends the run now and not after the
    training, and gives the run's preprocessing: that of its initial weights, or of its images.

    Args:
      batches: of each split.
      preprocessing: one of `PREPROCESSINGS`.
      source: of the initial weights, "" for random values.
    """
    standardize = preprocessing == "standardize"
    if standardize and source:
        raise UserError(
            "preprocessing 'standardize' does not go with pretrained weights, which expect "
            "'imagenet'"
        )
    statistics = ChannelStatistics()
    for split, part in batches.items():
        for batch in part.epoch():
            if standardize and split == "train":
                statistics.add(batch["image"][batch["mask"] > 0])
    statistics.merge(placement.total)
    return statistics.standardize() if standardize else IMAGENET


def load_initial_weights(
    model: nnx.Module,
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
    ours = {path: leaf for path, leaf in params_of(model).items() if re.fullmatch(LOGITS, path)}
    fits = all(path in params and params[path].shape == leaf.shape for path, leaf in ours.items())
    keeps = fits and info.classes in ((), classes)
    report = pretrained.load_weights(model, source, exclude=() if keeps else (LOGITS,))
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
        images, labels = (np.asarray(part) for part in arrays[split])
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
        parts[split] = Examples(ids, labels.astype(np.int32), images.__getitem__)
        pixels.update(np.ascontiguousarray(images).tobytes())
    classes = classes or tuple(str(c) for c in range(number))
    if number > len(classes):
        raise UserError(f"data has the label {number - 1}, but data.classes names {list(classes)}")
    for split, part in parts.items():
        if missing := sorted(set(range(len(classes))) - set(part.labels.tolist())):
            raise UserError(f"data[{split!r}] has no example of class {classes[missing[0]]!r}")
    train, validation, test = (parts[split] for split in SPLITS)
    notes, content = (folder.NO_PATIENTS,), pixels.hexdigest()
    return DataSplits(train, validation, test, classes=classes, notes=notes, content=content)
