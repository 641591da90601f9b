"""Runs the tests on Python 3.12 and 3.13 with the newest releases that pyproject.toml allows.

    python benchmarks/newest_releases.py FOLDER [--python 3.12] [--tests tests/models ...] [--keep]

requirements.txt has the exact versions at the lower end, on Python 3.11; this is the other end.
What is committed is cloned into FOLDER and installed there with the developers' tools, in an
environment for each interpreter, which is `python3.12` on the PATH or one of pyenv; one that is
absent is skipped. Needs a network, and on two cores about half an hour for each interpreter.

Prints a table and writes it to --out: the versions, how many tests passed, failed and were skipped,
and the names of those that failed. --keep leaves the environments where they are for the next call,
which brings them up to date. The exit code is 1 where a test failed, none was run, or nothing could
be installed.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
PYTHONS = ("3.12", "3.13")
PYENV = pathlib.Path("~/.pyenv/versions").expanduser()
PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "tensorflow-datasets",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one interpreter said of the tests.

    Attributes:
      python: its version, such as 3.12.1.
      versions: {package: version} of `PACKAGES`.
      passed, failed, skipped: how many tests; an error counts as failed.
      failures: the names of those that failed.
      minutes: that the tests took.
    """

    python: str
    versions: dict[str, str]
    passed: int
    failed: int
    skipped: int
    failures: tuple[str, ...]
    minutes: float


def find_python(version: str, pyenv: pathlib.Path = PYENV) -> str:
    """The interpreter of a version such as "3.12", "" where there is none. Each is tried, since
    pyenv puts commands on the PATH that only say that their version is not chosen."""
    newest = sorted(pyenv.glob(f"{version}.*"), key=lambda folder: _numbers(folder.name))
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(folder / "bin" / "python") for folder in reversed(newest)]
    for candidate in filter(None, candidates):
        if _version_of(candidate).startswith(f"{version}."):
            return candidate
    return ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _version_of(python: str) -> str:
    asked = [python, "-c", "import platform; print(platform.python_version())"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def read_results(
    file: pathlib.Path, python: str, versions: dict[str, str], minutes: float
) -> Result:
    """The result in a table of pytest's (`--junitxml`)."""
    cases = list(ET.parse(file).iter("testcase"))
    kinds = [{child.tag for child in case} for case in cases]
    failures = tuple(
        f"{case.get('classname')}.{case.get('name')}"
        for case, kind in zip(cases, kinds, strict=True)
        if kind & {"failure", "error"}
    )
    skipped = sum("skipped" in kind for kind in kinds)
    passed = len(cases) - len(failures) - skipped
    return Result(python, versions, passed, len(failures), skipped, failures, minutes)


def tabulate(results: Sequence[Result], about: str) -> str:
    """A table in Markdown, a line for each interpreter, with the failures below."""
    names = ["Python", *PACKAGES, "passed", "failed", "skipped", "minutes"]
    lines = [about, "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for r in results:
        versions = [r.versions.get(package, "") for package in PACKAGES]
        counts = [str(r.passed), str(r.failed), str(r.skipped), f"{r.minutes:.0f}"]
        lines.append(f"| {' | '.join([r.python, *versions, *counts])} |")
    for r in results:
        if r.failures:
            lines += ["", f"Failed on Python {r.python}:", ""]
            lines += [f"- {name}" for name in r.failures]
    return "\n".join(lines) + "\n"


def run_tests(
    python: str, environment: pathlib.Path, checkout: pathlib.Path, tests: Sequence[str]
) -> Result | None:
    """The result of the tests in an environment of an interpreter, which is made where it does not
    exist; None where it cannot be."""
    here = str(environment / "bin" / "python")
    pip = [here, "-m", "pip", "--disable-pip-version-check"]
    newest = ["install", "--quiet", "--upgrade", "--upgrade-strategy=eager"]
    for command in (
        [python, "-m", "venv", str(environment)],
        [*pip, *newest, "--editable", f"{checkout}[dev]"],
    ):
        if subprocess.run(command).returncode:
            print(f"error: this failed: {' '.join(command)}", file=sys.stderr)
            return None
    listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True)
    versions = {package["name"]: package["version"] for package in json.loads(listed.stdout)}
    table = environment / "tests.xml"
    table.unlink(missing_ok=True)
    # A path to another checkout would be tested in place of this one.
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    begun = time.monotonic()
    subprocess.run(
        [here, "-m", "pytest", "-q", f"--junitxml={table}", *tests], cwd=checkout, env=variables
    )
    minutes = (time.monotonic() - begun) / 60
    if not table.is_file():
        print(f"error: the tests did not run in '{environment}'; see above", file=sys.stderr)
        return None
    return read_results(table, _version_of(here), versions, minutes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="for the clone and the environments")
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="such as 3.12")
    parser.add_argument("--tests", nargs="+", default=(), help="paths; by default all")
    parser.add_argument("--out", type=pathlib.Path, help="a file for the table")
    parser.add_argument("--keep", action="store_true", help="do not remove FOLDER at the end")
    args = parser.parse_args(argv)
    folder = args.folder.expanduser().resolve()
    checkout = folder / "checkout"
    mark = folder / ".newest_releases"  # what lies beside it may be removed
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        parser.error(f"'{folder}' holds something else; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    shutil.rmtree(checkout, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    commit = _git("rev-parse", "--short", "HEAD")
    if _git("status", "--porcelain"):
        print(f"what is not committed is not tested: this is {commit}", file=sys.stderr)
    results: list[Result] = []
    complete = True
    for version in args.python:
        python = find_python(version)
        if not python:
            print(f"Python {version} is neither on the PATH nor in {PYENV}: skipped")
            continue
        found = run_tests(python, folder / f"python{version}", checkout, args.tests)
        complete &= found is not None and found.passed > 0 and not found.failed
        results += [found] if found else []
    if not args.keep:
        shutil.rmtree(folder)
    what = ", ".join(args.tests) or "all tests"
    table = tabulate(results, f"{datetime.date.today()}, commit {commit}, {what}:")
    print(table, end="")
    if args.out:
        args.out.write_text(table)
    return 0 if complete else 1


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
