"""What is read once for a whole run: decoded as it was said, and with a note on what is unusual."""

import io

import numpy as np
import pytest
from PIL import Image

from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.preparation import prepare_data
from glomjax.errors import UserError

SIZE = (40, 40)


def grey(seed: int, largest: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 2**8, (8, 8), np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC), np.float64)
    return np.rint(smooth / smooth.max() * largest).astype(np.uint16)


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def splits(**replaced: bytes) -> DataSplits:
    """Four 12-bit images a split, `train0` to `test3`; some replaced."""
    parts = []
    for s, split in enumerate(SPLITS):
        names = tuple(f"{split}{i}" for i in range(4))
        files = [replaced.get(name, png(grey(10 * s + i, 4095))) for i, name in enumerate(names)]
        parts.append(Examples(names, np.array([0, 1, 0, 1], np.int32), files.__getitem__))
    return DataSplits(*parts, classes=("other", "glomerulus"))


def test_12_bit_images_are_refused_until_their_bits_are_given():
    with pytest.raises(UserError, match=r"(?s)^12 of 12 images cannot be read.*with 12 bits"):
        prepare_data(splits(), SIZE)
    prepared = prepare_data(splits(), SIZE, bits=12)
    assert (prepared.preprocessing.bits, prepared.preprocessing.decoding) == (12, 2)
    expected = np.rint(grey(1, 4095) / 4095 * 255)
    np.testing.assert_array_equal(prepared.images["train"][1][..., 0], expected)


def test_a_run_of_the_first_rules_sees_what_it_saw():
    prepared = prepare_data(splits(), SIZE, decoding=1)
    assert prepared.preprocessing.decoding == 1
    expected = np.rint(grey(1, 4095) / 257)
    np.testing.assert_array_equal(prepared.images["train"][1][..., 0], expected)


def test_unusual_images_are_noted():
    cut = (grey(99, 255)).astype(np.uint8)
    cut[25:] = 0
    mask = (grey(98, 255) > 100).astype(np.uint8)
    prepared = prepare_data(splits(test0=png(cut), train3=png(mask)), SIZE, bits=12)
    flat, few = prepared.splits.notes
    assert flat.startswith("1 image(s) have 3 or more neighbouring rows of exactly one colour")
    assert "'test0' (15 rows)" in flat
    assert "two to four colours alone" in few
    assert "'train3'" in few
    assert prepared.survey.anomalies.keys() == {"test0", "train3"}
