"""A data set made ready for steps: every image read once, and all brought to one kind."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from glomjax.data import anomalies
from glomjax.data.examples import SPLITS, DataSplits
from glomjax.data.overlaps import overlap_note
from glomjax.data.pipeline import DecodedImages
from glomjax.data.stains import several_stains_note
from glomjax.data.survey import (
    Survey,
    duplicate_notes,
    padding_note,
    seen_spacing,
    size_note,
    survey,
    unreadable_message,
    without_unreadable,
)
from glomjax.errors import UserError, assignment
from glomjax.preprocessing import stain_normalization
from glomjax.preprocessing.decoding import DECODING_VERSION
from glomjax.preprocessing.preprocessing import IMAGENET, ChannelStatistics, Preprocessing


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """What training and its report read.

    Attributes:
      splits: the examples that are used: all but unreadable ones that may be skipped. Its notes end
        with those on what the images are like.
      images: the pixels of each split.
      preprocessing: by which they became what the network sees.
      survey: what the images are like.
      messages: lines on what was done.
    """

    splits: DataSplits
    images: dict[str, DecodedImages]
    preprocessing: Preprocessing
    survey: Survey
    messages: tuple[str, ...]


def prepare_data(
    splits: DataSplits,
    image_size: tuple[int, int],
    *,
    resize: str = "stretch",
    target_mpp: float = 0.0,
    stain: str = "none",
    standardize: bool = False,
    normalization: Preprocessing = IMAGENET,
    bits: int = 0,
    decoding: int = DECODING_VERSION,
    cache_bytes: int = 0,
    skip_unreadable: bool = False,
    shard: tuple[int, int] = (0, 1),
    total: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> PreparedData:
    """Reads every image once, so that one that cannot be read, or that is in two splits, ends a
    run now and not after the training; and settles how all are brought to one kind.

    Args:
      image_size: (height, width) that the network sees.
      resize: as in `fit_image`.
      target_mpp: microns per pixel to which images are resampled; 0 resamples none.
      stain: "none", or the method of the stain normalisation that is fitted on training images.
      standardize: take mean and deviation from the training images.
      normalization: whose mean and deviation are taken otherwise.
      bits, decoding: as in `Preprocessing`.
      cache_bytes: memory for decoded images.
      skip_unreadable: leave images out that cannot be read, and say so.
      shard, total: of several processes, as in `survey`.

    Raises:
      UserError: images cannot be read, one is in two splits, or their spacings differ or are not
        known where they are needed.
    """
    if target_mpp and splits.train.mpp is None:
        raise UserError(
            f"target_mpp is {target_mpp}, but the data does not give the spacing of its images: "
            f"set {assignment('data.mpp')}, or fill in an 'mpp' column"
        )
    preprocessing = Preprocessing(
        normalization.name,
        normalization.mean,
        normalization.std,
        resize=resize,
        target_mpp=target_mpp or None,
        bits=bits,
        decoding=decoding,
    )
    images = {
        split: DecodedImages(
            splits[split],
            image_size,
            preprocessing=preprocessing,
            # Training images are read in every epoch, so they come first.
            cache_bytes=cache_bytes * (8 if split == "train" else 1) // 10,
            measured=split == "train",
            with_facts=split != "validation",
        )
        for split in SPLITS
    }
    begun = time.monotonic()
    found = survey(images, stain=stain, shard=shard, total=total)
    count, seconds = sum(map(len, images.values())), time.monotonic() - begun
    messages = [f"read {count} images in {seconds:.1f} s, {count / seconds:.0f} images/s"]
    if found.unreadable:
        if not skip_unreadable:
            skipping = assignment("data.skip_unreadable", True)
            raise UserError(unreadable_message(found.unreadable, count, skipping))
        del images  # and what they keep in memory
        prepared = prepare_data(
            without_unreadable(splits, found),
            image_size,
            resize=resize,
            target_mpp=target_mpp,
            stain=stain,
            standardize=standardize,
            normalization=normalization,
            bits=bits,
            decoding=decoding,
            cache_bytes=cache_bytes,
            skip_unreadable=True,
            shard=shard,
            total=total,
        )
        return dataclasses.replace(prepared, messages=(messages[0], *prepared.messages[1:]))
    notes = [*duplicate_notes(splits, found), *anomalies.notes(found.anomalies).values()]
    overlap = overlap_note({split: splits[split] for split in SPLITS}, found.sizes)
    notes += [overlap] if overlap else []
    if target_mpp:
        notes += filter(None, [padding_note(splits, found.sizes, image_size, target_mpp)])
    else:
        seen = seen_spacing(splits, found.sizes, image_size, resize)
        preprocessing = dataclasses.replace(preprocessing, seen_mpp=seen)
        if seen is None:
            notes += filter(None, [size_note(found.sizes, image_size)])
    mpp = preprocessing.mpp
    messages.append(
        "spacing: unknown"
        if mpp is None
        else f"spacing: {mpp:.4g} microns per pixel, as the network sees it"
    )
    if stain != "none":
        several = several_stains_note(splits.train, stain, found.stains)
        notes += [several] if several else []
        normalizer = stain_normalization.fit(stain, found.stains)
        preprocessing = dataclasses.replace(preprocessing, stain=normalizer)
        pale = int(np.isnan(found.stains).any(axis=1).sum())
        messages.append(
            f"stains are normalised ({stain}) to those of the training images; {pale} of these "
            "show too little tissue or stain and stay as they are"
        )
        for part in images.values():
            part.prepare_with(preprocessing)
    if standardize:
        statistics = ChannelStatistics()
        which, of = shard
        for _, image in images["train"].scan(range(which, len(splits.train), of), lambda x: x):
            assert not isinstance(image, UserError)  # all have just been read
            statistics.add(image)
        statistics.merge(total)
        preprocessing = statistics.standardize(preprocessing)
    splits = dataclasses.replace(
        splits,
        notes=(*splits.notes, *notes),
        content=splits.content or found.content(),
    )
    return PreparedData(splits, images, preprocessing, found, tuple(messages))
