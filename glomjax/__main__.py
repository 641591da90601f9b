"""`python -m glomjax VERB`: what to do with weights and configurations besides training."""

import argparse
import os
import sys
from collections.abc import Sequence

from glomjax.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The command line; each verb sets `run`, which takes the arguments and returns the text, or
    the text and the exit code where that is not always 0."""
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

    check = verbs.add_parser(
        "check-data",
        help="report what is in a data source and what would make a result on it worthless",
        epilog="The exit code is 0 where training accepts the source and 2 where it refuses it, "
        "with these options and the default configuration for the rest.",
    )
    check.add_argument("source", help="folder, CSV or TSV manifest, tfds:NAME, or synthetic")
    check.add_argument("--classes", nargs=2, default=(), metavar=("NEGATIVE", "POSITIVE"))
    same = check.add_argument_group("as in training")
    same.add_argument("--split-seed", type=int, default=0, metavar="N", help="data.split_seed")
    same.add_argument("--split-by", default="patient", metavar="KIND", help="data.split_by")
    same.add_argument("--folds", type=int, default=0, metavar="N", help="data.folds")
    same.add_argument("--fold", type=int, default=0, metavar="K", help="data.fold")
    same.add_argument("--target-mpp", type=float, default=0.0, metavar="X", help="target_mpp")
    check.add_argument("--out", default="", metavar="FOLDER", help="write contact_sheet.png there")
    check.add_argument(
        "--augment", default="", metavar="PRESET", help="write augmented.png there, too"
    )
    check.set_defaults(run=_check_data)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    root = parser()
    arguments = root.parse_args(argv)
    if "run" not in arguments:
        root.print_help(sys.stderr)
        return 2
    try:
        result = arguments.run(arguments)
        text, code = result if isinstance(result, tuple) else (result, 0)
        _print(text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


# Each verb imports what it needs, so that a wrong command line and --help answer at once.


def _convert(arguments: argparse.Namespace) -> str:
    from glomjax.pretrained import convert_weights

    return convert_weights(arguments.source, arguments.out)


def _inspect(arguments: argparse.Namespace) -> str:
    from glomjax.inspection import describe

    return describe(arguments.what)


def _check_data(arguments: argparse.Namespace) -> tuple[str, int]:
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
    return report.text(), 0 if report.accepted else 2


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
