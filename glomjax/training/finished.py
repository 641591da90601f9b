"""A finished run, called again: whether it goes on, and whether its data are what they were."""

import dataclasses
import os

from glomjax import checkpoints
from glomjax.data.preparation import prepare_data
from glomjax.data.sources import ArraySplits
from glomjax.errors import UserError, argument
from glomjax.training.checkpointing import SavedRun
from glomjax.training.config import RunConfig
from glomjax.training.run_folder import RunFolder
from glomjax.training.setup import demo_settings, load_splits


def has_epochs_left(run: RunFolder, requested: RunConfig, arrays: ArraySplits | None) -> bool:
    """Whether a finished run whose epoch limit ended it is now given more epochs."""
    going_on = run.going_on(requested)
    if going_on is None:
        return False
    requested, config = going_on
    config = dataclasses.replace(config, **demo_settings(requested, config, arrays))
    if config.num_epochs <= run.read_json("test_metrics.json").get("epochs", 0):
        return False
    position = checkpoints.read_metadata(run.last)["position"]
    return not position["stop"] and position["epoch"] < config.num_epochs


def check_finished(run: RunFolder, requested: RunConfig, arrays: ArraySplits | None) -> str:
    """Sees to it that the data of a finished run are what they were.

    Returns:
      A line where they are not there any more, so that it is not known, else "".

    Raises:
      UserError: they have changed.
    """
    config = run.effective()
    before, source = config.data.source, requested.data.source
    try:
        allow_outside = requested.data.allow_outside
        data = dataclasses.replace(config.data, source=source, allow_outside=allow_outside)
        splits = load_splits(data, arrays, run.kept_splits())
        if not splits.content:
            saved = SavedRun({}, checkpoints.read_metadata(run.best))
            splits = prepare_data(
                splits,
                config.image_size,
                resize=config.resize,
                target_mpp=config.target_mpp,
                bits=config.data.bits,
                decoding=saved.decoding,
                skip_unreadable=config.data.skip_unreadable,
            ).splits
        digest = splits.digest()
    except UserError as error:
        if source == before and arrays is None and not os.path.exists(os.path.expanduser(source)):
            return (
                "whether the data of this finished run have changed is not known, since they are "
                f"not there any more: {error}"
            )
        moved = f", which read {before!r}" if source != before else ""
        raise UserError(
            f"the data as they are read now are not those of the finished run in '{run.path}'"
            f"{moved}: {str(error).rstrip('.')}; restore them, or name another folder with "
            f"{argument('--workdir')}"
        ) from error
    run.check_data(digest, source)
    return ""
