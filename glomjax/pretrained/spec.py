"""What a trained network carries besides its weights, so that it needs nothing else.

A `NetworkSpec` lies as JSON in every checkpoint (`metadata.json`) and in every `.safetensors` file
that this project writes. It holds names of classes, but neither names of patients nor paths, users
or hosts.
"""

import base64
import concurrent.futures
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from flax import nnx

from glomjax.data.identities import normal_form
from glomjax.errors import UserError, excerpt, shown
from glomjax.files import as_tuples, jsonable
from glomjax.models import create_model
from glomjax.preprocessing.appearance import Appearance
from glomjax.preprocessing.preprocessing import Preprocessing

# Format 1 had a few of these facts side by side and no spec; 2 is the first with one. 3 has a
# temperature or a threshold, over which a glomjax that does not know them would go without a word;
# a spec without them stays 2, for that one to read.
FORMAT = 3
# What reading something else as a spec raises.
_NO_SPEC = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)
HASHED = "stored"  # images are hashed as their files hold them
# Interactive-log-in parameters of scrypt (RFC 7914): some 25 ms and 16 MiB a name, so that guessing
# who was trained on takes a lifetime of tries and asking for one's own patients does not.
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "maxmem": 2**26, "dklen": 16}


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """What of a split may be passed on to others.

    Attributes:
      images, patients, slides: how many; None where the data does not know them.
      patient_digests: of each patient, hexadecimal, as `name_digests` gives them, sorted.
      slide_digests: the same of slides.
      image_hashes: base64 of uint64 [N, 4], little-endian: `perceptual_hash` of each image that is
        not blank, sorted, so that their order says nothing.
    """

    images: int = 0
    patients: int | None = None
    slides: int | None = None
    patient_digests: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    slide_digests: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    image_hashes: str = dataclasses.field(default="", repr=False)

    def hashes(self) -> np.ndarray:
        """uint64 [N, 4]: the perceptual hashes."""
        return np.frombuffer(base64.b64decode(self.image_hashes), "<u8").reshape(-1, 4)


@dataclasses.dataclass(frozen=True)
class TrainingRecord:
    """On what a network was trained and validated, in a form that names nobody.

    Attributes:
      salt: of the digests, hexadecimal; "" where neither patients nor slides are known.
      train, validation: the two splits that its weights have seen.
      regime: what trained: `freeze.regime`, and the thaws behind it.
      permuted_labels: whether the labels were permuted, so that it has learnt nothing of tissue.
      augmentation: {effect: strength} of the training images.
      initial_weights: their published id, the checksum of their file ("sha256 ..."), "unpublished"
        where that is not known, or "none" for random values.
      license, citation: of the initial weights.
      ancestors: the records of the networks that these weights were trained as before, the last one
        first: what they have seen, this network has seen.
      images_hashed_as: `HASHED`, or "prepared" where an earlier version hashed images as the
        network sees them.
      glomjax_version: that trained it.
    """

    salt: str = ""
    train: SplitRecord = SplitRecord()
    validation: SplitRecord = SplitRecord()
    regime: str = ""
    permuted_labels: bool = False
    augmentation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    initial_weights: str = "none"
    license: str = ""
    citation: str = ""
    ancestors: tuple["TrainingRecord", ...] = ()
    images_hashed_as: str = "prepared"
    glomjax_version: str = ""


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """All that turns an image file into named probabilities, but for the weights.

    Attributes:
      architecture: a name of `glomjax.models.MODELS`; "" where a foreign file does not name it.
      options: every option of that network, settled: DaViT's window in numbers.
      outputs: logits; 1 for two classes.
      classes: names in the order of the outputs; of two the second is the positive one. () for
        weights that belong to no named classes.
      image_size: (height, width) that the network sees.
      source_size: (height, width) of the training images as stored, the median; None if unknown.
      source_sizes: the least and the largest height and width of these.
      appearance: what they look like, and which images look otherwise; None where they were too
        few, or where an earlier version trained the network.
      preprocessing: from stored pixels to what the network sees.
      precision: float32 or bfloat16.
      native: the setting of `ops.native` under which its results were computed.
      symmetries: whether an image's logits are the mean over its flips and quarter turns.
      device_batch: images in a batch on one device, by which its results were computed.
      trained_on: the record of the training, None for foreign weights.
      temperature: by which logits are divided.
      threshold: of two classes, the probability, after that, above which an image is positive.
      threshold_rule: by which it was chosen, on the validation split; "0.5" where it was not.
    """

    architecture: str
    options: Mapping[str, Any]
    outputs: int
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    preprocessing: Preprocessing
    source_size: tuple[int, int] | None = None
    source_sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    appearance: Appearance | None = None
    precision: str = "float32"
    native: str = "auto"
    symmetries: bool = False
    device_batch: int = 32
    trained_on: TrainingRecord | None = None
    temperature: float = 1.0
    threshold: float = 0.5
    threshold_rule: str = "0.5"

    @property
    def positive(self) -> str:
        """The positive class, "" where there are not two classes."""
        return self.classes[1] if len(self.classes) == 2 else ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse, to the last bit."""
        decides = (self.temperature, self.threshold) != (1.0, 0.5)
        plain: dict[str, Any] = {"format": 3 if decides else 2, "positive": self.positive}
        plain |= {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record = self.trained_on
        plain["preprocessing"] = self.preprocessing.to_dict()
        plain["appearance"] = None if self.appearance is None else asdict(self.appearance)
        plain["trained_on"] = None if record is None else asdict(record)
        return jsonable(plain)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], name: str) -> "NetworkSpec":
        """The spec that `to_dict` has written; fields that are not there have their defaults.

        Args:
          name: what carries it, for messages.

        Raises:
          UserError: a newer format, or no spec.
        """
        try:
            if stored["format"] > FORMAT:
                raise UserError(
                    f"{name} has format {shown(stored['format'])} and this glomjax reads formats "
                    f"up to {FORMAT}; install a newer glomjax"
                )
            fields = _known(cls, stored)
            fields["preprocessing"] = Preprocessing.from_dict(fields["preprocessing"])
            fields["options"] = {key: as_tuples(value) for key, value in fields["options"].items()}
            for key in ("classes", "image_size", "source_size", "source_sizes"):
                if fields.get(key) is not None:
                    fields[key] = as_tuples(fields[key])
            if appearance := fields.get("appearance"):
                fields["appearance"] = Appearance.from_dict(appearance)
            if record := fields.get("trained_on"):
                fields["trained_on"] = _record(record)
            spec = cls(**fields)
            if not (0 < spec.threshold < 1 and 0 < spec.temperature < math.inf):
                raise ValueError("threshold or temperature")
            return spec
        except _NO_SPEC as error:
            raise UserError(
                f"{name} is damaged: its spec is not one of a network "
                f"({type(error).__name__}: {excerpt(error)}); write it again"
            ) from error

    def create_model(self) -> nnx.Module:
        """The network without numbers: shapes alone, as `nnx.eval_shape` leaves them.

        Raises:
          UserError: the architecture is not named, or has other options than these.
        """
        return nnx.eval_shape(
            lambda: create_model(
                self.architecture,
                num_classes=self.outputs,
                image_size=self.image_size,
                rngs=nnx.Rngs(0),
                **self.options,
            )
        )


def record_split(
    patients: Sequence[str] | None,
    slides: Sequence[str] | None,
    hashes: np.ndarray,
    contents: np.ndarray,
    salt: str,
) -> SplitRecord:
    """The record of a split.

    Args:
      patients: of each image [N], or None where unknown.
      slides: of each image [N], "" for those of which none is known, or None.
      hashes: uint64 [N, 4], `perceptual_hash` of each image.
      contents: uint64 [N], `content_hash` of each image, 0 for blank ones, which resemble others.
      salt: of the digests.
    """
    distinct = np.unique(hashes[(contents != 0) & hashes.any(axis=1)], axis=0)
    return SplitRecord(
        images=len(hashes),
        patients=None if patients is None else len(set(map(normal_form, patients))),
        slides=None if slides is None else len({normal_form(name) for name in slides if name}),
        patient_digests=() if patients is None else name_digests(patients, salt),
        slide_digests=name_digests([name for name in slides or () if name], salt),
        image_hashes=base64.b64encode(distinct.astype("<u8").tobytes()).decode(),
    )


def name_digests(names: Iterable[str], salt: str) -> tuple[str, ...]:
    """`digests_of` the normal forms of names, sorted, each once: whoever has a list of patients can
    ask whether they are among them, nobody can list them."""
    return tuple(sorted(digests_of({normal_form(name) for name in names}, salt).values()))


def digests_of(forms: Iterable[str], salt: str) -> dict[str, str]:
    """{normal form of a name: its slow salted hash (scrypt, RFC 7914)}."""
    forms = sorted(set(forms))
    # The hash leaves Python's lock, so threads share the work.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(
            lambda form: hashlib.scrypt(form.encode(), salt=bytes.fromhex(salt), **_SCRYPT).hex(),
            forms,
        )
        return dict(zip(forms, found, strict=True))


def _record(stored: Mapping[str, Any]) -> TrainingRecord:
    fields = _known(TrainingRecord, stored)
    for split in ("train", "validation"):
        part = _known(SplitRecord, fields.get(split, {}))
        for kind in ("patient_digests", "slide_digests"):
            part[kind] = tuple(part.get(kind, ()))
        fields[split] = SplitRecord(**part)
    fields["ancestors"] = tuple(map(_record, fields.get("ancestors", ())))
    return TrainingRecord(**fields)


def _known(kind: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in stored.items() if name in names}
