"""A folder of small patches with patients, and the configuration of a network that learns them."""

import pathlib

import numpy as np
from PIL import Image

from glomjax.training import default_config

CLASSES = ("other", "glomerulus")
COUNT = 48


def blots(number: int, redder: int = 0, size: int = 40) -> Image.Image:
    """Coloured blots, others for each number."""
    pixels = np.random.default_rng(number).integers(60, 200, (20, 20, 3))
    pixels[..., 0] = (pixels[..., 0] + redder).clip(0, 255)
    image = Image.fromarray(pixels.astype(np.uint8))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def write_patches(folder: pathlib.Path, *, first: int = 0, numbered: bool = False) -> pathlib.Path:
    """48 patches of 12 patients, more red in one class; as a folder with a manifest.

    Args:
      first: the number of the first picture.
      numbered: patients are called 1 to 12, and not Frau A to L.
    """
    rows = ["path,label,patient,block"]
    for i in range(COUNT):
        label = CLASSES[i % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        blots(first + i, 50 * (i % 2)).save(folder / label / f"{i:02d}.png")
        patient = str(i // 4 + 1) if numbered else f"Frau {chr(65 + i // 4)}"
        rows.append(f"{label}/{i:02d}.png,{label},{patient},B{i % 3}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def config_for(source: pathlib.Path, **changes):
    """A DaViT of one block for two epochs."""
    config = default_config()
    config.data.source = str(source)
    config.report = "none"
    config.image_size = (32, 32)
    config.batch_size = 8
    config.num_epochs = 2
    config.learning_rate = 3e-3
    config.model.options.update({"depths": (1,), "embed_dims": (8,), "num_heads": (1,)})
    config.freeze.regime = "scratch"
    config.update_from_flattened_dict(changes)
    return config
