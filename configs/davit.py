"""DaViT-T from ImageNet weights, partly frozen: the published recipe.

    python main.py --config configs/davit.py --config.data.source=FOLDER

From random values, without pretrained weights:

    python main.py --config configs/davit.py:scratch --config.data.source=FOLDER
"""

from glomjax.training import default_config


def get_config(mode: str = "pretrained"):
    config = default_config()
    config.model.name = "davit_tiny"
    config.model.options.preset = "kecam"
    config.model.options.dropout_rate = 0.3
    config.pretrained.source = "auto"
    config.freeze.regime = "partial"
    config.demo.learning_rate = 1e-4
    config.demo.batch_size = 8
    config.demo.num_epochs = 5
    if mode == "scratch":
        config.freeze.regime = "scratch"
        config.learning_rate = 1e-4
    elif mode != "pretrained":
        raise ValueError(f"configs/davit.py has no mode {mode!r}; use pretrained or scratch")
    return config
