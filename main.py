"""Trains a network: `python main.py --config configs/davit.py`, which is `glomjax train`."""

import sys

from glomjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(verb="train", prog="python main.py"))
