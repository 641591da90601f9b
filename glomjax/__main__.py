"""`python -m glomjax VERB`: what to do with weights and configurations besides training."""

import argparse
import os
import sys
from collections.abc import Sequence

from glomjax.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line; each verb sets `run`, which takes the arguments and returns the text."""
    root = argparse.ArgumentParser(
        prog="python -m glomjax", description="What there is besides training."
    )
    verbs = root.add_subparsers(title="verbs", metavar="VERB")

    convert = verbs.add_parser("convert", help="write weights as a file of ours")
    convert.add_argument(
        "source", help="weight file, published id, run folder or checkpoint folder"
    )
    convert.add_argument("--out", required=True, metavar="FILE.safetensors", help="a new file")
    convert.set_defaults(run=_convert)

    inspect = verbs.add_parser("inspect", help="print what weights hold or a configuration trains")
    inspect.add_argument(
        "what",
        help="weight file, published id, run or checkpoint folder, or configs/FILE.py[:MODE]",
    )
    inspect.set_defaults(run=_inspect)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    root = parser()
    arguments = root.parse_args(argv)
    if "run" not in arguments:
        root.print_help(sys.stderr)
        return 2
    try:
        _print(arguments.run(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


# Each verb imports what it needs, so that a wrong command line and --help answer at once.


def _convert(arguments: argparse.Namespace) -> str:
    from glomjax.pretrained import convert_weights

    return convert_weights(arguments.source, arguments.out)


def _inspect(arguments: argparse.Namespace) -> str:
    from glomjax.inspection import describe

    return describe(arguments.what)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # At exit Python flushes what is left, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever closes a pipe has read enough
            raise UserError(f"standard output cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
