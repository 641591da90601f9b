"""Copies of one image, exact or nearly so, in more than one split.

Exact copies have one hash of their pixels. Near copies (saved again as JPEG, resized, a little
brighter, cropped by a few pixels, flipped or turned) have perceptual hashes that differ in few
bits. The perceptual hash is the DCT hash of Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions" (2010), with two changes: 16 x 16 coefficients instead of 8 x 8, because with
64 bits unrelated patches of tissue come as close as copies; and the sign of a coefficient instead
of its comparison with the median, because flips and quarter turns only transpose the coefficients
and change signs, so that the hashes of all eight follow from one.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

# Bits, of the 255 that can differ. Measured on 797 kidney patches of 280 x 280 pixels: copies saved
# as JPEG of quality 50 to 95, resized and back, 10% brighter or with 10% more contrast, flipped or
# turned differ in at most 11; cropped by 4 pixels on each side in 29 (median; 99% of them in 43 or
# fewer), by 7 pixels in 49; patches of different patients in 116, at least 86. The likeliest false
# alarms are patches that share a smooth border of the tissue: with white painted over 70 to 80% of
# each, 8 of 530,000 pairs of different patients come within 48; over less, none of 3,600,000.
NEAR_DISTANCE = 48
# Grey levels, of 255. The least of the same patches is 10; with their contrast lowered to 4 or 5,
# copies saved as JPEG still differ in at most 32 bits.
MIN_SPREAD = 4

_SIZE = 32  # the image is shrunk to _SIZE x _SIZE
_KEPT = 16  # coefficients in each direction
WORDS = _KEPT * _KEPT // 64  # of a hash, 64 bits each
# Whole numbers make the coefficients exact, so that a sign never depends on the machine.
_COSINES = np.rint(
    4096 * np.cos(np.pi / _SIZE * np.outer(np.arange(_KEPT), np.arange(_SIZE) + 0.5))
).astype(np.int64)  # [16, 32]
# Pairs compared at once: the working arrays (some 20 bytes a pair) fit a cache.
_PAIRS = 1 << 16


def content_hash(image: np.ndarray) -> int:
    """A 64-bit hash of size and pixels.

    The chance that any two of a million different images share a hash is 3e-8. Blank images, of
    one colour and perhaps white, have none: that two tiles of background are equal does not make
    them copies.

    Args:
      image: uint8 [H, W, 3].

    Returns:
      BLAKE2b with a digest of 8 bytes, as a whole number in [0, 2^64); 0 if the image is blank.
    """
    _check_image(image)
    inked = image[(image != 255).any(axis=-1)]  # padding is white
    if (inked == inked[:1]).all():
        return 0
    digest = hashlib.blake2b(np.array(image.shape, "<i8").tobytes(), digest_size=8)
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest(), "little")


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """The signs of the low-frequency DCT coefficients of the image in grey.

    The grey image (ITU-R 601) is shrunk to 32 x 32 with Pillow's antialiased bicubic filter. Bit
    16 u + v tells whether the coefficient of vertical frequency u < 16 and horizontal frequency
    v < 16 is positive; bit 0, the mean's, is always set.

    Blank or almost blank images have no hash, because their signs are noise: those whose middle
    half of grey values (between the quartiles of the 32 x 32) spans less than `MIN_SPREAD` levels.
    That takes in patches with background on more than three quarters: a hash would hold little but
    the outline of the rest.

    Args:
      image: uint8 [H, W, 3].

    Returns:
      uint64 [4]; zeros if the image has no hash.
    """
    _check_image(image)
    grey = np.asarray(
        Image.fromarray(image).convert("L").resize((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    )
    low, high = np.percentile(grey, (25, 75))
    if high - low < MIN_SPREAD:
        return np.zeros(WORDS, np.uint64)
    return _packed(_COSINES @ grey.astype(np.int64) @ _COSINES.T > 0)  # bits [16, 16]


def exact_duplicates(hashes: np.ndarray) -> list[np.ndarray]:
    """The groups of images with one content hash, those without a hash left out.

    Args:
      hashes: uint64 [N], from `content_hash`.

    Returns:
      The indices of each group of two or more, int64, ascending; groups by their first index.
    """
    hashes = np.asarray(hashes, np.uint64)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(hashes[order][1:] != hashes[order][:-1]) + 1
    groups = [g for g in np.split(order, starts) if len(g) > 1 and hashes[g[0]]]
    return sorted(groups, key=lambda group: group[0])


def near_duplicates(
    perceptual_hashes: np.ndarray, content_hashes: np.ndarray, splits: Sequence[str] | np.ndarray
) -> np.ndarray:
    """The pairs of images of different splits that are nearly the same.

    A pair's distance is the number of bits in which the perceptual hashes differ, the least over
    the eight flips and quarter turns of one of the images; a pair is near up to `NEAR_DISTANCE`.
    Images without a perceptual hash are in no pair, nor are exact copies.

    Every image is compared with all of the other splits: 10,000 images in a second or two. Memory
    grows with the number of images (some kilobytes each) and of pairs found, not of pairs compared.

    Args:
      perceptual_hashes: uint64 [N, 4], from `perceptual_hash`.
      content_hashes: uint64 [N], from `content_hash`.
      splits: the name or number of each image's split, [N].

    Returns:
      int64 [P, 3]: (i, j, distance) with i < j, the nearest pairs first.
    """
    perceptual = np.asarray(perceptual_hashes, np.uint64)
    content = np.asarray(content_hashes, np.uint64)
    names, split_of = np.unique(np.asarray(splits), return_inverse=True)
    if perceptual.shape != (len(content), WORDS) or split_of.shape != content.shape:
        raise ValueError(
            f"shapes {perceptual.shape}, {content.shape} and {split_of.shape} are not [N, "
            f"{WORDS}], [N] and [N]"
        )
    hashed = perceptual.any(axis=1)
    members = [np.flatnonzero(hashed & (split_of == s)) for s in range(len(names))]
    found = [np.empty((0, 3), np.int64)]
    for s, first in enumerate(members):
        for second in members[s + 1 :]:
            few, many = sorted((first, second), key=len)
            # Only the smaller side is flipped and turned: eight times its hashes must be held.
            for a, b, distance in _near(_symmetries(perceptual[few]), perceptual[many]):
                i, j = few[a], many[b]
                pairs = np.stack([np.minimum(i, j), np.maximum(i, j), distance], axis=1)
                found.append(pairs[content[i] != content[j]])
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]


def _near(
    symmetries: np.ndarray, others: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(a, b, distance) of the near pairs of symmetries[:, a] and others[b], chunk by chunk.

    Args:
      symmetries: uint64 [8, A, 4].
      others: uint64 [B, 4].
    """
    few = np.ascontiguousarray(symmetries.transpose(0, 2, 1))  # [8, 4, A]
    rows = max(1, _PAIRS // max(1, few.shape[2]))
    for start in range(0, len(others), rows):
        many = others[start : start + rows].T[:, :, None]  # [4, rows, 1]
        least = np.full((many.shape[1], few.shape[2]), 255, np.uint8)
        for turned in few:
            # At most 255, since bit 0 is set in both: the sum fits uint8.
            distance = np.bitwise_count(many[0] ^ turned[0])
            for word in range(1, WORDS):
                distance += np.bitwise_count(many[word] ^ turned[word])
            np.minimum(least, distance, out=least)
        b, a = np.nonzero(least <= NEAR_DISTANCE)
        yield a, start + b, least[b, a]


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"an image must be uint8 [H, W, 3], not {image.dtype} {image.shape}")


def _packed(bits: np.ndarray) -> np.ndarray:
    """uint64 [..., 4] from bits [..., 16, 16]."""
    flat = np.packbits(bits.reshape(*bits.shape[:-2], _KEPT * _KEPT), axis=-1, bitorder="little")
    return flat.view("<u8").astype(np.uint64)


def _symmetries(hashes: np.ndarray) -> np.ndarray:
    """The hashes [8, N, 4] of the images of `hashes` [N, 4], flipped and turned.

    A flip changes the sign of the coefficients of odd frequency in its direction. (A coefficient
    of exactly 0 has no sign to change; only images that are their own mirror image have many.)
    """
    flat = np.unpackbits(hashes.astype("<u8").view(np.uint8), axis=-1, bitorder="little")
    bits = flat.reshape(-1, _KEPT, _KEPT)
    odd = np.arange(_KEPT, dtype=np.uint8) % 2
    return np.stack(
        [
            _packed(turned ^ (vertical & odd[:, None]) ^ (horizontal & odd))
            for turned in (bits, bits.swapaxes(1, 2))
            for vertical in (0, 1)
            for horizontal in (0, 1)
        ]
    )
