"""Programs for tests alone: compiled soon rather than to run fast."""

from typing import Any

import jax

# Of GoogLeNet's nine: both auxiliary heads; narrow, and alike, so that most operations that one has
# compiled serve the next. The 3x3 filters have channels enough for minimal filtering.
FEW_BLOCKS = dict.fromkeys(("3b", "4a", "4d"), (16, 32, 48, 8, 16, 8))


def quickly() -> dict[str, Any] | None:
    """Options of XLA that leave LLVM's optimisations out, in a third of the time to compile.

    For what XLA decides before, or for a definition to compare with. What a run or a prediction
    compiles keeps the options of the package.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
