"""Labelled images that networks are to be judged on: read once, and checked before that."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from glomjax.data import anomalies
from glomjax.data.classes import match_classes
from glomjax.data.duplicates import content_hash, exact_duplicates
from glomjax.data.examples import SPLITS, Examples
from glomjax.data.image_facts import ImageFacts
from glomjax.data.pipeline import DecodedImages
from glomjax.data.sources import examples_of, read_source
from glomjax.data.sources.columns import split_named
from glomjax.data.sources.grouping import check_names
from glomjax.data.sources.manifest import Patch
from glomjax.data.survey import unreadable_message
from glomjax.errors import UserError, argument, first_few, printable, quoted
from glomjax.inference.images import checked_mpp
from glomjax.preprocessing.decoding import size_ratios
from glomjax.preprocessing.preprocessing import SAME_SPACING
from glomjax.pretrained.spec import NetworkSpec


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """Images with the classes of a network.

    Attributes:
      source: where they are from.
      split: of it, "all" for the whole.
      divided: whether it is the whole of a source that has a test split.
      examples: the images that can be read, N.
      hashes: uint64 [N, 4], `perceptual_hash` of each as it is stored.
      facts: on which negative controls are fitted.
      unreadable: how many others there are.
      notes: a sentence each on what a reader of results should know.
    """

    source: str
    split: str
    divided: bool
    examples: Examples
    hashes: np.ndarray
    facts: ImageFacts
    unreadable: int
    notes: tuple[str, ...]


def read_labelled(
    specs: Sequence[NetworkSpec],
    source: str | os.PathLike[str],
    *,
    split: str = "",
    rename: Sequence[tuple[str, str]] = (),
    skip_unreadable: bool = False,
    exact_names: bool = False,
    allow_outside: bool = False,
    mpp: float | None = None,
) -> LabelledData:
    """Reads every image of a source once, by the rules of each of the networks.

    Args:
      specs: of the networks, whose classes are the same.
      source, split, rename, skip_unreadable, exact_names, allow_outside, mpp: as in `evaluate`.

    Raises:
      UserError: as `evaluate`, but for what the networks have seen.
    """
    name = os.fspath(source)
    if printable(name) != name:
        raise UserError(f"the path '{printable(name)}' is no plain text; rename the folder or file")
    allowing = argument("--allow-outside", True)
    patches, read, notes = read_source(name, allow_outside=allow_outside, allowing=allowing)
    divided = not split and any(patch.split == "test" for patch in patches)
    patches, split, more = _chosen(patches, split, name)
    labels = {patch.label for patch in patches}
    meant, renamed = match_classes(labels, specs[0].classes, rename, name)
    patches = [dataclasses.replace(patch, label=meant[patch.label]) for patch in patches]
    notes = [*notes, *more, *renamed]
    keeping = argument("--exact-names", True)
    grouping = ("patient", "slide")
    notes += check_names(patches, grouping, f"'{name}'", exact=exact_names, keeping=keeping)
    examples = _with_spacing(examples_of(patches, read, specs[0].classes), mpp)
    if examples.patients is None:
        notes.append(
            "No patient column: the interval takes images for independent, and images of one "
            "patient are not."
        )
    elif examples.patient_column == "slide":
        notes.append("No patient column: slides stand in for patients.")

    images, contents, unreadable = _read(specs, examples)
    kept = np.array([name not in unreadable for name in examples.ids])
    if unreadable and not (skip_unreadable and kept.any()):
        raise UserError(
            unreadable_message(unreadable, len(examples), argument("--skip-unreadable", True))
        )
    if unreadable:
        notes.append(
            f"{len(unreadable)} image(s) cannot be read and are left out: {quoted(unreadable)}."
        )
    found = {examples.ids[i]: a for i, a in images.anomalies.items() if a != anomalies.Anomalies()}
    notes += anomalies.notes(found).values()
    examples, contents = examples.subset(np.flatnonzero(kept)), contents[kept]
    notes += _copies(examples, contents)
    notes += _check_spacing(specs, examples, images.sizes[kept])
    assert images.facts is not None
    hashes, facts = images.hashes[kept], images.facts.subset(kept)
    return LabelledData(
        name, split, divided, examples, hashes, facts, len(unreadable), tuple(notes)
    )


def _chosen(
    patches: Sequence[Patch], split: str, source: str
) -> tuple[list[Patch], str, list[str]]:
    """The patches of a split, its name ("all" for the whole source), and notes."""
    there = [name for name in SPLITS if any(patch.split == name for patch in patches)]
    if not split:
        named = ", ".join(there)
        notes = [f"All splits of the data are judged together: {named}."] if there[1:] else []
        return list(patches), "all", notes
    wanted = split_named(split, abbreviated=True)
    if wanted not in there:
        has = f"it has {', '.join(there)}" if there else "it tells none at all"
        raise UserError(
            f"'{source}' has no split {split!r} ({has}); without {argument('--split')} all of it "
            "is judged"
        )
    return [patch for patch in patches if patch.split == wanted], wanted, []


def _with_spacing(examples: Examples, mpp: float | None) -> Examples:
    checked_mpp(mpp)
    if mpp is None:
        return examples
    if examples.mpp is not None:
        raise UserError(
            f"{argument('--mpp')} is {mpp}, but the data gives the spacing of each image itself; "
            "leave it out"
        )
    return dataclasses.replace(examples, mpp=np.full(len(examples), mpp))


def _read(
    specs: Sequence[NetworkSpec], examples: Examples
) -> tuple[DecodedImages, np.ndarray, dict[str, str]]:
    """Reads every image by the rules of every network; as the first one has it: the images, and the
    `content_hash` of each, uint64 [N]; and {id: why} of what one of them cannot read."""
    contents = np.zeros(len(examples), np.uint64)
    unreadable: dict[str, str] = {}
    by_rules = {
        (spec.preprocessing.decoding, spec.preprocessing.bits): DecodedImages(
            examples,
            specs[0].image_size,
            preprocessing=dataclasses.replace(spec.preprocessing, stain=None, target_mpp=None),
            with_facts=True,
        )
        for spec in reversed(specs)
    }
    for images in by_rules.values():  # those of the first network last
        for i, found in images.scan(range(len(examples)), content_hash):
            if isinstance(found, UserError):
                unreadable[examples.ids[i]] = str(found)
            else:
                contents[i] = found
    return images, contents, unreadable


def _copies(examples: Examples, contents: np.ndarray) -> list[str]:
    """Notes on images that count twice."""
    groups = exact_duplicates(contents)
    if not groups:
        return []
    contrary = sum(len(set(examples.labels[group])) > 1 for group in groups)
    more = f", {contrary} of them with different labels" if contrary else ""
    listed = first_few([" = ".join(f"'{examples.ids[i]}'" for i in group) for group in groups])
    return [f"{len(groups)} image(s) occur more than once{more}: {listed}."]


def _check_spacing(
    specs: Sequence[NetworkSpec], examples: Examples, sizes: np.ndarray
) -> list[str]:
    """Notes on what is not known or not as in training of the spacing of images.

    Raises:
      UserError: a network would see images at another spacing than it knows.
    """
    notes = []
    for spec in specs:
        rules = spec.preprocessing
        if examples.mpp is None:
            if rules.target_mpp:
                raise UserError(
                    f"the network's images were resampled to {rules.target_mpp:g} microns per "
                    "pixel, and the data does not give the spacing of its own; say it with "
                    f"{argument('--mpp')}, or fill in an 'mpp' column"
                )
            if rules.seen_mpp:
                notes.append(
                    "The spacing of the data is not known, and that of the training images is: "
                    "whether the magnification is the same is not known."
                )
        elif rules.target_mpp:
            resampled = np.rint(sizes * examples.mpp[:, None] / rules.target_mpp)  # [N, 2]
            if count := int((resampled < np.array(spec.image_size)[None]).any(axis=1).sum()):
                notes.append(
                    f"{count} of {len(examples)} images are smaller than what the network sees at "
                    f"{rules.target_mpp:g} microns per pixel, and get a white border."
                )
        elif not rules.seen_mpp:
            notes.append(
                "The spacing of the training images is not known, so that that of the data tells "
                "nothing."
            )
        else:
            seen = examples.mpp[:, None] * size_ratios(sizes, spec.image_size, rules.resize)
            ratio = seen / rules.seen_mpp
            off = ((ratio > SAME_SPACING) | (ratio < 1 / SAME_SPACING)).any(axis=1)
            if off.any():
                raise UserError(
                    f"the network saw its images at {rules.seen_mpp:.4g} microns per pixel and "
                    f"would see {int(off.sum())} of {len(seen)} here at {seen.min():.4g} to "
                    f"{seen.max():.4g}, which it cannot bring to its own; cut the patches at the "
                    "spacing and size of the training, or train a network with target_mpp"
                )
    return list(dict.fromkeys(notes))
