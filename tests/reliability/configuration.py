"""Values of the configuration, in a script and on a command line."""

import math
import pathlib
from typing import Any

from glomjax.cli.configuration import apply_overrides, load_config
from glomjax.training import default_config
from glomjax.training.config_checks import read_config
from reliability.situations import Answer, Case, command

HEADING = "Configurations"


def fields(**values: Any):
    """Fields of a configuration, with `__` for the dot between sections."""

    def answer(folder: pathlib.Path) -> Answer:
        config = default_config()
        with config.ignore_type(), config.unlocked():
            for key, value in values.items():
                *sections, name = key.split("__")
                part = config
                for section in sections:
                    part = part[section]
                part[name] = value
        read_config(config)
        return Answer("raw", f"{values} is taken")

    return answer


def removed(name: str):
    def answer(folder: pathlib.Path) -> Answer:
        config = default_config()
        with config.unlocked():
            del config[name]
        read_config(config)
        return Answer("raw", "it is taken")

    return answer


def options(name: str = "davit_tiny", *, size: tuple[int, int] = (96, 96), **values: Any):
    """Options of a network."""
    return fields(model__name=name, image_size=size, model__options=values)


def line(*texts: str, config: str = "alexnet_mini"):
    """A command line of a training, whose data is not there."""
    return lambda folder: command(
        "train", "--config", config, f"--config.data.source={folder}/patches", *texts
    )


def taken(key: str, *texts: str, config: str = "alexnet_mini"):
    """What a field becomes by the texts that a command line gives."""

    def answer(folder: pathlib.Path) -> Answer:
        given = [(text.partition("=")[0], text.partition("=")[2]) for text in texts]
        value = read_config(apply_overrides(load_config(config), given))
        for part in key.split("."):
            value = getattr(value, part)
        return Answer("read", f"{key} is {value!r}")

    return answer


def file(text: str, *more: str):
    """A configuration in a file of the user's own."""

    def answer(folder: pathlib.Path) -> Answer:
        (folder / "mine.py").write_text(text)
        return command("train", "--config", "mine.py", *more)

    return answer


def planned(*texts: str):
    """What `inspect` says of the same command line, without a step."""
    config, *more = texts
    return lambda folder: command(
        "inspect", config, *(SMALL if config.startswith("davit") else ()), *more, part=" "
    )


SMALL = [
    f"--config.model.options.{option}"
    for option in ("depths=(1,1)", "embed_dims=(8,16)", "num_heads=(1,2)")
]
OWN = "from glomjax.training import default_config\ndef get_config():\n"

CASES = [
    Case("a field that does not exist", fields(learning_rat=1e-3)),
    Case("a field in a section that does not exist", fields(data__sorce="patches")),
    Case("a field that is missing", removed("seed")),
    Case("a section that was replaced by a value", fields(data=3)),
    Case("a text for a number", fields(batch_size="16")),
    Case("a number for a text", fields(optimizer=3)),
    Case("a float for a whole number", fields(batch_size=16.5)),
    Case("a truth value for a number", fields(batch_size=True)),
    Case("NaN", fields(learning_rate=math.nan)),
    Case("infinity", fields(clip_norm=math.inf)),
    Case("None", fields(batch_size=None)),
    Case("a learning rate of 0", fields(learning_rate=0.0)),
    Case("a negative learning rate", fields(learning_rate=-1e-3)),
    Case("a batch of 0 images", fields(batch_size=0)),
    Case("a training of 0 epochs", fields(num_epochs=0)),
    Case("a negative seed", fields(seed=-1)),
    Case("a seed of 2^63", fields(seed=2**63)),
    Case("a seed of the splits of 2^63", fields(data__split_seed=2**63)),
    Case("2^31 folds", fields(data__folds=2**31)),
    Case("a fold without folds", fields(data__fold=1)),
    Case("shares that sum to 2", fields(data__fractions=(1.0, 0.5, 0.5))),
    Case("a class that is named twice", fields(data__classes=("a", "a"))),
    Case("a class as a number", fields(data__classes=(0, 1))),
    Case("images of 16 x 16 pixels", fields(image_size=(16, 16))),
    Case("images of one side", fields(image_size=(280,))),
    Case("images with sides that are floats", fields(image_size=(280.0, 280.0))),
    Case("images of a million pixels a side", fields(image_size=(1_000_000, 1_000_000))),
    Case("a momentum of 1", fields(momentum=1.0)),
    Case("a negative weight decay", fields(weight_decay=-0.1)),
    Case("a weight decay with the optimizer adam", fields(weight_decay=0.1)),
    Case("an optimizer that does not exist", fields(optimizer="lion")),
    Case("a schedule that does not exist", fields(schedule="linear")),
    Case("a precision that does not exist", fields(precision="float16")),
    Case("a warm-up that is longer than the training", fields(warmup_epochs=5, num_epochs=5)),
    Case("a negative warm-up", fields(warmup_epochs=-1)),
    Case("accumulation over 0 parts", fields(accumulation_steps=0)),
    Case("class weights with another separator", fields(class_weights="1;2")),
    Case("a rule of the threshold that does not exist", fields(decision__threshold="best")),
    Case(
        "a threshold at a stated sensitivity in percent",
        fields(decision__threshold="sensitivity=95"),
    ),
    Case("a layer decay above 1", fields(layer_decay=1.5)),
    Case("a rule that is no pair", fields(learning_rate_rules=("head",))),
    Case("a rule that is no regular expression", fields(learning_rate_rules=(("(", 1.0),))),
    Case("a rule with a negative factor", fields(weight_decay_rules=((".*", -1.0),))),
    Case("a patience of 0", fields(early_stopping__patience=0)),
    Case("a metric that is not monitored", fields(early_stopping__monitor="val_f1")),
    Case("a plateau factor of 1", fields(plateau__factor=1.0)),
    Case("a negative spacing", fields(target_mpp=-0.5)),
    Case("a spacing in nanometres for all images", fields(data__mpp=250.0)),
    Case("a negative memory for images", fields(data__cache_gib=-1.0)),
    Case("a resize that does not exist", fields(resize="letterbox")),
    Case("a stain normalisation that does not exist", fields(stain_normalization="vahadane")),
    Case("an augmentation that does not exist", fields(augmentation__preset="strong")),
    Case("an augmentation beyond its range", fields(augmentation__rotation=500.0)),
    Case("a checkpoint every 0 minutes", fields(checkpoint_minutes=0.0)),
    Case("a negative number of devices", fields(devices=-1)),
    Case("a regime that does not exist", fields(freeze__regime="half")),
    Case("an unfreezing without a regime", fields(freeze__unfreeze=("5",))),
    Case("an unfreezing as a number", fields(freeze__unfreeze=(5,))),
    Case("a network that does not exist", fields(model__name="resnet50")),
    Case("an option that the network does not have", options(dropout=0.5)),
    Case("depths=None", options(depths=None)),
    Case("depths that are floats", options(depths=(1.5, 2.5))),
    Case("depths of a thousand million blocks", options(depths=(10**9, 1, 1, 1))),
    Case("depths and widths of different lengths", options(depths=(1, 1))),
    Case("widths of 0", options(depths=(1, 1), embed_dims=(0, 0), num_heads=(1, 1))),
    Case(
        "heads that do not divide the width",
        options(depths=(1, 1), embed_dims=(10, 20), num_heads=(3, 4)),
    ),
    Case("a window larger than the images' map", options(window_size=100)),
    Case("a window of -1", options(window_size=-1)),
    Case("a drop rate of 1", options(drop_path_rate=1.0)),
    Case("a preset that does not exist", options(preset="torch")),
    Case("a line break in the name of the source", fields(data__source="patches\nmore")),
    Case("an unknown field on the command line", line("--config.learning_rat=1e-3")),
    Case("a field that other libraries call otherwise", line("--config.lr=1e-3")),
    Case("an option without --config in front", line("--epochs=5")),
    Case("an option without dashes", line("config.batch_size=16")),
    Case("a field without a value", line("--config.batch_size")),
    Case("a section as a field", line("--config.data=patches")),
    Case("a word for a number", line("--config.batch_size=many")),
    Case("a number with a comma behind it", line("--config.learning_rate=1e-4,")),
    Case("a list without quotes", line("--config.data.classes=('other' 'glomerulus'")),
    Case("an image size of one number", taken("image_size", "image_size=64")),
    Case("an image size twice", line("--config.image_size=(64,64)", "--config.image_size=96")),
    Case(
        "an image size that is given in two options",
        taken("image_size", "image_size=(64,64)", "image_size=(96,96)"),
    ),
    Case("classes with a comma between them", taken("data.classes", "data.classes=a,b")),
    Case("classes in two options", taken("data.classes", "data.classes=a", "data.classes=b")),
    Case("a field twice, of which the last one counts", taken("seed", "seed=1", "seed=2")),
    Case(
        "a network's option that is not in the configuration",
        taken("model.options", "model.options.window_size=7", config="davit:scratch"),
    ),
    Case("no configuration", lambda folder: command("train")),
    Case(
        "a configuration that does not exist", lambda folder: command("train", "--config", "davit2")
    ),
    Case(
        "a mode of a configuration without modes",
        lambda folder: command("train", "--config", "alexnet_mini:scratch"),
    ),
    Case("a mode that does not exist", lambda folder: command("train", "--config", "davit:frozen")),
    Case("a configuration file without get_config", file("x = 1\n")),
    Case("a configuration file with a mistake", file(OWN + "    return default_confg()\n")),
    Case("a configuration file that is no Python", file("def get_config()\n    return 1\n")),
    Case("a configuration file that returns a dictionary", file(OWN + "    return {'seed': 1}\n")),
    Case("a regime that needs weights, and none", line("--config.freeze.regime=full")),
    Case("random values, and weights", line("--config.pretrained.source=weights.h5")),
    Case(
        "weights that standardised pixels do not go with",
        line(
            "--config.pretrained.source=weights.h5",
            "--config.freeze.regime=full",
            "--config.preprocessing=standardize",
        ),
    ),
    Case(
        "a freezing rule that matches nothing",
        planned(
            "davit:scratch",
            "--config.freeze.regime=rules",
            "--config.freeze.rules=(('nothing.*','frozen'),('.*','trainable'))",
        ),
    ),
    Case(
        "freezing rules that leave parameters out",
        planned(
            "davit:scratch",
            "--config.freeze.regime=rules",
            "--config.freeze.rules=(('head/.*','trainable'),)",
        ),
    ),
    Case(
        "freezing rules that freeze everything",
        planned(
            "davit:scratch",
            "--config.freeze.regime=rules",
            "--config.freeze.rules=(('.*','frozen'),)",
        ),
    ),
    Case(
        "a freezing rule with another word",
        planned(
            "davit:scratch",
            "--config.freeze.regime=rules",
            "--config.freeze.rules=(('.*','thawed'),)",
        ),
    ),
    Case(
        "freezing rules without the regime rules",
        planned(
            "davit:scratch",
            "--config.freeze.rules=(('.*','frozen'),)",
        ),
    ),
    Case(
        "a cut without the regime partial",
        planned(
            "davit:scratch",
            "--config.freeze.until=stem",
        ),
    ),
    Case(
        "a cut at a block that does not exist",
        planned(
            "davit:scratch",
            "--config.freeze.regime=partial",
            "--config.freeze.until=stages/9",
        ),
    ),
    Case(
        "a network without a published cut",
        planned(
            "alexnet_mini",
            "--config.freeze.regime=partial",
        ),
    ),
    Case(
        "an unfreezing that thaws nothing",
        planned(
            "davit:scratch",
            "--config.freeze.unfreeze=('3:head_only',)",
        ),
    ),
    Case(
        "unfreezings out of order",
        planned(
            "davit",
            "--config.freeze.regime=head_only",
            "--config.freeze.unfreeze=('5:partial','3:full')",
        ),
    ),
]
