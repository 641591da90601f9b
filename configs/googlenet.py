"""GoogLeNet from scratch, with auxiliary classifiers in training.

    glomjax train --config googlenet --config.data.source=FOLDER

The published recipe but for two things: each channel is standardised by the training images, which
`config.preprocessing=auto` means for this network, and the learning rate is 3e-4
(`--config.learning_rate=1e-3` is the published one).
"""

from glomjax.training import default_config


def get_config():
    config = default_config()
    config.model.name = "googlenet"
    config.model.options.preset = "notebook"
    config.model.options.aux_heads = True
    config.learning_rate = 3e-4
    config.freeze.regime = "scratch"
    # The embedded demo data at half the resolution: three minutes on two cores are then 270 steps.
    config.demo.image_size = (140, 140)
    config.demo.batch_size = 8
    config.demo.stratified_batches = True
    config.demo.num_epochs = 3
    config.demo.learning_rate = 3e-4
    return config
