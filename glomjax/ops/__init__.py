"""The few operations that XLA compiles badly on a CPU, each with its plain definition beside it.

Every operation computes the same function on every backend: `plain_*` says what it is, and the
public name chooses a formulation for the backend that runs it. GPU and TPU keep XLA's own.

Examples:
  >>> import jax
  >>> from glomjax.ops import max_pool
  >>> jax.jit(lambda x: max_pool(x, window=2, stride=2))(jax.numpy.ones((1, 4, 4, 3))).shape
  (1, 2, 2, 3)
"""

from glomjax.ops.activation import add_bias, bias_gelu, bias_relu
from glomjax.ops.attention import channel_attention, window_attention
from glomjax.ops.convolution import conv2d, conv2d_branches, residual_depthwise_conv2d
from glomjax.ops.dense import dense, gelu_dense, layer_norm_dense
from glomjax.ops.normalization import layer_norm
from glomjax.ops.pooling import max_pool

__all__ = [
    "add_bias",
    "bias_gelu",
    "bias_relu",
    "channel_attention",
    "conv2d",
    "conv2d_branches",
    "dense",
    "gelu_dense",
    "layer_norm",
    "layer_norm_dense",
    "max_pool",
    "residual_depthwise_conv2d",
    "window_attention",
]


def __dir__() -> list[str]:
    """What tab completion offers: the names for scripts."""
    return __all__
