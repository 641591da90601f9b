"""`glomjax convert`: weights of any source as a file of ours."""

import argparse
import os

from glomjax.cli.command import Parser, print_text

HELP = "write weights as a file of ours"


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Writes the weights of a file, a published id or a run, whole or not at all, as a\n"
        "file with model, preset, preprocessing, classes and a checksum in it."
    )
    parser.epilog = "example:\n  %(prog)s runs/davit --out davit.safetensors"
    parser.add_argument(
        "source",
        type=os.path.expanduser,
        help="weight file, published id, run folder or checkpoint folder",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=os.path.expanduser,
        metavar="FILE.safetensors",
        help="a new file",
    )


def run(arguments: argparse.Namespace) -> int:
    from glomjax.pretrained import convert_weights

    print_text(convert_weights(arguments.source, arguments.out))
    return 0
