"""DaViT-T from ImageNet weights, partly frozen: the published recipe.

    glomjax train --config davit --config.data.source=FOLDER

From random values, without pretrained weights, and so with its own learning rate:

    glomjax train --config davit:scratch --config.data.source=FOLDER

At the published 1e-3 a DaViT-T that starts from random values does not hold: its loss stays at
ln 2, as it does at 3e-4 with or without a warm-up. What learns: 3e-5, Glorot's initial values, many
small steps, and batches of 8 that hold the classes in their shares (with plain shuffling, or at
1e-4, the loss hovered about ln 2 several times as long, in one run of each; `docs/results.md`).
`config.demo`, by which the embedded demo data is trained where there are no weights, also takes
the patches at 96 x 96: ten minutes on two cores are then some 800 steps, at 280 x 280 they would be
100.
"""

from glomjax.training import default_config


def get_config(mode: str = "pretrained"):
    config = default_config()
    config.model.name = "davit_tiny"
    config.model.options.preset = "kecam"
    config.model.options.window_size = 0  # 0: the preset's
    config.model.options.drop_path_rate = 0.0
    config.model.options.dropout_rate = 0.3
    config.learning_rate = 1e-3
    config.pretrained.source = "auto"
    config.freeze.regime = "partial"
    config.demo.image_size = (96, 96)
    config.demo.batch_size = 8
    config.demo.stratified_batches = True
    config.demo.num_epochs = 9
    config.demo.learning_rate = 3e-5
    if mode == "scratch":
        config.freeze.regime = "scratch"
        config.learning_rate = 3e-5
        config.batch_size = 8
        config.stratified_batches = True
    elif mode != "pretrained":
        raise ValueError(f"davit has no mode {mode!r}; use pretrained or scratch")
    return config
