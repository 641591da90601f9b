"""Whether an image resembles those that a network was trained on, and in what it does not."""

import collections
from collections.abc import Mapping, Sequence

from PIL import Image

from glomjax.preprocessing import appearance
from glomjax.preprocessing.preprocessing import SAME_SPACING
from glomjax.pretrained.spec import NetworkSpec

# How the reasons begin, the first of several in this order.
BLANK, SPACING, SIZE, COLOURS = "blank", "another spacing", "another size", "other colours"


def differences(
    specs: Sequence[NetworkSpec], image: Image.Image, mpp: float | None
) -> tuple[str, ...]:
    """In what an image does not resemble the training images of one of the networks.

    Args:
      image: RGB, as it is stored.
      mpp: its microns per pixel, None where unknown.

    Returns:
      Reasons, each of which begins with its kind: `blank`, which has no others beside it, `another
      spacing`, `another size` (of images of an unknown spacing, whose magnification is probably
      another one as well) and `other colours`, by the rule of `Appearance`.
    """
    pixels = appearance.thumbnail(image)
    if appearance.is_blank(pixels):
        return (BLANK,)
    height, width = image.height, image.width
    measures = appearance.measure(pixels)
    found: dict[str, str] = {}
    for spec in specs:
        preprocessing = spec.preprocessing
        if mpp is not None and preprocessing.mpp:
            trained = preprocessing.mpp
            seen = preprocessing.seen_spacing((height, width), spec.image_size, mpp)
            if not 1 / SAME_SPACING <= seen / trained <= SAME_SPACING:
                text = f"{SPACING} ({seen:.3g} in place of {trained:.3g} microns per pixel)"
                found.setdefault(SPACING, text)
        elif not _is_of_size(spec, height, width):
            assert spec.source_size is not None
            usual = "{} x {}".format(*spec.source_size)
            found.setdefault(SIZE, f"{SIZE} ({height} x {width} in place of {usual})")
        if spec.appearance is not None and spec.appearance.differs(measures[None])[0]:
            found.setdefault(COLOURS, COLOURS)
    return tuple(found[kind] for kind in (SPACING, SIZE, COLOURS) if kind in found)


def summary(unlike: Mapping[tuple[str, ...], int], total: int) -> str:
    """A sentence on images that do not resemble the training images, "" where there are none.

    Args:
      unlike: {reasons: how many images have these}.
      total: images, with those that have none.
    """
    if not unlike:
        return ""
    kinds: collections.Counter[str] = collections.Counter()
    first: dict[str, str] = {}
    for reasons, count in unlike.items():
        for reason in reasons:
            kind = reason.partition(" (")[0]
            kinds[kind] += count
            first.setdefault(kind, reason)
    named = ", ".join(f"{count} {first[kind]}" for kind, count in kinds.most_common())
    return (
        f"{sum(unlike.values())} of {total} images do not resemble those of the training: {named}; "
        "how good the network was in its own test says little of these"
    )


def false_alarms(specs: Sequence[NetworkSpec]) -> str:
    """A clause on how often the rule of colours flags training images whose patients it was not
    fitted on; "" where no network has the rule."""
    told = [
        f"{rule.false_alarms:.1%} of the training images{f' of network {n}' if specs[1:] else ''} "
        f"(each {rule.kind} of {rule.groups} held out from it)"
        for n, spec in enumerate(specs, 1)
        if (rule := spec.appearance) is not None
    ]
    return f"the rule of colours also flags {' and '.join(told)}" if told else ""


def without_rule(specs: Sequence[NetworkSpec]) -> str:
    """A sentence where a network carries no rule of colours, "" where all do."""
    if all(spec.appearance is not None for spec in specs):
        return ""
    return (
        "the network carries no rule of colours, since an earlier glomjax trained it or its "
        "training images were few: images of other colours are not flagged"
    )


def _is_of_size(spec: NetworkSpec, height: int, width: int) -> bool:
    """Whether a height and a width are among those of the training images, or next to them."""
    least = spec.source_sizes[0] if spec.source_sizes else spec.source_size
    largest = spec.source_sizes[1] if spec.source_sizes else spec.source_size
    if least is None or largest is None:
        return True
    return all(
        low / SAME_SPACING <= side <= high * SAME_SPACING
        for side, low, high in zip((height, width), least, largest, strict=True)
    )
