"""The stacks that `compare.py` drives, each a worker process with the Python of its own stack."""
