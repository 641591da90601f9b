"""The embedded data set: drawn kidney patches, built on first use and then read from a cache.

It lets everything run without a download, and a study know the truth: where each tuft is, and that
stain says nothing about the class. It is no substitute for tissue.
"""

import contextlib
import hashlib
import io
import pathlib
import tempfile
from typing import Any

import numpy as np

from glomjax.data.examples import SPLITS, DataSplits, Examples
from glomjax.data.synthetic.drawing import CLASSES
from glomjax.errors import UserError
from glomjax.files import cache_dir

# (examples, patients) of each split. Half of the examples of every patient show a glomerulus.
SIZES = {
    "demo": {"train": (720, 18), "validation": (80, 4), "test": (100, 5)},
    "large": {"train": (4000, 40), "validation": (500, 10), "test": (1000, 20)},
}


def load(size: str = "demo", *, seed: int = 0, data_dir: pathlib.Path | None = None) -> DataSplits:
    """The synthetic data set, drawn first if this size and seed are not in the cache yet.

    Args:
      size: "demo" (900 patches, drawn in about 20 s) or "large" (5500 patches, some minutes).
      seed: another seed draws other patients.
      data_dir: the cache folder; by default `cache_dir("synthetic")`.

    Returns:
      The splits, class names ("other", "glomerulus"); `read` gives PNG bytes of 280 x 280 RGB.

    Raises:
      UserError: `size` is unknown, `seed` is negative, or the cache folder cannot be written.
    """
    sources = _sources(size, seed, data_dir)
    splits = {split: _examples(sources[split]) for split in SPLITS}
    note = f"The data are synthetic (size {size}, seed {seed}): results say nothing about tissue."
    return DataSplits(
        splits["train"], splits["validation"], splits["test"], classes=CLASSES, notes=(note,)
    )


def tuft_locations(
    split: str, size: str = "demo", *, seed: int = 0, data_dir: pathlib.Path | None = None
) -> np.ndarray:
    """Where the tufts of a split are, in the order of its examples.

    Returns:
      float32 [N, 3], (centre row, centre column, radius) in pixels; zeros without a tuft.

    Raises:
      UserError: as `load`.
    """
    source = _sources(size, seed, data_dir)[split]
    return np.stack([source[i]["tuft"] for i in range(len(source))]).astype(np.float32)


def _examples(source: Any) -> Examples:
    ids, labels, patients = [], [], []
    for i in range(len(source)):
        row = source[i]
        ids.append(row["example_id"].decode())
        labels.append(row["label"])
        patients.append(row["patient"].decode())
    return Examples(
        ids=tuple(ids),
        labels=np.array(labels, np.int32),
        read=lambda i: source[i]["image"],
        patients=tuple(patients),
    )


def _sources(size: str, seed: int, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """One random-access TFDS source per split, with encoded images."""
    if size not in SIZES:
        raise UserError(
            f"The synthetic data set has no size {size!r}; choose one of {', '.join(SIZES)}."
        )
    if seed < 0:
        raise UserError(f"The seed of the synthetic data set is {seed}; it must be 0 or more.")
    cache = cache_dir("synthetic") if data_dir is None else pathlib.Path(data_dir)
    folder = cache / f"{size}-seed{seed}-{_drawing_version()}"
    _build_once(size, seed, folder)
    import tensorflow_datasets as tfds

    return _builder(size, seed, folder).as_data_source(
        decoders={"image": tfds.decode.SkipDecoding()}
    )


def _build_once(size: str, seed: int, folder: pathlib.Path) -> None:
    """Builds beside `folder` and renames at the end, so that `folder` is complete or absent."""
    try:
        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as unfinished:
            ready = pathlib.Path(unfinished) / "ready"
            # TFDS prints banners and progress bars that say nothing about this local drawing.
            silence = io.StringIO()
            with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
                _builder(size, seed, ready).download_and_prepare(file_format="array_record")
            try:
                ready.rename(folder)
            except OSError:
                # Another process may have been faster: what it drew is the same.
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UserError(
            f"The synthetic data set cannot be written to its cache folder {folder.parent} "
            f"({error.strerror or error}); set the environment variable GLOMJAX_CACHE to a folder "
            "that can be written."
        ) from error


def _builder(size: str, seed: int, folder: pathlib.Path) -> Any:
    # Importing TFDS takes seconds; only those who read this data set pay for it.
    from glomjax.data.synthetic.synthetic_dataset_builder import Builder

    return Builder(data_dir=folder, config=size, seed=seed, file_format="array_record")


def _drawing_version() -> str:
    """Changes with the code that draws, so that a cache never holds another version's pixels."""
    code = b"".join(p.read_bytes() for p in sorted(pathlib.Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(code).hexdigest()[:12]
