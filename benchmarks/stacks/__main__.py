"""`python -m stacks MODULE`: serves the stack in stacks/MODULE.py over stdin and stdout."""

import importlib
import sys

from stacks import protocol

replies = protocol.claim_stdout()  # before any library can print
protocol.serve(importlib.import_module(f"stacks.{sys.argv[1]}").create(), replies)
