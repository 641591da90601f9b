"""What controls are fitted on: colours, thumbnails and facts of files."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from small_runs import blots

from glomjax.data.examples import Examples
from glomjax.data.image_facts import COLOURS, FILES, THUMBNAILS, ImageFacts, colour_statistics
from glomjax.data.pipeline import DecodedImages
from glomjax.data.survey import survey
from glomjax.evaluation.controls import fit_controls


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def facts_of(files: list, labels=None) -> ImageFacts:
    examples = Examples(
        tuple(f"folder/{i}.png" for i in range(len(files))),
        np.zeros(len(files), np.int32) if labels is None else labels,
        files.__getitem__,
    )
    return survey({"train": DecodedImages(examples, (16, 16), with_facts=True)}).facts["train"]


def test_colour_statistics_are_those_of_all_pixels():
    image = blots(3, size=50)
    pixels = np.asarray(image).reshape(-1, 3)
    quantiles = [
        np.quantile(pixels, q, axis=0, method="inverted_cdf") for q in (0.05, 0.25, 0.5, 0.75, 0.95)
    ]
    density = -np.log10(np.maximum(pixels, 1) / 255).mean(axis=0)
    expected = np.concatenate([pixels.mean(axis=0), pixels.std(axis=0), density, *quantiles])
    np.testing.assert_allclose(colour_statistics(image), expected, atol=1e-9)


def test_files_that_are_larger_in_one_class_are_found():
    """The same blots for both classes, in JPEG files of two qualities."""
    labels = np.tile(np.arange(2, dtype=np.int32), 40)
    files = [
        saved(blots(i // 2), "JPEG", quality=95 if label else 92) for i, label in enumerate(labels)
    ]
    facts = facts_of(files, labels)
    train, test = facts.subset(np.arange(40)), facts.subset(np.arange(40, 80))
    fitted = fit_controls(train.features(), labels[:40], test.features())
    areas = {name: roc_auc_score(labels[40:], z[:, 0]) for name, z in fitted.items()}
    assert areas[FILES] > 0.95
    assert areas[COLOURS] < 0.75
    assert areas[THUMBNAILS] < 0.75


def test_arrays_have_no_files_and_images_may_have_any_size_and_kind():
    grey = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)
    files = [
        saved(blots(0, size=7)), saved(blots(1, size=90), "WEBP"), saved(grey), saved(blots(2))
    ]  # fmt: skip
    found = facts_of(files).features()
    assert {name: values.shape for name, values in found.items()} == {
        COLOURS: (4, 24),
        THUMBNAILS: (4, 768),
        FILES: (4, 10),
    }
    assert all(np.isfinite(values).all() for values in found.values())
    assert len(np.unique(found[FILES], axis=0)) == 4
    arrays = [np.asarray(blots(i)) for i in range(4)]
    assert list(facts_of(arrays).features()) == [COLOURS, THUMBNAILS]
    assert list(facts_of([*files[:2], *arrays[:2]]).features()) == [COLOURS, THUMBNAILS]
    pixels = facts_of([saved(blots(i)) for i in range(4)]).features()
    np.testing.assert_array_equal(facts_of(arrays).features()[THUMBNAILS], pixels[THUMBNAILS])


@pytest.mark.parametrize("of", [2, 3])
def test_processes_that_share_the_images_have_the_facts_of_all(of):
    files = [saved(blots(i, size=20 + i)) for i in range(5)]
    examples = Examples(tuple("abcde"), np.zeros(5, np.int32), files.__getitem__)
    parts = []
    for which in range(of):
        images = DecodedImages(examples, (16, 16), with_facts=True)
        list(images.scan(range(which, 5, of), lambda image: None))
        parts.append(images.facts)
    others = [vars(part).copy() for part in parts[1:]]
    sent = iter(
        [[o[name].reshape(-1) for o in others] for name in ("colours", "files")]
        + [[o["thumbnails"].reshape(-1).view(np.uint32).astype(np.float64) for o in others]]
    )
    parts[0].add_up(lambda mine: mine + sum(next(sent)))
    for name, values in facts_of(files).features().items():
        expected = values if name != FILES else None
        if expected is not None:
            np.testing.assert_array_equal(parts[0].features()[name], expected)
    assert parts[0].files[:, 0].tolist() == [1.0] * 5
