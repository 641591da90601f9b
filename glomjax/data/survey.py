"""One reading of all images, before anything is computed with them, and what follows from it."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping

import numpy as np

from glomjax.data import anomalies, duplicates
from glomjax.data.anomalies import Anomalies
from glomjax.data.examples import SPLITS, DataSplits
from glomjax.data.image_facts import ImageFacts
from glomjax.data.pipeline import DecodedImages
from glomjax.errors import UserError, assignment, first_few
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.decoding import size_ratios
from glomjax.preprocessing.preprocessing import SAME_SPACING


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the images of a data set are like.

    Attributes:
      unreadable: {id: the sentence that says why} of the images that cannot be read.
      contents: {split: uint64 [N]}, equal for equal pixels, 0 for blank images; see `content_hash`.
      hashes: {split: uint64 [N, 4]}, near for images that look alike as they are stored; see
        `perceptual_hash`.
      sizes: {split: int [N, 2]}, (height, width) as stored.
      measures: float64 [N, K] of the training images, what they look like; see
        `appearance.measure`.
      stains: float64 [N, K] of the training images, as `stain_normalization.fit` takes them.
      anomalies: {id: what is unusual} of images in which something is.
      facts: {split: of its images}, of the splits of which they were gathered.
    """

    unreadable: dict[str, str]
    contents: dict[str, np.ndarray]
    hashes: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    measures: np.ndarray
    stains: np.ndarray
    anomalies: Mapping[str, Anomalies] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, ImageFacts] = dataclasses.field(default_factory=dict)

    def content(self) -> str:
        """A hash of all pixels."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(self.contents[split].tobytes())
        return digest.hexdigest()


def survey(
    images: Mapping[str, DecodedImages],
    *,
    stain: str = "none",
    shard: tuple[int, int] = (0, 1),
    total: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> Survey:
    """Reads every image once.

    Args:
      images: of each split.
      stain: the method of stain normalisation for which the training images are measured.
      shard: (process_index, process_count): this process reads its part of the images.
      total: the sum of float64 [N] over all processes.
    """
    which, of = shard
    reasons: dict[str, str] = {}
    unreadable, contents, hashes, sizes = {}, {}, {}, {}
    unusual: dict[str, Anomalies] = {}
    measures, stains = np.zeros((0, 0)), np.zeros((0, 0))
    for split, part in images.items():
        method = stain if split == "train" else "none"

        def look(image: np.ndarray, method: str = method) -> tuple[int, np.ndarray]:
            content = duplicates.content_hash(image)
            if method == "none":
                return content, np.zeros(0)
            return content, stain_normalization.image_statistics(method, image)

        columns = 0 if method == "none" else len(stain_normalization.STATISTICS[method])
        bad = np.zeros(len(part))
        content = np.zeros((len(part), 1), np.uint64)
        statistics = np.zeros((len(part), columns))
        for index, seen in part.scan(range(which, len(part), of), look):
            if isinstance(seen, UserError):
                bad[index] = 1
                reasons[part.examples.ids[index]] = str(seen)
            else:
                content[index], statistics[index] = seen
        # 64 bits as two numbers that float64 holds, so that processes can add what each has seen.
        halves = np.concatenate([content, part.hashes], axis=1).view(np.uint32)
        unusual_here = anomalies.as_numbers(part.anomalies, len(part))
        parts: list[np.ndarray] = [bad[:, None], part.sizes, halves, unusual_here]
        parts += [part.measures, statistics]
        table = np.concatenate(parts, axis=1)
        table = total(table.reshape(-1).astype(np.float64)).reshape(table.shape)
        ends = np.cumsum([column.shape[1] for column in parts])[:-1]
        bad, stored, halves, numbers, looks, statistics = np.split(table, ends, axis=1)
        for index in np.flatnonzero(bad).tolist():
            name = part.examples.ids[index]
            unreadable[name] = reasons.get(name, f"Image '{name}' cannot be read.")
        sizes[split] = stored.astype(np.int64)
        joined = np.ascontiguousarray(halves.astype(np.uint32)).view(np.uint64)
        contents[split], hashes[split] = joined[:, 0], joined[:, 1:]
        found = anomalies.from_numbers(numbers, part.anomalies)
        unusual |= {part.examples.ids[index]: anomaly for index, anomaly in found.items()}
        if split == "train":
            measures, stains = looks, statistics
        if part.facts is not None and of > 1:
            part.facts.add_up(total)
    facts = {split: part.facts for split, part in images.items() if part.facts is not None}
    return Survey(unreadable, contents, hashes, sizes, measures, stains, unusual, facts)


def without_unreadable(splits: DataSplits, found: Survey) -> DataSplits:
    """The data set without the images that cannot be read, and a note that counts them.

    Raises:
      UserError: a split is left without images of a class.
    """
    left = splits.map(
        lambda part: part.subset([i for i, n in enumerate(part.ids) if n not in found.unreadable])
    )
    for split in SPLITS:
        for label, name in enumerate(splits.classes):
            if not (left[split].labels == label).any():
                part = splits[split]
                lost = [i for i, of in zip(part.ids, part.labels, strict=True) if of == label]
                raise UserError(
                    f"No image of class '{name}' in the {split} split can be read, for example: "
                    f"{found.unreadable[lost[0]]}"
                )
    counts = [f"{len(splits[s]) - len(left[s])} of {s}" for s in SPLITS]
    note = (
        f"{len(found.unreadable)} image(s) cannot be read and are left out ({', '.join(counts)}): "
        f"{first_few([repr(name) for name in found.unreadable])}."
    )
    return dataclasses.replace(left, notes=(*splits.notes, note))


def unreadable_message(unreadable: Mapping[str, str], count: int, skipping: str) -> str:
    """The sentence that refuses data over its unreadable images, one line each.

    Args:
      unreadable: {id: why}.
      count: of all images.
      skipping: what leaves them out, as it is written.
    """
    lines = list(unreadable.values())
    rest = [f"and {len(lines) - 100} more"] if len(lines) > 100 else []
    return "\n  ".join(
        [
            f"{len(lines)} of {count} images cannot be read; restore them, remove them, or leave "
            f"them out with {skipping}:",
            *lines[:100],
            *rest,
        ]
    )


def duplicate_notes(splits: DataSplits, found: Survey) -> list[str]:
    """Notes on exact copies within a split, near copies across splits and blank images.

    Raises:
      UserError: an image is in more than one split.
    """
    ids = [name for split in SPLITS for name in splits[split].ids]
    labels = np.concatenate([splits[split].labels for split in SPLITS])
    split_of = np.repeat(np.arange(3), [len(splits[split]) for split in SPLITS])
    contents = np.concatenate([found.contents[split] for split in SPLITS])
    groups = duplicates.exact_duplicates(contents)

    def named(indices: np.ndarray) -> str:
        return " = ".join(f"'{ids[i]}' ({SPLITS[split_of[i]]})" for i in indices)

    across = [group for group in groups if len(set(split_of[group])) > 1]
    if across:
        raise UserError(
            f"{len(across)} image(s) are in more than one split, so a test would be no test: "
            f"{first_few([named(group) for group in across])}; keep one copy of each."
        )
    notes = []
    if blank := int((contents == 0).sum()):
        notes.append(f"{blank} image(s) are blank: one colour throughout.")
    if groups:
        contrary = [group for group in groups if len(set(labels[group])) > 1]
        more = f"; {len(contrary)} of them with different labels" if contrary else ""
        listed = first_few([named(group) for group in (contrary or groups)])
        notes.append(f"{len(groups)} image(s) occur more than once within a split{more}: {listed}.")
    hashes = np.concatenate([found.hashes[split] for split in SPLITS])
    near = duplicates.near_duplicates(hashes, contents, split_of)
    if len(near):
        listed = first_few([named(pair[:2]).replace(" = ", " ~ ") for pair in near])
        notes.append(
            f"{len(near)} pair(s) of nearly the same image lie in different splits, so the "
            f"estimate may be optimistic: {listed}."
        )
    return notes


def seen_spacing(
    splits: DataSplits, sizes: Mapping[str, np.ndarray], image_size: tuple[int, int], resize: str
) -> float | None:
    """Microns per pixel of images brought to one size, or None where their own are unknown.

    Args:
      splits: with the spacing of each image as stored.
      sizes: {split: [N, 2]}, (height, width) as stored.
      image_size: (height, width) to which they are brought.
      resize: how, as in `fit_image`.

    Raises:
      UserError: the images come out at different spacings.
    """
    if splits.train.mpp is None:
        return None
    seen = []
    for split in SPLITS:
        mpp = splits[split].mpp
        assert mpp is not None
        seen.append((mpp[:, None] * size_ratios(sizes[split], image_size, resize)).reshape(-1))
    values = np.concatenate(seen)
    if values.max() > SAME_SPACING * values.min():
        raise UserError(
            f"The images would be seen at different spacings, from {values.min():.4g} to "
            f"{values.max():.4g} microns per pixel: give one to which all are resampled, such as "
            f"{assignment('target_mpp', _rounded_down(values.min()))}, the largest at which none "
            f"has to be padded."
        )
    return float(np.median(values))


def padding_note(
    splits: DataSplits, sizes: Mapping[str, np.ndarray], image_size: tuple[int, int], mpp: float
) -> str:
    """A note on images that are too small at the spacing to which they are resampled, else ""."""
    small = np.zeros(len(splits.classes), int)
    number = np.zeros(len(splits.classes), int)
    for split in SPLITS:
        part = splits[split]
        assert part.mpp is not None
        resampled = np.rint(sizes[split] * part.mpp[:, None] / mpp)  # [N, 2]
        padded = (resampled < np.array(image_size)).any(axis=1)
        small += np.bincount(part.labels[padded], minlength=len(small))
        number += np.bincount(part.labels, minlength=len(small))
    if not small.any():
        return ""
    counts = [
        f"{n} of {of} of class '{name}'"
        for n, of, name in zip(small, number, splits.classes, strict=True)
    ]
    return (
        f"At {mpp:g} microns per pixel some images are smaller than {image_size[0]} x "
        f"{image_size[1]} and get a white border ({', '.join(counts)}), which may give the class "
        f"away: take a smaller target_mpp."
    )


def size_note(sizes: Mapping[str, np.ndarray], image_size: tuple[int, int]) -> str:
    """A note where images without a known spacing differ in size, else ""."""
    found = np.unique(np.concatenate(list(sizes.values())), axis=0)
    if len(found) == 1:
        return ""
    smallest, largest = (f"{h} x {w}" for h, w in (found[0], found[-1]))
    return (
        f"The images have {len(found)} sizes ({smallest} to {largest}) and no known spacing: "
        f"brought to {image_size[0]} x {image_size[1]}, their magnifications may differ."
    )


def _rounded_down(value: float) -> float:
    """To three digits, and never above the value."""
    digits = 2 - math.floor(math.log10(value))
    return math.floor(value * 10**digits + 1e-9) / 10**digits
