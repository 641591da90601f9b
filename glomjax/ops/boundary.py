"""A boundary that XLA's CPU compiler does not fuse across.

XLA:CPU copies cheap elementwise producers (a normalisation, a GELU, the taps of a depthwise
convolution) into each of their consumers, reductions included, and computes them many times over.
`jax.lax.optimization_barrier` does not stop it. A conditional does, since its branches are
computations of their own, as long as the compiler cannot prove which branch runs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def isolated(function: Callable[..., Any], witness: jax.Array, *args: Any) -> Any:
    """`function(*args)`, compiled as a unit of its own on a CPU and as usual elsewhere.

    Args:
      function: any traceable function of arrays.
      witness: a float32 or bfloat16 array (a small one: a bias, a scale). One of its bits forms a
        predicate that is true whatever the bit is, NaN included, but that XLA does not fold.
      *args: the arguments of `function`.
    """

    def on_cpu(witness: jax.Array, *args: Any) -> Any:
        element = lax.index_in_dim(witness.reshape(-1), 0, keepdims=False)
        bits = lax.bitcast_convert_type(element.astype(jnp.float32), jnp.uint32)
        always = (bits & jnp.uint32(1)) < jnp.uint32(2)

        def never(*args: Any) -> Any:
            shapes = jax.eval_shape(function, *args)
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        return lax.cond(always, function, never, *args)

    def elsewhere(witness: jax.Array, *args: Any) -> Any:
        del witness
        return function(*args)

    if witness.size == 0:  # an empty batch
        return function(*args)
    return lax.platform_dependent(witness, *args, cpu=on_cpu, default=elsewhere)
