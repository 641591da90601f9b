"""Trains a network: `python main.py --config configs/davit.py [--workdir DIR] [--config.KEY=V]`."""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from glomjax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; by default runs/CONFIG.")


def parse(argv: list[str]):
    """(config, workdir) of a command line; UserError for whatever is wrong with it."""
    try:
        rest = flags.FLAGS(argv)[1:]
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # locked already; a file that is missing raises only here
    except Exception as error:  # of the command line, or whatever the configuration file raises
        # Then the message ends with a traceback, and that with the reason.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise UserError(
            f"command line or configuration: {reason}; see README.md for the options"
        ) from error
    if rest:
        raise UserError(f"leftover argument {rest[0]!r}; options start with two dashes")
    if _CONFIG.value is None:
        raise UserError("no configuration is named; use --config configs/davit.py")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    return _CONFIG.value, _WORKDIR.value or str(pathlib.Path("runs") / pathlib.Path(path).stem)


def main(argv: list[str]) -> int:
    """Runs the command line; the exit code."""
    try:
        config, workdir = parse(argv)
        import jax

        from glomjax.cache import cache_dir
        from glomjax.training import train_and_evaluate

        # A second start does not compile again.
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
        train_and_evaluate(config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues after the last whole epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
