"""Native CPU kernels (`kernels.cc`), built by the machine's own compiler when first needed.

No result depends on them: without a compiler, or where they cannot be used, the operations run in
their pure form. A built library is kept in the cache under the hash of its source, its compiler,
the jaxlib that it was built for and the processor, with its checksum beside it: a damaged one would
crash the process, and is built again.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax import lax

from glomjax.files import cache_dir, checksum, why_not_writable

SETTINGS = ("auto", "off")
# What to say where `must_build`.
BUILDING = "native kernels: building them, once, with this machine's C++ compiler"
_SOURCE = pathlib.Path(__file__).with_name("kernels.cc")
_COMPILERS = ("c++", "g++", "clang++")  # or the one that the environment variable CXX names
# No -ffast-math: it hides NaN and may change rounding for the whole process.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")
_FAILURES = (OSError, ValueError, subprocess.SubprocessError)
_setting = contextvars.ContextVar("glomjax.ops.native", default="auto")
_products = contextvars.ContextVar("glomjax.ops.products", default="float32")


@contextlib.contextmanager
def setting(value: str) -> Iterator[None]:
    """Traces with native kernels where they are available ("auto") or without them ("off").

    What a `jax.jit` has traced already stays as it is. Export programs with "off": on another
    machine there are no such kernels, `jax.export` refuses to save calls of them, and what computes
    in bfloat16 here (see `activations`) need not be what does there.
    """
    token = _setting.set(value)
    try:
        yield
    finally:
        _setting.reset(token)


def status(precision: str = "float32") -> str:
    """One sentence for a log: whether native kernels are used here, or why not; "" off the CPU."""
    if jax.default_backend() != "cpu":
        return ""
    if reason := missing(precision):
        return (
            f"native kernels: off, {reason}; the operations run as XLA compiles them, more slowly"
        )
    return "native kernels: on" + (f", products in {precision}" if precision != "float32" else "")


def missing(precision: str = "float32") -> str:
    """Why a CPU does without native kernels here; "" where it has them, and off the CPU."""
    if jax.default_backend() != "cpu":
        return ""
    reason = _obstacle() or _library().reason
    if not reason and activations(precision) != "float32":
        reason = f"this processor has no instruction for products in {precision}"
    return reason


def must_build() -> bool:
    """Whether `status` is about to build the kernels, which takes some seconds."""
    if jax.default_backend() != "cpu" or _obstacle():
        return False
    try:
        return not _is_whole(_target().path)
    except _FAILURES:
        return False  # which `status` will say


def in_cache() -> tuple[str, str]:
    """What there is of the kernels, which are neither built nor loaded.

    Returns:
      "built", "damaged", "not built" or "no compiler", and the first line of the compiler's
      `--version`, "" where there is none.
    """
    try:
        target = _target()
    except _FAILURES:
        return "no compiler", ""
    if _is_whole(target.path):
        return "built", target.version
    return "damaged" if target.path.exists() else "not built", target.version


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Traces with native products that round their factors to `precision`.

    In bfloat16 they sum in float32, and take and give float32: see `activations`. Neither 3x3
    filters, which minimal filtering makes as fast in float32, nor those of an odd number of
    channels are rounded.
    """
    token = _products.set(precision)
    try:
        yield
    finally:
        _products.reset(token)


def activations(precision: str) -> str:
    """The type of what layers pass on where a network computes in `precision`.

    Where the processor multiplies bfloat16 by an instruction of its own, native products of float32
    arrays round their factors to it: they are faster than those of XLA.
    """
    available = jax.default_backend() == "cpu" and not _obstacle()
    return "float32" if precision == "bfloat16" and available and _library().bfloat16 else precision


def rounds() -> bool:
    """Whether native products round their factors to bfloat16: within `products_in`."""
    return _products.get() == "bfloat16"


def supports(*args: jax.Array) -> bool:
    """Whether the native kernels may take these arguments: float32, on one CPU, none empty."""
    if any(x.dtype != np.float32 or x.size == 0 for x in args):
        return False
    return jax.default_backend() == "cpu" and not _obstacle() and bool(_library().prefix)


def call(name: str, plain: Callable[..., Any], *args: jax.Array, **attributes: Any) -> Any:
    """`plain(*args)` by the kernel `name`, its gradients by `{name}_gradient`; both kernels get the
    attributes: numbers, and tuples of integers. A kernel without a gradient of that form is called
    within a `jax.custom_vjp` that has its own.

    Only where `supports(*args)`. The backward pass keeps the arguments and nothing else. A program
    that is lowered for another platform gets `plain`.
    """
    return _call(name, plain, tuple(sorted(attributes.items())), *args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _call(name: str, plain: Callable[..., Any], attributes: tuple, *args: jax.Array) -> Any:
    return _kernel(name, plain, attributes, jax.eval_shape(plain, *args), *args)


def _forward(name: str, plain: Callable, attributes: tuple, *args: jax.Array) -> tuple:
    return _call(name, plain, attributes, *args), args


def _backward(name: str, plain: Callable, attributes: tuple, args: tuple, g: jax.Array) -> tuple:
    def gradients(*args_and_g: jax.Array) -> tuple:
        *args, g = args_and_g
        return jax.vjp(plain, *args)[1](g)

    return _kernel(f"{name}_gradient", gradients, attributes, tuple(args), *args, g)


_call.defvjp(_forward, _backward)


def _kernel(
    name: str, otherwise: Callable[..., Any], attributes: tuple, like: Any, *args: jax.Array
) -> Any:
    result = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    # Sequential under vmap: the kernels take whole batches, nobody maps them in a hot place.
    function = jax.ffi.ffi_call(_library().prefix + name, result, vmap_method="sequential")
    typed = {key: _typed(value) for key, value in attributes}
    return lax.platform_dependent(
        *args, cpu=lambda *args: function(*args, **typed), default=otherwise
    )


def _typed(value: Any) -> Any:
    """As the kernels' signatures have it."""
    if isinstance(value, bool):
        return value
    return np.float32(value) if isinstance(value, float) else np.asarray(value, np.int64)[()]


def _obstacle() -> str:
    """What keeps the kernels from being used, apart from the building of them."""
    if _setting.get() == "off":
        return "ops.native is 'off'"
    if jax.device_count() > 1:
        # XLA cannot divide a foreign call over devices: it would gather the whole batch on each.
        return f"they run on one CPU device and there are {jax.device_count()}"
    return ""


class _Library(NamedTuple):
    """The prefix of the registered names, or why there are none; and whether products in bfloat16
    are faster than in float32."""

    prefix: str = ""
    reason: str = ""
    bfloat16: bool = False


@functools.cache
def _library() -> _Library:
    """Builds it where it is not in the cache."""
    try:
        target = _target()
        library = _load(target)
    except _FAILURES as error:
        return _Library(reason=_first_line(error))
    for name in re.findall(r"HANDLER_SYMBOL\(\s*glomjax_(\w+)", _SOURCE.read_text("utf-8")):
        _register(target.prefix + name, getattr(library, f"glomjax_{name}"))
    library.glomjax_bfloat16.restype = ctypes.c_bool
    return _Library(target.prefix, bfloat16=library.glomjax_bfloat16())


_registered: set[str] = set()


def _register(name: str, handler: Any) -> None:
    """Once in a process: XLA refuses a second registration, and one name is one code."""
    if name not in _registered:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
        _registered.add(name)


class _Target(NamedTuple):
    """What is built. The prefix of the registered names has the hash: a cached program that was
    compiled against other kernels does not fit these."""

    prefix: str
    path: pathlib.Path
    compiler: list[str]
    version: str  # of the compiler, in its words


@functools.cache
def _target() -> _Target:
    compiler = _compiler()
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, check=True, timeout=60
    ).stdout
    digest = hashlib.sha256()
    for part in (
        _SOURCE.read_bytes(),
        " ".join((*compiler, *_FLAGS)).encode(),
        version,
        jaxlib.__version__.encode(),
        _processor().encode(),
    ):
        digest.update(hashlib.sha256(part).digest())
    name = digest.hexdigest()[:16]
    said = version.decode(errors="replace").strip().partition("\n")[0]
    path = cache_dir("native") / f"kernels-{name}.so"
    return _Target(f"glomjax_{name}_", path, compiler, said)


def _load(target: _Target) -> ctypes.CDLL:
    """From the cache where it is whole there; built otherwise, and kept where that is possible."""
    cache = target.path.parent
    if not _is_whole(target.path):
        if why_not_writable(cache):
            with tempfile.TemporaryDirectory() as aside:
                return ctypes.cdll.LoadLibrary(str(_build(target, pathlib.Path(aside))))
        # Built aside and renamed, so that another process never loads half a library.
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            built = _build(target, pathlib.Path(aside))
            digest = checksum(built)
            os.replace(built, target.path)
            with contextlib.suppress(OSError):  # then it is built again at the next start
                _checksum_of(target.path).write_text(digest)
    return ctypes.cdll.LoadLibrary(str(target.path))


def _build(target: _Target, folder: pathlib.Path) -> pathlib.Path:
    """The library, built in a folder that is there."""
    built = folder / target.path.name
    include = jax.ffi.include_dir()
    command = [*target.compiler, *_FLAGS, "-isystem", include, str(_SOURCE), "-o", str(built)]
    subprocess.run(command, capture_output=True, check=True, timeout=600)
    return built


def _checksum_of(library: pathlib.Path) -> pathlib.Path:
    return library.with_suffix(".sha256")


def _is_whole(library: pathlib.Path) -> bool:
    """Whether a built library is there, and is what was built."""
    try:
        return _checksum_of(library).read_text() == checksum(library)
    except (OSError, UnicodeDecodeError):
        return False


def _compiler() -> list[str]:
    """The compiler's path, with the arguments that CXX gives it."""
    own = shlex.split(os.environ.get("CXX", ""))
    names = own[:1] or _COMPILERS
    for name in names:
        if found := shutil.which(name):
            return [found, *own[1:]]
    raise FileNotFoundError(f"there is no C++ compiler ({', '.join(names)})")


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _first_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if line]
        wrong = [line for line in lines if "error" in line] or lines or ["it said nothing"]
        return f"the compiler {error.cmd[0]} failed ({wrong[0]})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
