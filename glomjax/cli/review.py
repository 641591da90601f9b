"""`glomjax review`: a page with the most doubtful labels, which gives a corrected manifest."""

import argparse
import os

from glomjax.cli.command import Parser, add_allow_outside, print_text

HELP = "show the patches whose labels are most doubtful, to correct them"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s SOURCE [options]"
    parser.description = (
        "Writes review.html, one file that any browser opens: the patches whose labels a network\n"
        "doubts, keys and buttons to decide on each, and a button that downloads a corrected\n"
        "manifest. The out-of-fold predictions of a cross-validation judge every patch."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s runs/davit_folds\n"
        "  %(prog)s evaluation/predictions.csv --data other_hospital --count 200"
    )
    parser.add_argument(
        "source",
        type=os.path.expanduser,
        metavar="SOURCE",
        help="cross-validation, finished run, folder that evaluate wrote, or table of predictions",
    )
    parser.add_argument(
        "--out",
        type=os.path.expanduser,
        metavar="FILE",
        help="the page; by default review.html in that folder or beside that table",
    )
    parser.add_argument(
        "--data",
        default="",
        type=os.path.expanduser,
        metavar="WHAT",
        help="folder or manifest of the images; by default where the predictions say they were",
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="patches that are shown; by default a tenth, 20 to 100",
    )
    add_allow_outside(parser)


def run(arguments: argparse.Namespace) -> int:
    from glomjax.report.review import write_review

    review = write_review(
        arguments.source,
        arguments.out,
        data=arguments.data,
        count=arguments.count,
        allow_outside=arguments.allow_outside,
    )
    print_text("\n".join([*review.sentences, f"open in a browser: {review.file}"]))
    return 0
