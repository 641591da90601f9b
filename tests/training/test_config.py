"""The configuration: the published recipe, and one sentence for each wrong value."""

import dataclasses
import functools
import importlib.util
import pathlib

import pytest

from glomjax.errors import UserError
from glomjax.preprocessing.augmentation import PRESETS, Augmentation
from glomjax.training import default_config
from glomjax.training.config import FreezeConfig, RunConfig
from glomjax.training.config_changes import changes
from glomjax.training.config_checks import read_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def load(name: str, *arguments: str):
    """What `get_config` of a file in `configs/` gives."""
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def changed(key: str, value):
    """The default configuration with one field set, whatever its type."""
    config = default_config()
    *sections, field = key.split(".")
    part = functools.reduce(lambda part, name: part[name], sections, config)
    with config.ignore_type(), config.unlocked():
        part[field] = value
    return config


ALL = [(name,) for name in sorted(p.stem for p in CONFIGS.glob("*.py"))] + [("davit", "scratch")]


@pytest.mark.parametrize("arguments", ALL, ids=":".join)
def test_every_shipped_config_is_valid_and_holds_the_published_recipe(arguments):
    config = load(*arguments)
    read_config(config)
    assert tuple(config.image_size) == (280, 280)
    assert config.num_epochs == 1000
    for section in (config.early_stopping, config.plateau):
        assert (section.monitor, section.min_delta) == ("val_loss", 0.0)
    assert config.early_stopping.patience == 7
    plateau = config.plateau
    assert (plateau.factor, plateau.patience, plateau.min_lr) == (0.5, 3, 1e-5)


@pytest.mark.parametrize(
    ("name", "learning_rate", "standardizes", "regime"),
    [
        ("alexnet_mini", 1e-4, True, "scratch"),
        ("googlenet", 3e-4, True, "scratch"),
        ("davit", 1e-3, False, "partial"),
    ],
)
def test_each_network_has_its_own_learning_rate_and_preprocessing(
    name, learning_rate, standardizes, regime
):
    config = read_config(load(name))
    assert config.batch_size == 32
    assert config.learning_rate == learning_rate
    assert (config.preprocessing, config.freeze.regime) == ("auto", regime)
    assert config.preparation_options()["standardize"] is standardizes


def test_davit_starts_from_imagenet_with_dropout():
    config = load("davit")
    assert config.model.to_dict() == {
        "name": "davit_tiny",
        "options": {
            "preset": "kecam",
            "window_size": 0,
            "drop_path_rate": 0.0,
            "dropout_rate": 0.3,
        },
    }
    assert config.pretrained.source == "auto"


def test_davit_from_random_values_has_its_own_recipe():
    config = load("davit", "scratch")
    assert config.freeze.regime == "scratch"
    assert config.pretrained.source == "auto"  # which the regime settles
    assert config.learning_rate == 3e-5
    assert config.batch_size == 8
    assert config.stratified_batches
    assert not load("davit").stratified_batches


def test_the_default_has_no_none_since_a_command_line_cannot_override_one():
    def leaves(part):
        for value in part.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    assert None not in list(leaves(default_config().to_dict()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lerning_rate", 1e-3, r"no configuration key 'lerning_rate'; did you mean learning_rate"),
        ("data.sorce", "x", r"'data.sorce'; did you mean data.source"),
        ("zzz", 1, r"'zzz'; known are accumulation_steps, "),
        ("batch_size", "many", r"batch_size is 'many'; it must be of type int"),
        ("batch_size", 8.0, r"batch_size is 8.0; it must be of type int"),
        ("batch_size", True, r"batch_size is True; it must be of type int"),
        ("learning_rate", "1e-3", r"learning_rate is '1e-3'; it must be of type float"),
        ("model", "davit_tiny", r"model is 'davit_tiny'; it is a section"),
        ("data.classes", "glomerulus", r"data.classes is 'glomerulus'.*type tuple"),
        ("learning_rate", float("nan"), r"learning_rate is nan; it must be a finite number"),
        ("early_stopping.min_delta", float("inf"), r"early_stopping.min_delta is inf"),
        ("model.options.dropout_rate", float("nan"), r"model.options.dropout_rate is nan"),
        ("batch_size", 0, r"batch_size is 0; it must be at least 1"),
        ("num_epochs", -1, r"num_epochs is -1; it must be at least 1"),
        ("learning_rate", 0.0, r"learning_rate is 0.0; it must be above 0"),
        ("demo.learning_rate", -1.0, r"demo.learning_rate is -1.0"),
        ("demo.image_size", (96, 8), r"demo.image_size is \(96, 8\)"),
        ("demo.batch_size", 0, r"demo.batch_size is 0"),
        ("seed", -1, r"seed is -1"),
        ("image_size", (280,), r"image_size is \(280,\); it must be of .* \(\(height, width\)"),
        ("image_size", (280, 16), r"image_size is \(280, 16\).*at least 32"),
        ("early_stopping.patience", 0, r"early_stopping.patience is 0; it must be at least 1"),
        ("early_stopping.monitor", "val_f1", r"early_stopping.monitor is 'val_f1'; choose one of"),
        ("plateau.factor", 1.0, r"plateau.factor is 1.0; it must be above 0 and below 1"),
        ("plateau.min_lr", -1e-5, r"plateau.min_lr is -1e-05; it must be at least 0"),
        ("data.cache_gib", -1.0, r"data.cache_gib is -1.0; it must be at least 0"),
        ("data.bits", 11, r"data.bits is 11; it is 8, 10, 12, 14, 16, or 0 for 16"),
        ("model.name", "resnet", r"model.name is 'resnet'; choose one of alexnet_mini"),
        ("preprocessing", "zscore", r"preprocessing is 'zscore'; choose one of"),
        ("freeze.regime", "half", r"freeze.regime is 'half'; choose one of"),
        ("optimizer", "rmsprop", r"optimizer is 'rmsprop'; choose one of adam, adamw, sgd"),
        ("optimizer", 1, r"optimizer is 1; it must be of type str"),
        ("schedule", "step", r"schedule is 'step'; choose one of plateau, cosine, constant"),
        ("precision", "float16", r"precision is 'float16'; choose one of float32, bfloat16"),
        ("weight_decay", 0.01, r"weight_decay is 0.01.*'adamw' or 'sgd', not with 'adam'"),
        ("weight_decay", -0.01, r"weight_decay is -0.01; it must be at least 0"),
        *(
            (name, value, rf"{name} is {value}; it must be at least 0 and below 1")
            for name in ("momentum", "ema_decay", "label_smoothing")
            for value in (-0.1, 1.0, 1.5)
        ),
        *(
            (name, float(value), rf"{name} is {value}; it must be a finite number")
            for name in (
                "momentum",
                "ema_decay",
                "label_smoothing",
                "clip_norm",
                "checkpoint_minutes",
                "weight_decay",
            )
            for value in ("nan", "inf")
        ),
        ("warmup_epochs", -1, r"warmup_epochs is -1; it must be at least 0"),
        ("warmup_epochs", 0.5, r"warmup_epochs is 0.5; it must be of type int"),
        ("warmup_epochs", 1000, r"warmup_epochs is 1000; it must be below num_epochs, 1000"),
        ("clip_norm", -1.0, r"clip_norm is -1.0; it must be at least 0"),
        ("devices", -1, r"devices is -1; it must be at least 0"),
        ("devices", True, r"devices is True; it must be of type int"),
        ("shard_params", 1, r"shard_params is 1; it must be of type bool"),
        ("accumulation_steps", 0, r"accumulation_steps is 0; it must be at least 1"),
        ("accumulation_steps", 2.0, r"accumulation_steps is 2.0; it must be of type int"),
        ("checkpoint_minutes", 0.0, r"checkpoint_minutes is 0.0; it must be above 0"),
        ("checkpoint_minutes", -5.0, r"checkpoint_minutes is -5.0; it must be above 0"),
        *(
            ("class_weights", text, rf"class_weights is '{text}'; it is 'none', 'balanced' or one")
            for text in ("", "equal", "1", "1,", ",1", "1;2", "1,-2", "1,nan", "1,inf", "1,2,x")
        ),
        ("class_weights", (1.0, 2.0), r"class_weights is \(1.0, 2.0\); it must be of type str"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_it(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        read_config(changed(key, value))
    assert "\n" not in str(error.value)


def nested(depth: int):
    value = ()
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        # Numbers that a run would take for others, or that no machine has room for.
        ("seed", 2**32, r"seed is 4294967296; it must be at least 0 and at most 4294967295"),
        ("seed", 2**63, r"seed is 9223372036854775808; "),
        ("seed", 10**5000, r"seed is a value of type int; "),
        ("data.split_seed", -1, r"data.split_seed is -1"),
        ("data.folds", 2**31, r"data.folds is 2147483648; it must be at least 0 and at most 1000"),
        ("data.folds", 1, r"at least 2 folds"),
        ("data.fold", 3, r"data.fold is 3, but data.folds is 0"),
        ("batch_size", 10**9, r"batch_size is 1000000000; .* at most 65536"),
        (
            "batch_size",
            65536,
            r"so that a batch has 5,138,022,400 pixels; .* at most 2,147,483,648",
        ),
        ("image_size", (10**9, 10**9), r"each at least 32 and at most 4096"),
        ("num_epochs", 10**12, r"num_epochs is 1000000000000; .* at most 1000000"),
        ("accumulation_steps", 33, r"accumulation_steps is 33; it must be at most batch_size, 32"),
        ("early_stopping.patience", 2**31, r"early_stopping.patience is 2147483648"),
        ("devices", 10**30, r"devices is 1000000"),
        (
            "learning_rate",
            1e308,
            r"learning_rate is 1e\+308; it must be 0 or between 1e-30 and 1e\+30",
        ),
        ("clip_norm", 1e-300, r"clip_norm is 1e-300; .*float32"),
        ("ema_decay", 1 - 1e-12, r"ema_decay is 0.999999999999; it must be at least 0 and below 1"),
        ("layer_decay", 1e-300, r"layer_decay is 1e-300"),
        ("layer_decay", 0.01, r"layer_decay is 0.01; it must be at least 0.1 and at most 1"),
        ("class_weights", "9" * 400 + ",1", r"class_weights is '9999"),
        ("class_weights", "0,0", r"class_weights is '0,0'; .* not all of them 0"),
        ("data.fractions", (0.7, 0.2), r"data.fractions is \(0.7, 0.2\): give three positive"),
        ("data.fractions", (0.7, 0.2, 0.2), r"that sum to 1"),
        ("data.fractions", (0.7, float("nan"), 0.1), r"data.fractions is .*, with nan; .* finite"),
        ("data.fractions", ("0.7", "0.2", "0.1"), r"must be of type tuple\[float, ...\]"),
        (
            "data.synthetic_size",
            "huge",
            r"data.synthetic_size is 'huge'; choose one of demo, large",
        ),
        # Values of other types.
        ("image_size", (64, True), r"image_size is \(64, True\); it must be of type tuple"),
        ("image_size", (64, 96.0), r"image_size is \(64, 96.0\)"),
        ("image_size", nested(100_000), r"image_size is \(\("),
        ("image_size", None, r"image_size is None"),
        ("data.classes", ("a", 1), r"data.classes is \('a', 1\)"),
        ("data.classes", ("a", "a"), r"each once"),
        ("data.classes", ("a",) * 5000, r"data.classes has 5000 entries; it can have at most 1000"),
        ("seed", {"a": 1}, r"seed is a: 1; it must be of type int"),
        ("seed", b"1", r"seed is b'1'"),
        # Texts that no path, no parameter and no terminal has.
        ("data.source", "a\nb", r"data.source is 'a\\nb'; a text has no line breaks"),
        ("data.source", "a\0b", r"data.source is 'a\\x00b'"),
        ("pretrained.source", "\ud800", r"pretrained.source is '\\ud800'"),
        ("freeze.until", "x" * 10**6, r"freeze.until is 'x+\.\.\.x+'; .* at most 4096 characters"),
        ("optimizer", "\x1b[2J", r"optimizer is '\\x1b\[2J'; choose one of"),
        # Rules and thaws.
        (
            "freeze.rules",
            ((".*", 1.0),),
            r"freeze.rules is .*must be of type tuple\[tuple\[str, str",
        ),
        ("freeze.rules", (("(", "frozen"),), r"freezing rule '\(' is no regular expression"),
        ("freeze.rules", (("a{99999999999}", "frozen"),), r"is no regular expression"),
        ("freeze.rules", (("(" * 4000, "frozen"),), r"is no regular expression"),
        ("learning_rate_rules", ((".*", True),), r"learning_rate_rules is"),
        ("learning_rate_rules", ((".*", -1.0),), r"learning rate rule '\.\*' says -1.0"),
        ("weight_decay_rules", ((".*", 1e308),), r"weight_decay_rules is .*, with 1e\+308"),
        ("log.trackers", ("mlfow",), r"log.trackers is \('mlfow',\); .* some of mlflow, wandb"),
        ("log.trackers", ("mlflow", "mlflow"), r"each once"),
        ("freeze.unfreeze", ("5:full:1e999",), r"freeze.unfreeze has '5:full:1e999'; write EPOCH"),
        ("freeze.unfreeze", ("99999999999:full",), r"an epoch from 2 .* to 1000000"),
        ("freeze.unfreeze", ("9" * 5000 + ":full",), r"freeze.unfreeze is .*at most 4096"),
        ("freeze.unfreeze", ("5:full:1e-300",), r"freeze.unfreeze has '5:full:1e-300'"),
        # Options: the network itself says what they may be.
        ("model.options.depths", None, r"option 'depths' is None; it must be of type tuple\[int"),
        ("model.options.depths", (1.5, 2.5), r"option 'depths' is \(1.5, 2.5\)"),
        ("model.options.depths", (10**9, 1, 1, 1), r"depths add up to at most 32"),
        ("model.options.depths", nested(100_000), r"model.options.depths is \(\("),
        ("model.options.window_size", 100, r"window_size is 100, but .* 280 x 280 is 70 x 70"),
        ("model.options.preset", "a\nb", r"model.options.preset is 'a\\nb'; a text has no line"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_an_absurd_value_is_refused_in_one_short_line_before_anything_is_read(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        read_config(changed(key, value))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_configuration_is_a_config_dict():
    with pytest.raises(UserError, match=r"the configuration is \{.*; it is a ConfigDict, such as"):
        read_config(default_config().to_dict())


@pytest.mark.parametrize("key", ["seed", "plateau.factor", "model.options"])
def test_a_missing_key_is_named(key):
    config = default_config()
    section, _, field = key.rpartition(".")
    with config.unlocked():
        del (config[section] if section else config)[field]
    with pytest.raises(UserError, match=f"lacks {key}"):
        read_config(config)


def test_whole_numbers_and_lists_pass_where_a_command_line_gives_them():
    read_config(changed("learning_rate", 1))
    read_config(changed("image_size", [64, 64]))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer", ("adam", "adamw", "sgd")),
        ("schedule", ("plateau", "cosine", "constant")),
        ("precision", ("float32", "bfloat16")),
        ("momentum", (0.0, 0.999, 0)),
        ("ema_decay", (0.0, 0.9999)),
        ("label_smoothing", (0.0, 0.1)),
        ("clip_norm", (0.0, 1.0, 1)),
        ("warmup_epochs", (0, 5)),
        ("accumulation_steps", (1, 4)),
        ("class_weights", ("none", "balanced", "1,2.5", "0.5,1,0")),
        ("devices", (0, 1)),
        ("shard_params", (False, True)),
        ("checkpoint_minutes", (0.01, 60)),
    ],
)
def test_every_value_that_a_run_can_have_passes(key, values):
    for value in values:
        read_config(changed(key, value))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_goes_with_the_optimizers_that_have_it(optimizer):
    config = changed("weight_decay", 0.05)
    config.optimizer = optimizer
    read_config(config)


def test_single_strengths_change_an_augmentation_preset():
    config = default_config()
    assert read_config(config).augment() == Augmentation()
    config.augmentation.stain = 0.2
    assert read_config(config).augment() == Augmentation(stain=0.2)
    config.augmentation.preset = "histology"
    config.augmentation.symmetries = 0.0
    changed = dataclasses.replace(PRESETS["histology"], stain=0.2, symmetries=0.0)
    assert read_config(config).augment() == changed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "augmentation.preset",
            "heavy",
            r"augmentation.preset is 'heavy'; choose one of none, hist",
        ),
        ("augmentation.crop", 1.0, r"augmentation's crop is 1.0, but must be at least 0 and below"),
        ("augmentation.hue", -0.5, r"augmentation's hue is -0.5, but must be from 0 to 0.5"),
        ("augmentation.blur", 1.0, r"no configuration key 'augmentation.blur'"),
    ],
)
def test_a_wrong_augmentation_is_one_sentence(key, value, message):
    with pytest.raises(UserError, match=message):
        read_config(changed(key, value))


def test_a_run_of_a_version_that_stored_no_defaults_keeps_those_of_its_time():
    before = RunConfig(learning_rate=1e-3, freeze=FreezeConfig(regime="full"))
    changed, kept = changes(before, None, RunConfig(), None)
    assert not changed
    assert set(kept) == {"freeze.regime", "learning_rate"}


def test_a_field_that_a_file_sets_itself_comes_before_the_demo_s_default():
    config = default_config()
    config.num_epochs, config.learning_rate, config.demo.learning_rate = 3, 1e-2, 1e-5
    settings = read_config(config).demo_settings()
    assert "num_epochs" not in settings
    assert (settings["learning_rate"], settings["batch_size"]) == (1e-5, 8)


@pytest.mark.parametrize(("name", "rate"), [("davit_tiny", 3e-5), ("googlenet", 3e-4)])
def test_without_a_rate_the_network_s_own_takes_effect_also_on_the_demo_data(name, rate):
    config = default_config()
    config.model.name = name
    given = read_config(config)
    settled = dataclasses.replace(given.settle(), **given.demo_settings())
    assert (settled.learning_rate, settled.batch_size) == (rate, 8)


@pytest.mark.parametrize("arguments", ALL, ids=":".join)
def test_all_that_a_shipped_config_says_of_the_demo_data_takes_effect(arguments):
    config = read_config(load(*arguments))
    assert dataclasses.replace(config, **config.demo_settings()) == dataclasses.replace(
        config, **vars(config.demo)
    )
