"""DaViT-T from ImageNet weights, partly frozen: the published recipe.

    python main.py --config configs/davit.py --config.data.source=FOLDER

From random values, without pretrained weights, and so with its own learning rate:

    python main.py --config configs/davit.py:scratch --config.data.source=FOLDER

At the published 1e-3 a DaViT-T that starts from random values does not hold: its loss stays at
ln 2. Nor does it at 3e-4, with or without a warm-up (120 to 240 steps of 8 images were tried); 1e-4
learns, 3e-5 and 1e-5 learn more slowly. `config.demo`, by which the embedded demo data is trained
where there are no weights, has that rate and small batches, since ten minutes on two cores are some
1000 images, and a DaViT needs steps more than it needs large batches.
"""

from glomjax.training import default_config


def get_config(mode: str = "pretrained"):
    config = default_config()
    config.model.name = "davit_tiny"
    config.model.options.preset = "kecam"
    config.model.options.window_size = 0  # 0: the preset's
    config.model.options.drop_path_rate = 0.0
    config.model.options.dropout_rate = 0.3
    config.pretrained.source = "auto"
    config.freeze.regime = "partial"
    config.demo.learning_rate = 1e-4
    config.demo.batch_size = 4
    config.demo.num_epochs = 2
    if mode == "scratch":
        config.freeze.regime = "scratch"
        config.learning_rate = 1e-4
    elif mode != "pretrained":
        raise ValueError(f"configs/davit.py has no mode {mode!r}; use pretrained or scratch")
    return config
