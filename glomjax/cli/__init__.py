"""The command line: a file for each verb, which the table in `main` lists.

A verb's module has `HELP`, its line in the list of verbs, `add_arguments(parser)`, which describes
its command line, and `run(arguments)`, which does the work and returns the exit code. It imports
what that needs in the functions that need it, so that `--help` and a mistake are answered at once.
"""
