"""`glomjax compare`: predictions of the same images, against those of a reference."""

import argparse
import os

from glomjax.cli.command import Parser, print_text

HELP = "compare runs, evaluations or tables of predictions of the same images"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s REFERENCE OTHER [OTHER ...] [--out FOLDER] [options]"
    parser.description = (
        "Prints the paired difference of each measure to the first one named, with intervals that\n"
        "count patients, McNemar's test by patient, and in what the configurations differ."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s runs/davit runs/googlenet --out comparison\n"
        "  %(prog)s evaluation/davit evaluation/googlenet evaluation/ensemble --patients slide"
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=os.path.expanduser,
        metavar="SOURCE",
        help="finished run, folder that evaluate wrote, cross-validation, or table of predictions; "
        "p values of several are corrected for their number (Holm)",
    )
    parser.add_argument(
        "--out",
        type=os.path.expanduser,
        metavar="FOLDER",
        help="write comparison.txt and comparison.json there; a new folder, or an empty one",
    )
    parser.add_argument(
        "--patients",
        default="",
        metavar="COLUMN",
        help="the column by which images count together; by default the one that split the data of "
        "the runs, else the patient's, else the slide's",
    )


def run(arguments: argparse.Namespace) -> int:
    from glomjax.inference.comparison import compare

    comparison = compare(arguments.sources, arguments.out, patients=arguments.patients)
    written = f"\nresults: {arguments.out}" if arguments.out else ""
    print_text(f"{comparison.text}{written}")
    return 0
