"""`glomjax doctor`: what there is on this machine, on one screen to paste into a report.

Whoever pastes it gives away neither a user, a host, a folder nor the value of an environment
variable: places are told by what they are, and of what others say the part before a path.
"""

import argparse
import importlib
import os
import pathlib
import platform
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import glomjax
from glomjax.cli.command import Parser, print_text
from glomjax.errors import excerpt, first_few

HELP = "print versions, devices, kernels, cache and memory, to paste into a report"

_WIDTH = 80
_NAME = 11  # characters of a line before what it says
# What has to be imported before a network computes anything: module, and package.
_IMPORTED = {
    "numpy": "numpy",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax.nnx": "flax",
    "optax": "optax",
    "orbax.checkpoint": "orbax-checkpoint",
    "grain": "grain",
    "PIL": "pillow",
}
_LOCK = pathlib.Path(glomjax.__file__).parents[1] / "requirements.txt"
# Devices of the system, the jax plugins for them, and how these are installed.
_ACCELERATORS = (
    (
        "an NVIDIA GPU",
        ("nvidia0", "nvidiactl", "dxg"),  # on a machine, in a container, under WSL
        ("jax-cuda12-plugin", "jax-cuda13-plugin"),
        "cuda",
    ),
    ("a TPU", ("accel0",), ("libtpu",), "tpu"),
)


def add_arguments(parser: Parser) -> None:
    parser.description = (
        "Prints what glomjax finds on this machine, and what there is to mend, in at most 40\n"
        "lines for a report. Nothing is downloaded or built, and no user, host or folder is\n"
        "named. The exit code is 1 where something is broken."
    )
    parser.epilog = "example:\n  %(prog)s > doctor.txt"


def run(arguments: argparse.Namespace) -> int:
    facts = list(examine())
    advice = [fact.advice for fact in facts if fact.advice]
    lines = [_line(fact.name, fact.says) for fact in facts]
    print_text("\n".join([*lines, _line("to mend:", "; ".join(advice) or "nothing")]))
    return int(any(fact.broken for fact in facts))


class Fact(NamedTuple):
    """A line: its name, what it says, how that is mended, and whether nothing goes on without."""

    name: str
    says: str
    advice: str = ""
    broken: bool = False


def examine() -> Iterator[Fact]:
    """All that the command prints, line by line."""
    failed = _failed_imports()
    yield _glomjax(complete=not failed)
    yield Fact("python", f"{platform.python_version()}, {platform.platform()}")
    if failed:
        yield Fact(
            "packages",
            f"cannot be imported: {', '.join(failed)}",
            "install the packages of requirements.txt anew, without which nothing else is asked",
            broken=True,
        )
        return
    yield _packages()
    yield _lock()
    devices = _devices()
    yield devices
    yield _kernels(known=not devices.broken)
    yield from _machine(known=not devices.broken)
    yield _cache()
    yield _weights()


def _line(name: str, says: str) -> str:
    return textwrap.fill(
        says,
        _WIDTH,
        initial_indent=f"{name:<{_NAME}}",
        subsequent_indent=" " * _NAME,
        break_on_hyphens=False,
    )


def _failed_imports() -> list[str]:
    """Each package that is not there or damaged, with the kind of its error."""
    from glomjax.logs import logging_left_to_scripts

    failed = []
    for module, package in _IMPORTED.items():
        try:
            with logging_left_to_scripts():
                importlib.import_module(module)
        except Exception as error:  # of a package that does not fit another, of any kind
            missing = f" of {error.name}" if isinstance(error, ImportError) and error.name else ""
            failed.append(f"{package} ({type(error).__name__}{missing})")
    return failed


def _glomjax(complete: bool) -> Fact:
    text = glomjax.__version__
    if complete:
        from glomjax.environment import git_state

        git = git_state()
        if git["commit"]:
            text += f", commit {git['commit'][:12]}"
            text += " with uncommitted changes" if git["uncommitted_changes"] else ""
        else:
            text += ", installed as a package"
    return Fact("glomjax", text)


def _packages() -> Fact:
    from glomjax.environment import version

    return Fact("packages", ", ".join(f"{name} {version(name)}" for name in _IMPORTED.values()))


def _lock() -> Fact:
    """How the installed versions compare with those of `requirements.txt`."""
    from glomjax.environment import version

    try:
        # Beside an installed package, a file of that name is another package's.
        _LOCK.with_name("configs").stat()
        lines = _LOCK.read_text("utf-8").splitlines()
    except OSError:
        return Fact("lock", "no requirements.txt beside an installed package")
    pins = [line.split("==") for line in lines if "==" in line]
    found = {name: (version(name), pinned) for name, pinned in pins}
    other = {name: (has, pin) for name, (has, pin) in found.items() if has != pin}
    if not other:
        return Fact("lock", f"all {len(pins)} packages are those of requirements.txt")
    missing = [name for name, (has, _) in other.items() if has == "not installed"]
    named = first_few(f"{name} {has} ({pin})" for name, (has, pin) in other.items())
    return Fact(
        "lock",
        f"{len(other)} of {len(pins)} packages are not those of requirements.txt (in brackets): "
        f"{named}; runs go on bit for bit under one lock alone",
        f"install {first_few(missing)}" if missing else "",
        broken=bool(missing),
    )


def _devices() -> Fact:
    """The devices that jax computes on, and those of the machine that it cannot use."""
    import jax

    try:
        devices = jax.devices()
    except Exception as error:  # jax asserts, too, that there is a device of the kind named
        says = excerpt(_without_paths(str(error))) or type(error).__name__
        return Fact(
            "devices",
            f"jax has none: {says}",
            "let JAX_PLATFORMS name a kind of device that is there, or unset it",
            broken=True,
        )
    kinds = Counter(device.device_kind for device in devices)
    says = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    says += f" (platform {devices[0].platform})"
    if devices[0].platform != "cpu":
        return Fact("devices", says)
    advice = ""
    for what, names, plugins, extra in _ACCELERATORS:
        if any(pathlib.Path("/dev", name).exists() for name in names):
            says += f"; {what} seems to be there, which jax does not use"
            advice = _advice_on(what, plugins, extra)
    return Fact("devices", says, advice)


def _advice_on(what: str, plugins: tuple[str, ...], extra: str) -> str:
    """How jax comes to use an accelerator that it does not use."""
    import jax

    from glomjax.environment import version

    if jax.config.values["jax_platforms"]:
        return f"for {what}: JAX_PLATFORMS names other devices, so unset it"
    if all(version(plugin) == "not installed" for plugin in plugins):
        return f"for {what}: pip install -e '.[{extra}]'"
    return f"for {what}: its jax plugin is installed and does not start, so see to its driver"


def _kernels(known: bool) -> Fact:
    if not known:
        return Fact("kernels", "not known without a device")
    import jax

    from glomjax.ops import native

    if jax.default_backend() != "cpu":
        return Fact("kernels", "not needed, they are for CPUs")
    state, compiler = native.in_cache()
    by = f"by {excerpt(_without_paths(compiler), 60)}"
    if state == "no compiler":
        return Fact(
            "kernels",
            "off: there is no C++ compiler, so XLA's own operations run, more slowly",
            "install a C++ compiler, such as g++, or let CXX name the one there is",
        )
    if state == "not built" and native.must_build():
        return Fact("kernels", f"not built yet: the first run builds them {by}")
    if state == "damaged":
        return Fact(
            "kernels",
            f"damaged: the next run builds them anew {by}",
            "start any run, which builds the kernels anew",
            broken=True,
        )
    # They are in the cache, or something keeps them from being used: this builds nothing.
    if reason := native.missing():
        broken = jax.device_count() == 1
        return Fact(
            "kernels",
            f"off: {excerpt(_without_paths(reason))}",
            "remove the folder native of the cache, so that they are built anew" if broken else "",
            broken,
        )
    bfloat16 = "no instructions" if native.missing("bfloat16") else "instructions"
    return Fact("kernels", f"built {by}; this processor has {bfloat16} for bfloat16")


def _machine(known: bool) -> Iterator[Fact]:
    from glomjax import memory
    from glomjax.environment import processor, usable_cores
    from glomjax.files import cache_dir

    yield Fact("processor", f"{processor()}, {usable_cores()} cores for this process")
    most, free = _size(memory.host_bytes()), _size(memory.free_host_bytes())
    text = f"{most} at most, limits of a container counted; {free} free"
    if known:
        import jax

        if jax.default_backend() != "cpu":
            text += f"; {_size(memory.free_bytes())} free on a device"
    yield Fact("memory", text)
    yield Fact(
        "disk",
        f"{_size(_free_disk(pathlib.Path()))} free in the current folder, "
        f"{_size(_free_disk(cache_dir('')))} in the cache",
    )


def _cache() -> Fact:
    from glomjax.files import cache_dir, why_not_writable

    named = [name for name in ("GLOMJAX_CACHE", "XDG_CACHE_HOME") if os.environ.get(name)]
    place = f"where {named[0]} says" if named else "~/.cache/glomjax"
    folder = cache_dir("")
    if reason := why_not_writable(folder):
        return Fact(
            "cache",
            f"{place}, cannot be written ({reason})",
            "let GLOMJAX_CACHE name a folder that can be written",
            broken=True,
        )
    return Fact("cache", f"{place}, can be written, {_size(_bytes_below(folder))}")


def _weights() -> Fact:
    """Which published weights are in the cache, and whether they are whole."""
    from glomjax.pretrained.sources import PUBLISHED

    whole: list[str] = []
    damaged: list[str] = []
    for entry in PUBLISHED.values():
        try:
            if entry.cached.is_file():
                (whole if entry.is_whole() else damaged).append(entry.id)
        except OSError:
            damaged.append(entry.id)
    if damaged:
        return Fact(
            "weights",
            f"damaged: {', '.join(damaged)}" + (f"; whole: {', '.join(whole)}" if whole else ""),
            f"remove what the cache has of {', '.join(damaged)}, to have it downloaded again",
            broken=True,
        )
    return Fact("weights", f"whole: {', '.join(whole)}" if whole else "none in the cache yet")


def _without_paths(text: str) -> str:
    """What others say, up to the first word with a slash: folders are named after people."""
    return re.split(r"\s*\S*[/\\]", text, maxsplit=1)[0]


def _free_disk(folder: pathlib.Path) -> int | None:
    """Bytes that are free where a folder lies, or will."""
    try:
        places = (folder, *folder.absolute().parents)
        return shutil.disk_usage(next(filter(pathlib.Path.is_dir, places))).free
    except OSError:  # the current folder may have been removed
        return None


def _bytes_below(folder: pathlib.Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # a file that another process has just removed
                continue
    return total


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"
