"""What the weights of a run carry about their network and its training."""

import dataclasses
import os

import numpy as np

import glomjax
from glomjax import pretrained
from glomjax.data.preparation import PreparedData
from glomjax.models import num_logits, settled_options
from glomjax.pretrained.spec import NetworkSpec, TrainingRecord, record_split
from glomjax.training.config import RunConfig
from glomjax.training.initial_weights import InitialWeights


def describe_network(config: RunConfig, prepared: PreparedData, device_batch: int) -> NetworkSpec:
    """What the network of a run carries, but for the record of its training."""
    classes = prepared.splits.classes
    sizes = prepared.survey.sizes["train"]
    height, width = np.median(sizes, axis=0).astype(int).tolist()
    return NetworkSpec(
        architecture=config.model.name,
        options=settled_options(config.model.name, config.image_size, config.model.options),
        outputs=num_logits(len(classes)),
        classes=classes,
        image_size=config.image_size,
        source_size=(height, width),
        preprocessing=prepared.preprocessing,
        precision=config.precision,
        native=config.ops.native,
        symmetries=config.test_time_augmentation,
        device_batch=device_batch,
    )


def record_training(
    config: RunConfig, prepared: PreparedData, initial: InitialWeights | None
) -> TrainingRecord:
    """On what, and from what, a run trains its network."""
    splits, found = prepared.splits, prepared.survey
    source = config.pretrained.source
    published = pretrained.PUBLISHED.get(source)
    before = None if initial is None or initial.info is None else initial.info.spec.trained_on
    salt = os.urandom(16).hex()
    known = splits.train.real_patients is not None
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
        salt=salt if known else "",
        train=records["train"],
        validation=records["validation"],
        regime=", ".join([config.freeze.regime, *config.freeze.unfreeze]),
        augmentation=dataclasses.asdict(config.augment()),
        initial_weights=source
        if source == "none"
        else pretrained.name_of(source, initial.info.sha256 if initial and initial.info else ""),
        license=before.license if before else published.license if published else "",
        citation=before.citation if before else pretrained.CITATION if published else "",
        ancestors=(dataclasses.replace(before, ancestors=()), *before.ancestors) if before else (),
        glomjax_version=glomjax.__version__,
    )
