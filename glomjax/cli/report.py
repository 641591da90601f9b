"""`glomjax report`: the pages on a result, made again."""

import argparse
import os

from glomjax.cli.command import Parser, print_text

HELP = "make the report of a run, an evaluation or a cross-validation again"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s FOLDER"
    parser.description = (
        "Writes FOLDER/report anew from what FOLDER holds: report.html, a model card and tables\n"
        "of the results. Training, evaluate and crossval have done so at their end."
    )
    parser.epilog = "example:\n  %(prog)s runs/davit"
    parser.add_argument(
        "folder",
        type=os.path.expanduser,
        metavar="FOLDER",
        help="of a run, of a cross-validation, or one that evaluate wrote",
    )


def run(arguments: argparse.Namespace) -> int:
    from glomjax.report.page import make_report

    print_text(f"report: {make_report(arguments.folder)}")
    return 0
