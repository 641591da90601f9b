"""Trains a network: `python main.py --config configs/davit.py [--workdir DIR] [--config.KEY=V]`."""

import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from glomjax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config().")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the run that the folder holds.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0 of several.")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", -1, "Which of them this is, from 0.")
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

        from glomjax.files import cache_dir
        from glomjax.training import Interrupted, clear, initialize, train_and_evaluate

        initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        # A second start does not compile again.
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("jit")))
        if _OVERWRITE.value and jax.process_index() == 0:
            clear(workdir)
        try:
            train_and_evaluate(config, workdir)
        except Interrupted as interrupted:
            return interrupted.exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        joined = sys.modules.get("jax")
        if joined is not None and joined.distributed.is_initialized():
            # jax would wait for the other processes, which wait for this one.
            sys.stderr.flush()
            os._exit(2)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it was saved last", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
