"""The spec of networks that were saved before there was one (format 1)."""

from collections.abc import Mapping
from typing import Any

from glomjax.errors import UserError, excerpt
from glomjax.models import num_logits, settled_options
from glomjax.preprocessing.preprocessing import Preprocessing
from glomjax.pretrained.spec import NetworkSpec, TrainingRecord


def spec_of_checkpoint(
    metadata: Mapping[str, Any], config: Mapping[str, Any], initial_weights: str, name: str
) -> NetworkSpec:
    """The spec of a checkpoint's `metadata.json` in format 1.

    Without the configuration its weights can be loaded, but it is not known how to apply them: then
    the spec has a `device_batch` of 0.

    Args:
      config: what took effect in its run, as its `config.json` has it; {} where that is not there.
      initial_weights: as `TrainingRecord` has them.
      name: of the checkpoint, for messages.

    Raises:
      UserError: the metadata is not that of a run.
    """
    try:
        network, classes = metadata["model"], tuple(metadata["classes"])
        preprocessing = dict(metadata["preprocessing"])
        mpp = preprocessing.pop("mpp", None)
        size = tuple(network["image_size"])
        architecture = network["name"]
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in network["options"].items()}
        options = settled_options(architecture, size, options)
        preprocessing |= {"target_mpp" if config.get("target_mpp") else "seen_mpp": mpp}
        stored = Preprocessing.from_dict(preprocessing)
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{name} is not that of a run: its metadata.json does not name model, classes and "
            "preprocessing"
        ) from error
    try:
        batch, parts = config.get("batch_size", 0), config.get("accumulation_steps", 1)
        device_batch = -(-batch // parts) * parts
        native = config.get("ops", {}).get("native", "auto")
        regime = config.get("freeze", {}).get("regime", "")
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{name} lies in a run whose config.json is damaged ({type(error).__name__}: "
            f"{excerpt(error)}); restore it from a copy"
        ) from error
    return NetworkSpec(
        architecture=architecture,
        options=options,
        outputs=num_logits(len(classes)),
        classes=classes,
        image_size=size,
        preprocessing=stored,
        precision=config.get("precision", "float32"),
        native=native,
        symmetries=config.get("test_time_augmentation", False),
        device_batch=device_batch,
        trained_on=TrainingRecord(regime=regime, initial_weights=initial_weights),
    )


def spec_of_file(about: Mapping[str, Any]) -> NetworkSpec:
    """The spec of the metadata of our `.safetensors` file in format 1, which knows the preset and
    the window of a network, but neither its sizes nor that of its images."""
    preprocessing = dict(about["preprocessing"])
    options = {"preset": about["preset"]} if about["preset"] else {}
    return NetworkSpec(
        architecture=about["model"],
        options=options | about["settings"],
        outputs=0,
        classes=tuple(about["classes"]),
        image_size=(0, 0),
        preprocessing=Preprocessing.from_dict(
            preprocessing | {"seen_mpp": preprocessing.get("mpp")}
        ),
    )
