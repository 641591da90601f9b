"""`glomjax train`: a run, from its configuration to its report."""

import argparse
import dataclasses
import logging
import os
import pathlib
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glomjax.cli.command import WIDTH, Parser, print_error
from glomjax.cli.configuration import apply_overrides, config_names, load_config, shipped_name
from glomjax.errors import UserError, shell_word

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from glomjax.training.config_changes import ShippedConfig

HELP = "train a network and score it on the test split"


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s --config CONFIG [--config.KEY=VALUE ...] [options]"
    parser.description = (
        "Trains until it stops by itself and scores the test split with the best weights.\n"
        "The same command in the same folder continues an interrupted run."
    )
    parser.epilog = (
        "examples:\n"
        "  %(prog)s --config davit\n"
        "  %(prog)s --config alexnet_mini --config.data.source=patches --config.batch_size=16\n"
    )
    add_config(parser, "folder of the run; by default runs/CONFIG")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run that the folder holds"
    )
    several = parser.add_argument_group("several processes, where no cluster manager starts them")
    several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0")
    several.add_argument("--processes", type=int, default=0, metavar="N", help="how many there are")
    several.add_argument(
        "--process", type=int, default=-1, metavar="K", help="which of them this is, from 0"
    )


def add_config(parser: Parser, workdir: str) -> None:
    """The options of a verb that trains by a configuration.

    Args:
      workdir: the help of `--workdir`.
    """
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        help="file with get_config(), or one of the names "
        f"{', '.join(config_names())}; CONFIG:MODE for one with modes, such as davit:scratch",
    )
    parser.add_argument(
        "--workdir", default="", type=os.path.expanduser, metavar="FOLDER", help=workdir
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print warnings and errors alone; run.log in the folder of a run has every line",
    )
    parser.add_argument(
        "--max-hours",
        type=float,
        default=0.0,
        metavar="H",
        help="save and end with exit code 75 before H hours are over, such as a queue allows",
    )
    parser.takes_overrides = True
    parser.details = describe_fields


def read_config(arguments: argparse.Namespace) -> "tuple[ConfigDict, str, ShippedConfig | None]":
    """(the configuration that the options of `add_config` give, its name, the one of this package
    that it began as).

    Raises:
      UserError: there is no such configuration, or no such field.
    """
    if arguments.config is None:
        raise UserError(
            "no configuration is named; use --config with the path of a file or one of the names "
            f"{', '.join(config_names())}, as in --config davit"
        )
    base = load_config(arguments.config)
    config = apply_overrides(base, arguments.overrides)
    shipped = shipped_name(arguments.config)
    name = pathlib.Path(arguments.config.partition(":")[0]).stem
    return config, name, (shipped, base) if shipped else None


def keep_programs() -> None:
    """Compiled programs go into the cache, so that a second start does not compile again."""
    import jax

    from glomjax.files import cache_dir, why_not_writable

    if not (reason := why_not_writable(cache := cache_dir("jit"))):
        jax.config.update("jax_compilation_cache_dir", str(cache))
    elif jax.process_index() == 0:
        logging.getLogger("glomjax").warning(
            "the cache '%s' cannot be written (%s), so that programs and native kernels are "
            "compiled at each start; set the environment variable GLOMJAX_CACHE to a folder "
            "that can be",
            cache.parent,
            reason,
        )


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a training that was asked to stop; says what was not said yet."""
    from glomjax.training import Interrupted

    if not isinstance(interrupt, Interrupted):
        print("interrupted; the same command continues where it was saved last", file=sys.stderr)
        return 130
    if not interrupt.saved:
        print(interrupt, file=sys.stderr)
    return interrupt.exit_code


def run(arguments: argparse.Namespace) -> int:
    config, name, shipped = read_config(arguments)
    workdir = arguments.workdir or str(pathlib.Path("runs") / name)

    begun = time.monotonic()
    import jax

    from glomjax.training import initialize, train_and_evaluate

    try:
        initialize(arguments.coordinator, arguments.processes, arguments.process)
        keep_programs()
        # The limit is that of the process, which has also waited for others to join.
        hours = arguments.max_hours and arguments.max_hours - (time.monotonic() - begun) / 3600
        train_and_evaluate(
            config,
            workdir,
            overwrite=arguments.overwrite,
            progress=not arguments.quiet,
            shipped=shipped,
            max_hours=max(hours, 1e-9) if arguments.max_hours > 0 else arguments.max_hours,
        )
    except KeyboardInterrupt as interrupt:
        code = exit_code(interrupt)
        if not getattr(interrupt, "saved", True):
            _leave_others(code)
        return code
    except Exception as error:
        if jax.distributed.is_initialized():
            known = isinstance(error, UserError)
            print_error(error) if known else traceback.print_exc()
            _leave_others(2 if known else 1)
        raise
    return 0


def _leave_others(code: int) -> None:
    """Ends one of several processes: at its end jax would wait for the others, which wait for this
    one."""
    import jax

    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def describe_fields() -> str:
    """Every field of the configuration: how it is set to its default, its type and what it is."""
    from glomjax.training.config import RunConfig

    lines = [
        "",
        "Fields of the configuration, each with its default, its type and its meaning;",
        "the file that --config names may have other defaults.",
        "",
        *_section(RunConfig(), ""),
    ]
    return "\n".join(lines) + "\n"


def _section(config: Any, prefix: str) -> Iterator[str]:
    """The lines of a dataclass of fields, and then those of the sections in it."""
    sections = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            sections.append((field, value))
            continue
        option = f"  --config.{prefix}{field.name}={shell_word(value)}"
        if field.name == "options":
            option = f"  --config.{prefix}{field.name}.KEY=VALUE"
        choices = field.metadata["choices"]
        about = f"{_type(field.type)}: {field.metadata['help']}"
        about += f" [{', '.join(choices)}]" if choices else ""
        column = WIDTH // 2 - 4
        first, *more = textwrap.wrap(about, WIDTH - column)
        yield from (
            [option, f"{'':<{column}}{first}"]
            if len(option) > column - 2
            else [f"{option:<{column}}{first}"]
        )
        yield from (f"{'':<{column}}{line}" for line in more)
    for field, value in sections:
        yield ""
        yield f"{prefix}{field.name}: {field.metadata['help']}"
        yield from _section(value, f"{prefix}{field.name}.")


def _type(kind: Any) -> str:
    """`tuple[str, ...]` and the like, without the modules."""
    return kind.__name__ if type(kind) is type else re.sub(r"[a-z.]+\.(?=[A-Z])", "", str(kind))
