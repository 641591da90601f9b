"""`glomjax evaluate`: trained networks judged on other data."""

import argparse
import os
import sys

from glomjax.cli.command import (
    Parser,
    add_allow_outside,
    add_networks,
    load_networks,
    print_text,
)
from glomjax.errors import UserError, printable
from glomjax.report import REPORTS

HELP = "judge trained networks on labelled images"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s SOURCE [SOURCE ...] --data WHAT --out FOLDER [options]"
    parser.description = (
        "Writes the report of a test on other data: test_metrics.json, predictions.csv and\n"
        "report.txt. Patients or images that a network was trained or validated on are refused."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s runs/davit --data other_hospital --out evaluation\n"
        "  %(prog)s davit.safetensors --data table.csv --split test --rename Tubule=other "
        "--out evaluation"
    )
    add_networks(parser)
    parser.add_argument(
        "--data",
        required=True,
        type=os.path.expanduser,
        metavar="WHAT",
        help="folder of class folders, manifest, tfds:NAME or synthetic, as in training",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=os.path.expanduser,
        metavar="FOLDER",
        help="a new folder, or an empty one",
    )
    parser.add_argument(
        "--split",
        default="",
        metavar="NAME",
        help="train, validation or test of the data; by default all of it",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="NAME=CLASS",
        help="a class of the data, and the network's class that it is; once for each",
    )
    parser.add_argument(
        "--allow-seen",
        action="store_true",
        help="judge also on patients and images of the training; the report says so first",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out images that cannot be read, and say which",
    )
    parser.add_argument(
        "--exact-names",
        action="store_true",
        help="patients, slides and sites that are spelt alike are different ones",
    )
    parser.add_argument(
        "--prevalence",
        type=float,
        metavar="SHARE",
        help="of positives where the network is to be used: PPV and NPV are also given for it",
    )
    parser.add_argument(
        "--report",
        default="full",
        choices=REPORTS,
        help="the pages in FOLDER/report: full, plain (without saliency), none (%(default)s)",
    )
    add_allow_outside(parser)


def run(arguments: argparse.Namespace) -> int:
    from glomjax.inference.evaluation import evaluate

    evaluation = evaluate(
        load_networks(arguments),
        arguments.data,
        arguments.out,
        split=arguments.split,
        rename=[_pair(text) for text in arguments.rename],
        allow_seen=arguments.allow_seen,
        skip_unreadable=arguments.skip_unreadable,
        exact_names=arguments.exact_names,
        allow_outside=arguments.allow_outside,
        mpp=arguments.mpp,
        prevalence=arguments.prevalence,
        report=arguments.report,
        progress=sys.stderr.isatty(),
    )
    print_text(f"{evaluation.text}\nresults: {arguments.out}")
    print(printable(evaluation.looks), file=sys.stderr)
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, other = text.partition("=")
    if not equals or not name or not other:
        raise UserError(
            f"--rename {text} is no pair; give a class of the data and the network's class that it "
            "is, as in --rename Tubule=other"
        )
    return name, other
