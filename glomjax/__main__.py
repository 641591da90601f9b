"""`python -m glomjax VERB ...`, which is the command `glomjax VERB ...`."""

import sys

from glomjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m glomjax"))
