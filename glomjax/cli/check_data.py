"""`glomjax check-data`: what is in a data source, before any training."""

import argparse
import os

from glomjax.cli.command import Parser, print_text
from glomjax.errors import UserError

HELP = "report what is in a data source and what would make a result on it worthless"


def add_arguments(parser: Parser) -> None:
    parser.description = f"{HELP[0].upper()}{HELP[1:]}."
    parser.epilog = (
        "The exit code is 0 where training accepts the source and 2 where it refuses it,\n"
        "with these options and the default configuration for the rest.\n\n"
        "example:\n  %(prog)s patches --out check --augment histology"
    )
    parser.add_argument(
        "source",
        type=os.path.expanduser,
        help="folder, CSV or TSV manifest, tfds:NAME, or synthetic",
    )
    parser.add_argument("--classes", nargs=2, default=(), metavar=("NEGATIVE", "POSITIVE"))
    same = parser.add_argument_group("as in training")
    same.add_argument("--split-seed", type=int, default=0, metavar="N", help="data.split_seed")
    same.add_argument("--split-by", default="patient", metavar="KIND", help="data.split_by")
    same.add_argument("--folds", type=int, default=0, metavar="N", help="data.folds")
    same.add_argument("--fold", type=int, default=0, metavar="K", help="data.fold")
    same.add_argument("--target-mpp", type=float, default=0.0, metavar="X", help="target_mpp")
    parser.add_argument(
        "--out",
        default="",
        type=os.path.expanduser,
        metavar="FOLDER",
        help="write contact_sheet.png there",
    )
    parser.add_argument(
        "--augment", default="", metavar="PRESET", help="write augmented.png there, too"
    )


def run(arguments: argparse.Namespace) -> int:
    from glomjax.data.checking import check_data
    from glomjax.data.checking.contact_sheet import prepare_folder, write_sheets

    out, preset = arguments.out, arguments.augment
    if out:
        prepare_folder(out, arguments.source, preset)
    elif preset:
        raise UserError(f"--augment {preset} draws a sheet: give --out FOLDER for it")
    report = check_data(
        arguments.source,
        target_mpp=arguments.target_mpp,
        classes=arguments.classes,
        seed=arguments.split_seed,
        split_by=arguments.split_by,
        folds=arguments.folds,
        fold=arguments.fold,
    )
    if out and report.images is not None:
        report.sheets = write_sheets(out, report.images, report.classes, preset)
    print_text(report.text())
    return 0 if report.accepted else 2
