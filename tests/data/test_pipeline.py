"""Batches: every example once per epoch, in an order that depends on the seed alone."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glomjax.data.examples import Examples
from glomjax.data.pipeline import Batches, DecodedImages, stratified_order
from glomjax.errors import UserError

SIZE = (8, 6)
N = 11
PIXELS = np.random.default_rng(0).integers(0, 256, (N, *SIZE, 3), dtype=np.uint8)
LABELS = (np.arange(N) * 7 % 3).astype(np.int32)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


ENCODED = [png(pixels) for pixels in PIXELS]


class Reads:
    """Examples that count how often each is read."""

    def __init__(self):
        self.counts = np.zeros(N, int)
        self.examples = Examples(tuple(f"train/{i}.png" for i in range(N)), LABELS, self._read)

    def _read(self, index: int) -> bytes:
        self.counts[index] += 1
        return ENCODED[index]


def batches(batch_size: int = 4, *, cache_bytes: int = 0) -> Batches:
    images = DecodedImages(Reads().examples, SIZE, cache_bytes=cache_bytes)
    return Batches(images, batch_size)


def order(epoch) -> list[int]:
    """The real examples of an epoch in their order."""
    return np.concatenate([batch["index"][batch["mask"] > 0] for batch in epoch]).tolist()


def test_an_epoch_has_every_example_exactly_once():
    assert sorted(order(batches().epoch(seed=1))) == list(range(N))


def test_without_a_seed_the_order_is_that_of_the_examples():
    assert order(batches().epoch()) == list(range(N))


def test_the_last_batch_is_padded_and_masked():
    table = batches(4)
    epoch = list(table.epoch(seed=1))
    assert len(epoch) == len(table) == 3
    for batch in epoch:
        assert (batch["image"].shape, batch["image"].dtype) == ((4, *SIZE, 3), np.uint8)
        assert (batch["label"].shape, batch["label"].dtype) == ((4,), np.int32)
        assert (batch["mask"].shape, batch["mask"].dtype) == ((4,), np.float32)
        assert (batch["index"].shape, batch["index"].dtype) == ((4,), np.int64)
    assert [batch["mask"].tolist() for batch in epoch] == [[1] * 4, [1] * 4, [1, 1, 1, 0]]
    last = epoch[-1]
    assert last["index"][3] == -1
    assert not last["image"][3].any()


@pytest.mark.parametrize("batch_size", [N, N + 5])
def test_one_batch_can_hold_the_whole_split(batch_size):
    (batch,) = batches(batch_size).epoch(seed=3)
    assert batch["mask"].sum() == N
    assert sorted(batch["index"][:N].tolist()) == list(range(N))


def test_pixels_and_labels_are_those_of_the_index():
    for batch in batches().epoch(seed=2):
        real = batch["mask"] > 0
        assert np.array_equal(batch["image"][real], PIXELS[batch["index"][real]])
        assert np.array_equal(batch["label"], LABELS[batch["index"]])


def test_the_order_depends_on_the_seed_alone():
    expected = order(batches(3).epoch(seed=5))
    assert expected != list(range(N))
    assert order(batches(5).epoch(seed=5)) == expected
    assert order(batches(3, cache_bytes=2**20).epoch(seed=5)) == expected
    again = batches(3)
    assert order(again.epoch(seed=5)) == order(again.epoch(seed=5)) == expected
    assert order(again.epoch(seed=6)) != expected


@given(st.lists(st.integers(0, 3), min_size=1, max_size=90), st.integers(0, 2**32 - 1))
def test_a_stratified_order_is_a_shuffle_with_every_class_spread_evenly(labels, seed):
    labels = np.array(labels)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    np.testing.assert_array_equal(order, stratified_order(labels, seed))
    for label in np.unique(labels):
        share = np.mean(labels == label)
        # However many batches are cut off, and of whatever size, the class has its share of them.
        so_far = np.cumsum(labels[order] == label) - share * np.arange(1, len(labels) + 1)
        assert np.abs(so_far).max() < len(np.unique(labels))


def test_stratified_batches_of_two_equal_classes_are_half_and_half():
    labels = np.repeat([0, 1], 20).astype(np.int32)
    examples = Examples(tuple(map(str, range(40))), labels, lambda i: ENCODED[i % N])
    epochs = [
        [
            batch["index"]
            for batch in Batches(DecodedImages(examples, SIZE), 8, stratified=True).epoch(seed)
        ]
        for seed in (1, 2)
    ]
    assert all(labels[index].sum() == 4 for epoch in epochs for index in epoch)
    assert np.any(np.concatenate(epochs[0]) != np.concatenate(epochs[1]))
    without = [
        batch["index"]
        for batch in Batches(DecodedImages(examples, SIZE), 8, stratified=True).epoch()
    ]
    np.testing.assert_array_equal(np.concatenate(without), np.arange(40))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_an_epoch_goes_on_from_any_batch_in_the_same_order(start):
    table = batches(3)
    rest = [batch["index"].tolist() for batch in table.epoch(seed=5, start=start)]
    assert rest == [batch["index"].tolist() for batch in table.epoch(seed=5)][start:]


@settings(max_examples=30)
@given(
    st.integers(1, 9), st.sampled_from([(1, 1), (2, 1), (2, 2), (8, 2), (8, 4)]), st.integers(0, 3)
)
def test_hosts_and_devices_share_each_batch_without_changing_it(batch_size, layout, start):
    multiple, hosts = layout
    expected = list(batches(batch_size).epoch(seed=5, start=start))
    parts = [
        list(
            Batches(
                DecodedImages(Reads().examples, SIZE),
                batch_size,
                multiple=multiple,
                shard=(host, hosts),
            ).epoch(seed=5, start=start)
        )
        for host in range(hosts)
    ]
    assert {len(part) for part in parts} == {len(expected)}
    for one, *shares in zip(expected, *parts, strict=True):
        together = {name: np.concatenate([share[name] for share in shares]) for name in one}
        assert len({len(share["mask"]) for share in shares}) == 1
        assert len(together["mask"]) % multiple == 0
        assert not together["mask"][batch_size:].any()
        for name, rows in one.items():
            assert np.array_equal(together[name][:batch_size], rows), name


def test_a_batch_knows_its_examples_whoever_reads_them():
    table = Batches(DecodedImages(Reads().examples, SIZE), 4, multiple=2, shard=(1, 2))
    whole = [batch["index"][batch["mask"] > 0].tolist() for batch in batches(4).epoch(seed=5)]
    assert [table.examples_of(5, number).tolist() for number in range(3)] == whole


@pytest.mark.parametrize(("images_that_fit", "kept"), [(0, 0), (4, 4), (100, N)])
def test_the_cache_keeps_what_fits_and_no_more(images_that_fit, kept):
    reads = Reads()
    table = Batches(
        DecodedImages(reads.examples, SIZE, cache_bytes=images_that_fit * SIZE[0] * SIZE[1] * 3), 4
    )
    for epoch in (1, 2, 3):
        for batch in table.epoch(seed=epoch):
            real = batch["mask"] > 0
            assert np.array_equal(batch["image"][real], PIXELS[batch["index"][real]])
    assert sorted(reads.counts.tolist()) == [1] * kept + [3] * (N - kept)


def test_images_of_another_size_are_resized():
    table = Batches(DecodedImages(Reads().examples, (5, 5)), 4)
    assert next(table.epoch())["image"].shape == (4, 5, 5, 3)


def test_an_image_that_cannot_be_decoded_ends_the_epoch_and_names_the_file():
    encoded = [*ENCODED[:6], ENCODED[6][:40], *ENCODED[7:]]
    examples = Examples(tuple(f"glomerulus/{i}.png" for i in range(N)), LABELS, encoded.__getitem__)
    with pytest.raises(UserError, match=r"'glomerulus/6\.png' cannot be decoded") as error:
        list(Batches(DecodedImages(examples, SIZE), 4).epoch(seed=1))
    assert "\n" not in str(error.value)
