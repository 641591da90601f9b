"""What the weights of a run carry about their network and its training."""

import dataclasses
import os

import numpy as np

import glomjax
from glomjax import pretrained
from glomjax.data.examples import DataSplits
from glomjax.data.preparation import PreparedData
from glomjax.errors import UserError, assignment
from glomjax.evaluation.calibration import FIXED
from glomjax.files import as_tuples
from glomjax.inference.leaks import doubts, find_seen
from glomjax.models import num_logits, settled_options
from glomjax.preprocessing.appearance import fit_appearance
from glomjax.pretrained.spec import HASHED, NetworkSpec, TrainingRecord, record_split
from glomjax.training.config import RunConfig
from glomjax.training.initial_weights import WeightSource


def describe_network(config: RunConfig, prepared: PreparedData, device_batch: int) -> NetworkSpec:
    """What the network of a run carries, but for the record of its training."""
    classes = prepared.splits.classes
    sizes = prepared.survey.sizes["train"]
    height, width = np.median(sizes, axis=0).astype(int).tolist()
    train = prepared.splits.train
    groups, kind = train.ids, "image"
    if train.patients is not None:
        groups, kind = train.patients, train.patient_column
    return NetworkSpec(
        architecture=config.model.name,
        options=settled_options(config.model.name, config.image_size, config.model.options),
        outputs=num_logits(len(classes)),
        classes=classes,
        image_size=config.image_size,
        source_size=(height, width),
        source_sizes=as_tuples([sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()]),
        appearance=fit_appearance(prepared.survey.measures, groups, kind),
        preprocessing=prepared.preprocessing,
        precision=config.precision,
        native=config.ops.native,
        symmetries=config.test_time_augmentation,
        device_batch=device_batch,
    )


def record_training(
    config: RunConfig, prepared: PreparedData, weights: WeightSource | None
) -> TrainingRecord:
    """On what, and from what, a run trains its network.

    Args:
      weights: that it starts from, None for random values.
    """
    splits, found = prepared.splits, prepared.survey
    source = config.pretrained.source
    published = pretrained.PUBLISHED.get(source)
    before = None if weights is None else weights.info.spec.trained_on
    salt = os.urandom(16).hex()
    records = {
        split: record_split(
            splits[split].real_patients,
            splits[split].columns.get("slide"),
            found.hashes[split],
            found.contents[split],
            salt,
        )
        for split in ("train", "validation")
    }
    return TrainingRecord(
        salt=salt if any(r.patient_digests or r.slide_digests for r in records.values()) else "",
        train=records["train"],
        validation=records["validation"],
        regime=", ".join([config.freeze.regime, *config.freeze.unfreeze]),
        permuted_labels=config.data.permute_labels,
        augmentation=dataclasses.asdict(config.augment()),
        initial_weights=source
        if source == "none"
        else pretrained.name_of(source, "" if weights is None else weights.info.sha256),
        license=before.license if before else published.license if published else "",
        citation=before.citation if before else pretrained.CITATION if published else "",
        ancestors=(dataclasses.replace(before, ancestors=()), *before.ancestors) if before else (),
        images_hashed_as=HASHED,
        glomjax_version=glomjax.__version__,
    )


def check_threshold_rule(rule: str, splits: DataSplits) -> None:
    """Raises UserError for a rule of thresholds where there are not two classes."""
    if rule != FIXED and len(splits.classes) != 2:
        raise UserError(
            f"{assignment('decision.threshold', rule)} asks for a threshold, which two classes "
            f"have and not {len(splits.classes)}; leave it at "
            f"{assignment('decision.threshold', FIXED)}, by which the most probable class is "
            "predicted"
        )


def check_not_seen(record: TrainingRecord, prepared: PreparedData, *, allowed: bool) -> list[str]:
    """Notes on what of this run's validation, and where it is `allowed` of its test, the initial
    weights were trained or validated on, and on what cannot be told of it.

    Args:
      record: of the run, with those of the networks that its weights come from.

    Raises:
      UserError: they have seen part of the test, and it is not allowed.
    """
    if record.initial_weights == "none":
        return []
    ancestors = record.ancestors
    notes = doubts(
        ancestors or [TrainingRecord(initial_weights=record.initial_weights)], prepared.splits.test
    )
    for split in ("test", "validation"):
        seen = find_seen(ancestors, prepared.splits[split], prepared.survey.hashes[split])
        if not seen:
            continue
        weights = "the initial weights " + seen.verb.replace("has", "have")
        if split == "validation":
            notes.append(
                f"{weights.capitalize()} part of the validation split: {seen.describe()}; then it "
                "stops the training too kindly."
            )
        elif allowed:
            notes.append(
                f"{weights.capitalize()} part of the test split, as "
                f"{assignment('pretrained.allow_seen', True)} allows: {seen.describe()}; then the "
                "result is no estimate for others."
            )
        else:
            raise UserError(
                f"{weights} part of the test split, so that the test would be none: "
                f"{seen.describe()}; test on others, start from other weights, or, if it is "
                f"meant so, {assignment('pretrained.allow_seen', True)}, which the results then say"
            )
    return notes
