"""Configurations by path and by name, and fields that the command line sets."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from glomjax.cli.configuration import (
    ALIASES,
    apply_overrides,
    config_names,
    is_config,
    load_config,
    split_overrides,
)
from glomjax.errors import UserError
from glomjax.training.config_checks import read_config

ROOT = pathlib.Path(__file__).parents[2]


def changed(*arguments: str, config: str = "davit"):
    """The settled configuration of a command line."""
    overrides, others = split_overrides(arguments)
    assert others == []
    return read_config(apply_overrides(load_config(config), overrides))


# --- which file


def test_a_name_is_found_from_anywhere_and_gives_what_its_path_gives(home):
    assert config_names() == ["alexnet_mini", "davit", "googlenet"]
    for name in config_names():
        assert load_config(name) == load_config(str(ROOT / "configs" / f"{name}.py"))
    assert load_config("davit:scratch") != load_config("davit")


def test_names_are_found_where_the_package_is_installed(home):
    # As `pip install .` puts them: in the package, with nothing beside it.
    shutil.copytree(ROOT / "glomjax", "installed/glomjax")
    shutil.copytree(ROOT / "configs", "installed/glomjax/configs")
    script = "from glomjax.cli import configuration as c; print(c.__file__, *c.config_names())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, 'installed'); {script}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "installed" in out.split()[0]
    assert out.split()[1:] == config_names()


def test_a_file_comes_before_a_name(home):
    shutil.copy(ROOT / "configs" / "googlenet.py", "davit")
    assert load_config("davit").model.name == "googlenet"
    shutil.copy("davit", "mine.py")
    assert load_config("~/mine.py").model.name == "googlenet"


def test_a_folder_of_a_configuration_s_name_is_a_source_of_weights(home):
    assert is_config("davit")
    assert is_config("nothing.py")
    (home / "davit").mkdir()
    assert not is_config("davit")
    assert is_config("davit:scratch")
    assert not is_config("runs/davit")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def get_config(:\n    pass\n", "raises SyntaxError"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("x = 1\n", "has no get_config"),
        ("def get_config():\n    raise ValueError('first\\nsecond')\n", r"ValueError \(second\)"),
        ("def get_config():\n    return {}\n", "returns dict"),
    ],
    ids=["syntax", "import", "no get_config", "two lines", "no ConfigDict"],
)
def test_a_broken_file_is_one_sentence(home, text, part):
    (home / "broken.py").write_text(text)
    with pytest.raises(UserError, match=f"configuration 'broken.py'.*{part}"):
        load_config("broken.py")


# --- which fields


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--config.batch_size=16"], "batch_size", 16),
        (["--config.batch_size", "16"], "batch_size", 16),
        (["--config.batch_size=16", "--config.batch_size=4"], "batch_size", 4),
        (["--config.learning_rate=1"], "learning_rate", 1.0),
        (["--config.augmentation.hue", "-1"], "augmentation.hue", -1.0),
        (["--config.shard_params=True"], "shard_params", True),
        (["--config.shard_params=1"], "shard_params", True),
        (["--config.shard_params"], "shard_params", True),
        (["--config.freeze.cache_features", "false"], "freeze.cache_features", False),
        (["--config.data.source=a=b c"], "data.source", "a=b c"),
        (["--config.data.source="], "data.source", ""),
        (["--config.image_size=(96, 64)"], "image_size", (96, 64)),
        (["--config.image_size=96,64"], "image_size", (96, 64)),
        (["--config.image_size=[96, 64]"], "image_size", (96, 64)),
        (["--config.data.classes=('a','b')"], "data.classes", ("a", "b")),
        (["--config.data.classes=not tumour, tumour"], "data.classes", ("not tumour", "tumour")),
        (["--config.data.classes=a", "--config.data.classes=b"], "data.classes", ("a", "b")),
        (["--config.data.classes=a,b", "--config.data.classes=c,d"], "data.classes", ("c", "d")),
        (["--config.data.classes=0,1"], "data.classes", ("0", "1")),
        (["--config.data.fractions=0.7,0.2,0.1"], "data.fractions", (0.7, 0.2, 0.1)),
        (["--config.image_size=64"], "image_size", (64, 64)),
        (["--config.image_size=64,96", "--config.image_size=96,64"], "image_size", (96, 64)),
        (["--config.data.classes="], "data.classes", ()),
        (["--config.freeze.unfreeze=5:full"], "freeze.unfreeze", ("5:full",)),
        (
            ["--config.freeze.unfreeze=5:full,9:full:0.1"],
            "freeze.unfreeze",
            ("5:full", "9:full:0.1"),
        ),
        (
            [
                "--config.freeze.rules=('.*/bias','frozen')",
                "--config.freeze.rules=('.*','trainable')",
            ],
            "freeze.rules",
            ((".*/bias", "frozen"), (".*", "trainable")),
        ),
        (
            ["--config.freeze.rules=(('head/.*','trainable'),('.*','frozen'))"],
            "freeze.rules",
            (("head/.*", "trainable"), (".*", "frozen")),
        ),
        (["--config.class_weights=1,2.5"], "class_weights", "1,2.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_text_is_read_by_the_type_of_its_field(arguments, field, value):
    config = changed(*arguments)
    for name in field.split("."):
        config = getattr(config, name)
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dropout_rate=0", 0.0),
        ("window_size=9", 9),
        ("window_size=(9,12)", (9, 12)),
        ("preset=msft", "msft"),
        ("head_norm_first=True", True),  # not in the file: the network knows it
        ("depths=(1,1,9,1)", (1, 1, 9, 1)),
    ],
)
def test_the_network_s_options_can_be_set(argument, value):
    options = changed(f"--config.model.options.{argument}").model.options
    assert options[argument.partition("=")[0]] == value


def test_options_belong_to_the_network_that_is_chosen(home):
    arguments = ["--config.model.options.aux_heads=False", "--config.model.name=googlenet"]
    assert changed(*arguments, config="alexnet_mini").model.options["aux_heads"] is False


def test_another_network_leaves_the_options_of_the_file(home):
    assert changed("--config.model.name=googlenet").model.options == {}
    assert changed("--config.model.name=davit_small").model.options["dropout_rate"] == 0.3


@pytest.mark.parametrize("second", ["96", "64,96"])
def test_two_sizes_of_which_one_may_be_meant_are_refused(second):
    with pytest.raises(
        UserError, match="image_size is given 2 times, as '64', '.*; give all of it once"
    ):
        changed("--config.image_size=64", f"--config.image_size={second}")


def test_what_the_command_line_says_holds_on_the_demo_data_too():
    config = changed("--config.num_epochs=3", "--config.batch_size=32", "--config.image_size=64")
    settings = {"num_epochs": 3, "batch_size": 32, "image_size": (64, 64)}
    assert config.demo_settings() == load_config("davit").demo.to_dict() | settings
    # Unless it says something of its own for them.
    config = changed("--config.num_epochs=3", "--config.demo.num_epochs=5")
    assert (config.num_epochs, config.demo_settings()["num_epochs"]) == (3, 5)


def test_the_configuration_itself_stays_as_it_is():
    before = load_config("davit")
    apply_overrides(before, [("batch_size", "3"), ("model.options.dropout_rate", "0.9")])
    assert before == load_config("davit")


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("lr=1e-3", "no --config.lr; did you mean --config.learning_rate"),
        ("lerning_rate=1", "mean --config.learning_rate"),
        ("epochs=3", "mean --config.num_epochs"),
        ("num_epoch=3", "mean --config.num_epochs"),
        ("patience=3", "mean --config.early_stopping.patience"),
        ("data.sorce=x", "mean --config.data.source"),
        ("pretrained.sorce=x", "mean --config.pretrained.source"),
        ("data.batch_size=3", "mean --config.batch_size"),
        ("dropout=0.5", "mean --config.model.options.dropout_rate"),
        ("model.options.width=3", "known are --config.model.options.dropout_rate"),
        ("zzz=1", "--help"),
        ("data=patches", "config.data is a section; .* --config.data.allow_outside"),
        ("model.options=3", "config.model.options is a section"),
        ("batch_size=many", "batch_size is 'many'; it must be of type int"),
        ("batch_size=8.5", "batch_size is '8.5'; it must be of type int"),
        ("batch_size", "--config.batch_size has no value"),
        ("learning_rate=fast", "learning_rate is 'fast'; it must be of type float"),
        ("shard_params=maybe", "shard_params is 'maybe'; it must be of type bool"),
        ("data.classes=('a", "no Python literal"),
        ("data.classes=(a,b)", "put its texts in quotes"),
        ("image_size=64x96", "image_size is \\('64x96',\\); it must be of type tuple"),
        ("image_size=1,2,3", "image_size is \\(1, 2, 3\\)"),
        ("image_size=" + "9" * 5000, "image_size is \\('9+\\.\\.\\.9+',\\)"),
        ("data.fractions=70%,15%,15%", "data.fractions is \\('70%', '15%', '15%'\\)"),
        ("data.classes=" + "(" * 10**5, "data.classes is '\\(+\\.\\.\\."),
        ("batch_size=" + "9" * 5000, "batch_size is '9+\\.\\.\\.9+'; it must be of type int"),
        ("x" * 10**6 + "=1", "there is no --config.x+\\.\\.\\.x+; the verb train"),
        ("model.options.dropout_rate=high", "dropout_rate is 'high'; it must be of type float"),
    ],
)
def test_a_mistake_names_what_was_meant(argument, parts):
    with pytest.raises(UserError, match=parts):
        changed(f"--config.{argument}", config="alexnet_mini")


@pytest.mark.parametrize("alias", ALIASES)
def test_the_name_in_another_library_leads_to_the_field(alias):
    hint = f"no --config.{alias}; did you mean --config.{ALIASES[alias]}$"
    with pytest.raises(UserError, match=hint):
        apply_overrides(load_config("davit"), [(alias, "1")])


def test_other_arguments_stay_in_their_order():
    overrides, others = split_overrides(["a", "--x", "--config.seed=1", "b", "--config", "davit"])
    assert overrides == [("seed", "1")]
    assert others == ["a", "--x", "b", "--config", "davit"]
