"""How programs are compiled for the current backend, and what compilers leave behind."""

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import jax

# Dots through Eigen rather than YNNPACK: 188 to 210 GFLOP/s against 132 to 203 on two Zen 4 cores.
CPU_OPTIONS: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}

# For what runs once, such as the optimizer's first state: half of the time to compile.
CPU_OPTIONS_ONCE: dict[str, Any] = {"xla_backend_optimization_level": 1}


def compile_options(*, once: bool = False) -> dict[str, Any] | None:
    """XLA options for the current backend, of both steps or of what runs `once`."""
    if jax.default_backend() != "cpu":
        return None
    return CPU_OPTIONS_ONCE if once else CPU_OPTIONS


def compile_now(function: Any, *arguments: Any) -> jax.stages.Compiled:
    """A `jax.jit` function compiled for arguments like these; a call of it finds that, too.

    Compilers leave hundreds of MB that the C library keeps for later. glibc gives them back before
    this one runs and before the program takes its own memory; no other library is asked.
    """
    lowered = function.lower(*arguments)
    hand_back_memory()
    compiled = lowered.compile()
    del lowered
    hand_back_memory()
    return compiled


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` as one compiled program, soon there and soon forgotten.

    Op by op, what a run starts from would take a second a layer and leave a program for each shape.
    """
    program = jax.jit(function, compiler_options=compile_options(once=True))
    compiled = compile_now(program, *arguments)
    results = jax.block_until_ready(compiled(*arguments))
    del compiled
    hand_back_memory()
    return results


def hand_back_memory() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
