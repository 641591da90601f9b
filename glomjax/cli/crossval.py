"""`glomjax crossval`: a run for each fold, so that every patient is tested once."""

import argparse
import pathlib

from glomjax.cli.command import Parser
from glomjax.cli.train import add_config, exit_code, keep_programs, read_config

HELP = "train a network for each fold, so that every patient is tested once"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s --config CONFIG [--config.KEY=VALUE ...] --folds K [options]"
    parser.description = (
        "Trains a run for each fold and puts their tests together: metrics.json, report.txt and\n"
        "out_of_fold.csv in the folder, whose networks predict and evaluate take as one ensemble.\n"
        "The same command goes on with what is not finished. Given to several machines that share\n"
        "the folder, each takes folds that no other trains."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s --config davit --config.data.source=patches --folds 5\n"
        "  %(prog)s --config davit --config.data.source=patches --folds 5 --repeats 3\n"
    )
    add_config(parser, "folder of the cross-validation; by default runs/CONFIG_folds")
    parser.add_argument(
        "--folds",
        required=True,
        type=int,
        metavar="K",
        help="parts of the patients, each of which is the test of one network",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="R",
        help="how often all of it is done, each time with another seed and other folds; 1 by "
        "default, and more can be asked for later",
    )


def run(arguments: argparse.Namespace) -> int:
    config, name, shipped = read_config(arguments)
    from glomjax.training import cross_validate

    keep_programs()
    try:
        cross_validate(
            config,
            arguments.workdir or str(pathlib.Path("runs") / f"{name}_folds"),
            folds=arguments.folds,
            repeats=arguments.repeats,
            progress=not arguments.quiet,
            shipped=shipped,
            max_hours=arguments.max_hours,
        )
    except KeyboardInterrupt as interrupt:
        return exit_code(interrupt)
    return 0
