"""Data sets of TensorFlow Datasets (TFDS), read from ArrayRecord files without TensorFlow."""

import collections
import contextlib
import dataclasses
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from glomjax.data.identities import cell
from glomjax.data.sources.columns import COLUMN_SYNONYMS, column_name, near_meaning, split_named
from glomjax.data.sources.manifest import LIMITS, Patch, patch_of
from glomjax.errors import UserError

_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")
_ID_NAMES = ("id", "example_id", "image_id", *COLUMN_SYNONYMS["path"])
_BLOCK = 64  # records that are read at once: eight times as fast as one, and each holds its image


def read_tfds(name: str) -> tuple[list[Patch], Callable[[str], bytes], list[str]]:
    """What a data set of TFDS lists; it is downloaded and prepared first where it is not there yet.

    It lies in the folder of the environment variable TFDS_DATA_DIR or in `~/tensorflow_datasets`.
    The image is its `Image`, the label its `ClassLabel` or a feature that is called so. Other
    features without dimensions are the columns, called as in a manifest (`COLUMN_SYNONYMS`). Where
    several features may be meant, the one of the plain name is (`image`, `label`, `patient`, ...),
    or for image and label the supervised keys of the data set. Ids are taken from a feature such
    as `id` or `file_name` if no two images share one, else they are `split/number`.

    The splits train, validation (or val) and test are kept. A split that is the only one of its
    data set is left to be divided.

    Args:
      name: `name[/config][:version]`.

    Returns:
      The patches; a function that gives the encoded image with an id; and notes.

    Raises:
      UserError: there is no such data set, it cannot be prepared here, it is not in the ArrayRecord
        format, its files are damaged, or its features, splits or values are not as described.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"'tfds:{name}' names no data set: write tfds:name[/config][:version].")
    builder = _builder(name)
    parts, notes = _parts(
        name, [split for split, info in builder.info.splits.items() if info.num_examples]
    )
    sources = _sources(name, builder, list(parts))
    roles, more = _roles(name, builder.info, divided=all(parts.values()))
    notes += more

    patches, ids, places = [], [], []
    for split, source in sources.items():
        what = f"The {split} split of 'tfds:{name}'"
        for number, record in enumerate(_records(source, range(len(source)), what)):
            place = f"{split}/{number:06d}"
            patches.append(_patch(record, roles, place, parts[split], f"'tfds:{name}'"))
            ids.append(roles.text(record, roles.id) if roles.id else "")
            places.append((split, number))
    if all(ids) and len(set(ids)) == len(ids):
        patches = [dataclasses.replace(patch, id=i) for patch, i in zip(patches, ids, strict=True)]
    _check_all_or_none(name, patches)
    place_of = dict(zip((patch.id for patch in patches), places, strict=True))

    def read(patch_id: str) -> bytes:
        split, number = place_of[patch_id]
        what = f"Image '{patch_id}' of 'tfds:{name}'"
        (record,) = _records(sources[split], [number], what)
        return _value(record, roles.image)

    return patches, read, notes


def _builder(name: str) -> Any:
    """The TFDS builder of a data set that is prepared."""
    import tensorflow_datasets as tfds  # takes seconds

    # As TFDS finds it, but when it is asked for and not when TFDS is imported.
    folder = os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    # TFDS prints banners, also for modules that it does not find. Progress goes to stderr.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            builder = tfds.builder(name, data_dir=folder)
        except tfds.core.registered.DatasetNotFoundError as error:
            raise UserError(
                f"TFDS knows no data set '{name}', and there is none in {folder}: correct the name "
                f"(tfds:name[/config][:version]), or set the environment variable TFDS_DATA_DIR to "
                f"the folder where it lies."
            ) from error
        except Exception as error:  # builders are programs of many authors
            raise UserError(
                f"'tfds:{name}' cannot be loaded ({_reason(error)}): correct its name, config or "
                f"version."
            ) from error
        if os.path.exists(builder.data_dir):
            return builder
        try:
            _check_network(builder)
            # By default TFDS checks the files whose checksums its builder has, and takes others.
            checked = tfds.download.DownloadConfig(force_checksums_validation=True)
            builder.download_and_prepare(download_config=checked, file_format="array_record")
        except Exception as error:
            raise UserError(
                f"'tfds:{name}' is not in {folder} and cannot be prepared here "
                f"({_reason(error)}): run `tfds build {name} --file_format=array_record` on a "
                f"machine with TensorFlow and a network and copy what it writes to {folder}, or "
                f"export the images to class folders."
            ) from error
    return builder


def _check_network(builder: Any) -> None:
    """TFDS tries for minutes to reach a server; one try tells whether that makes sense."""
    import requests  # TFDS downloads with it, so a proxy is the same for both

    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:  # its files may be there already
        return
    for url in builder.url_infos or ():
        if url.startswith("http"):
            try:
                requests.head(url, timeout=5)
            except requests.ConnectionError:
                raise ConnectionError(f"{url} cannot be reached") from None
            except requests.RequestException:
                pass  # it is there, but slow, or it answers no such question
            return


def _parts(name: str, splits: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """{split of the data set: `Patch.split` of its images}, and notes on it."""
    if len(splits) == 1:
        return {splits[0]: ""}, []
    found = {s: part for s in splits if (part := split_named(s))}
    if "train" not in found.values():
        raise UserError(
            f"'tfds:{name}' has the splits {list(splits)}: train is needed, or one split alone, "
            f"which is then divided; export the images to folders train, validation and test."
        )
    notes = []
    if others := [split for split in splits if split not in found]:
        notes.append(f"The split(s) {', '.join(others)} of 'tfds:{name}' are left out.")
    return {split: part if len(found) > 1 else "" for split, part in found.items()}, notes


def _sources(name: str, builder: Any, splits: Sequence[str]) -> dict[str, Any]:
    """For each split a random-access table of serialised `tf.train.Example`s."""
    from tensorflow_datasets import decode

    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise UserError(
            f"'tfds:{name}' lies in {builder.data_dir} as {', '.join(formats)}, which has no "
            f"random access: run `tfds convert_format --dataset_version_dir={builder.data_dir} "
            f"--out_file_format=array_record` on a machine with TensorFlow, or move it away to "
            f"prepare it again."
        )
    try:
        return builder.as_data_source(
            split={split: split for split in splits},
            deserialize_method=decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )
    except Exception as error:  # what a damaged file raises is up to the reader
        raise UserError(
            f"'tfds:{name}' in {builder.data_dir} cannot be read ({_reason(error)}): prepare the "
            f"data set again."
        ) from error


@dataclasses.dataclass(frozen=True)
class _Roles:
    """Which feature is what.

    Attributes:
      image, id: features; `id` is "" where there is none.
      columns: {feature: column of a manifest}, with the label.
      classes: {ClassLabel: the names of its values}.
    """

    image: str
    id: str
    columns: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]

    def text(self, record: Mapping[str, Any], feature: str) -> str:
        """The value as a cell of a manifest; "" for a missing value, and for a class below 0."""
        value = _value(record, feature)
        if isinstance(value, bytes):
            text = value.decode(errors="backslashreplace")
            return text.strip() if self.columns.get(feature) == "label" else cell(text)
        if isinstance(value, float):
            # TFDS stores 32 bits, so these are the digits that there are.
            return "" if math.isnan(value) else str(np.float32(value))
        if feature in self.classes:
            return "" if value < 0 else self.classes[feature][value]
        return str(value)


def _roles(name: str, info: Any, *, divided: bool) -> tuple[_Roles, list[str]]:
    """What the features are, and notes; `divided` where the data set has splits of its own."""
    from tensorflow_datasets.core.features import ClassLabel

    image = _image_feature(name, info)
    # Spelt as the header of a manifest, and sorted: TFDS gives features in an order that varies.
    scalars = {f: column_name(f) for f, kind in sorted(info.features.items()) if kind.shape == ()}
    twice = [name for name, n in collections.Counter(scalars.values()).items() if n > 1]
    if twice:
        raise UserError(
            f"'tfds:{name}' has several features called '{twice[0]}' but for their case: export "
            "the images to a folder with a manifest."
        )
    columns, notes = {}, []
    # A feature `split` is not taken for the split where the image lies.
    for column in ("patient", "slide", "site", *LIMITS, *(() if divided else ("split",))):
        meant = [f for f, spelling in scalars.items() if spelling in COLUMN_SYNONYMS[column]]
        near = [f for f in scalars if near_meaning(f) == column]
        if feature := _chosen(name, column, meant or near):
            columns[feature] = column
            if not meant:
                notes.append(
                    f"'tfds:{name}' has no feature '{column}': '{feature}' is taken for it."
                )
    class_labels = [f for f in scalars if isinstance(info.features[f], ClassLabel)]
    called = [f for f, spelling in scalars.items() if spelling in COLUMN_SYNONYMS["label"]]
    label = _chosen(
        name, "label", [f for f in scalars if f in {*class_labels, *called} - {*columns}], info
    )
    if not label or np.issubdtype(info.features[label].np_dtype, np.floating):
        raise UserError(
            f"'tfds:{name}' has no label of text or whole numbers but the features "
            f"{sorted(info.features)}: export the images to class folders."
        )
    columns[label] = "label"
    ids = [f for n in _ID_NAMES for f, spelling in scalars.items() if spelling == n]
    id_feature = ids[0] if ids else ""
    for f, spelling in scalars.items():
        if f not in columns and f != id_feature and spelling not in COLUMN_SYNONYMS:
            columns[f] = spelling
    classes = {f: info.features[f].names for f in class_labels if info.features[f].num_classes}
    return _Roles(image, id_feature, columns, classes), notes


def _image_feature(name: str, info: Any) -> str:
    from tensorflow_datasets.core.features import Image, LabeledImage

    images = [
        f
        for f, kind in sorted(info.features.items())
        # The pixels of a LabeledImage are classes.
        if isinstance(kind, Image) and not isinstance(kind, LabeledImage)
    ]
    image = _chosen(name, "image", images, info)
    if not image:
        raise UserError(
            f"'tfds:{name}' has no image but the features {sorted(info.features)}: export it to "
            f"class folders."
        )
    dtype = np.dtype(info.features[image].np_dtype)
    if dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"The images of 'tfds:{name}' are of {dtype}: export them to class folders as 8-bit "
            f"RGB."
        )
    return image


def _chosen(name: str, column: str, features: Sequence[str], info: Any = None) -> str:
    """The one of the plain name or of the supervised keys, else the only one; "" without any."""
    keys = (info and info.supervised_keys) or ()  # (image, label)
    plain = [f for f in features if f.lower() == column] or [f for f in features if f in keys]
    chosen = plain or features
    if len(chosen) > 1:
        raise UserError(
            f"'tfds:{name}' has {len(chosen)} features that may be the {column} "
            f"({', '.join(chosen)}): export the images to a folder with a manifest."
        )
    return chosen[0] if chosen else ""


def _patch(record: Mapping[str, Any], roles: _Roles, place: str, split: str, source: str) -> Patch:
    row = {column: roles.text(record, feature) for feature, column in roles.columns.items()}
    if not row["label"]:
        raise UserError(
            f"Image '{place}' of {source} has no label: export the labelled images to class "
            f"folders."
        )
    told = row.pop("split", "")
    if told and not (split := split_named(told, abbreviated=True)):
        raise UserError(
            f"Image '{place}' of {source} has the split '{told}', which is no name of one: export "
            f"the images to folders train, validation and test."
        )
    return patch_of(row, place, split, where=f"Image '{place}' of {source}")


def _check_all_or_none(name: str, patches: Sequence[Patch]) -> None:
    """A patient that is known of some images only makes splits that cannot be trusted."""
    person = "patient" if any(patch.patient for patch in patches) else "slide"
    for column in (person, "split", *LIMITS):
        unknown = [patch.id for patch in patches if getattr(patch, column) in ("", None)]
        if unknown and len(unknown) < len(patches):
            raise UserError(
                f"'tfds:{name}' does not tell the {column} of {len(unknown)} of {len(patches)} "
                f"images, for example '{unknown[0]}': export the others to a folder with a "
                f"manifest."
            )


def _records(source: Any, numbers: Sequence[int], what: str) -> Iterator[Mapping[str, Any]]:
    """The features of examples. They are parsed, not decoded: TFDS would decode every image."""
    from tensorflow_datasets.proto import tf_example_pb2

    for start in range(0, len(numbers), _BLOCK):
        block = list(numbers[start : start + _BLOCK])
        try:
            parsed = [tf_example_pb2.Example.FromString(r) for r in source.__getitems__(block)]
        except Exception as error:  # what a damaged file raises is up to the reader
            raise UserError(
                f"{what} cannot be read ({_reason(error)}): prepare the data set again."
            ) from error
        yield from (example.features.feature for example in parsed)


def _value(record: Mapping[str, Any], feature: str) -> Any:
    """bytes, int or float: a `tf.train.Feature` of one value."""
    values = record[feature]
    return getattr(values, values.WhichOneof("kind")).value[0]


def _reason(error: BaseException) -> str:
    """The first line of what was raised first: TFDS wraps it into descriptions of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" :.") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
