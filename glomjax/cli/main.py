"""`glomjax VERB ...`: which verbs there are, and what a mistake looks like."""

import io
import sys
from collections.abc import Sequence
from typing import Any

from glomjax import __version__
from glomjax.cli import (
    check_data,
    compare,
    convert,
    crossval,
    doctor,
    evaluate,
    inspect,
    predict,
    report,
    review,
    train,
)
from glomjax.cli.command import Parser, print_error
from glomjax.errors import UserError, at_command_line, nearest_key

# A new verb is a module and a line here.
VERBS: dict[str, Any] = {
    "train": train,
    "crossval": crossval,
    "predict": predict,
    "evaluate": evaluate,
    "compare": compare,
    "convert": convert,
    "inspect": inspect,
    "check-data": check_data,
    "report": report,
    "review": review,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None, *, verb: str = "", prog: str = "glomjax") -> int:
    """Runs a command line.

    Args:
      argv: what follows the command, by default in this process's own command line.
      verb: for a command that is one verb alone.
      prog: how the command is called, for its help.

    Returns:
      The exit code: 2 for what the user can put right, which is one sentence on standard error, and
      130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name that the terminal cannot show
    try:
        if not verb:
            if not arguments:
                root_parser(prog).print_help(sys.stderr)
                return 2
            verb, *arguments = _checked_verb(arguments, prog)
            prog = f"{prog} {verb}"
        with at_command_line():
            return VERBS[verb].run(verb_parser(verb, prog).parse(arguments))
    except UserError as error:
        print_error(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def verb_parser(verb: str, prog: str) -> Parser:
    """The command line of a verb."""
    parser = Parser(prog)
    VERBS[verb].add_arguments(parser)
    return parser


def root_parser(prog: str) -> Parser:
    """The command line without a verb, which has a help and a version."""
    parser = Parser(prog)
    parser.usage = "%(prog)s VERB ..."
    parser.description = "Kidney-histology patch classifiers: does this patch show a glomerulus?"
    parser.add_argument("--version", action="version", version=f"glomjax {__version__}")
    verbs = "".join(f"  {verb:<12}{module.HELP}\n" for verb, module in VERBS.items())
    parser.epilog = (
        f"verbs:\n{verbs}\n%(prog)s VERB --help says more; for example: %(prog)s train --help"
    )
    return parser


def _checked_verb(arguments: list[str], prog: str) -> list[str]:
    """The same command line, unless it does not start with a verb."""
    first = arguments[0]
    if first.startswith("-"):
        root_parser(prog).parse(arguments)  # ends the process after --help and --version
    if first not in VERBS:
        raise UserError(f"there is no verb {first!r}; {nearest_key(first, VERBS)}")
    return arguments
