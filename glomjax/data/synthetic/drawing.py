"""Draws one synthetic patch: what is in it, its stain and its optics.

Both classes are made of the same matter. Where a patch with a glomerulus has its tuft, one without
has a look-alike of the same size and place, and the nuclei that the tuft would have brought lie
elsewhere; the stain belongs to the patient. So the classes differ in arrangement and texture, and
hardly in colour, brightness or layout.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from glomjax.data.examples import SPLITS
from glomjax.data.synthetic import tissue

CLASSES = ("other", "glomerulus")


@dataclasses.dataclass(frozen=True)
class Patch:
    """One drawn example.

    Attributes:
      image: uint8 [280, 280, 3], RGB.
      label: index into `CLASSES`.
      patient: whose tissue it is; a patient belongs to one split.
      tuft: float32 [3], (centre row, centre column, radius) in pixels; zeros without a tuft.
    """

    image: np.ndarray
    label: int
    patient: str
    tuft: np.ndarray


def draw_patch(seed: int, split: str, index: int, patients: int) -> Patch:
    """Example `index` of a split that has `patients` patients; the same pixels on every call.

    Labels alternate, and the patient changes after each pair, so every patient has both classes.
    """
    label, patient = index % 2, index // 2 % patients
    key = (seed, SPLITS.index(split))
    rng = np.random.default_rng((*key, 0, index))
    stain = _patient_stain(np.random.default_rng((*key, 1, patient)))
    radius = rng.uniform(75, 112)
    (centre,) = _places(rng, radius, 1)

    canvas = tissue.new_canvas()
    tissue.cortex(canvas, rng)
    _bystanders(canvas, rng)
    if label:
        tissue.glomerulus(canvas, rng, centre, radius)
    else:
        _look_alike(canvas, rng, centre, radius)
    image = _photograph(_dye(np.asarray(canvas.reduce(2)), stain, rng), stain, rng)
    tuft = (centre[1], centre[0], radius) if label else (0, 0, 0)
    return Patch(image, label, f"{split}-{patient:02d}", np.array(tuft, np.float32))


def _bystanders(canvas: Image.Image, rng: np.random.Generator) -> None:
    """What either class may have beside its main object."""
    for draw_object in (tissue.cyst, tissue.artery, tissue.filled_capsule):
        if rng.random() < 0.25:
            draw_object(canvas, rng, rng.uniform(0, tissue.SIZE, 2), rng.uniform(25, 55))
    if rng.random() < 0.5:
        place, spread = rng.uniform(0, tissue.SIZE, 2), rng.uniform(20, 80)
        tissue.infiltrate(canvas, rng, place, spread, int(rng.integers(20, 200)))


def _look_alike(
    canvas: Image.Image, rng: np.random.Generator, centre: np.ndarray, radius: float
) -> None:
    """A round object without a tuft, and the nuclei of a tuft of that size all over the patch."""
    budget = tissue.tuft_nuclei(radius)
    kind = rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))
    if kind == 3:
        tissue.infiltrate(canvas, rng, centre, radius, budget)
        return
    (tissue.filled_capsule, tissue.cyst, tissue.artery)[kind](canvas, rng, centre, radius)
    rest = int(0.85 * budget) - (0, 25, budget // 3)[kind]
    # Each where a tuft might have had it: over many patches no place is denser in one class.
    tissue.infiltrate(canvas, rng, _places(rng, radius, 2 * rest), radius, rest)


def _places(rng: np.random.Generator, radius: float, count: int) -> np.ndarray:
    """Centres [count, 2] of round objects; large ones may be cut a little by the border."""
    return rng.uniform(0.8 * radius, tissue.SIZE - 0.8 * radius, (count, 2))


@dataclasses.dataclass(frozen=True)
class _Stain:
    absorbance: np.ndarray  # float32 [3, 3]: substance x (red, green, blue)
    white: np.ndarray  # float32 [3]: the colour of empty glass
    blur: float  # px


def _patient_stain(rng: np.random.Generator) -> _Stain:
    """Haematoxylin with eosin or with periodic acid-Schiff, as this patient's laboratory has it."""
    eosin = np.array([[0.12, 0.72, 0.40], [1.15, 1.25, 0.60], [0.20, 0.75, 0.38]])
    schiff = np.array([[0.28, 0.55, 0.22], [1.30, 1.20, 0.50], [0.40, 1.15, 0.45]])
    base = schiff if rng.random() < 0.4 else eosin
    absorbance = base * rng.lognormal(0, 0.14, (3, 3)) * rng.lognormal(0, 0.15)
    white = np.array([242, 238, 242]) + rng.uniform(-10, 10, 3)
    return _Stain(absorbance.astype(np.float32), white.astype(np.float32), rng.uniform(0.2, 0.8))


def _dye(canvas: np.ndarray, stain: _Stain, rng: np.random.Generator) -> np.ndarray:
    """Optical density float32 [280, 280, 3] of the substances uint8 [280, 280, 3]."""
    amount = canvas.astype(np.float32) / 255
    thickness = 1 + 0.12 * _clouds(rng, 6) + 0.10 * _clouds(rng, 70)
    grain = 1 + 0.18 * rng.standard_normal(amount.shape[:2], np.float32)
    amount[..., 0] *= grain
    # Each section takes up a little more or less of each dye.
    uptake = rng.lognormal(0, 0.2, (3, 1)).astype(np.float32)
    return (amount * thickness[..., None]) @ (uptake * stain.absorbance)


def _photograph(density: np.ndarray, stain: _Stain, rng: np.random.Generator) -> np.ndarray:
    """uint8 [280, 280, 3]: uneven light through the section, focus and sensor noise."""
    slope = np.linspace(-1, 1, tissue.SIZE, dtype=np.float32)
    down, across = rng.uniform(-0.06, 0.06, 2).astype(np.float32)
    light = rng.uniform(0.88, 1.04) + down * slope[:, None] + across * slope[None, :]
    rgb = stain.white * light[..., None].astype(np.float32) * np.exp(-density)
    sharp = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    focus = stain.blur * rng.uniform(0.6, 1.4)
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(focus)), np.float32)
    noise = rng.standard_normal((tissue.SIZE, tissue.SIZE, 1), np.float32) * rng.uniform(1.5, 4.0)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise float32 [280, 280] with `cells` bumps along each side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    return np.asarray(coarse.resize((tissue.SIZE, tissue.SIZE), Image.Resampling.BICUBIC))
