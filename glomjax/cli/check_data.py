"""`glomjax check-data`: what is in a data source, before any training."""

import argparse
import dataclasses
import os

from glomjax.cli.command import Parser, add_allow_outside, print_text
from glomjax.cli.configuration import Override, apply_overrides, config_names, load_config
from glomjax.errors import UserError

HELP = "report what is in a data source and what would make a result on it worthless"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s [-h] [SOURCE] [--config CONFIG] [--config.KEY=VALUE ...] [options]"
    parser.description = f"{HELP[0].upper()}{HELP[1:]}."
    parser.epilog = (
        "The exit code is 0 where training with this configuration accepts the source and 2 where\n"
        "it refuses it, but for what concerns initial weights.\n\n"
        "examples:\n"
        "  %(prog)s patches --out check --augment histology\n"
        "  %(prog)s patches --config alexnet_mini --config.data.split_by=site"
    )
    parser.add_argument(
        "source",
        nargs="?",
        default="",
        metavar="SOURCE",
        help="folder, CSV or TSV manifest, tfds:NAME, or synthetic; by default the configuration's",
    )
    parser.add_argument(
        "--config",
        default="",
        metavar="CONFIG",
        help="the configuration of the run to come, as in train: a file, or one of the names "
        f"{', '.join(config_names())}; by default that of the package",
    )
    parser.add_argument(
        "--out",
        default="",
        type=os.path.expanduser,
        metavar="FOLDER",
        help="write check.txt and contact_sheet.png there",
    )
    parser.add_argument(
        "--augment", default="", metavar="PRESET", help="write augmented.png there, too"
    )
    add_allow_outside(parser)
    parser.takes_overrides = True


def run(arguments: argparse.Namespace) -> int:
    from glomjax.data.checking import check_data
    from glomjax.data.checking.contact_sheet import prepare_folder, write_sheets, write_text
    from glomjax.training.config import default_config
    from glomjax.training.config_checks import read_config
    from glomjax.training.optimizers import class_weights

    overrides: list[Override] = list(arguments.overrides)
    if arguments.source:
        overrides.append(("data.source", arguments.source))
    if arguments.allow_outside:
        overrides.append(("data.allow_outside", None))
    base = load_config(arguments.config) if arguments.config else default_config()
    config = read_config(apply_overrides(base, overrides))
    if config.takes_demo_settings:
        config = dataclasses.replace(config, **config.demo_settings())
    source = os.path.expanduser(config.data.source)
    if not (arguments.source or arguments.config or arguments.overrides):
        raise UserError("no source is named; give a folder, a manifest, tfds:NAME or synthetic")
    out, preset = arguments.out, arguments.augment
    if out:
        prepare_folder(out, source, preset)
    elif preset:
        raise UserError(f"--augment {preset} draws a sheet: give --out FOLDER for it")
    report = check_data(source, **config.preparation_options(), **config.data.source_options())
    if report.accepted and report.examples is not None:
        try:
            class_weights(config.class_weights, report.examples.labels, len(report.classes))
        except UserError as error:
            report.add("error", "classes", str(error))
    if out and report.images is not None:
        report.sheets = write_sheets(out, report.images, report.classes, preset)
    text = report.text()
    if out:
        write_text(out, text)
    print_text(text)
    return 0 if report.accepted else 2
