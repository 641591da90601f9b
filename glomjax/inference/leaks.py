"""Whether a network has seen the images that it is to be judged on.

A leak comes in by weights as well as by splits: whoever evaluates last year's network on this
year's table, or trains on from it, may test on its training patients. What a network was trained on
lies in its `TrainingRecord` as digests of names and hashes of images; here those of other data are
held against it.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from glomjax.data.duplicates import near_duplicates
from glomjax.data.examples import Examples
from glomjax.data.identities import normal_form
from glomjax.errors import plural, quoted
from glomjax.pretrained.sources import PUBLISHED
from glomjax.pretrained.spec import HASHED, NetworkSpec, TrainingRecord, digests_of

KINDS = ("patient", "slide")
PERMUTED = (
    "The network, or the weights that it began with, were trained on permuted labels "
    "(data.permute_labels), as a control that learns nothing of the tissue."
)
# Names that every hospital gives: short ones, and few digits behind a word.
_COMMON = re.compile(r".{1,4}|\D{0,12}\d{1,4}")


@dataclasses.dataclass(frozen=True)
class SeenNames:
    """Names in the data that are names of the training.

    Attributes:
      with_images: those some of whose images are among those of the training.
      alone: the others.
      total: how many names the data has.
    """

    with_images: tuple[str, ...]
    alone: tuple[str, ...]
    total: int


@dataclasses.dataclass(frozen=True)
class Seen:
    """What of some data a network was trained or validated on.

    Attributes:
      images: ids of images that are, or nearly are, among its images.
      names: {"patient" and "slide": names}, of what the data tells.
      total: images in the data.
    """

    images: tuple[str, ...]
    names: Mapping[str, SeenNames]
    total: int

    def __bool__(self) -> bool:
        return bool(self.images) or any(n.with_images or n.alone for n in self.names.values())

    @property
    def verb(self) -> str:
        """ "has seen" where pixels tell it, and "may have seen" where names alone do."""
        return "has seen" if self.images else "may have seen"

    def describe(self) -> str:
        """Clauses on what matched and how sure that is, "" where nothing did."""
        clauses = []
        if self.images:
            clauses.append(
                f"{len(self.images)} of {self.total} images are, or nearly are, images that it was "
                f"trained or validated on ({quoted(self.images)}), as good as certain by their "
                "pixels"
            )
        for kind, names in self.names.items():
            several = plural(kind)
            if names.with_images:
                clauses.append(
                    f"{len(names.with_images)} of {names.total} {several} have the names of its "
                    f"{several} and such images ({quoted(names.with_images)})"
                )
            if names.alone:
                clauses.append(
                    f"{len(names.alone)} of {names.total} {several} have the names of its "
                    f"{several} and none of its images ({quoted(names.alone)}): "
                    f"{_how_sure(names.alone, several)}"
                )
        return "; ".join(clauses)

    def to_dict(self) -> dict[str, list[str]]:
        """What a report keeps of it, JSON-ready."""
        found = {"images": list(self.images)}
        for kind, names in self.names.items():
            found[f"{plural(kind)}_by_name_and_image"] = list(names.with_images)
            found[f"{plural(kind)}_by_name_alone"] = list(names.alone)
        return found


def records_of(specs: Sequence[NetworkSpec]) -> list[TrainingRecord]:
    """All trainings that networks come from, those of their initial weights included."""
    records = [spec.trained_on for spec in specs if spec.trained_on is not None]
    return [part for record in records for part in (record, *record.ancestors)]


def find_seen(records: Sequence[TrainingRecord], examples: Examples, hashes: np.ndarray) -> Seen:
    """What of `examples` was trained or validated on in `records`.

    Images that are blank, or nearly, have no hash and match nothing.

    Args:
      examples: N labelled images.
      hashes: uint64 [N, 4], `perceptual_hash` of each as it is stored.
    """
    known = [part.hashes() for r in records for part in (r.train, r.validation)]
    of_network = np.unique(np.concatenate([hashes[:0], *known]), axis=0)
    both = np.concatenate([hashes, of_network])
    # Numbers of their own, for what is the same image on both sides is to be found as well.
    numbers = np.arange(1, len(both) + 1, dtype=np.uint64)
    sides = np.repeat([0, 1], [len(hashes), len(of_network)])
    rows = np.unique(near_duplicates(both, numbers, sides)[:, 0])
    names = {}
    for kind, told in names_in(examples).items():
        named = _named(records, told, kind)
        with_images = named & {told[i] for i in rows}
        names[kind] = SeenNames(
            tuple(sorted(with_images)), tuple(sorted(named - with_images)), len({*told} - {""})
        )
    return Seen(tuple(examples.ids[i] for i in rows), names, len(examples))


def names_in(examples: Examples) -> dict[str, Sequence[str]]:
    """{"patient" and "slide": the name of each image}, of what the data tells; "" where it does not
    tell that of an image."""
    told = {"patient": examples.real_patients, "slide": examples.columns.get("slide")}
    return {kind: names for kind, names in told.items() if names is not None}


def doubts(records: Sequence[TrainingRecord], examples: Examples) -> list[str]:
    """Sentences on what cannot be told of a network and some data, so that silence about leaks is
    no promise.

    Args:
      records: of the network and of those that it comes from, at least one.
      examples: the data.
    """
    notes = [PERMUTED] if any(record.permuted_labels for record in records) else []
    if any(map(_tells_nothing, records)):
        notes.append(
            "The network, or the weights that it began with, come from an earlier glomjax or "
            "another program and do not tell on whom they were trained: whether they have seen "
            "these patients is not known."
        )
    trained = [record for record in records if record.train.images]
    if any(record.images_hashed_as != HASHED for record in trained):
        notes.append(
            "An earlier glomjax trained the network and knows its images as they were resized: "
            "where it padded, cropped or resampled them, copies are not found."
        )
    told = names_in(examples)
    for record in trained:
        known = {kind for kind in KINDS if getattr(record.train, f"{kind}_digests")}
        if not known & told.keys():
            ours = " and ".join(map(plural, sorted(known))) or "no names"
            theirs = " and ".join(map(plural, told)) or "no names"
            notes.append(
                f"No names could be compared: the network knows {ours} of its training, and the "
                f"data tells {theirs}; whether a patient is in both is told by copies of images "
                "alone."
            )
            break
    return notes


def _tells_nothing(record: TrainingRecord) -> bool:
    """Published weights have seen ImageNet, and a network of ours tells of its own training and of
    that of the networks before it."""
    own = bool(record.regime) and not record.train.images
    published = record.initial_weights == "none" or record.initial_weights in PUBLISHED
    return own or not (published or record.ancestors)


def _how_sure(names: Sequence[str], several: str) -> str:
    common = [name for name in names if _COMMON.fullmatch(normal_form(name))]
    if len(common) == len(names):
        return f"such short names are given in many places, so these may be other {several}"
    if not common:
        return f"names as long as these are hardly given to two {several}"
    return (
        f"{len(common)} of these names are so short that they may be those of other {several}, the "
        "others hardly"
    )


def _named(records: Sequence[TrainingRecord], names: Sequence[str], kind: str) -> set[str]:
    """Those of the names whose digests are in the records."""
    spellings: dict[str, set[str]] = {}
    for name in {*names} - {""}:
        spellings.setdefault(normal_form(name), set()).add(name)
    found: set[str] = set()
    for record in records:
        parts = (record.train, record.validation)
        digests = {d for part in parts for d in getattr(part, f"{kind}_digests")}
        if digests:
            for form, digest in digests_of(spellings, record.salt).items():
                found |= spellings[form] if digest in digests else set()
    return found
