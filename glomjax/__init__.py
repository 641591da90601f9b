"""Kidney-histology patch classifiers in JAX: does this patch show a glomerulus?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glomjax.inference.classifier import load_classifier

__version__ = "0.1.0"
__all__ = ["__version__", "load_classifier"]


def __getattr__(name: str) -> Any:
    # Loading a network takes jax; asking for the version does not.
    if name == "load_classifier":
        from glomjax.inference.classifier import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
