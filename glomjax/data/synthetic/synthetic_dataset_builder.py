"""The synthetic patches as a TFDS data set, drawn and read without TensorFlow."""

import io
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from glomjax.data.synthetic import SIZES
from glomjax.data.synthetic.drawing import CLASSES, draw_patch


class Builder(tfds.core.GeneratorBasedBuilder):
    """Features: image (PNG, 280 x 280 RGB), label, patient, example_id and tuft.

    `tuft` is float32 [3], (centre row, centre column, radius) in pixels; zeros for `other`.
    """

    name = "glomjax_synthetic"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First drawing."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="demo", description="For trying things out."),
        tfds.core.BuilderConfig(name="large", description="For studies."),
    ]

    def __init__(self, *, seed: int = 0, **kwargs: Any):
        # No part of the config: TFDS warns about every config that is not listed above.
        self._seed = seed
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawn kidney-cortex patches with and without a glomerulus.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(280, 280, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                    "patient": tfds.features.Text(),
                    "example_id": tfds.features.Text(),
                    "tuft": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SIZES[self.builder_config.name]}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        count, patients = SIZES[self.builder_config.name][split]
        for index in range(count):
            patch = draw_patch(self._seed, split, index, patients)
            png = io.BytesIO()
            # Huffman codes alone: half the time, hardly more bytes on grainy pixels.
            Image.fromarray(patch.image).save(png, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)
            png.seek(0)
            yield (
                index,
                {
                    "image": png,
                    "label": patch.label,
                    "patient": patch.patient,
                    "example_id": f"{split}/{index:04d}",
                    "tuft": patch.tuft,
                },
            )
