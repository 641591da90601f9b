"""What every verb has: a parser whose complaints are one sentence, and its output."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from glomjax.cli.configuration import ALIASES, split_overrides
from glomjax.errors import UserError, nearest_key, printable

if TYPE_CHECKING:
    from glomjax.inference.classifier import Classifier

WIDTH = min(max(shutil.get_terminal_size().columns, 80), 100)  # of a help, in characters


class Parser(argparse.ArgumentParser):
    """The command line of one verb.

    Attributes:
      takes_overrides: whether `--config.KEY=VALUE` is an option; `parse` gives them as `overrides`.
      details: what `--help` has below the options, where that takes time to tell.
    """

    takes_overrides = False
    details: Callable[[], str] | None = None

    def __init__(self, prog: str):
        super().__init__(prog=prog, allow_abbrev=False, formatter_class=_Formatter)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; UserError for whatever is wrong with them."""
        overrides, rest = split_overrides(argv) if self.takes_overrides else ([], list(argv))
        options = [option for action in self._actions for option in action.option_strings]
        # Before argparse, which would only say that the right one is missing.
        for argument in rest:
            if argument.startswith("--") and argument.partition("=")[0] not in options:
                self._refuse(argument.partition("=")[0], options)
        arguments, rest = self.parse_known_args(rest)
        if rest and rest[0].startswith("-"):
            self._refuse(rest[0], options)
        if rest:
            raise UserError(f"leftover argument {rest[0]!r}; options start with two dashes")
        arguments.overrides = overrides
        return arguments

    def _refuse(self, option: str, options: Sequence[str]) -> NoReturn:
        known = [known for known in options if known.startswith("--")]
        # Which fields there are takes seconds to import.
        fields = "fields of the configuration are set as --config.KEY=VALUE"
        hint = nearest_key(option, known, fields if self.takes_overrides else "")
        if self.takes_overrides and (alias := ALIASES.get(option.strip("-"))):
            hint = f"did you mean --config.{alias}"
        raise UserError(f"there is no option {option}; {hint} ({self.prog} --help lists all)")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help says more)")

    def format_help(self) -> str:
        return super().format_help() + (self.details() if self.details else "")

    def print_help(self, file: Any = None) -> None:
        if file is None:
            print_text(self.format_help().rstrip())
        else:
            super().print_help(file)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, width=WIDTH)


def add_networks(parser: Parser) -> None:
    """The arguments by which a verb names trained networks and how they predict."""
    parser.add_argument(
        "sources",
        nargs="+",
        type=os.path.expanduser,
        metavar="SOURCE",
        help="run folder, checkpoint or a file that convert wrote; of several, whose classes are "
        "the same, the mean of the probabilities",
    )
    parser.add_argument(
        "--symmetries",
        action="store_true",
        help="the mean over the flips and quarter turns of each image; by default as in the run's "
        "own test",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="images in a batch; by default as in the run, by which its own numbers come out "
        "bit for bit; fewer where memory has no room for them",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="of two classes, the probability above which an image is positive; by default the one "
        "that the networks carry, 0.5 where none was chosen on their validation split",
    )
    parser.add_argument(
        "--mpp",
        type=float,
        metavar="NUMBER",
        help="microns per pixel of the images, where a manifest does not tell them",
    )


def add_allow_outside(parser: Parser) -> None:
    """The flag of a verb that reads manifests."""
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="a manifest may list images that lie outside its folder",
    )


def load_networks(arguments: argparse.Namespace) -> "Classifier":
    """The networks that the arguments of `add_networks` name.

    Raises:
      UserError: as of `load_classifier`.
    """
    from glomjax import load_classifier
    from glomjax.inference.classifier import MOST_IN_BATCH

    if arguments.batch is not None and not 1 <= arguments.batch <= MOST_IN_BATCH:
        raise UserError(
            f"--batch is {arguments.batch}; it is a number of images, 1 to {MOST_IN_BATCH}"
        )
    return load_classifier(
        arguments.sources,
        device_batch=arguments.batch,
        symmetries=True if arguments.symmetries else None,
        threshold=arguments.threshold,
    )


def print_error(error: Exception) -> None:
    """One line on standard error, whatever the names in it hold."""
    print(f"error: {error}", file=sys.stderr, flush=True)


def print_text(text: str, *, as_it_is: bool = False) -> bool:
    """Prints; whoever closes the pipe has read enough, and then there is nobody to print more for.

    Names from data and weight files command no terminal: each line is `printable`.

    Args:
      as_it_is: a table that a program may read, which gets the very names unless it is a terminal.

    Returns:
      Whether it was read.

    Raises:
      UserError: standard output cannot be written.
    """
    if not as_it_is or sys.stdout.isatty():
        text = "\n".join(map(printable, text.split("\n")))
    try:
        print(text, flush=True)
    except OSError as error:
        # At exit Python flushes what is left, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UserError(f"standard output cannot be written ({error.strerror})") from error
        return False
    return True
